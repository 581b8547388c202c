//! What the API listener of a node answers from: its channel tier, described for people, and publishes only where they
//! belong.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tidegate_edge::Fleet;
use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::{HistoryRange, LinkError, Members, Publish, Recovery};
use tidegate_protocol::{ChannelName, Position};
use tidegate_transport::clock;
use tidegate_transport::link::{Backend, BackendFuture};

use super::status::{self, Facts};

/// A node's channel tier.
#[derive(Debug)]
pub(super) struct NodeBackend {
    inner: Arc<dyn Backend>,
    facts: Facts,
    /// `None` for a core alone: it owns some of the channels only, and clients do not connect to it.
    fleet: Option<Fleet>,
}

impl NodeBackend {
    pub(super) fn new(inner: Arc<dyn Backend>, facts: Facts, fleet: Option<Fleet>) -> Self {
        Self { inner, facts, fleet }
    }

    async fn refusal(&self) -> LinkError {
        let status = self.inner.status().await.unwrap_or_default();
        let status: Value = serde_json::from_slice(&status).unwrap_or_default();
        let edges = status::linked(&status);
        let known = if edges.is_empty() {
            "no edge is linked to it now".to_owned()
        } else {
            format!("linked to it now: {}", edges.join(", "))
        };
        let message = format!("this is a core: send this to the backend API of an edge ({known})");
        LinkError { code: ErrorCode::NotAvailable, message }
    }
}

impl Backend for NodeBackend {
    fn publish(
        &self,
        publishes: Vec<Publish>,
    ) -> BackendFuture<'_, Vec<Result<Option<Position>, LinkError>>> {
        if self.fleet.is_some() {
            return self.inner.publish(publishes);
        }
        Box::pin(async { Err(self.refusal().await) })
    }

    fn history(&self, channel: ChannelName, range: HistoryRange) -> BackendFuture<'_, Recovery> {
        if self.fleet.is_some() {
            return self.inner.history(channel, range);
        }
        Box::pin(async { Err(self.refusal().await) })
    }

    fn members(&self, channel: ChannelName) -> BackendFuture<'_, Members> {
        if self.fleet.is_some() {
            return self.inner.members(channel);
        }
        Box::pin(async { Err(self.refusal().await) })
    }

    fn status(&self) -> BackendFuture<'_, Bytes> {
        Box::pin(async {
            let said = self.inner.status().await?;
            let said: Value = serde_json::from_slice(&said).unwrap_or_default();
            let edges = match &self.fleet {
                Some(fleet) => serde_json::to_value(fleet.view().entries(clock::now())).unwrap_or_default(),
                None => said["edges"].clone(),
            };
            Ok(Bytes::from(status::describe(&self.facts, &said, edges, self.inner.is_ready()).to_string()))
        })
    }

    fn is_ready(&self) -> bool {
        self.inner.is_ready()
    }
}
