//! `tidegate` as a child process: its output in files, ended by its id when dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::programs;
use crate::wait::{PATIENCE, until, within};

/// One run of the program. Dropping it kills it, also where it is stopped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    folder: PathBuf,
}

impl Process {
    /// Starts `command`, with its output in `folder`. What an earlier run left there is kept under another name.
    pub(crate) fn start(mut command: Command, folder: &Path) -> Result<Self> {
        set_aside(folder)?;
        command
            .stdin(Stdio::null())
            .stdout(File::create(folder.join(STDOUT))?)
            .stderr(File::create(folder.join(STDERR))?);
        let child = command.spawn().context("starting tidegate")?;
        Ok(Self { child, folder: folder.to_owned() })
    }

    /// Waits for the line of the log that says `message`; its fields.
    pub(crate) async fn until_said(&mut self, message: &str) -> Result<Value> {
        let looking = async {
            loop {
                if let Some(fields) = said(&self.log(), message) {
                    return Ok(fields);
                }
                if let Some(status) = self.child.try_wait()? {
                    return Err(anyhow!("tidegate ended with {status}: {}", self.log()));
                }
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
        };
        let waited = within(PATIENCE, format!("the line that says `{message}`"), looking).await;
        waited.with_context(|| self.log())?
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid()?, signal).context("signalling tidegate")
    }

    /// Stops it without an end.
    pub(crate) async fn pause(&self) -> Result<()> {
        pause(self.pid()?).await
    }

    /// Kills it and waits for the end.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.ended().await.map(drop)
    }

    /// Waits for the end.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let ended = within(PATIENCE, "the end of tidegate", self.child.wait()).await;
        ended.with_context(|| self.log())?.context("waiting for tidegate")
    }

    /// Whether it runs still.
    pub(crate) fn is_running(&self) -> bool {
        self.child.id().is_some()
    }

    pub(crate) fn pid(&self) -> Result<Pid> {
        let id = self.child.id().with_context(|| format!("tidegate has ended: {}", self.log()))?;
        Ok(Pid::from_raw(i32::try_from(id)?))
    }

    /// What it printed.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.folder.join(STDOUT)).unwrap_or_default()
    }

    /// What it logged, JSON lines.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join(STDERR)).unwrap_or_default()
    }
}

/// Stops a process, and waits until it has: its threads run on for a moment after the signal was sent.
pub(crate) async fn pause(pid: Pid) -> Result<()> {
    kill(pid, Signal::SIGSTOP).context("stopping a process")?;
    until("every thread has stopped", || async {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let stat = fs::read_to_string(thread?.path().join("stat"))?;
            // After the name, which may hold anything: proc_pid_stat(5).
            let state = stat.rsplit_once(") ").and_then(|(_, after)| after.chars().next());
            ensure!(state == Some('T'), "{stat}");
        }
        Ok(())
    })
    .await
}

/// `tidegate`, without what the environment of the tests would tell it.
///
/// # Errors
/// When there is none.
pub fn command() -> Result<Command> {
    let mut command = Command::new(programs::tidegate()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(name);
        }
    }
    command.kill_on_drop(true);
    Ok(command)
}

/// A folder that is gone with its owner, unless `TIDEGATE_KEEP` is set: whoever looks for a cause wants the logs.
pub(crate) fn folder() -> Result<TempDir> {
    let mut folder = TempDir::with_prefix("tidegate-test-")?;
    if std::env::var_os("TIDEGATE_KEEP").is_some() {
        println!("kept: {}", folder.path().display());
        folder.disable_cleanup(true);
    }
    Ok(folder)
}

fn set_aside(folder: &Path) -> Result<()> {
    if !folder.join(STDERR).exists() {
        return Ok(());
    }
    let number = (1..).find(|number| !folder.join(format!("{number}-{STDERR}")).exists());
    for name in [STDOUT, STDERR] {
        fs::rename(folder.join(name), folder.join(format!("{}-{name}", number.unwrap_or_default())))?;
    }
    Ok(())
}

/// The fields of the last line that says `message`.
fn said(log: &str, message: &str) -> Option<Value> {
    let pattern = format!(r#""message":"{message}""#);
    let line = log.lines().rev().find(|line| line.contains(&pattern))?;
    let line: Value = serde_json::from_str(line).ok()?;
    Some(line["fields"].clone())
}

const STDOUT: &str = "stdout.txt";
const STDERR: &str = "stderr.txt";
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
