//! What came out, for people and for programs, and what it says of the target.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Engine;
use super::books::Takings;
use crate::bench::machine::Machine;
use crate::bench::proc::to_float;
use crate::bench::report::{Spread, Table, short};
use crate::bench::shape::Pace;

/// Everything, as JSON. Times are milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) payload: usize,
    pub(super) channels: usize,
    pub(super) partitions: u32,
    /// Of each edge; 0: one per processor.
    pub(super) workers: u8,
    /// NATS servers wrote everything to the disk before they answered.
    pub(super) synced: bool,
    /// Of each side in a round.
    pub(super) seconds: f64,
    /// What cores were told beside.
    pub(super) settings: Vec<String>,
    pub(super) cases: Vec<Case>,
}

/// One engine at one pace.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    engine: Engine,
    pace: Option<Pace>,
    pub(super) failure: Option<String>,
    pub(super) rounds: Vec<Measured>,
}

/// What a round gave.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    /// Publish to acknowledgement at the engine itself.
    raw: Figures,
    /// Publish to acknowledgement by the gateway.
    acknowledged: Figures,
    /// Publish to delivery, by edge. Publications are made at the first.
    delivered: Vec<Figures>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Figures {
    p50: f64,
    p99: f64,
    max: f64,
    /// Publications that were through.
    per_second: f64,
}

impl Case {
    pub(super) fn new(engine: Engine, pace: Pace) -> Self {
        Self { engine, pace: Some(pace), failure: None, rounds: Vec::new() }
    }

    /// The engine could not be measured to the end.
    pub(super) fn failed(engine: Engine, failure: String) -> Self {
        Self { engine, pace: None, failure: Some(failure), rounds: Vec::new() }
    }

    /// A row for each side.
    fn rows(&self) -> Vec<Row<'_>> {
        let edges = self.rounds.first().map_or(0, |round| round.delivered.len());
        let row =
            |what: String, figures: Box<dyn Fn(&Measured) -> Figures>| Row { what, case: self, figures };
        let mut rows = vec![
            row("raw: acknowledged".to_owned(), Box::new(|round| round.raw)),
            row("tidegate: acknowledged".to_owned(), Box::new(|round| round.acknowledged)),
        ];
        rows.extend((0..edges).map(|edge| {
            let what = if edge == 0 { "delivered, same edge" } else { "delivered, other edge" };
            row(format!("tidegate: {what}"), Box::new(move |round| round.delivered[edge]))
        }));
        rows
    }

    /// How much longer the median delivery takes than the raw acknowledgement, on the slowest edge.
    fn slowest_delivery(&self) -> Option<Spread> {
        let deliveries = self.rows().into_iter().skip(2).map(|row| row.ratio(|figures| figures.p50));
        deliveries.max_by(|one, other| one.median.total_cmp(&other.median))
    }

    /// What is said of the target.
    fn verdict(&self) -> Option<String> {
        let (pace, ratio) = (self.pace?, self.slowest_delivery()?);
        // At saturation both sides only queue.
        if self.engine != Engine::NatsR3 || !matches!(pace, Pace::Window(1) | Pace::Rate(_)) {
            return None;
        }
        let said = if ratio.median <= TARGET { "met" } else { "MISSED" };
        Some(format!(
            "{said}: {}, {}: publish to delivery has {ratio} times the p50 of raw R3; the target is {TARGET}",
            self.engine,
            name(pace)
        ))
    }
}

struct Row<'a> {
    what: String,
    case: &'a Case,
    figures: Box<dyn Fn(&Measured) -> Figures>,
}

impl Row<'_> {
    fn spread(&self, of: impl Fn(&Figures) -> f64) -> Spread {
        Spread::of(self.case.rounds.iter().map(|round| of(&(self.figures)(round))))
    }

    /// To raw in the same round.
    fn ratio(&self, of: impl Fn(&Figures) -> f64) -> Spread {
        Spread::of(self.case.rounds.iter().map(|round| of(&(self.figures)(round)) / of(&round.raw)))
    }

    fn cells(&self, pace: Pace) -> Vec<String> {
        let ratio = |of: fn(&Figures) -> f64| {
            if self.what.starts_with("raw") { String::new() } else { self.ratio(of).to_string() }
        };
        vec![
            self.case.engine.to_string(),
            name(pace),
            self.what.clone(),
            self.spread(|figures| figures.p50).to_string(),
            ratio(|figures| figures.p50),
            self.spread(|figures| figures.p99).to_string(),
            ratio(|figures| figures.p99),
            short(self.spread(|figures| figures.per_second).median),
        ]
    }
}

impl Measured {
    pub(super) fn new(raw: &Takings, gateway: &Takings, length: Duration) -> Self {
        let figures = |latencies: &Histogram<u64>, takings: &Takings| Figures {
            p50: millis(latencies, 0.5),
            p99: millis(latencies, 0.99),
            max: millis(latencies, 1.0),
            per_second: to_float(takings.completed) / length.as_secs_f64(),
        };
        let all = |takings: &Takings| -> Vec<Figures> {
            takings.latencies.iter().map(|latencies| figures(latencies, takings)).collect()
        };
        let (raw, mut gateway) = (all(raw), all(gateway));
        let delivered = gateway.split_off(1);
        Self { raw: raw[0], acknowledged: gateway[0], delivered }
    }

    /// In one line.
    pub(super) fn line(&self) -> String {
        let Self { raw, acknowledged, delivered } = self;
        let deliveries: Vec<String> = delivered.iter().map(Figures::text).collect();
        format!(
            "raw {}, acknowledged {}, delivered {}; p50/p99 ms",
            raw.text(),
            acknowledged.text(),
            deliveries.join(" and ")
        )
    }
}

impl Figures {
    fn text(&self) -> String {
        format!("{}/{}", precise(self.p50), precise(self.p99))
    }
}

impl Report {
    pub(super) fn is_sound(&self) -> bool {
        self.cases.iter().all(|case| case.failure.is_none())
    }

    pub(super) fn print(&self) {
        println!("\n{}\n", self.machine.summary());
        println!(
            "{} B, {} channels on {} partitions; medians of the rounds, range in brackets; x: ratio to raw in the same \
             round.\n",
            self.payload, self.channels, self.partitions
        );
        let mut table = Table::new(&["engine", "load", "what", "p50 ms", "x", "p99 ms", "x", "per second"]);
        for case in self.cases.iter().filter(|case| !case.rounds.is_empty()) {
            for row in case.rows() {
                table.row(case.pace.map(|pace| row.cells(pace)).unwrap_or_default());
            }
        }
        println!("{table}");
        for line in self.cases.iter().filter_map(Case::verdict) {
            println!("{line}");
        }
        for failure in self.cases.iter().filter_map(|case| case.failure.as_ref()) {
            println!("{failure}");
        }
    }
}

/// Of a pace, in the table.
pub(super) fn name(pace: Pace) -> String {
    match pace {
        Pace::Window(1) => "one at a time".to_owned(),
        Pace::Window(window) => format!("{window} under way"),
        Pace::Burst(burst) => format!("bursts of {burst}"),
        Pace::Rate(rate) => format!("{rate}/s"),
    }
}

fn millis(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    to_float(latencies.value_at_quantile(quantile)) / 1e6
}

/// Fractions of a millisecond are what this is about.
fn precise(figure: f64) -> String {
    format!("{figure:.2}")
}

/// How often the p50 of JetStream's own acknowledgement, with three replicas, publish to delivery may take.
const TARGET: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::publish::books::{Books, Done, What};

    /// A round in which everything took so many milliseconds.
    fn round(raw: u64, delivered: [u64; 2]) -> Measured {
        let takings = |edges: &[u64]| {
            let mut books = Books::new(edges.len(), 1).expect("histograms");
            books.measure(true);
            books.publish(0);
            books.enter(Done { number: 0, what: What::Acknowledged, at: raw * 1_000_000 });
            for (edge, at) in edges.iter().enumerate() {
                let what = What::Delivered { edge, offset: 1 };
                books.enter(Done { number: 0, what, at: at * 1_000_000 });
            }
            books.take().expect("histograms")
        };
        Measured::new(&takings(&[]), &takings(&delivered), Duration::from_secs(2))
    }

    fn case(engine: Engine, pace: Pace, rounds: Vec<Measured>) -> Case {
        Case { rounds, ..Case::new(engine, pace) }
    }

    #[test]
    fn the_target_is_judged_by_the_slowest_edge_of_three_replicas_below_saturation() {
        let rounds = |slow| vec![round(10, [15, 18]), round(10, [12, slow]), round(10, [12, slow])];
        let verdict = |engine, pace, slow| case(engine, pace, rounds(slow)).verdict();
        let one = Pace::Window(1);
        assert!(verdict(Engine::NatsR3, one, 19).is_some_and(|text| text.starts_with("met")));
        assert!(verdict(Engine::NatsR3, one, 21).is_some_and(|text| text.starts_with("MISSED")));
        assert_eq!(verdict(Engine::NatsR1, one, 19), None);
        assert!(verdict(Engine::NatsR3, Pace::Rate(1000), 21).is_some_and(|text| text.starts_with("MISSED")));
        assert_eq!(verdict(Engine::NatsR3, Pace::Window(256), 19), None);
        assert_eq!(Case::failed(Engine::NatsR3, "no cluster".to_owned()).verdict(), None);
    }

    #[test]
    fn rows_hold_figures_and_their_ratio_to_raw() {
        let case = case(Engine::Local, Pace::Rate(1000), vec![round(10, [30, 40])]);
        let cells: Vec<_> = case.rows().iter().map(|row| row.cells(Pace::Rate(1000))).collect();
        let table = [
            ["local", "1000/s", "raw: acknowledged", "10.0", "", "10.0", "", "0.50"],
            ["local", "1000/s", "tidegate: acknowledged", "10.0", "1.0", "10.0", "1.0", "0.50"],
            ["local", "1000/s", "tidegate: delivered, same edge", "30", "3.0", "30", "3.0", "0.50"],
            ["local", "1000/s", "tidegate: delivered, other edge", "40", "4.0", "40", "4.0", "0.50"],
        ];
        assert_eq!(cells, table);
    }
}
