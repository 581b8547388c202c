//! Room on the disk: how much there is, whether it takes anything, and what to tell an operator.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use tidegate_transport::clock;
use tracing::{error, info};

/// Whether there was room when that was last asked.
pub(super) struct Room {
    path: PathBuf,
    reserve: u64,
    refusal: Option<String>,
    asked: Option<Instant>,
}

impl Room {
    /// On the disk of `path`, of which `reserve` bytes are to stay free.
    pub(super) fn new(path: &Path, reserve: u64) -> Self {
        Self { path: path.to_owned(), reserve, refusal: None, asked: None }
    }

    /// Stops in good time: the library takes a full disk for a broken one. The error says what to do.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let now = clock::now();
        if self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= INTERVAL) {
            self.asked = Some(now);
            // A disk that does not say is written to until it refuses.
            let free = statvfs(&self.path)
                .map_or(u64::MAX, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()));
            let low = free < self.reserve;
            if low != self.refusal.is_some() {
                let reason = || format!("less than the reserve of {} KiB is left", self.reserve >> 10);
                self.refusal = low.then(|| remedy(&self.path, &reason()));
                match &self.refusal {
                    Some(reason) => error!(%reason, "no more frames are taken"),
                    None => info!(path = %self.path.display(), "there is room for frames again"),
                }
            }
        }
        self.refusal.clone().map_or(Ok(()), Err)
    }
}

/// Whether the disk takes anything: opening a store on a full one would only fail again.
pub(super) fn probe(directory: &Path) -> io::Result<()> {
    let path = directory.join("probe");
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(&vec![0; PROBE])?;
        file.sync_all()
    };
    let written = write();
    fs::remove_file(&path)?;
    written
}

/// A refusal, and what to do about it.
pub(super) fn remedy(path: &Path, reason: &str) -> String {
    format!("{}: {reason}: make room on the disk or mend it; the node goes on by itself then", path.display())
}

const INTERVAL: Duration = Duration::from_millis(250);
const PROBE: usize = 1 << 20;
