//! The processes that are measured: the gateway, and the raw loop.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// A running gateway; killed when dropped.
#[derive(Debug)]
pub(super) struct Gateway {
    process: Process,
    pub(super) plain: SocketAddr,
    pub(super) tls: SocketAddr,
    pub(super) quic: SocketAddr,
    pub(super) api: SocketAddr,
    pub(super) ca_file: PathBuf,
}

/// A running raw loop; killed when dropped.
#[derive(Debug)]
pub(super) struct Limit {
    process: Process,
    pub(super) clients: SocketAddr,
    pub(super) control: SocketAddr,
}

#[derive(Debug)]
struct Process(Child);

impl Gateway {
    /// Starts `tidegate dev` with every listener on a free port of loopback. Certificates are kept in `folder` and
    /// used again by the next one.
    pub(super) fn start(program: &Path, folder: &Path, workers: u16) -> Result<Self> {
        let config = folder.join("tidegate.toml");
        fs::write(&config, CONFIG).context("cannot write the configuration")?;
        let log = folder.join("tidegate.log");
        let mut command = Command::new(program);
        // Settings of the tests, which it would refuse.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_"))
        {
            command.env_remove(name);
        }
        let mut process = Process(
            command
                .arg("dev")
                .arg("--config")
                .arg(&config)
                .arg("--certs-dir")
                .arg(folder.join("certs"))
                .arg(format!("--workers={workers}"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(File::create(&log)?)
                .spawn()
                .with_context(|| format!("cannot start {}", program.display()))?,
        );
        let banner = process.lines_until(|line| line.starts_with("End with"));
        let banner = banner.with_context(|| {
            let log = fs::read_to_string(&log).unwrap_or_default();
            format!("{} did not get ready; it said:\n{log}", program.display())
        })?;
        let address = |name: &str| {
            let line = banner.iter().find_map(|line| line.trim_start().strip_prefix(name));
            let port = line.and_then(port_in).with_context(|| format!("no {name} address in the banner"))?;
            Ok::<_, anyhow::Error>(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        };
        let ca_line = banner.iter().find_map(|line| line.trim_start().strip_prefix("CA for TLS"));
        let ca_file = ca_line.and_then(|line| line.split("  (").next()).context("no CA in the banner")?;
        Ok(Self {
            plain: address("WebSocket")?,
            tls: address("with TLS")?,
            quic: address("QUIC")?,
            api: address("Backend API")?,
            ca_file: PathBuf::from(ca_file.trim()),
            process,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.0.id()
    }
}

impl Limit {
    /// Starts this very program's raw loop.
    pub(super) fn start(udp: bool) -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell which program this is")?;
        let mut command = Command::new(program);
        command.arg("limit").args(udp.then_some("--udp"));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the raw loop")?;
        let mut process = Process(child);
        let lines = process.lines_until(|_| true).context("the raw loop did not get ready")?;
        let ports: Vec<u16> = lines
            .iter()
            .flat_map(|line| line.split_whitespace())
            .filter_map(|port| port.parse().ok())
            .collect();
        let [clients, control] = ports[..] else { bail!("the raw loop did not tell its ports") };
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self { process, clients: local(clients), control: local(control) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.0.id()
    }
}

impl Process {
    /// Lines of stdout up to the one that `last` knows. What comes later is read and dropped.
    fn lines_until(&mut self, last: fn(&str) -> bool) -> Result<Vec<String>> {
        let stdout = self.0.stdout.take().context("stdout was taken")?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || read_lines(stdout, &sender, last));
        receiver.recv_timeout(START).context("it ended, or it was silent for too long")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_lines(stdout: ChildStdout, sender: &mpsc::Sender<Vec<String>>, last: fn(&str) -> bool) {
    let mut lines = Vec::new();
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    while stdout.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        lines.push(std::mem::take(&mut line).trim_end().to_owned());
        if lines.last().is_some_and(|line| last(line)) {
            let _ = sender.send(lines);
            let mut rest = Vec::new();
            let _ = stdout.read_to_end(&mut rest);
            return;
        }
    }
}

/// The number behind the last colon of the first address in a line.
fn port_in(line: &str) -> Option<u16> {
    let address = line.trim().split_once("://")?.1;
    let host = address.split(['/', ' ', ',']).next()?;
    host.rsplit_once(':')?.1.parse().ok()
}

/// Few logs, so that they are not what is measured; history as it is by default.
const CONFIG: &str = "\
[listen]
quic = \"127.0.0.1:0\"
tls = \"127.0.0.1:0\"
http3 = \"127.0.0.1:0\"
plain = \"127.0.0.1:0\"
api = \"127.0.0.1:0\"

[admission]
rate = 100000

[log]
level = \"warn\"
";
const START: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::port_in;

    #[test]
    fn ports_are_read_from_the_banner() {
        assert_eq!(port_in("  quic://127.0.0.1:4433  (ALPN tidegate/1)"), Some(4433));
        assert_eq!(port_in(" wss://127.0.0.1:81/v1/connect, https://127.0.0.1:82/v1/poll"), Some(81));
        assert_eq!(port_in("nothing here"), None);
    }
}
