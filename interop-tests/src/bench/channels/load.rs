//! Publishes: to every channel once, as fast as it goes; then to some of them at a steady rate, with a clock.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;
use tidegate_transport::clock;

use super::client::Api;
use super::{Kind, name};
use crate::bench::proc;

/// Publishes once to each of the first `channels`. `progress` goes from 0 to 1.
pub(super) fn fill(api: SocketAddr, kind: Kind, channels: u64, progress: &mut dyn FnMut(f64)) -> Result<()> {
    let next = AtomicU64::new(0);
    let fill = || -> Result<()> {
        let mut api = Api::connect(api)?;
        let mut body = String::new();
        loop {
            let first = next.fetch_add(BATCH, Ordering::Relaxed);
            if first >= channels {
                return Ok(());
            }
            body.clear();
            body.push_str("{\"publications\":[");
            for index in first..channels.min(first + BATCH) {
                publication(&mut body, &name(kind, index))?;
                body.push(',');
            }
            body.pop();
            body.push_str("]}");
            api.publish(&body)?;
        }
    };
    thread::scope(|scope| {
        let fillers: Vec<_> = (0..FILLERS).map(|_| scope.spawn(fill)).collect();
        while fillers.iter().any(|filler| !filler.is_finished()) {
            let filled = next.load(Ordering::Relaxed).min(channels);
            progress(proc::to_float(filled) / proc::to_float(channels));
            thread::sleep(LOOK);
        }
        let mut outcomes =
            fillers.into_iter().map(|filler| filler.join().map_err(|_| anyhow!("it panicked"))?);
        outcomes.try_for_each(|outcome| outcome).context("filling failed")
    })
}

/// What publishing took, from when it was due to its answer.
#[derive(Debug, Clone)]
pub(super) struct Latencies(Histogram<u64>);

/// The same, for people.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Quantiles {
    pub(super) count: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

impl Latencies {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1_000, 120_000_000_000, 3)?))
    }

    pub(super) fn add(&mut self, other: &Self) -> Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    pub(super) fn quantiles(&self) -> Quantiles {
        let ms = |nanos: u64| proc::to_float(nanos) / 1e6;
        Quantiles {
            count: self.0.len(),
            p50_ms: ms(self.0.value_at_quantile(0.5)),
            p99_ms: ms(self.0.value_at_quantile(0.99)),
            max_ms: ms(self.0.max()),
        }
    }
}

/// Publishes at [`PER_SECOND`] for `length`, each to one of the first `channels` that is as good as random. Where one
/// is late because others are, that counts.
pub(super) fn steady(
    api: SocketAddr,
    kind: Kind,
    channels: u64,
    length: Duration,
    seed: u64,
) -> Result<Latencies> {
    let begin = clock::now();
    let publish = |lane: u64| -> Result<Latencies> {
        let mut api = Api::connect(api)?;
        let mut latencies = Latencies::new()?;
        let mut body = String::new();
        for turn in 0.. {
            let number = turn * LANES + lane;
            let due = Duration::from_nanos(number * (1_000_000_000 / PER_SECOND));
            if due >= length {
                break;
            }
            body.clear();
            publication(&mut body, &name(kind, scattered(seed << 32 | number) % channels))?;
            wait_until(begin + due);
            api.publish(&body)?;
            let nanos = begin.elapsed().saturating_sub(due).as_nanos();
            latencies.0.record(u64::try_from(nanos)?)?;
        }
        Ok(latencies)
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|lane| scope.spawn(move || publish(lane))).collect();
        let mut all = Latencies::new()?;
        for lane in lanes {
            all.add(&lane.join().map_err(|_| anyhow!("it panicked"))??)?;
        }
        ensure!(!all.0.is_empty(), "nothing was published");
        Ok(all)
    })
}

fn wait_until(at: Instant) {
    thread::sleep(at.saturating_duration_since(clock::now()));
}

/// 100 bytes of payload.
fn publication(body: &mut String, channel: &str) -> Result<()> {
    Ok(write!(body, "{{\"channel\":\"{channel}\",\"data\":\"{:x<98}\"}}", "")?)
}

/// Another number for each number, without an order (splitmix64).
pub(super) fn scattered(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Publications of one request, and requests at a time: what the backend API takes by default.
const BATCH: u64 = 1_000;
const FILLERS: usize = 4;
const LOOK: Duration = Duration::from_millis(100);
/// Publications of the steady rate.
pub(super) const PER_SECOND: u64 = 200;
/// Connections that take turns, so that a slow answer makes few others late.
const LANES: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_a_hundred_bytes() {
        let mut body = String::new();
        publication(&mut body, "a").expect("text");
        assert_eq!(body.len(), "{\"channel\":\"a\",\"data\":}".len() + 100);
    }

    #[test]
    fn numbers_are_scattered_without_meeting() {
        let mut numbers: Vec<u64> = (0..10_000).map(scattered).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 10_000);
    }
}
