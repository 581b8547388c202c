//! Deciding about who comes, as early as each transport allows.

use tidegate_protocol::hint::Hint;
use tidegate_transport::quic::Incoming;
use tracing::debug;

use super::tcp::failed;
use crate::connection::Entrance;
use crate::door::{Arrival, Rejection, Visitor};
use crate::events::{RETRY_MAX, RETRY_MIN};
use crate::policy::admission::SlotTicket;
use crate::worker::Worker;

/// Decides about a client's first packet, and answers it where the client does not come in.
///
/// Who chose an id of 20 bytes can read an answer before TLS, and may show a ticket by it (PROTOCOL §9.3); about others,
/// browsers, it is decided whether they may shake hands.
pub(super) fn admit_incoming(worker: &Worker, incoming: Incoming) -> Option<(Incoming, Entrance)> {
    let Some(shown) = SlotTicket::from_bytes(&incoming.chosen_id()) else {
        return arrive_incoming(worker, incoming)
            .map(|(incoming, visitor)| (incoming, Entrance::Asks(visitor)));
    };
    if !incoming.has_room() {
        // What he shows is good for one attempt: the next one.
        turn_away(incoming, &Rejection::Unvalidated);
        return None;
    }
    let (address, validated) = (incoming.remote_address().ip(), incoming.is_validated());
    match worker.shared().door.knock(address, validated, Some(&shown)).into_entry() {
        Ok(entry) => Some((incoming, Entrance::Decided(entry))),
        Err(rejection) => {
            turn_away(incoming, &rejection);
            None
        }
    }
}

/// Decides whether a client may shake hands, and answers it where not.
pub(super) fn arrive_incoming(worker: &Worker, incoming: Incoming) -> Option<(Incoming, Visitor)> {
    let (address, validated) = (incoming.remote_address().ip(), incoming.is_validated());
    if !incoming.has_room() {
        turn_away(incoming, &Rejection::Unvalidated);
        return None;
    }
    let rejection = match worker.shared().door.arrive(address, validated) {
        Arrival::Pass(visitor) => return Some((incoming, visitor)),
        Arrival::Unvalidated => Rejection::Unvalidated,
        Arrival::Busy => Rejection::Busy,
    };
    turn_away(incoming, &rejection);
    None
}

fn turn_away(incoming: Incoming, rejection: &Rejection) {
    debug!(?rejection, "QUIC client turned away");
    match rejection {
        Rejection::Told(hint) => incoming.refuse_with(&hint.to_string()),
        Rejection::LameDuck => incoming.refuse(),
        Rejection::Unvalidated => incoming.retry(),
        Rejection::Busy => incoming.ignore(),
    }
}

/// Answers who finds the node full, or not able to serve.
pub(super) fn refuse_incoming(worker: &Worker, incoming: Incoming) {
    let after = worker.jitter(RETRY_MIN, RETRY_MAX);
    incoming.refuse_with(&Hint::Later { after, ticket: None }.to_string());
    failed(worker, "overloaded");
}
