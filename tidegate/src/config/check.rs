//! Whether values make sense together, and whether what they point at is there.

mod cluster;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tidegate_certs::load_certificate;
use tidegate_edge::auth::{AuthConfig, Authenticator};
use tidegate_edge::policy::admission::NetworkRange;
use tidegate_fallback::http::OriginPolicy;
use tidegate_protocol::endpoint::endpoint_of;
use tidegate_protocol::link::fleet::{MAX_ENDPOINT_BYTES, MAX_ENDPOINTS};
use tidegate_protocol::plan::ReconnectPlan;

use super::convert::MAX_WORKERS;
use super::keys;
use super::layers::{AUTH_KEYS, CERTIFICATES, Loaded};
use super::{Origin, Problem};

/// Everything that is wrong; empty if the program would start.
pub(crate) fn check(loaded: &Loaded, now: SystemTime) -> Vec<Problem> {
    let mut check = Check { loaded, problems: Vec::new() };
    check.listeners();
    // What clients need is nothing to a core: the same file serves every node.
    if loaded.mode.has_edge() {
        check.certificates(now);
        check.keys();
        check.resume();
        check.balancer();
        check.origins();
        check.admission();
    }
    check.api();
    check.namespaces();
    check.limits();
    check.engine();
    check.cluster(now);
    check.problems
}

struct Check<'a> {
    loaded: &'a Loaded,
    problems: Vec<Problem>,
}

impl Check<'_> {
    /// `text` goes to where `path` was set.
    fn report(&mut self, path: &str, text: impl Into<String>) {
        let origin = self.loaded.origins.get(path).cloned().unwrap_or(Origin::Default);
        self.problems.push(Problem::new(origin, text));
    }

    fn listeners(&mut self) {
        if !self.loaded.mode.has_edge() {
            return;
        }
        let listen = &self.loaded.settings.listen;
        if listen.quic.is_none() && listen.tls.is_none() && listen.plain.is_none() {
            self.report(
                "listen.quic",
                "every listener for clients is off: set `listen.quic`, `listen.tls` or `listen.plain`",
            );
        }
        if let (Some(quic), Some(http3)) = (listen.quic, listen.http3)
            && http3.port() != 0
            && overlap(quic, http3)
        {
            let text = format!(
                "`listen.http3` and `listen.quic` both take UDP port {}: give one of them another",
                http3.port()
            );
            self.report("listen.http3", text);
        }
        let tcp = [("listen.tls", listen.tls), ("listen.plain", listen.plain), ("listen.api", listen.api)];
        let mut seen: Vec<(&str, SocketAddr)> = Vec::new();
        for (path, address) in tcp {
            let Some(address) = address.filter(|address| address.port() != 0) else { continue };
            let taken = seen.iter().find(|(_, other)| overlap(*other, address));
            if let Some((other, _)) = taken {
                self.report(
                    path,
                    format!(
                        "`{path}` and `{other}` both take TCP port {}: give one of them another",
                        address.port()
                    ),
                );
            }
            seen.push((path, address));
        }
        self.endpoints();
        let node = &self.loaded.settings.node;
        if node.alternatives.len() > ReconnectPlan::MAX_ALTERNATIVES {
            let text = format!("`node.alternatives` can be at most {}", ReconnectPlan::MAX_ALTERNATIVES);
            self.report("node.alternatives", text);
        }
        for host in node.alternatives.iter().filter(|host| endpoint_of(host).is_none()) {
            let text = format!("`node.alternatives`: `{host}` is no host, or host and port");
            self.report("node.alternatives", text);
        }
        for (path, count) in [("node.workers", node.workers), ("core.threads", node.threads)] {
            if count > MAX_WORKERS.get() {
                self.report(path, format!("`{path}` can be at most {MAX_WORKERS}"));
            }
        }
    }

    fn endpoints(&mut self) {
        let endpoints = &self.loaded.settings.node.endpoints;
        if endpoints.len() > MAX_ENDPOINTS {
            return self
                .report("node.endpoints", format!("`node.endpoints` can name {MAX_ENDPOINTS} at most"));
        }
        for url in endpoints.iter().filter(|url| !is_endpoint(url)) {
            let text = format!(
                "`node.endpoints`: {url:?} is no URL of a node: such as \"quic://edge-1.example:4433\" (or wss, ws, https, \
                 http), of at most {MAX_ENDPOINT_BYTES} characters"
            );
            self.report("node.endpoints", text);
        }
    }

    fn certificates(&mut self, now: SystemTime) {
        let settings = &self.loaded.settings;
        let needed = settings.listen.quic.is_some() || settings.listen.tls.is_some();
        if settings.tls.certificates.is_empty() && needed && !self.loaded.mode.is_dev() {
            self.report(
                CERTIFICATES,
                "there is no TLS certificate: name one with `certificate` and `key` in [[tls.certificates]], switch \
                 `listen.quic` and `listen.tls` off, or use `tidegate dev`, which makes its own",
            );
        }
        for files in settings.certificate_files() {
            let given = |path: &std::path::Path| !path.as_os_str().is_empty();
            if !given(&files.certificate) || !given(&files.key) {
                self.report(
                    CERTIFICATES,
                    "an entry of [[tls.certificates]] needs both `certificate` and `key`",
                );
            } else if let Err(error) = load_certificate(&files, now) {
                self.report(CERTIFICATES, error.to_string());
            }
        }
    }

    fn keys(&mut self) {
        let auth = &self.loaded.settings.auth;
        let mut ids = BTreeSet::new();
        for (index, key) in auth.keys.iter().enumerate() {
            let name =
                key.id.as_ref().map_or_else(|| format!("number {}", index + 1), |id| format!("{id:?}"));
            let one = |config: AuthConfig| Authenticator::new(config).err().map(|error| error.to_string());
            let problem = match key.config() {
                Ok(config) => one(AuthConfig { keys: vec![config], ..no_keys() }),
                Err(problem) => Some(problem),
            };
            if let Some(problem) = problem {
                self.report(AUTH_KEYS, format!("`{AUTH_KEYS}` {name}: {problem}"));
            }
            if let Some(id) = &key.id
                && !ids.insert(id)
            {
                self.report(AUTH_KEYS, format!("two `{AUTH_KEYS}` have the id {id:?}: give each its own"));
            }
        }
        for path in &auth.jwks_files {
            if let Err(error) = Authenticator::new(AuthConfig { jwks_files: vec![path.clone()], ..no_keys() })
            {
                self.report("auth.jwks_files", error.to_string());
            }
        }
        if !auth.anonymous && auth.keys.is_empty() && auth.jwks_files.is_empty() {
            self.report(
                "auth.anonymous",
                "nobody could connect: give a key in [[auth.keys]] or `auth.jwks_files`, or set `auth.anonymous = true`",
            );
        }
    }

    fn resume(&mut self) {
        let resume = &self.loaded.settings.resume;
        if let Err(error) = self.loaded.settings.ticket_keys() {
            self.report("resume.keys", error.to_string());
        }
        if !TICKET_LIFETIMES.contains(&resume.times.lifetime) {
            self.report("resume.lifetime", "`resume.lifetime` can be from 1s to 1d");
        }
        if resume.times.grace > MAX_GRACE {
            self.report("resume.grace", "`resume.grace` can be at most 1h");
        }
    }

    fn balancer(&mut self) {
        if let Err(problem) = self.loaded.settings.routing() {
            let paths = ["quic.balancer.key_file", "quic.balancer.server_id", "quic.balancer.rotation"];
            let set = paths.into_iter().find(|path| self.loaded.origins.contains_key(*path));
            self.report(set.unwrap_or(paths[0]), problem);
        }
    }

    fn admission(&mut self) {
        let admission = &self.loaded.settings.admission;
        let mut wrong = Vec::new();
        for network in &admission.exempt {
            if let Err(error) = network.parse::<NetworkRange>() {
                wrong.push(("admission.exempt", format!("`admission.exempt`: {error}")));
            }
        }
        for (key, value) in [
            ("admission.handshakes", admission.handshakes as u64),
            ("admission.address_rate", admission.address_rate.into()),
            ("admission.address_burst", admission.address_burst.into()),
        ] {
            if value == 0 {
                wrong.push((key, format!("`{key}` is at least 1")));
            }
        }
        for (key, text) in wrong {
            self.report(key, text);
        }
    }

    fn origins(&mut self) {
        if let Err(error) = OriginPolicy::new(&self.loaded.settings.auth.origins) {
            self.report("auth.origins", format!("`auth.origins`: {error}"));
        }
    }

    fn api(&mut self) {
        let settings = &self.loaded.settings;
        let keys = match settings.api_keys() {
            Ok(keys) => keys,
            Err(error) => return self.report("api.key_files", error.to_string()),
        };
        if keys.iter().any(|key| key.expose().len() < MIN_API_KEY_BYTES) {
            self.report(
                if settings.api.keys.iter().any(|key| key.expose().len() < MIN_API_KEY_BYTES) { "api.keys" } else { "api.key_files" },
                format!("a key in [api] has fewer than {MIN_API_KEY_BYTES} characters: make one with `openssl rand -base64 24`"),
            );
        }
        if keys.iter().any(|key| !key.expose().iter().all(u8::is_ascii_graphic)) {
            self.report("api.keys", "a key in [api] has characters other than ASCII letters, digits and signs: HTTP cannot carry them");
        }
        if let Some(address) = settings.listen.api
            && keys.is_empty()
            && !address.ip().is_loopback()
        {
            let text = format!(
                "`listen.api` on {address} would let everyone who reaches it publish: set `api.keys` or `api.key_files`, or \
                 listen on 127.0.0.1"
            );
            self.report("listen.api", text);
        }
    }

    fn namespaces(&mut self) {
        for name in self.loaded.settings.namespaces.named.keys() {
            if name.contains(':') {
                let text = format!(
                    "[namespaces.{name:?}]: a namespace is the part before the first `:` and cannot hold one"
                );
                // Any of its keys shows the place.
                let prefix = format!("namespaces.{name}.");
                let path = self.loaded.origins.keys().find(|path| path.starts_with(&prefix)).cloned();
                self.report(&path.unwrap_or(prefix), text);
            }
        }
    }

    fn limits(&mut self) {
        let settings = &self.loaded.settings;
        let limits = &settings.limits.edge;
        let at_least = [
            ("limits.frame", limits.frame, "limits.payload", limits.payload.saturating_add(FRAME_OVERHEAD)),
            ("limits.http_body", limits.http_body, "limits.frame", limits.frame),
            (
                "limits.session_queue",
                limits.session_queue,
                "limits.subscription_queue",
                limits.subscription_queue,
            ),
            ("limits.subscription_queue", limits.subscription_queue, "limits.frame", limits.frame),
            ("api.body", settings.api.body, "limits.payload", limits.payload.saturating_add(FRAME_OVERHEAD)),
        ];
        for (path, value, than, minimum) in at_least {
            if value < minimum {
                let path_set = if self.loaded.origins.contains_key(path) { path } else { than };
                self.report(
                    path_set,
                    format!("`{path}` ({value} bytes) must be at least {minimum} bytes, to go with `{than}`: raise the one or lower the other"),
                );
            }
        }
        if settings.api.batch > settings.core.backend_in_flight {
            self.report("api.batch", "`api.batch` can be at most `core.backend_in_flight`");
        }
        if limits.pong >= limits.ping {
            self.report("limits.pong", "`limits.pong` must be shorter than `limits.ping`");
        }
        if !limits.renewal.is_zero() && limits.renewal < MIN_RENEWAL {
            self.report("limits.renewal", "`limits.renewal` must be at least 10s, or \"0s\" for never");
        }
        // Zero would refuse everything, or wait for nothing.
        for key in keys::settings() {
            let bounds =
                ["limits.", "core.", "api.", "cluster."].iter().any(|section| key.name.starts_with(section));
            let shown = key.show(settings);
            if bounds
                && shown.as_deref().is_some_and(|shown| shown == "0" || shown == "\"0s\"")
                && !MAY_BE_ZERO.contains(&key.name)
            {
                self.report(key.name, format!("`{}` cannot be 0", key.name));
            }
        }
    }
}

/// Whether two listeners of one kind would take the same port.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same_ip = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    same_ip && one.port() == other.port()
}

/// As the SDKs take them: a scheme, a host, perhaps a port.
fn is_endpoint(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let scheme = uri.scheme_str().is_some_and(|scheme| ENDPOINT_SCHEMES.contains(&scheme));
    let host = uri.authority().is_some_and(|authority| !authority.host().is_empty() && !url.contains('@'));
    scheme && host && url.len() <= MAX_ENDPOINT_BYTES && url.bytes().all(|byte| byte.is_ascii_graphic())
}

fn no_keys() -> AuthConfig {
    AuthConfig {
        keys: Vec::new(),
        jwks_files: Vec::new(),
        issuer: None,
        audience: None,
        leeway: Duration::ZERO,
        max_token_bytes: 0,
        max_subscriptions: 0,
    }
}

/// Room for the other fields of a frame: channel, key, user, position.
const FRAME_OVERHEAD: usize = 1 << 10;
const TICKET_LIFETIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
const MAX_GRACE: Duration = Duration::from_secs(60 * 60);
const ENDPOINT_SCHEMES: [&str; 5] = ["quic", "wss", "ws", "https", "http"];
/// Below, clients would do little else.
const MIN_RENEWAL: Duration = Duration::from_secs(10);
const MIN_API_KEY_BYTES: usize = 16;
/// At zero, no connection is too old, shutdown does not wait, and neither does a log frame; and there are as many threads as fit the machine.
const MAY_BE_ZERO: [&str; 4] = ["limits.renewal", "limits.shutdown", "core.linger", "core.threads"];
