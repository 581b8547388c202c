//! The process that holds the channels: `tidegate serve`, with a store in a folder that outlives it.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tidegate_transport::clock;

use super::client::Api;
use super::{Engine, Kind};
use crate::bench::proc;

/// Where a node keeps its things; gone when dropped.
#[derive(Debug)]
pub(super) struct Home {
    folder: TempDir,
    program: PathBuf,
    engine: Engine,
}

/// A running node; killed when dropped.
#[derive(Debug)]
pub(super) struct Node {
    child: Child,
    pub(super) api: SocketAddr,
    /// From its start to its being ready.
    pub(super) took: Duration,
}

impl Home {
    pub(super) fn new(program: &Path, engine: Engine, kind: Kind) -> Result<Self> {
        let folder = TempDir::with_prefix("tidegate-channels-")?;
        fs::write(folder.path().join(CONFIG), settings(kind))?;
        Ok(Self { folder, program: program.to_owned(), engine })
    }

    /// Starts a node and waits until it serves everything that is stored here.
    pub(super) fn start(&self, settings: &[&str]) -> Result<Node> {
        let folder = self.folder.path();
        let log = folder.join("tidegate.log");
        let mut command = Command::new(&self.program);
        // Settings of the tests, which it would refuse.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_"))
        {
            command.env_remove(name);
        }
        command
            .args(["serve", "--config", CONFIG, "--set", &format!("core.engine={}", self.engine.name())])
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let began = clock::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut node = Node { child, api: SocketAddr::from(([0; 4], 0)), took: Duration::ZERO };
        while began.elapsed() < START {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if let Some(api) = said.lines().find_map(ready) {
                node.took = began.elapsed();
                node.api = api;
                return Ok(node);
            }
            if let Some(status) = node.child.try_wait()? {
                bail!("{} ended with {status}; it said:\n{said}", self.program.display());
            }
            thread::sleep(LOOK);
        }
        bail!("{} was not ready within {START:?}", self.program.display())
    }

    /// What its store takes on the disk, bytes.
    pub(super) fn disk_bytes(&self) -> Result<u64> {
        disk_bytes(&self.folder.path().join(STORE))
    }
}

impl Node {
    pub(super) fn connect(&self) -> Result<Api> {
        Api::connect(self.api)
    }

    pub(super) fn rss_bytes(&self) -> Result<u64> {
        proc::resident_bytes(self.child.id())
    }

    /// Ends it, by SIGTERM or SIGKILL, and waits; what that took.
    pub(super) fn end(mut self, signal: Signal) -> Result<Duration> {
        let began = clock::now();
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?;
        let status = self.child.wait()?;
        ensure!(signal == Signal::SIGKILL || status.success(), "it ended with {status}");
        Ok(began.elapsed())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address of the API, in the line that says that the node is ready.
fn ready(line: &str) -> Option<SocketAddr> {
    let line = line.contains(r#""message":"ready""#).then_some(line)?;
    let (_, rest) = line.split_once(r#""api":"Some("#)?;
    rest.split(')').next()?.parse().ok()
}

fn disk_bytes(folder: &Path) -> Result<u64> {
    if !folder.exists() {
        return Ok(0);
    }
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Dropped meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// As it is for production, but for three things: nobody connects; a namespace of one publication, that is gone in a
/// moment or stays; nothing is forgotten, since channels that are forgotten cost nothing.
fn settings(kind: Kind) -> String {
    let name = kind.name();
    let age = match kind {
        Kind::Idle => "1s",
        Kind::Kept => "12h",
    };
    format!(
        "\
[listen]
quic = false
tls = false
http3 = false
plain = \"127.0.0.1:0\"
api = \"127.0.0.1:0\"

[api]
keys = [\"{KEY}\"]

[auth]
anonymous = true

[core]
forget_after = \"24h\"
max_channels = 4000000

[core.local]
path = \"{STORE}\"

[namespaces.{name}]
history_count = 1
history_age = \"{age}\"

[log]
level = \"info,fjall=warn,lsm_tree=warn\"
format = \"json\"
"
    )
}

/// Of the backend API; nobody but this process reaches it.
pub(super) const KEY: &str = "benchmark-of-channels";
const CONFIG: &str = "tidegate.toml";
const STORE: &str = "data";
const START: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::ready;

    #[test]
    fn the_address_is_read_from_the_line_that_says_ready() {
        let line = r#"{"level":"INFO","fields":{"message":"ready","addresses":"Addresses { plain: Some(127.0.0.1:1) }","api":"Some(127.0.0.1:35011)"}}"#;
        assert_eq!(ready(line), Some(([127, 0, 0, 1], 35_011).into()));
        assert_eq!(ready(r#"{"fields":{"message":"opening","api":"Some(127.0.0.1:1)"}}"#), None);
    }
}
