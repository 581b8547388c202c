//! A disk of any size, that others write to as well.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::posix_fallocate;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;
use tempfile::TempDir;

/// A file system in memory that nobody else sees: it is mounted for the calling thread, and for what that starts. A test
/// that has one runs on one thread.
pub(super) struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    pub(super) fn mount(bytes: u64) -> Result<Self> {
        ensure!(geteuid().is_root(), "a disk is mounted, which needs root: `sudo -E cargo xtask test`");
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
            .context("a private mount namespace")?;
        let folder = TempDir::with_prefix("tidegate-disk-")?;
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .context("mounting a disk")?;
        Ok(Self { folder })
    }

    /// Where the store is on it.
    pub(super) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// As a setting.
    pub(super) fn setting(&self) -> String {
        format!("core.local.path={}", self.store().display())
    }

    fn free(&self) -> Result<u64> {
        let disk = statvfs(self.folder.path())?;
        Ok(disk.blocks_available() * disk.fragment_size())
    }

    /// Others take everything but so much.
    pub(super) fn leave(&self, bytes: u64) -> Result<()> {
        let file = File::options().create(true).truncate(false).write(true).open(self.others())?;
        let (has, free) = (file.metadata()?.len(), self.free()?);
        let more = free.checked_sub(bytes).context("so much is not free any more")?;
        if more > 0 {
            posix_fallocate(&file, i64::try_from(has)?, i64::try_from(more)?).context("filling the disk")?;
        }
        Ok(())
    }

    /// They have gone.
    pub(super) fn relieve(&self) -> Result<()> {
        fs::remove_file(self.others()).context("what others wrote")
    }

    /// Nobody may write any more.
    pub(super) fn make_read_only(&self) -> Result<()> {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, self.folder.path(), None::<&str>, flags, None::<&str>).context("remounting")
    }

    fn others(&self) -> PathBuf {
        Path::new(self.folder.path()).join("others")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whatever uses it still ends with the test.
        if let Err(error) = umount2(self.folder.path(), MntFlags::MNT_DETACH) {
            eprintln!("{} stays: {error}", self.folder.path().display());
        }
    }
}
