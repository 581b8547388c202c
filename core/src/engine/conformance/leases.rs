//! The lease table: who is alive, who owns what, and who is told.

use std::collections::BTreeMap;

use tidegate_protocol::NodeId;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::{PATIENCE, frame, node, read, record, until};
use crate::engine::{
    AppendError, ClusterEvent, Engine, JoinError, LogPosition, NodeRecord, PartitionId, PartitionRecord,
    RenewError,
};

pub(super) async fn names_are_taken_until_their_node_leaves(engine: &dyn Engine, other: &dyn Engine) {
    let mut member = engine.join(record("n1")).await.expect("joined");
    assert_eq!(other.join(record("n1")).await.err(), Some(JoinError::NameTaken(node("n1"))));
    assert_eq!(member.renew().await, Ok(()));
    member.leave().await;
    let again = other.join(record("n1")).await.expect("the name is free");
    again.leave().await;
}

pub(super) async fn a_watch_begins_with_everything(
    engine: &dyn Engine,
    other: &dyn Engine,
    partition: PartitionId,
) {
    let member = engine.join(record("w1")).await.expect("joined");
    let claim = engine.claim(partition, &node("w1")).await.expect("claimed");
    let mut watch = other.watch().await.expect("watched");
    let mut nodes = BTreeMap::new();
    let mut owned = PartitionRecord::default();
    until(&mut *watch, "that all was told", |event| match event {
        ClusterEvent::Synced => true,
        ClusterEvent::Node { id, record } => {
            nodes.insert(id.clone(), record.clone());
            false
        }
        ClusterEvent::Partition { partition: which, record } => {
            if *which == partition {
                owned = record.clone();
            }
            false
        }
    })
    .await;
    assert_eq!(nodes.get(&node("w1")), Some(&Some(record("w1"))));
    assert_eq!(
        (owned.owner, owned.term, owned.epoch, owned.released),
        (Some(node("w1")), claim.term(), claim.epoch(), false)
    );

    // Also where it is written while that is read.
    let write = async {
        loop {
            engine.propose(&claim, Some(&node("w9"))).await.expect("proposed");
            engine.propose(&claim, None).await.expect("taken back");
            // Not every engine has to wait for that.
            yield_now().await;
        }
    };
    let read = async {
        for _ in 0..40 {
            let mut watch = other.watch().await.expect("watched");
            let mut owner = None;
            until(&mut *watch, "that all was told", |event| {
                if let ClusterEvent::Partition { partition: which, record } = event
                    && *which == partition
                {
                    owner.clone_from(&record.owner);
                }
                *event == ClusterEvent::Synced
            })
            .await;
            assert_eq!(owner, Some(node("w1")), "or somebody takes it from its owner");
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }

    // Then what changes, and a node that leaves is gone at once.
    let mut newcomer = engine.join(record("w2")).await.expect("joined");
    until(&mut *watch, "w2", |event| is_node(event, "w2", Some(record("w2")))).await;
    // What it says of itself from now on is told with a renewal, which is nobody else's.
    for declines in [vec![3, 7], Vec::new()] {
        newcomer.set_declines(declines.clone());
        assert_eq!(newcomer.renew().await, Ok(()));
        let said = NodeRecord { declines, ..record("w2") };
        until(&mut *watch, "what w2 declines", |event| is_node(event, "w2", Some(said.clone()))).await;
    }
    let lease = engine.capabilities().lease;
    let left = async {
        newcomer.leave().await;
        until(&mut *watch, "that w2 left", |event| is_node(event, "w2", None)).await;
    };
    assert!(timeout(lease, left).await.is_ok(), "not before its lease would have ended");
    engine.release(claim, None).await;
    until(&mut *watch, "that nobody owns the partition", |event| {
        matches!(event, ClusterEvent::Partition { partition: which, record }
            if *which == partition && record.owner.is_none() && record.next.is_none())
    })
    .await;
    member.leave().await;
    until(&mut *watch, "that w1 left", |event| is_node(event, "w1", None)).await;
}

/// One node renews and stays, the other does not: it is told to be gone, and finds out itself.
pub(super) async fn a_lease_that_is_not_renewed_ends(engine: &dyn Engine, other: &dyn Engine) {
    let mut alive = engine.join(record("alive")).await.expect("joined");
    let mut silent = engine.join(record("silent")).await.expect("joined");
    let mut watch = other.watch().await.expect("watched");
    let mut ticks = tokio::time::interval(engine.capabilities().lease / 4);
    let mut lost = false;
    let watched = async {
        while !lost {
            tokio::select! {
                event = watch.next() => {
                    let event = event.expect("the watch holds");
                    assert!(!is_node(&event, "alive", None), "it renews");
                    lost = is_node(&event, "silent", None);
                }
                _ = ticks.tick() => assert_eq!(alive.renew().await, Ok(())),
            }
        }
    };
    assert!(timeout(PATIENCE, watched).await.is_ok(), "never told that a lease ended");
    assert_eq!(silent.renew().await, Err(RenewError::Lost));
    let again = other.join(record("silent")).await.expect("the name is free");
    assert_eq!(silent.renew().await, Err(RenewError::Lost), "the lease is another's");
    // Nor does it take the other's lease along.
    silent.leave().await;
    assert_eq!(engine.join(record("silent")).await.err(), Some(JoinError::NameTaken(node("silent"))));
    again.leave().await;
    alive.leave().await;
}

pub(super) async fn a_partition_is_handed_over_in_order(
    engine: &dyn Engine,
    other: &dyn Engine,
    partition: PartitionId,
) {
    let (old, new) = (node("old"), node("new"));
    let mut watch = other.watch().await.expect("watched");
    let mut claim = engine.claim(partition, &old).await.expect("claimed");
    engine.append(&mut claim, frame(1)).await.expect("written");
    let term = claim.term();
    assert_eq!(other.ready(partition, term, &new).await, Err(AppendError::Fenced), "nobody asked");

    // Proposed, taken back, proposed to somebody else.
    engine.propose(&claim, Some(&node("dies"))).await.expect("proposed");
    engine.propose(&claim, None).await.expect("taken back");
    assert_eq!(other.ready(partition, term, &node("dies")).await, Err(AppendError::Fenced));
    engine.propose(&claim, Some(&new)).await.expect("proposed");
    until(&mut *watch, "the proposal", |event| {
        is_partition(event, partition, |record| {
            record.owner.as_ref() == Some(&old) && record.next.as_ref() == Some(&new) && !record.ready
        })
    })
    .await;
    assert_eq!(other.ready(partition, term + 1, &new).await, Err(AppendError::Fenced), "another term");
    assert_eq!(other.ready(partition, term, &node("dies")).await, Err(AppendError::Fenced));
    assert_eq!(other.ready(partition, term, &new).await, Ok(()));
    until(&mut *watch, "that it is ready", |event| {
        is_partition(event, partition, |record| record.next.as_ref() == Some(&new) && record.ready)
    })
    .await;

    // The owner still writes, until it lets go.
    engine.append(&mut claim, frame(2)).await.expect("written");
    let zombie = super::copy(&claim);
    engine.release(claim, Some(new.clone())).await;
    until(&mut *watch, "that it was released", |event| {
        is_partition(event, partition, |record| {
            record.released && record.next.as_ref() == Some(&new) && record.high_water >= 2
        })
    })
    .await;
    let mut taken = other.claim(partition, &new).await.expect("claimed");
    assert!(taken.term() > term);
    assert_eq!(taken.tail(), LogPosition(2));
    until(&mut *watch, "the new owner", |event| {
        is_partition(event, partition, |record| {
            record.owner.as_ref() == Some(&new)
                && (record.next.is_none() && !record.ready && !record.released)
                && record.term == taken.term()
        })
    })
    .await;
    assert_eq!(engine.propose(&zombie, Some(&old)).await, Err(AppendError::Fenced));
    assert_eq!(other.ready(partition, term, &new).await, Err(AppendError::Fenced), "of the old term");
    engine.release(zombie, None).await;
    assert_eq!(other.append(&mut taken, frame(3)).await, Ok(LogPosition(3)));
    assert_eq!(other.propose(&taken, None).await, Ok(()), "still the owner");
    assert_eq!(read(engine, partition, 1).await, super::frames(1..=3));
}

fn is_node(event: &ClusterEvent, name: &str, wanted: Option<NodeRecord>) -> bool {
    matches!(event, ClusterEvent::Node { id, record } if *id == NodeId::new(name) && *record == wanted)
}

fn is_partition(
    event: &ClusterEvent,
    partition: PartitionId,
    wanted: impl FnOnce(&PartitionRecord) -> bool,
) -> bool {
    matches!(event, ClusterEvent::Partition { partition: which, record }
        if *which == partition && wanted(record))
}
