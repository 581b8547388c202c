//! What a subscriber received: everything once and in order, and how long each took.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::measure::Arrival;
use super::work::Work;

/// What one measurement gave.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Samples {
    #[serde(skip)]
    last: Vec<u64>,
    expected: u64,
    first_measured: u64,
    received: u64,
    /// Sorted once asked for.
    latencies_us: Vec<u64>,
    /// Connections after the first.
    pub(super) transport_changes: u64,
    /// Packets to the subscriber, and those of them that the laboratory delivered over 1 ms late.
    pub(super) packets: u64,
    pub(super) late: u64,
}

impl Samples {
    pub(super) fn new(channels: u32, work: &Work) -> Self {
        Self {
            last: vec![0; channels as usize],
            expected: work.publications(),
            first_measured: work.first_measured(),
            received: 0,
            latencies_us: Vec::new(),
            transport_changes: 0,
            packets: 0,
            late: 0,
        }
    }

    /// Takes the next publication of its channel; anything else is a fault of the gateway or of the client.
    pub(super) fn add(&mut self, arrival: &Arrival) -> Result<()> {
        let Arrival { channel, offset, number, latency } = *arrival;
        let place = usize::try_from(channel).ok().and_then(|channel| self.last.get_mut(channel));
        let last = place.ok_or_else(|| anyhow::anyhow!("nobody publishes on channel {channel}"))?;
        ensure!(offset == *last + 1, "channel {channel}: offset {offset} came after {last}");
        *last = offset;
        self.received += 1;
        if number >= self.first_measured {
            self.latencies_us.push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    pub(super) fn is_complete(&self) -> bool {
        self.received == self.expected
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Publications that never came.
    pub(super) fn missing(&self) -> u64 {
        self.expected - self.received
    }

    /// The latency that a share of the publications did not exceed; missing ones count as endless.
    pub(super) fn quantile(&mut self, share: f64) -> Option<Duration> {
        self.latencies_us.sort_unstable();
        let all = self.latencies_us.len() as u64 + self.missing();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
        let place = ((all as f64 * share).ceil() as usize).saturating_sub(1);
        self.latencies_us.get(place).copied().map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> Work {
        Work { per_second: 10, payload: 1, seconds: 7, rate: 1 }
    }

    fn arrival(number: u64, offset: u64, millis: u64) -> Arrival {
        Arrival { channel: number % 2, offset, number, latency: Duration::from_millis(millis) }
    }

    #[test]
    fn quantiles_leave_out_the_warm_up_and_count_what_is_missing() {
        let mut samples = Samples::new(2, &work());
        for number in 0..99 {
            samples.add(&arrival(number, number / 2 + 1, number)).expect("in order");
        }
        assert!(!samples.is_complete());
        assert_eq!(samples.missing(), 1);
        assert_eq!(samples.quantile(0.5), Some(Duration::from_millis(64)), "30 to 98, and one endless");
        assert_eq!(samples.quantile(1.0), None);
        samples.add(&arrival(99, 50, 99)).expect("in order");
        assert!(samples.is_complete());
        assert_eq!(samples.quantile(1.0), Some(Duration::from_millis(99)));
    }

    #[test]
    fn a_gap_and_a_repeat_are_faults() {
        let mut samples = Samples::new(2, &work());
        samples.add(&arrival(0, 1, 1)).expect("the first");
        assert!(samples.add(&arrival(0, 1, 1)).is_err());
        assert!(samples.add(&arrival(4, 3, 1)).is_err());
        assert!(samples.add(&Arrival { channel: 7, ..arrival(0, 1, 1) }).is_err());
    }
}
