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

    /// What it says; `None` where there is none. `InvalidData` where it is damaged.
    pub(super) fn load(&self) -> io::Result<Option<Vec<Row>>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let (rows, checksum) = text.rsplit_once(CHECKSUM).ok_or_else(|| invalid("no checksum"))?;
        if checksum.trim_end() != checksum_of(rows) {
            return Err(invalid("the checksum does not match"));
        }
        let document: Document = serde_json::from_str(rows).map_err(|error| invalid(&error.to_string()))?;
        if document.version == VERSION {
            Ok(Some(document.partitions))
        } else {
            Err(invalid("another version of the program wrote it"))
        }
    }

    /// Takes the file's place whole or not at all.
    pub(super) fn save(&self, rows: &[Row]) -> io::Result<()> {
        let document = Document { version: VERSION, partitions: rows.to_vec() };
        let mut text = serde_json::to_string_pretty(&document)?;
        text = format!("{text}{CHECKSUM}{}\n", checksum_of(&text));
        let fresh = self.path.with_extension("json.new");
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        let directory = self.path.parent().ok_or(io::ErrorKind::NotADirectory)?;
        File::open(directory)?.sync_all()
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    partitions: Vec<Row>,
}

fn checksum_of(text: &str) -> String {
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

const VERSION: u32 = 1;
const CHECKSUM: &str = "\nxxh3 ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_or_is_told_to_be_damaged() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = TableFile::of(directory.path());
        assert_eq!(file.load().expect("none yet"), None);
        let record = PartitionRecord { term: 7, epoch: u64::MAX, ..PartitionRecord::default() };
        let rows = vec![Row { record, begin: 3 }; 2];
        file.save(&rows).expect("saved");
        assert_eq!(file.load().expect("whole"), Some(rows));

        let text = fs::read(file.path()).expect("there");
        for index in 0..text.len() - 1 {
            let mut changed = text.clone();
            changed[index] ^= 1;
            fs::write(file.path(), changed).expect("written");
            assert!(file.load().is_err(), "byte {index}");
        }
    }
}
