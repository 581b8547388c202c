//! Snapshots, and frames that are dropped behind them.

use bytes::Bytes;

use super::{frame, node, read};
use crate::engine::{AppendError, Claim, Engine, LogPosition, PartitionId, ReplayError, Snapshot};

pub(super) async fn a_snapshot_comes_back(engine: &dyn Engine, partition: PartitionId) {
    let mut claim = engine.claim(partition, &node("a")).await.expect("claimed");
    assert_eq!(engine.snapshot(partition).await, Ok(None));
    append(engine, &mut claim, 5).await;
    let large = engine.capabilities().max_frame.min(700_000);
    let pieces: Vec<Bytes> = [1, large, 0, 3].map(|bytes| Bytes::from(vec![bytes as u8; bytes])).into();
    let at = LogPosition(4);
    for (index, piece) in (0..).zip(&pieces) {
        // Each is sent twice: its writer was not told the first time.
        for _ in 0..2 {
            assert_eq!(engine.put_piece(&claim, at, index, piece.clone()).await, Ok(()));
        }
        assert_eq!(engine.snapshot(partition).await, Ok(None), "it is not complete");
    }
    let snapshot = Snapshot { at, pieces: 4 };
    for _ in 0..2 {
        assert_eq!(engine.finish_snapshot(&claim, snapshot).await, Ok(()));
    }
    assert_eq!(engine.snapshot(partition).await, Ok(Some(snapshot)));
    for (index, piece) in (0..).zip(&pieces) {
        assert_eq!(engine.read_piece(partition, at, index).await.as_ref(), Ok(piece));
    }
    let largest = engine.capabilities().max_frame;
    let oversized = Bytes::from(vec![0; largest + 1]);
    let refused = engine.put_piece(&claim, LogPosition(5), 0, oversized).await;
    assert_eq!(refused, Err(AppendError::TooLarge { bytes: largest + 1, limit: largest }));
    assert_eq!(engine.snapshot(partition).await, Ok(Some(snapshot)));
}

/// What is half written is never read, and what was read from is told to be gone.
pub(super) async fn a_newer_one_takes_its_place(engine: &dyn Engine, partition: PartitionId) {
    let mut claim = engine.claim(partition, &node("a")).await.expect("claimed");
    append(engine, &mut claim, 9).await;
    let older = write(engine, &claim, 3, &["3a", "3b"]).await;

    engine.put_piece(&claim, LogPosition(9), 0, Bytes::from_static(b"9a")).await.expect("put");
    assert_eq!(engine.snapshot(partition).await, Ok(Some(older)), "torn");
    assert_eq!(engine.read_piece(partition, older.at, 1).await, Ok(Bytes::from_static(b"3b")));
    let torn = Snapshot { at: LogPosition(9), pieces: 2 };
    let refused = engine.finish_snapshot(&claim, torn).await;
    assert!(matches!(refused, Err(AppendError::Refused(_))), "a piece is missing: {refused:?}");
    assert_eq!(engine.snapshot(partition).await, Ok(Some(older)));

    // Given up and begun anew.
    let newer = write(engine, &claim, 8, &["8a", "8b", "8c"]).await;
    assert_eq!(engine.snapshot(partition).await, Ok(Some(newer)));
    assert_eq!(engine.read_piece(partition, newer.at, 2).await, Ok(Bytes::from_static(b"8c")));
    let gone = engine.read_piece(partition, older.at, 0).await;
    assert!(matches!(gone, Err(ReplayError::Truncated { .. })), "{gone:?}");
}

pub(super) async fn a_zombies_pieces_are_refused(
    engine: &dyn Engine,
    other: &dyn Engine,
    partition: PartitionId,
) {
    let mut zombie = engine.claim(partition, &node("a")).await.expect("claimed");
    append(engine, &mut zombie, 5).await;
    let at = LogPosition(5);
    engine.put_piece(&zombie, at, 0, Bytes::from_static(b"a")).await.expect("the owner's");
    let owner = other.claim(partition, &node("b")).await.expect("taken over");
    let piece = Bytes::from_static(b"zombie");
    assert_eq!(engine.put_piece(&zombie, at, 1, piece.clone()).await, Err(AppendError::Fenced));
    let snapshot = Snapshot { at, pieces: 1 };
    assert_eq!(engine.finish_snapshot(&zombie, snapshot).await, Err(AppendError::Fenced));
    assert_eq!(other.snapshot(partition).await, Ok(None));

    // Nor do they get in between those of the new owner.
    other.put_piece(&owner, at, 0, Bytes::from_static(b"b0")).await.expect("the owner's");
    assert_eq!(engine.put_piece(&zombie, at, 0, piece).await, Err(AppendError::Fenced));
    other.put_piece(&owner, at, 1, Bytes::from_static(b"b1")).await.expect("the owner's");
    assert_eq!(other.finish_snapshot(&owner, Snapshot { at, pieces: 2 }).await, Ok(()));
    assert_eq!(other.read_piece(partition, at, 0).await, Ok(Bytes::from_static(b"b0")));
}

/// Old frames go only when a snapshot has them, or when the engine's bound leaves no choice; either is told.
pub(super) async fn truncation_is_told(engine: &dyn Engine, partition: PartitionId, retained: usize) {
    let mut claim = engine.claim(partition, &node("a")).await.expect("a fresh partition");
    let body = Bytes::from(vec![7; retained / 8]);
    let fill = async |claim: &mut Claim| {
        for _ in 0..20 {
            engine.append(claim, body.clone()).await.expect("written");
        }
    };
    fill(&mut claim).await;
    let snapshot = write(engine, &claim, claim.tail().0, &["all"]).await;
    let Err(ReplayError::Truncated { first }) = engine.replay(partition, LogPosition(1)).await else {
        panic!("frames beyond the bound were kept");
    };
    assert!(first > LogPosition(1) && first <= claim.tail(), "{first:?}");
    let kept = read(engine, partition, first.0).await;
    assert_eq!(kept.len() as u64, claim.tail().0 + 1 - first.0);

    // The snapshot is told even where frames between it and the log's first are gone: its reader judges.
    fill(&mut claim).await;
    let (term, tail) = (claim.term(), claim.tail());
    let claim = engine.claim(partition, &node("a")).await.expect("claimed again");
    assert!(claim.term() > term && claim.tail() == tail && claim.first() >= first);
    assert_eq!(engine.snapshot(partition).await, Ok(Some(snapshot)));
    assert_eq!(engine.read_piece(partition, snapshot.at, 0).await, Ok(Bytes::from_static(b"all")));
    let kept = read(engine, partition, claim.first().0).await;
    assert_eq!(kept.len() as u64, claim.tail().0 + 1 - claim.first().0);
}

pub(super) async fn append(engine: &dyn Engine, claim: &mut Claim, count: u64) {
    for _ in 0..count {
        let next = frame(claim.tail().0 + 1);
        engine.append(claim, next).await.expect("written");
    }
}

pub(super) async fn write(engine: &dyn Engine, claim: &Claim, at: u64, pieces: &[&'static str]) -> Snapshot {
    let at = LogPosition(at);
    for (index, piece) in (0..).zip(pieces) {
        engine.put_piece(claim, at, index, Bytes::from_static(piece.as_bytes())).await.expect("put");
    }
    let snapshot = Snapshot { at, pieces: u32::try_from(pieces.len()).expect("few") };
    engine.finish_snapshot(claim, snapshot).await.expect("finished");
    snapshot
}
