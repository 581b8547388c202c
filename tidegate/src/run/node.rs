//! A node: an edge, a core, or both, with what is between them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use prometheus_client::registry::Registry;
use tidegate_edge::{Addresses, EdgeNode, Fleet, Handover, Hub};
use tidegate_transport::link::Backend;
use tidegate_transport::quic::Strays;

use super::core::Core;
use super::drain::Desk;
use super::edge::{self, Parts};
use super::fleet::Announced;
use super::links::Identity;
use crate::config::{Mode, Settings};

/// A running node.
pub(super) struct Node {
    /// Where clients connect, unless it is a core alone.
    edge: Option<EdgeNode>,
    /// Towards cores elsewhere, unless there is one here.
    hub: Option<Hub>,
    /// Of the part that clients connect to.
    announced: Option<Announced>,
    core: Option<Core>,
    addresses: Addresses,
    /// Clients per second that it lets in.
    admission_rate: f64,
    backend: Arc<dyn Backend>,
}

impl Node {
    /// Starts what `mode` is made of; on success every listener is bound. `identity` is there for nodes of a cluster,
    /// `parts` for those with clients.
    pub(super) async fn start(
        settings: &Settings,
        mode: Mode,
        identity: Option<&Identity>,
        parts: Option<Parts>,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        let core = match (mode.has_core(), identity) {
            (false, _) => None,
            (true, None) => Some(Core::start(settings, registry).await?),
            (true, Some(identity)) => Some(Core::join(settings, identity, registry).await?),
        };
        let Some(parts) = parts else {
            let core = core.expect("a node without clients is a core");
            let backend = core.backend();
            return Ok(Self {
                edge: None,
                hub: None,
                announced: None,
                core: Some(core),
                addresses: Addresses::default(),
                admission_rate: 0.0,
                backend,
            });
        };
        let mut config = settings.edge();
        let admission_rate = config.admission.rate;
        let routing = settings.routing().map_err(|problem| anyhow!(problem))?;
        config.limits.quic.routing = routing.map(Arc::new);
        let (hub, links, backend) = match (&core, identity) {
            (Some(core), _) => (None, core.links(&config.node, config.workers.get()), core.backend()),
            (None, identity) => {
                let identity = identity.expect("an edge alone is a node of a cluster");
                let (hub, links) = edge::hub(settings, &config, identity, registry)?;
                let backend: Arc<dyn Backend> = Arc::new(hub.clone());
                (Some(hub), links, backend)
            }
        };
        // Alone it is a fleet of one.
        let fleet = hub.as_ref().map_or_else(|| Fleet::new(config.node.clone()), |hub| hub.fleet().clone());
        let edge = edge::start(config, parts, links, registry)?;
        let addresses = edge.addresses().clone();
        let about = settings.about(&addresses);
        let announced = Announced::start(fleet, about, &edge, registry);
        let (edge, announced) = (Some(edge), Some(announced));
        Ok(Self { edge, hub, announced, core, addresses, admission_rate, backend })
    }

    /// The nodes that clients connect to, unless this is none of them.
    pub(super) fn fleet(&self) -> Option<&Fleet> {
        self.announced.as_ref().map(Announced::fleet)
    }

    /// Where clients connect.
    pub(super) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// New clients come here, from now on.
    pub(super) fn take_over(&self) -> anyhow::Result<()> {
        self.edge.as_ref().map_or(Ok(()), EdgeNode::take_over).map_err(Into::into)
    }

    /// What clients connect to, for another process.
    pub(super) fn handover(&self) -> anyhow::Result<Handover> {
        Ok(self.edge.as_ref().map_or_else(|| Ok(Handover::default()), EdgeNode::handover)?)
    }

    /// New clients go to another process.
    pub(super) fn hand_over(&self) {
        self.edge.as_ref().inspect(|edge| edge.hand_over());
    }

    /// A process before this one has ended, with these generations of connection ids.
    pub(super) fn forget(&self, quic: Option<u8>, http3: Option<u8>) -> anyhow::Result<()> {
        Ok(self.edge.as_ref().map_or(Ok(()), |edge| edge.forget(quic, http3))?)
    }

    /// What came to the wrong socket.
    pub(super) fn strays(&self) -> Strays {
        self.edge.as_ref().map(|edge| edge.metrics().strays()).unwrap_or_default()
    }

    /// Answers what is asked about drains.
    pub(super) fn desk(&self) -> Desk {
        match (&self.announced, &self.core) {
            (Some(announced), _) => Desk::Edge(announced.control().clone()),
            (None, Some(core)) => Desk::Core(core.node()),
            (None, None) => unreachable!("a node without clients is a core"),
        }
    }

    /// Before the end: its clients go to other nodes, if there are any that take them.
    pub(super) async fn move_elsewhere(&self, within: Duration) {
        if let Some(announced) = &self.announced {
            announced.control().drain_before_end(within).await;
        }
    }

    /// Another process listens in place of this one, and serves: clients go there, at a pace that leaves it room.
    pub(super) async fn move_to_successor(&self, least: Duration) {
        // One with a core of its own serves once this one has ended.
        if let (Some(announced), None) = (&self.announced, &self.core) {
            announced.control().drain_to_successor(least, self.admission_rate).await;
        }
    }

    /// Answers backends.
    pub(super) fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.backend)
    }

    /// Other nodes first, which are to send nobody here; sessions, each told; then other nodes hear that this one is gone; then
    /// the links, then the core, which nobody here needs any more. Each within `grace`.
    /// `end_api` ends what asks [`Self::backend`]: before the links over which its answers come, but behind a core, which
    /// takes long and is looked at meanwhile.
    pub(super) async fn shutdown(self, grace: Duration, end_api: impl Future<Output = ()>) {
        if let Some(announced) = &self.announced {
            announced.lame_duck();
        }
        if let Some(edge) = self.edge {
            edge.shutdown(grace).await;
        }
        if let Some(announced) = self.announced {
            announced.end().await;
        }
        drop(self.backend);
        match (self.hub, self.core) {
            (Some(hub), _) => {
                end_api.await;
                hub.shutdown().await;
            }
            (None, Some(core)) => {
                core.shutdown(grace).await;
                end_api.await;
            }
            (None, None) => end_api.await,
        }
    }
}
