//! What was measured, for people and for programs.

use std::fmt;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::load::{PER_SECOND, Quantiles};
use super::{Engine, FEW, Kind};
use crate::bench::machine::Machine;
use crate::bench::proc;
use crate::bench::report::{Table, short};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) cases: Vec<Figures>,
    pub(super) failures: Vec<String>,
}

/// One node with so many channels, and one with few beside it.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) engine: Engine,
    pub(super) kind: Kind,
    pub(super) channels: u64,
    pub(super) filled_per_second: f64,
    pub(super) empty_rss_bytes: u64,
    /// RSS above that of the empty node, for each channel: right after the last one was published to.
    pub(super) bytes_filled: f64,
    /// The same once histories are as old as they may get, and nothing happens.
    pub(super) bytes_at_rest: f64,
    pub(super) latency: Beside,
    /// On a disk: what starting again takes.
    pub(super) restarts: Vec<Restart>,
    /// While snapshots are written one after the other.
    pub(super) latency_in_snapshots: Option<Beside>,
    pub(super) snapshots: Option<Snapshots>,
}

/// Publishing in turns to a node with few channels and to the one that is full.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Beside {
    pub(super) few: Quantiles,
    pub(super) full: Quantiles,
}

/// What one start took.
#[derive(Debug, Serialize)]
pub(super) struct Restart {
    pub(super) name: &'static str,
    /// From the signal to the end of the process.
    pub(super) end_seconds: f64,
    /// From the start of the next one to its being ready.
    pub(super) ready_seconds: f64,
    /// RSS above that of the empty node, for each channel.
    pub(super) bytes: f64,
    pub(super) disk_bytes: u64,
}

/// All partitions, once each.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Snapshots {
    pub(super) count: f64,
    /// From its beginning to its end, one on average: they are written beside the publishing.
    pub(super) seconds: f64,
    pub(super) bytes: f64,
}

impl Report {
    /// Fails where the machine has no memory for so many, going by what was measured with fewer.
    pub(super) fn room(&self, engine: Engine, kind: Kind, channels: u64) -> Result<()> {
        let before = self.cases.iter().rev();
        let mut before = before.filter(|case| (case.engine, case.kind) == (engine, kind));
        let each = before.next().map_or(USUAL_BYTES, |case| case.bytes_filled.max(case.bytes_at_rest));
        let needed = each * 1.2 * proc::to_float(channels);
        let available = proc::to_float(proc::available_bytes()?);
        ensure!(
            needed + SPARE_BYTES < available,
            "skipped: it needs about {} GiB and {} are available",
            short(needed / GIB),
            short(available / GIB)
        );
        Ok(())
    }

    pub(super) fn print(&self) {
        println!("\n{}\n", self.machine.summary());
        println!(
            "Names of 21 bytes, one publication of 100 bytes to each; idle: its age is over, kept: it is there. Bytes: RSS above\n\
             the empty node's. Latency: {} publishes a second, in turns with a node that holds {} channels.\n",
            PER_SECOND,
            grouped(FEW)
        );
        let mut table = Table::new(&[
            "engine",
            "channels",
            "",
            "filled, k/s",
            "B each, filled",
            "B each, at rest",
            "p50 ms",
            "x",
            "p99 ms",
            "x",
            "max ms",
        ]);
        for case in &self.cases {
            let mut cells = vec![
                case.engine.name().to_owned(),
                grouped(case.channels),
                case.kind.name().to_owned(),
                short(case.filled_per_second / 1e3),
                short(case.bytes_filled),
                short(case.bytes_at_rest),
            ];
            cells.extend(case.latency.cells());
            table.row(cells);
        }
        print!("{table}");
        self.print_restarts();
        for failure in &self.failures {
            println!("\n{failure}");
        }
    }

    fn print_restarts(&self) {
        let mut starts =
            Table::new(&["channels", "", "after", "end, s", "start to ready, s", "B each", "store, MiB"]);
        let mut snapshots = Table::new(&[
            "channels",
            "",
            "snapshots, MiB",
            "B a channel",
            "s a partition",
            "p50 ms",
            "x",
            "p99 ms",
            "x",
            "max ms",
        ]);
        for case in &self.cases {
            let name = [grouped(case.channels), case.kind.name().to_owned()];
            for restart in &case.restarts {
                let figures = [
                    restart.name.to_owned(),
                    short(restart.end_seconds),
                    short(restart.ready_seconds),
                    short(restart.bytes),
                    short(proc::to_float(restart.disk_bytes) / MIB),
                ];
                starts.row(name.iter().cloned().chain(figures).collect());
            }
            if let Some((written, latency)) = case.snapshots.zip(case.latency_in_snapshots) {
                let figures = [
                    short(written.bytes / MIB),
                    short(written.bytes / proc::to_float(case.channels)),
                    short(written.seconds),
                ];
                snapshots.row(name.iter().cloned().chain(figures).chain(latency.cells()).collect());
            }
        }
        if self.cases.iter().any(|case| case.engine == Engine::Local) {
            println!("\nStarting again, engine local:\n\n{starts}");
            print!("Publishing while all partitions are snapshot:\n\n{snapshots}");
        }
    }
}

impl Beside {
    fn cells(&self) -> [String; 5] {
        let Self { few, full } = self;
        [
            short(full.p50_ms),
            short(full.p50_ms / few.p50_ms),
            short(full.p99_ms),
            short(full.p99_ms / few.p99_ms),
            short(full.max_ms),
        ]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes each at rest", short(self.bytes_at_rest))?;
        write!(
            f,
            ", p99 {} ms (few: {} ms)",
            short(self.latency.full.p99_ms),
            short(self.latency.few.p99_ms)
        )?;
        for restart in &self.restarts {
            write!(f, ", {}: ready in {} s", restart.name, short(restart.ready_seconds))?;
        }
        Ok(())
    }
}

/// `16,000,000`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

/// Before anything was measured.
const USUAL_BYTES: f64 = 400.0;
const SPARE_BYTES: f64 = 1.5 * GIB;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_024.0 * MIB;

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(7, "7"), (1_000, "1,000"), (16_000_000, "16,000,000")] {
            assert_eq!(grouped(number), text);
        }
    }
}
