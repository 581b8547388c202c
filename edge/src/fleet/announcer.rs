//! Sans-io: what an edge says of itself, and when.

use std::time::Instant;

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

/// Puts words together.
#[derive(Debug)]
pub(super) struct Announcer {
    about: About,
    started_unix_ms: u64,
    sequence: u64,
    condition: EdgeCondition,
    sessions: u64,
    /// Clients per second that could come beyond those that do.
    slack: f64,
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
            slack: 0.0,
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

    /// How many sessions there are, and how many clients per second could come beyond those that do. Several times a
    /// second.
    pub(super) fn handle_load(&mut self, sessions: u64, slack: f64) {
        self.sessions = sessions;
        self.slack = slack;
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
            EdgeCondition::Serve => self.slack as u32,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            announcer.handle_load(3, 100.0);
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
    fn slack_is_whole_clients_and_none_where_nobody_is_taken() {
        let mut announcer = announcer();
        let mut slack = |slack: f64, condition| {
            announcer.handle_condition(condition);
            announcer.handle_load(1, slack);
            announcer.slack()
        };
        assert_eq!(slack(99.9, EdgeCondition::Serve), 99);
        assert_eq!(slack(-0.5, EdgeCondition::Serve), 0, "never below nothing");
        assert_eq!(slack(99.9, EdgeCondition::LameDuck), 0);
    }
}
