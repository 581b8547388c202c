//! Whole clusters: NATS servers, cores and edges as processes of their own, on loopback.

mod core;
mod paths;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;
use tempfile::TempDir;

use crate::gateway::{Addresses, Gateway, Mode, Start, run};
use crate::nats::NatsCluster;
use crate::ports;
use crate::process::folder;
use crate::wait::until;

pub use self::core::Core;
pub use self::paths::{Direct, Paths};

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// NATS servers. 0: none, and one core with `engine`.
    pub nats: usize,
    /// `core.engine` of all cores.
    pub engine: &'static str,
    /// How many cores; they are called `core-1`, `core-2`, .., and live in [`HOME`].
    pub cores: usize,
    /// The region of each edge; they are called `edge-1`, `edge-2`, .., and are as open as `tidegate dev`.
    pub edges: Vec<&'static str>,
    /// `core.partitions`.
    pub partitions: u32,
    /// `core.nats.replicas`.
    pub replicas: usize,
    /// Whether NATS servers sync each write to the disk before they answer, as they should where machines can fail.
    pub synced: bool,
    /// TOML that every node reads.
    pub config: String,
    /// `--set` of every core.
    pub settings: Vec<String>,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            nats: 1,
            engine: "nats",
            cores: 2,
            edges: vec![HOME, "us"],
            partitions: 8,
            replicas: 1,
            synced: false,
            config: String::new(),
            settings: Vec::new(),
        }
    }
}

/// A running cluster. Its edges go first when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// What clients connect to. Sessions resume on any of them, one CA has signed for all, and each tells of the others.
    pub edges: Vec<Gateway>,
    /// What owns channels.
    pub cores: Vec<Core>,
    /// What keeps logs and leases, if that is not a core itself.
    pub nats: Option<NatsCluster>,
    _folder: TempDir,
}

impl Cluster {
    /// Starts everything; returns when every partition is served and every edge is ready.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn start(spec: ClusterSpec) -> Result<Self> {
        Self::start_through(spec, &mut Direct).await
    }

    /// The same, where nodes find each other by `paths`.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn start_through(spec: ClusterSpec, paths: &mut impl Paths) -> Result<Self> {
        let open = Edges { mode: Mode::DevEdge, regions: &spec.edges, shared: true };
        let this = Self::start_with(&spec, paths, open).await?;
        this.until_served().await?;
        Ok(this)
    }

    /// One edge with a cluster of its own, for what is tested against a gateway alone as well.
    pub(crate) async fn behind(mode: Mode, config: &str) -> Result<Gateway> {
        let defaults: toml::Table = config.parse().context("the configuration of a test")?;
        let mut spec = ClusterSpec { partitions: 4, config: config.to_owned(), ..ClusterSpec::default() };
        if let Some(partitions) = defaults.get("core").and_then(|core| core.get("partitions")?.as_integer()) {
            spec.partitions = u32::try_from(partitions)?;
        }
        let edges = Edges { mode, regions: &[HOME], shared: false };
        let mut cluster = Self::start_with(&spec, &mut Direct, edges).await?;
        let edge = cluster.edges.pop().context("one edge was started")?;
        Ok(edge.before(cluster))
    }

    async fn start_with(spec: &ClusterSpec, paths: &mut impl Paths, edges: Edges<'_>) -> Result<Self> {
        ensure!(spec.nats > 0 || spec.cores == 1, "several cores share no {} engine", spec.engine);
        let folder = folder()?;
        let certificates = folder.path().join("certs");
        let names = |kind: &str, count: usize| (1..=count).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
        let (core_names, edge_names) = (names("core", spec.cores), names("edge", edges.regions.len()));
        let (nats, ()) = tokio::try_join!(
            async {
                let start = NatsCluster::start_with(spec.nats, spec.synced);
                Ok(if spec.nats == 0 { None } else { Some(start.await?) })
            },
            issue(&certificates, core_names.iter().chain(&edge_names)),
        )?;

        let urls = nats.as_ref().map(NatsCluster::urls).unwrap_or_default();
        let mut cores = Vec::new();
        for (index, name) in core_names.iter().enumerate() {
            let links = ports::free()?;
            let advertised = paths.core_address(index, links).await?;
            let mut settings = identity(&certificates, name, HOME);
            settings.push(format!("cluster.listen={links}"));
            settings.push(format!("cluster.advertise={advertised}"));
            settings.push(format!("core.partitions={}", spec.partitions));
            settings.push(format!("core.engine={}", spec.engine));
            if spec.nats > 0 {
                let urls = paths.nats_urls(index, &urls).await?;
                settings.push(format!("core.nats.servers={}", urls.join(",")));
                settings.push(format!("core.nats.replicas={}", spec.replicas));
                // The servers set it aside for each stream, and test machines have small disks.
                settings.push("core.nats.retain_bytes=64MiB".to_owned());
            }
            settings.extend(open_defaults(&spec.config, edges.mode)?);
            settings.extend(spec.settings.iter().cloned());
            cores.push(Core::prepare(name, &spec.config, settings, links, advertised)?);
        }
        try_join_all(cores.iter_mut().map(Core::start)).await?;

        let addresses: Vec<String> = cores.iter().map(|core| core.advertised.to_string()).collect();
        let keys = folder.path().join("ticket-keys");
        fs::write(&keys, TICKET_KEY)?;
        let at = edge_names.iter().map(|_| Addresses::free()).collect::<Result<Vec<_>>>()?;
        let hosts = |but: usize| {
            let others = at.iter().enumerate().filter(move |(index, _)| *index != but);
            others.map(|(_, at)| at.tls.to_string()).collect::<Vec<_>>()
        };
        let edges =
            try_join_all(edge_names.iter().zip(edges.regions).enumerate().map(|(index, (name, region))| {
                let mut settings = identity(&certificates, name, region);
                if edges.shared && at.len() > 1 {
                    settings.push(format!("node.alternatives={}", hosts(index).join(",")));
                }
                settings.push(format!("cluster.home={HOME}"));
                settings.push(format!("cluster.regions.{HOME}.cores={}", addresses.join(",")));
                let mut start = Start { mode: edges.mode, settings, ..Start::new(&spec.config) };
                if edges.shared {
                    start.settings.push(format!("resume.keys={}", keys.display()));
                    start.certificates = Some(folder.path().join("clients"));
                }
                start.at = Some(at[index]);
                Gateway::start_with(start)
            }))
            .await?;
        Ok(Self { edges, cores, nats, _folder: folder })
    }

    /// `GET /v1/status` of the first edge that answers.
    ///
    /// # Errors
    /// When none does.
    pub async fn status(&self) -> Result<Value> {
        for edge in &self.edges {
            if edge.is_running()
                && let Ok(status) = edge.status_json().await
            {
                return Ok(status);
            }
        }
        bail!("no edge answers")
    }

    /// Waits until every partition has an owner that serves it.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn until_served(&self) -> Result<()> {
        until("every partition is served", || async {
            let status = self.status().await?;
            let partitions = partitions(&status)?;
            // Only an owner that serves tells the epoch.
            let served = |partition: &Value| partition["owner"].is_string() && partition["epoch"].is_string();
            ensure!(!partitions.is_empty() && partitions.iter().all(served), "{status}");
            Ok(())
        })
        .await
    }

    /// The owner of each partition, as an edge knows it.
    ///
    /// # Errors
    /// When no edge answers.
    pub async fn owners(&self) -> Result<Vec<Option<String>>> {
        let status = self.status().await?;
        let owner = |partition: &Value| partition["owner"].as_str().map(str::to_owned);
        Ok(partitions(&status)?.iter().map(owner).collect())
    }

    /// The core of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn core(&mut self, name: &str) -> Result<&mut Core> {
        let core = self.cores.iter_mut().find(|core| core.name() == name);
        core.with_context(|| format!("no core is called {name}"))
    }
}

/// Which edges a cluster has.
#[derive(Clone, Copy)]
struct Edges<'a> {
    mode: Mode,
    regions: &'a [&'static str],
    /// Keys and certificates for clients.
    shared: bool,
}

/// The CA of the cluster, and a certificate for each node.
async fn issue(folder: &Path, nodes: impl Iterator<Item = &String>) -> Result<()> {
    let folder = folder.to_str().context("a path")?;
    certs(&["init", "--dir", folder]).await?;
    let each = nodes.map(|node| async move { certs(&["node", node, "--dir", folder]).await });
    try_join_all(each).await.map(drop)
}

async fn certs(arguments: &[&str]) -> Result<()> {
    let output = run(&[&["certs"], arguments].concat()).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Who a node is.
fn identity(certificates: &Path, name: &str, region: &str) -> Vec<String> {
    let file = |name: String| certificates.join(name).display().to_string();
    vec![
        format!("node.name={name}"),
        format!("node.region={region}"),
        format!("cluster.ca={}", file("ca.pem".to_owned())),
        format!("cluster.certificate={}", file(format!("{name}.pem"))),
        format!("cluster.key={}", file(format!("{name}-key.pem"))),
    ]
}

/// A core knows no `--dev`. What that changes of namespaces must hold for cores too.
fn open_defaults(config: &str, mode: Mode) -> Result<Option<String>> {
    let config: toml::Table = config.parse().context("the configuration of a cluster")?;
    let default = config.get("namespaces").and_then(|namespaces| namespaces.get("default"));
    let is_set = default.is_some_and(|default| default.get("presence").is_some());
    Ok((mode == Mode::DevEdge && !is_set).then(|| "namespaces.default.presence=anyone".to_owned()))
}

fn partitions(status: &Value) -> Result<&Vec<Value>> {
    let regions = status["regions"].as_array().context("no regions")?;
    let home = regions.iter().find(|region| region["region"] == HOME).context("no home region")?;
    home["partitions"].as_array().context("no partitions")
}

/// Where the cores are.
pub const HOME: &str = "eu";
const TICKET_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";
