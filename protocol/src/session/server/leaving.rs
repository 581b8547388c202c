//! Sans-io: an end that waits for answers. What the core has done for a client, the client is told.

use std::time::{Duration, Instant};

use super::{Session, State};
use crate::frame::CloseCode;

/// How the session will end.
#[derive(Debug)]
pub(super) struct Leaving {
    code: CloseCode,
    reason: String,
    until: Instant,
}

impl Session {
    /// Ends the session once the core has answered what the client asked before, within a second; at once where nothing was
    /// asked. Nothing more is read.
    pub fn leave(&mut self, now: Instant, code: CloseCode, reason: &str) {
        if !self.waits_for_answers() {
            return self.end(code, reason);
        }
        let until = now + LAST_ANSWERS;
        self.leaving.get_or_insert_with(|| Leaving { code, reason: reason.to_owned(), until });
    }

    pub(super) fn leaving_timeout(&self) -> Option<Instant> {
        self.leaving.as_ref().map(|leaving| leaving.until)
    }

    /// Ends it where it was left and nothing more is waited for.
    pub(super) fn end_if_left(&mut self, now: Option<Instant>) {
        let over = |leaving: &Leaving| now.is_some_and(|now| leaving.until <= now);
        if self.leaving.as_ref().is_some_and(|leaving| over(leaving) || !self.waits_for_answers())
            && let Some(Leaving { code, reason, .. }) = self.leaving.take()
        {
            self.end(code, &reason);
        }
    }

    fn waits_for_answers(&self) -> bool {
        self.in_flight > 0 && matches!(self.state, State::Open { .. })
    }
}

/// An owner answers in a few milliseconds; where there is none, it takes an election and more.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
