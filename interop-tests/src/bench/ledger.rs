//! Who must get what, who got it, and how long it took.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;
use tidegate_transport::clock;

/// One publication, as one subscriber got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Number in the channel, from 1, dense.
    pub(super) offset: u64,
    /// Number in the run, from the payload.
    pub(super) number: u64,
    /// When it was sent, from the payload: nanoseconds on the [`Stopwatch`].
    pub(super) sent: u64,
}

/// Nanoseconds since the run began; the same for the publisher and the receivers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopwatch(Instant);

/// What went wrong; all zero in a run that counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Faults {
    /// Deliveries that never came.
    pub(super) lost: u64,
    /// Deliveries that came again.
    pub(super) repeated: u64,
    /// Deliveries before which one was missing.
    pub(super) reordered: u64,
    /// Deliveries of what nobody published.
    pub(super) unknown: u64,
}

/// The books of one run.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The last offset of each subscriber.
    last: Vec<u64>,
    /// Subscribers of each channel.
    audience: Vec<u32>,
    next_channel: u32,
    first_open: u64,
    /// From `first_open` on: deliveries that are still to come.
    open: VecDeque<u32>,
    outstanding: usize,
    faults: Faults,
    /// Whether deliveries count for the figures.
    measuring: bool,
    delivered: u64,
    reads: u64,
    latencies: Histogram<u64>,
}

impl Ledger {
    /// Subscriber `i` is on channel `i % channels`.
    pub(super) fn new(subscribers: usize, channels: usize) -> Result<Self> {
        let mut audience = vec![0; channels];
        for subscriber in 0..subscribers {
            audience[subscriber % channels] += 1;
        }
        Ok(Self {
            last: vec![0; subscribers],
            audience,
            next_channel: 0,
            first_open: 0,
            open: VecDeque::new(),
            outstanding: 0,
            faults: Faults::default(),
            measuring: false,
            delivered: 0,
            reads: 0,
            latencies: Histogram::new_with_bounds(1_000, 120_000_000_000, 3)?,
        })
    }

    /// The next publication: its channel (in turn) and its number.
    pub(super) fn publish(&mut self) -> (u32, u64) {
        let channel = self.next_channel;
        self.next_channel = (channel + 1) % u32::try_from(self.audience.len()).unwrap_or(u32::MAX);
        let number = self.first_open + self.open.len() as u64;
        self.open.push_back(self.audience[channel as usize]);
        self.outstanding += 1;
        (channel, number)
    }

    /// Publications that some subscriber does not have yet.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// A delivery to a subscriber, read at `now`.
    pub(super) fn delivered(&mut self, subscriber: usize, delivery: Delivery, now: u64) {
        let last = &mut self.last[subscriber];
        if delivery.offset <= *last {
            self.faults.repeated += 1;
            return;
        }
        if delivery.offset != *last + 1 {
            self.faults.reordered += 1;
        }
        *last = delivery.offset;
        let place =
            delivery.number.checked_sub(self.first_open).and_then(|place| usize::try_from(place).ok());
        let Some(left) = place.and_then(|place| self.open.get_mut(place)).filter(|left| **left > 0) else {
            self.faults.unknown += 1;
            return;
        };
        *left -= 1;
        if *left == 0 {
            self.outstanding -= 1;
            while self.open.front() == Some(&0) {
                self.open.pop_front();
                self.first_open += 1;
            }
        }
        if self.measuring {
            self.delivered += 1;
            self.latencies.saturating_record(now.saturating_sub(delivery.sent));
        }
    }

    /// One read from a socket that brought something.
    pub(super) fn count_read(&mut self) {
        self.reads += u64::from(self.measuring);
    }

    /// From here on deliveries count, or no longer do.
    pub(super) fn measure(&mut self, on: bool) {
        self.measuring = on;
    }

    /// Deliveries that counted.
    pub(super) fn deliveries(&self) -> u64 {
        self.delivered
    }

    /// Reads while deliveries counted.
    pub(super) fn reads(&self) -> u64 {
        self.reads
    }

    /// Latency of the deliveries that counted, milliseconds.
    pub(super) fn latency_ms(&self, percentile: f64) -> f64 {
        super::proc::to_float(self.latencies.value_at_quantile(percentile / 100.0)) / 1e6
    }

    /// At the end, when nothing more comes.
    pub(super) fn faults(&self) -> Faults {
        let lost = self.open.iter().map(|left| u64::from(*left)).sum();
        Faults { lost, ..self.faults }
    }
}

impl Stopwatch {
    /// Begins now.
    pub(super) fn start() -> Self {
        Self(clock::now())
    }

    /// Nanoseconds since the beginning.
    pub(super) fn nanos(self) -> u64 {
        u64::try_from(clock::now().saturating_duration_since(self.0).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A payload: JSON text of `size` bytes that says which publication it is and when it was sent.
pub(super) fn payload(number: u64, sent: u64, size: usize) -> String {
    let filled = PAYLOAD_FIXED;
    format!("\"{number:016x}{sent:016x}{:x<width$}\"", "", width = size.saturating_sub(filled))
}

/// What a payload says; `text` begins behind its opening quote.
pub(super) fn read_payload(text: &[u8]) -> Option<(u64, u64)> {
    Some((hex(text.get(..16)?)?, hex(text.get(16..32)?)?))
}

fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// Two quotes and two numbers.
const PAYLOAD_FIXED: usize = 34;

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(offset: u64, number: u64) -> Delivery {
        Delivery { offset, number, sent: 0 }
    }

    #[test]
    fn a_publication_is_outstanding_until_every_subscriber_of_its_channel_has_it() {
        let mut ledger = Ledger::new(3, 2).expect("a histogram");
        assert_eq!([ledger.publish(), ledger.publish(), ledger.publish()], [(0, 0), (1, 1), (0, 2)]);
        // Channel 0 has subscribers 0 and 2.
        ledger.delivered(1, delivery(1, 1), 5);
        ledger.delivered(0, delivery(1, 0), 5);
        assert_eq!(ledger.outstanding(), 2);
        ledger.delivered(2, delivery(1, 0), 5);
        assert_eq!(ledger.outstanding(), 1);
        assert_eq!(ledger.faults(), Faults { lost: 2, ..Faults::default() });
        ledger.delivered(0, delivery(2, 2), 5);
        ledger.delivered(2, delivery(2, 2), 5);
        assert_eq!((ledger.outstanding(), ledger.faults()), (0, Faults::default()));
    }

    #[test]
    fn repeats_gaps_and_strangers_are_counted() {
        let mut ledger = Ledger::new(1, 1).expect("a histogram");
        for _ in 0..3 {
            ledger.publish();
        }
        ledger.delivered(0, delivery(1, 0), 5);
        ledger.delivered(0, delivery(1, 0), 5);
        ledger.delivered(0, delivery(3, 2), 5);
        ledger.delivered(0, delivery(4, 9), 5);
        assert_eq!(ledger.faults(), Faults { lost: 1, repeated: 1, reordered: 1, unknown: 1 });
    }

    #[test]
    fn a_payload_has_the_size_asked_for_and_tells_what_it_was_given() {
        let text = payload(7, 1 << 40, 128);
        assert_eq!(text.len(), 128);
        assert_eq!(read_payload(&text.as_bytes()[1..]), Some((7, 1 << 40)));
        assert_eq!(read_payload(b"000000000000000g0000000000000000"), None);
    }

    #[test]
    fn only_what_is_measured_makes_figures() {
        let mut ledger = Ledger::new(1, 1).expect("a histogram");
        ledger.publish();
        ledger.publish();
        ledger.delivered(0, delivery(1, 0), 9_000_000);
        ledger.measure(true);
        ledger.count_read();
        ledger.delivered(0, Delivery { sent: 1_000_000, ..delivery(2, 1) }, 3_000_000);
        assert_eq!((ledger.deliveries(), ledger.reads()), (1, 1));
        assert!((ledger.latency_ms(50.0) - 2.0).abs() < 0.01, "{}", ledger.latency_ms(50.0));
    }
}
