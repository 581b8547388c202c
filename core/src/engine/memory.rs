//! Logs in the memory of the process: for `dev`, for one node without durability, and for tests.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{
    AppendError, Capabilities, Claim, ClaimError, Engine, EngineFuture, LogPosition, PartitionId, ReplayError,
};

/// Logs that end with the process.
#[derive(Debug)]
pub struct MemoryEngine {
    epoch: u64,
    retain_bytes: usize,
    logs: Vec<Mutex<Log>>,
}

impl MemoryEngine {
    /// Empty logs for `partitions`, each keeping its newest frames up to `retain_bytes`.
    ///
    /// `epoch` must never come back: take it from `clock::rng()`. It tells clients of an earlier process that their
    /// positions mean nothing here.
    pub fn new(epoch: u64, partitions: u16, retain_bytes: usize) -> Self {
        Self { epoch, retain_bytes, logs: (0..partitions).map(|_| Mutex::default()).collect() }
    }

    fn log(&self, partition: PartitionId) -> Option<MutexGuard<'_, Log>> {
        let log = self.logs.get(usize::from(partition.0))?;
        // No method of `Log` leaves it half changed.
        Some(log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn claim_now(&self, partition: PartitionId) -> Result<Claim, ClaimError> {
        let mut log = self.log(partition).ok_or(ClaimError::UnknownPartition(partition.0))?;
        log.term += 1;
        Ok(Claim::new(partition, log.term, self.epoch, log.first(), log.tail))
    }

    fn append_now(&self, claim: &mut Claim, frame: Bytes) -> Result<LogPosition, AppendError> {
        if frame.len() > MAX_FRAME {
            return Err(AppendError::TooLarge { bytes: frame.len(), limit: MAX_FRAME });
        }
        let mut log = self.log(claim.partition()).ok_or(AppendError::Fenced)?;
        if log.term != claim.term() {
            return Err(AppendError::Fenced);
        }
        if log.tail == claim.tail() {
            log.push(frame, self.retain_bytes);
        } else if log.get(claim.tail().next()) != Some(&frame) {
            // Only the frame that is in flight may be sent again.
            return Err(AppendError::Fenced);
        }
        Ok(claim.advance())
    }

    fn replay_now(
        &self,
        partition: PartitionId,
        from: LogPosition,
    ) -> Result<Vec<(LogPosition, Bytes)>, ReplayError> {
        let log = self.log(partition).ok_or(ReplayError::UnknownPartition(partition.0))?;
        let first = log.first();
        if from < first {
            return Err(ReplayError::Truncated { first });
        }
        let skipped = usize::try_from(from.0 - first.0).unwrap_or(usize::MAX);
        let positions = (from.0..).map(LogPosition);
        let frames = log.frames.iter().skip(skipped).take(REPLAY_FRAMES);
        Ok(positions.zip(frames.cloned()).collect())
    }
}

impl Engine for MemoryEngine {
    fn claim(&self, partition: PartitionId) -> EngineFuture<'_, Result<Claim, ClaimError>> {
        Box::pin(std::future::ready(self.claim_now(partition)))
    }

    fn append<'a>(
        &'a self,
        claim: &'a mut Claim,
        frame: Bytes,
    ) -> EngineFuture<'a, Result<LogPosition, AppendError>> {
        Box::pin(std::future::ready(self.append_now(claim, frame)))
    }

    fn replay(
        &self,
        partition: PartitionId,
        from: LogPosition,
    ) -> EngineFuture<'_, Result<Vec<(LogPosition, Bytes)>, ReplayError>> {
        Box::pin(std::future::ready(self.replay_now(partition, from)))
    }

    fn release(&self, _claim: Claim) -> EngineFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: false, replicated: false, max_frame: MAX_FRAME }
    }
}

#[derive(Debug, Default)]
struct Log {
    term: u64,
    tail: LogPosition,
    /// The newest, up to and with `tail`.
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Log {
    fn first(&self) -> LogPosition {
        LogPosition(self.tail.0 + 1 - self.frames.len() as u64)
    }

    fn get(&self, position: LogPosition) -> Option<&Bytes> {
        let index = position.0.checked_sub(self.first().0)?;
        self.frames.get(usize::try_from(index).ok()?)
    }

    fn push(&mut self, frame: Bytes, retain_bytes: usize) {
        self.tail = self.tail.next();
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.bytes > retain_bytes
            && let Some(oldest) = self.frames.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }
}

const MAX_FRAME: usize = 8 << 20;
const REPLAY_FRAMES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::conformance;

    #[tokio::test]
    async fn conforms() {
        conformance::run(&MemoryEngine::new(7, 4, 64 << 10), Some(64 << 10)).await;
    }

    #[tokio::test]
    async fn a_restarted_engine_has_another_epoch() {
        let claim = |epoch| async move {
            MemoryEngine::new(epoch, 1, 0).claim(PartitionId(0)).await.expect("claimed").epoch()
        };
        assert_ne!(claim(1).await, claim(2).await);
    }
}
