//! A core as a process: it stays who and where it is over restarts.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::gateway::{metrics, status_json, until_ready};
use crate::ports;
use crate::process::{Process, command, folder};

/// One core.
#[derive(Debug)]
pub struct Core {
    name: String,
    settings: Vec<String>,
    /// `None` until it is started.
    process: Option<Process>,
    folder: TempDir,
    /// Where it listens for links, over UDP.
    pub links: SocketAddr,
    /// Where edges are told to find it.
    pub advertised: SocketAddr,
    /// Probes, metrics and status.
    pub api: SocketAddr,
}

impl Core {
    pub(super) fn prepare(
        name: &str,
        config: &str,
        settings: Vec<String>,
        links: SocketAddr,
        advertised: SocketAddr,
    ) -> Result<Self> {
        let folder = folder()?;
        fs::write(folder.path().join(CONFIG), config)?;
        let (name, api) = (name.to_owned(), ports::free()?);
        Ok(Self { name, settings, process: None, folder, links, advertised, api })
    }

    /// Starts it, and waits until it is ready.
    pub(super) async fn start(&mut self) -> Result<()> {
        let path = self.folder.path();
        let mut command = command()?;
        command
            .arg("core")
            .arg("--config")
            .arg(path.join(CONFIG))
            .args(["--api", &self.api.to_string(), "--set", "log.format=json", "--set"])
            .arg(format!("core.local.path={}", path.join("data").display()))
            .args(self.settings.iter().flat_map(|setting| ["--set", setting]));
        let process = self.process.insert(Process::start(command, path)?);
        process.until_said("ready").await?;
        until_ready(self.api).await.with_context(|| self.log())
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it after its end, at the same addresses, with the same files.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(!self.is_running(), "{} runs still", self.name);
        self.start().await
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&mut self) -> Result<()> {
        self.running_mut()?.kill().await
    }

    /// Sends SIGTERM and waits for the end: it hands over what it owns first.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        let process = self.running_mut()?;
        process.signal(Signal::SIGTERM)?;
        process.ended().await
    }

    /// Stops it without an end, as a machine does that swaps: its sockets stay, and nothing answers.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn pause(&self) -> Result<()> {
        self.running()?.pause().await
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it is not running.
    pub fn go_on(&self) -> Result<()> {
        self.running()?.signal(Signal::SIGCONT)
    }

    /// Whether there is a process, be it stopped.
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_running)
    }

    /// Its process.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.running()?.pid()?.as_raw())
    }

    /// Its folder: `tidegate.toml`, its output, and `data/` where it keeps its log itself.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// What it logged since it was started last, JSON lines.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// What it knows of nodes, partitions and links.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status_json(&self) -> Result<Value> {
        status_json(self.api).await
    }

    /// All samples, by name and labels as they are written.
    ///
    /// # Errors
    /// When it does not answer, or with what is no sample.
    pub async fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        metrics(self.api).await
    }

    fn running(&self) -> Result<&Process> {
        match &self.process {
            Some(process) if process.is_running() => Ok(process),
            _ => bail!("{} is not running", self.name),
        }
    }

    fn running_mut(&mut self) -> Result<&mut Process> {
        match &mut self.process {
            Some(process) if process.is_running() => Ok(process),
            _ => bail!("{} is not running", self.name),
        }
    }
}

const CONFIG: &str = "tidegate.toml";
