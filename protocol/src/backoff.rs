//! Sans-io: capped exponential backoff with full jitter, for clients that know nothing better.

use std::time::{Duration, Instant};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Says how long to wait before the next attempt to connect.
///
/// Full jitter: each delay is uniform between zero and a bound that doubles from a base to a cap, mostly
/// [`Backoff::BASE`] and [`Backoff::CAP`]. The bound begins anew only after [`Backoff::STABLE`] of unbroken connection, so that a server
/// that accepts and drops everybody does not get its clients back at once.
#[derive(Debug)]
pub struct Backoff {
    rng: ChaCha8Rng,
    base: Duration,
    cap: Duration,
    failures: u32,
    connected_at: Option<Instant>,
}

impl Backoff {
    /// Bound of the first delay.
    pub const BASE: Duration = Duration::from_secs(1);
    /// Bound of every later delay.
    pub const CAP: Duration = Duration::from_secs(60);
    /// A connection that held for so long proves that the server takes us.
    pub const STABLE: Duration = Duration::from_secs(30);

    /// No failures yet.
    pub fn new(rng: ChaCha8Rng) -> Self {
        Self::with_bounds(rng, Self::BASE, Self::CAP)
    }

    /// The same with other bounds: of the first delay, and of every later one.
    pub fn with_bounds(rng: ChaCha8Rng, base: Duration, cap: Duration) -> Self {
        Self { rng, base, cap, failures: 0, connected_at: None }
    }

    /// A connection works from now on.
    pub fn handle_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// The connection, or the attempt at one, ended. True where it had been stable: the count of failures begins anew.
    pub fn handle_lost(&mut self, now: Instant) -> bool {
        let stable =
            self.connected_at.take().is_some_and(|at| now.saturating_duration_since(at) >= Self::STABLE);
        if stable {
            self.failures = 0;
        }
        stable
    }

    /// The delay before the next attempt. Counts a failure.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.base.saturating_mul(1 << self.failures.min(16)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        self.spread(bound)
    }

    /// Something between nothing and `bound`. Counts nothing.
    pub fn spread(&mut self, bound: Duration) -> Duration {
        bound.mul_f64(self.rng.random_range(0.0..1.0))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn backoff(seed: u64) -> Backoff {
        Backoff::new(ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn the_bound_doubles_to_the_cap_and_the_whole_range_is_used() {
        let mut largest = [Duration::ZERO; 12];
        let mut smallest = [Duration::MAX; 12];
        for seed in 0..500 {
            let mut backoff = backoff(seed);
            for attempt in 0..12 {
                let delay = backoff.next_delay();
                largest[attempt] = largest[attempt].max(delay);
                smallest[attempt] = smallest[attempt].min(delay);
            }
        }
        for attempt in 0..12 {
            let bound = Duration::from_secs(1 << attempt.min(6)).min(Backoff::CAP);
            assert!(largest[attempt] < bound, "attempt {attempt}: {:?}", largest[attempt]);
            assert!(largest[attempt] > bound.mul_f64(0.9), "attempt {attempt}: {:?}", largest[attempt]);
            assert!(smallest[attempt] < bound.mul_f64(0.1), "attempt {attempt}: {:?}", smallest[attempt]);
        }
    }

    #[test]
    fn other_bounds_are_kept_to() {
        let (base, cap) = (Duration::from_millis(4), Duration::from_millis(9));
        let mut backoff = Backoff::with_bounds(ChaCha8Rng::seed_from_u64(1), base, cap);
        assert!(backoff.next_delay() < base);
        let later: Vec<_> = (0..200).map(|_| backoff.next_delay()).collect();
        assert!(later.iter().all(|delay| *delay < cap) && later.iter().any(|delay| *delay > base));
    }

    #[test]
    fn only_a_stable_connection_begins_anew() {
        let now = Instant::now();
        let mut backoff = backoff(1);
        for _ in 0..8 {
            backoff.next_delay();
        }
        backoff.handle_connected(now);
        assert!(!backoff.handle_lost(now + Backoff::STABLE - Duration::from_millis(1)));
        assert_eq!(backoff.failures, 8);
        // A loss without a connection in between says nothing about stability.
        assert!(!backoff.handle_lost(now + Duration::from_secs(3600)));
        assert_eq!(backoff.failures, 8);
        backoff.handle_connected(now);
        assert!(backoff.handle_lost(now + Backoff::STABLE));
        assert!(backoff.next_delay() < Backoff::BASE);
    }
}
