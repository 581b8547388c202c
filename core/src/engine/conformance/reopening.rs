//! What is there after every handle ended.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;

use super::snapshots::{append, write};
use super::{Setup, copy, frame, frames, node, read};
use crate::engine::{AppendError, LogPosition, PartitionId, ReplayError};

/// A log that ends before a position that was certainly in it: whoever trusted its epoch must be told.
pub(super) async fn a_lost_tail_changes_the_epoch(setup: &mut impl Setup, partition: PartitionId) {
    let engine = setup.engine();
    let mut claim = engine.claim(partition, &node("a")).await.expect("claimed");
    append(&*engine, &mut claim, 10).await;
    write(&*engine, &claim, 9, &["nine"]).await;
    engine.note_high_water(&claim).await.expect("noted");
    let epoch = claim.epoch();
    drop(engine);
    if !setup.lose_tail(partition, LogPosition(6)).await {
        return;
    }
    let engine = setup.engine();
    let mut claim = engine.claim(partition, &node("a")).await.expect("claimed");
    assert_ne!(claim.epoch(), epoch);
    let tail = claim.tail();
    assert!(tail >= LogPosition(6), "{tail:?}");
    assert_eq!(claim.first(), tail.next(), "the old epoch's frames are not the new one's");
    let refused = engine.replay(partition, tail).await;
    assert_eq!(refused, Err(ReplayError::Truncated { first: tail.next() }));
    let snapshot = engine.snapshot(partition).await.expect("readable");
    assert!(snapshot.is_none_or(|snapshot| snapshot.at <= tail), "{snapshot:?} is of frames that are gone");
    append(&*engine, &mut claim, 2).await;
    engine.note_high_water(&claim).await.expect("noted");

    // The new epoch stays.
    let epoch = claim.epoch();
    let claim = engine.claim(partition, &node("a")).await.expect("claimed");
    assert_eq!((claim.epoch(), claim.first(), claim.tail().0), (epoch, tail.next(), tail.0 + 2));
    assert_eq!(read(&*engine, partition, claim.first().0).await, frames([tail.0 + 1, tail.0 + 2]));
}

pub(super) async fn what_was_acknowledged_is_kept(setup: &mut impl Setup, partition: PartitionId) {
    let engine = setup.engine();
    let mut claim = engine.claim(partition, &node("a")).await.expect("claimed");
    append(&*engine, &mut claim, 20).await;
    let snapshot = write(&*engine, &claim, 15, &["one", "two"]).await;
    append(&*engine, &mut claim, 10).await;
    // Begun, never finished.
    engine.put_piece(&claim, LogPosition(30), 0, Bytes::from_static(b"torn")).await.expect("put");
    let mut zombie = copy(&claim);
    drop(engine);
    setup.reopen().await;

    let engine = setup.engine();
    let mut again = engine.claim(partition, &node("b")).await.expect("claimed");
    assert!(again.term() > claim.term());
    assert_eq!((again.epoch(), again.tail()), (claim.epoch(), LogPosition(30)));
    assert_eq!(again.first(), LogPosition(1));
    assert_eq!(read(&*engine, partition, 1).await, frames(1..=30));
    assert_eq!(engine.snapshot(partition).await, Ok(Some(snapshot)));
    assert_eq!(engine.read_piece(partition, snapshot.at, 1).await, Ok(Bytes::from_static(b"two")));
    assert_eq!(engine.append(&mut zombie, frame(31)).await, Err(AppendError::Fenced));
    append(&*engine, &mut again, 5).await;
    assert_eq!(read(&*engine, partition, 29).await, frames(29..=35));
}

/// The writer went while its frame was on the way: the next one finds it whole or not at all.
pub(super) async fn an_append_that_was_cut_off_is_stored_once_or_not(
    setup: &mut impl Setup,
    partition: PartitionId,
) {
    let mut tail = 0;
    for round in 0..5 {
        let engine = setup.engine();
        let mut claim = engine.claim(partition, &node("a")).await.expect("claimed");
        assert!(claim.tail().0 == tail || claim.tail().0 == tail + u64::from(round > 0), "{claim:?}");
        assert_eq!(read(&*engine, partition, 1).await, frames(1..=claim.tail().0));
        append(&*engine, &mut claim, 3).await;
        tail = claim.tail().0;
        {
            let mut cut_off = engine.append(&mut claim, frame(tail + 1));
            // Polled once: it is on the way.
            poll_fn(|context| {
                let _ = cut_off.as_mut().poll(context);
                Poll::Ready(())
            })
            .await;
        }
        // Who was cut off but lives sends the same again; it is stored once.
        if round % 2 == 0 {
            let mut resent = copy(&claim);
            if resent.tail().0 == tail {
                assert_eq!(engine.append(&mut resent, frame(tail + 1)).await, Ok(LogPosition(tail + 1)));
            }
            tail = resent.tail().0;
        }
        drop(engine);
        setup.reopen().await;
    }
}
