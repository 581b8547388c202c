//! `bench channels`.

mod client;
mod figures;
mod load;
mod node;

use std::fmt;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::Serialize;
use tidegate_transport::clock;

use super::cli::ChannelsArgs;
use super::machine::Machine;
use super::proc;
use super::report::{Progress, write_json};
use client::Api;
use figures::{Beside, Figures, Report, Restart, Snapshots, grouped};
use load::{Latencies, fill, scattered, steady};
use node::{Home, Node};

/// What keeps the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Engine {
    /// Nothing: what is measured is the core alone.
    Memory,
    /// The disk.
    Local,
}

/// What is left of a channel's one publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Nothing: its age is over, the numbering goes on.
    Idle,
    /// All of it: 100 bytes.
    Kept,
}

/// Measures and prints.
pub(super) fn run(arguments: &ChannelsArgs) -> Result<ExitCode> {
    let counts = if arguments.quick { vec![50_000] } else { arguments.channels.clone() };
    let (rounds, seconds) = if arguments.quick { (1, 1) } else { (arguments.rounds, arguments.seconds) };
    let machine = Machine::look(&arguments.tidegate);
    let mut report = Report { machine, cases: Vec::new(), failures: Vec::new() };
    let mut progress = Progress::new(counts.len() * arguments.engine.len() * arguments.kind.len());
    for &channels in &counts {
        for &engine in &arguments.engine {
            for &kind in &arguments.kind {
                let case =
                    Bench { arguments, engine, kind, channels, rounds, length: Duration::from_secs(seconds) };
                match report.room(engine, kind, channels).and_then(|()| case.measure(&progress)) {
                    Ok(figures) => {
                        progress.end(&format!("{case}: {figures}"));
                        report.cases.push(figures);
                    }
                    Err(error) => {
                        let text = format!("{case}: FAILED: {error:#}");
                        progress.end(&text);
                        report.failures.push(text);
                    }
                }
            }
        }
    }
    progress.finish();
    report.machine.load_after = proc::load_average();
    let file = write_json("channels", arguments.json.as_deref(), &report)?;
    report.print();
    println!("\nResult file: {}", file.display());
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Bench<'a> {
    arguments: &'a ChannelsArgs,
    engine: Engine,
    kind: Kind,
    channels: u64,
    rounds: u32,
    length: Duration,
}

impl Bench<'_> {
    fn measure(&self, progress: &Progress) -> Result<Figures> {
        let stage = |name: &str| progress.begin(format!("{self}, {name}"));
        let (few_home, home) = (self.home()?, self.home()?);
        let few = few_home.start(&[])?;
        fill(few.api, self.kind, FEW, &mut |_| ())?;
        let node = home.start(&[])?;
        thread::sleep(REST);
        let empty_rss_bytes = node.rss_bytes()?;
        let each = |node: &Node| -> Result<f64> {
            let bytes = node.rss_bytes()?.saturating_sub(empty_rss_bytes);
            Ok(proc::to_float(bytes) / proc::to_float(self.channels))
        };

        stage("filling");
        let began = clock::now();
        fill(node.api, self.kind, self.channels, &mut |done| progress.part(done * 0.4))?;
        let filled_per_second = proc::to_float(self.channels) / began.elapsed().as_secs_f64();
        let bytes_filled = each(&node)?;
        stage("coming to rest");
        self.rest(&node, &mut |done| progress.part(0.4 + done * 0.2))?;
        let bytes_at_rest = each(&node)?;
        stage("publishing beside them");
        let latency = self.beside(&few, &node, |round, _| Ok(round < self.rounds))?;
        let mut figures = Figures {
            engine: self.engine,
            kind: self.kind,
            channels: self.channels,
            filled_per_second,
            empty_rss_bytes,
            bytes_filled,
            bytes_at_rest,
            latency,
            restarts: Vec::new(),
            latency_in_snapshots: None,
            snapshots: None,
        };
        if self.engine == Engine::Memory {
            return Ok(figures);
        }

        progress.part(0.7);
        stage("starting from the log");
        let positions = self.positions(&node)?;
        let end = node.end(Signal::SIGKILL)?;
        let node = home.start(&[SNAPSHOTS])?;
        ensure!(self.positions(&node)? == positions, "channels are not where they were");
        let restart = |name, end: Duration, node: &Node| -> Result<Restart> {
            Ok(Restart {
                name,
                end_seconds: end.as_secs_f64(),
                ready_seconds: node.took.as_secs_f64(),
                bytes: each(node)?,
                disk_bytes: home.disk_bytes()?,
            })
        };
        figures.restarts.push(restart("SIGKILL, log alone", end, &node)?);

        progress.part(0.8);
        stage("publishing while snapshots are written");
        let partitions = f64::from(PARTITIONS);
        let while_writing = self.beside(&few, &node, |round, api| {
            let written = api.metrics()?.get(WRITTEN).copied().unwrap_or(0.0);
            Ok(written < partitions && round < MOST_ROUNDS)
        })?;
        let metrics = node.connect()?.metrics()?;
        let metric = |name: &str| metrics.get(name).copied().with_context(|| format!("no metric {name}"));
        let count = metric(WRITTEN)?;
        ensure!(count >= partitions, "only {count} partitions were snapshot");
        let snapshots = Snapshots {
            count,
            seconds: metric("tidegate_core_snapshot_duration_seconds_sum")? / count,
            bytes: metric("tidegate_core_snapshot_bytes_total")? * partitions / count,
        };

        progress.part(0.9);
        stage("starting from snapshots");
        let positions = self.positions(&node)?;
        let end = node.end(Signal::SIGTERM)?;
        let node = home.start(&[])?;
        ensure!(self.positions(&node)? == positions, "channels are not where they were");
        figures.restarts.push(restart("SIGTERM, snapshots", end, &node)?);
        let end = node.end(Signal::SIGKILL)?;
        let node = home.start(&[])?;
        ensure!(self.positions(&node)? == positions, "channels are not where they were");
        figures.restarts.push(restart("SIGKILL, snapshots", end, &node)?);
        (figures.latency_in_snapshots, figures.snapshots) = (Some(while_writing), Some(snapshots));
        Ok(figures)
    }

    fn home(&self) -> Result<Home> {
        Home::new(&self.arguments.tidegate, self.engine, self.kind)
    }

    /// Until histories are empty that do not last, and a moment longer.
    fn rest(&self, node: &Node, progress: &mut dyn FnMut(f64)) -> Result<()> {
        let mut api = node.connect()?;
        let began = clock::now();
        let mut first = None;
        loop {
            let metrics = api.metrics()?;
            let metric = |name: &str| metrics.get(name).copied().with_context(|| format!("no metric {name}"));
            let (channels, bytes) =
                (metric("tidegate_core_channels")?, metric("tidegate_core_history_bytes")?);
            let wanted = proc::to_float(self.channels);
            ensure!(channels >= wanted, "it holds {channels} channels of {wanted}");
            if bytes == 0.0 || self.kind == Kind::Kept {
                break;
            }
            progress(1.0 - bytes / *first.get_or_insert(bytes));
            ensure!(began.elapsed() < EXPIRED, "{bytes} bytes of history are still held");
            thread::sleep(REST);
        }
        thread::sleep(REST * 3);
        Ok(())
    }

    /// Rounds in turns, as long as `more` says so of how many there were.
    fn beside(
        &self,
        few: &Node,
        full: &Node,
        mut more: impl FnMut(u32, &mut Api) -> Result<bool>,
    ) -> Result<Beside> {
        let mut api = full.connect()?;
        let (mut of_few, mut of_full) = (Latencies::new()?, Latencies::new()?);
        let mut round = 0;
        while more(round, &mut api)? {
            let seed = u64::from(round);
            of_few.add(&steady(few.api, self.kind, FEW, self.length, seed)?)?;
            of_full.add(&steady(full.api, self.kind, self.channels, self.length, seed)?)?;
            round += 1;
        }
        Ok(Beside { few: of_few.quantiles(), full: of_full.quantiles() })
    }

    /// Where some of the channels are.
    fn positions(&self, node: &Node) -> Result<Vec<String>> {
        let mut api = node.connect()?;
        let some = (0..SAMPLES).map(|number| name(self.kind, scattered(number) % self.channels));
        some.map(|name| api.position(&name)).collect()
    }
}

impl fmt::Display for Bench<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} channels, {}", self.engine.name(), grouped(self.channels), self.kind.name())
    }
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Local => "local",
        }
    }
}

impl Kind {
    /// Also the namespace that makes it so.
    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Kept => "kept",
        }
    }
}

/// As long as names are that hold a random identifier. Different for each index.
fn name(kind: Kind, index: u64) -> String {
    format!("{}:{:016x}", kind.name(), scattered(index))
}

/// Channels of the node that latency is compared with.
const FEW: u64 = 1_000;
/// As it is by default.
const PARTITIONS: u32 = 16;
/// Often, so that there is something to measure.
const SNAPSHOTS: &str = "core.snapshot_every=20s";
const WRITTEN: &str = "tidegate_core_snapshots_total";
const MOST_ROUNDS: u32 = 100;
const SAMPLES: u64 = 200;
const REST: Duration = Duration::from_secs(1);
/// A sweep takes minutes.
const EXPIRED: Duration = Duration::from_secs(1_200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_length() {
        for index in [0, 1, 15_999_999] {
            assert_eq!(name(Kind::Idle, index).len(), 21);
        }
    }
}
