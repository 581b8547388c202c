//! The real program as a child process: on free ports, in a folder of its own, gone when dropped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};
use http::StatusCode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_certs::{DevCertificates, client_config_with_roots, load_roots};
use tokio::process::{Child, Command};

use crate::http::{Answer, get, post, send};
use crate::programs;
use crate::wait::{PATIENCE, until, within};

/// Where a gateway listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// UDP: QUIC and WebTransport.
    pub quic: SocketAddr,
    /// TCP with TLS.
    pub tls: SocketAddr,
    /// TCP without.
    pub plain: SocketAddr,
    /// The backend API.
    pub api: SocketAddr,
    /// UDP: HTTP/3.
    pub http3: SocketAddr,
}

/// How it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Dev,
    Serve,
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    mode: Mode,
    folder: TempDir,
    child: Child,
    /// Where it listens.
    pub addresses: Addresses,
}

impl Gateway {
    /// `tidegate dev`, with the defaults of `dev` and a configuration file over them.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn dev(config: &str) -> Result<Self> {
        Self::start(Mode::Dev, config, None).await
    }

    /// The same with the listeners for clients at an address other than loopback, for a laboratory's namespace.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn dev_on(host: IpAddr, config: &str) -> Result<Self> {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let open = SocketAddr::from((host, 0));
        let at = Addresses { quic: open, tls: open, plain: local, api: local, http3: open };
        Self::start(Mode::Dev, config, Some(at)).await
    }

    /// `tidegate serve`, with certificate files that lie in [`Gateway::folder`].
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn serve(config: &str) -> Result<Self> {
        let files = "[[tls.certificates]]\ncertificate = \"certs/leaf.pem\"\nkey = \"certs/leaf-key.pem\"\n";
        Self::start(Mode::Serve, &format!("{config}\n{files}"), None).await
    }

    async fn start(mode: Mode, config: &str, at: Option<Addresses>) -> Result<Self> {
        let folder = TempDir::with_prefix("tidegate-test-")?;
        fs::write(folder.path().join("tidegate.toml"), config)?;
        if mode == Mode::Serve {
            issue_certificates(&folder.path().join("certs"))?;
        }
        let (child, addresses) = spawn(mode, &folder, at).await?;
        Ok(Self { mode, folder, child, addresses })
    }

    /// Ends it in order and starts it again, at the same addresses, with the same files. What it kept in memory is gone.
    ///
    /// # Errors
    /// When it does not end with 0, or does not become ready again.
    pub async fn restart(&mut self) -> Result<()> {
        let status = self.terminate().await?;
        ensure!(status.success(), "ended with {status}: {}", self.log());
        self.respawn().await
    }

    /// Kills it, and starts it again likewise.
    ///
    /// # Errors
    /// When it does not become ready again.
    pub async fn crash(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.ended().await?;
        self.respawn().await
    }

    async fn respawn(&mut self) -> Result<()> {
        let addresses = self.addresses;
        (self.child, self.addresses) = spawn(self.mode, &self.folder, Some(addresses)).await?;
        Ok(())
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.ended().await
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        within(PATIENCE, "the end of the gateway", self.child.wait())
            .await
            .with_context(|| self.log())?
            .context("waiting for the gateway")
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid()?, signal).context("signalling the gateway")
    }

    fn pid(&self) -> Result<Pid> {
        let id = self.child.id().with_context(|| format!("the gateway has ended: {}", self.log()))?;
        Ok(Pid::from_raw(i32::try_from(id)?))
    }

    /// Its folder: `tidegate.toml`, `certs/`, and its output.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// What it printed.
    pub fn output(&self) -> String {
        fs::read_to_string(self.folder.path().join(STDOUT)).unwrap_or_default()
    }

    /// What it logged, JSON lines.
    pub fn log(&self) -> String {
        read_log(&self.folder)
    }

    /// The CA that its certificate comes from.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("certs/ca.pem")
    }

    /// The roots that a client needs.
    ///
    /// # Panics
    /// When the gateway has made no CA.
    pub fn roots(&self) -> RootCertStore {
        load_roots(&self.ca_file()).expect("the gateway has made its CA")
    }

    /// TLS for a client that offers these protocols.
    ///
    /// # Panics
    /// When the gateway has made no CA.
    pub fn tls(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        Arc::new(client_config_with_roots(self.roots(), alpn).expect("a client with roots"))
    }

    /// What the demo page reads: addresses, and the hash of the certificate that is served now. Only `dev` has it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn facts(&self) -> Result<Value> {
        Ok(self.plain(get("/dev.json")).await?.json())
    }

    /// The demo page.
    pub fn page(&self) -> String {
        // A name, since browsers grant WebTransport to secure contexts alone, and `localhost` is one.
        format!("http://localhost:{}/", self.addresses.plain.port())
    }

    /// A URL for `tidegate-client`.
    pub fn url(&self, scheme: &str) -> String {
        match scheme {
            "quic" => format!("quic://{}", self.addresses.quic),
            "ws" | "http" => format!("{scheme}://{}", self.addresses.plain),
            _ => format!("{scheme}://{}", self.addresses.tls),
        }
    }

    /// Asks the listener without TLS.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn plain(&self, request: http::Request<http_body_util::Full<bytes::Bytes>>) -> Result<Answer> {
        send(self.addresses.plain, None, request).await
    }

    /// Asks the backend API.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn api(&self, request: http::Request<http_body_util::Full<bytes::Bytes>>) -> Result<Answer> {
        send(self.addresses.api, None, request).await
    }

    /// Publishes JSON, and returns the position.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn publish(&self, channel: &str, data: Value) -> Result<Value> {
        let body = json!({ "channel": channel, "data": data });
        let answer = self.api(post("/v1/publish", body.to_string())).await?;
        ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
        Ok(answer.json()["position"].clone())
    }

    /// Publishes many at once, and returns their positions.
    ///
    /// # Errors
    /// When any is refused.
    pub async fn publish_batch(&self, publications: &[Value]) -> Result<Vec<Value>> {
        let body = json!({ "publications": publications });
        let answer = self.api(post("/v1/publish", body.to_string())).await?;
        ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
        let answer = answer.json();
        let results = answer["results"].as_array().context("no results")?;
        results
            .iter()
            .map(|result| {
                let position = &result["position"];
                if position.is_object() { Ok(position.clone()) } else { Err(anyhow!("refused: {result}")) }
            })
            .collect()
    }

    /// All samples, by name and labels as they are written.
    ///
    /// # Errors
    /// When it does not answer, or with what is no sample.
    pub async fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let answer = self.api(get("/metrics")).await?;
        ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
        let text = answer.text();
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
                Ok((name.to_owned(), value.parse()?))
            })
            .collect()
    }

    /// One sample; 0 where it is not there yet.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        Ok(self.metrics().await?.get(name).copied().unwrap_or(0.0))
    }

    /// Waits until a sample has a value.
    ///
    /// # Errors
    /// When it does not get there.
    pub async fn until_metric(&self, name: &str, is_there: impl Fn(f64) -> bool) -> Result<f64> {
        until(name, || async {
            let metrics = self.metrics().await?;
            let value = metrics.get(name).copied().unwrap_or(0.0);
            let sessions =
                metrics.iter().filter(|(name, _)| SESSIONS.iter().any(|prefix| name.starts_with(prefix)));
            ensure!(is_there(value), "it is {value}: {:?}", sessions.collect::<Vec<_>>());
            Ok(value)
        })
        .await
    }

    /// Memory that it occupies, bytes.
    ///
    /// # Errors
    /// When it is not running.
    pub fn rss(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// Signs a token with `tidegate token`, by the key of this gateway's configuration.
    ///
    /// # Errors
    /// When it does not.
    pub async fn token(&self, arguments: &[&str]) -> Result<String> {
        let config = self.folder.path().join("tidegate.toml");
        let mut all = vec!["token", "--config", config.to_str().context("a path")?];
        all.extend(arguments);
        let output = run(&all).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// Runs `tidegate` to its end.
///
/// # Errors
/// When it cannot be started, or does not end.
pub async fn run(arguments: &[&str]) -> Result<Output> {
    let mut command = command()?;
    command.args(arguments).stdin(Stdio::null());
    within(PATIENCE, format!("tidegate {}", arguments.join(" ")), command.output()).await?.context("tidegate")
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

/// A CA and a leaf for this machine, as files. Replaces the leaf that is there.
///
/// # Errors
/// When the folder cannot be written.
pub fn issue_certificates(folder: &std::path::Path) -> Result<()> {
    for name in ["leaf.pem", "leaf-key.pem"] {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let now: SystemTime = tidegate_transport::clock::wall();
    DevCertificates::load_or_create(folder, &[], now)?;
    Ok(())
}

/// Starts it and waits until it is ready.
async fn spawn(mode: Mode, folder: &TempDir, at: Option<Addresses>) -> Result<(Child, Addresses)> {
    let path = folder.path();
    let address = |of: fn(&Addresses) -> SocketAddr| {
        at.as_ref().map_or_else(|| ANY.to_owned(), |at| of(at).to_string())
    };
    let mut command = command()?;
    match mode {
        Mode::Dev => command.arg("dev").arg("--certs-dir").arg(path.join("certs")),
        Mode::Serve => {
            let store = format!("core.local.path={}", path.join("data").display());
            command.arg("serve").args(["--set", &store])
        }
    };
    command
        .arg("--config")
        .arg(path.join("tidegate.toml"))
        .args(["--quic", &address(|at| at.quic), "--tls", &address(|at| at.tls)])
        .args(["--plain", &address(|at| at.plain), "--api", &address(|at| at.api)])
        .args(["--http3", &address(|at| at.http3), "--set", "log.format=json"])
        .stdin(Stdio::null())
        .stdout(File::create(path.join(STDOUT))?)
        .stderr(File::create(path.join(STDERR))?);
    let mut child = command.spawn().context("starting tidegate")?;
    let looking = async {
        loop {
            if let Some(addresses) = ready(&read_log(folder)) {
                return Ok(addresses);
            }
            if let Some(status) = child.try_wait()? {
                return Err(anyhow!("tidegate ended with {status}: {}", read_log(folder)));
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    };
    let addresses = within(PATIENCE, "the line that says `ready`", looking).await??;
    until("readiness", || async {
        let answer = send(addresses.api, None, get("/readyz")).await?;
        ensure!(answer.status == StatusCode::OK, "{}", answer.status);
        Ok(())
    })
    .await?;
    Ok((child, addresses))
}

/// The addresses in the line that says that it serves.
fn ready(log: &str) -> Option<Addresses> {
    let line = log.lines().rev().find(|line| line.contains(r#""message":"ready""#))?;
    let fields: Value = serde_json::from_str(line).ok()?;
    let text = format!("{} {}", fields["fields"]["addresses"], fields["fields"]["api"]);
    let mut found = text.split("Some(").skip(1).filter_map(|rest| rest.split(')').next()?.parse().ok());
    let (quic, tls, plain) = (found.next()?, found.next()?, found.next()?);
    let http3 = found.next()?;
    Some(Addresses { quic, tls, plain, http3, api: found.next()? })
}

fn read_log(folder: &TempDir) -> String {
    fs::read_to_string(folder.path().join(STDERR)).unwrap_or_default()
}

/// What explains most of what is not as it should be.
const SESSIONS: [&str; 4] = [
    "tidegate_edge_connections",
    "tidegate_edge_connects",
    "tidegate_edge_closes",
    "tidegate_edge_handshake",
];
const ANY: &str = "127.0.0.1:0";
const STDOUT: &str = "stdout.txt";
const STDERR: &str = "stderr.txt";
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
