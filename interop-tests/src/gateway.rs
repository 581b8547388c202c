//! The real program as a child process: on free ports, in a folder of its own, gone when dropped. What clients connect
//! to, be it a process alone or the edge of a cluster.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow, ensure};
use http::StatusCode;
use nix::sys::signal::Signal;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_certs::{DevCertificates, client_config_with_roots, load_roots};

use crate::cluster::Cluster;
use crate::http::{Answer, get, post, send};
use crate::ports;
use crate::process::{Process, folder};
use crate::topology::Topology;
use crate::wait::{PATIENCE, until, within};

pub use crate::process::command;

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

impl Addresses {
    /// Some that nobody takes while the gateway is down.
    pub(crate) fn free() -> Result<Self> {
        let [clients, plain, api, http3] = [ports::free()?, ports::free()?, ports::free()?, ports::free()?];
        Ok(Self { quic: clients, tls: clients, plain, api, http3 })
    }
}

/// Which program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Dev,
    Serve,
    /// As open as `dev`, with channels on the cores of a cluster.
    DevEdge,
    /// As `serve`, likewise.
    Edge,
}

/// How it is started.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) mode: Mode,
    pub(crate) config: &'a str,
    /// Keys that are set over the file.
    pub(crate) settings: Vec<String>,
    /// `None`: wherever there is room.
    pub(crate) at: Option<Addresses>,
    /// `None`: in its own folder.
    pub(crate) certificates: Option<PathBuf>,
}

impl<'a> Start<'a> {
    pub(crate) fn new(config: &'a str) -> Self {
        Self { mode: Mode::Dev, config, settings: Vec::new(), at: None, certificates: None }
    }
}

/// The process of a gateway that another has taken over from.
#[derive(Debug)]
pub struct Leaving(Process);

impl Leaving {
    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.0.ended().await
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn kill(&mut self) -> Result<()> {
        self.0.kill().await
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    mode: Mode,
    /// Keys that are set over its file.
    settings: Vec<String>,
    process: Process,
    folder: TempDir,
    /// Of listeners for clients, with their CA.
    certificates: PathBuf,
    /// Where it listens.
    pub addresses: Addresses,
    /// The others of a cluster that is there for this one alone.
    behind: Option<Box<Cluster>>,
}

impl Gateway {
    /// `tidegate dev`, with the defaults of `dev` and a configuration file over them.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn dev(config: &str) -> Result<Self> {
        match Topology::of_this_process() {
            Topology::Alone => Self::start_with(Start::new(config)).await,
            Topology::Cluster => Cluster::behind(Mode::DevEdge, config).await,
        }
    }

    /// The same with the listeners for clients at an address other than loopback, for a laboratory's namespace.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn dev_on(host: IpAddr, config: &str) -> Result<Self> {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let open = SocketAddr::from((host, 0));
        let at = Addresses { quic: open, tls: open, plain: local, api: local, http3: open };
        Self::start_with(Start { at: Some(at), ..Start::new(config) }).await
    }

    /// `tidegate serve`, with certificate files that lie in [`Gateway::folder`].
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn serve(config: &str) -> Result<Self> {
        let config = format!("{config}\n{TLS}");
        match Topology::of_this_process() {
            Topology::Alone => Self::start_with(Start { mode: Mode::Serve, ..Start::new(&config) }).await,
            Topology::Cluster => Cluster::behind(Mode::Edge, &config).await,
        }
    }

    /// The same in one process whatever the topology of this one, for what `serve` alone has; `settings` are set over the
    /// file.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn serve_alone(config: &str, settings: &[&str]) -> Result<Self> {
        let config = format!("{config}\n{TLS}");
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Self::start_with(Start { mode: Mode::Serve, settings, ..Start::new(&config) }).await
    }

    pub(crate) async fn start_with(start: Start<'_>) -> Result<Self> {
        let Start { mode, config, settings, at, certificates } = start;
        let folder = folder()?;
        fs::write(folder.path().join(CONFIG), config)?;
        let certificates = certificates.unwrap_or_else(|| folder.path().join(CERTIFICATES));
        if matches!(mode, Mode::Serve | Mode::Edge) {
            issue_certificates(&certificates)?;
        }
        let (process, addresses) = spawn(mode, &folder, &certificates, &settings, at).await?;
        Ok(Self { mode, settings, process, folder, certificates, addresses, behind: None })
    }

    /// The only edge of a cluster, which it takes along.
    pub(crate) fn before(self, cluster: Cluster) -> Self {
        Self { behind: Some(Box::new(cluster)), ..self }
    }

    /// Ends it in order and starts it again, at the same addresses, with the same files. What it kept in memory is gone:
    /// of an edge, that is its sessions alone.
    ///
    /// # Errors
    /// When it does not end with 0, or does not become ready again.
    pub async fn restart(&mut self) -> Result<()> {
        let status = self.terminate().await?;
        ensure!(status.success(), "ended with {status}: {}", self.log());
        self.start_again().await
    }

    /// Kills it, and starts it again likewise.
    ///
    /// # Errors
    /// When it does not become ready again.
    pub async fn crash(&mut self) -> Result<()> {
        self.kill().await?;
        self.start_again().await
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it after its end, at the same addresses, with the same files.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(!self.process.is_running(), "the gateway runs still");
        let addresses = Some(self.addresses);
        let start = spawn(self.mode, &self.folder, &self.certificates, &self.settings, addresses);
        (self.process, self.addresses) = start.await?;
        Ok(())
    }

    /// Starts it once more, at the same addresses, with the same files: it takes over, and the process before leaves.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn take_over(&mut self) -> Result<Leaving> {
        let addresses = Some(self.addresses);
        let start = spawn(self.mode, &self.folder, &self.certificates, &self.settings, addresses);
        let (process, addresses) = start.await?;
        self.addresses = addresses;
        Ok(Leaving(std::mem::replace(&mut self.process, process)))
    }

    /// Starts it once more, until it has been given everything and waits for what it needs to serve. Dropping that kills it.
    ///
    /// # Errors
    /// When it does not come so far.
    pub async fn begin_to_take_over(&mut self) -> Result<Leaving> {
        let at = Some(self.addresses);
        let mut process = start(self.mode, &self.folder, &self.certificates, &self.settings, at)?;
        process.until_said("edge serves").await?;
        Ok(Leaving(process))
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
        self.process.ended().await
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Whether there is a process, be it stopped.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Its process.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.process.pid()?.as_raw())
    }

    /// Its folder: `tidegate.toml`, `certs/`, and its output.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// What it printed.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// What it logged since it was started last, JSON lines.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The CA that its certificate comes from.
    pub fn ca_file(&self) -> PathBuf {
        self.certificates.join("ca.pem")
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
            "quic" | "webtransport" => format!("{scheme}://{}", self.addresses.quic),
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

    /// What it knows of nodes, partitions and links.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status_json(&self) -> Result<Value> {
        status_json(self.addresses.api).await
    }

    /// All samples, by name and labels as they are written; of a gateway with a cluster of its own also the sums of what
    /// its cores have.
    ///
    /// # Errors
    /// When it does not answer, or with what is no sample.
    pub async fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let mut all = metrics(self.addresses.api).await?;
        for core in self.behind.iter().flat_map(|cluster| &cluster.cores) {
            for (name, value) in core.metrics().await? {
                if name.starts_with(OF_CORES) {
                    *all.entry(name).or_default() += value;
                }
            }
        }
        Ok(all)
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
        let config = self.folder.path().join(CONFIG);
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

/// A CA and a leaf for this machine, as files. Replaces the leaf that is there.
///
/// # Errors
/// When the folder cannot be written.
pub fn issue_certificates(folder: &Path) -> Result<()> {
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
async fn spawn(
    mode: Mode,
    folder: &TempDir,
    certificates: &Path,
    settings: &[String],
    at: Option<Addresses>,
) -> Result<(Process, Addresses)> {
    let mut process = start(mode, folder, certificates, settings, at)?;
    let said = process.until_said("ready").await?;
    let addresses = read(&said).with_context(|| format!("no addresses in {said}"))?;
    until_ready(addresses.api).await.with_context(|| process.log())?;
    Ok((process, addresses))
}

/// So high that nobody waits, where a test does not say: most of them open connections by the hundred, to see something else.
fn admission_rate(config: &str, settings: &[String]) -> Option<&'static str> {
    let table: toml::Table = config.parse().ok()?;
    let is_set = table.get("admission").is_some_and(|admission| admission.get("rate").is_some())
        || settings.iter().any(|setting| setting.starts_with("admission.rate="));
    (!is_set).then_some("admission.rate=100000")
}

/// Starts it.
fn start(
    mode: Mode,
    folder: &TempDir,
    certificates: &Path,
    settings: &[String],
    at: Option<Addresses>,
) -> Result<Process> {
    let path = folder.path();
    let address = |of: fn(&Addresses) -> SocketAddr| {
        at.as_ref().map_or_else(|| ANY.to_owned(), |at| of(at).to_string())
    };
    let rate = admission_rate(&fs::read_to_string(path.join(CONFIG))?, settings);
    let mut command = command()?;
    match mode {
        Mode::Dev => command.arg("dev").arg("--certs-dir").arg(certificates),
        Mode::DevEdge => command.args(["edge", "--dev"]).arg("--certs-dir").arg(certificates),
        Mode::Edge => command.arg("edge"),
        Mode::Serve => {
            let store = format!("core.local.path={}", path.join("data").display());
            command.arg("serve").args(["--set", &store])
        }
    };
    command
        .arg("--config")
        .arg(path.join(CONFIG))
        .args(["--quic", &address(|at| at.quic), "--tls", &address(|at| at.tls)])
        .args(["--plain", &address(|at| at.plain), "--api", &address(|at| at.api)])
        .args(["--http3", &address(|at| at.http3), "--set", "log.format=json"])
        .args(
            rate.into_iter()
                .chain(settings.iter().map(String::as_str))
                .flat_map(|setting| ["--set", setting]),
        );
    Process::start(command, path)
}

/// Waits until `/readyz` says yes.
pub(crate) async fn until_ready(api: SocketAddr) -> Result<()> {
    until("readiness", || async {
        let answer = send(api, None, get("/readyz")).await?;
        ensure!(answer.status == StatusCode::OK, "{}", answer.status);
        Ok(())
    })
    .await
}

/// The samples of one node.
pub(crate) async fn metrics(api: SocketAddr) -> Result<BTreeMap<String, f64>> {
    let answer = send(api, None, get("/metrics")).await?;
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

/// What a node knows of the others.
pub(crate) async fn status_json(api: SocketAddr) -> Result<Value> {
    let answer = send(api, None, get("/v1/status")).await?;
    ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
    Ok(answer.json())
}

/// The addresses in the line that says that it serves.
fn read(said: &Value) -> Option<Addresses> {
    let text = format!("{} {}", said["addresses"], said["api"]);
    let mut found = addresses_in(&text);
    let (quic, tls, plain) = (found.next()?, found.next()?, found.next()?);
    let http3 = found.next()?;
    Some(Addresses { quic, tls, plain, http3, api: found.next()? })
}

/// Those that are there, in order.
pub(crate) fn addresses_in(text: &str) -> impl Iterator<Item = SocketAddr> {
    text.split("Some(").skip(1).filter_map(|rest| rest.split(')').next()?.parse().ok())
}

/// What explains most of what is not as it should be.
const SESSIONS: [&str; 4] = [
    "tidegate_edge_connections",
    "tidegate_edge_connects",
    "tidegate_edge_closes",
    "tidegate_edge_handshake",
];
const ANY: &str = "127.0.0.1:0";
const CONFIG: &str = "tidegate.toml";
const TLS: &str = "[[tls.certificates]]\ncertificate = \"certs/leaf.pem\"\nkey = \"certs/leaf-key.pem\"\n";
const CERTIFICATES: &str = "certs";
const OF_CORES: &str = "tidegate_core_";
