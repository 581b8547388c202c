//! Clients: production's, and those of the strategies that it is compared with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use tidegate_edge::policy::admission::SlotTicket;
use tidegate_protocol::backoff::Backoff;
use tidegate_protocol::plan::ReconnectPlan;
use tidegate_protocol::reconnect::{Cause, Reconnect};

/// How clients come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Strategy {
    /// By the plan, then by slots: production's machines at both ends.
    Planned,
    /// Full jitter, 1 to 60 s, from the first attempt on.
    FullJitter,
    /// Decorrelated jitter: min(60 s, U(1 s, 3 · the last delay)).
    Decorrelated,
    /// Within 0 to 5 s, then full jitter; as Slack described it.
    Slack,
}

impl Strategy {
    /// All of them, ours first.
    pub const ALL: [Self; 4] = [Self::Planned, Self::FullJitter, Self::Decorrelated, Self::Slack];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned + slots",
            Self::FullJitter => "full jitter",
            Self::Decorrelated => "decorrelated",
            Self::Slack => "0-5 s, bucket",
        }
    }
}

/// What decides when a client dials.
#[derive(Debug)]
pub(super) enum Brain {
    Planned(Reconnect),
    FullJitter(Backoff),
    Decorrelated { rng: ChaCha8Rng, last: Duration },
    Slack { backoff: Backoff, tried: bool },
}

/// One dial to come.
#[derive(Debug)]
pub(super) struct NextDial {
    pub(super) delay: Duration,
    /// The live node, `None` for anything that is dead, or [`Whom::Anybody`].
    pub(super) whom: Whom,
    pub(super) ticket: Option<SlotTicket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    Live(u16),
    Dead,
    Again,
    Anybody,
}

impl Brain {
    pub(super) fn new(strategy: Strategy, rng: ChaCha8Rng, plan: impl FnOnce() -> ReconnectPlan) -> Self {
        match strategy {
            Strategy::Planned => {
                let mut reconnect = Reconnect::new(rng);
                reconnect.handle_plan(Arc::new(plan().bounded()), true);
                Self::Planned(reconnect)
            }
            Strategy::FullJitter => Self::FullJitter(Backoff::new(rng)),
            Strategy::Decorrelated => Self::Decorrelated { rng, last: Backoff::BASE },
            Strategy::Slack => Self::Slack { backoff: Backoff::new(rng), tried: false },
        }
    }

    pub(super) fn next(&mut self, now: Instant, cause: Cause) -> NextDial {
        let anybody = |delay| NextDial { delay, whom: Whom::Anybody, ticket: None };
        match self {
            Self::Planned(reconnect) => {
                let dial = reconnect.handle_ended(now, cause);
                let whom = dial.host.map_or(Whom::Again, |host| whom(&host));
                let ticket = dial.ticket.and_then(|text| SlotTicket::from_text(&text));
                NextDial { delay: dial.delay, whom, ticket }
            }
            Self::FullJitter(backoff) => anybody(backoff.next_delay()),
            Self::Decorrelated { rng, last } => {
                let upper = (*last * 3).max(Backoff::BASE + Duration::from_millis(1));
                *last = rng.random_range(Backoff::BASE..upper).min(Backoff::CAP);
                anybody(*last)
            }
            Self::Slack { backoff, tried } => {
                let first = !std::mem::replace(tried, true);
                anybody(if first { backoff.spread(SLACK) } else { backoff.next_delay() })
            }
        }
    }
}

/// The name of a live node.
pub(super) fn live(node: usize) -> String {
    format!("live-{node}")
}

/// The name of everything in the region that is gone.
pub(super) const DEAD: &str = "dead";

fn whom(host: &str) -> Whom {
    match host.strip_prefix("live-").and_then(|number| number.parse().ok()) {
        Some(node) => Whom::Live(node),
        None => Whom::Dead,
    }
}

const SLACK: Duration = Duration::from_secs(5);
