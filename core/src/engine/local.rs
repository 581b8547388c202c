//! Logs on the disk of one machine, in one directory, for one process: `serve` past a restart.
//!
//! ```text
//! <path>/lock              held while the store is open
//! <path>/partitions.json   who owned what, the epochs, and how far each log certainly went; `.spare` beside it is the next
//! <path>/tails             the same, up to the last frame that was acknowledged
//! <path>/frames/           a fjall database: logs in segments, snapshots
//! ```
//!
//! All writing is done by one thread: what waits for it is one batch with one sync, so that a partition alone does not
//! wait for others and many share what a sync costs. Reading goes past it.
//!
//! What is damaged on the disk is told as such or, where the end of a log is missing, by a new epoch. The library takes a
//! journal that ends too early, or in something that makes no sense, for one whose last write was cut off; `tails` tells
//! whether that had been acknowledged. Only where the machine went down as well, seconds after the frame was written and
//! although it was synced, shows nothing that it was ever there.

mod frame;
mod room;
mod store;
mod table;
mod tails;
mod writer;

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::NodeId;
use tokio::sync::{mpsc, oneshot};

use self::store::Store;
use self::table::{Loaded, Row, TableFile};
use self::tails::TailsFile;
use self::writer::{Append, Command, Files, Shared, Writer};
use super::leases::Leases;
use super::{
    About, AppendError, Capabilities, Claim, ClaimError, Engine, EngineFuture, JoinError, LogPosition,
    Membership, NodeRecord, PartitionId, PartitionRecord, ReplayError, Snapshot, Unavailable, Watch,
};

/// Where a store is and what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalConfig {
    /// Its directory; made where there is none.
    pub path: PathBuf,
    /// Frames older than this are dropped once a snapshot has what they say, in segments of a quarter of it.
    pub retain_age: Duration,
    /// So many bytes of frames are kept of each partition, once a snapshot has what older ones say; in segments of a
    /// quarter of it. Until there is one, all are.
    pub retain_bytes: u64,
    /// So many bytes of the disk stay free: with less, frames are refused. Moving what is in memory to tables, and
    /// snapshots, which let old frames go, take from it.
    pub reserve: u64,
    /// How long a membership lasts without being renewed. Nobody but this process asks.
    pub lease: Duration,
}

impl LocalConfig {
    /// A day, and 256 MiB of each partition; 64 MiB stay free.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            retain_age: Duration::from_secs(24 * 3600),
            retain_bytes: 256 << 20,
            reserve: 64 << 20,
            lease: Duration::from_secs(3),
        }
    }
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// Another process has it.
    #[error("the store {} is in use by another process: each node needs a directory of its own", path.display())]
    InUse {
        /// Its directory.
        path: PathBuf,
    },
    /// It was made for another number of partitions.
    #[error(
        "the store {} was made with {stored} partitions, not {wanted}: set the number back, or give the node an empty \
         directory, where all channels begin anew",
        path.display()
    )]
    Partitions {
        /// Its directory.
        path: PathBuf,
        /// How many it has.
        stored: usize,
        /// How many were asked for.
        wanted: u16,
    },
    /// Its format is not ours.
    #[error(
        "the store {} was written by another version of this program (format {found}): run that version, or give the node \
         an empty directory, where all channels begin anew",
        path.display()
    )]
    Version {
        /// Its directory.
        path: PathBuf,
        /// The number of its format.
        found: u32,
    },
    /// It cannot be read.
    #[error(
        "the store is damaged: {reason}: restore {} from a backup, or move it away, and all channels begin anew",
        path.display()
    )]
    Damaged {
        /// Its directory.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// The directory cannot be made, read or written.
    #[error("the store {} cannot be opened: {error}", path.display())]
    Io {
        /// Its directory, or a file in it.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// Logs on this machine's disk.
#[derive(Debug)]
pub struct LocalEngine {
    partitions: u16,
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    queue: Option<mpsc::Sender<Command>>,
    writer: Option<JoinHandle<()>>,
    _lock: File,
}

impl LocalEngine {
    /// Opens the store, or makes it. Blocks, for about a second where much was written before a crash.
    ///
    /// `epoch` must never come back: take it from `clock::rng()`. It names logs that begin anew.
    pub fn open(config: LocalConfig, partitions: u16, epoch: u64) -> Result<Self, LocalError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| LocalError::Io { path, error }
        };
        let path = &config.path;
        fs::create_dir_all(path).map_err(io(path))?;
        let lock = lock(path)?;
        let table = TableFile::of(path);
        let frames = path.join("frames");
        let damaged = |file: &Path, reason: &dyn std::fmt::Display| {
            let reason = format!("{}: {reason}", file.display());
            LocalError::Damaged { path: path.clone(), reason }
        };
        let rows = match table.load() {
            Ok(Loaded::Rows(rows)) => rows,
            Ok(Loaded::OfVersion(found)) => return Err(LocalError::Version { path: path.clone(), found }),
            Ok(Loaded::Nothing) if !store::is_complete(&frames) => {
                let record = PartitionRecord { epoch, ..PartitionRecord::default() };
                let rows = vec![Row { record, begin: 1 }; usize::from(partitions)];
                // With one beside it from the first day on.
                table.save(&rows).and_then(|()| table.save(&rows)).map_err(io(table.path()))?;
                rows
            }
            Ok(Loaded::Nothing) => return Err(damaged(table.path(), &"it is missing")),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(damaged(table.path(), &error));
            }
            Err(error) => return Err(io(table.path())(error)),
        };
        if rows.len() != usize::from(partitions) {
            return Err(LocalError::Partitions {
                path: path.clone(),
                stored: rows.len(),
                wanted: partitions,
            });
        }
        let tails_path = TailsFile::path(path);
        let tails = match TailsFile::open(path, rows.len()) {
            Ok(tails) => tails,
            Err(error) if error.kind() == ErrorKind::NotFound && !store::is_complete(&frames) => {
                TailsFile::create(path, rows.len()).map_err(io(&tails_path))?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(damaged(&tails_path, &"it is missing"));
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => return Err(damaged(&tails_path, &error)),
            Err(error) => return Err(io(&tails_path)(error)),
        };
        if !store::is_complete(&frames) && fs::exists(&frames).map_err(io(&frames))? {
            if (0..partitions).any(|partition| tails.get(partition) > 0) {
                return Err(damaged(&frames, &"a part of it is missing"));
            }
            // The process ended while it was made.
            fs::remove_dir_all(&frames).map_err(io(&frames))?;
        }
        let begins: Vec<u64> = rows.iter().map(|row| row.begin).collect();
        let opened = Store::open(&frames, &begins);
        let store = opened.map_err(|reason| LocalError::Damaged { path: path.clone(), reason })?;

        let records = rows.into_iter().map(|row| row.record).collect();
        let shared = Arc::new(Shared::new(Leases::new(config.lease, records), store));
        // A store made just now has the first one.
        let next_epoch = epoch.wrapping_add(1);
        let files = Files { table, tails };
        let writer = Writer::new(config.clone(), Arc::clone(&shared), files, begins, next_epoch);
        let (queue, commands) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new().name("tidegate-log".to_owned());
        let writer = thread.spawn(move || writer.run(commands)).map_err(io(path))?;
        Ok(Self { partitions, shared, queue: Some(queue), writer: Some(writer), _lock: lock })
    }

    /// Has the writer do it in its turn; `None` where it is gone.
    async fn run<T: Send + 'static>(&self, run: impl FnOnce(&mut Writer) -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        // Nobody waits for the answer of a request that was given up.
        let command = Command::Run(Box::new(move |writer| drop(answer.send(run(writer)))));
        self.queue.as_ref()?.send(command).await.ok()?;
        answered.await.ok()
    }

    async fn write(
        &self,
        run: impl FnOnce(&mut Writer) -> Result<(), AppendError> + Send + 'static,
    ) -> Result<(), AppendError> {
        self.run(run).await.unwrap_or_else(|| Err(AppendError::Refused(WRITER_GONE.to_owned())))
    }

    async fn append_now(&self, claim: &mut Claim, frame: Bytes) -> Result<LogPosition, AppendError> {
        if frame.len() > MAX_FRAME {
            return Err(AppendError::TooLarge { bytes: frame.len(), limit: MAX_FRAME });
        }
        let gone = || AppendError::Refused(WRITER_GONE.to_owned());
        let (answer, answered) = oneshot::channel();
        let append = Append {
            partition: claim.partition().0,
            term: claim.term(),
            tail: claim.tail().0,
            frame,
            answer,
        };
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.send(Command::Append(append)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())??;
        Ok(claim.advance())
    }

    async fn replay_now(
        &self,
        partition: PartitionId,
        from: LogPosition,
    ) -> Result<Vec<(LogPosition, Bytes)>, ReplayError> {
        let reader = {
            let store = self.store(partition)?;
            let log = store.log(partition.0).ok_or(ReplayError::UnknownPartition(partition.0))?;
            if let Some(reason) = &log.damage {
                return Err(ReplayError::Damaged { partition: partition.0, reason: reason.clone() });
            }
            if from.0 > log.tail.position {
                return Ok(Vec::new());
            }
            log.reader(partition.0, from.0)?
        };
        self.read(partition, move || reader.read()).await
    }

    async fn read_piece_now(
        &self,
        partition: PartitionId,
        at: LogPosition,
        index: u32,
    ) -> Result<Bytes, ReplayError> {
        let reader = {
            let store = self.store(partition)?;
            let log = store.log(partition.0).ok_or(ReplayError::UnknownPartition(partition.0))?;
            let first = LogPosition(log.first());
            log.piece(at, index).ok_or(ReplayError::Truncated { first })?
        };
        self.read(partition, move || reader.read()).await
    }

    fn snapshot_now(&self, partition: PartitionId) -> Result<Option<Snapshot>, ReplayError> {
        let store = self.store(partition)?;
        let log = store.log(partition.0).ok_or(ReplayError::UnknownPartition(partition.0))?;
        Ok(log.snapshot())
    }

    /// On a thread that may wait for the disk.
    async fn read<T: Send + 'static>(
        &self,
        partition: PartitionId,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, ReplayError> {
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.unwrap_or_else(|_| Err("its files make no sense".to_owned()));
        read.map_err(|reason| {
            let path = self.shared.path().display();
            let reason = format!("{path}: {reason}: restore the store from a backup, or move it away");
            ReplayError::Damaged { partition: partition.0, reason }
        })
    }

    fn store(&self, partition: PartitionId) -> Result<Arc<Store>, ReplayError> {
        if partition.0 >= self.partitions {
            return Err(ReplayError::UnknownPartition(partition.0));
        }
        self.shared.store().ok_or_else(|| ReplayError::Unavailable("the store is being reopened".to_owned()))
    }
}

impl Drop for LocalEngine {
    /// Waits for what was handed over to be written.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // It panicked: that was told when it happened.
            let _ = writer.join();
        }
    }
}

impl Engine for LocalEngine {
    fn join(&self, node: NodeRecord) -> EngineFuture<'_, Result<Box<dyn Membership>, JoinError>> {
        Box::pin(async { self.shared.leases().join(node) })
    }

    fn watch(&self) -> EngineFuture<'_, Result<Box<dyn Watch>, Unavailable>> {
        Box::pin(async { Ok(self.shared.leases().watch()) })
    }

    fn claim(&self, partition: PartitionId, node: &NodeId) -> EngineFuture<'_, Result<Claim, ClaimError>> {
        let node = node.clone();
        Box::pin(async move {
            let claimed = self.run(move |writer| writer.claim(partition, &node)).await;
            claimed.unwrap_or_else(|| Err(ClaimError::Unavailable(WRITER_GONE.to_owned())))
        })
    }

    fn append<'a>(
        &'a self,
        claim: &'a mut Claim,
        frame: Bytes,
    ) -> EngineFuture<'a, Result<LogPosition, AppendError>> {
        Box::pin(self.append_now(claim, frame))
    }

    fn replay(
        &self,
        partition: PartitionId,
        from: LogPosition,
    ) -> EngineFuture<'_, Result<Vec<(LogPosition, Bytes)>, ReplayError>> {
        Box::pin(self.replay_now(partition, from))
    }

    fn propose<'a>(
        &'a self,
        claim: &'a Claim,
        next: Option<&'a NodeId>,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        let (partition, term, next) = (claim.partition(), claim.term(), next.cloned());
        Box::pin(
            self.write(move |writer| writer.change(partition, |record| record.proposed(term, next.as_ref()))),
        )
    }

    fn ready<'a>(
        &'a self,
        partition: PartitionId,
        term: u64,
        node: &'a NodeId,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        let node = node.clone();
        Box::pin(self.write(move |writer| writer.change(partition, |record| record.readied(term, &node))))
    }

    fn note_high_water<'a>(&'a self, claim: &'a Claim) -> EngineFuture<'a, Result<(), AppendError>> {
        let (partition, term, tail) = (claim.partition(), claim.term(), claim.tail().0);
        Box::pin(self.write(move |writer| writer.change(partition, |record| record.noted(term, tail))))
    }

    fn put_piece<'a>(
        &'a self,
        claim: &'a Claim,
        at: LogPosition,
        index: u32,
        piece: Bytes,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        let (partition, term) = (claim.partition(), claim.term());
        Box::pin(async move {
            if piece.len() > MAX_FRAME {
                return Err(AppendError::TooLarge { bytes: piece.len(), limit: MAX_FRAME });
            }
            self.write(move |writer| writer.put_piece(partition, term, at, index, &piece)).await
        })
    }

    fn finish_snapshot<'a>(
        &'a self,
        claim: &'a Claim,
        snapshot: Snapshot,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        let (partition, term) = (claim.partition(), claim.term());
        Box::pin(self.write(move |writer| writer.finish_snapshot(partition, term, snapshot)))
    }

    fn snapshot(&self, partition: PartitionId) -> EngineFuture<'_, Result<Option<Snapshot>, ReplayError>> {
        Box::pin(async move { self.snapshot_now(partition) })
    }

    fn read_piece(
        &self,
        partition: PartitionId,
        at: LogPosition,
        index: u32,
    ) -> EngineFuture<'_, Result<Bytes, ReplayError>> {
        Box::pin(self.read_piece_now(partition, at, index))
    }

    fn release(&self, claim: Claim, to: Option<NodeId>) -> EngineFuture<'_, ()> {
        let (partition, term, tail) = (claim.partition(), claim.term(), claim.tail().0);
        Box::pin(async move {
            let released = self.write(move |writer| {
                let given_up = |record: &PartitionRecord| record.given_up(term, tail, to);
                writer.change(partition, |record| given_up(record).ok_or(AppendError::Fenced))
            });
            // It was another's already, or the store is gone: nothing is left to give up.
            let _ = released.await;
        })
    }

    fn takes_frames(&self, _partition: PartitionId) -> EngineFuture<'_, bool> {
        Box::pin(async { self.run(Writer::takes_frames).await.unwrap_or(false) })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: true,
            replicated: false,
            shared: false,
            max_frame: MAX_FRAME,
            lease: self.shared.leases().lease(),
        }
    }

    fn about(&self) -> About {
        About { name: "local", version: None }
    }
}

fn lock(path: &Path) -> Result<File, LocalError> {
    let name = path.join("lock");
    let io = |error| LocalError::Io { path: name.clone(), error };
    let file = File::options().create(true).truncate(false).write(true).open(&name).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LocalError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

const MAX_FRAME: usize = 8 << 20;
/// Each partition has one append on the way, and hardly anything else.
const QUEUE: usize = 1024;
const WRITER_GONE: &str = "the thread that writes the store ended: restart the node";

#[cfg(test)]
mod tests;
