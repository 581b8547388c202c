//! Sans-io: places at a target that grants none itself, because it is not of the fleet, or listens in this node's place.

use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;

use crate::policy::admission::{Issuer, Lease, LeaseAsk};

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
}
