//! The processes of a cluster: started, watched, ended in order.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::files::Member;

/// In the order in which they were started. Those that are left are killed with it.
#[derive(Default)]
pub(super) struct Members {
    running: Vec<Running>,
}

struct Running {
    name: String,
    process: Child,
    ended: bool,
}

impl Members {
    /// Starts a process of its own group: Ctrl-C is for us, and they end in our order.
    pub(super) fn start(&mut self, name: &str, log: &Path, mut command: Command) -> Result<()> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let process = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{}`", crate::process::line(&command)))?;
        self.running.push(Running { name: name.to_owned(), process, ended: false });
        Ok(())
    }

    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.running.iter().find(|running| running.name == name).map(|running| running.process.id())
    }

    /// Until its probe says yes; an error if it ends before that.
    pub(super) async fn wait_until_ready(&mut self, member: &Member, patience: Duration) -> Result<()> {
        let deadline = patience.as_millis() / PERIOD.as_millis();
        for _ in 0..deadline {
            if let Some((name, status)) = self.new_ends().into_iter().next() {
                bail!("{name} ended with {status}");
            }
            if answers(member.probe, member.probe_path) {
                return Ok(());
            }
            tokio::time::sleep(PERIOD).await;
        }
        bail!("http://{}{} did not say yes within {patience:?}", member.probe, member.probe_path)
    }

    /// Says which ones end; returns when none is left.
    pub(super) async fn watch(&mut self) {
        loop {
            for (name, status) in self.new_ends() {
                eprintln!("{name} ended: {status}");
            }
            if self.running.iter().all(|running| running.ended) {
                return;
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Asks each to end, the newest first, and waits for it.
    pub(super) async fn end(&mut self) {
        for running in self.running.iter_mut().rev().filter(|running| !running.ended) {
            let id = running.process.id().to_string();
            // One that was stopped (SIGSTOP) cannot end in order before it goes on.
            for signal in ["-CONT", "-TERM"] {
                let _ = Command::new("kill").args([signal, &id]).status();
            }
            let periods = GRACE.as_millis() / PERIOD.as_millis();
            for _ in 0..periods {
                if matches!(running.process.try_wait(), Ok(Some(_)) | Err(_)) {
                    running.ended = true;
                    break;
                }
                tokio::time::sleep(PERIOD).await;
            }
            if !running.ended {
                eprintln!("{} did not end within {GRACE:?} and is killed", running.name);
                running.kill();
            }
        }
    }

    /// At once.
    pub(super) fn kill(&mut self) {
        for running in self.running.iter_mut().rev() {
            running.kill();
        }
    }

    fn new_ends(&mut self) -> Vec<(String, String)> {
        let mut ends = Vec::new();
        for running in self.running.iter_mut().filter(|running| !running.ended) {
            if let Ok(Some(status)) = running.process.try_wait() {
                running.ended = true;
                ends.push((running.name.clone(), status.to_string()));
            }
        }
        ends
    }
}

impl Running {
    fn kill(&mut self) {
        // Where it ended meanwhile there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.ended = true;
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether `GET path` is answered with 200.
fn answers(address: SocketAddr, path: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, PROBE)?;
        stream.set_read_timeout(Some(PROBE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

const PERIOD: Duration = Duration::from_millis(100);
const PROBE: Duration = Duration::from_millis(500);
/// Above a node's own time to end in order.
const GRACE: Duration = Duration::from_secs(30);
