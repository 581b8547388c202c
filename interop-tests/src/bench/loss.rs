//! `bench loss`: how long publications take over links that lose packets, by transport.
//!
//! Every measurement has a laboratory of its own ([`crate::lab`]): the gateway at one end, one subscriber at the other, and
//! between them a link with the same seed for each transport.

mod cell;
mod chart;
mod measure;
mod receive;
mod samples;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde::Serialize;

pub(super) use self::cell::{Carrier, Lossy};

use self::cell::{Cell, grid};
use self::work::Work;
use super::cli::LossArgs;
use super::machine::Machine;
use super::proc;
use super::report::{Progress, Table, short, write_json};
use crate::programs;

/// Measures and prints.
pub(super) fn run(arguments: &LossArgs) -> Result<ExitCode> {
    let work = Work {
        per_second: arguments.per_second,
        payload: arguments.payload,
        seconds: if arguments.quick { 4 } else { arguments.seconds },
        rate: u64::from(arguments.rate) * 1_000_000,
    };
    let cells = cells(arguments);
    let mut machine = Machine::look(&programs::tidegate()?);
    let mut progress = Progress::new(cells.len());
    progress.begin(format!(
        "{} measurements, {} at a time, seed {}",
        cells.len(),
        arguments.parallel,
        arguments.seed
    ));
    let results = measure_all(&cells, &work, usize::from(arguments.parallel), &mut progress);
    progress.finish();
    machine.load_after = proc::load_average();
    let report = Report { seed: arguments.seed, machine, work, results };
    print!("{report}");
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(if arguments.quick { "target/bench" } else { "docs" }));
    let json = write_json("loss", Some(&folder.join("loss.json")), &report)?;
    let drawing = folder.join("loss.svg");
    std::fs::write(&drawing, chart::draw(&report))
        .with_context(|| format!("cannot write {}", drawing.display()))?;
    println!("\nResult file: {}; chart: {}", json.display(), drawing.display());
    let sound = report.results.iter().all(|result| result.failure.is_none() && result.missing == 0);
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cells(arguments: &LossArgs) -> Vec<Cell> {
    let carriers = if arguments.transport.is_empty() { &Carrier::ALL[..] } else { &arguments.transport };
    if arguments.quick {
        return grid(arguments.seed, carriers, &[Lossy { mean: 0.02, burst: 3.0 }], &[50], &[8]);
    }
    let mut cells = grid(arguments.seed, carriers, &arguments.loss, &arguments.rtt, &arguments.channels);
    if arguments.flood > 0 {
        let clean = Lossy { mean: 0.0, burst: 1.0 };
        for flood in [0, arguments.flood] {
            let again = grid(arguments.seed, carriers, &[clean], &[FLOOD_RTT], &[FLOOD_CHANNELS]);
            cells.extend(again.into_iter().map(|cell| Cell { flood, ..cell }));
        }
        // Measured once, where the grid has it already.
        let mut seen: Vec<Cell> = Vec::new();
        cells.retain(|cell| {
            let same = |other: &Cell| Cell { seed: 0, ..other.clone() } == Cell { seed: 0, ..cell.clone() };
            let new = !seen.iter().any(same);
            if new {
                seen.push(cell.clone());
            }
            new
        });
    }
    cells
}

/// So many at a time, each on a thread of its own; results in the order of the cells.
fn measure_all(cells: &[Cell], work: &Work, parallel: usize, progress: &mut Progress) -> Vec<Outcome> {
    let next = Mutex::new(cells.iter().enumerate());
    let (sender, results) = std::sync::mpsc::sync_channel(cells.len());
    let mut outcomes = std::thread::scope(|scope| {
        for _ in 0..parallel {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || {
                loop {
                    let taken = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((place, cell)) = taken else { return };
                    let outcome = Outcome::of(cell, measure::measure(cell, work));
                    if sender.send((place, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut outcomes = Vec::new();
        for (place, outcome) in results {
            progress.end(&outcome.line());
            outcomes.push((place, outcome));
        }
        outcomes
    });
    outcomes.sort_by_key(|(place, _)| *place);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// What one measurement gave.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    cell: Cell,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    received: u64,
    missing: u64,
    reconnects: u64,
    /// Packets to the subscriber, and those of them that the laboratory delivered over 1 ms late.
    packets: u64,
    late: u64,
    failure: Option<String>,
}

impl Outcome {
    fn of(cell: &Cell, samples: Result<samples::Samples>) -> Self {
        let mut outcome = Self {
            cell: cell.clone(),
            p50_ms: None,
            p99_ms: None,
            max_ms: None,
            received: 0,
            missing: 0,
            reconnects: 0,
            packets: 0,
            late: 0,
            failure: None,
        };
        match samples {
            Ok(mut samples) => {
                let mut at = |share| samples.quantile(share).map(|time| time.as_secs_f64() * 1000.0);
                (outcome.p50_ms, outcome.p99_ms, outcome.max_ms) = (at(0.5), at(0.99), at(1.0));
                outcome.received = samples.received();
                outcome.missing = samples.missing();
                outcome.reconnects = samples.transport_changes;
                (outcome.packets, outcome.late) = (samples.packets, samples.late);
            }
            Err(error) => outcome.failure = Some(format!("{error:#}")),
        }
        outcome
    }

    fn line(&self) -> String {
        match &self.failure {
            Some(failure) => format!("{}: FAILED: {failure}", self.cell),
            None => format!(
                "{}: p50 {} ms, p99 {} ms, {} of {} packets late{}",
                self.cell,
                figure(self.p50_ms),
                figure(self.p99_ms),
                self.late,
                self.packets,
                if self.missing > 0 { format!(", {} MISSING", self.missing) } else { String::new() }
            ),
        }
    }
}

/// Everything, for people by `Display`, for programs as JSON.
#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    machine: Machine,
    work: Work,
    results: Vec<Outcome>,
}

impl Report {
    /// The outcome of the same conditions on another carrier, or with another flood.
    fn find(&self, like: &Cell, carrier: Carrier, flood: u64) -> Option<&Outcome> {
        self.results.iter().find(|result| {
            let cell = &result.cell;
            (cell.carrier, cell.flood) == (carrier, flood)
                && (cell.loss, cell.rtt_ms, cell.channels) == (like.loss, like.rtt_ms, like.channels)
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "\n{}\n", self.machine.summary())?;
        let Work { per_second, payload, seconds, rate } = &self.work;
        writeln!(
            f,
            "Seed {}. {per_second} publications/s over all channels for {seconds} s, {payload} B each; link {} Mbit/s. \
             Publish-to-application latency, milliseconds; x: ratio to WebSocket under the same conditions.\n",
            self.seed,
            rate / 1_000_000
        )?;
        let mut table = Table::new(&[
            "loss",
            "RTT",
            "channels",
            "transport",
            "p50",
            "p99",
            "p99 x",
            "max",
            "missing",
            "reconnects",
        ]);
        for result in self.results.iter().filter(|result| result.cell.flood == 0) {
            let cell = &result.cell;
            let baseline = self.find(cell, Carrier::WebSocket, 0).and_then(|baseline| baseline.p99_ms);
            let ratio = result.p99_ms.zip(baseline).map(|(p99, baseline)| p99 / baseline);
            table.row(vec![
                cell.loss.to_string(),
                format!("{} ms", cell.rtt_ms),
                cell.channels.to_string(),
                cell.carrier.name().to_owned(),
                figure(result.p50_ms),
                figure(result.p99_ms),
                ratio.map_or_else(String::new, short),
                figure(result.max_ms),
                result.missing.to_string(),
                result.reconnects.to_string(),
            ]);
        }
        writeln!(f, "{table}")?;
        let flooded: Vec<&Outcome> = self.results.iter().filter(|result| result.cell.flood > 0).collect();
        if !flooded.is_empty() {
            writeln!(
                f,
                "One further channel flooded; the others' latency, x: ratio to the run without the flood.\n"
            )?;
            let mut table =
                Table::new(&["flood", "RTT", "channels", "transport", "p50", "p99", "p99 x", "missing"]);
            for result in flooded {
                let cell = &result.cell;
                let calm = self.find(cell, cell.carrier, 0).and_then(|calm| calm.p99_ms);
                let ratio = result.p99_ms.zip(calm).map(|(p99, calm)| p99 / calm);
                table.row(vec![
                    format!("{} kB/s", cell.flood / 1000),
                    format!("{} ms", cell.rtt_ms),
                    cell.channels.to_string(),
                    cell.carrier.name().to_owned(),
                    figure(result.p50_ms),
                    figure(result.p99_ms),
                    ratio.map_or_else(String::new, short),
                    result.missing.to_string(),
                ]);
            }
            writeln!(f, "{table}")?;
        }
        for failure in self.results.iter().filter(|result| result.failure.is_some()) {
            writeln!(f, "{}", failure.line())?;
        }
        Ok(())
    }
}

fn figure(millis: Option<f64>) -> String {
    millis.map_or_else(|| "-".to_owned(), short)
}

const FLOOD_RTT: u64 = 50;
const FLOOD_CHANNELS: u32 = 64;
