//! Until when a node may take itself for alive, as its partitions ask it before they tell anybody anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tidegate_transport::clock;

/// Set by whoever renews the membership. A process that was stopped for a while finds it over at once, before any timer.
#[derive(Debug)]
pub(crate) struct Lease {
    start: Instant,
    /// Microseconds after `start`.
    until: AtomicU64,
}

impl Lease {
    /// For a node that is alone: it never ends.
    pub(crate) fn endless() -> Self {
        Self { start: clock::now(), until: AtomicU64::new(u64::MAX) }
    }

    /// It has ended already.
    pub(crate) fn over() -> Self {
        Self { start: clock::now(), until: AtomicU64::new(0) }
    }

    /// Goes on until then; `None`: it is over.
    pub(crate) fn set(&self, until: Option<Instant>) {
        let until = until.map_or(0, |until| self.us(until));
        self.until.store(until, Ordering::Release);
    }

    /// True while the node may answer.
    pub(crate) fn holds(&self, now: Instant) -> bool {
        self.us(now) < self.until.load(Ordering::Acquire)
    }

    fn us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_lease_holds_until_it_ends_and_not_at_that_moment() {
        let lease = Lease::over();
        let now = clock::now();
        assert!(!lease.holds(now));
        lease.set(Some(now + Duration::from_secs(3)));
        assert!(lease.holds(now) && lease.holds(now + Duration::from_millis(2_999)));
        assert!(!lease.holds(now + Duration::from_secs(3)) && !lease.holds(now + Duration::from_secs(9)));
        // It goes on, and may end before its time.
        lease.set(Some(now + Duration::from_secs(6)));
        assert!(lease.holds(now + Duration::from_secs(5)));
        lease.set(None);
        assert!(!lease.holds(now));
        assert!(Lease::endless().holds(now + Duration::from_secs(1 << 30)));
    }
}
