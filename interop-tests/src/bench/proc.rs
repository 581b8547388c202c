//! What the kernel tells about a process and about itself.

use std::fs;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// CPU seconds of a process so far, user and system. The kernel counts them in hundredths.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}: the server is gone"))?;
    // The command's name stands in brackets and may hold anything; state is the first field behind it.
    let (_, fields) = text.rsplit_once(')').context("no command in /proc/PID/stat")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(USER_TIME)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().context("no CPU time in /proc/PID/stat"))
        .sum::<Result<u64>>()?;
    Ok(to_float(ticks) / TICKS_PER_SECOND)
}

/// Resident memory of a process, bytes.
pub(super) fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}: the server is gone"))?;
    kib(&text, "VmRSS:").context("no VmRSS in /proc/PID/status")
}

/// The kernel's own small objects (sockets and what belongs to them), bytes.
pub(super) fn slab_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    kib(&text, "Slab:").context("no Slab in /proc/meminfo")
}

/// Memory that new processes could have without swapping, bytes.
pub(super) fn available_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    kib(&text, "MemAvailable:").context("no MemAvailable in /proc/meminfo")
}

/// The three load averages.
pub(super) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Raises the soft limit of open files to the hard one, for this process and those that it starts.
pub(super) fn raise_open_files(needed: usize) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
    let needed = u64::try_from(needed).unwrap_or(u64::MAX);
    anyhow::ensure!(
        needed.saturating_add(SPARE_FILES) <= hard,
        "{needed} connections need more open files than this process may have ({hard}); use fewer, or raise `ulimit -Hn`"
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people: 52 bits are plenty")]
pub(super) fn to_float(count: u64) -> f64 {
    count as f64
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// `utime` is field 14; two come before the bracket's end and the next is number 3 (proc(5)).
const USER_TIME: usize = 11;
/// `USER_HZ`, the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// For listeners, pipes, libraries.
const SPARE_FILES: u64 = 200;
