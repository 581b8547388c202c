//! Sans-io: `connect` waits until the driver has asked whether the client may come in.

use std::time::Instant;

use super::{Event, Session, State};
use crate::frame::{Close, CloseCode, Connect, ServerBody, ServerFrame};
use crate::grants::Identity;
use crate::hint::Hint;

/// What waits.
#[derive(Debug)]
pub(super) struct Knocking {
    id: u64,
    identity: Option<Box<Identity>>,
    connect: Connect,
}

impl Session {
    /// For a client that nobody has decided about: its `connect` brings [`Event::Knock`], before anything is checked. To be
    /// called first.
    pub fn ask_first(&mut self) {
        self.asks_first = true;
    }

    /// The client may come in.
    pub fn let_in(&mut self, now: Instant) {
        let State::Knocking(knocking) = &mut self.state else { return };
        let (id, identity) = (knocking.id, knocking.identity.take());
        let connect = std::mem::take(&mut knocking.connect);
        self.state = State::Checking { id, answer_by: None };
        self.check(now, id, identity, connect);
    }

    /// It may not, as this frame says. A number that is no close code of ours counts as [`CloseCode::Overloaded`].
    pub fn turn_away(&mut self, close: Close) {
        let code = CloseCode::from_number(close.code).unwrap_or(CloseCode::Overloaded);
        let reason = close.reason.clone();
        self.end_with(close, code, reason);
    }

    pub(super) fn knock(&mut self, id: u64, identity: Option<Box<Identity>>, connect: Connect) {
        self.state = State::Knocking(Box::new(Knocking { id, identity, connect }));
        self.events.push_back(Event::Knock);
    }

    pub(super) fn end_with(&mut self, close: Close, code: CloseCode, reason: String) {
        if self.is_ended() {
            return;
        }
        self.state = State::Ended;
        self.leaving = None;
        self.transmits.push_back(ServerFrame::new(0, ServerBody::Close(close)));
        self.events.push_back(Event::End { code, reason });
    }
}

/// The frame that says what a hint says (PROTOCOL §9.3).
pub fn refusal(hint: &Hint) -> Close {
    let mut close = CloseCode::Overloaded.frame(&hint.to_string());
    if let (Some(reconnect), Hint::Later { after, ticket }) = (&mut close.reconnect, hint) {
        reconnect.after_ms = Some(after.as_millis().try_into().unwrap_or(u64::MAX));
        reconnect.slot = ticket.as_deref().map(str::to_owned);
    }
    close
}
