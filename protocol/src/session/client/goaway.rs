//! Sans-io: leaving a connection whose server asks to, or is not heard any more: when to dial where, and what is not
//! believed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::connections::Side;
use super::{Event, Session};
use crate::endpoint::endpoint_of;
use crate::frame::{CloseCode, Goaway};
use crate::hint::{Hidden, Hint};
use crate::plan::ReconnectPlan;

/// What the server of a connection asked for, or the plan has for one that is silent.
///
/// ```text
///          its time is here             nothing came of it, time is short
/// waiting ─────────────────► there ◄──┐ ─────────────────────────────────► anywhere ◄──┐
///                              └──────┘ nothing came of it: again, later       └───────┘
/// ```
#[derive(Debug)]
pub(super) struct Departure {
    /// Where to, as host and port; `None` for wherever the client likes.
    endpoint: Option<Arc<str>>,
    pub(super) slot: Option<Hidden<String>>,
    /// When to dial, or to dial again if nothing is heard of the last one.
    try_at: Instant,
    /// The server there said so.
    refused_until: Option<Instant>,
    /// Dials that were asked for.
    tries: u32,
    /// What became of the last of them was not told yet.
    is_tried: bool,
    /// From then on any place will do.
    anywhere_from: Instant,
    /// The server closes then.
    pub(super) deadline: Instant,
    /// Nobody asked: the server is silent. Over when it is heard.
    unasked: bool,
}

impl Session {
    /// What the app's own URLs name: servers may send the session there. A host, and a port where it is not 4433.
    pub fn trust_endpoint(&mut self, host: &str) {
        if let Some(endpoint) = endpoint_of(host)
            && !self.trusted.contains(&endpoint)
        {
            self.trusted.push(endpoint);
        }
    }

    /// What [`Event::Goaway`] asked for led nowhere, or could not be done now. Said again of the same one it changes
    /// nothing: the session knows itself of a connection that it had.
    pub fn not_left(&mut self, now: Instant) {
        let share = self.rng.random_range(0.5..1.5);
        let Some(departure) = self.tried() else { return };
        departure.is_tried = false;
        let at = now + RETRY.saturating_mul(1 << (departure.tries - 1).min(8)).min(RETRY_CAP).mul_f64(share);
        // The first try anywhere is not put off.
        let in_time = now < departure.anywhere_from;
        departure.try_at = if in_time { at.min(departure.anywhere_from) } else { at };
        if let Some(until) = departure.refused_until.take().filter(|until| *until < departure.deadline) {
            departure.try_at = until;
        }
    }

    /// Where [`Event::Goaway`] led, a server refused, and said when to come.
    pub fn put_off_leaving(&mut self, now: Instant, hint: Hint) {
        let Some(departure) = self.tried() else { return };
        if let Hint::Later { after, ticket } = hint {
            departure.refused_until = Some(now + after);
            departure.slot = ticket.map(|ticket| Hidden(ticket.to_string()));
        }
    }

    /// The departure whose dial is under way. A refusal at any other time is of something else, such as a climb.
    fn tried(&mut self) -> Option<&mut Departure> {
        self.current.as_mut()?.departure.as_mut().filter(|departure| departure.is_tried)
    }

    pub(super) fn handle_goaway(&mut self, now: Instant, side: Side, goaway: Goaway) {
        let Some(connection) = self.connection(side).filter(|connection| connection.is_open()) else {
            return;
        };
        let id = connection.id;
        let endpoint = match &goaway.endpoint {
            None => None,
            Some(text) => {
                let endpoint = text.strip_prefix("https://").and_then(endpoint_of);
                let allowed = endpoint.filter(|endpoint| {
                    self.trusted.contains(endpoint) || connection.alternatives.contains(endpoint)
                });
                if allowed.is_none() {
                    let endpoint = text.chars().take(ReconnectPlan::MAX_HOST).collect();
                    self.events.push_back(Event::GoawayIgnored { connection: id, endpoint });
                    return;
                }
                allowed
            }
        };
        let left = Duration::from_millis(goaway.deadline_ms).min(MAX_DEADLINE);
        let after = Duration::from_millis(goaway.after_ms).min(left);
        let deadline = now + left;
        let departure = Departure {
            endpoint,
            slot: goaway.slot.filter(|slot| slot.len() <= MAX_SLOT_BYTES).map(Hidden),
            try_at: now + after,
            refused_until: None,
            tries: 0,
            is_tried: false,
            anywhere_from: (deadline - MARGIN.min(left / 4)).max(now + after),
            deadline,
            unasked: false,
        };
        let Some(connection) = self.connection_mut(side) else { return };
        let endpoint = departure.endpoint.clone();
        let before = connection.departure.replace(departure);
        if side == Side::Current
            && self.next.is_some()
            && before.is_some_and(|before| before.tries > 0 && before.endpoint != endpoint)
        {
            // Whoever sent it there knows better now: it may be dead, and seem to be on its way for long.
            self.fail_move(now, CloseCode::Shutdown.number(), "another place is to be moved to".to_owned());
        }
    }

    /// Nothing is heard of the present server. Whoever is asked at its address may answer, so that comes first; then the
    /// session goes where the plan says, in its turn, as if the server had been lost when it was heard last. It is lost only
    /// when that has worked, or the silence was too long.
    pub(super) fn escape(&mut self, now: Instant) {
        let Some(current) = self.current.as_ref().filter(|current| current.is_open()) else { return };
        // One that is over, as of a server that stayed after all, stands in the way of nothing.
        let is_asked = current.departure.as_ref().is_some_and(|departure| now < departure.deadline);
        let Some(dead_at) = current.dead_at().filter(|_| !is_asked) else { return };
        let heard = current.probe.heard();
        let Some(dial) = current.plan.as_ref().and_then(|plan| self.reconnect.foresee(plan)) else { return };
        let departure = Departure {
            endpoint: dial.host,
            slot: None,
            try_at: (heard + dial.delay).max(now + OWN_SERVER_FIRST),
            refused_until: None,
            tries: 0,
            is_tried: false,
            anywhere_from: dead_at,
            deadline: dead_at,
            unasked: true,
        };
        if let Some(current) = &mut self.current {
            current.departure = Some(departure);
        }
    }

    /// The server is heard again.
    pub(super) fn stay(&mut self, side: Side) {
        if let Some(connection) = self.connection_mut(side) {
            connection.departure.take_if(|departure| departure.unasked);
        }
    }

    /// When to dial; nothing while the session is on its way already.
    pub(super) fn departure_due(&self) -> Option<Instant> {
        if self.next.is_some() {
            return None;
        }
        let departure = self.current.as_ref()?.departure.as_ref()?;
        (departure.try_at < departure.deadline).then_some(departure.try_at)
    }

    pub(super) fn tend_departure(&mut self, now: Instant) {
        if self.departure_due().is_none_or(|at| now < at) {
            return;
        }
        let Some(current) = &mut self.current else { return };
        let Some(departure) = &mut current.departure else { return };
        departure.try_at = now + PATIENCE;
        let anywhere = departure.tries > 0 && now >= departure.anywhere_from;
        departure.tries = departure.tries.saturating_add(1);
        departure.is_tried = true;
        let endpoint = departure.endpoint.clone().filter(|_| !anywhere);
        self.events.push_back(Event::Goaway { connection: current.id, endpoint });
    }
}

/// For another connection to a server that is silent on this one: it may be the path alone.
const OWN_SERVER_FIRST: Duration = Duration::from_secs(1);
/// From a dial to the next, where nothing is heard of it.
const PATIENCE: Duration = Duration::from_secs(12);
/// Before the deadline: long enough to connect elsewhere.
const MARGIN: Duration = Duration::from_secs(5);
/// Bound of the first wait after a failure, give or take half; doubles up to the cap.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_CAP: Duration = Duration::from_secs(8);
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);
const MAX_SLOT_BYTES: usize = 512;
