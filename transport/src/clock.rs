//! The only code that reads the clock or the OS's entropy. Everything else is handed `now` and a generator.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Monotonic time. Follows tokio's clock, so that a simulation can pause it.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Time since 1970, for certificates, tokens and `time_ms`.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Time since 1970, milliseconds.
pub fn unix_ms() -> u64 {
    let since = wall().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A generator seeded from the OS: fit for session ids and jitter.
///
/// # Panics
/// Where the OS has no entropy to give: nothing secret can be made then.
pub fn rng() -> ChaCha8Rng {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("the OS gives entropy");
    ChaCha8Rng::from_seed(seed)
}
