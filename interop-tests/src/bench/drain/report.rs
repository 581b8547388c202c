//! The tables, and the verdict.

use super::{DrainArgs, Figures, GroupFigures, Leg};
use crate::bench::report::{Quantiles, Table, short};
use crate::bench::trial::Verdict;

/// Prints everything; true where all is as it should be.
pub(super) fn print(arguments: &DrainArgs, figures: &Figures) -> bool {
    println!(
        "{} clients on {} channels, each on {}, {} publications/s in all; moved {} times: {} published, {} delivered.\n",
        figures.clients,
        arguments.channels,
        arguments.follow,
        arguments.rate,
        figures.drained.len(),
        figures.judged.published,
        figures.judged.deliveries,
    );
    println!(
        "Longest time between two publications of a channel, of each client, milliseconds; and from publishing to delivery:\n"
    );
    let mut table = Table::new(&[
        "clients",
        "gap p50",
        "p99",
        "max",
        "drained: gap p50",
        "p99",
        "max",
        "p99 longer by",
        "delay p99",
        "drained: delay p99",
        "max",
    ]);
    for group in &figures.groups {
        let ([usual, drained], [usual_delay, drained_delay]) = (group.gaps, group.delays);
        let of = |of: Quantiles| [of.p50, of.p99, of.max];
        let delays = [group.longer(), usual_delay.p99, drained_delay.p99, drained_delay.max];
        let figures = of(usual).into_iter().chain(of(drained)).chain(delays).map(short);
        table.row(std::iter::once(group.group.clone()).chain(figures).collect());
    }
    println!("{table}");
    let mut drains =
        Table::new(&["drain of", "seconds", "moved", "left", "closed", "disconnects", "presence events"]);
    for leg in &figures.drained {
        drains.row(vec![
            leg.from.to_owned(),
            short(leg.drained.seconds),
            leg.drained.moved.to_string(),
            leg.drained.left.to_string(),
            leg.drained.closed.to_string(),
            leg.window.disconnected.to_string(),
            leg.window.presence.to_string(),
        ]);
    }
    println!("{drains}");
    let sum = |pick: fn(&Leg) -> u64| figures.drained.iter().map(pick).sum::<u64>();
    let mut verdict = Verdict::new();
    for group in &figures.groups {
        let longer = group.longer();
        let what = format!("gap of {} longer at p99, ms", group.group);
        verdict.row(&what, format!("{BOUND}"), short(longer), longer <= BOUND);
    }
    verdict.none(figures.judged.counts());
    verdict.none([
        ("disconnects", sum(|leg| leg.window.disconnected)),
        ("closed at the deadline", sum(|leg| leg.drained.closed)),
        ("presence events", sum(|leg| leg.window.presence)),
    ]);
    let examples = figures.drained.iter().flat_map(|leg| &leg.window.examples);
    verdict.print(figures.judged.cases.iter().chain(examples))
}

impl GroupFigures {
    /// How much longer the longest gap is with drains, at p99, milliseconds.
    fn longer(&self) -> f64 {
        let [usual, drained] = self.gaps;
        drained.p99 - usual.p99
    }
}

/// How much longer the gap may be at p99, milliseconds.
const BOUND: f64 = 50.0;
