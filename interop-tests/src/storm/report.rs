//! What a simulation says: a row every few seconds, and a table of what it comes to.

use std::fmt::Write as _;

use crate::bench::report::Table;

use super::drain::{DrainConfig, DrainOutcome};
use super::outage::{Second, StormConfig, StormOutcome};

/// Rows of a timeline, more or less.
const ROWS: usize = 30;

/// A storm as it went.
pub(super) fn storm_timeline(config: &StormConfig, outcome: &StormOutcome) -> String {
    let last =
        outcome.seconds.iter().rposition(|second| second.dials > 0 || second.back > 0).unwrap_or(0) + 1;
    let step = last.div_ceil(ROWS).max(1);
    let mut table = Table::new(&["t, s", "dials/s", "let in/s", "refused/s", "dropped/s", "CPU", "back", ""]);
    let mut back = 0_u32;
    for (index, chunk) in outcome.seconds[..last].chunks(step).enumerate() {
        let sum = |of: fn(&Second) -> u32| chunk.iter().map(of).sum::<u32>();
        let rate = |of: fn(&Second) -> u32| (f64::from(sum(of)) / chunk.len() as f64).round().to_string();
        back += sum(|second| second.back);
        let share = f64::from(back) / f64::from(outcome.wanting.max(1));
        let work: f64 = chunk.iter().map(|second| second.work).sum();
        table.row(vec![
            (index * step).to_string(),
            rate(|second| second.dials),
            rate(|second| second.admitted),
            rate(|second| second.refused),
            rate(|second| second.dropped),
            percent(work / (1.25 * config.rate * chunk.len() as f64)),
            percent(share),
            "#".repeat((share * 40.0).round() as usize),
        ]);
    }
    table.to_string()
}

/// Storms, one a row: the median of their seeds, and the worst.
pub(super) fn storm_summary(rows: &[(String, StormConfig, Vec<StormOutcome>)]) -> String {
    let mut table = Table::new(&[
        "clients",
        "back",
        "t50 / ideal",
        "t99.9 / ideal",
        "dials per client",
        "peak dials/s / R",
        "busiest second / R",
        "CPU for nothing",
    ]);
    for (name, config, outcomes) in rows {
        let ideal = config.ideal();
        let of = |figure: &dyn Fn(&StormOutcome) -> f64| spread(outcomes.iter().map(figure));
        let time = |figure: fn(&StormOutcome) -> Option<f64>| {
            let known: Option<Vec<f64>> = outcomes.iter().map(figure).collect();
            known.map_or_else(
                || format!("never ({} of {})", count_none(outcomes, figure), outcomes.len()),
                |times| spread(times.into_iter().map(|time| time / ideal)),
            )
        };
        table.row(vec![
            name.clone(),
            of(&|outcome| f64::from(outcome.back) / f64::from(outcome.wanting.max(1))),
            time(|outcome| outcome.t50),
            time(|outcome| outcome.t999),
            of(&|outcome| outcome.attempts),
            of(&|outcome| f64::from(outcome.peak_dials) / config.rate),
            of(&|outcome| outcome.busiest_second),
            of(&|outcome| outcome.wasted),
        ]);
    }
    table.to_string()
}

/// A drain as it went.
pub(super) fn drain_timeline(outcome: &DrainOutcome) -> String {
    let step = outcome.seconds.len().div_ceil(ROWS).max(1);
    let mut table = Table::new(&[
        "t, s",
        "slack/s",
        "granted/s",
        "moved/s",
        "on their way",
        "others deferred",
        "left",
        "",
    ]);
    for (index, chunk) in outcome.seconds.chunks(step).enumerate() {
        let mean =
            |of: fn(&super::drain::Second) -> f64| chunk.iter().map(of).sum::<f64>() / chunk.len() as f64;
        let Some(end) = chunk.last() else { continue };
        let left = f64::from(end.left) / f64::from(outcome.clients.max(1));
        table.row(vec![
            (index * step).to_string(),
            format!("{:.0}", mean(|second| second.slack)),
            format!("{:.0}", mean(|second| f64::from(second.granted))),
            format!("{:.0}", mean(|second| f64::from(second.moved))),
            end.in_flight.to_string(),
            format!("{:.0}", chunk.iter().map(|second| f64::from(second.deferred)).sum::<f64>()),
            end.left.to_string(),
            "#".repeat((left * 40.0).round() as usize),
        ]);
    }
    table.to_string()
}

/// Drains, all seeds in one row.
pub(super) fn drain_summary(config: &DrainConfig, outcomes: &[DrainOutcome]) -> String {
    let mut table = Table::new(&[
        "drain of",
        "ideal, s",
        "99.9 % after, s",
        "took, s",
        "took / ideal",
        "migrating clients refused",
        "held, ms, at most",
        "moved",
        "forced",
    ]);
    let of = |figure: &dyn Fn(&DrainOutcome) -> f64| spread(outcomes.iter().map(figure));
    table.row(vec![
        config.clients.to_string(),
        of(&|outcome| outcome.ideal),
        of(&|outcome| outcome.took_999),
        of(&|outcome| outcome.took),
        of(&|outcome| outcome.took / outcome.ideal),
        of(&|outcome| f64::from(outcome.refused)),
        of(&|outcome| outcome.longest_hold.as_secs_f64() * 1000.0),
        of(&|outcome| outcome.moved as f64),
        of(&|outcome| outcome.forced as f64),
    ]);
    table.to_string()
}

fn count_none(outcomes: &[StormOutcome], figure: fn(&StormOutcome) -> Option<f64>) -> usize {
    outcomes.iter().filter(|outcome| figure(outcome).is_none()).count()
}

/// Median and worst.
fn spread(figures: impl Iterator<Item = f64>) -> String {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let at = |place: usize| figures.get(place).copied().unwrap_or(f64::NAN);
    let (low, middle, high) = (at(0), at(figures.len() / 2), at(figures.len().saturating_sub(1)));
    let mut text = short(middle);
    if short(low) != short(high) {
        // Writing to a string cannot fail.
        let _ = write!(text, " ({}–{})", short(low), short(high));
    }
    text
}

fn short(figure: f64) -> String {
    match figure.abs() {
        0.0 => "0".to_owned(),
        size if size < 10.0 => format!("{figure:.3}"),
        size if size < 1000.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
