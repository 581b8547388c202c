//! Settings of engines and of clusters.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tidegate_certs::{CertificateFiles, load_certificate, load_roots};

use super::Check;
use crate::config::layers::{HOMES, NAMESPACES, REGIONS};
use crate::config::{EngineKind, Mode, Origin, Retention};

impl Check<'_> {
    pub(super) fn engine(&mut self) {
        let mode = self.loaded.mode;
        let engine = &self.loaded.settings.engine;
        match (mode, engine.kind) {
            (Mode::Edge | Mode::DevEdge, _) => {}
            (Mode::Dev | Mode::Serve, EngineKind::Nats) => self.report(
                "core.engine",
                format!(
                    "`tidegate {}` takes all partitions for itself, so it cannot share a NATS cluster: run `tidegate core` \
                     and `tidegate edge`, or set `core.engine = \"local\"`",
                    mode.command()
                ),
            ),
            // In a file it would be a mistake that shows at the first restart.
            (Mode::Core, EngineKind::Memory) if !self.was_asked_for("core.engine") => self.report(
                "core.engine",
                "a core with `core.engine = \"memory\"` shares nothing with others and forgets all at its end: set \"nats\", or \
                 \"local\" where it is the only one of its region; for a test, say it by flag: --set core.engine=memory",
            ),
            (_, EngineKind::Memory) => {}
            (_, EngineKind::Local) => {
                if let Some(path) = engine.local.path.as_ref().filter(|path| path.is_file()) {
                    let text = format!("`core.local.path`: {} is a file: name a folder", path.display());
                    self.report("core.local.path", text);
                }
                self.retention("core.local.retain_age", engine.local.retain);
            }
            (_, EngineKind::Nats) => self.nats(),
        }
    }

    fn nats(&mut self) {
        let nats = &self.loaded.settings.engine.nats;
        if nats.servers.is_empty() {
            self.report(
                "core.nats.servers",
                "`core.nats.servers` names no server: list the region's own, such as [\"nats://10.0.0.1:4222\"]",
            );
        }
        let name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let region = &self.loaded.settings.node.region;
        if region.is_empty() || region.len() > MAX_PREFIX || !region.chars().all(name) {
            let text = format!(
                "`node.region` is part of the names of streams: 1 to {MAX_PREFIX} letters, digits, - and _"
            );
            self.report("node.region", text);
        }
        if nats.prefix.is_empty() || nats.prefix.len() > MAX_PREFIX || !nats.prefix.chars().all(name) {
            let text = format!("`core.nats.prefix` can be 1 to {MAX_PREFIX} letters, digits, - and _");
            self.report("core.nats.prefix", text);
        }
        if !REPLICAS.contains(&nats.replicas) {
            self.report("core.nats.replicas", "`core.nats.replicas` can be 1, 3 or 5");
        }
        if !LEASES.contains(&nats.lease) || nats.lease.subsec_nanos() != 0 {
            self.report("core.nats.lease", "`core.nats.lease` can be 2s to 60s, in whole seconds");
        }
        if nats.user.is_some() != nats.password_file.is_some() {
            self.report("core.nats.user", "`core.nats.user` and `core.nats.password_file` go together");
        }
        let ways = [&nats.credentials_file, &nats.password_file, &nats.token_file];
        if ways.into_iter().flatten().count() > 1 {
            self.report(
                "core.nats.credentials_file",
                "give one of `core.nats.credentials_file`, `password_file` and `token_file`, not several",
            );
        }
        for (path, file) in [
            ("core.nats.credentials_file", &nats.credentials_file),
            ("core.nats.password_file", &nats.password_file),
            ("core.nats.token_file", &nats.token_file),
            ("core.nats.ca", &nats.ca),
        ] {
            if let Some(file) = file {
                self.readable(path, file);
            }
        }
        if nats.certificate.is_some() != nats.key.is_some() {
            self.report("core.nats.certificate", "`core.nats.certificate` and `core.nats.key` go together");
        }
        self.retention("core.nats.retain_age", nats.retain);
    }

    fn retention(&mut self, path: &str, retain: Retention) {
        let namespaces = &self.loaded.settings.namespaces;
        let named = namespaces.named.iter().map(|(name, rules)| (name.as_str(), rules));
        for (name, rules) in std::iter::once(("default", &namespaces.default)).chain(named) {
            if rules.history.age > retain.age {
                let text = format!(
                    "`{path}` is shorter than `{NAMESPACES}.{name}.history_age`: history would be lost with its owner; raise the \
                     one or lower the other"
                );
                return self.report(path, text);
            }
        }
    }

    pub(super) fn cluster(&mut self, now: SystemTime) {
        let mode = self.loaded.mode;
        if !mode.is_clustered() {
            return;
        }
        self.cluster_certificates(now);
        let link = &self.loaded.settings.cluster.link;
        if link.heartbeat.saturating_mul(2) > link.idle_timeout {
            self.report(
                "cluster.link.idle_timeout",
                "`cluster.link.idle_timeout` must be at least twice `cluster.link.heartbeat`, else one lost packet cuts links",
            );
        }
        if mode.has_edge() {
            self.regions();
        } else {
            self.advertised();
        }
    }

    fn cluster_certificates(&mut self, now: SystemTime) {
        let settings = &self.loaded.settings;
        let cluster = &settings.cluster;
        let (Some(ca), Some(certificate), Some(key)) = (&cluster.ca, &cluster.certificate, &cluster.key)
        else {
            let missing = [
                ("cluster.ca", &cluster.ca),
                ("cluster.certificate", &cluster.certificate),
                ("cluster.key", &cluster.key),
            ];
            let (path, _) = missing.into_iter().find(|(_, file)| file.is_none()).expect("one is missing");
            let text = format!(
                "`tidegate {}` needs `{path}`: links between nodes are authenticated both ways; `tidegate certs init` makes the \
                 cluster's CA, `tidegate certs node {}` this node's certificate",
                self.loaded.mode.command(),
                settings.node_name()
            );
            return self.report(path, text);
        };
        if let Err(error) = load_roots(ca) {
            self.report("cluster.ca", error.to_string());
        }
        let files = CertificateFiles { certificate: certificate.clone(), key: key.clone() };
        match load_certificate(&files, now) {
            Err(error) => self.report("cluster.certificate", error.to_string()),
            Ok(loaded) => {
                let name = settings.node_name();
                if !loaded.names().dns.iter().any(|dns| dns.eq_ignore_ascii_case(&name)) {
                    let text = format!(
                        "the certificate in {} is for {}, not for this node, {name}: set `node.name`, or make another with \
                         `tidegate certs node {name}`",
                        certificate.display(),
                        loaded.names().dns.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
                    );
                    self.report("cluster.certificate", text);
                }
            }
        }
    }

    fn regions(&mut self) {
        let settings = &self.loaded.settings;
        let cluster = &settings.cluster;
        for (name, region) in &cluster.regions {
            let path = format!("{REGIONS}.{name}.cores");
            if region.cores.is_empty() {
                self.report(
                    &path,
                    format!("[{REGIONS}.{name}] names no core: list `host:port` of a few in `cores`"),
                );
            }
            for core in region.cores.iter().filter(|core| !is_host_and_port(core)) {
                self.report(
                    &path,
                    format!("`{path}`: {core:?} is no `host:port`, such as \"core-1.internal:4455\""),
                );
            }
        }
        let home = settings.home_region();
        let mut homes = vec![("cluster.home".to_owned(), home.as_str())];
        homes.extend(cluster.homes.iter().map(|rule| (HOMES.to_owned(), rule.region.as_str())));
        let namespaces = &settings.namespaces;
        let named = namespaces.named.iter().map(|(name, namespace)| (name.as_str(), namespace));
        for (name, namespace) in named {
            if let Some(region) = &namespace.home {
                homes.push((format!("{NAMESPACES}.{name}.home"), region));
            }
        }
        for (path, region) in homes {
            if !cluster.regions.contains_key(region) {
                let text = format!(
                    "channels live in region {region:?} by `{path}`, and this edge does not know how to get there: give its cores \
                     in [{REGIONS}.{region}]"
                );
                self.report(&path, text);
            }
        }
        if namespaces.default.home.is_some() {
            self.report(
                &format!("{NAMESPACES}.default.home"),
                "[namespaces.default] cannot have a `home`: where other channels live is `cluster.home`",
            );
        }
        for rule in cluster.homes.iter().filter(|rule| rule.pattern.is_empty()) {
            let text = format!("an entry of [[{HOMES}]] for region {:?} has no `pattern`", rule.region);
            self.report(HOMES, text);
        }
    }

    fn advertised(&mut self) {
        if let Some(address) = &self.loaded.settings.cluster.advertise
            && !is_host_and_port(address)
        {
            let text = format!(
                "`cluster.advertise`: {address:?} is no `host:port`, such as \"core-1.internal:4455\""
            );
            self.report("cluster.advertise", text);
        }
    }

    fn readable(&mut self, path: &str, file: &Path) {
        if let Err(error) = std::fs::File::open(file) {
            let text = format!(
                "cannot read {}: {error}; check the path and that this user may read it",
                file.display()
            );
            self.report(path, text);
        }
    }

    /// Whether somebody set it for this start alone.
    fn was_asked_for(&self, path: &str) -> bool {
        matches!(self.loaded.origins.get(path), Some(Origin::Flag(_) | Origin::Environment(_)))
    }
}

/// `host:port`, `1.2.3.4:port` or `[::1]:port`.
fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        !host.is_empty() && bare && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

const REPLICAS: [usize; 3] = [1, 3, 5];
const LEASES: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(60);
/// Longer names of streams are refused by nobody, but nobody can read them.
const MAX_PREFIX: usize = 32;
