//! What clients connect to, and the hub that links it to cores elsewhere.

use std::sync::Arc;

use anyhow::anyhow;
use prometheus_client::registry::Registry;
use tidegate_certs::{CertStore, server_config};
use tidegate_edge::auth::Authenticator;
use tidegate_edge::config::Config;
use tidegate_edge::resume::TicketKeys;
use tidegate_edge::{EdgeNode, Handover, Hub, HubConfig, HubMetrics, ListenError, Routes, Sockets};
use tidegate_fallback::http::OriginPolicy;
use tidegate_transport::link::EdgeLink;

use super::links::Identity;
use crate::config::Settings;

/// What an edge is built from, beside its settings.
pub(super) struct Parts {
    /// `None` where no listener needs any.
    pub(super) certificates: Option<Arc<CertStore>>,
    /// Checks tokens.
    pub(super) authenticator: Arc<Authenticator>,
    /// Seals and opens resume tickets.
    pub(super) tickets: Arc<TicketKeys>,
    /// Pages that may connect.
    pub(super) origins: OriginPolicy,
    /// What the plain listener serves beside the protocol.
    pub(super) routes: Option<Routes>,
    /// What it listens with.
    pub(super) sockets: Sockets,
    /// Whether another process serves until [`EdgeNode::take_over`].
    pub(super) waits: bool,
}

/// Opens every listener; what `inherited` has is taken from there.
pub(super) fn open(config: &Config, tickets: &TicketKeys, inherited: Handover) -> anyhow::Result<Sockets> {
    Sockets::open(config, tickets.shared().id_key(config.node.as_str()), inherited).map_err(with_remedy)
}

/// Serves on listeners that are open.
pub(super) fn start(
    config: Config,
    parts: Parts,
    links: Vec<EdgeLink>,
    registry: &mut Registry,
) -> anyhow::Result<EdgeNode> {
    let encrypted = config.tls.is_some() || config.quic.is_some();
    let tls = parts.certificates.filter(|_| encrypted).map(|store| {
        let tcp = server_config(Arc::clone(&store), &[b"h2", b"http/1.1"]);
        let quic = server_config(store, &[b"tidegate/1", b"h3"]);
        (Arc::new(tcp), Arc::new(quic))
    });
    let parts = tidegate_edge::Parts {
        tls,
        authenticator: parts.authenticator,
        tickets: Some(parts.tickets),
        origins: parts.origins,
        routes: parts.routes,
        links,
        sockets: Some(parts.sockets),
        waits: parts.waits,
    };
    let edge = EdgeNode::start(config, parts).map_err(with_remedy)?;
    edge.metrics().register(registry);
    edge.door().register(registry);
    Ok(edge)
}

/// Connects to the cores of every region, now and as they come and go.
pub(super) fn hub(
    settings: &Settings,
    config: &Config,
    identity: &Identity,
    registry: &mut Registry,
) -> anyhow::Result<(Hub, Vec<EdgeLink>)> {
    let metrics = Arc::new(HubMetrics::default());
    metrics.register(registry);
    let (node, region) = (config.node.clone(), config.region.clone());
    let hub = HubConfig {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        request_wait: settings.cluster.request_wait,
        backend_in_flight: settings.core.backend_in_flight,
        backend_wait: settings.core.backend_wait,
        ..HubConfig::new(node, region, settings.homes(), settings.regions(), config.workers.get())
    };
    Ok(Hub::start(hub, Arc::new(identity.dialer(settings)?), metrics)?)
}

/// Names the flag and the key that change an address.
fn with_remedy(error: ListenError) -> anyhow::Error {
    match error {
        ListenError::Bind { what, address, error } => {
            let kind = if matches!(what, "quic" | "http3") { "UDP" } else { "TCP" };
            anyhow!(
                "cannot listen on {kind} {address}: {error}; choose another address with --{what} or `listen.{what}`"
            )
        }
        error => error.into(),
    }
}
