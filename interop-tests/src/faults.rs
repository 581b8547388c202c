//! Seeded rounds of faults: three cores, three NATS servers and two edges under load, of which something is killed,
//! stopped, cut off or restarted, round by round. A [`crate::checker`] judges each round, and beside them all a few
//! channels that live through every one.

mod gaps;
mod handover;
mod load;
mod schedule;
mod stage;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tidegate_client::{Client, Epoch, Offset, Position};
use tidegate_transport::clock;
use tokio::time::sleep;

use self::gaps::Gaps;
use self::load::{Refusals, by_api, by_client};
use self::stage::Stage;
use crate::checker::{Bounds, Load, Reader, Recorder, Report, Writer};

pub use self::handover::{HandOvers, Moved, hand_everything_over};
pub use self::schedule::{Fault, FaultKind, Schedule};

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many rounds.
    pub rounds: u32,
    /// Decides everything that chance decides.
    pub seed: u64,
    /// What goes wrong.
    pub kinds: Vec<FaultKind>,
    /// Channels of a round, over all partitions, each with a subscriber on either edge.
    pub channels: usize,
    /// Publishes a second, over all channels.
    pub rate: f64,
    /// `core.partitions`.
    pub partitions: u32,
    /// Faults are as short as they may be.
    pub quick: bool,
}

impl Default for Plan {
    fn default() -> Self {
        let kinds = FaultKind::ALL.to_vec();
        Self { rounds: 50, seed: 1, kinds, channels: 240, rate: 300.0, partitions: 12, quick: false }
    }
}

/// What a round came to.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// From 1.
    pub number: u32,
    /// Of the run.
    pub seed: u64,
    /// What went wrong.
    pub fault: Fault,
    /// That, for people.
    pub what: String,
    /// From the fault until a subscriber got something that was published after it began, milliseconds, by size. Of a cut
    /// link from the healing on.
    pub resumed_ms: Vec<f64>,
    /// The longest time without a delivery, of each subscription, milliseconds, by size.
    pub gaps_ms: Vec<f64>,
    /// Publications that were published.
    pub published: u64,
    /// Of those, acknowledged.
    pub acknowledged: u64,
    /// Attempts that were refused or not answered, and made again.
    pub refusals: u64,
    /// To all subscribers.
    pub delivered: u64,
    /// Times that a subscriber went on without a gap after its own connection was lost.
    pub recovered: u64,
    /// How long it all took.
    pub took: Duration,
    /// What should not have happened.
    pub violations: Vec<String>,
}

impl Round {
    /// The share of `figures`, which are in order.
    pub fn quantile(figures: &[f64], share: f64) -> f64 {
        let last = figures.len().saturating_sub(1);
        figures.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

/// Runs the plan, and tells each round as it ends. What is broken off has a violation that says why, and is the last.
///
/// # Errors
/// When the cluster cannot be started.
pub async fn run(plan: &Plan, mut tell: impl FnMut(&Round)) -> Result<Vec<Round>> {
    let mut stage = Stage::start(plan.partitions).await?;
    let cast = Cast::join(&stage).await?;
    let long = Long::begin(&cast).await?;
    let mut rounds = Vec::new();
    let schedule = Schedule::new(plan.seed, &plan.kinds, plan.quick);
    for (number, fault) in (1..=plan.rounds).zip(schedule) {
        let began = clock::now();
        let mut round = Round::new(number, plan.seed, fault);
        if let Err(error) = play(plan, &mut stage, &cast, &mut round).await {
            round.violations.push(format!("broken off: {error:#}"));
        }
        let is_last = number == plan.rounds || round.is_broken_off();
        if is_last || !round.violations.is_empty() {
            round.violations.extend(long.recorder.report(&BOUNDS).broken());
        }
        round.took = clock::now().saturating_duration_since(began);
        tell(&round);
        rounds.push(round);
        if is_last {
            break;
        }
    }
    if let Some(last) = rounds.last_mut().filter(|last| !last.is_broken_off()) {
        let violations = long.end(&cast).await.unwrap_or_else(|error| vec![format!("{error:#}")]);
        if !violations.is_empty() {
            last.violations.extend(violations.into_iter().map(|text| format!("over all rounds: {text}")));
            tell(last);
        }
    }
    Ok(rounds)
}

/// One round: load, the fault, load again, and the verdict.
async fn play(plan: &Plan, stage: &mut Stage, cast: &Cast, round: &mut Round) -> Result<()> {
    let fault = round.fault;
    let (gaps, refusals) = (Gaps::new(), Refusals::default());
    let recorder = Recorder::observed(gaps.observer());
    let channels: Vec<String> =
        (0..plan.channels).map(|channel| format!("room:{}-{channel}", round.number)).collect();
    let readers = cast.subscribe(&recorder, &channels).await?;
    let writers = cast.publish(&recorder, &channels, plan.rate, &refusals);
    let views = || readers.iter().map(Reader::view);
    gaps.begin(recorder.now(), views());
    gaps.all_resumed(PATIENCE).await.context("before the fault")?;
    sleep(fault.steady).await;

    gaps.begin(recorder.now(), views());
    let injected = clock::now();
    stage.inject(&fault).await.context("the fault")?;
    let ends = injected + fault.lasts;
    let is_a_cut = fault.kind == FaultKind::CutLink;
    if is_a_cut {
        // Whoever is behind it gets nothing until then.
        tokio::time::sleep_until(ends.into()).await;
        stage.heal(&fault).await.context("after the fault")?;
        gaps.begin(recorder.now(), views());
    }
    let resumed = gaps.all_resumed(PATIENCE).await;
    if let Err(error) = &resumed {
        round.violations.push(format!("not delivered to all again: {error:#}"));
    }
    if !is_a_cut {
        tokio::time::sleep_until(ends.into()).await;
        stage.heal(&fault).await.context("after the fault")?;
    }
    if resumed.is_err() {
        // What was wrong may show better now.
        gaps.all_resumed(PATIENCE).await.context("after the fault")?;
    }
    sleep(AFTERWARDS).await;
    for writer in writers {
        writer.stop(PATIENCE).await?;
    }
    let waits = gaps.waits();
    round.resumed_ms = sorted(waits.values().filter_map(|waits| waits.resumed));
    round.gaps_ms = sorted(waits.values().map(|waits| waits.longest));
    let late = recorder.settle(&cast.readers[0], &channels, &readers).await?;
    let report = recorder.report(&BOUNDS);
    round.violations.extend(late.into_iter().map(|late| format!("late: {late}")));
    round.violations.extend(report.broken());
    if fault.kind == FaultKind::HandOver && refusals.count() > 0 {
        round.violations.push(format!("{} publishes were refused", refusals.count()));
    }
    round.published = report.publishes;
    round.acknowledged = report.acknowledged;
    round.delivered = report.deliveries;
    round.recovered = report.recovered;
    round.refusals = refusals.count();
    Ok(())
}

impl Round {
    fn new(number: u32, seed: u64, fault: Fault) -> Self {
        Self {
            number,
            seed,
            fault,
            what: fault.to_string(),
            resumed_ms: Vec::new(),
            gaps_ms: Vec::new(),
            published: 0,
            acknowledged: 0,
            refusals: 0,
            delivered: 0,
            recovered: 0,
            took: Duration::ZERO,
            violations: Vec::new(),
        }
    }

    fn is_broken_off(&self) -> bool {
        self.violations.iter().any(|violation| violation.starts_with("broken off"))
    }
}

impl Report {
    /// What does not hold although the log outlives every fault here: no epoch ends, and nobody misses anything.
    fn broken(&self) -> Vec<String> {
        let mut broken: Vec<String> =
            self.by_kind.iter().map(|(kind, count)| format!("{kind:?}: {count}")).collect();
        broken.extend(
            self.violations.iter().map(|one| format!("{:?} {}: {}", one.kind, one.channel, one.text)),
        );
        for (what, count) in [
            ("epochs ended", self.epoch_changes),
            ("acknowledged in epochs that ended", self.acknowledged_in_past_epochs),
            ("subscribers were told of a gap", self.rebased),
            ("refused for good", self.refused),
            ("never answered", self.unknown),
        ] {
            if count > 0 {
                broken.push(format!("{what}: {count}"));
            }
        }
        broken
    }
}

/// Clients, connected for the whole run. Of each kind one at either edge.
#[derive(Debug)]
struct Cast {
    readers: Vec<Client>,
    publishers: Vec<Client>,
    apis: Vec<std::net::SocketAddr>,
}

impl Cast {
    async fn join(stage: &Stage) -> Result<Self> {
        let (mut readers, mut publishers) = (Vec::new(), Vec::new());
        for (edge, schemes) in [["quic", "wss"], ["wss", "quic"]].into_iter().enumerate() {
            readers.push(stage.client(edge, schemes[0]).await?);
            publishers.push(stage.client(edge, schemes[1]).await?);
        }
        let apis = stage.cluster.edges.iter().map(|edge| edge.addresses.api).collect();
        Ok(Self { readers, publishers, apis })
    }

    /// On either edge, from the beginning of each channel.
    async fn subscribe(&self, recorder: &Recorder, channels: &[String]) -> Result<Vec<Reader>> {
        let mut readers = Vec::new();
        for (client, name) in self.readers.iter().zip(EDGES) {
            for (number, channel) in channels.iter().enumerate() {
                let beginning = Position::new(Epoch::default(), Offset(0));
                let asked = (number % 2 == 0).then_some(beginning);
                readers.push(recorder.subscribe(name, client, channel, asked).await?);
            }
        }
        Ok(readers)
    }

    /// Over both APIs and both clients, each a quarter of the rate.
    fn publish(
        &self,
        recorder: &Recorder,
        channels: &[String],
        rate: f64,
        refusals: &Refusals,
    ) -> Vec<Writer> {
        let load = |number: usize| {
            // Not in step: each begins elsewhere.
            let mut channels = channels.to_vec();
            let quarter = channels.len() / 4;
            channels.rotate_left(quarter * number);
            Load { channels, rate: rate / 4.0, size: PAYLOAD, in_flight: IN_FLIGHT }
        };
        let mut writers = Vec::new();
        for (number, api) in self.apis.iter().copied().enumerate() {
            let (refusals, name) = (refusals.clone(), format!("the API of {}", EDGES[number]));
            writers.push(recorder.publish_by(
                &name,
                number as u32,
                load(number),
                move |channel, payload, key| by_api(api, channel, payload, key, refusals.clone()),
            ));
        }
        for (number, client) in self.publishers.iter().enumerate() {
            let (refusals, client) = (refusals.clone(), client.clone());
            let number = number + self.apis.len();
            let name = format!("a client of {}", EDGES[number - self.apis.len()]);
            writers.push(recorder.publish_by(
                &name,
                number as u32,
                load(number),
                move |channel, payload, key| {
                    by_client(client.clone(), channel, payload, key, refusals.clone())
                },
            ));
        }
        writers
    }
}

/// Channels that are subscribed to and published on from the first round to the last.
struct Long {
    recorder: Recorder,
    channels: Vec<String>,
    readers: Vec<Reader>,
    writers: Vec<Writer>,
}

impl Long {
    async fn begin(cast: &Cast) -> Result<Self> {
        let recorder = Recorder::new();
        let channels: Vec<String> = (0..LONG).map(|channel| format!("long:{channel}")).collect();
        let readers = cast.subscribe(&recorder, &channels).await?;
        let writers = cast.publish(&recorder, &channels, LONG as f64, &Refusals::default());
        Ok(Self { recorder, channels, readers, writers })
    }

    async fn end(self, cast: &Cast) -> Result<Vec<String>> {
        for writer in self.writers {
            writer.stop(PATIENCE).await?;
        }
        let late = self.recorder.settle(&cast.readers[1], &self.channels, &self.readers).await?;
        let mut broken = self.recorder.report(&BOUNDS).broken();
        broken.extend(late.into_iter().map(|late| format!("late: {late}")));
        Ok(broken)
    }
}

/// Milliseconds, by size.
fn sorted(micros: impl Iterator<Item = u64>) -> Vec<f64> {
    let mut all: Vec<u64> = micros.collect();
    all.sort_unstable();
    all.into_iter().map(|micros| micros as f64 / 1_000.0).collect()
}

/// By kind: how many rounds, and all waits in order.
pub fn by_kind<'a>(rounds: impl IntoIterator<Item = &'a Round>) -> BTreeMap<FaultKind, (usize, Vec<f64>)> {
    let mut kinds: BTreeMap<FaultKind, (usize, Vec<f64>)> = BTreeMap::new();
    for round in rounds {
        let (count, waits) = kinds.entry(round.fault.kind).or_default();
        *count += 1;
        waits.extend(&round.resumed_ms);
    }
    for (_, waits) in kinds.values_mut() {
        waits.sort_by(f64::total_cmp);
    }
    kinds
}

/// What the cluster keeps of a channel is more than a run publishes on it, and keys are in the log.
const BOUNDS: Bounds = Bounds { kept: 20_000, keys_outlive_epochs: true };
const EDGES: [&str; 2] = ["edge-1", "edge-2"];
const LONG: usize = 24;
const PAYLOAD: usize = 100;
/// Above what the rate makes of the longest outage: nobody waits for a place.
const IN_FLIGHT: usize = 8_192;
/// For everything to go on. Nothing that was promised takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Under load, when all is well again.
const AFTERWARDS: Duration = Duration::from_millis(500);
