//! The channel tier in this process: alone, or as one of a cluster.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tidegate_core::engine::NodeRecord;
use tidegate_core::node::Lifecycle;
use tidegate_core::{CoreMetrics, CoreNode};
use tidegate_protocol::link::LinkName;
use tidegate_protocol::{NodeId, Region};
use tidegate_transport::clock;
use tidegate_transport::link::{Backend, EdgeLink};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::engine;
use super::links::Identity;
use crate::config::Settings;

/// A running core.
pub(super) struct Core {
    node: CoreNode,
    lifecycle: Lifecycle,
}

impl Core {
    /// Owns every partition.
    pub(super) async fn start(settings: &Settings, registry: &mut Registry) -> anyhow::Result<Self> {
        let engine = engine::open(settings).await?;
        let (metrics, lifecycle) = (metrics(registry), lifecycle());
        let namespaces = Arc::new(settings.namespaces());
        let node = CoreNode::start(settings.core(), engine, namespaces, metrics, lifecycle.clone())
            .await
            .context("the core cannot start")?;
        Ok(Self { node, lifecycle })
    }

    /// Owns what falls to it, and takes links of edges.
    pub(super) async fn join(
        settings: &Settings,
        identity: &Identity,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        // The socket first: whoever learns of this node may dial at once.
        let listener = identity.listen(settings)?;
        let bound = listener.local_address();
        let engine = engine::open(settings).await?;
        let record = NodeRecord {
            id: NodeId::new(&settings.node_name()),
            address: settings.advertised(bound.port()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: clock::wall()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
            declines: Vec::new(),
        };
        info!(node = record.id.as_str(), links = %bound, advertised = record.address, "joining the cluster");
        let (metrics, lifecycle) = (metrics(registry), lifecycle());
        let namespaces = Arc::new(settings.namespaces());
        let node = CoreNode::join(settings.core(), engine, namespaces, metrics, lifecycle.clone(), record)
            .await
            .context("the core cannot join its cluster")?;
        node.serve_links(listener, Region::new(&settings.node.region));
        Ok(Self { node, lifecycle })
    }

    /// One for each worker of an edge in this process.
    pub(super) fn links(&self, node: &NodeId, workers: usize) -> Vec<EdgeLink> {
        let names = (0..=u8::MAX).take(workers).map(|worker| LinkName { node: node.clone(), worker });
        names.map(|name| self.node.connect_as(name)).collect()
    }

    pub(super) fn node(&self) -> CoreNode {
        self.node.clone()
    }

    pub(super) fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(self.node.clone())
    }

    /// In a cluster, everything is handed over first, within `grace`. Then what is queued is finished.
    pub(super) async fn shutdown(self, grace: Duration) {
        self.node.leave(grace).await;
        drop(self.node);
        self.lifecycle.drain.cancel();
        self.lifecycle.tracker.close();
        if tokio::time::timeout(LAST_COMMANDS, self.lifecycle.tracker.wait()).await.is_err() {
            self.lifecycle.abort.cancel();
            self.lifecycle.tracker.wait().await;
        }
    }
}

fn metrics(registry: &mut Registry) -> CoreMetrics {
    let metrics = CoreMetrics::new();
    metrics.register(registry);
    metrics
}

fn lifecycle() -> Lifecycle {
    Lifecycle {
        tracker: TaskTracker::new(),
        drain: CancellationToken::new(),
        abort: CancellationToken::new(),
    }
}

/// For partitions to finish what they have queued.
const LAST_COMMANDS: Duration = Duration::from_secs(5);
