//! Files that are not what was written: told in words, or as it was; never with something missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tidegate_client::Position;
use tidegate_interop_tests::gateway::Gateway;

use super::disk::SmallDisk;
use super::{OPEN, history, position, publish};

/// Killed in the middle of everything, then damaged, file by file.
#[tokio::test]
async fn local_tells_what_is_damaged_and_serves_nothing_of_it() -> Result<()> {
    // In memory, where a sync costs nothing: it is opened again and again. Many partitions share what is held back from
    // files.
    let disk = SmallDisk::mount(512 << 20)?;
    let settings =
        ["core.partitions=16", "core.snapshot_frames=50", "core.snapshot_every=1h", &disk.setting()];
    let mut gateway = Gateway::serve_alone(OPEN, &settings).await?;
    for n in 1..=160 {
        position(&publish(&gateway, "room:1", n, 30_000).await?)?;
    }
    gateway.until_metric("tidegate_core_snapshots_total", |count| count >= 1.0).await?;
    let mut expected = Vec::new();
    for channel in ["room:2", "room:1"] {
        for n in 161..=165 {
            position(&publish(&gateway, channel, n, 100).await?)?;
        }
        expected.push((channel, history(&gateway, channel).await?));
    }
    gateway.kill().await?;
    let store = disk.store();
    let whole = gateway.folder().join("whole");
    copy(&store, &whole)?;
    let kinds: BTreeSet<&str> = files(&store)?.iter().map(|file| kind(file)).collect();
    for wanted in [TABLE, "tails", "journal", "table", "manifest", "version", "marker"] {
        ensure!(kinds.contains(wanted), "no {wanted} among {kinds:?}");
    }

    // As it was: what is tried below begins with this.
    gateway.start_again().await?;
    ensure!(outcome(&gateway, &expected).await? == Told::AsItWas);
    gateway.kill().await?;

    let mut told = Vec::new();
    for damage in damages(&whole)? {
        fs::remove_dir_all(&store)?;
        copy(&whole, &store)?;
        damage.make(&store)?;
        let outcome = match gateway.start_again().await {
            Ok(()) => outcome(&gateway, &expected).await.with_context(|| format!("{damage:?}"))?,
            Err(error) => {
                let text = format!("{error:#}");
                let says = ["error: ", &store.display().to_string(), "is damaged", "restore"];
                ensure!(says.iter().all(|part| text.contains(part)), "{damage:?}: {text}");
                ensure!(!text.contains("panicked") && !text.contains("backtrace"), "{damage:?}: {text}");
                Told::InWords
            }
        };
        if gateway.is_running() {
            gateway.kill().await?;
        }
        println!("{damage:?}: {outcome:?}");
        told.push((damage.must, outcome, damage));
    }
    let wrong: Vec<_> =
        told.iter().filter(|(must, outcome, _)| must.is_some_and(|must| must != *outcome)).collect();
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

/// A store that is somebody else's, or that nobody may write to.
#[tokio::test]
async fn local_refuses_stores_that_it_cannot_have() -> Result<()> {
    let disk = SmallDisk::mount(24 << 20)?;
    let (two, reserve) = ("core.partitions=2", "core.local.reserve_bytes=1MiB");
    let mut gateway = Gateway::serve_alone(OPEN, &[two, &disk.setting(), reserve]).await?;
    position(&publish(&gateway, "room:1", 1, 10).await?)?;
    let store = disk.store().display().to_string();

    let second = Gateway::serve_alone(OPEN, &[two, &disk.setting(), reserve]).await;
    says(second.map(drop), &["in use by another process", &store, "`core.local.path`"])?;
    let three = Gateway::serve_alone(OPEN, &["core.partitions=3", &disk.setting(), reserve]).await;
    says(three.map(drop), &["in use by another process"])?;
    gateway.kill().await?;
    let three = Gateway::serve_alone(OPEN, &["core.partitions=3", &disk.setting(), reserve]).await;
    says(three.map(drop), &["made with 2 partitions, not 3", &store, "set the number back"])?;

    // Whatever is in it besides.
    let table = disk.store().join("partitions.json");
    let ours = fs::read_to_string(&table)?;
    let (rows, _) = ours.rsplit_once(CHECKSUM).context("no checksum")?;
    let newer = rows.replace("\"version\": 2", "\"version\": 9, \"new\": true");
    fs::write(&table, format!("{newer}{CHECKSUM}{:016x}\n", xxhash_rust::xxh3::xxh3_64(newer.as_bytes())))?;
    says(gateway.start_again().await, &["another version of this program (format 9)", &store])?;
    fs::write(&table, ours)?;

    disk.make_read_only()?;
    says(gateway.start_again().await, &["cannot be opened", &store, "ead-only"])
}

fn says(started: Result<()>, parts: &[&str]) -> Result<()> {
    let error = started.err().context("it started")?;
    let text = format!("{error:#}");
    ensure!(text.contains("error: ") && !text.contains("panicked"), "{text}");
    ensure!(parts.iter().all(|part| text.contains(part)), "{text}");
    Ok(())
}

/// How damage shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It does not start, and says why.
    InWords,
    /// Channels of a partition begin anew.
    ByEpoch,
    /// Not at all: nothing of it was needed.
    AsItWas,
}

/// Everything that was acknowledged is there, or its channel has another epoch.
async fn outcome(gateway: &Gateway, expected: &[(&str, (Position, Vec<u64>))]) -> Result<Told> {
    let mut told = Told::AsItWas;
    for (channel, (head, numbers)) in expected {
        let (now, found) = history(gateway, channel).await?;
        if now.epoch != head.epoch {
            told = Told::ByEpoch;
            ensure!(found.is_empty(), "{channel} has {found:?} in another epoch");
            // It can be written to as well.
            position(&publish(gateway, channel, 1, 10).await?)?;
        } else {
            ensure!(
                now == *head && found == *numbers,
                "{channel} is at {now:?}, not {head:?}, and has {found:?}"
            );
        }
    }
    Ok(told)
}

#[derive(Debug)]
struct Damage {
    file: PathBuf,
    how: How,
    must: Option<Told>,
}

#[derive(Debug, Clone, Copy)]
enum How {
    /// One bit, at this share of what was written.
    Flip(f64),
    /// Ends after this share.
    Cut(f64),
    /// The last bytes are missing.
    CutLast(usize),
    /// It is gone.
    Remove,
    /// Nothing but zeros.
    Zero,
}

impl Damage {
    fn make(&self, store: &Path) -> Result<()> {
        let path = store.join(&self.file);
        let mut bytes = fs::read(&path)?;
        // What was set aside behind it is no part of it.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let at = |share: f64| (end as f64 * share) as usize;
        match self.how {
            How::Flip(share) => bytes[at(share).min(end - 1)] ^= 4,
            How::Cut(share) => bytes.truncate(at(share)),
            How::CutLast(count) => bytes.truncate(end - count),
            How::Remove => return Ok(fs::remove_file(path)?),
            How::Zero => bytes.fill(0),
        }
        fs::write(path, bytes)?;
        Ok(())
    }
}

fn damages(store: &Path) -> Result<Vec<Damage>> {
    let mut damages = Vec::new();
    let mut seen = BTreeSet::new();
    for file in files(store)? {
        let kind = kind(&file);
        // The largest of each kind.
        if !seen.insert(kind) {
            continue;
        }
        let cases: &[(How, Option<Told>)] = match kind {
            TABLE => &[
                (How::Flip(0.5), Some(Told::InWords)),
                (How::Cut(0.5), Some(Told::InWords)),
                (How::Remove, Some(Told::InWords)),
            ],
            "tails" => &[(How::Zero, Some(Told::InWords)), (How::Remove, Some(Told::InWords))],
            // A journal that ends in the middle of a write looks as if it were that write that was cut off.
            "journal" => &[
                (How::CutLast(1), Some(Told::ByEpoch)),
                (How::CutLast(3_000), Some(Told::ByEpoch)),
                (How::Cut(0.5), Some(Told::ByEpoch)),
                (How::Flip(0.5), None),
                (How::Remove, Some(Told::ByEpoch)),
            ],
            "table" => &[(How::Flip(0.3), Some(Told::InWords)), (How::Cut(0.5), Some(Told::InWords))],
            "version" => &[(How::Remove, Some(Told::InWords))],
            "lock" => continue,
            "spare" => &[(How::Remove, Some(Told::AsItWas))],
            _ => &[(How::Flip(0.5), None), (How::Remove, None)],
        };
        let cases = cases.iter().map(|(how, must)| Damage { file: file.clone(), how: *how, must: *must });
        damages.extend(cases);
    }
    Ok(damages)
}

/// What a file of a store is, by its name.
fn kind(file: &Path) -> &'static str {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let parent = file.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    match &*name {
        "partitions.json" => TABLE,
        "partitions.json.spare" => "spare",
        "tails" => "tails",
        "version" => "version",
        "current" => "marker",
        "lock" => "lock",
        name if name.ends_with(".jnl") => "journal",
        name if name.starts_with('v') => "manifest",
        _ if parent == "tables" => "table",
        _ => "other",
    }
}

/// All files below a folder, by their paths in it, the largest first.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(inside) = folders.pop() {
        for entry in fs::read_dir(folder.join(&inside))? {
            let entry = entry?;
            let path = inside.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else {
                files.push((std::cmp::Reverse(entry.metadata()?.len()), path));
            }
        }
    }
    files.sort_unstable();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        let target = to.join(&file);
        fs::create_dir_all(target.parent().context("in a folder")?)?;
        fs::copy(from.join(&file), target)?;
    }
    Ok(())
}

const TABLE: &str = "owners";
const CHECKSUM: &str = "\nxxh3 ";
