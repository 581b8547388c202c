//! Sans-io: from the end of the only connection to the next dial: what the end was, when to dial, and whom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connections::Connection;
use super::{Event, Session, State};
use crate::endpoint::endpoint_of;
use crate::frame::{Close, CloseCode, ReconnectPolicy};
use crate::hint::{Hidden, Hint};
use crate::plan::ReconnectPlan;
use crate::reconnect::{Cause, Dial, Reconnect};

/// Whom [`Event::Dial`] means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// Host and port of another server; `None` for whomever the driver dialled last.
    pub host: Option<Arc<str>>,
    /// To be shown there, see [`Session::slot`].
    ticket: Option<Hidden<Arc<str>>>,
    /// What nothing has come back of by then has failed: others wait to be tried.
    give_up: Option<Instant>,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) code: u32,
    /// For people and logs: without a ticket.
    pub(super) reason: String,
    pub(super) policy: ReconnectPolicy,
    pub(super) cause: Cause,
}

impl End {
    /// Without a word, where there is no code; else by the transport's own close.
    pub(super) fn by_transport(code: Option<u32>, reason: &str, was_open: bool) -> Self {
        let (policy, cause) = match code {
            None if was_open => (ReconnectPolicy::Backoff, Cause::ServerLost),
            None => (ReconnectPolicy::Backoff, Cause::Unreachable),
            Some(code) => {
                let policy = CloseCode::policy_of(code);
                (policy, cause(code, policy, None, Hint::parse(reason)))
            }
        };
        let code = code.unwrap_or_else(|| CloseCode::ConnectionLost.number());
        Self { code, reason: Hint::without_ticket(reason).into_owned(), policy, cause }
    }

    /// By a `close` frame.
    pub(super) fn by_frame(close: Close) -> Self {
        let Close { code, reason, reconnect } = close;
        let policy = match &reconnect {
            Some(reconnect) => reconnect.policy(),
            None => CloseCode::policy_of(code),
        };
        let reconnect = reconnect.unwrap_or_default();
        let after = reconnect.after_ms.map(|ms| Duration::from_millis(ms.min(MAX_AFTER_MS)));
        let ticket = reconnect.slot.filter(|slot| slot.len() <= MAX_SLOT_BYTES).map(Arc::from);
        let hint = match (after, ticket) {
            // The text says the same, for those who see nothing else.
            (None, None) => Hint::parse(&reason),
            (Some(after), None) if is_refusal(code) => Some(Hint::Later { after, ticket: None }),
            (_, None) => None,
            (after, ticket) => Some(Hint::Later { after: after.unwrap_or_default(), ticket }),
        };
        let reason = Hint::without_ticket(&reason).into_owned();
        Self { code, cause: cause(code, policy, after, hint), reason, policy }
    }

    /// Asks for something else than the server did.
    pub(super) fn set_policy(&mut self, policy: ReconnectPolicy) {
        self.policy = policy;
        self.cause = Cause::Closed { policy, after: self.not_before() };
    }

    /// The time that the server's word rules out.
    pub(super) fn not_before(&self) -> Option<Duration> {
        match &self.cause {
            Cause::Closed { after, .. } => *after,
            _ => None,
        }
    }
}

impl Target {
    /// True where it is the first of an outage: where it leads nowhere, tell so at once.
    pub fn is_first(&self) -> bool {
        self.give_up.is_some()
    }
}

impl Session {
    /// What to show in `connect` of the connection that is made now, or, over native QUIC, as its first connection id: the
    /// place that is kept for the session.
    pub fn slot(&self, now: Instant) -> Option<Arc<str>> {
        let departure = self.current.as_ref().and_then(|current| current.departure.as_ref());
        let of = departure.or(self.left_behind.as_ref()).filter(|departure| now < departure.deadline);
        let of_departure =
            of.and_then(|departure| departure.slot.as_ref().map(|slot| Arc::from(slot.0.as_str())));
        if self.current.as_ref().is_some_and(Connection::is_open) {
            return of_departure;
        }
        self.target.ticket.clone().map(|ticket| ticket.0).or(of_departure)
    }

    /// Whom to dial, for [`Event::Dial`].
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Until when nothing may have come back of the dial, where so.
    pub(super) fn give_up_at(&self) -> Option<Instant> {
        let waits = match &self.state {
            State::Dialing => true,
            State::Up => self.current.as_ref().is_some_and(Connection::is_early) && self.next.is_none(),
            _ => false,
        };
        self.target.give_up.filter(|_| waits)
    }

    /// Nothing came back in time: the driver drops what it dials.
    pub(super) fn tend_dial(&mut self, now: Instant) {
        if self.give_up_at().is_none_or(|at| now < at) {
            return;
        }
        let end = End::by_transport(None, "nothing came back in time", false);
        self.lose_all(now, end, false);
    }

    /// When and whom to dial, the connection being `lost`. Where a ticket was `refused` that is no loop.
    pub(super) fn decide(
        &mut self,
        now: Instant,
        lost: Option<&Connection>,
        end: &End,
        refused: bool,
    ) -> Dial {
        if let Some(lost) = lost.filter(|lost| lost.is_open()) {
            match &lost.plan {
                Some(plan) => self.reconnect.handle_plan(Arc::clone(plan), true),
                None => self.reconnect.forget_plan(),
            }
        }
        let at_once = matches!(end.policy, ReconnectPolicy::Now | ReconnectPolicy::FreshToken);
        if refused && at_once {
            return Dial { delay: end.not_before().unwrap_or_default(), host: None, ticket: None };
        }
        let changed = self.network_changed_at.take();
        let is_local = end.cause == Cause::ServerLost
            && changed.is_some_and(|at| now.saturating_duration_since(at) < LOCAL);
        let cause = if is_local { Cause::NetworkChanged } else { end.cause.clone() };
        self.reconnect.handle_ended(now, cause)
    }

    /// Waits, then dials.
    pub(super) fn wait(&mut self, now: Instant, dial: Dial, not_before: Option<Duration>) {
        let until = now + dial.delay;
        self.aim(dial);
        self.wait_until(now, until, now + not_before.unwrap_or_default());
    }

    pub(super) fn wait_until(&mut self, now: Instant, until: Instant, not_before: Instant) {
        let delay = until.saturating_duration_since(now);
        self.events.push_back(Event::Reconnect { delay });
        self.state = State::Waiting { until, not_before };
        if delay.is_zero() {
            self.dial(Some(now));
        }
    }

    /// The next dial goes there.
    pub(super) fn aim(&mut self, Dial { host, ticket, .. }: Dial) {
        self.target = Target { host, ticket: ticket.map(Hidden), give_up: None };
    }

    /// `now` where it is not the very first.
    pub(super) fn dial(&mut self, now: Option<Instant>) {
        let first = now.filter(|_| self.reconnect.is_first_dial());
        self.target.give_up = first.map(|now| now + Reconnect::PATIENCE);
        self.state = State::Dialing;
        self.events.push_back(Event::Dial);
    }

    /// The network is another one: nothing that the session waits for is a matter of it, but for the server's own word.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.network_changed_at = Some(now);
        let State::Waiting { until, not_before } = self.state else { return };
        let dial = self.reconnect.handle_ended(now, Cause::NetworkChanged);
        let sooner = (now + dial.delay).max(not_before).min(until);
        self.aim(dial);
        self.state = State::Waiting { until: sooner, not_before };
    }
}

/// A plan as far as it is believed: with hosts in one spelling.
pub(super) fn believed(plan: ReconnectPlan) -> Arc<ReconnectPlan> {
    let mut plan = plan.bounded();
    plan.alternatives.retain_mut(|alternative| match endpoint_of(&alternative.host) {
        Some(endpoint) => {
            alternative.host = endpoint.to_string();
            true
        }
        None => false,
    });
    Arc::new(plan)
}

fn cause(code: u32, policy: ReconnectPolicy, after: Option<Duration>, hint: Option<Hint>) -> Cause {
    match hint {
        Some(hint) if policy == ReconnectPolicy::Backoff => hint.cause(),
        // A lost connection is no close, whoever reports it.
        _ if code == CloseCode::ConnectionLost.number() => Cause::ServerLost,
        _ => Cause::Closed { policy, after },
    }
}

fn is_refusal(code: u32) -> bool {
    code == CloseCode::Overloaded.number()
}

/// A connection that ends so soon after a change of network ends because of it.
const LOCAL: Duration = Duration::from_secs(10);
/// What a server says is believed within this, so that no time overflows.
const MAX_AFTER_MS: u64 = 600_000;
const MAX_SLOT_BYTES: usize = 512;
