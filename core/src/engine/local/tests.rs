//! The store on a real disk: restarts, crashes, damage, and a disk that takes no more.

use std::collections::BTreeMap;
use std::io;
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use super::*;
use crate::engine::conformance;

const NOBODY: &str = "n";

fn open(path: &Path, partitions: u16, epoch: u64) -> Result<LocalEngine, LocalError> {
    let config =
        LocalConfig { retain_bytes: 1 << 20, lease: Duration::from_millis(400), ..LocalConfig::new(path) };
    LocalEngine::open(config, partitions, epoch)
}

async fn claim(engine: &LocalEngine, partition: u16) -> Result<Claim, ClaimError> {
    engine.claim(PartitionId(partition), &NodeId::new(NOBODY)).await
}

async fn read(engine: &LocalEngine, partition: u16, first: LogPosition) -> Result<Vec<Bytes>, ReplayError> {
    let (mut frames, mut next) = (Vec::new(), first);
    loop {
        let page = engine.replay(PartitionId(partition), next).await?;
        if page.is_empty() {
            return Ok(frames);
        }
        next = LogPosition(next.0 + page.len() as u64);
        frames.extend(page.into_iter().map(|(_, frame)| frame));
    }
}

fn frame(partition: u16, n: u64, bytes: usize) -> Bytes {
    let mut rng = ChaCha8Rng::seed_from_u64(n << 16 | u64::from(partition));
    Bytes::from_iter((0..bytes).map(|_| rng.random::<u8>()))
}

struct Local {
    directory: TempDir,
    engine: Option<Arc<LocalEngine>>,
    epochs: u64,
}

impl Local {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut local = Self { directory, engine: None, epochs: 0 };
        local.open();
        local
    }

    fn open(&mut self) {
        self.epochs += 1_000;
        let engine = open(self.directory.path(), conformance::PARTITIONS, self.epochs);
        self.engine = Some(Arc::new(engine.expect("opened")));
    }
}

impl conformance::Setup for Local {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(self.engine.as_ref().expect("open")) as _
    }

    fn second(&self) -> Arc<dyn Engine> {
        self.engine()
    }

    async fn reopen(&mut self) {
        self.engine = None;
        self.open();
    }

    async fn lose_tail(&mut self, partition: PartitionId, keep: LogPosition) -> bool {
        self.engine = None;
        let store =
            Store::open(&self.directory.path().join("frames"), &[1; conformance::PARTITIONS as usize]);
        let store = store.expect("opened");
        let kept = store.log(partition.0).expect("there").read(partition.0, keep.0);
        store.cut(partition.0, &kept.expect("readable").expect("held").mark).expect("cut");
        drop(store);
        self.open();
        true
    }

    fn retained(&self) -> Option<usize> {
        Some(1 << 20)
    }
}

#[tokio::test]
async fn conforms() {
    conformance::run(&mut Local::new()).await;
}

#[tokio::test]
async fn a_store_is_opened_once_and_with_its_own_number_of_partitions() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("made/by/it");
    let engine = open(&path, 2, 77).expect("made");
    assert_eq!(claim(&engine, 0).await.expect("claimed").epoch(), 77);
    let refused = open(&path, 2, 78).expect_err("in use").to_string();
    assert!(refused.contains("in use") && refused.contains(&path.display().to_string()), "{refused}");
    drop(engine);
    let refused = open(&path, 3, 78).expect_err("another number").to_string();
    assert!(refused.contains("2 partitions, not 3"), "{refused}");

    // The epoch is the store's, not the process's.
    let engine = open(&path, 2, 79).expect("opened");
    for partition in 0..2 {
        assert_eq!(claim(&engine, partition).await.expect("claimed").epoch(), 77);
    }
    drop(engine);
    fs::remove_file(path.join("partitions.json")).expect("there");
    let refused = open(&path, 2, 80).expect_err("half of it is missing").to_string();
    assert!(refused.contains("partitions.json: it is missing") && refused.contains("backup"), "{refused}");
}

#[tokio::test]
async fn a_store_of_another_version_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(open(directory.path(), 1, 1).expect("made"));
    let before: Vec<_> = files(directory.path());
    let text = "{\"version\":77}";
    let text = format!("{text}\nxxh3 {:016x}\n", xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
    fs::write(directory.path().join("partitions.json"), text).expect("written");
    let refused = open(directory.path(), 1, 2).expect_err("not ours").to_string();
    assert!(refused.contains("format 77") && refused.contains("another version"), "{refused}");
    assert_eq!(files(directory.path()), before);
}

/// The library takes a journal that ends too early for one whose last write was cut off by the end of the process. It
/// may not, where that write was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_frames_that_a_crash_seems_to_have_cut_off_end_the_epoch() {
    const FRAMES: u64 = 20;
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(directory.path(), 2, 1).expect("made");
    let mut owned = claim(&engine, 0).await.expect("claimed");
    let other = claim(&engine, 1).await.expect("claimed").epoch();
    for n in 1..=FRAMES {
        engine.append(&mut owned, frame(0, n, 300)).await.expect("written");
    }
    // Killed: nothing is noted any more.
    let crashed = tempfile::tempdir().expect("a directory");
    copy(directory.path(), crashed.path());
    drop(engine);
    let journal = files(crashed.path()).into_iter().find(|file| file.extension().is_some_and(|e| e == "jnl"));
    let journal = crashed.path().join(journal.expect("there"));
    let whole = fs::read(&journal).expect("there");
    let end = whole.iter().rposition(|byte| *byte != 0).expect("written to") + 1;
    let mut outcomes = BTreeMap::new();
    // Behind the end there is only what was set aside.
    for length in [end + 1_000, end + 1, end, end - 1, end - 200, end - 1_000, end / 2, 100] {
        let copied = tempfile::tempdir().expect("a directory");
        copy(crashed.path(), copied.path());
        fs::write(copied.path().join(journal.strip_prefix(crashed.path()).expect("below")), &whole[..length])
            .expect("written");
        let again = open(copied.path(), 2, 2).expect("opened");
        let owned = claim(&again, 0).await.expect("claimed");
        if length >= end {
            assert_eq!((owned.epoch(), owned.tail()), (1, LogPosition(FRAMES)), "{length} of {end}");
        } else {
            assert_ne!(owned.epoch(), 1, "{length} of {end}: {owned:?}");
            assert_eq!(owned.first(), owned.tail().next());
        }
        outcomes.insert(length, owned.tail());
        assert_eq!(claim(&again, 1).await.expect("claimed").epoch(), other, "nothing of it was lost");
        // The new epoch is the one that stays.
        let epoch = owned.epoch();
        drop(again);
        let again = open(copied.path(), 2, 3).expect("opened");
        assert_eq!(claim(&again, 0).await.expect("claimed").epoch(), epoch);
    }
    let tails: std::collections::BTreeSet<_> = outcomes.values().collect();
    assert!(tails.len() > 3, "{outcomes:?}");
}

#[tokio::test]
async fn a_store_that_was_half_made_is_made_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let frames = directory.path().join("frames");
    fs::create_dir(&frames).expect("made");
    fs::write(frames.join("0.jnl"), [0; 100]).expect("written");
    let engine = open(directory.path(), 1, 1).expect("made");
    let mut claim = claim(&engine, 0).await.expect("claimed");
    engine.append(&mut claim, frame(0, 1, 10)).await.expect("written");
}

#[tokio::test]
async fn a_store_that_lost_its_marker_is_not_thrown_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(directory.path(), 1, 1).expect("made");
    let mut owned = claim(&engine, 0).await.expect("claimed");
    engine.append(&mut owned, frame(0, 1, 10)).await.expect("written");
    drop(engine);
    let (marker, aside) = (directory.path().join("frames/version"), directory.path().join("aside"));
    fs::rename(&marker, &aside).expect("there");
    let refused = open(directory.path(), 1, 2).expect_err("damaged").to_string();
    assert!(refused.contains("a part of it is missing") && refused.contains("backup"), "{refused}");
    fs::rename(&aside, &marker).expect("there");
    let engine = open(directory.path(), 1, 3).expect("opened");
    assert_eq!(claim(&engine, 0).await.expect("claimed").tail(), LogPosition(1));
}

#[tokio::test]
async fn logs_that_vanished_begin_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(directory.path(), 1, 1).expect("made");
    let mut owned = claim(&engine, 0).await.expect("claimed");
    engine.append(&mut owned, frame(0, 1, 10)).await.expect("written");
    drop(engine);
    fs::remove_dir_all(directory.path().join("frames")).expect("there");
    let engine = open(directory.path(), 1, 2).expect("made");
    let claim = claim(&engine, 0).await.expect("claimed");
    assert_ne!(claim.epoch(), 1);
    assert_eq!((claim.first(), claim.tail()), (LogPosition(1), LogPosition(0)));
}

#[tokio::test]
async fn what_is_too_old_is_dropped_behind_a_snapshot_and_not_before() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = LocalConfig { retain_age: Duration::ZERO, ..LocalConfig::new(directory.path()) };
    let engine = LocalEngine::open(config, 1, 1).expect("made");
    let mut claim = claim(&engine, 0).await.expect("claimed");
    // Frames of one millisecond share a segment: write until there are three.
    let segments = |engine: &LocalEngine| {
        let store = engine.shared.store().expect("open");
        let log = store.log(0).expect("there");
        (log.segment_count(), log.first())
    };
    let mut ends = Vec::new();
    while segments(&engine).0 < 3 {
        let count = segments(&engine).0;
        let next = frame(0, claim.tail().0 + 1, 10);
        engine.append(&mut claim, next).await.expect("written");
        if segments(&engine).0 > count {
            ends.push(claim.tail().0 - 1);
        }
    }
    assert_eq!(segments(&engine), (3, 1), "no snapshot has them");
    let snapshot = Snapshot { at: LogPosition(ends[1]), pieces: 1 };
    engine.put_piece(&claim, snapshot.at, 0, Bytes::from_static(b"x")).await.expect("put");
    engine.finish_snapshot(&claim, snapshot).await.expect("finished");
    assert_eq!(segments(&engine), (2, ends[1] + 1));
    let first = LogPosition(ends[1] + 1);
    assert_eq!(read(&engine, 0, LogPosition(1)).await, Err(ReplayError::Truncated { first }));
    assert_eq!(read(&engine, 0, first).await.expect("kept").len() as u64, claim.tail().0 - ends[1]);
}

/// The directory is copied while frames are on their way, which is what a machine finds that lost its power.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loses_nothing_that_was_acknowledged() {
    const PARTITIONS: u16 = 4;
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(open(directory.path(), PARTITIONS, 1).expect("made"));
    let acknowledged: Arc<[AtomicU64]> = (0..PARTITIONS).map(|_| AtomicU64::new(0)).collect();
    let mut writers = tokio::task::JoinSet::new();
    for partition in 0..PARTITIONS {
        let (engine, acknowledged) = (Arc::clone(&engine), Arc::clone(&acknowledged));
        let mut claim = claim(&engine, partition).await.expect("claimed");
        writers.spawn(async move {
            loop {
                let next = claim.tail().0 + 1;
                engine.append(&mut claim, frame(partition, next, 300)).await.expect("written");
                acknowledged[usize::from(partition)].store(next, Ordering::SeqCst);
            }
        });
    }
    for round in 1..=3 {
        while acknowledged.iter().any(|n| n.load(Ordering::SeqCst) < round * 50) {
            tokio::task::yield_now().await;
        }
        let before: Vec<u64> = acknowledged.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        let copied = copy_of_the_living(directory.path());
        let crashed = open(copied.path(), PARTITIONS, 2).expect("opened");
        for partition in 0..PARTITIONS {
            let claim = claim(&crashed, partition).await.expect("claimed");
            assert_eq!(claim.epoch(), 1);
            assert!(claim.tail().0 >= before[usize::from(partition)], "{claim:?} {before:?}");
            let frames = read(&crashed, partition, LogPosition(1)).await.expect("whole");
            assert_eq!(frames.len() as u64, claim.tail().0);
            for (n, stored) in (1..).zip(frames) {
                assert_eq!(stored, frame(partition, n, 300), "{n}");
            }
        }
    }
    writers.shutdown().await;
}

/// A byte changes on the disk, or a file ends too early: everything is as it was, or it is told; nothing panics,
/// nothing else is served.
#[tokio::test]
async fn no_damage_is_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = LocalConfig { retain_bytes: 4 << 20, ..LocalConfig::new(directory.path()) };
    let engine = LocalEngine::open(config, DAMAGED_PARTITIONS, 1).expect("made");
    // Of partition 0 there are tables, in two segments, of the other only what is in the journal.
    let counts = BTreeMap::from([(0, 60), (1, 20)]);
    for (partition, count) in &counts {
        let mut claim = claim(&engine, *partition).await.expect("claimed");
        for n in 1..=*count {
            engine.append(&mut claim, damageable(*partition, n)).await.expect("written");
        }
    }
    engine.shared.store().expect("open").flush(0);
    drop(engine);
    // Opened once more, the journal ends where its last frame ends.
    drop(open(directory.path(), DAMAGED_PARTITIONS, 2).expect("opened"));

    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut told = BTreeMap::<&str, u32>::new();
    for file in files(directory.path()).iter().filter(|file| !file.ends_with("lock")) {
        let whole = fs::read(directory.path().join(file)).expect("there");
        let is_journal = file.extension().is_some_and(|extension| extension == "jnl");
        for round in 0..if whole.is_empty() { 0 } else { (whole.len() / 20_000).clamp(1, 12) } {
            let damaged = tempfile::tempdir().expect("a directory");
            copy(directory.path(), damaged.path());
            let (mut bytes, offset) = (whole.clone(), rng.random_range(0..whole.len()));
            if is_journal && round % 2 == 1 {
                bytes.truncate(offset);
            } else {
                bytes[offset] ^= 1 << rng.random_range(0..8);
            }
            fs::write(damaged.path().join(file), bytes).expect("written");
            let outcome = outcome(damaged.path(), &counts).await;
            let outcome = outcome.unwrap_or_else(|what| panic!("{} at {offset}: {what}", file.display()));
            *told.entry(outcome).or_default() += 1;
        }
    }
    // Each of these is there, or the test has stopped looking.
    for outcome in ["not opened", "not read", "a new epoch"] {
        assert!(told.contains_key(outcome), "{told:?}");
    }
}

const DAMAGED_PARTITIONS: u16 = 64;

fn damageable(partition: u16, n: u64) -> Bytes {
    frame(partition, n, if n.is_multiple_of(2) { 60_000 } else { 1_000 })
}

/// How a store with a changed byte is told to be damaged; the error is what is wrong and was not told.
async fn outcome(path: &Path, counts: &BTreeMap<u16, u64>) -> Result<&'static str, String> {
    let engine = match open(path, DAMAGED_PARTITIONS, 3) {
        Ok(engine) => engine,
        Err(error @ LocalError::Damaged { .. })
            if error.to_string().contains(&path.display().to_string()) =>
        {
            return Ok("not opened");
        }
        Err(error) => return Err(error.to_string()),
    };
    let mut outcome = "as it was";
    for (partition, count) in counts {
        let claim = match claim(&engine, *partition).await {
            Ok(claim) => claim,
            Err(ClaimError::Damaged { .. }) => return Ok("not claimed"),
            Err(error) => return Err(error.to_string()),
        };
        if claim.epoch() != 1 {
            outcome = "a new epoch";
            continue;
        }
        if claim.tail().0 != *count {
            return Err(format!("{claim:?} in the old epoch"));
        }
        let frames = match read(&engine, *partition, claim.first()).await {
            Ok(frames) => frames,
            Err(ReplayError::Damaged { .. }) => return Ok("not read"),
            Err(error) => return Err(error.to_string()),
        };
        if frames.len() as u64 != claim.tail().0 + 1 - claim.first().0 {
            return Err(format!("{} frames of {claim:?}", frames.len()));
        }
        for (n, stored) in (claim.first().0..).zip(frames) {
            if stored != damageable(*partition, n) {
                return Err(format!("frame {n} is another"));
            }
        }
    }
    Ok(outcome)
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_takes_no_frames_but_snapshots() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(open(directory.path(), 1, 1).expect("made"));
    let config = LocalConfig { reserve: u64::MAX, ..LocalConfig::new(directory.path()) };
    let engine = LocalEngine::open(config, 1, 2).expect("opened");
    let mut owned = claim(&engine, 0).await.expect("claimed");
    let Err(AppendError::Refused(reason)) = engine.append(&mut owned, frame(0, 1, 10)).await else {
        panic!("taken without room");
    };
    assert!(
        reason.contains(&directory.path().display().to_string()) && reason.contains("make room"),
        "{reason}"
    );
    assert_eq!(owned.tail(), LogPosition(0));
    let snapshot = Snapshot { at: LogPosition(0), pieces: 1 };
    engine.put_piece(&owned, snapshot.at, 0, Bytes::from_static(b"x")).await.expect("put");
    engine.finish_snapshot(&owned, snapshot).await.expect("finished");
    drop(engine);

    let engine = open(directory.path(), 1, 3).expect("opened");
    let mut owned = claim(&engine, 0).await.expect("claimed");
    assert_eq!((owned.epoch(), owned.tail()), (1, LogPosition(0)));
    assert_eq!(engine.append(&mut owned, frame(0, 1, 10)).await, Ok(LogPosition(1)));
}

/// The limit for the size of a file stands in for a full disk: both fail in the middle of a write. It holds for the
/// whole process, and its signal must be ignored, so the test runs itself once more behind a shell.
#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    if let Some(path) = std::env::var_os(FULL_DISK) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        return runtime.expect("a runtime").block_on(fill_the_disk(Path::new(&path)));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let child = Process::new("sh")
        .args(["-c", r#"trap "" XFSZ; exec "$@""#, "sh"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "engine::local::tests::a_full_disk_refuses_and_goes_on_when_there_is_room"])
        .arg("--nocapture")
        .env(FULL_DISK, directory.path())
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    let output =
        String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
}

async fn fill_the_disk(path: &Path) {
    let room = |bytes| setrlimit(Resource::RLIMIT_FSIZE, bytes, nix::libc::RLIM_INFINITY).expect("set");
    let engine = open(path, 2, 1).expect("made");
    let mut owned = claim(&engine, 0).await.expect("claimed");
    let mut other = claim(&engine, 1).await.expect("claimed");
    engine.append(&mut other, frame(1, 1, 10)).await.expect("written");
    room(2 << 20);
    let refused = loop {
        let next = frame(0, owned.tail().0 + 1, 100_000);
        match engine.append(&mut owned, next).await {
            Ok(position) => assert!(position.0 < 30, "more than there is room for"),
            Err(AppendError::Refused(reason)) => break reason,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(refused.contains(&path.display().to_string()) && refused.contains("make room"), "{refused}");
    let kept = owned.tail();
    assert!(kept.0 > 10, "{kept:?}");

    // What is there is read on, and can be claimed: who has it must build what they know of it anew.
    let before: Vec<Bytes> = (1..=kept.0).map(|n| frame(0, n, 100_000)).collect();
    assert_eq!(read(&engine, 0, LogPosition(1)).await, Ok(before));
    let mut owned = claim(&engine, 0).await.expect("claimed");
    assert_eq!((owned.epoch(), owned.tail()), (1, kept));

    // It stays so, for everybody, until there is room; each time nothing is written.
    let mut tries = tokio::time::interval(Duration::from_millis(150));
    for _ in 0..8 {
        tries.tick().await;
        let next = frame(0, owned.tail().0 + 1, 100_000);
        let refused = engine.append(&mut owned, next).await;
        assert!(matches!(refused, Err(AppendError::Refused(_))), "{refused:?}");
    }
    room(nix::libc::RLIM_INFINITY);
    // What was refused may be another frame the next time.
    let next = frame(0, 1_000, 100_000);
    let mut refusals = 0;
    while let Err(error) = engine.append(&mut owned, next.clone()).await {
        assert!(matches!(error, AppendError::Refused(_)), "{error}");
        refusals += 1;
        assert!(refusals < 20, "it never goes on");
        tries.tick().await;
    }
    assert_eq!(owned.tail(), kept.next());
    engine.append(&mut other, frame(1, 2, 10)).await.expect("written");

    let check = async |engine: &LocalEngine| {
        let mut expected: Vec<Bytes> = (1..=kept.0).map(|n| frame(0, n, 100_000)).collect();
        expected.push(next.clone());
        assert_eq!(read(engine, 0, LogPosition(1)).await, Ok(expected));
        assert_eq!(read(engine, 1, LogPosition(1)).await, Ok(vec![frame(1, 1, 10), frame(1, 2, 10)]));
    };
    check(&engine).await;
    drop(engine);
    let engine = open(path, 2, 2).expect("opened");
    assert_eq!(claim(&engine, 0).await.expect("claimed").epoch(), 1);
    check(&engine).await;
}

/// While it is written: what came or went meanwhile would be in no copy of one moment.
fn copy_of_the_living(from: &Path) -> TempDir {
    loop {
        let (before, to) = (files(from), tempfile::tempdir().expect("a directory"));
        if try_copy(&before, from, to.path()).is_ok() && files(from) == before {
            return to;
        }
    }
}

fn copy(from: &Path, to: &Path) {
    try_copy(&files(from), from, to).expect("copied");
}

fn try_copy(files: &[PathBuf], from: &Path, to: &Path) -> io::Result<()> {
    for file in files {
        let target = to.join(file);
        fs::create_dir_all(target.parent().expect("in a directory"))?;
        fs::copy(from.join(file), target)?;
    }
    Ok(())
}

/// All files below a directory, by their paths in it; first those that are written last.
fn files(directory: &Path) -> Vec<PathBuf> {
    let last = [PathBuf::from("partitions.json"), PathBuf::from("tails")];
    let (mut files, mut directories) = (last.to_vec(), vec![PathBuf::new()]);
    while let Some(inside) = directories.pop() {
        // Gone since it was listed, perhaps.
        for entry in fs::read_dir(directory.join(&inside)).into_iter().flatten() {
            let entry = entry.expect("readable");
            let path = inside.join(entry.file_name());
            if entry.file_type().expect("known").is_dir() {
                directories.push(path);
            } else if !last.contains(&path) {
                files.push(path);
            }
        }
    }
    files[last.len()..].sort_unstable();
    files
}

const FULL_DISK: &str = "TIDEGATE_TEST_FULL_DISK";
