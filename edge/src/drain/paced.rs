//! Sans-io: places at a target that grants none itself, because it is not of the fleet, or listens in this node's place.

use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;

use crate::policy::admission::{Issuer, Lease, LeaseAsk, SHARE};

/// Grants them in its stead.
#[derive(Debug)]
pub(crate) struct Paced {
    issuer: Issuer,
    next: u32,
    tokens: f64,
    filled: Instant,
}

impl Paced {
    pub(crate) fn new(now: Instant, node: &NodeId) -> Self {
        Self { issuer: Issuer::of(node), next: 1, tokens: 0.0, filled: now }
    }

    /// Up to what is asked for, and no more than `rate` per second since the last time; at once. `unix_ms` is now.
    pub(crate) fn grant(&mut self, now: Instant, unix_ms: u64, ask: LeaseAsk, rate: f64) -> Option<Lease> {
        let since = now.saturating_duration_since(self.filled).min(LONGEST);
        self.filled = now;
        // A rate below one in this time is one in a longer time.
        self.tokens = (self.tokens + rate * since.as_secs_f64()).min((rate * LONGEST.as_secs_f64()).max(1.0));
        let count = self.tokens.floor().min(f64::from(ask.want)).min(f64::from(u16::MAX)) as u16;
        if count == 0 {
            return None;
        }
        self.tokens -= f64::from(count);
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let spacing = PERIOD / u32::from(count);
        Some(Lease {
            drain: ask.drain,
            issuer: self.issuer,
            number,
            first_ms: unix_ms,
            spacing_us: u32::try_from(spacing.as_micros()).unwrap_or(u32::MAX),
            count,
        })
    }
}

/// Everybody goes there evenly, until then.
#[derive(Debug)]
pub(crate) struct Even {
    until: Instant,
}

impl Even {
    /// Over half of the time that an order gives, from now.
    pub(crate) fn new(now: Instant, within: Duration) -> Self {
        Self { until: now + within / 2 }
    }

    /// The drain paused for so long.
    pub(crate) fn handle_resumed(&mut self, paused: Duration) {
        self.until += paused;
    }

    /// Per second, of `remaining` clients.
    pub(crate) fn rate(&self, now: Instant, remaining: u64) -> f64 {
        remaining as f64 / self.until.saturating_duration_since(now).max(LEAST).as_secs_f64()
    }
}

/// How fast sessions may go to the process that listens in place of this one, per second, and how long that may take.
///
/// `slack` is what this process could take beyond who came of late, `rate` all that it takes, both per second. What comes
/// from now on goes there and is not seen here, so it stays at that: in a storm at a part of the rate, for somebody must be
/// let in for this process to end.
pub(crate) fn to_successor(sessions: usize, slack: f64, rate: f64) -> (f64, Duration) {
    let pace = (slack.max(rate * IN_A_STORM).max(1.0)) * SHARE;
    (pace, Duration::from_secs_f64(2.0 * sessions as f64 / pace))
}

/// Of the rate, for clients that move while everybody comes.
const IN_A_STORM: f64 = 0.25;
/// Nobody is sent to a place that grants none faster than over this long.
const LEAST: Duration = Duration::from_secs(1);
/// How often a drain asks.
const PERIOD: Duration = Duration::from_millis(250);
/// What was not asked for is granted no longer than this.
const LONGEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::admission::DrainId;

    #[test]
    fn it_keeps_to_its_rate_however_slow() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        let began = Instant::now();
        for (rate, within) in [(100.0, 990..=1000), (0.5, 4..=5)] {
            let mut paced = Paced::new(began, &NodeId::new("a"));
            let ask = LeaseAsk { drain: DrainId(1), want: 1000, urgent: false };
            let granted: u32 = (1..=40)
                .filter_map(|tick| paced.grant(began + PERIOD * tick, 0, ask, rate))
                .map(|lease| u32::from(lease.count))
                .sum();
            assert!(within.contains(&granted), "{granted} in ten seconds at {rate}");
        }
    }

    #[test]
    fn a_storm_makes_a_take_over_slow_but_not_endless() {
        let seconds = Duration::from_secs;
        assert_eq!(to_successor(5_000, 500.0, 500.0), (400.0, seconds(25)));
        assert_eq!(to_successor(5_000, 0.0, 500.0), (100.0, seconds(100)));
        assert_eq!(to_successor(0, 0.0, 0.0), (0.8, seconds(0)));
    }

    #[test]
    fn a_pause_hurries_nobody() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        let began = Instant::now();
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let mut even = Even::new(began, minutes(10));
        assert_eq!(even.rate(began + minutes(1), 240), 1.0, "four minutes are left");
        even.handle_resumed(minutes(5));
        assert_eq!(even.rate(began + minutes(6), 240), 1.0);
        assert_eq!(even.rate(began + minutes(60), 240), 240.0, "late, but not at once");
    }
}
