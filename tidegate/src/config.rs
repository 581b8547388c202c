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
    pub(crate) namespaces: Namespaces,
    pub(crate) limits: Limits,
    /// `[core]`
    pub(crate) core: CoreConfig,
    pub(crate) log: Log,
}

/// `[node]`
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Empty: the host's name.
    pub(crate) name: String,
    pub(crate) region: String,
    /// 0: one per processor.
    pub(crate) workers: usize,
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

/// `namespaces_unknown` and `[namespaces.*]`
#[derive(Debug, Clone)]
pub(crate) struct Namespaces {
    pub(crate) refuse_unknown: bool,
    pub(crate) default: Namespace,
    pub(crate) named: BTreeMap<String, Namespace>,
}

/// `[limits]`
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) edge: EdgeLimits,
    /// How long `SIGTERM` waits for sessions to end.
    pub(crate) shutdown: Duration,
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
            node: Node { name: String::new(), region: "local".to_owned(), workers: 0 },
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
            namespaces: Namespaces {
                refuse_unknown: false,
                default: Namespace::default(),
                named: BTreeMap::new(),
            },
            limits: Limits { edge: EdgeLimits::default(), shutdown: Duration::from_secs(10) },
            core: CoreConfig::default(),
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
        };
        match mode {
            Mode::Serve => serve,
            Mode::Dev => Self {
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
                    default: Namespace {
                        publish: Access::Anyone,
                        subscribe: Access::Anyone,
                        ..serve.namespaces.default
                    },
                    ..serve.namespaces
                },
                ..serve
            },
        }
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
