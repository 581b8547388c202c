//! `bench mobility`: what blocked, dying and changing networks cost a client.
//!
//! Scenarios of `sdk/rust`, and of `sdk/js` in Chromium, in a laboratory ([`crate::lab`]): UDP blocked from the start,
//! black-holed after open and back, NAT rebindings, an outage, a change of address; each under a stream of 20 publications
//! per second, none of which may be lost, repeated or reordered.

pub mod browser;
mod scenarios;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tidegate_transport::netem::Profile;

pub use self::scenarios::Measured;
pub use self::stage::{Restart, Stage, play};
use super::cli::MobilityArgs;
use super::machine::Machine;
use super::proc;
use super::report::{Progress, Table, short, write_json};
use crate::programs;

/// Measures and prints.
pub(super) fn run(arguments: &MobilityArgs) -> Result<ExitCode> {
    let rtt = Duration::from_millis(arguments.rtt);
    let profile = || Profile::delay(rtt / 2).with_rate(20_000_000, 250_000);
    let (seed, few, fewer) = (arguments.seed, arguments.rounds, arguments.rounds.div_ceil(3));
    let mut machine = Machine::look(&programs::tidegate()?);
    let mut rows: Vec<Row> = Vec::new();
    let mut progress = Progress::new(14);
    let wanted = |what: &str| arguments.only.as_deref().is_none_or(|only| what.contains(only));
    let mut note = |what: &str, bound: Option<Duration>, outcome: Result<Measured>| {
        let row = Row::of(what, bound, outcome);
        progress.end(&row.line());
        rows.push(row);
    };
    let elevator = Duration::from_secs(8);
    let bounds =
        |usual: Duration| (Some(usual + Duration::from_millis(550)), Some(usual + Duration::from_millis(20)));

    if wanted("connect") {
        let alone = play(profile(), seed, move |stage| scenarios::websocket_alone(stage, few));
        let (first_bound, again_bound) = bounds(usual(&alone));
        note("connect: WebSocket alone", None, alone);
        let first = play(profile(), seed, move |stage| scenarios::blocked(stage, few));
        note("connect: UDP blocked, first time", first_bound, first);
        let again = play(profile(), seed, move |stage| scenarios::remembered(stage, few));
        note("connect: UDP blocked, remembered", again_bound, again);
    }
    if wanted("black hole") {
        let (away, back) = both(play(profile(), seed, move |stage| scenarios::black_hole(stage, fewer)));
        note("black hole after open: longest gap", Some(Duration::from_secs(10)), away);
        note("black hole over, back on QUIC: longest gap", None, back);
    }
    if wanted("rebinding") {
        // RFC 9002 §6.2.1: smoothed round trip, four deviations (here about a tenth of it each), the acknowledgement delay.
        let pto = rtt + (rtt / 10 * 4).max(Duration::from_millis(1)) + Duration::from_millis(25);
        let rebindings = arguments.rebindings;
        let stalls = play(profile(), seed, move |stage| scenarios::rebindings(stage, rebindings, rtt / 2));
        note("rebinding of the NAT: stall", Some(rtt + pto), stalls);
    }
    if wanted("outage") {
        let outage = play(profile(), seed, move |stage| scenarios::outage(stage, fewer, elevator));
        note("outage of 8 s: up to date after", None, outage);
    }
    if wanted("address") {
        let swap = play(profile(), seed, move |stage| scenarios::address_changes(stage, few));
        note("address change: longest gap", None, swap);
    }
    if wanted("connect in Chromium") {
        let alone = play(profile(), seed, move |stage| browser::websocket_alone(stage, few));
        let (first_bound, again_bound) = bounds(usual(&alone));
        note("connect in Chromium: WebSocket alone", None, alone);
        let first = play(profile(), seed, move |stage| browser::blocked(stage, few));
        note("connect in Chromium: UDP blocked, first time", first_bound, first);
        let again = play(profile(), seed, move |stage| browser::remembered(stage, few));
        note("connect in Chromium: UDP blocked, remembered", again_bound, again);
    }
    if wanted("black hole in Chromium") {
        let (away, back) = both(play(profile(), seed, move |stage| browser::black_hole(stage, fewer)));
        note("black hole in Chromium after open: longest gap", Some(Duration::from_secs(10)), away);
        note("black hole in Chromium over, back on WebTransport: longest gap", None, back);
    }
    if wanted("outage in Chromium") {
        let outage = play(profile(), seed, move |stage| browser::outage(stage, fewer, elevator));
        note("outage of 8 s in Chromium: up to date after", None, outage);
    }

    progress.finish();
    machine.load_after = proc::load_average();
    let report = Report { seed, rtt_ms: arguments.rtt, machine, rows };
    println!("\n{}\n", report.machine.summary());
    println!("RTT {} ms, 20 publications/s, seed {seed}. Milliseconds.\n", arguments.rtt);
    let mut table = Table::new(&["what", "times", "p50", "p99", "max", "bound", "connections lost", ""]);
    for row in &report.rows {
        table.row(row.cells());
    }
    println!("{table}");
    let file = write_json("mobility", arguments.json.as_deref(), &report)?;
    println!("Result file: {}", file.display());
    let sound = report.rows.iter().all(|row| row.failure.is_none());
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One scenario's figures, milliseconds.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    times: usize,
    p50: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
    /// What p99 is to stay within.
    bound: Option<f64>,
    losses: u32,
    failure: Option<String>,
}

impl Row {
    fn of(what: &str, bound: Option<Duration>, outcome: Result<Measured>) -> Self {
        let bound = bound.map(millis);
        let (measured, failure) = match outcome {
            Ok(measured) => (measured, None),
            Err(error) => (Measured::default(), Some(format!("{error:#}"))),
        };
        let Measured { mut times, losses } = measured;
        times.sort_unstable();
        let at = |share: f64| quantile(&times, share).map(millis);
        let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
        Self { what: what.to_owned(), times: times.len(), p50, p99, max, bound, losses, failure }
    }

    fn verdict(&self) -> &'static str {
        match (&self.failure, self.p99, self.bound) {
            (Some(_), _, _) => "FAILED",
            (None, Some(p99), Some(bound)) if p99 <= bound => "within",
            (None, Some(_), Some(_)) => "MISSED",
            _ => "",
        }
    }

    fn cells(&self) -> Vec<String> {
        let figure = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), short);
        vec![
            self.what.clone(),
            self.times.to_string(),
            figure(self.p50),
            figure(self.p99),
            figure(self.max),
            self.bound.map_or_else(String::new, short),
            self.losses.to_string(),
            self.failure.clone().unwrap_or_else(|| self.verdict().to_owned()),
        ]
    }

    fn line(&self) -> String {
        self.cells().join(" | ")
    }
}

/// Everything, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    rtt_ms: u64,
    machine: Machine,
    rows: Vec<Row>,
}

/// What a connection over WebSocket alone takes.
fn usual(alone: &Result<Measured>) -> Duration {
    alone.as_ref().map(|alone| median(&alone.times)).unwrap_or_default()
}

/// Of a scenario that gives two rows; the second is empty where it failed.
fn both(outcome: Result<(Measured, Measured)>) -> (Result<Measured>, Result<Measured>) {
    outcome
        .map_or_else(|error| (Err(error), Ok(Measured::default())), |(first, second)| (Ok(first), Ok(second)))
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    quantile(&times, 0.5).unwrap_or_default()
}

/// Of sorted times.
fn quantile(times: &[Duration], share: f64) -> Option<Duration> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
    let place = ((times.len() as f64 * share).ceil() as usize).saturating_sub(1);
    times.get(place).copied()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_it_is_within_its_bound() {
        let times = (1..=100).map(Duration::from_millis).collect();
        let measured = || Ok(Measured { times, losses: 0 });
        let row = Row::of("x", Some(Duration::from_millis(99)), measured());
        assert_eq!((row.p50, row.p99, row.max), (Some(50.0), Some(99.0), Some(100.0)));
        assert_eq!(row.verdict(), "within");
        let row = Row::of("x", None, Err(anyhow::anyhow!("no gateway")));
        assert_eq!((row.verdict(), row.p99), ("FAILED", None));
    }
}
