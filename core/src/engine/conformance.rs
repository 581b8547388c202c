//! What every engine must do, as one function that each engine's tests call.
//!
//! Cases that need a durable engine (`capabilities().durable`, [`Setup::reopen`]) are the two of `reopening`; the one
//! of a lost tail needs [`Setup::lose_tail`], the one of truncation [`Setup::retained`]. All others run everywhere.

mod leases;
mod log;
mod reopening;
mod snapshots;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::NodeId;
use tokio::time::timeout;

use super::{Claim, ClusterEvent, Engine, LogPosition, NodeRecord, PartitionId, Watch};

/// An engine under test: fresh, with [`PARTITIONS`] partitions and no more.
#[expect(async_fn_in_trait, reason = "only tests implement it, and await it where they are")]
pub trait Setup {
    /// A node's handle.
    fn engine(&self) -> Arc<dyn Engine>;

    /// Another node's handle on the same logs and leases; it may be the same one.
    fn second(&self) -> Arc<dyn Engine>;

    /// Ends all handles and opens what they left. Only for durable engines; the suite holds no handle meanwhile.
    async fn reopen(&mut self);

    /// Takes away the frames behind `keep`, as a disk that lied would have; false where that cannot be done. The suite
    /// holds no handle meanwhile.
    async fn lose_tail(&mut self, partition: PartitionId, keep: LogPosition) -> bool;

    /// How many bytes of a log are kept, if the engine drops old frames by itself.
    fn retained(&self) -> Option<usize>;
}

/// How many partitions a [`Setup`] has: each case has its own.
pub const PARTITIONS: u16 = 16;

/// Runs the suite.
pub async fn run(setup: &mut impl Setup) {
    let mut fresh = (0..PARTITIONS).map(PartitionId);
    let mut fresh = || fresh.next().expect("one for each case");

    let handle = setup.engine();
    let engine = &*handle;
    log::frames_come_back_in_order(engine, fresh()).await;
    log::identical_bytes_are_stored_once(engine, fresh()).await;
    log::oversized_frames_are_refused(engine, fresh()).await;
    log::unknown_partitions_are_refused(engine).await;
    log::partitions_do_not_mix(engine, fresh(), fresh()).await;
    log::a_zombie_is_fenced(engine, &*setup.second(), fresh()).await;
    log::lost_acknowledgements_store_nothing_twice(setup.engine(), fresh()).await;

    snapshots::a_snapshot_comes_back(engine, fresh()).await;
    snapshots::a_newer_one_takes_its_place(engine, fresh()).await;
    snapshots::a_zombies_pieces_are_refused(engine, &*setup.second(), fresh()).await;
    if let Some(bytes) = setup.retained() {
        snapshots::truncation_is_told(engine, fresh(), bytes).await;
    }

    leases::names_are_taken_until_their_node_leaves(engine, &*setup.second()).await;
    leases::a_watch_begins_with_everything(engine, &*setup.second(), fresh()).await;
    leases::a_lease_that_is_not_renewed_ends(engine, &*setup.second()).await;
    leases::a_partition_is_handed_over_in_order(engine, &*setup.second(), fresh()).await;

    drop(handle);
    let partition = fresh();
    reopening::a_lost_tail_changes_the_epoch(setup, partition).await;
    if setup.engine().capabilities().durable {
        reopening::what_was_acknowledged_is_kept(setup, fresh()).await;
        reopening::an_append_that_was_cut_off_is_stored_once_or_not(setup, fresh()).await;
    }
}

/// All frames from `from` on.
async fn read(engine: &dyn Engine, partition: PartitionId, from: u64) -> Vec<Bytes> {
    let (mut next, mut frames) = (LogPosition(from), Vec::new());
    loop {
        let page = engine.replay(partition, next).await.expect("readable");
        if page.is_empty() {
            return frames;
        }
        for (position, frame) in page {
            assert_eq!(position, next);
            next = next.next();
            frames.push(frame);
        }
    }
}

/// Reads on until `wanted` says that it has seen what it wants.
async fn until(watch: &mut dyn Watch, what: &str, mut wanted: impl FnMut(&ClusterEvent) -> bool) {
    let seen = timeout(PATIENCE, async { while !wanted(&watch.next().await.expect("the watch holds")) {} });
    assert!(seen.await.is_ok(), "never told: {what}");
}

fn frame(n: u64) -> Bytes {
    Bytes::from(format!("frame {n}"))
}

fn frames(numbers: impl IntoIterator<Item = u64>) -> Vec<Bytes> {
    numbers.into_iter().map(frame).collect()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name)
}

fn record(name: &str) -> NodeRecord {
    let (address, version) = ("[::1]:4440".to_owned(), "0.1".to_owned());
    NodeRecord { id: node(name), address, version, started_ms: 1, declines: Vec::new() }
}

/// The same right once more, as a writer has it that was not told of its last append.
fn copy(claim: &Claim) -> Claim {
    Claim::new(claim.partition(), claim.term(), claim.epoch(), claim.first(), claim.tail())
}

/// Far longer than any engine takes.
const PATIENCE: Duration = Duration::from_secs(60);
