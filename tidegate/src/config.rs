//! The one configuration file, and everything that may override it: `default < file < environment < flag`.
//!
//! What is known of a key (name, text, accepted values, where it is kept) stands once, in [`keys`]. Reading, the
//! default file, `config explain` and the suggestions for misspelt keys all come from that table.

mod check;
mod convert;
mod keys;
mod kind;
mod layers;
mod node;
mod problem;
mod render;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::Duration;

use tidegate_core::CoreConfig;
use tidegate_edge::auth::{KeyAlgorithm, Secret};
use tidegate_edge::config::{Limits as EdgeLimits, Resume as EdgeResume};
use tidegate_protocol::namespace::{Access, Namespace};

pub(crate) use self::check::check;
pub(crate) use self::layers::{ENVIRONMENT_PREFIX, Layers, Loaded};
pub(crate) use self::problem::{Origin, Problem, Problems};
pub(crate) use self::render::{default_file, explain};

/// For which command: it decides the defaults, and what must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Open to everyone on this machine, with throw-away certificates.
    Dev,
    /// Production on one machine.
    Serve,
    /// The part of a cluster that clients connect to.
    Edge,
    /// The same, as open as [`Self::Dev`].
    DevEdge,
    /// The part of a cluster that owns channels.
    Core,
}

impl Mode {
    /// Whether clients connect to it.
    pub(crate) fn has_edge(self) -> bool {
        self != Self::Core
    }

    /// Whether it owns channels.
    pub(crate) fn has_core(self) -> bool {
        !matches!(self, Self::Edge | Self::DevEdge)
    }

    /// Whether it has links to other nodes.
    pub(crate) fn is_clustered(self) -> bool {
        matches!(self, Self::Edge | Self::DevEdge | Self::Core)
    }

    /// Whether it is for development only: open, with certificates of its own making and the demo page.
    pub(crate) fn is_dev(self) -> bool {
        matches!(self, Self::Dev | Self::DevEdge)
    }

    /// The command, as it is typed.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Serve => "serve",
            Self::Edge | Self::DevEdge => "edge",
            Self::Core => "core",
        }
    }
}

/// Everything that can be set, effective values.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) node: Node,
    pub(crate) listen: Listen,
    pub(crate) tls: Tls,
    pub(crate) auth: Auth,
    pub(crate) resume: Resume,
    pub(crate) api: Api,
    pub(crate) admission: Admission,
    pub(crate) namespaces: Namespaces,
    pub(crate) limits: Limits,
    pub(crate) balancer: Balancer,
    /// `[core]`
    pub(crate) core: CoreConfig,
    pub(crate) engine: Engine,
    pub(crate) cluster: Cluster,
    pub(crate) log: Log,
}

/// `[node]`
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Empty: the host's name.
    pub(crate) name: String,
    pub(crate) region: String,
    /// Where its clients may be sent: hosts, with ports where those are not 4433.
    pub(crate) alternatives: Vec<String>,
    /// 0: one per processor.
    pub(crate) workers: usize,
    /// The Unix socket by which a process takes over from the one before.
    pub(crate) handover: Option<PathBuf>,
    /// Of a core; 0: one for every two processors.
    pub(crate) threads: usize,
    /// Where clients find it; none: where it listens.
    pub(crate) endpoints: Vec<String>,
}

/// `[listen]`; `None` is off.
#[derive(Debug, Clone)]
pub(crate) struct Listen {
    pub(crate) quic: Option<SocketAddr>,
    pub(crate) tls: Option<SocketAddr>,
    pub(crate) plain: Option<SocketAddr>,
    pub(crate) http3: Option<SocketAddr>,
    pub(crate) api: Option<SocketAddr>,
}

/// `[tls]`
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) certificates: Vec<Certificate>,
}

/// One of `[[tls.certificates]]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// `[auth]`
#[derive(Debug, Clone)]
pub(crate) struct Auth {
    pub(crate) anonymous: bool,
    pub(crate) origins: Vec<String>,
    pub(crate) issuer: Option<String>,
    pub(crate) audience: Option<String>,
    pub(crate) leeway: Duration,
    pub(crate) jwks_files: Vec<PathBuf>,
    pub(crate) keys: Vec<AuthKey>,
}

/// One of `[[auth.keys]]`.
#[derive(Debug, Clone)]
pub(crate) struct AuthKey {
    pub(crate) id: Option<String>,
    pub(crate) algorithm: KeyAlgorithm,
    pub(crate) secret: Option<Secret>,
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) public_key_file: Option<PathBuf>,
}

impl Default for AuthKey {
    fn default() -> Self {
        Self {
            id: None,
            algorithm: KeyAlgorithm::Hs256,
            secret: None,
            secret_file: None,
            public_key_file: None,
        }
    }
}

/// `[resume]`
#[derive(Debug, Clone)]
pub(crate) struct Resume {
    pub(crate) enabled: bool,
    /// None: a random key for this process.
    pub(crate) keys: Vec<PathBuf>,
    pub(crate) times: EdgeResume,
}

/// `[api]`
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) keys: Vec<Secret>,
    pub(crate) key_files: Vec<PathBuf>,
    pub(crate) body: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) batch: usize,
    pub(crate) connections: usize,
}

/// `[admission]`
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    /// Clients per second; 0: by the number of workers.
    pub(crate) rate: u32,
    pub(crate) handshakes: usize,
    /// Of one network.
    pub(crate) address_rate: u32,
    pub(crate) address_burst: u32,
    /// Networks without those limits.
    pub(crate) exempt: Vec<String>,
}

/// `namespaces_unknown` and `[namespaces.*]`
#[derive(Debug, Clone)]
pub(crate) struct Namespaces {
    pub(crate) refuse_unknown: bool,
    pub(crate) default: NamespaceSettings,
    pub(crate) named: BTreeMap<String, NamespaceSettings>,
}

/// One of `[namespaces.*]`: its rules, and what only the wiring needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct NamespaceSettings {
    pub(crate) rules: Namespace,
    /// Its channels' home region; `None`: `cluster.home`.
    pub(crate) home: Option<String>,
}

impl Deref for NamespaceSettings {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.rules
    }
}

impl DerefMut for NamespaceSettings {
    fn deref_mut(&mut self) -> &mut Namespace {
        &mut self.rules
    }
}

/// `core.engine`, `[core.local]` and `[core.nats]`
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) kind: EngineKind,
    pub(crate) local: LocalEngine,
    pub(crate) nats: NatsEngine,
}

/// What keeps the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// The process: gone when it ends.
    Memory,
    /// A folder of this machine.
    Local,
    /// NATS JetStream, shared by the cores of a region.
    Nats,
}

/// `[core.local]`
#[derive(Debug, Clone)]
pub(crate) struct LocalEngine {
    /// `None`: a folder where the program was started.
    pub(crate) path: Option<PathBuf>,
    pub(crate) retain: Retention,
    /// Bytes of the disk that are left free.
    pub(crate) reserve: u64,
}

/// `[core.nats]`
#[derive(Debug, Clone)]
pub(crate) struct NatsEngine {
    pub(crate) servers: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) replicas: usize,
    pub(crate) credentials_file: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) lease: Duration,
    pub(crate) retain: Retention,
}

/// How much of a partition's log is kept, beyond what its snapshot needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    pub(crate) age: Duration,
    pub(crate) bytes: u64,
}

/// `[cluster]`
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// Where a core takes links.
    pub(crate) listen: SocketAddr,
    /// How edges reach it; `None`: `listen`, or the node's name where that is unspecified.
    pub(crate) advertise: Option<String>,
    /// `None`: the node's own region.
    pub(crate) home: Option<String>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) request_wait: Duration,
    pub(crate) regions: BTreeMap<String, ClusterRegion>,
    pub(crate) homes: Vec<HomeRule>,
    pub(crate) link: LinkSettings,
}

/// One of `[cluster.regions.*]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterRegion {
    /// `host:port` of some or all of its cores.
    pub(crate) cores: Vec<String>,
}

/// One of `[[cluster.homes]]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct HomeRule {
    pub(crate) pattern: String,
    pub(crate) region: String,
}

/// `[cluster.link]`
#[derive(Debug, Clone)]
pub(crate) struct LinkSettings {
    pub(crate) heartbeat: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) queue: usize,
}

/// `[limits]`
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) edge: EdgeLimits,
    /// How long `SIGTERM` waits for sessions to end.
    pub(crate) shutdown: Duration,
}

/// `[quic.balancer]`
#[derive(Debug, Clone, Default)]
pub(crate) struct Balancer {
    /// `None`: connection ids say nothing to balancers.
    pub(crate) server_id: Option<String>,
    pub(crate) rotation: usize,
    pub(crate) key_file: Option<PathBuf>,
}

/// `[log]`
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl Settings {
    /// What holds where nothing is set.
    pub(crate) fn defaults(mode: Mode) -> Self {
        let serve = Self {
            node: Node {
                name: String::new(),
                region: "local".to_owned(),
                alternatives: Vec::new(),
                workers: 0,
                threads: 0,
                endpoints: Vec::new(),
                handover: None,
            },
            listen: Listen {
                quic: Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4433))),
                tls: Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4433))),
                plain: None,
                http3: Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4434))),
                api: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9090))),
            },
            tls: Tls { certificates: Vec::new() },
            auth: Auth {
                anonymous: false,
                origins: Vec::new(),
                issuer: None,
                audience: None,
                leeway: Duration::from_secs(10),
                jwks_files: Vec::new(),
                keys: Vec::new(),
            },
            resume: Resume { enabled: true, keys: Vec::new(), times: EdgeResume::default() },
            api: Api {
                keys: Vec::new(),
                key_files: Vec::new(),
                body: 4 << 20,
                body_timeout: Duration::from_secs(10),
                batch: 1000,
                connections: 1024,
            },
            admission: Admission {
                rate: 0,
                handshakes: 8_192,
                address_rate: 50,
                address_burst: 500,
                exempt: Vec::new(),
            },
            namespaces: Namespaces {
                refuse_unknown: false,
                default: NamespaceSettings::default(),
                named: BTreeMap::new(),
            },
            limits: Limits { edge: EdgeLimits::default(), shutdown: Duration::from_secs(10) },
            balancer: Balancer::default(),
            core: CoreConfig::default(),
            engine: Engine::defaults(EngineKind::Local),
            cluster: Cluster::default(),
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
        };
        match mode {
            // An edge has no engine: what is shown for it is what `serve` has.
            Mode::Serve | Mode::Edge => serve,
            Mode::Core => Self { engine: Engine::defaults(EngineKind::Nats), ..serve },
            Mode::Dev | Mode::DevEdge => Self {
                listen: Listen {
                    quic: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 4433))),
                    tls: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 4433))),
                    plain: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
                    http3: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 4434))),
                    ..serve.listen
                },
                auth: Auth {
                    anonymous: true,
                    origins: LOOPBACK_ORIGINS.map(str::to_owned).to_vec(),
                    ..serve.auth
                },
                namespaces: Namespaces {
                    default: NamespaceSettings {
                        rules: Namespace {
                            publish: Access::Anyone,
                            subscribe: Access::Anyone,
                            presence: Some(Access::Anyone),
                            ..serve.namespaces.default.rules
                        },
                        home: None,
                    },
                    ..serve.namespaces
                },
                engine: Engine::defaults(EngineKind::Memory),
                ..serve
            },
        }
    }

    /// Where channels live that nothing puts elsewhere.
    pub(crate) fn home_region(&self) -> String {
        self.cluster.home.clone().unwrap_or_else(|| self.node.region.clone())
    }

    /// How edges reach this core, which is bound to the port `bound`.
    pub(crate) fn advertised(&self, bound: u16) -> String {
        self.cluster.advertise.clone().unwrap_or_else(|| {
            let ip = self.cluster.listen.ip();
            if ip.is_unspecified() {
                format!("{}:{bound}", self.node_name())
            } else {
                SocketAddr::new(ip, bound).to_string()
            }
        })
    }

    /// The node's name: as set, else the host's.
    pub(crate) fn node_name(&self) -> String {
        if !self.node.name.is_empty() {
            return self.node.name.clone();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim();
        if host.is_empty() { "tidegate".to_owned() } else { host.to_owned() }
    }
}

impl Engine {
    fn defaults(kind: EngineKind) -> Self {
        Self {
            kind,
            local: LocalEngine {
                path: None,
                retain: Retention { age: DAY, bytes: 256 << 20 },
                reserve: 64 << 20,
            },
            nats: NatsEngine {
                servers: Vec::new(),
                prefix: "tidegate".to_owned(),
                replicas: 3,
                credentials_file: None,
                user: None,
                password_file: None,
                token_file: None,
                ca: None,
                certificate: None,
                key: None,
                lease: Duration::from_secs(3),
                retain: Retention { age: DAY, bytes: 1 << 30 },
            },
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4455)),
            advertise: None,
            home: None,
            ca: None,
            certificate: None,
            key: None,
            request_wait: Duration::from_secs(5),
            regions: BTreeMap::new(),
            homes: Vec::new(),
            link: LinkSettings {
                heartbeat: Duration::from_secs(1),
                idle_timeout: Duration::from_secs(4),
                queue: 8 << 20,
            },
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Pages of this machine, whatever their port: no other website may reach a gateway that needs no token.
const LOOPBACK_ORIGINS: [&str; 6] = [
    "http://localhost:*",
    "https://localhost:*",
    "http://127.0.0.1:*",
    "https://127.0.0.1:*",
    "http://[::1]:*",
    "https://[::1]:*",
];

#[cfg(test)]
mod tests;
