//! The edge's counters. Labels are closed sets: transport, code, outcome; never a channel, session or user.

use std::fmt;
use std::sync::atomic::AtomicI64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric as _, LabelValueEncoder,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tidegate_protocol::frame::CloseCode;
use tidegate_transport::TransportKind;
use tidegate_transport::quic::Strays;

/// One struct for the whole node; workers share it.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) connections: [Gauge; TransportKind::ALL.len()],
    pub(crate) connects: [Counter; TransportKind::ALL.len()],
    pub(crate) deliveries: [Counter; TransportKind::ALL.len()],
    pub(crate) closes: Family<CloseLabels, Counter>,
    pub(crate) handshake_failures: Family<HandshakeLabels, Counter>,
    pub(crate) ephemeral_deliveries: Counter,
    pub(crate) publications: Counter,
    pub(crate) subscriptions: Gauge,
    pub(crate) queue_bytes: Gauge<i64, AtomicI64>,
    pub(crate) parked: Counter,
    pub(crate) conflated: Counter,
    pub(crate) ephemeral_dropped: EphemeralDropped,
    pub(crate) recovered: Counter,
    pub(crate) gaps: Counter,
    pub(crate) heartbeat_failures: Counter,
    pub(crate) delivery_latency: Histogram,
    pub(crate) connection_age: Histogram,
    pub(crate) datagrams_in: Counter,
    pub(crate) repeats: Counter,
    pub(crate) repeat_bytes: Counter,
    pub(crate) tickets: Counter,
    pub(crate) resumes_unchecked: Counter,
    pub(crate) strays: Strays,
    pub(crate) goaways: Counter,
    pub(crate) renewals: Counter,
    pub(crate) moves: Counter,
    pub(crate) ends_untold: Counter,
    resumes: Family<ResumeLabel, Counter>,
    connections_family: Family<TransportLabel, Gauge>,
    connects_family: Family<TransportLabel, Counter>,
    deliveries_family: Family<TransportLabel, Counter>,
    recoveries_family: Family<OutcomeLabel, Counter>,
}

/// Ephemeral items that a subscriber did not get, by why.
#[derive(Debug)]
pub(crate) struct EphemeralDropped {
    /// A newer one came while it waited.
    pub(crate) replaced: Counter,
    /// It had waited for too long.
    pub(crate) expired: Counter,
    /// Too much waited for the session already.
    pub(crate) no_room: Counter,
    /// The subscription is parked.
    pub(crate) parked: Counter,
    family: Family<ReasonLabel, Counter>,
}

impl Default for EphemeralDropped {
    fn default() -> Self {
        let family = Family::<ReasonLabel, Counter>::default();
        let reason = |reason| family.get_or_create_owned(&ReasonLabel { reason });
        Self {
            replaced: reason("replaced"),
            expired: reason("expired"),
            no_room: reason("no_room"),
            parked: reason("parked"),
            family,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabel {
    transport: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResumeLabel {
    result: &'static str,
}

/// What became of a ticket that a client presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResumeResult {
    /// The session goes on.
    Honoured,
    /// So too, by the same attempt once more.
    Repeated,
    /// Refused: not genuine.
    Malformed,
    /// Refused: sealed with an unknown key.
    Foreign,
    /// Refused: too old.
    Expired,
    /// Refused: the token ended.
    TokenExpired,
    /// Refused: the session moved on since.
    Stale,
    /// Refused, and the session revoked: spent before.
    Theft,
    /// Refused: the session was revoked before.
    Revoked,
    /// Refused: the table of spent tickets is full.
    Full,
}

impl ResumeResult {
    /// The label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Repeated => "repeated",
            Self::Malformed => "malformed",
            Self::Foreign => "foreign",
            Self::Expired => "expired",
            Self::TokenExpired => "token_expired",
            Self::Stale => "stale",
            Self::Theft => "theft",
            Self::Revoked => "revoked",
            Self::Full => "full",
        }
    }
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
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
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
            conflated: Counter::default(),
            ephemeral_dropped: EphemeralDropped::default(),
            heartbeat_failures: Counter::default(),
            delivery_latency: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            connection_age: Histogram::new(exponential_buckets(1.0, 4.0, 10)),
            datagrams_in: Counter::default(),
            repeats: Counter::default(),
            repeat_bytes: Counter::default(),
            tickets: Counter::default(),
            resumes_unchecked: Counter::default(),
            strays: Strays::default(),
            goaways: Counter::default(),
            renewals: Counter::default(),
            moves: Counter::default(),
            ends_untold: Counter::default(),
            resumes: Family::default(),
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
            "conflated_publications",
            "Publications of conflated channels passed over for a newer one",
            self.conflated.clone(),
        );
        edge.register(
            "ephemeral_dropped",
            "Ephemeral items that a subscriber did not get, by reason",
            self.ephemeral_dropped.family.clone(),
        );
        edge.register(
            "recoveries",
            "Positions asked for, by clients and for parked subscriptions, by outcome",
            self.recoveries_family.clone(),
        );
        edge.register("tickets", "Resume tickets issued", self.tickets.clone());
        edge.register("resumes", "Resume tickets presented, by result", self.resumes.clone());
        edge.register(
            "resumes_unchecked",
            "Of those honoured, how many without asking whether they were spent: the core did not answer",
            self.resumes_unchecked.clone(),
        );
        edge.register(
            "renewals",
            "Sessions asked to renew a connection that had grown old",
            self.renewals.clone(),
        );
        edge.register("goaways", "Sessions asked to move to another connection", self.goaways.clone());
        edge.register(
            "moves",
            "Connections that ended because their session had been resumed on another",
            self.moves.clone(),
        );
        edge.register(
            "ends_untold",
            "Ends of connections that a drain did not hear of at once: it was behind",
            self.ends_untold.clone(),
        );
        edge.register("heartbeat_failures", "No pong in time", self.heartbeat_failures.clone());
        edge.register_collector(Box::new(StraysCollector(self.strays.clone())));
        edge.register("datagrams_received", "Datagrams from clients", self.datagrams_in.clone());
        edge.register("repeats", "Deliveries sent again where packets are lost", self.repeats.clone());
        edge.register("repeat_bytes", "Bytes of those", self.repeat_bytes.clone());
        edge.register_with_unit(
            "connection_age",
            "Age of connections when they end",
            Unit::Seconds,
            self.connection_age.clone(),
        );
    }

    /// Live ones.
    pub(crate) fn sessions(&self) -> u64 {
        let live: i64 = self.connections.iter().map(Gauge::get).sum();
        u64::try_from(live).unwrap_or_default()
    }

    /// What came to the wrong socket; goes on counting.
    pub fn strays(&self) -> Strays {
        self.strays.clone()
    }

    pub(crate) fn count_resume(&self, result: ResumeResult) {
        self.resumes.get_or_create_owned(&ResumeLabel { result: result.name() }).inc();
    }

    pub(crate) fn index(kind: TransportKind) -> usize {
        match kind {
            TransportKind::Quic => 0,
            TransportKind::WebTransport => 1,
            TransportKind::WebSocket => 2,
            TransportKind::LongPoll => 3,
            TransportKind::Sse => 4,
        }
    }
}

/// Counters that are kept where the sockets are.
#[derive(Debug)]
struct StraysCollector(Strays);

impl Collector for StraysCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = [
            ("quic_worker_strays", "QUIC packets that came to another worker's socket", self.0.of_workers()),
            (
                "quic_process_strays",
                "QUIC packets of a process before or after this one",
                self.0.of_processes(),
            ),
        ];
        for (name, help, count) in counts {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
