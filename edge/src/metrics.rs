//! The edge's counters. Labels are closed sets: transport, code, outcome; never a channel, session or user.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tidegate_protocol::frame::CloseCode;
use tidegate_transport::TransportKind;

/// One struct for the whole node; workers share it.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) connections: [Gauge; 4],
    pub(crate) connects: [Counter; 4],
    pub(crate) deliveries: [Counter; 4],
    pub(crate) closes: Family<CloseLabels, Counter>,
    pub(crate) handshake_failures: Family<HandshakeLabels, Counter>,
    pub(crate) ephemeral_deliveries: Counter,
    pub(crate) publications: Counter,
    pub(crate) subscriptions: Gauge,
    pub(crate) queue_bytes: Gauge<i64, AtomicI64>,
    pub(crate) parked: Counter,
    pub(crate) recovered: Counter,
    pub(crate) gaps: Counter,
    pub(crate) heartbeat_failures: Counter,
    pub(crate) delivery_latency: Histogram,
    pub(crate) connection_age: Histogram,
    pub(crate) datagrams_in: Counter,
    connections_family: Family<TransportLabel, Gauge>,
    connects_family: Family<TransportLabel, Counter>,
    deliveries_family: Family<TransportLabel, Counter>,
    recoveries_family: Family<OutcomeLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabel {
    transport: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CloseLabels {
    /// By what it was connected.
    pub(crate) transport: &'static str,
    /// The close code.
    pub(crate) code: Code,
}

/// Why a connection never came to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HandshakeLabels {
    /// What went wrong.
    pub(crate) reason: &'static str,
}

/// A close code as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Code(pub(crate) CloseCode);

impl EncodeLabelValue for Code {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.name().encode(encoder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let connections_family = Family::<TransportLabel, Gauge>::default();
        let connects_family = Family::<TransportLabel, Counter>::default();
        let deliveries_family = Family::<TransportLabel, Counter>::default();
        let recoveries_family = Family::<OutcomeLabel, Counter>::default();
        let label = |kind: TransportKind| TransportLabel { transport: kind.name() };
        let outcome = |outcome| recoveries_family.get_or_create_owned(&OutcomeLabel { outcome });
        Self {
            connections: TransportKind::ALL.map(|kind| connections_family.get_or_create_owned(&label(kind))),
            connects: TransportKind::ALL.map(|kind| connects_family.get_or_create_owned(&label(kind))),
            deliveries: TransportKind::ALL.map(|kind| deliveries_family.get_or_create_owned(&label(kind))),
            recovered: outcome("recovered"),
            gaps: outcome("gap"),
            closes: Family::default(),
            handshake_failures: Family::default(),
            ephemeral_deliveries: Counter::default(),
            publications: Counter::default(),
            subscriptions: Gauge::default(),
            queue_bytes: Gauge::default(),
            parked: Counter::default(),
            heartbeat_failures: Counter::default(),
            delivery_latency: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            connection_age: Histogram::new(exponential_buckets(1.0, 4.0, 10)),
            datagrams_in: Counter::default(),
            connections_family,
            connects_family,
            deliveries_family,
            recoveries_family,
        }
    }
}

impl Metrics {
    /// Names every metric in `registry`; the program prefixes nothing.
    pub fn register(&self, registry: &mut Registry) {
        let edge = registry.sub_registry_with_prefix("tidegate_edge");
        edge.register("connections", "Live connections", self.connections_family.clone());
        edge.register("connects", "Sessions opened", self.connects_family.clone());
        edge.register("closes", "Connections ended, by close code", self.closes.clone());
        edge.register(
            "handshake_failures",
            "Connections that never came to be",
            self.handshake_failures.clone(),
        );
        edge.register(
            "publications",
            "Publications received from core, per worker",
            self.publications.clone(),
        );
        edge.register("deliveries", "Publications handed to connections", self.deliveries_family.clone());
        edge.register(
            "ephemeral_deliveries",
            "Ephemeral items handed to connections",
            self.ephemeral_deliveries.clone(),
        );
        edge.register_with_unit(
            "publish_to_write",
            "From the core's numbering to the last subscriber's write, per run of publications",
            Unit::Seconds,
            self.delivery_latency.clone(),
        );
        edge.register_with_unit(
            "queue",
            "Waiting for clients that do not read fast enough",
            Unit::Bytes,
            self.queue_bytes.clone(),
        );
        edge.register("subscriptions", "Live subscriptions", self.subscriptions.clone());
        edge.register("parked_subscriptions", "Subscriptions parked over their bound", self.parked.clone());
        edge.register(
            "recoveries",
            "Positions asked for, by clients and for parked subscriptions, by outcome",
            self.recoveries_family.clone(),
        );
        edge.register("heartbeat_failures", "No pong in time", self.heartbeat_failures.clone());
        edge.register("datagrams_received", "Datagrams from clients", self.datagrams_in.clone());
        edge.register_with_unit(
            "connection_age",
            "Age of connections when they end",
            Unit::Seconds,
            self.connection_age.clone(),
        );
    }

    pub(crate) fn index(kind: TransportKind) -> usize {
        match kind {
            TransportKind::Quic => 0,
            TransportKind::WebTransport => 1,
            TransportKind::WebSocket => 2,
            TransportKind::LongPoll => 3,
        }
    }
}
