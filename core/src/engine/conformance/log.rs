//! Frames: order, fencing, bounds.

use std::sync::Arc;

use bytes::Bytes;

use super::{copy, frame, frames, node, read};
use crate::engine::forgetful::Forgetful;
use crate::engine::{AppendError, ClaimError, Engine, LogPosition, PartitionId, ReplayError};

pub(super) async fn frames_come_back_in_order(engine: &dyn Engine, partition: PartitionId) {
    let mut claim = engine.claim(partition, &node("a")).await.expect("a fresh partition");
    assert_eq!((claim.tail(), claim.first()), (LogPosition(0), LogPosition(1)));
    assert_eq!(engine.replay(partition, LogPosition(1)).await, Ok(vec![]));
    for n in 1..=150 {
        assert_eq!(engine.append(&mut claim, frame(n)).await, Ok(LogPosition(n)));
        assert_eq!(claim.tail(), LogPosition(n));
    }
    assert_eq!(read(engine, partition, 1).await, frames(1..=150));
    assert_eq!(read(engine, partition, 149).await, frames(149..=150));
    assert_eq!(engine.replay(partition, LogPosition(151)).await, Ok(vec![]));

    let (term, epoch) = (claim.term(), claim.epoch());
    engine.release(claim, None).await;
    let mut claim = engine.claim(partition, &node("a")).await.expect("released");
    let (first, tail) = (claim.first(), claim.tail());
    assert!(claim.term() > term);
    assert_eq!(claim.epoch(), epoch);
    assert_eq!((first, tail), (LogPosition(1), LogPosition(150)));
    assert_eq!(engine.append(&mut claim, frame(151)).await, Ok(LogPosition(151)));
    assert_eq!(read(engine, partition, 150).await, frames(150..=151));
}

/// An acknowledgement that was lost: the writer stands where it stood and sends the same again.
pub(super) async fn identical_bytes_are_stored_once(engine: &dyn Engine, partition: PartitionId) {
    let mut claim = engine.claim(partition, &node("a")).await.expect("a fresh partition");
    engine.append(&mut claim, frame(1)).await.expect("first");
    let mut unaware = copy(&claim);
    let mut confused = copy(&claim);
    assert_eq!(engine.append(&mut claim, frame(2)).await, Ok(LogPosition(2)));
    assert_eq!(engine.append(&mut unaware, frame(2)).await, Ok(LogPosition(2)));
    assert_eq!(engine.append(&mut unaware, frame(3)).await, Ok(LogPosition(3)));
    assert_eq!(engine.append(&mut confused, frame(9)).await, Err(AppendError::Fenced));
    assert_eq!(read(engine, partition, 1).await, frames(1..=3));
}

pub(super) async fn lost_acknowledgements_store_nothing_twice(
    engine: Arc<dyn Engine>,
    partition: PartitionId,
) {
    let forgetful = Forgetful::new(engine);
    let mut claim = forgetful.claim(partition, &node("a")).await.expect("a fresh partition");
    for n in 1..=10 {
        forgetful.lose(3);
        let mut lost = 0;
        let position = loop {
            match forgetful.append(&mut claim, frame(n)).await {
                Err(AppendError::Unavailable(_)) => lost += 1,
                other => break other,
            }
        };
        assert_eq!((position, lost), (Ok(LogPosition(n)), 3));
    }
    assert_eq!(read(&forgetful, partition, 1).await, frames(1..=10));
}

/// The old owner was paused, or cut off: nothing of it gets in, before or after the new one's first frame.
pub(super) async fn a_zombie_is_fenced(engine: &dyn Engine, other: &dyn Engine, partition: PartitionId) {
    let mut zombie = engine.claim(partition, &node("a")).await.expect("a fresh partition");
    engine.append(&mut zombie, frame(1)).await.expect("the owner writes");
    let mut owner = other.claim(partition, &node("b")).await.expect("taken over");
    assert!(owner.term() > zombie.term());
    assert_eq!((owner.epoch(), owner.tail()), (zombie.epoch(), LogPosition(1)));
    for _ in 0..3 {
        assert_eq!(engine.append(&mut zombie, frame(2)).await, Err(AppendError::Fenced));
    }
    assert_eq!(engine.note_high_water(&zombie).await, Err(AppendError::Fenced));
    assert_eq!(other.append(&mut owner, frame(3)).await, Ok(LogPosition(2)));
    assert_eq!(engine.append(&mut zombie, frame(3)).await, Err(AppendError::Fenced));
    assert_eq!(other.append(&mut owner, frame(4)).await, Ok(LogPosition(3)));
    assert_eq!(other.note_high_water(&owner).await, Ok(()));
    assert_eq!(read(engine, partition, 1).await, vec![frame(1), frame(3), frame(4)]);

    // A zombie that is let go says nothing about who owns the partition.
    engine.release(zombie, Some(node("c"))).await;
    assert_eq!(other.append(&mut owner, frame(5)).await, Ok(LogPosition(4)));
}

pub(super) async fn oversized_frames_are_refused(engine: &dyn Engine, partition: PartitionId) {
    let mut claim = engine.claim(partition, &node("a")).await.expect("claimed");
    let limit = engine.capabilities().max_frame;
    let oversized = Bytes::from(vec![0; limit + 1]);
    let refused = Err(AppendError::TooLarge { bytes: limit + 1, limit });
    assert_eq!(engine.append(&mut claim, oversized).await, refused);
    assert_eq!(claim.tail(), LogPosition(0));
    let largest = Bytes::from(vec![7; limit]);
    assert_eq!(engine.append(&mut claim, largest.clone()).await, Ok(LogPosition(1)));
    assert_eq!(engine.append(&mut claim, Bytes::new()).await, Ok(LogPosition(2)));
    assert_eq!(read(engine, partition, 1).await, vec![largest, Bytes::new()]);
}

pub(super) async fn unknown_partitions_are_refused(engine: &dyn Engine) {
    let unknown = PartitionId(super::PARTITIONS);
    let refused = engine.claim(unknown, &node("a")).await;
    assert!(matches!(refused, Err(ClaimError::UnknownPartition(n)) if n == unknown.0), "{refused:?}");
    let refused = ReplayError::UnknownPartition(unknown.0);
    assert_eq!(engine.replay(unknown, LogPosition(1)).await, Err(refused.clone()));
    assert_eq!(engine.snapshot(unknown).await, Err(refused.clone()));
    assert_eq!(engine.read_piece(unknown, LogPosition(1), 0).await, Err(refused));
}

pub(super) async fn partitions_do_not_mix(engine: &dyn Engine, one: PartitionId, two: PartitionId) {
    let mut first = engine.claim(one, &node("a")).await.expect("claimed");
    let mut second = engine.claim(two, &node("a")).await.expect("claimed");
    for n in 1..=20 {
        let both =
            tokio::join!(engine.append(&mut first, frame(n)), engine.append(&mut second, frame(100 + n)));
        assert_eq!(both, (Ok(LogPosition(n)), Ok(LogPosition(n))));
    }
    assert_eq!(read(engine, one, 1).await, frames(1..=20));
    assert_eq!(read(engine, two, 1).await, frames(101..=120));
}
