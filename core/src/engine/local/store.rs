//! The files: a fjall database with a keyspace for each segment of a log, one for each snapshot, and one that says which
//! snapshots are complete.
//!
//! A segment is dropped whole: that costs a few file deletions, where single frames would cost tombstones and
//! compaction. Names: `log-<partition>-<first position>`, `snapshot-<partition>-<number>`, `snapshots`.

use std::collections::VecDeque;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use serde::{Deserialize, Serialize};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use super::frame::{self, Mark};
use crate::engine::{LogPosition, ReplayError, Snapshot};

/// The database, open.
pub(super) struct Store {
    path: PathBuf,
    database: Database,
    snapshots: Keyspace,
    logs: Vec<Mutex<Log>>,
    memtable: u64,
}

/// What is known of one log without reading it.
pub(super) struct Log {
    /// The first position of the epoch.
    begin: u64,
    /// Oldest first; the last is written to.
    segments: VecDeque<Segment>,
    /// The last frame that is kept for certain.
    pub(super) tail: Mark,
    snapshot: Option<Kept>,
    /// Why it cannot be read.
    pub(super) damage: Option<String>,
}

struct Segment {
    first: u64,
    keyspace: Keyspace,
    /// Before its first frame.
    before: Mark,
    /// When its first frame was written.
    since_ms: u64,
}

struct Kept {
    row: SnapshotRow,
    keyspace: Keyspace,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SnapshotRow {
    at: u64,
    pieces: u32,
    keyspace: String,
}

impl Store {
    /// Opens what is there, or makes it. A library that panics over a damaged file is an error like others.
    /// `begins`: for each partition, the first position of its epoch.
    pub(super) fn open(path: &Path, begins: &[u64]) -> Result<Self, String> {
        let opened = catch_unwind(AssertUnwindSafe(|| Self::try_open(path, begins)));
        let opened = opened.unwrap_or_else(|_| Err("its files make no sense".to_owned()));
        opened.map_err(|reason| format!("{}: {reason}", path.display()))
    }

    fn try_open(path: &Path, begins: &[u64]) -> Result<Self, String> {
        let fail = |error: fjall::Error| describe(&error);
        let database = Database::builder(path)
            .cache_size(CACHE)
            .manual_journal_persist(true)
            .max_journaling_size(JOURNALS)
            .worker_threads(WORKERS)
            .open()
            .map_err(fail)?;
        let memtable = (MEMTABLES / (begins.len().max(1) as u64)).clamp(1 << 20, 16 << 20);
        let snapshots = database.keyspace("snapshots", || options(1 << 20)).map_err(fail)?;
        let logs = begins.iter().map(|begin| Mutex::new(Log::new(*begin))).collect();
        let store = Self { path: path.to_owned(), database, snapshots, logs, memtable };
        store.load_segments()?;
        store.load_snapshots()?;
        Ok(store)
    }

    fn load_segments(&self) -> Result<(), String> {
        let mut names: Vec<String> =
            self.database.list_keyspace_names().iter().map(|name| name.to_string()).collect();
        // Positions have leading zeros: the order of names is the order of segments.
        names.sort_unstable();
        for name in names {
            let Some((partition, first)) = parse(&name, "log") else { continue };
            let Some(mut log) = self.log(partition) else {
                return Err(format!("{name} is of no partition of this store"));
            };
            let keyspace = self.keyspace(&name).map_err(|error| describe(&error))?;
            if !log.segments.is_empty()
                && first != log.tail.position + 1
                && keyspace.is_empty().map_err(|error| describe(&error))?
            {
                // Made for a frame that never came, behind frames that are lost.
                self.drop_keyspace(keyspace);
                continue;
            }
            if let Err(reason) = log.push_loaded(partition, first, keyspace) {
                log.damage.get_or_insert_with(|| format!("{}: {reason}", self.path.display()));
            }
        }
        Ok(())
    }

    fn load_snapshots(&self) -> Result<(), String> {
        let mut kept = Vec::new();
        for partition in (0..).take(self.logs.len()) {
            let row = self.snapshots.get(key(partition)).map_err(|error| describe(&error))?;
            let Some(row) = row else { continue };
            let damaged = || format!("the row of partition {partition}'s snapshot is damaged");
            let row: SnapshotRow = serde_json::from_slice(&row).map_err(|_| damaged())?;
            if !self.database.keyspace_exists(&row.keyspace) {
                return Err(damaged());
            }
            let keyspace = self.keyspace(&row.keyspace).map_err(|error| describe(&error))?;
            kept.push(row.keyspace.clone());
            if let Some(mut log) = self.log(partition) {
                log.snapshot = Some(Kept { row, keyspace });
            }
        }
        // Begun and never finished, or not yet dropped when the process ended.
        for name in self.database.list_keyspace_names() {
            if parse(&name, "snapshot").is_some() && !kept.iter().any(|kept| **kept == *name) {
                let keyspace = self.keyspace(&name).map_err(|error| describe(&error))?;
                self.drop_keyspace(keyspace);
            }
        }
        Ok(())
    }

    /// Its directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A partition's log, locked.
    pub(super) fn log(&self, partition: u16) -> Option<MutexGuard<'_, Log>> {
        // No method of `Log` leaves it half changed.
        Some(self.logs.get(usize::from(partition))?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Moves what the log has in memory to tables.
    #[cfg(test)]
    pub(super) fn flush(&self, partition: u16) {
        for segment in &self.log(partition).expect("there").segments {
            segment.keyspace.rotate_memtable_and_wait().expect("flushed");
        }
    }

    /// A batch that is on the disk once it is committed.
    pub(super) fn batch(&self) -> OwnedWriteBatch {
        self.database.batch().durability(Some(PersistMode::SyncData))
    }

    /// The segment that the frame behind `tail` goes to; a new one, and true, where the last is full.
    pub(super) fn segment(
        &self,
        partition: u16,
        tail: &Mark,
        time_ms: u64,
        bounds: &SegmentBounds,
    ) -> Result<(Keyspace, bool), fjall::Error> {
        let Some(mut log) = self.log(partition) else { return Err(fjall::Error::KeyspaceDeleted) };
        if let Some(last) = log.segments.back()
            && tail.total - last.before.total < bounds.bytes
            && time_ms.saturating_sub(last.since_ms) < bounds.age_ms
        {
            return Ok((last.keyspace.clone(), false));
        }
        let first = tail.position + 1;
        let keyspace = self.keyspace(&format!("log-{partition:05}-{first:020}"))?;
        if log.segments.back().is_none_or(|last| last.first != first) {
            let segment = Segment { first, keyspace: keyspace.clone(), before: *tail, since_ms: time_ms };
            log.segments.push_back(segment);
        }
        Ok((keyspace, true))
    }

    /// Takes out what was written behind `tail` and never acknowledged.
    pub(super) fn cut(&self, partition: u16, tail: &Mark) -> Result<(), String> {
        let fail = |error: fjall::Error| describe(&error);
        let mut log = self.log(partition).ok_or("no such partition")?;
        while log.segments.back().is_some_and(|last| last.first > tail.position + 1) {
            if let Some(segment) = log.segments.pop_back() {
                self.drop_keyspace(segment.keyspace);
            }
        }
        if let Some(last) = log.segments.back() {
            let mut batch = self.batch();
            for entry in last.keyspace.range((tail.position + 1).to_be_bytes()..) {
                batch.remove(&last.keyspace, entry.key().map_err(fail)?);
            }
            batch.commit().map_err(fail)?;
        }
        log.tail = *tail;
        Ok(())
    }

    /// Drops the segments that hold nothing but what the snapshot has and what is over the bounds.
    pub(super) fn retain(&self, partition: u16, now_ms: u64, retain_bytes: u64, retain_age_ms: u64) {
        let Some(mut log) = self.log(partition) else { return };
        let log = &mut *log;
        let Some(at) = log.snapshot.as_ref().map(|kept| kept.row.at) else { return };
        // The last one is written to.
        while let [oldest, next, ..] = log.segments.make_contiguous() {
            let last = next.before;
            let over = log.tail.total - oldest.before.total > retain_bytes
                || now_ms.saturating_sub(last.time_ms) > retain_age_ms;
            if !over || last.position > at {
                break;
            }
            if let Some(segment) = log.segments.pop_front() {
                self.drop_keyspace(segment.keyspace);
            }
        }
    }

    /// Drops the whole log, frames and snapshot; the next frame goes behind its tail.
    pub(super) fn begin_anew(&self, partition: u16) -> Result<(), fjall::Error> {
        let Some(mut log) = self.log(partition) else { return Ok(()) };
        let log = &mut *log;
        let mut batch = self.batch();
        batch.remove(&self.snapshots, key(partition));
        batch.commit()?;
        let snapshot = log.snapshot.take().map(|kept| kept.keyspace);
        for keyspace in snapshot.into_iter().chain(log.segments.drain(..).map(|segment| segment.keyspace)) {
            self.drop_keyspace(keyspace);
        }
        *log = Log::new(log.tail.position + 1);
        Ok(())
    }

    /// A place for the pieces of a snapshot.
    pub(super) fn begin_snapshot(&self, partition: u16) -> Result<Keyspace, fjall::Error> {
        let names = self.database.list_keyspace_names();
        let numbers = names.iter().filter_map(|name| parse(name, "snapshot"));
        let newest = numbers.filter(|(of, _)| *of == partition).map(|(_, number)| number).max();
        let number = newest.map_or(0, |newest| newest + 1);
        self.keyspace(&format!("snapshot-{partition:05}-{number:020}"))
    }

    /// Writes a piece: on the disk with the snapshot's end.
    pub(super) fn put_piece(keyspace: &Keyspace, index: u32, piece: &[u8]) -> Result<(), fjall::Error> {
        let mut stored = xxh3_64(piece).to_be_bytes().to_vec();
        stored.extend_from_slice(piece);
        keyspace.insert(index.to_be_bytes(), stored)
    }

    /// Makes the pieces the partition's snapshot and drops the older one.
    pub(super) fn finish_snapshot(
        &self,
        partition: u16,
        snapshot: Snapshot,
        keyspace: Keyspace,
    ) -> Result<(), fjall::Error> {
        let row =
            SnapshotRow { at: snapshot.at.0, pieces: snapshot.pieces, keyspace: keyspace.name().to_string() };
        let text = serde_json::to_vec(&row).map_err(std::io::Error::from)?;
        let mut batch = self.batch();
        batch.insert(&self.snapshots, key(partition), text);
        batch.commit()?;
        let Some(mut log) = self.log(partition) else { return Ok(()) };
        if let Some(older) = log.snapshot.replace(Kept { row, keyspace }) {
            self.drop_keyspace(older.keyspace);
        }
        Ok(())
    }

    /// What is dropped and stays, for a full disk, goes when the store is opened the next time.
    pub(super) fn drop_keyspace(&self, keyspace: Keyspace) {
        let name = keyspace.name().to_string();
        if let Err(error) = self.database.delete_keyspace(keyspace) {
            warn!(path = %self.path.display(), %name, %error, "an old part of the store was not dropped");
        }
    }

    fn keyspace(&self, name: &str) -> Result<Keyspace, fjall::Error> {
        self.database.keyspace(name, || options(self.memtable))
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

/// When a segment is full.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentBounds {
    /// Of frames.
    pub(super) bytes: u64,
    /// From its first frame on.
    pub(super) age_ms: u64,
}

impl Log {
    /// Empty; the next frame is the epoch's first.
    fn new(begin: u64) -> Self {
        let tail = Mark { position: begin - 1, ..Mark::default() };
        Self { begin, segments: VecDeque::new(), tail, snapshot: None, damage: None }
    }

    fn push_loaded(&mut self, partition: u16, first: u64, keyspace: Keyspace) -> Result<(), String> {
        let fail = |error: fjall::Error| describe(&error);
        let damaged = |position: u64| format!("the frame at {position} is damaged");
        let entry =
            |guard: Option<fjall::Guard>| guard.map(fjall::Guard::into_inner).transpose().map_err(fail);
        let Some((oldest, stored)) = entry(keyspace.first_key_value())? else {
            // Made, and not yet written to.
            if self.segments.is_empty() {
                self.tail.position = first - 1;
            }
            self.segments.push_back(Segment { first, keyspace, before: self.tail, since_ms: 0 });
            return Ok(());
        };
        if *oldest != first.to_be_bytes() {
            return Err(format!("the frame at {first} is missing"));
        }
        let opened = frame::open(partition, first, &stored).ok_or_else(|| damaged(first))?;
        if !self.segments.is_empty() && (first != self.tail.position + 1 || opened.previous != self.tail.link)
        {
            return Err(format!("the frames before {first} are not those that it was written behind"));
        }
        let before = Mark {
            position: first - 1,
            link: opened.previous,
            total: opened.mark.total - opened.body.len() as u64,
            time_ms: self.tail.time_ms,
        };
        let newest = entry(keyspace.last_key_value())?;
        if let Some((position, stored)) = newest {
            let position =
                position.as_ref().try_into().map(u64::from_be_bytes).map_err(|_| damaged(first))?;
            self.tail = frame::open(partition, position, &stored).ok_or_else(|| damaged(position))?.mark;
        }
        self.segments.push_back(Segment { first, keyspace, before, since_ms: opened.mark.time_ms });
        Ok(())
    }

    /// The oldest frame, or the one that comes next.
    pub(super) fn first(&self) -> u64 {
        self.segments.front().map_or(self.tail.position + 1, |oldest| oldest.first.max(self.begin))
    }

    /// In how many parts it can be dropped.
    #[cfg(test)]
    pub(super) fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// The newest snapshot.
    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        let row = &self.snapshot.as_ref()?.row;
        Some(Snapshot { at: LogPosition(row.at), pieces: row.pieces })
    }

    /// The frame at a position that the log holds.
    pub(super) fn read(&self, partition: u16, position: u64) -> Result<Option<frame::Opened>, String> {
        let Some(segment) = self.segments.iter().rev().find(|segment| segment.first <= position) else {
            return Ok(None);
        };
        let stored = segment.keyspace.get(position.to_be_bytes()).map_err(|error| describe(&error))?;
        let Some(stored) = stored else { return Ok(None) };
        let opened = frame::open(partition, position, &stored);
        Ok(Some(opened.ok_or_else(|| format!("the frame at {position} is damaged"))?))
    }

    /// What is to be read from `from` on, without holding the lock.
    pub(super) fn reader(&self, partition: u16, from: u64) -> Result<Reader, ReplayError> {
        let first = self.first();
        if from < first {
            return Err(ReplayError::Truncated { first: LogPosition(first) });
        }
        // The frame before is read as well, for its link.
        let start = (from - 1).max(first);
        let skipped = self.segments.partition_point(|segment| segment.first <= start).saturating_sub(1);
        let segments = self.segments.iter().skip(skipped).map(|segment| segment.keyspace.clone()).collect();
        Ok(Reader { partition, start, from, tail: self.tail.position, segments })
    }

    /// A piece of the snapshot at `at`, to be read without holding the lock.
    pub(super) fn piece(&self, at: LogPosition, index: u32) -> Option<PieceReader> {
        let kept = self.snapshot.as_ref().filter(|kept| kept.row.at == at.0 && index < kept.row.pieces)?;
        Some(PieceReader { keyspace: kept.keyspace.clone(), index })
    }
}

/// Reads frames that were there when it was made.
pub(super) struct Reader {
    partition: u16,
    start: u64,
    from: u64,
    tail: u64,
    segments: Vec<Keyspace>,
}

impl Reader {
    /// The next page; the error is what is damaged.
    pub(super) fn read(self) -> Result<Vec<(LogPosition, Bytes)>, String> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        let (mut next, mut link) = (self.start, None);
        'segments: for segment in &self.segments {
            for entry in segment.range(next.to_be_bytes()..) {
                if next > self.tail || page.len() >= PAGE_FRAMES || bytes >= PAGE_BYTES {
                    break 'segments;
                }
                let (key, stored) = entry.into_inner().map_err(|error| describe(&error))?;
                if *key != next.to_be_bytes() {
                    return Err(format!("the frame at {next} is missing"));
                }
                let opened = frame::open(self.partition, next, &stored)
                    .ok_or_else(|| format!("the frame at {next} is damaged"))?;
                if link.is_some_and(|link| link != opened.previous) {
                    return Err(format!("the frame at {next} was written behind another one"));
                }
                link = Some(opened.mark.link);
                if next >= self.from {
                    bytes += opened.body.len();
                    page.push((LogPosition(next), opened.body));
                }
                next += 1;
            }
        }
        if page.is_empty() && self.from <= self.tail {
            return Err(format!("the frame at {} is missing", self.from));
        }
        Ok(page)
    }
}

/// Reads a piece of a snapshot.
pub(super) struct PieceReader {
    keyspace: Keyspace,
    index: u32,
}

impl PieceReader {
    /// The error is what is damaged.
    pub(super) fn read(self) -> Result<Bytes, String> {
        let damaged = || format!("piece {} of the snapshot is damaged", self.index);
        let stored = self.keyspace.get(self.index.to_be_bytes()).map_err(|error| describe(&error))?;
        let stored = stored.ok_or_else(damaged)?;
        let (checksum, piece) = stored.split_at_checked(8).ok_or_else(damaged)?;
        if checksum == xxh3_64(piece).to_be_bytes() {
            Ok(Bytes::copy_from_slice(piece))
        } else {
            Err(damaged())
        }
    }
}

/// Whether a directory holds a store, or only what is left of an attempt to make one.
pub(super) fn is_complete(path: &Path) -> bool {
    fs::exists(path.join("version")).unwrap_or(true)
}

/// fjall's errors in words.
pub(super) fn describe(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            "the disk is full".to_owned()
        }
        fjall::Error::Io(error) => error.to_string(),
        fjall::Error::Poisoned => "an earlier write failed".to_owned(),
        fjall::Error::Locked => "the store is still being closed".to_owned(),
        fjall::Error::Storage(error) => format!("{error:?}"),
        fjall::Error::JournalRecovery(error) => format!("the journal is damaged: {error:?}"),
        error => format!("{error:?}"),
    }
}

fn parse(name: &str, kind: &str) -> Option<(u16, u64)> {
    let (partition, number) = name.strip_prefix(kind)?.strip_prefix('-')?.split_once('-')?;
    Some((partition.parse().ok()?, number.parse().ok()?))
}

fn key(partition: u16) -> [u8; 2] {
    partition.to_be_bytes()
}

fn options(memtable: u64) -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().manual_journal_persist(true).max_memtable_size(memtable)
}

const CACHE: u64 = 8 << 20;
/// Of all logs together, unless there are very many.
const MEMTABLES: u64 = 64 << 20;
const JOURNALS: u64 = 128 << 20;
/// One flushes while the other compacts.
const WORKERS: usize = 2;
const PAGE_FRAMES: usize = 256;
const PAGE_BYTES: usize = 1 << 20;
