//! How far each log certainly goes, noted after each sync: so that a log whose end is lost is told from one that ended
//! there, also where the process was killed a moment later.
//!
//! A small file beside the logs, written in place and not synced: it is exact however the process ends. Where the machine
//! ends, it says what the kernel had written of it, which is a lower bound.
//!
//! ```text
//! { number u64 | tail u64 of each partition | xxh3 u64 } twice, big-endian, each at the beginning of a block
//! ```
//!
//! They are written in turns: one of them is whole.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

/// The file, and what it says.
#[derive(Debug)]
pub(super) struct TailsFile {
    path: PathBuf,
    file: File,
    number: u64,
    tails: Vec<u64>,
}

impl TailsFile {
    /// Where it is in this directory.
    pub(super) fn path(directory: &Path) -> PathBuf {
        directory.join("tails")
    }

    /// Makes one for logs that are empty, over one that is there.
    pub(super) fn create(directory: &Path, partitions: usize) -> io::Result<Self> {
        let path = Self::path(directory);
        let file = File::create(&path)?;
        let mut made = Self { path, file, number: 0, tails: vec![0; partitions] };
        // From here on it needs no room on the disk.
        made.write()?;
        made.write()?;
        made.file.sync_all()?;
        File::open(directory)?.sync_all()?;
        Ok(made)
    }

    /// The one that is there. `NotFound`, or `InvalidData` where it is damaged.
    pub(super) fn open(directory: &Path, partitions: usize) -> io::Result<Self> {
        let path = Self::path(directory);
        let mut file = File::options().read(true).write(true).open(&path)?;
        let mut stored = Vec::new();
        file.read_to_end(&mut stored)?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "it makes no sense");
        let stride = stride(partitions);
        if stored.len() != stride + slot(partitions) {
            return Err(invalid());
        }
        let slots = stored.chunks(stride).filter_map(|stored| read(stored.get(..slot(partitions))?));
        let (number, tails) = slots.max_by_key(|(number, _)| *number).ok_or_else(invalid)?;
        Ok(Self { path, file, number, tails })
    }

    /// The last frame of a log that is known to be kept; 0 before the first.
    pub(super) fn get(&self, partition: u16) -> u64 {
        self.tails.get(usize::from(partition)).copied().unwrap_or_default()
    }

    /// To be written.
    pub(super) fn set(&mut self, partition: u16, tail: u64) {
        if let Some(known) = self.tails.get_mut(usize::from(partition)) {
            *known = tail;
        }
    }

    /// Writes what was set.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.number += 1;
        let mut stored = Vec::with_capacity(slot(self.tails.len()));
        stored.extend_from_slice(&self.number.to_be_bytes());
        for tail in &self.tails {
            stored.extend_from_slice(&tail.to_be_bytes());
        }
        let checksum = xxh3_64(&stored);
        stored.extend_from_slice(&checksum.to_be_bytes());
        let offset = self.number % 2 * stride(self.tails.len()) as u64;
        self.file.write_all_at(&stored, offset)
    }

    /// Where it is.
    pub(super) fn location(&self) -> &Path {
        &self.path
    }
}

/// What a slot says; `None` where it is not whole.
fn read(stored: &[u8]) -> Option<(u64, Vec<u64>)> {
    let (fields, checksum) = stored.split_at_checked(stored.len() - 8)?;
    if checksum != xxh3_64(fields).to_be_bytes() {
        return None;
    }
    let mut fields =
        fields.chunks_exact(8).map(|field| u64::from_be_bytes(field.try_into().unwrap_or_default()));
    Some((fields.next()?, fields.collect()))
}

fn slot(partitions: usize) -> usize {
    8 * (partitions + 2)
}

/// From the beginning of one to that of the other: what destroys one as it is written is not to touch the other.
fn stride(partitions: usize) -> usize {
    slot(partitions).next_multiple_of(4096)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_written_last_comes_back() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(
            TailsFile::open(directory.path(), 3).map(drop).map_err(|error| error.kind()),
            Err(io::ErrorKind::NotFound)
        );
        let mut made = TailsFile::create(directory.path(), 3).expect("made");
        for tail in 0..5 {
            made.set(1, tail);
            made.set(2, tail * 2);
            made.write().expect("written");
            let opened = TailsFile::open(directory.path(), 3).expect("whole");
            assert_eq!((opened.get(0), opened.get(1), opened.get(2)), (0, tail, tail * 2));
        }
        assert!(TailsFile::open(directory.path(), 4).is_err(), "of another number of partitions");
    }

    /// A write that was torn leaves the one before; what is damaged in both is told.
    #[test]
    fn what_is_not_whole_is_not_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut made = TailsFile::create(directory.path(), 2).expect("made");
        made.set(0, 7);
        made.write().expect("written");
        made.set(0, 8);
        made.write().expect("written");
        let path = TailsFile::path(directory.path());
        let whole = fs::read(&path).expect("there");
        // Numbers begin with 1: the newest is the fourth, in the first slot.
        let (slot, stride) = (slot(2), stride(2));
        for byte in (0..slot).chain(stride..stride + slot) {
            let mut changed = whole.clone();
            changed[byte] ^= 1;
            fs::write(&path, &changed).expect("written");
            let tail = TailsFile::open(directory.path(), 2).expect("one is whole").get(0);
            assert_eq!(tail, if byte < slot { 7 } else { 8 }, "byte {byte}");
            changed[(byte + stride) % (2 * stride)] ^= 1;
            fs::write(&path, &changed).expect("written");
            let error = TailsFile::open(directory.path(), 2).map(drop).expect_err("none is");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        fs::write(&path, &whole[..whole.len() - 1]).expect("written");
        assert!(TailsFile::open(directory.path(), 2).is_err());
    }
}
