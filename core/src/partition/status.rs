//! What a partition says of itself to whoever asks, without being asked: kept by its driver, read by anybody.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate_transport::clock;

/// Written by one partition's driver.
#[derive(Debug, Default)]
pub(crate) struct PartitionStatus {
    tail: AtomicU64,
    /// How far the lease table says that the log reaches.
    noted: AtomicU64,
    channels: AtomicU64,
    interest: AtomicU64,
    refusing: AtomicBool,
    appends: Latencies,
}

impl PartitionStatus {
    /// Of a log that was claimed with this tail.
    pub(crate) fn new(tail: u64) -> Self {
        Self { tail: AtomicU64::new(tail), noted: AtomicU64::new(tail), ..Self::default() }
    }

    pub(super) fn set_tail(&self, tail: u64) {
        self.tail.store(tail, Ordering::Relaxed);
    }

    pub(super) fn set_noted(&self, tail: u64) {
        self.noted.fetch_max(tail, Ordering::Relaxed);
    }

    pub(super) fn set_sizes(&self, channels: usize, interest: usize) {
        self.channels.store(channels as u64, Ordering::Relaxed);
        self.interest.store(interest as u64, Ordering::Relaxed);
    }

    pub(super) fn set_refusing(&self, refusing: bool) {
        self.refusing.store(refusing, Ordering::Relaxed);
    }

    pub(super) fn observe_append(&self, took: Duration) {
        self.appends.observe(took);
    }

    /// The last log frame.
    pub(crate) fn tail(&self) -> u64 {
        self.tail.load(Ordering::Relaxed)
    }

    /// Log frames that the lease table does not know of yet: what could be lost without being noticed.
    pub(crate) fn lag(&self) -> u64 {
        self.tail().saturating_sub(self.noted.load(Ordering::Relaxed))
    }

    /// How many channels it holds.
    pub(crate) fn channels(&self) -> u64 {
        self.channels.load(Ordering::Relaxed)
    }

    /// How many pairs of a link and a channel.
    pub(crate) fn interest(&self) -> u64 {
        self.interest.load(Ordering::Relaxed)
    }

    /// The engine takes nothing more from it now.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// What the engine took to keep its last few thousand frames: the share `of` took at most so many microseconds (up to
    /// twice as exact). `None` before the first.
    pub(crate) fn append_us(&self, of: f64) -> Option<u64> {
        self.appends.quantile(of)
    }
}

/// Counts by powers of two of microseconds; older ones count less and less.
#[derive(Debug, Default)]
struct Latencies {
    buckets: [AtomicU32; 32],
    total: AtomicU32,
}

impl Latencies {
    fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - us.leading_zeros()).min(31);
        self.buckets[bucket as usize].fetch_add(1, Ordering::Relaxed);
        if self.total.fetch_add(1, Ordering::Relaxed) >= REMEMBERED {
            let mut total = 0;
            for bucket in &self.buckets {
                // One writer: nothing is lost between.
                let half = bucket.load(Ordering::Relaxed) / 2;
                bucket.store(half, Ordering::Relaxed);
                total += half;
            }
            self.total.store(total, Ordering::Relaxed);
        }
    }

    fn quantile(&self, of: f64) -> Option<u64> {
        let counts: Vec<u32> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let total: u32 = counts.iter().sum();
        let wanted = (f64::from(total) * of).ceil();
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if *count > 0 && f64::from(seen) >= wanted {
                return Some((1 << bucket) - 1);
            }
        }
        None
    }
}

/// How many frames all partitions of a node write, to know when collecting more into one is worth its wait.
#[derive(Debug)]
pub(crate) struct Pace {
    start: Instant,
    window_ms: AtomicU64,
    frames: AtomicU32,
    before: AtomicU32,
}

impl Pace {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            start: clock::now(),
            window_ms: AtomicU64::new(0),
            frames: AtomicU32::new(0),
            before: AtomicU32::new(0),
        }
    }

    /// A frame was written.
    pub(super) fn count(&self, now: Instant) {
        let ms = self.ms(now);
        let window = self.window_ms.load(Ordering::Relaxed);
        if ms >= window + WINDOW_MS
            && self.window_ms.compare_exchange(window, ms, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let frames = self.frames.swap(0, Ordering::Relaxed);
            // Over a window that was longer the rate was lower.
            let rate = u64::from(frames) * 1_000 / (ms - window);
            self.before.store(u32::try_from(rate).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        self.frames.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames per second lately.
    pub(crate) fn rate(&self, now: Instant) -> u32 {
        if self.ms(now) > self.window_ms.load(Ordering::Relaxed) + 2 * WINDOW_MS {
            return 0;
        }
        self.before.load(Ordering::Relaxed)
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX >> 1)
    }
}

const REMEMBERED: u32 = 4096;
const WINDOW_MS: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_last_frames() {
        let status = PartitionStatus::default();
        assert_eq!(status.append_us(0.5), None);
        for _ in 0..98 {
            status.observe_append(Duration::from_micros(300));
        }
        status.observe_append(Duration::from_millis(20));
        status.observe_append(Duration::from_millis(20));
        assert_eq!((status.append_us(0.5), status.append_us(0.99)), (Some(511), Some(32_767)));
        for _ in 0..40_000 {
            status.observe_append(Duration::from_micros(60));
        }
        assert_eq!(status.append_us(0.99), Some(63));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_follows_the_frames_and_falls_with_silence() {
        let pace = Pace::new();
        for _ in 0..2_000 {
            tokio::time::advance(Duration::from_millis(1)).await;
            pace.count(clock::now());
        }
        assert!((900..1_100).contains(&pace.rate(clock::now())), "{}", pace.rate(clock::now()));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(pace.rate(clock::now()), 0);
        pace.count(clock::now());
        assert!(pace.rate(clock::now()) < 200);
    }
}
