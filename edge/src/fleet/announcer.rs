//! Sans-io: what an edge says of itself, and when.

use std::time::{Duration, Instant};

use tidegate_protocol::link::fleet::{ANNOUNCE_EVERY, EdgeCondition, EdgeState};
use tidegate_protocol::{NodeId, Region};

/// What does not change about an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub node: NodeId,
    /// Where it stands.
    pub region: Region,
    /// Where clients find it: URLs as SDKs take them.
    pub endpoints: Vec<String>,
    /// Clients that it admits at most, per second.
    pub rate: u32,
}

/// Counts, and puts words together.
#[derive(Debug)]
pub(super) struct Announcer {
    about: About,
    started_unix_ms: u64,
    sequence: u64,
    condition: EdgeCondition,
    sessions: u64,
    /// Sessions opened so far, and when they were counted.
    opened: Option<(u64, Instant)>,
    /// Sessions opened per second, over about a second.
    demand: f64,
    /// When to speak next; `None`: now.
    due: Option<Instant>,
}

impl Announcer {
    /// Speaks at once.
    pub(super) fn new(about: About, started_unix_ms: u64) -> Self {
        Self {
            about,
            started_unix_ms,
            sequence: 0,
            condition: EdgeCondition::Serve,
            sessions: 0,
            opened: None,
            demand: 0.0,
            due: None,
        }
    }

    /// Whether the edge takes clients. A change is said at once.
    pub(super) fn handle_condition(&mut self, condition: EdgeCondition) {
        if self.condition != condition {
            self.condition = condition;
            self.due = None;
        }
    }

    /// How many sessions there are, and how many were opened since the start. Several times a second.
    pub(super) fn handle_load(&mut self, now: Instant, sessions: u64, opened: u64) {
        self.sessions = sessions;
        if let Some((before, counted)) = self.opened {
            let passed = now.saturating_duration_since(counted).as_secs_f64();
            if passed <= 0.0 {
                return;
            }
            let rate = opened.saturating_sub(before) as f64 / passed;
            let weight = 1.0 - (-passed / MEMORY.as_secs_f64()).exp();
            self.demand += weight * (rate - self.demand);
        }
        self.opened = Some((opened, now));
    }

    /// What is to be said now, if anything.
    pub(super) fn poll_announcement(&mut self, now: Instant) -> Option<EdgeState> {
        if self.due.is_some_and(|due| now < due) {
            return None;
        }
        self.due = Some(now + ANNOUNCE_EVERY);
        self.sequence += 1;
        Some(EdgeState {
            node: self.about.node.clone(),
            region: self.about.region.clone(),
            endpoints: self.about.endpoints.clone(),
            sessions: self.sessions,
            rate: self.about.rate,
            slack: self.slack(),
            condition: self.condition,
            started_unix_ms: self.started_unix_ms,
            sequence: self.sequence,
        })
    }

    /// Whole clients per second that could come beyond those that do.
    fn slack(&self) -> u32 {
        match self.condition {
            // Rounded down, and none below 0.
            EdgeCondition::Serve => (f64::from(self.about.rate) - self.demand) as u32,
            _ => 0,
        }
    }
}

/// Over which demand is averaged.
const MEMORY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        Instant::now()
    }

    fn announcer() -> Announcer {
        let about = About {
            node: NodeId::new("edge-1"),
            region: Region::new("eu"),
            endpoints: vec!["quic://edge-1:4433".to_owned()],
            rate: 100,
        };
        Announcer::new(about, 7)
    }

    const TICK: Duration = Duration::from_millis(250);

    #[test]
    fn it_speaks_at_once_then_every_second_and_at_once_where_its_state_changes() {
        let mut now = start();
        let mut announcer = announcer();
        let mut said = Vec::new();
        for tick in 0..13 {
            if tick == 6 {
                announcer.handle_condition(EdgeCondition::Drain { drain: 5 });
            }
            announcer.handle_load(now, 3, 3);
            said.extend(
                announcer.poll_announcement(now).map(|state| (tick, state.sequence, state.condition)),
            );
            now += TICK;
        }
        let drain = EdgeCondition::Drain { drain: 5 };
        let serve = EdgeCondition::Serve;
        assert_eq!(said, [(0, 1, serve), (4, 2, serve), (6, 3, drain), (10, 4, drain)]);
    }

    #[test]
    fn slack_is_what_those_who_come_leave_of_the_rate() {
        let mut now = start();
        let mut announcer = announcer();
        let mut slack = |per_tick: u64, ticks: u64, opened: &mut u64| {
            for _ in 0..ticks {
                *opened += per_tick;
                now += TICK;
                announcer.handle_load(now, 1, *opened);
            }
            announcer.slack()
        };
        let mut opened = 1000;
        assert_eq!(slack(0, 1, &mut opened), 100, "those of before are not demand");
        let soon = slack(10, 4, &mut opened);
        assert!((70..80).contains(&soon), "after a second 63 % of 40 per second: {soon}");
        assert_eq!(slack(10, 40, &mut opened), 60);
        assert_eq!(slack(50, 40, &mut opened), 0, "never below nothing");
        announcer.handle_condition(EdgeCondition::LameDuck);
        assert_eq!(announcer.slack(), 0);
    }
}
