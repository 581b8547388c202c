//! The owners of partitions, in a small text file of their own beside the logs: what it says of a log's end must not
//! get lost together with that end.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::engine::PartitionRecord;

/// What is kept of each partition outside of its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    /// As the lease table has it.
    pub(super) record: PartitionRecord,
    /// The first position of the epoch.
    pub(super) begin: u64,
}

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    /// There is none.
    Nothing,
    /// Of each partition.
    Rows(Vec<Row>),
    /// Another version of the program wrote it, in a format of this number.
    OfVersion(u32),
}

/// The file.
#[derive(Debug)]
pub(super) struct TableFile {
    path: PathBuf,
}

impl TableFile {
    /// The one in this directory, there or not.
    pub(super) fn of(directory: &Path) -> Self {
        Self { path: directory.join("partitions.json") }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says. `InvalidData` where it is damaged.
    pub(super) fn load(&self) -> io::Result<Loaded> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Nothing),
            Err(error) => return Err(error),
        };
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let (rows, checksum) = text.rsplit_once(CHECKSUM).ok_or_else(|| invalid("no checksum"))?;
        if checksum.trim_end() != checksum_of(rows) {
            return Err(invalid("the checksum does not match"));
        }
        let Head { version } = serde_json::from_str(rows).map_err(|error| invalid(&error.to_string()))?;
        if version != VERSION {
            return Ok(Loaded::OfVersion(version));
        }
        let document: Document = serde_json::from_str(rows).map_err(|error| invalid(&error.to_string()))?;
        Ok(Loaded::Rows(document.partitions))
    }

    /// Takes the file's place whole or not at all. The file that it takes the place of stays beside it and is written the
    /// next time: that needs no room on the disk.
    pub(super) fn save(&self, rows: &[Row]) -> io::Result<()> {
        let document = Document { version: VERSION, partitions: rows.to_vec() };
        let mut text = serde_json::to_string_pretty(&document)?;
        text = format!("{text}{CHECKSUM}{}\n", checksum_of(&text));
        // Numbers grow by digits: the room that there is must be enough for some more.
        text.extend(std::iter::repeat_n('\n', text.len().next_multiple_of(BLOCK) - text.len()));
        let fresh = self.path.with_extension("json.spare");
        let mut file = File::options().create(true).truncate(false).write(true).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
        file.sync_all()?;
        exchange(&fresh, &self.path)?;
        let directory = self.path.parent().ok_or(io::ErrorKind::NotADirectory)?;
        File::open(directory)?.sync_all()
    }
}

/// Puts `fresh` in the place of `old` and, where file system and library can, `old` in the place of `fresh`.
fn exchange(fresh: &Path, old: &Path) -> io::Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        if renameat2(AT_FDCWD, fresh, AT_FDCWD, old, RenameFlags::RENAME_EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    fs::rename(fresh, old)
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    partitions: Vec<Row>,
}

/// What is the same in every version.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

fn checksum_of(text: &str) -> String {
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

/// The format of the whole store: files that it lacks or has, and what is in them.
const VERSION: u32 = 2;
const BLOCK: usize = 4096;
const CHECKSUM: &str = "\nxxh3 ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_or_is_told_to_be_damaged() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = TableFile::of(directory.path());
        assert_eq!(file.load().expect("none yet"), Loaded::Nothing);
        let record = PartitionRecord { term: 7, epoch: u64::MAX, ..PartitionRecord::default() };
        let rows = vec![Row { record, begin: 3 }; 2];
        for _ in 0..3 {
            file.save(&rows).expect("saved");
            assert_eq!(file.load().expect("whole"), Loaded::Rows(rows.clone()));
        }

        let text = fs::read(file.path()).expect("there");
        let end = text.iter().rposition(|byte| *byte != b'\n').expect("not empty");
        for index in 0..=end {
            let mut changed = text.clone();
            changed[index] ^= 1;
            fs::write(file.path(), changed).expect("written");
            assert!(file.load().is_err(), "byte {index}");
        }
        for length in 0..=end {
            fs::write(file.path(), &text[..length]).expect("written");
            assert!(file.load().is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_table_of_another_version_is_told_from_a_damaged_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = TableFile::of(directory.path());
        let text = "{\"version\":77,\"something\":[1]}";
        fs::write(file.path(), format!("{text}{CHECKSUM}{}\n", checksum_of(text))).expect("written");
        assert_eq!(file.load().expect("whole"), Loaded::OfVersion(77));
    }
}
