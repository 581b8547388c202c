//! Whether the client may come in: asked with its `connect`, where that was not decided before.

use std::time::{Duration, Instant};

use tidegate_transport::clock;

use super::{Inner, Session};
use crate::door::{Entry, Visitor};
use crate::events::{RETRY_MAX, RETRY_MIN};
use crate::policy::admission::SlotTicket;

/// How somebody comes.
#[derive(Debug)]
pub(crate) enum Entrance {
    /// A place was given to it before its handshake.
    Decided(Entry),
    /// It asks with its `connect`.
    Asks(Visitor),
}

/// Until the session is open.
///
/// ```text
/// Asks ──a place──► Waits ──its moment──► Entered ──► (none) once open
/// ```
#[derive(Debug)]
pub(super) enum Gate {
    /// Nothing is decided.
    Asks(Visitor),
    /// For its moment.
    Waits(Entry),
    /// Counts as a handshake.
    Entered(#[expect(dead_code, reason = "counts until it is dropped")] Entry),
}

impl Gate {
    pub(super) fn new(entrance: Entrance) -> Self {
        match entrance {
            Entrance::Decided(entry) => Self::Entered(entry),
            Entrance::Asks(visitor) => Self::Asks(visitor),
        }
    }

    /// When it opens.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Waits(entry) => Some(entry.at()),
            Self::Asks(_) | Self::Entered(_) => None,
        }
    }
}

impl Session {
    /// The client wants to come in.
    pub(super) fn knock(&self, inner: &mut Inner) {
        let slot = inner.machine.take_slot().and_then(|text| SlotTicket::from_text(&text));
        let Some(Gate::Asks(visitor)) = inner.gate.as_deref_mut() else {
            return inner.machine.let_in(clock::now());
        };
        match visitor.knock(slot.as_ref()).into_entry() {
            Ok(entry) => {
                inner.gate = Some(Box::new(Gate::Waits(entry)));
                self.open_gate(inner);
            }
            Err(rejection) => {
                inner.gate = None;
                inner.machine.turn_away(rejection.close(self.worker.jitter(RETRY_MIN, RETRY_MAX)));
            }
        }
    }

    /// Lets in who waits, where its moment has come.
    pub(super) fn open_gate(&self, inner: &mut Inner) {
        let now = clock::now();
        // tokio's timers are as coarse.
        let is_time = |entry: &Entry| entry.at().saturating_duration_since(now) < Duration::from_millis(1);
        if !matches!(inner.gate.as_deref(), Some(Gate::Waits(entry)) if is_time(entry)) {
            return;
        }
        if let Some(Gate::Waits(entry)) = inner.gate.take().map(|gate| *gate) {
            inner.gate = Some(Box::new(Gate::Entered(entry)));
            inner.machine.let_in(now);
        }
    }
}
