//! The thread that writes: whatever waits for it becomes one batch with one sync.
//!
//! A write that failed, for a full disk or a failing one, is told as refused. The library writes no more then, but reads on;
//! when the next frame comes and the disk takes something again, the database is closed and opened anew; what the failed
//! write may have left is taken out first, since nobody was told that it is kept. (A process that ends before it comes
//! to that may find such a frame when it starts: refused, yet stored.)

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::Keyspace;
use tidegate_protocol::NodeId;
use tidegate_transport::clock;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::LocalConfig;
use super::frame::{self, Mark};
use super::room::{Room, probe, remedy};
use super::store::{SegmentBounds, Store, describe};
use super::table::{Row, TableFile};
use super::tails::TailsFile;
use crate::engine::leases::Leases;
use crate::engine::{AppendError, Claim, ClaimError, LogPosition, PartitionId, PartitionRecord, Snapshot};

/// What the writer and all readers have in common.
#[derive(Debug)]
pub(super) struct Shared {
    leases: Leases,
    path: PathBuf,
    /// `None` while it is opened anew. One that failed is read on until then.
    store: RwLock<Option<Arc<Store>>>,
}

impl Shared {
    /// With an open store.
    pub(super) fn new(leases: Leases, store: Store) -> Self {
        Self { leases, path: store.path().to_owned(), store: RwLock::new(Some(Arc::new(store))) }
    }

    /// Nodes and owners.
    pub(super) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Where the frames are.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// To be let go soon: it cannot be opened anew before.
    pub(super) fn store(&self) -> Option<Arc<Store>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_store(&self, store: Option<Store>) {
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = store.map(Arc::new);
    }
}

/// What the writer is asked for.
pub(super) enum Command {
    /// A frame.
    Append(Append),
    /// Anything else, alone, in its turn.
    Run(Box<dyn FnOnce(&mut Writer) + Send>),
}

impl Command {
    fn strike_from(&self, partitions: &mut BTreeSet<u16>) {
        if let Self::Append(append) = self {
            partitions.remove(&append.partition);
        }
    }
}

/// A frame to write.
pub(super) struct Append {
    /// Whose log.
    pub(super) partition: u16,
    /// The claim's.
    pub(super) term: u64,
    /// Where the claim stands.
    pub(super) tail: u64,
    /// The bytes.
    pub(super) frame: Bytes,
    /// Told when it is on the disk.
    pub(super) answer: oneshot::Sender<Result<(), AppendError>>,
}

/// What is written beside the logs.
pub(super) struct Files {
    /// Owners and epochs.
    pub(super) table: TableFile,
    /// Ends of logs.
    pub(super) tails: TailsFile,
}

/// The writer's state.
pub(super) struct Writer {
    config: LocalConfig,
    segments: SegmentBounds,
    shared: Arc<Shared>,
    table: TableFile,
    tails: TailsFile,
    /// The first position of each partition's epoch.
    begins: Vec<u64>,
    /// For the next log that begins anew.
    epoch: u64,
    /// Snapshots that are being written.
    unfinished: BTreeMap<u16, Unfinished>,
    /// The table file is behind, though by nothing that must not get lost.
    dirty: bool,
    saved: Instant,
    failed: Option<Failed>,
    room: Room,
    last: LastCommit,
}

/// Whom the last sync was for, how long it took, and when it was done.
struct LastCommit {
    partitions: BTreeSet<u16>,
    took: Duration,
    at: Instant,
}

struct Unfinished {
    term: u64,
    at: LogPosition,
    pieces: u32,
    keyspace: Keyspace,
}

/// Why the store takes nothing, and what was acknowledged before.
struct Failed {
    reason: String,
    tails: Vec<Mark>,
    tried: Instant,
}

/// What becomes of a frame.
enum Admitted {
    /// It goes behind this one.
    Behind(Mark),
    /// It is there already.
    Stored,
}

impl Writer {
    /// Of a store that is open.
    pub(super) fn new(
        config: LocalConfig,
        shared: Arc<Shared>,
        files: Files,
        begins: Vec<u64>,
        epoch: u64,
    ) -> Self {
        let age = config.retain_age / SEGMENTS;
        let segments = SegmentBounds {
            bytes: (config.retain_bytes / u64::from(SEGMENTS)).max(1),
            age_ms: millis(age).max(1),
        };
        let (unfinished, saved) = (BTreeMap::new(), clock::now());
        let room = Room::new(&config.path, config.reserve);
        let last = LastCommit { partitions: BTreeSet::new(), took: Duration::ZERO, at: saved };
        Self {
            config,
            segments,
            shared,
            table: files.table,
            tails: files.tails,
            begins,
            epoch,
            unfinished,
            dirty: false,
            saved,
            failed: None,
            room,
            last,
        }
    }

    /// Until nobody can ask any more.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let (mut commands, mut appends) = (Vec::new(), Vec::<Append>::new());
        while queue.blocking_recv_many(&mut commands, BATCH) > 0 {
            self.gather(&mut queue, &mut commands);
            for command in commands.drain(..) {
                match command {
                    Command::Append(append) => {
                        // One that is sent again while the first one waits must find that one written.
                        if appends.iter().any(|other| other.partition == append.partition) {
                            self.commit(&mut appends);
                        }
                        appends.push(append);
                    }
                    Command::Run(run) => {
                        self.commit(&mut appends);
                        run(&mut self);
                    }
                }
            }
            self.commit(&mut appends);
            if self.dirty && clock::now().saturating_duration_since(self.saved) >= SAVE_INTERVAL {
                self.save_in_time();
            }
        }
        self.close();
    }

    /// Waits for those whose last frame was just written and who are likely to have the next one in a moment: without
    /// it, all fall into two halves, each of which waits for the sync of the other. Nobody waits where the disk is
    /// fast, where a writer is alone, or after a pause.
    fn gather(&self, queue: &mut mpsc::Receiver<Command>, commands: &mut Vec<Command>) {
        let linger = (self.last.took / 4).min(MAX_LINGER);
        if linger < MIN_LINGER || clock::now().saturating_duration_since(self.last.at) > linger {
            return;
        }
        let mut missing = self.last.partitions.clone();
        for command in &*commands {
            command.strike_from(&mut missing);
        }
        while !missing.is_empty() && commands.len() < BATCH {
            match queue.try_recv() {
                Ok(command) => {
                    command.strike_from(&mut missing);
                    commands.push(command);
                }
                Err(TryRecvError::Empty) if clock::now().saturating_duration_since(self.last.at) < linger => {
                    thread::sleep(MIN_LINGER / 2);
                }
                Err(_) => break,
            }
        }
    }

    /// Takes the partition, from a log that is what it was, or from a new one.
    pub(super) fn claim(&mut self, partition: PartitionId, node: &NodeId) -> Result<Claim, ClaimError> {
        let index = usize::from(partition.0);
        let record = self.shared.leases.partition(partition);
        let record = record.ok_or(ClaimError::UnknownPartition(partition.0))?;
        // One that takes nothing is read from.
        let store = self.shared.store().map_or_else(|| self.store(), Ok).map_err(ClaimError::Unavailable)?;
        let unknown = ClaimError::UnknownPartition(partition.0);
        let tail = {
            let log = store.log(partition.0).ok_or(unknown)?;
            if let Some(reason) = &log.damage {
                let reason = format!("{reason}: restore the store from a backup, or move it away");
                return Err(ClaimError::Damaged { partition: partition.0, reason });
            }
            log.tail.position
        };
        let mut epoch = record.epoch;
        let mut begin = self.begins[index];
        let high_water = record.high_water.max(self.tails.get(partition.0));
        let is_lost = tail < high_water;
        if is_lost {
            let partition = partition.0;
            error!(partition, tail, high_water, "the end of a log was lost: its channels begin anew");
            store.begin_anew(partition).map_err(|error| ClaimError::Unavailable(self.fail(&error)))?;
            epoch = self.epoch;
            self.epoch = self.epoch.wrapping_add(1);
            begin = tail + 1;
        }
        let record = record.claimed(node, epoch, tail);
        let mut rows = self.rows();
        rows[index] = Row { record: record.clone(), begin };
        // Before anything is written under the term.
        self.save(&rows).map_err(|error| ClaimError::Unavailable(self.save_failed(&error)))?;
        if is_lost {
            // Not before: until the epoch is another one on the disk, this is what asks for it.
            self.tails.set(partition.0, tail);
            self.tails.write().map_err(|error| ClaimError::Unavailable(self.tails_failed(&error)))?;
        }
        self.begins[index] = begin;
        self.unfinished.remove(&partition.0);
        let first = store.log(partition.0).map_or(tail + 1, |log| log.first());
        let claim = Claim::new(partition, record.term, record.epoch, LogPosition(first), LogPosition(tail));
        self.shared.leases.set_partition(partition, record);
        Ok(claim)
    }

    /// Changes who owns the partition, or is to.
    pub(super) fn change(
        &mut self,
        partition: PartitionId,
        change: impl FnOnce(&PartitionRecord) -> Result<PartitionRecord, AppendError>,
    ) -> Result<(), AppendError> {
        let record = self.shared.leases.partition(partition).ok_or(AppendError::Fenced)?;
        self.shared.leases.set_partition(partition, change(&record)?);
        self.dirty = true;
        Ok(())
    }

    /// Writes a piece of a snapshot; the first begins another one.
    pub(super) fn put_piece(
        &mut self,
        partition: PartitionId,
        term: u64,
        at: LogPosition,
        index: u32,
        piece: &[u8],
    ) -> Result<(), AppendError> {
        self.check_term(partition, term)?;
        let store = self.store().map_err(AppendError::Refused)?;
        if index == 0 {
            if store.log(partition.0).is_none_or(|log| log.tail.position < at.0) {
                return Err(out_of_order());
            }
            if let Some(abandoned) = self.unfinished.remove(&partition.0) {
                store.drop_keyspace(abandoned.keyspace);
            }
            let keyspace = store.begin_snapshot(partition.0).map_err(|error| self.refuse(&error))?;
            self.unfinished.insert(partition.0, Unfinished { term, at, pieces: 0, keyspace });
        }
        let written = self.unfinished.get_mut(&partition.0);
        // The last one may come again: its writer did not hear that it was written.
        let written = written.filter(|written| {
            (written.term, written.at) == (term, at)
                && (written.pieces.saturating_sub(1)..=written.pieces).contains(&index)
        });
        let Some(written) = written else { return Err(out_of_order()) };
        match Store::put_piece(&written.keyspace, index, piece) {
            Ok(()) => {
                written.pieces = index + 1;
                Ok(())
            }
            Err(error) => Err(self.refuse(&error)),
        }
    }

    /// Makes the pieces the partition's snapshot, and drops frames that nobody needs any more.
    pub(super) fn finish_snapshot(
        &mut self,
        partition: PartitionId,
        term: u64,
        snapshot: Snapshot,
    ) -> Result<(), AppendError> {
        self.check_term(partition, term)?;
        let store = self.store().map_err(AppendError::Refused)?;
        let written = self.unfinished.remove(&partition.0);
        match written {
            Some(written)
                if (written.term, written.at, written.pieces) == (term, snapshot.at, snapshot.pieces) =>
            {
                let finished = store.finish_snapshot(partition.0, snapshot, written.keyspace);
                finished.map_err(|error| self.refuse(&error))?;
                self.retain(&store, partition.0);
                Ok(())
            }
            Some(other) => {
                self.unfinished.insert(partition.0, other);
                Err(out_of_order())
            }
            None if store.log(partition.0).and_then(|log| log.snapshot()) == Some(snapshot) => Ok(()),
            None => Err(out_of_order()),
        }
    }

    /// Writes what waits, and says so when it is on the disk.
    fn commit(&mut self, appends: &mut Vec<Append>) {
        if appends.is_empty() {
            return;
        }
        let store = match self.room.check().and_then(|()| self.store()) {
            Ok(store) => store,
            Err(reason) => return refuse_all(appends.drain(..), &reason),
        };
        let now_ms = clock::unix_ms();
        let mut batch = store.batch();
        let mut written = Vec::with_capacity(appends.len());
        let mut rolled = Vec::new();
        let mut appends = appends.drain(..);
        while let Some(append) = appends.next() {
            let before = match self.admit(&store, &append) {
                Ok(Admitted::Behind(before)) => before,
                Ok(Admitted::Stored) => {
                    answer(append, Ok(()));
                    continue;
                }
                Err(error) => {
                    answer(append, Err(error));
                    continue;
                }
            };
            let (segment, is_new) = match store.segment(append.partition, &before, now_ms, &self.segments) {
                Ok(segment) => segment,
                Err(error) => {
                    let reason = self.fail(&error);
                    let written = written.into_iter().map(|(append, _)| append);
                    return refuse_all(written.chain([append]).chain(appends), &reason);
                }
            };
            let (mark, stored) = frame::seal(append.partition, &before, now_ms, &append.frame);
            batch.insert(&segment, mark.position.to_be_bytes(), stored);
            if is_new {
                rolled.push(append.partition);
            }
            written.push((append, mark));
        }
        let began = clock::now();
        let committed = catch_unwind(AssertUnwindSafe(|| batch.commit()));
        let committed = committed.unwrap_or(Err(fjall::Error::Unrecoverable)).and_then(|()| {
            for (append, mark) in &written {
                self.tails.set(append.partition, mark.position);
            }
            Ok(self.tails.write()?)
        });
        if let Err(error) = committed {
            let reason = self.fail(&error);
            return refuse_all(written.into_iter().map(|(append, _)| append), &reason);
        }
        let at = clock::now();
        let partitions = written.iter().map(|(append, _)| append.partition).collect();
        self.last = LastCommit { partitions, took: at.saturating_duration_since(began), at };
        for (append, mark) in written {
            if let Some(mut log) = store.log(append.partition) {
                log.tail = mark;
            }
            answer(append, Ok(()));
        }
        for partition in rolled {
            self.retain(&store, partition);
        }
    }

    /// Whether there is room, and a store to write to: opens it anew if need be.
    pub(super) fn takes_frames(&mut self) -> bool {
        self.room.check().is_ok() && self.store().is_ok()
    }

    fn admit(&self, store: &Store, append: &Append) -> Result<Admitted, AppendError> {
        self.check_term(PartitionId(append.partition), append.term)?;
        let log = store.log(append.partition).ok_or(AppendError::Fenced)?;
        if log.tail.position == append.tail {
            return Ok(Admitted::Behind(log.tail));
        }
        // Only the frame that is in flight may be sent again.
        match log.read(append.partition, append.tail + 1) {
            Ok(Some(stored)) if stored.body == append.frame => Ok(Admitted::Stored),
            Ok(_) => Err(AppendError::Fenced),
            Err(reason) => Err(AppendError::Refused(reason)),
        }
    }

    fn check_term(&self, partition: PartitionId, term: u64) -> Result<(), AppendError> {
        match self.shared.leases.partition(partition) {
            Some(record) if record.term == term => Ok(()),
            _ => Err(AppendError::Fenced),
        }
    }

    fn retain(&self, store: &Store, partition: u16) {
        let age_ms = millis(self.config.retain_age);
        store.retain(partition, clock::unix_ms(), self.config.retain_bytes, age_ms);
    }

    /// The store to write to, opened anew where it failed; the error says why that cannot be.
    fn store(&mut self) -> Result<Arc<Store>, String> {
        let now = clock::now();
        let Some(failed) = &mut self.failed else {
            return self.shared.store().ok_or_else(|| "it was closed".to_owned());
        };
        if now.saturating_duration_since(failed.tried) < REOPEN_INTERVAL {
            return Err(failed.reason.clone());
        }
        failed.tried = now;
        let reopened = probe(&self.config.path).map_err(|error| error.to_string()).and_then(|()| {
            // There is a lock on the files; whoever reads them holds it for a moment longer.
            self.shared.set_store(None);
            reopen(self.shared.path(), &self.begins, &failed.tails)
        });
        match reopened {
            Ok(store) => {
                info!(path = %self.config.path.display(), "the store takes frames again");
                self.forget_lost(&store);
                self.shared.set_store(Some(store));
                self.failed = None;
                self.shared.store().ok_or_else(|| "it was closed".to_owned())
            }
            Err(reason) => {
                failed.reason = remedy(&self.config.path, &reason);
                Err(failed.reason.clone())
            }
        }
    }

    /// A log that came back shorter than what was acknowledged: its owner is fenced, and the next claim finds out.
    fn forget_lost(&mut self, store: &Store) {
        let tails = self.failed.as_ref().map(|failed| failed.tails.clone()).unwrap_or_default();
        for (partition, tail) in (0..).zip(tails) {
            let id = PartitionId(partition);
            let lost = store.log(partition).is_some_and(|log| log.tail.position < tail.position);
            if let Some(record) = self.shared.leases.partition(id).filter(|_| lost) {
                let term = record.term + 1;
                let high_water = tail.position.max(record.high_water);
                let record = PartitionRecord { owner: None, term, high_water, ..record };
                self.shared.leases.set_partition(id, record);
                self.dirty = true;
            }
        }
    }

    fn refuse(&mut self, error: &fjall::Error) -> AppendError {
        AppendError::Refused(self.fail(error))
    }

    /// Writes nothing more until the store is opened anew; returns why, and what to do.
    fn fail(&mut self, error: &fjall::Error) -> String {
        let reason = remedy(&self.config.path, &describe(error));
        error!(%reason, "a write failed");
        if let Some(store) = self.shared.store().filter(|_| self.failed.is_none()) {
            let partitions = (0..).take(self.begins.len());
            let tails: Vec<Mark> =
                partitions.filter_map(|partition| Some(store.log(partition)?.tail)).collect();
            // What was not acknowledged may be in the file of tails already.
            for (partition, tail) in (0..).zip(&tails) {
                self.tails.set(partition, tail.position);
            }
            self.failed = Some(Failed { reason: reason.clone(), tails, tried: clock::now() });
        }
        self.unfinished.clear();
        reason
    }

    fn rows(&self) -> Vec<Row> {
        let records = (0..).map(|partition| self.shared.leases.partition(PartitionId(partition)));
        let rows = self.begins.iter().zip(records);
        rows.map(|(begin, record)| Row { record: record.unwrap_or_default(), begin: *begin }).collect()
    }

    fn save(&mut self, rows: &[Row]) -> io::Result<()> {
        self.table.save(rows)?;
        (self.dirty, self.saved) = (false, clock::now());
        Ok(())
    }

    /// What may be lost in a crash: the next time will do as well.
    fn save_in_time(&mut self) {
        if let Err(error) = self.save(&self.rows()) {
            self.saved = clock::now();
            warn!("{}", self.save_failed(&error));
        }
    }

    fn save_failed(&self, error: &io::Error) -> String {
        remedy(self.table.path(), &error.to_string())
    }

    fn tails_failed(&self, error: &io::Error) -> String {
        remedy(self.tails.location(), &error.to_string())
    }

    /// Notes the end of each log exactly, since no more comes.
    fn close(&mut self) {
        if let Some(store) = self.shared.store() {
            for partition in (0..).take(self.begins.len()) {
                let tail = store.log(partition).map_or(0, |log| log.tail.position);
                let noted = self.change(PartitionId(partition), |record| record.noted(record.term, tail));
                debug_assert!(noted.is_ok(), "of its own term");
            }
        }
        if self.dirty {
            self.save_in_time();
        }
        self.unfinished.clear();
        self.shared.set_store(None);
    }
}

/// Opens a store that failed, as it was when it last kept something.
fn reopen(frames: &Path, begins: &[u64], tails: &[Mark]) -> Result<Store, String> {
    let store = Store::open(frames, begins)?;
    for (partition, tail) in (0..).zip(tails) {
        if store.log(partition).is_some_and(|log| log.tail.position >= tail.position) {
            store.cut(partition, tail)?;
        }
    }
    Ok(store)
}

fn refuse_all(appends: impl Iterator<Item = Append>, reason: &str) {
    for append in appends {
        answer(append, Err(AppendError::Refused(reason.to_owned())));
    }
}

fn answer(append: Append, result: Result<(), AppendError>) {
    // Who was cut off hears nothing; the frame is kept all the same.
    let _ = append.answer.send(result);
}

fn out_of_order() -> AppendError {
    AppendError::Refused("pieces of a snapshot were not written in order".to_owned())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What is kept of a log is dropped in this many parts.
const SEGMENTS: u32 = 4;
/// Commands of one batch.
const BATCH: usize = 256;
const MIN_LINGER: Duration = Duration::from_micros(100);
const MAX_LINGER: Duration = Duration::from_millis(1);
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
const REOPEN_INTERVAL: Duration = Duration::from_millis(500);
