//! What was published, who has told of it, and how long that took.

use std::collections::VecDeque;

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::bench::ledger::Faults;

/// Something came, of publication `number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    /// Counted from 0, in the order of publishing.
    pub(super) number: u64,
    pub(super) what: What,
    /// When it was read, nanoseconds on the stopwatch.
    pub(super) at: u64,
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// It is kept.
    Acknowledged,
    /// The subscriber of this edge has it, as the channel's publication `offset`.
    Delivered { edge: usize, offset: u64 },
}

/// The books of one subject, over all its measurements. Publications go to the channels in turn.
#[derive(Debug)]
pub(super) struct Books {
    /// The last offset of each channel, by edge.
    last: Vec<Vec<u64>>,
    channels: usize,
    first_open: u64,
    /// From `first_open` on.
    open: VecDeque<Open>,
    outstanding: usize,
    faults: Faults,
    measuring: bool,
    completed: u64,
    /// Of acknowledgements, then of each edge's deliveries.
    latencies: Vec<Histogram<u64>>,
}

/// What was measured since the last time.
#[derive(Debug, Clone)]
pub(super) struct Takings {
    /// Publications that everybody told of.
    pub(super) completed: u64,
    /// Nanoseconds, of acknowledgements, then of each edge's deliveries.
    pub(super) latencies: Vec<Histogram<u64>>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    sent: u64,
    /// A bit for the acknowledgement, and one for each edge.
    missing: u32,
}

impl Books {
    pub(super) fn new(edges: usize, channels: usize) -> Result<Self> {
        Ok(Self {
            last: vec![vec![0; channels]; edges],
            channels,
            first_open: 0,
            open: VecDeque::new(),
            outstanding: 0,
            faults: Faults::default(),
            measuring: false,
            completed: 0,
            latencies: histograms(edges + 1)?,
        })
    }

    /// The next publication, sent at `sent`: its number and channel.
    pub(super) fn publish(&mut self, sent: u64) -> (u64, usize) {
        let number = self.first_open + self.open.len() as u64;
        let missing = (1 << self.latencies.len()) - 1;
        self.open.push_back(Open { sent, missing });
        self.outstanding += 1;
        (number, self.channel(number))
    }

    /// Publications that somebody has not told of yet.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Enters what came.
    pub(super) fn enter(&mut self, done: Done) {
        let kind = match done.what {
            What::Acknowledged => 0,
            What::Delivered { edge, offset } => {
                if !self.is_next(edge, self.channel(done.number), offset) {
                    return;
                }
                edge + 1
            }
        };
        let place = done.number.checked_sub(self.first_open).and_then(|place| usize::try_from(place).ok());
        let open = place.and_then(|place| self.open.get_mut(place));
        let Some(open) = open.filter(|open| open.missing & 1 << kind != 0) else {
            self.faults.unknown += 1;
            return;
        };
        open.missing &= !(1 << kind);
        let (sent, complete) = (open.sent, open.missing == 0);
        if self.measuring {
            self.completed += u64::from(complete);
            self.latencies[kind].saturating_record(done.at.saturating_sub(sent));
        }
        if complete {
            self.outstanding -= 1;
            while self.open.front().is_some_and(|open| open.missing == 0) {
                self.open.pop_front();
                self.first_open += 1;
            }
        }
    }

    fn is_next(&mut self, edge: usize, channel: usize, offset: u64) -> bool {
        let last = &mut self.last[edge][channel];
        if offset <= *last {
            self.faults.repeated += 1;
            return false;
        }
        if offset != *last + 1 {
            self.faults.reordered += 1;
        }
        *last = offset;
        true
    }

    /// From here on what comes counts for the figures, or no longer does.
    pub(super) fn measure(&mut self, on: bool) {
        self.measuring = on;
    }

    /// What was measured since the last time.
    pub(super) fn take(&mut self) -> Result<Takings> {
        let fresh = histograms(self.latencies.len())?;
        let latencies = std::mem::replace(&mut self.latencies, fresh);
        Ok(Takings { completed: std::mem::take(&mut self.completed), latencies })
    }

    /// At the end, when nothing more comes.
    pub(super) fn faults(&self) -> Faults {
        let lost = self.open.iter().map(|open| u64::from(open.missing.count_ones())).sum();
        Faults { lost, ..self.faults }
    }

    fn channel(&self, number: u64) -> usize {
        usize::try_from(number % self.channels as u64).unwrap_or_default()
    }
}

impl Takings {
    /// Takes another measurement of the same subject in.
    pub(super) fn add(&mut self, other: &Self) -> Result<()> {
        self.completed += other.completed;
        for (sum, other) in self.latencies.iter_mut().zip(&other.latencies) {
            sum.add(other)?;
        }
        Ok(())
    }
}

/// From a microsecond to two minutes, three digits.
fn histograms(count: usize) -> Result<Vec<Histogram<u64>>> {
    let one = || Histogram::new_with_bounds(1_000, 120_000_000_000, 3);
    (0..count).map(|_| Ok(one()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(number: u64, edge: usize, offset: u64, at: u64) -> Done {
        Done { number, what: What::Delivered { edge, offset }, at }
    }

    fn acknowledged(number: u64, at: u64) -> Done {
        Done { number, what: What::Acknowledged, at }
    }

    #[test]
    fn a_publication_is_outstanding_until_all_have_told_of_it() {
        let mut books = Books::new(2, 2).expect("histograms");
        books.measure(true);
        assert_eq!([0, 0, 0].map(|at| books.publish(at)), [(0, 0), (1, 1), (2, 0)]);
        books.enter(delivered(1, 0, 1, 2_000));
        books.enter(acknowledged(1, 3_000));
        assert_eq!((books.outstanding(), books.faults().lost), (3, 7));
        books.enter(delivered(1, 1, 1, 4_000));
        assert_eq!(books.outstanding(), 2);
        for (number, offset) in [(0, 1), (2, 2)] {
            books.enter(acknowledged(number, 3_000));
            books.enter(delivered(number, 0, offset, 2_000));
            books.enter(delivered(number, 1, offset, 4_000));
        }
        assert_eq!((books.outstanding(), books.faults()), (0, Faults::default()));
        let takings = books.take().expect("histograms");
        let median = |kind: usize| takings.latencies[kind].value_at_quantile(0.5) / 1_000;
        assert_eq!((takings.completed, median(0), median(1), median(2)), (3, 3, 2, 4));
        assert_eq!(books.take().expect("histograms").completed, 0, "taken once");
    }

    #[test]
    fn repeats_gaps_and_strangers_are_counted() {
        let mut books = Books::new(1, 1).expect("histograms");
        for _ in 0..3 {
            books.publish(0);
        }
        for done in [delivered(0, 0, 1, 5), delivered(0, 0, 1, 5), delivered(2, 0, 3, 5)] {
            books.enter(done);
        }
        for number in [0, 0, 9] {
            books.enter(acknowledged(number, 5));
        }
        // Two acknowledgements and a delivery never came.
        assert_eq!(books.faults(), Faults { lost: 3, repeated: 1, reordered: 1, unknown: 2 });
    }

    #[test]
    fn only_what_is_measured_makes_figures() {
        let mut books = Books::new(0, 1).expect("histograms");
        books.publish(0);
        books.enter(acknowledged(0, 9_000_000));
        books.measure(true);
        books.publish(1_000_000);
        books.enter(acknowledged(1, 3_000_000));
        let mut takings = books.take().expect("histograms");
        takings.add(&takings.clone()).expect("the same bounds");
        assert_eq!((takings.completed, takings.latencies[0].len()), (2, 2));
        assert_eq!(takings.latencies[0].max() / 1_000_000, 2);
    }
}
