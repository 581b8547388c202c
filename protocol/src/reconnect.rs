//! Sans-io: when a client dials again after its connection ended, and whom.
//!
//! The first that knows better decides: a slot from the server that refused, the server's advice, the reconnect plan,
//! and only then full jitter. What is the client's own trouble (its network changed) never waits for others.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;

use crate::backoff::Backoff;
use crate::frame::ReconnectPolicy;
use crate::hint::Hidden;
use crate::plan::ReconnectPlan;

/// Why the client has no connection.
#[derive(Clone, PartialEq, Eq)]
pub enum Cause {
    /// Its own network: another interface, woken from sleep, this path alone is dead.
    NetworkChanged,
    /// The connection ended without a word, or nothing is heard on it.
    ServerLost,
    /// A dial led nowhere: nobody there, or nothing came back within [`Reconnect::PATIENCE`].
    Unreachable,
    /// The server closed, with advice. `Never` is not for here: such a client does not come back.
    Closed {
        /// What it says.
        policy: ReconnectPolicy,
        /// Not before.
        after: Option<Duration>,
    },
    /// The server refused, and keeps a place free for us.
    Deferred {
        /// From now to that place.
        after: Duration,
        /// To be shown there.
        ticket: Option<Arc<str>>,
    },
    /// The server refused for longer than it makes sense to wait: to another region.
    SentElsewhere,
}

/// What to do.
#[derive(Clone, PartialEq, Eq)]
pub struct Dial {
    /// From now.
    pub delay: Duration,
    /// Whom; `None` for the one that was dialled last.
    pub host: Option<Arc<str>>,
    /// To be shown there.
    pub ticket: Option<Arc<str>>,
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NetworkChanged => f.write_str("NetworkChanged"),
            Self::ServerLost => f.write_str("ServerLost"),
            Self::Unreachable => f.write_str("Unreachable"),
            Self::Closed { policy, after } => {
                f.debug_struct("Closed").field("policy", policy).field("after", after).finish()
            }
            Self::Deferred { after, ticket } => {
                let ticket = ticket.as_ref().map(Hidden);
                f.debug_struct("Deferred").field("after", after).field("ticket", &ticket).finish()
            }
            Self::SentElsewhere => f.write_str("SentElsewhere"),
        }
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { delay, host, ticket } = self;
        let ticket = ticket.as_ref().map(Hidden);
        f.debug_struct("Dial").field("delay", delay).field("host", host).field("ticket", &ticket).finish()
    }
}

/// Where an outage has got to.
///
/// ```text
///         lost               unreachable              unreachable
/// (none) ──────► NodeWindow ─────────────► RegionWindow ─────────► Jitter ──┐ unreachable
///   │                │ refused with a slot        │                 ▲  ▲     │
///   │                └──────────► Slot ◄──────────┘    unreachable  │  └─────┘
///   │ network changed              └──────────────────────────────►─┤
///   └───────────────► Local ────────────────── unreachable ─────────┘    30 s of connection ──► (none)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Since when.
    NodeWindow(Instant),
    RegionWindow,
    Slot,
    Local,
    Jitter,
}

/// Decides for one client. A connection that held for [`Backoff::STABLE`] ends an outage; until then the next loss is part
/// of it.
#[derive(Debug)]
pub struct Reconnect {
    backoff: Backoff,
    plan: Option<Arc<ReconnectPlan>>,
    stage: Option<Stage>,
    /// Dials of this outage that led nowhere or to a refusal.
    turn: u32,
    /// Refusals with a slot, one after the other.
    deferred: u32,
    /// Closes that asked to come back at once: only the first of an outage is followed.
    hasty: bool,
    /// The own region is given up, for this outage.
    elsewhere: bool,
}

impl Reconnect {
    /// How long the first dial of an outage may take before it counts as [`Cause::Unreachable`]: with the region gone,
    /// every second here is one that nobody is served in. Later ones have their usual time.
    pub const PATIENCE: Duration = Duration::from_secs(3);
    /// The longest wait for a slot that a client believes in. A refusal may come unauthenticated.
    pub const MAX_SLOT: Duration = Duration::from_secs(120);

    /// Knows no plan.
    pub fn new(rng: ChaCha8Rng) -> Self {
        Self::with_backoff(Backoff::new(rng))
    }

    /// The same with other bounds of its full jitter.
    pub fn with_backoff(backoff: Backoff) -> Self {
        Self { backoff, plan: None, stage: None, turn: 0, deferred: 0, hasty: false, elsewhere: false }
    }

    /// A plan from `connected` or `ping`. An older one of the same connection is passed over.
    pub fn handle_plan(&mut self, plan: Arc<ReconnectPlan>, fresh_connection: bool) {
        if fresh_connection || self.plan.as_ref().is_none_or(|known| known.epoch < plan.epoch) {
            // Without windows it only names places: nothing to go by.
            self.plan = Some(plan).filter(|plan| plan.has_windows());
        }
    }

    /// The newest connection's server made none.
    pub fn forget_plan(&mut self) {
        self.plan = None;
    }

    /// True where the next dial is the first of an outage, with [`Reconnect::PATIENCE`].
    pub fn is_first_dial(&self) -> bool {
        matches!(self.stage, Some(Stage::NodeWindow(_)))
    }

    /// The session lives on a connection.
    pub fn handle_connected(&mut self, now: Instant) {
        self.backoff.handle_connected(now);
        self.deferred = 0;
    }

    /// The session lives on another connection than before, without a break; `connected` there, or about to be.
    pub fn handle_moved(&mut self, now: Instant, connected: bool) {
        self.end_outage(now);
        if connected {
            self.handle_connected(now);
        }
    }

    /// The connection, or the attempt at one, ended.
    pub fn handle_ended(&mut self, now: Instant, cause: Cause) -> Dial {
        self.end_outage(now);
        match cause {
            Cause::NetworkChanged => {
                // Whatever it waited for was a matter of the network it had.
                self.stage = Some(Stage::Local);
                self.here(LOCAL_SPREAD)
            }
            Cause::ServerLost | Cause::Unreachable => self.next_stage(now),
            Cause::Closed { policy: ReconnectPolicy::Now | ReconnectPolicy::FreshToken, after }
                if !self.hasty =>
            {
                self.hasty = true;
                Dial { delay: self.behind(after), host: None, ticket: None }
            }
            Cause::Closed { after, .. } => {
                let dial = self.next_stage(now);
                Dial { delay: dial.delay.max(self.behind(after)), ..dial }
            }
            Cause::Deferred { after, ticket } => {
                self.stage = Some(Stage::Slot);
                self.turn = self.turn.saturating_add(1);
                self.deferred = self.deferred.saturating_add(1);
                let mut delay = after.min(Self::MAX_SLOT);
                if self.deferred > TRUSTED_SLOTS {
                    delay = delay.max(self.backoff.next_delay());
                }
                Dial { delay, host: None, ticket }
            }
            Cause::SentElsewhere => {
                self.stage = Some(Stage::RegionWindow);
                self.elsewhere = true;
                self.turn = self.turn.saturating_add(1);
                Dial { delay: self.backoff.spread(SPREAD), host: self.whom(), ticket: None }
            }
        }
    }

    /// Over, where the connection had been stable.
    fn end_outage(&mut self, now: Instant) {
        if self.backoff.handle_lost(now) {
            self.stage = None;
            self.turn = 0;
            self.deferred = 0;
            self.hasty = false;
            self.elsewhere = false;
        }
    }

    /// When and whom to dial if the server that told this plan is lost, counted from when it was heard last. `None` where the
    /// plan does not say. Nothing has ended yet, and nothing changes.
    pub fn foresee(&mut self, plan: &Arc<ReconnectPlan>) -> Option<Dial> {
        self.handle_plan(Arc::clone(plan), true);
        let delay = plan.node_window().mul_f64(plan.place()) + self.backoff.spread(SPREAD);
        let host = self.whom()?;
        Some(Dial { delay, host: Some(host), ticket: None })
    }

    fn next_stage(&mut self, now: Instant) -> Dial {
        let plan = self.plan.clone();
        let (stage, delay, host) = match (self.stage, plan) {
            (None, Some(plan)) => {
                let delay = plan.node_window().mul_f64(plan.place()) + self.backoff.spread(SPREAD);
                (Stage::NodeWindow(now), delay, self.whom())
            }
            (Some(Stage::NodeWindow(since)), Some(plan)) => {
                self.elsewhere = true;
                // The others began when we did: what is left of the window is to be shared, not the whole of it.
                let left = plan.region_window().saturating_sub(now.saturating_duration_since(since));
                let delay = left.mul_f64(plan.place()) + self.backoff.spread(SPREAD);
                (Stage::RegionWindow, delay, self.whom())
            }
            (Some(Stage::Local), _) => (Stage::Jitter, self.backoff.next_delay(), None),
            _ => (Stage::Jitter, self.backoff.next_delay(), self.whom()),
        };
        self.stage = Some(stage);
        self.turn = self.turn.saturating_add(1);
        Dial { delay, host, ticket: None }
    }

    /// Whoever names a time names it to many: they come spread over as long again, within a second.
    fn behind(&mut self, after: Option<Duration>) -> Duration {
        let after = after.unwrap_or_default();
        after + self.backoff.spread(after.min(AFTER_SPREAD))
    }

    fn here(&mut self, spread: Duration) -> Dial {
        Dial { delay: self.backoff.spread(spread), host: None, ticket: None }
    }

    /// An alternative, in the other class where there is none in this one.
    fn whom(&self) -> Option<Arc<str>> {
        let plan = self.plan.as_ref()?;
        let of = |elsewhere| plan.alternative(elsewhere, self.turn);
        let one = of(self.elsewhere).or_else(|| of(!self.elsewhere))?;
        Some(Arc::from(one.host.as_str()))
    }
}

/// Ranks whose places coincide come apart by this.
const SPREAD: Duration = Duration::from_millis(300);
const AFTER_SPREAD: Duration = Duration::from_secs(1);
/// Users behind one access point change networks together.
const LOCAL_SPREAD: Duration = Duration::from_millis(500);
/// A server that defers more often than this, one time after the other, is not believed on its word alone.
const TRUSTED_SLOTS: u32 = 4;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
mod tests;
