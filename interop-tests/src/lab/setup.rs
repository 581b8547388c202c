//! What the laboratory needs of the system, and what it leaves behind.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// Only root makes namespaces and TUN devices.
pub(super) fn check_rights() -> Result<()> {
    ensure!(geteuid().is_root(), "the link laboratory makes network namespaces, which needs root: {REMEDY}");
    ensure!(
        Path::new(TUN).exists(),
        "the link laboratory needs TUN devices and there is no {TUN}: `modprobe tun`"
    );
    Ok(())
}

/// A namespace's name says which process owns it.
pub(super) fn name(number: u32, role: &str) -> String {
    format!("{PREFIX}{}-{number}-{role}", std::process::id())
}

/// Removes what processes left behind that were killed before they could clean up.
pub(super) fn sweep() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Another process may sweep at the same time; whoever is second finds nothing, which is as good.
            let _ = remove(&name);
        }
    }
}

/// Kills what runs inside a namespace and deletes it.
pub(super) fn remove(name: &str) -> Result<()> {
    let inside = ip(&["netns", "pids", name], "")?;
    for pid in inside.lines().filter_map(|line| line.trim().parse::<u32>().ok()) {
        if pid != std::process::id() {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL);
        }
    }
    ip(&["netns", "delete", name], "").map(drop)
}

/// Runs `ip` and gives what it printed.
pub(super) fn ip(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run `ip`: install iproute2, or run `cargo xtask test`, which does")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).context("writing to `ip`")?;
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`ip {}`: {}. If rights are missing: {REMEDY}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where `ip netns` keeps them.
pub(super) const NAMESPACES: &str = "/run/netns";

const PREFIX: &str = "tidegate-lab-";
const TUN: &str = "/dev/net/tun";
const REMEDY: &str = "run it with sudo (`sudo -E cargo xtask test`), or, where /dev/net/tun is open to your user, in \
    user namespaces: `unshare --map-root-user --net --mount sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && cargo xtask test'`";
