//! `bench publish`: from publishing on one edge to delivery on that edge and on another, through the cores and the
//! engine that they write to before anybody is told; beside what that engine takes alone.
//!
//! Real processes all: edges, cores, NATS servers. Both sides take turns in slices of a second, on one load generator
//! with one thread, so that whatever else the machine does meets both.

mod books;
mod clients;
mod figures;
mod raw;

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use tidegate_transport::clock;
use tokio::time::{sleep_until, timeout};

use self::books::{Books, Done, Takings};
use self::clients::Clients;
use self::figures::{Case, Measured, Report};
use self::raw::Raw;
use super::cli::PublishArgs;
use super::ledger::{Faults, Stopwatch};
use super::machine::Machine;
use super::proc;
use super::report::{Progress, write_json};
use super::shape::Pace;
use crate::cluster::{Cluster, ClusterSpec, HOME};
use crate::programs;

/// `--engine`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Engine {
    /// One core that keeps nothing
    Memory,
    /// One core that syncs each frame to its disk
    Local,
    /// Two cores and one NATS server
    NatsR1,
    /// Two cores and three NATS servers, three replicas
    NatsR3,
}

/// Measures and prints.
pub(super) fn run(arguments: &PublishArgs) -> Result<ExitCode> {
    let plan = Plan::of(arguments);
    let mut machine = Machine::look(&programs::tidegate()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut progress = Progress::new(plan.engines.len() * plan.paces.len() * plan.rounds);
    let mut cases = Vec::new();
    for &engine in &plan.engines {
        let measured = runtime.block_on(plan.measure(engine, &mut progress, &mut cases));
        // The other engines can still be measured.
        if let Err(error) = measured {
            let text = format!("{engine}: FAILED: {error:#}");
            progress.end(&text);
            cases.push(Case::failed(engine, text));
        }
    }
    progress.finish();
    machine.load_after = proc::load_average();
    let report = Report {
        machine,
        payload: plan.payload,
        channels: plan.channels,
        partitions: plan.partitions,
        workers: plan.workers,
        synced: plan.synced,
        seconds: plan.length.as_secs_f64(),
        settings: plan.settings.clone(),
        cases,
    };
    let file = write_json("publish", arguments.json.as_deref(), &report)?;
    report.print();
    println!("\nResult file: {}", file.display());
    let sound = report.is_sound();
    if !sound {
        eprintln!("error: a run failed, or publications were lost, repeated or reordered: see above");
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Plan {
    engines: Vec<Engine>,
    paces: Vec<Pace>,
    payload: usize,
    channels: usize,
    partitions: u32,
    workers: u8,
    synced: bool,
    settings: Vec<String>,
    length: Duration,
    rounds: usize,
}

impl Plan {
    fn of(arguments: &PublishArgs) -> Self {
        let mut paces = vec![Pace::Window(1)];
        paces.extend(arguments.rate.iter().filter(|rate| **rate > 0).map(|rate| Pace::Rate(*rate as usize)));
        paces.extend((arguments.window > 0).then_some(Pace::Window(arguments.window as usize)));
        if arguments.quick {
            paces.truncate(1);
        }
        Self {
            engines: arguments.engine.clone(),
            paces,
            payload: arguments.payload as usize,
            channels: arguments.channels as usize,
            partitions: arguments.partitions.into(),
            workers: arguments.workers,
            synced: arguments.synced,
            settings: arguments.settings.clone(),
            length: Duration::from_secs(if arguments.quick { 1 } else { arguments.seconds.into() }),
            rounds: if arguments.quick { 1 } else { arguments.rounds as usize },
        }
    }

    /// A cluster of its own for each engine.
    async fn measure(&self, engine: Engine, progress: &mut Progress, cases: &mut Vec<Case>) -> Result<()> {
        let watch = Stopwatch::start();
        let cluster = Cluster::start(self.cluster(engine)).await.context("starting the cluster")?;
        let clients = Clients::connect(&cluster.edges, PUBLISHERS, self.channels, watch).await?;
        let raw = match engine {
            Engine::Memory => Raw::loopback(self.payload, watch).await?,
            Engine::Local => Raw::store(watch)?,
            Engine::NatsR1 | Engine::NatsR3 => {
                let nats = cluster.nats.as_ref().context("no NATS server was started")?;
                Raw::streams(&nats.urls(), self.partitions as usize, engine.replicas(), watch).await?
            }
        };
        let side = |way, edges| {
            let books = Books::new(edges, self.channels)?;
            anyhow::Ok(Side { way, books, watch, payload: self.payload })
        };
        let mut raw = side(Way::Raw(Box::new(raw)), 0)?;
        let mut gateway = side(Way::Gateway(clients), cluster.edges.len())?;
        for &pace in &self.paces {
            let mut case = Case::new(engine, pace);
            for side in [&mut raw, &mut gateway] {
                side.slice(pace, WARM_UP).await?;
                side.books.take()?;
            }
            for round in 1..=self.rounds {
                let what = format!("{engine}, {}, round {round} of {}", figures::name(pace), self.rounds);
                progress.begin(what.clone());
                let measured = self.round(pace, round, [&mut raw, &mut gateway], progress).await;
                let measured = measured.with_context(|| what.clone())?;
                progress.end(&format!("{what}: {}", measured.line()));
                case.rounds.push(measured);
            }
            cases.push(case);
        }
        let faults = gateway.books.faults();
        if let Some(case) = cases.last_mut().filter(|_| faults != Faults::default()) {
            case.failure = Some(format!("{engine}: FAILED: {faults:?}"));
        }
        Ok(())
    }

    /// Both sides in turns; who begins changes from round to round.
    async fn round(
        &self,
        pace: Pace,
        round: usize,
        sides: [&mut Side; 2],
        progress: &Progress,
    ) -> Result<Measured> {
        let slices = u32::try_from(self.length.as_secs()).unwrap_or(1).max(1);
        let slice = self.length / slices;
        let mut sums: [Option<Takings>; 2] = [None, None];
        let first = round % 2;
        for turn in 0..slices * 2 {
            let index = (first + turn as usize) % 2;
            let side = &mut *sides[index];
            side.books.measure(true);
            side.slice(pace, slice).await?;
            side.books.measure(false);
            let takings = side.books.take()?;
            match &mut sums[index] {
                Some(sum) => sum.add(&takings)?,
                sum @ None => *sum = Some(takings),
            }
            progress.part(f64::from(turn + 1) / f64::from(slices * 2));
        }
        let [Some(raw), Some(gateway)] = sums else { anyhow::bail!("a side was not measured") };
        Ok(Measured::new(&raw, &gateway, self.length))
    }

    fn cluster(&self, engine: Engine) -> ClusterSpec {
        let alone = ClusterSpec { nats: 0, cores: 1, ..ClusterSpec::default() };
        let spec = match engine {
            Engine::Memory => ClusterSpec { engine: "memory", ..alone },
            Engine::Local => ClusterSpec { engine: "local", ..alone },
            Engine::NatsR1 | Engine::NatsR3 => {
                let replicas = engine.replicas();
                ClusterSpec { nats: replicas, replicas, synced: self.synced, ..ClusterSpec::default() }
            }
        };
        let (edges, settings) = (EDGES.to_vec(), self.settings.clone());
        let config = format!("[node]\nworkers = {}\n", self.workers);
        ClusterSpec { partitions: self.partitions, edges, settings, config, ..spec }
    }
}

impl Engine {
    fn replicas(self) -> usize {
        if self == Self::NatsR3 { 3 } else { 1 }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Local => "local",
            Self::NatsR1 => "nats R1",
            Self::NatsR3 => "nats R3",
        })
    }
}

/// What publications go through, and its books.
struct Side {
    way: Way,
    books: Books,
    watch: Stopwatch,
    payload: usize,
}

enum Way {
    Raw(Box<Raw>),
    Gateway(Clients),
}

impl Side {
    /// Publishes for a while, then waits for what is under way. What comes late counts for latency.
    async fn slice(&mut self, pace: Pace, length: Duration) -> Result<()> {
        let begin = clock::now();
        let mut due = Duration::ZERO;
        loop {
            let passed = begin.elapsed();
            if passed >= length {
                break;
            }
            let next = match pace {
                Pace::Window(window) | Pace::Burst(window) => {
                    while self.books.outstanding() < window {
                        self.publish(pace)?;
                    }
                    length
                }
                Pace::Rate(rate) => {
                    while due <= passed {
                        self.publish(pace)?;
                        due += Duration::from_secs(1) / u32::try_from(rate)?;
                    }
                    due.min(length)
                }
            };
            // Biased: what has come is entered before the next is published, and publishing happens above all the same.
            tokio::select! {
                biased;
                done = self.way.next() => self.books.enter(done?),
                () = sleep_until((begin + next).into()) => {}
            }
        }
        while self.books.outstanding() > 0 {
            match timeout(SILENCE, self.way.next()).await {
                Ok(done) => self.books.enter(done?),
                // Lost: the books say so at the end.
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn publish(&mut self, pace: Pace) -> Result<()> {
        let sent = self.watch.nanos();
        let order = self.books.publish(sent);
        match &self.way {
            Way::Raw(raw) => raw.publish(order, sent, self.payload),
            Way::Gateway(clients) => {
                // What a session may have in flight is bounded, and more than one is lag at a rate.
                let publishers = if pace == Pace::Window(1) { 1 } else { PUBLISHERS };
                clients.publish(order, sent, self.payload, publishers)
            }
        }
    }
}

impl Way {
    async fn next(&mut self) -> Result<Done> {
        match self {
            Self::Raw(raw) => raw.next().await,
            Self::Gateway(clients) => clients.next().await,
        }
    }
}

/// Publications are made at the first one.
const EDGES: [&str; 2] = [HOME, "us"];
/// Connections that publish where more than one publication is under way.
const PUBLISHERS: usize = 8;
/// Publishing before anything is measured, for each pace.
const WARM_UP: Duration = Duration::from_secs(1);
/// What has not come after such a silence is lost.
const SILENCE: Duration = Duration::from_secs(10);
