//! What every engine must do, as one function that each engine's tests call.

use bytes::Bytes;

use super::{AppendError, Claim, ClaimError, Engine, LogPosition, PartitionId, ReplayError};

/// Runs the suite on a fresh engine with partitions 0 to 3 and no more. `retained`: what the engine keeps of a log, if
/// it drops old frames by itself.
pub(crate) async fn run(engine: &dyn Engine, retained: Option<usize>) {
    frames_come_back_in_order(engine, PartitionId(0)).await;
    identical_bytes_are_stored_once(engine, PartitionId(1)).await;
    a_zombie_is_fenced(engine, PartitionId(2)).await;
    oversized_frames_are_refused(engine, PartitionId(2)).await;
    unknown_partitions_are_refused(engine).await;
    if let Some(bytes) = retained {
        truncation_is_told(engine, PartitionId(3), bytes).await;
    }
}

async fn frames_come_back_in_order(engine: &dyn Engine, partition: PartitionId) {
    let mut claim = engine.claim(partition).await.expect("a fresh partition");
    assert_eq!((claim.tail(), claim.first()), (LogPosition(0), LogPosition(1)));
    assert_eq!(engine.replay(partition, LogPosition(1)).await, Ok(vec![]));
    for n in 1..=300 {
        assert_eq!(engine.append(&mut claim, frame(n)).await, Ok(LogPosition(n)));
        assert_eq!(claim.tail(), LogPosition(n));
    }
    assert_eq!(read(engine, partition, 1).await, (1..=300).map(frame).collect::<Vec<_>>());
    assert_eq!(read(engine, partition, 299).await, vec![frame(299), frame(300)]);
    assert_eq!(engine.replay(partition, LogPosition(301)).await, Ok(vec![]));

    let (term, epoch) = (claim.term(), claim.epoch());
    engine.release(claim).await;
    let mut claim = engine.claim(partition).await.expect("released");
    assert_eq!((claim.epoch(), claim.tail(), claim.first()), (epoch, LogPosition(300), LogPosition(1)));
    assert!(claim.term() > term);
    assert_eq!(engine.append(&mut claim, frame(301)).await, Ok(LogPosition(301)));
    assert_eq!(read(engine, partition, 300).await, vec![frame(300), frame(301)]);
}

/// An acknowledgement that was lost: the writer stands where it stood and sends the same again.
async fn identical_bytes_are_stored_once(engine: &dyn Engine, partition: PartitionId) {
    let mut claim = engine.claim(partition).await.expect("a fresh partition");
    engine.append(&mut claim, frame(1)).await.expect("first");
    let mut unaware = copy(&claim);
    let mut confused = copy(&claim);
    assert_eq!(engine.append(&mut claim, frame(2)).await, Ok(LogPosition(2)));
    assert_eq!(engine.append(&mut unaware, frame(2)).await, Ok(LogPosition(2)));
    assert_eq!(engine.append(&mut unaware, frame(3)).await, Ok(LogPosition(3)));
    assert_eq!(engine.append(&mut confused, frame(9)).await, Err(AppendError::Fenced));
    assert_eq!(read(engine, partition, 1).await, vec![frame(1), frame(2), frame(3)]);
}

async fn a_zombie_is_fenced(engine: &dyn Engine, partition: PartitionId) {
    let mut zombie = engine.claim(partition).await.expect("a fresh partition");
    engine.append(&mut zombie, frame(1)).await.expect("the owner writes");
    let mut owner = engine.claim(partition).await.expect("taken over");
    assert!(owner.term() > zombie.term());
    assert_eq!((owner.epoch(), owner.tail()), (zombie.epoch(), LogPosition(1)));
    for _ in 0..3 {
        assert_eq!(engine.append(&mut zombie, frame(2)).await, Err(AppendError::Fenced));
    }
    assert_eq!(engine.append(&mut owner, frame(3)).await, Ok(LogPosition(2)));
    assert_eq!(engine.append(&mut zombie, frame(3)).await, Err(AppendError::Fenced));
    assert_eq!(read(engine, partition, 1).await, vec![frame(1), frame(3)]);
}

async fn oversized_frames_are_refused(engine: &dyn Engine, partition: PartitionId) {
    let mut claim = engine.claim(partition).await.expect("claimed");
    let tail = claim.tail();
    let limit = engine.capabilities().max_frame;
    let oversized = Bytes::from(vec![0; limit + 1]);
    let refused = Err(AppendError::TooLarge { bytes: limit + 1, limit });
    assert_eq!(engine.append(&mut claim, oversized).await, refused);
    assert_eq!(claim.tail(), tail);
    assert_eq!(engine.append(&mut claim, frame(4)).await, Ok(tail.next()));
}

async fn unknown_partitions_are_refused(engine: &dyn Engine) {
    let refused = engine.claim(PartitionId(4)).await;
    assert!(matches!(refused, Err(ClaimError::UnknownPartition(4))), "{refused:?}");
    assert_eq!(engine.replay(PartitionId(4), LogPosition(1)).await, Err(ReplayError::UnknownPartition(4)));
}

async fn truncation_is_told(engine: &dyn Engine, partition: PartitionId, retained: usize) {
    let mut claim = engine.claim(partition).await.expect("a fresh partition");
    let body = Bytes::from(vec![7; retained / 8]);
    for _ in 0..20 {
        engine.append(&mut claim, body.clone()).await.expect("written");
    }
    let Err(ReplayError::Truncated { first }) = engine.replay(partition, LogPosition(1)).await else {
        panic!("frames beyond the bound were kept");
    };
    assert!(first > LogPosition(1) && first <= claim.tail(), "{first:?}");
    let kept = read(engine, partition, first.0).await;
    assert_eq!(kept.len() as u64, claim.tail().0 + 1 - first.0);
    assert_eq!(engine.claim(partition).await.expect("claimed again").first(), first);
}

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

fn frame(n: u64) -> Bytes {
    Bytes::from(format!("frame {n}"))
}

fn copy(claim: &Claim) -> Claim {
    Claim::new(claim.partition(), claim.term(), claim.epoch(), claim.first(), claim.tail())
}
