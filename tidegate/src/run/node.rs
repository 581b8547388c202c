//! The node itself: a core, an edge, and the links between them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use prometheus_client::registry::Registry;
use rand::Rng as _;
use tidegate_certs::{CertStore, server_config};
use tidegate_core::engine::MemoryEngine;
use tidegate_core::node::Lifecycle;
use tidegate_core::{BackendAccess, BackendApi, BackendConfig, CoreMetrics, CoreNode};
use tidegate_edge::auth::{Authenticator, Secret};
use tidegate_edge::resume::TicketKeys;
use tidegate_edge::{Addresses, EdgeNode, ListenError, Routes};
use tidegate_fallback::http::OriginPolicy;
use tidegate_protocol::link::LinkName;
use tidegate_transport::clock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Settings;

/// What a node is built from, beside its settings.
pub(super) struct Parts {
    /// `None` where no listener needs any.
    pub(super) certificates: Option<Arc<CertStore>>,
    /// Checks tokens.
    pub(super) authenticator: Arc<Authenticator>,
    /// Seals and opens resume tickets; `None`: with a key of this process.
    pub(super) tickets: Option<Arc<TicketKeys>>,
    /// Pages that may connect.
    pub(super) origins: OriginPolicy,
    /// What the plain listener serves beside the protocol.
    pub(super) routes: Option<Routes>,
    /// Keys of the backend API; none: open.
    pub(super) api_keys: Vec<Secret>,
}

/// A running node.
pub(super) struct Node {
    edge: EdgeNode,
    backend: BackendApi,
    lifecycle: Lifecycle,
}

/// Starts core and edge; on success every listener is bound.
pub(super) async fn start(
    settings: &Settings,
    parts: Parts,
    registry: &mut Registry,
) -> anyhow::Result<Node> {
    let lifecycle = Lifecycle {
        tracker: TaskTracker::new(),
        drain: CancellationToken::new(),
        abort: CancellationToken::new(),
    };
    let config = settings.core();
    let epoch = clock::rng().next_u64();
    // Nothing in this process reads the log again: the core keeps the history.
    let engine = Arc::new(MemoryEngine::new(epoch, config.partitions, 0));
    let core_metrics = CoreMetrics::new();
    core_metrics.register(registry);
    let namespaces = Arc::new(settings.namespaces());
    let core = CoreNode::start(config, engine, namespaces, core_metrics, lifecycle.clone())
        .await
        .context("the core cannot start")?;

    let edge_config = settings.edge();
    let encrypted = edge_config.tls.is_some() || edge_config.quic.is_some();
    let tls = parts.certificates.filter(|_| encrypted).map(|store| {
        let tcp = server_config(Arc::clone(&store), &[b"h2", b"http/1.1"]);
        let quic = server_config(store, &[b"tidegate/1", b"h3"]);
        (Arc::new(tcp), Arc::new(quic))
    });
    let workers = (0..=u8::MAX).take(edge_config.workers.get());
    let links =
        workers.map(|worker| core.connect_as(LinkName { node: edge_config.node.clone(), worker })).collect();
    let parts_of_edge = tidegate_edge::Parts {
        tls,
        authenticator: parts.authenticator,
        tickets: parts.tickets,
        origins: parts.origins,
        routes: parts.routes,
        links,
    };
    let edge = EdgeNode::start(edge_config, parts_of_edge).map_err(with_remedy)?;
    edge.metrics().register(registry);

    let access = if parts.api_keys.is_empty() {
        BackendAccess::Open
    } else {
        // Only what is text can be sent in a header.
        let texts = parts.api_keys.iter().map(|key| String::from_utf8(key.expose().to_vec()));
        BackendAccess::Keys(texts.collect::<Result<_, _>>().ok().context("a key in [api] is not text")?)
    };
    let backend_config = BackendConfig {
        access,
        max_body: settings.api.body,
        body_timeout: settings.api.body_timeout,
        max_batch: settings.api.batch,
        ..BackendConfig::default()
    };
    Ok(Node { edge, backend: BackendApi::new(core, backend_config), lifecycle })
}

impl Node {
    /// Where clients connect.
    pub(super) fn addresses(&self) -> &Addresses {
        self.edge.addresses()
    }

    /// Answers backends.
    pub(super) fn backend(&self) -> BackendApi {
        self.backend.clone()
    }

    /// Sessions first, each told; then the core, which nobody needs any more.
    pub(super) async fn shutdown(self, grace: Duration) {
        self.edge.shutdown(grace).await;
        drop(self.backend);
        self.lifecycle.drain.cancel();
        self.lifecycle.tracker.close();
        if tokio::time::timeout(CORE_GRACE, self.lifecycle.tracker.wait()).await.is_err() {
            self.lifecycle.abort.cancel();
            self.lifecycle.tracker.wait().await;
        }
    }
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

/// For partitions to finish what they have queued.
const CORE_GRACE: Duration = Duration::from_secs(5);
