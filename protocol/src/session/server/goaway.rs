//! Sans-io: asking the client to move to another server, and closing where it did not.

use std::time::{Duration, Instant};

use super::{Session, State, Tickets};
use crate::frame::{CloseCode, Connect, Goaway, ServerBody, ServerFrame};

impl Session {
    /// Asks the client to move. The newest holds: where the one before was not sent yet, it never is. Also where the session was
    /// resumed elsewhere and this connection goes on: where it went may be gone. False where nobody is to be asked: the session
    /// is not open yet, or over.
    pub fn goaway(&mut self, now: Instant, goaway: Goaway) -> bool {
        if !self.is_served() {
            return false;
        }
        self.leave_by = Some(now + Duration::from_millis(goaway.deadline_ms).min(MAX_DEADLINE));
        self.place.renewing = false;
        self.transmits.retain(|frame| !matches!(frame.body, Some(ServerBody::Goaway(_))));
        self.tell_plan_first(now);
        self.transmits.push_back(ServerFrame::new(0, ServerBody::Goaway(goaway)));
        true
    }

    /// True where the client said that it does what `goaway` asks.
    pub fn moves(&self) -> bool {
        self.moves
    }

    /// True where the session was resumed on another connection.
    pub fn has_moved(&self) -> bool {
        matches!(self.tickets, Tickets::Superseded(_))
    }

    /// True where the session goes on elsewhere, or was asked to.
    pub fn is_expected_elsewhere(&self) -> bool {
        self.has_moved() || self.leave_by.is_some()
    }

    /// True while the session is served: `connect` was answered, or is about to be.
    pub fn is_served(&self) -> bool {
        matches!(self.state, State::Open { .. } | State::Opening { .. })
    }

    /// True while something that the client asked is not answered.
    pub fn is_busy(&self) -> bool {
        self.in_flight > 0
    }

    /// What the client showed in `connect` to claim a place that is kept for it. Once.
    pub fn take_slot(&mut self) -> Option<Box<str>> {
        self.slot.take()
    }

    /// What `connect` says of moving.
    pub(super) fn note_moving(&mut self, connect: &mut Connect) -> bool {
        self.moves = connect.moves;
        let slot = connect.slot.take();
        if slot.as_ref().is_some_and(|slot| slot.len() > MAX_SLOT_BYTES) {
            self.end(CloseCode::BadFrame, "a slot has at most 512 bytes");
            return false;
        }
        self.slot = slot.map(String::into_boxed_str);
        true
    }

    pub(super) fn goaway_timeout(&self) -> Option<Instant> {
        self.leave_by.filter(|_| self.is_served())
    }

    pub(super) fn tend_goaway(&mut self, now: Instant) {
        if self.goaway_timeout().is_none_or(|at| at > now) {
            return;
        }
        if self.place.renewing {
            self.leave_by = None;
            self.renew_later(now);
        } else {
            self.end(CloseCode::Shutdown, "the time to move is over");
        }
    }
}

const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);
const MAX_SLOT_BYTES: usize = 512;
