//! Following the lease table: all that is there, then each change in order. Whatever might have been missed ends the
//! watch, and its owner begins another.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, push};
use async_nats::jetstream::{Message, consumer};
use futures_util::StreamExt as _;
use tidegate_protocol::NodeId;
use tokio::time::timeout;

use super::super::{ClusterEvent, EngineFuture, NodeRecord, Unavailable, Watch};
use super::names::Key;
use super::table::{Entry, NodeEntry, Table};
use super::versions;
use super::wire::{is_tombstone, unavailable};

/// Reads the table's stream with a consumer that ends with us.
pub(super) struct NatsWatch {
    table: Table,
    messages: push::Messages,
    /// Which connection the consumer delivers to: what another one loses is not sent again.
    connection: u64,
    /// How many messages came; the consumer numbers them.
    received: u64,
    /// The newest of them.
    reached: u64,
    /// How far the stream reached when that was looked up last, until all that it held at the beginning was read.
    until: Option<u64>,
    /// How often in a row nothing came.
    idle: u32,
    /// Nodes told to be alive.
    live: BTreeMap<NodeId, NodeRecord>,
    broken: bool,
}

impl NatsWatch {
    pub(super) async fn begin(table: Table) -> Result<Self, Unavailable> {
        let (wire, stream) = (&table.wire, table.names.lease_stream());
        let connection = connection(&table);
        // Whoever is connected anew begins here.
        versions::leave_old_server(&wire.client).await?;
        let until = Some(wire.extent(&stream).await?.last);
        let config = push::Config {
            deliver_subject: wire.client.new_inbox(),
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: table.names.lease_subject(">"),
            ack_policy: AckPolicy::None,
            max_deliver: 1,
            idle_heartbeat: HEARTBEAT,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..push::Config::default()
        };
        let handle = wire.stream(&stream).await?;
        let begin = async {
            let consumer: consumer::PushConsumer =
                handle.create_consumer(config).await.map_err(unavailable)?;
            consumer.messages().await.map_err(unavailable)
        };
        let messages =
            timeout(BEGIN, begin).await.map_err(|_| unavailable("NATS makes no consumer in time"))??;
        let live = BTreeMap::new();
        Ok(Self { table, messages, connection, received: 0, reached: 0, until, idle: 0, live, broken: false })
    }

    async fn next_event(&mut self) -> Option<ClusterEvent> {
        loop {
            if self.broken {
                return None;
            }
            if let Some(until) = self.until
                && (self.reached >= until || self.is_silent())
                && self.is_everything_read().await
            {
                self.until = None;
                return Some(ClusterEvent::Synced);
            }
            let Ok(message) = timeout(LOOK_UP, self.messages.next()).await else {
                self.broken = connection(&self.table) != self.connection;
                self.idle += 1;
                continue;
            };
            self.idle = 0;
            let Some(event) = self.read(message.and_then(Result::ok)) else { continue };
            return Some(event);
        }
    }

    /// An entry that was written again before it was read comes at its new place only, behind all that was there at the
    /// beginning: nobody is to take it for missing.
    async fn is_everything_read(&mut self) -> bool {
        if self.is_silent() {
            return true;
        }
        let extent = self.table.wire.extent(&self.table.names.lease_stream()).await;
        self.broken = extent.is_err();
        extent.is_ok_and(|extent| {
            self.until = Some(extent.last);
            extent.last <= self.reached
        })
    }

    /// What was to come has ended in the meantime.
    fn is_silent(&self) -> bool {
        self.idle >= SILENCE && self.received > 0
    }

    /// What a message says; `None`: nothing to us, or the end.
    fn read(&mut self, message: Option<Message>) -> Option<ClusterEvent> {
        // Heartbeats stayed away, a message was lost, or another connection may have lost some.
        self.broken = true;
        let message = message?;
        let info = message.info().ok()?;
        if info.consumer_sequence != self.received + 1 || connection(&self.table) != self.connection {
            return None;
        }
        self.broken = false;
        self.received += 1;
        self.reached = info.stream_sequence;
        let gone = message.headers.as_ref().is_some_and(is_tombstone);
        match self.table.names.key_of(&message.subject)? {
            Key::Node(id) if gone => self.live.remove(&id).map(|_| ClusterEvent::Node { id, record: None }),
            Key::Node(id) => {
                let entry = serde_json::from_slice::<NodeEntry>(&message.payload);
                let record =
                    entry.inspect_err(|error| tracing::warn!(%id, %error, "a node's record cannot be read"));
                let record = record.ok()?.node;
                // A renewal says nothing new.
                let known = self.live.insert(id.clone(), record.clone());
                (known.as_ref() != Some(&record)).then_some(ClusterEvent::Node { id, record: Some(record) })
            }
            Key::Partition(partition) => {
                let entry = serde_json::from_slice::<Entry>(&message.payload);
                let entry = entry.inspect_err(|error| {
                    tracing::warn!(partition = partition.0, %error, "a partition's record cannot be read");
                });
                Some(ClusterEvent::Partition { partition, record: entry.ok()?.record })
            }
        }
    }
}

impl Watch for NatsWatch {
    fn next(&mut self) -> EngineFuture<'_, Option<ClusterEvent>> {
        Box::pin(self.next_event())
    }
}

impl std::fmt::Debug for NatsWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsWatch")
            .field("until", &self.until)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

fn connection(table: &Table) -> u64 {
    table.wire.client.statistics().connects.load(Ordering::Relaxed)
}

/// After two without one the watch ends.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// When the servers forget the consumer of a process that died.
const INACTIVE: Duration = Duration::from_secs(10);
const BEGIN: Duration = Duration::from_secs(4);
/// How soon another connection is noticed.
const LOOK_UP: Duration = Duration::from_millis(250);
/// So many times, and nothing more comes of what was there at the beginning.
const SILENCE: u32 = 8;
