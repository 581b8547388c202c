//! Every partition handed over in order, under load: how long nothing is delivered meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tidegate_protocol::ChannelName;
use tidegate_protocol::placement::partition_of;
use tokio::time::sleep;

use super::gaps::Gaps;
use super::load::Refusals;
use super::stage::Stage;
use super::{BOUNDS, Cast, PATIENCE, Round, sorted};
use crate::checker::{Reader, Recorder};
use crate::wait::within;

/// How everything was handed over.
#[derive(Debug, Clone, Serialize)]
pub struct HandOvers {
    /// One for each time that a partition changed its owner.
    pub moves: Vec<Moved>,
    /// The longest time without a delivery while its partition moved, of each subscription, milliseconds, by size. On each
    /// channel something was published every [`Self::every_ms`].
    pub gaps_ms: Vec<f64>,
    /// The slowest delivery while its partition moved, from the publisher to the subscriber, of each subscription.
    pub slowest_ms: Vec<f64>,
    /// Between two publications of a channel.
    pub every_ms: f64,
    /// Publishes.
    pub published: u64,
    /// Of those: refused, or not answered. None may be.
    pub refusals: u64,
    /// What should not have happened.
    pub violations: Vec<String>,
}

/// A partition that changed its owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Moved {
    /// Which one.
    pub partition: usize,
    /// From where.
    pub from: String,
    /// To where.
    pub to: String,
}

impl HandOvers {
    /// The gap that is to be below 200 ms.
    pub fn p99_ms(&self) -> f64 {
        Round::quantile(&self.gaps_ms, 0.99)
    }
}

/// Tells each core in turn to end, and starts it again, `times` over, until each partition has moved at least once.
///
/// # Errors
/// When the cluster cannot be started, or does not settle.
pub async fn hand_everything_over(partitions: u32, rate: f64, times: usize) -> Result<HandOvers> {
    let mut stage = Stage::start(partitions).await?;
    let cast = Cast::join(&stage).await?;
    let (gaps, refusals) = (Gaps::new(), Refusals::default());
    let recorder = Recorder::observed(gaps.observer());
    let (channels, partition_of_channel) = one_for_each(partitions)?;
    let readers = cast.subscribe(&recorder, &channels).await?;
    let writers = cast.publish(&recorder, &channels, rate, &refusals);
    gaps.begin(recorder.now(), readers.iter().map(Reader::view));
    gaps.all_resumed(PATIENCE).await?;

    let (mut moves, mut between, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..times * stage.cluster.cores.len() {
        let index = number % stage.cluster.cores.len();
        for leaves in [true, false] {
            let before = stage.until_still().await?;
            gaps.begin(recorder.now(), readers.iter().map(Reader::view));
            let core = &mut stage.cluster.cores[index];
            if leaves {
                let status = core.terminate().await?;
                ensure!(status.success(), "{} ended with {status}: {}", core.name(), core.log());
            } else {
                core.start_again().await?;
            }
            let after = stage.until_still().await?;
            // What was published last before it was still is to be seen.
            sleep(AFTERWARDS).await;
            let moved = moved(&before, &after);
            let waits = gaps.waits();
            for (number, reader) in readers.iter().enumerate() {
                let partition = partition_of_channel[number % channels.len()];
                if moved.iter().any(|moved| moved.partition == partition)
                    && let Some(waits) = waits.get(&reader.view())
                {
                    between.push(waits.longest);
                    slowest.push(waits.slowest);
                }
            }
            moves.extend(moved);
        }
    }
    let moved: BTreeSet<usize> = moves.iter().map(|moved| moved.partition).collect();
    ensure!(moved.len() == partitions as usize, "only these have moved: {moved:?}");

    for writer in writers {
        writer.stop(PATIENCE).await?;
    }
    let late = recorder.settle(&cast.readers[0], &channels, &readers).await?;
    let report = recorder.report(&BOUNDS);
    let mut violations = report.broken();
    violations.extend(late);
    Ok(HandOvers {
        moves,
        gaps_ms: sorted(between.into_iter()),
        slowest_ms: sorted(slowest.into_iter()),
        every_ms: 1_000.0 * channels.len() as f64 / rate,
        published: report.publishes,
        refusals: refusals.count(),
        violations,
    })
}

impl Stage {
    /// Waits until every partition stays where it is for a while; the owners.
    async fn until_still(&self) -> Result<Vec<String>> {
        let still = async {
            let (mut owners, mut times) = (self.owners().await?, 0);
            while times < LOOKS {
                let now = self.owners().await?;
                times = if now == owners { times + 1 } else { 0 };
                owners = now;
            }
            anyhow::Ok(owners)
        };
        within(PATIENCE, "every partition stays where it is", still).await?
    }

    async fn owners(&self) -> Result<Vec<String>> {
        self.cluster.until_served().await?;
        sleep(BETWEEN_LOOKS).await;
        let owners: Option<Vec<String>> = self.cluster.owners().await?.into_iter().collect();
        owners.context("a partition has no owner")
    }
}

fn moved(before: &[String], after: &[String]) -> Vec<Moved> {
    let pairs = before.iter().zip(after).enumerate().filter(|(_, (from, to))| from != to);
    pairs.map(|(partition, (from, to))| Moved { partition, from: from.clone(), to: to.clone() }).collect()
}

/// A channel in each partition; and which partition each channel is in.
fn one_for_each(partitions: u32) -> Result<(Vec<String>, Vec<usize>)> {
    let count = u16::try_from(partitions)?;
    let mut found: BTreeMap<u16, String> = BTreeMap::new();
    for number in 0.. {
        let channel = format!("moving:{number}");
        found.entry(partition_of(&ChannelName::new(&channel)?, count)).or_insert(channel);
        if found.len() == usize::from(count) {
            break;
        }
    }
    Ok(found.into_iter().map(|(partition, channel)| (channel, usize::from(partition))).unzip())
}

/// Longer than a node waits before it tries a hand-over again.
const LOOKS: u32 = 15;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
const AFTERWARDS: Duration = Duration::from_millis(500);
