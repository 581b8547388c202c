//! What a core node counts.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tidegate_protocol::link::fleet::{EdgeCondition, FleetEntry};

use crate::channel::{ChannelTable, Stats};
use crate::presence::PresenceTable;
use crate::session::Sessions;

/// The counters of one core node. Clones count together.
#[derive(Debug, Clone)]
pub struct CoreMetrics {
    publications: Family<KindLabel, Counter>,
    recoveries: Family<OutcomeLabel, Counter>,
    /// Taken out of the families once: the hot path takes no lock.
    durable: Counter,
    ephemeral: Counter,
    recovered: Counter,
    gaps: Counter,
    publish_duration: Histogram,
    duplicate_keys: Counter,
    ephemeral_dropped: Counter,
    links_cut: Counter,
    log_frames: Counter,
    log_records: Counter,
    append_duration: Histogram,
    frames_refused: Counter,
    replay_duration: Histogram,
    snapshots: Counter,
    snapshot_failures: Counter,
    snapshot_bytes: Counter,
    snapshot_duration: Histogram,
    claims: Counter,
    handovers: Counter,
    fences: Counter,
    partitions_served: Gauge,
    partitions_declined: Gauge,
    channels: Gauge,
    interest: Gauge,
    history_bytes: Gauge,
    resumed: Gauge,
    presence: Gauge,
    edges: Gauge,
    oldest_edge: Gauge<f64, AtomicU64>,
}

impl CoreMetrics {
    /// All at zero.
    pub fn new() -> Self {
        let publications = Family::<KindLabel, Counter>::default();
        let recoveries = Family::<OutcomeLabel, Counter>::default();
        Self {
            durable: publications.get_or_create_owned(&KindLabel { kind: "durable" }),
            ephemeral: publications.get_or_create_owned(&KindLabel { kind: "ephemeral" }),
            recovered: recoveries.get_or_create_owned(&OutcomeLabel { outcome: "recovered" }),
            gaps: recoveries.get_or_create_owned(&OutcomeLabel { outcome: "gap" }),
            publications,
            recoveries,
            publish_duration: Histogram::new(PUBLISH_SECONDS),
            duplicate_keys: Counter::default(),
            ephemeral_dropped: Counter::default(),
            links_cut: Counter::default(),
            log_frames: Counter::default(),
            log_records: Counter::default(),
            append_duration: Histogram::new(PUBLISH_SECONDS),
            frames_refused: Counter::default(),
            replay_duration: Histogram::new(REPLAY_SECONDS),
            snapshots: Counter::default(),
            snapshot_failures: Counter::default(),
            snapshot_bytes: Counter::default(),
            snapshot_duration: Histogram::new(REPLAY_SECONDS),
            claims: Counter::default(),
            handovers: Counter::default(),
            fences: Counter::default(),
            partitions_served: Gauge::default(),
            partitions_declined: Gauge::default(),
            channels: Gauge::default(),
            interest: Gauge::default(),
            history_bytes: Gauge::default(),
            resumed: Gauge::default(),
            presence: Gauge::default(),
            edges: Gauge::default(),
            oldest_edge: Gauge::default(),
        }
    }

    /// Puts them under `tidegate_core_*` (`_total` is added to counters).
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "tidegate_core_publications",
            "Publications taken: durable ones stored, ephemeral ones passed on",
            self.publications.clone(),
        );
        registry.register(
            "tidegate_core_publish_duration_seconds",
            "From a partition's queue to the engine's acknowledgement, durable publishes",
            self.publish_duration.clone(),
        );
        registry.register(
            "tidegate_core_recoveries",
            "Subscriptions at a position, by what history could give",
            self.recoveries.clone(),
        );
        registry.register(
            "tidegate_core_duplicate_keys",
            "Publishes that were already stored under their idempotency key",
            self.duplicate_keys.clone(),
        );
        registry.register(
            "tidegate_core_ephemeral_dropped",
            "Ephemeral items that were not sent because a link was full",
            self.ephemeral_dropped.clone(),
        );
        registry.register(
            "tidegate_core_links_cut",
            "Links that stayed full for too long and were cut",
            self.links_cut.clone(),
        );
        self.register_logs(registry);
        self.register_ownership(registry);
        registry.register("tidegate_core_channels", "Channels held", self.channels.clone());
        registry.register(
            "tidegate_core_interest",
            "Pairs of a link and a channel that it is interested in",
            self.interest.clone(),
        );
        registry.register(
            "tidegate_core_history_bytes",
            "Bytes of payload in all histories",
            self.history_bytes.clone(),
        );
        registry.register(
            "tidegate_core_resumed_sessions",
            "Sessions of which spent tickets are remembered",
            self.resumed.clone(),
        );
        registry.register(
            "tidegate_core_presence_entries",
            "Users of an edge on a channel that are counted, and channels that an edge watches",
            self.presence.clone(),
        );
        registry.register(
            "tidegate_core_edges",
            "Edges of the fleet that said how they are",
            self.edges.clone(),
        );
        registry.register(
            "tidegate_core_edges_oldest_seconds",
            "Since the last word of that edge which said nothing for longest",
            self.oldest_edge.clone(),
        );
    }

    fn register_logs(&self, registry: &mut Registry) {
        registry.register("tidegate_core_log_frames", "Log frames written", self.log_frames.clone());
        registry.register(
            "tidegate_core_log_records",
            "Publications in them: more per frame is cheaper",
            self.log_records.clone(),
        );
        registry.register(
            "tidegate_core_append_duration_seconds",
            "What the engine took to keep a log frame",
            self.append_duration.clone(),
        );
        registry.register(
            "tidegate_core_log_frames_refused",
            "Log frames that the engine had no room for, or could not write: nothing of them was acknowledged",
            self.frames_refused.clone(),
        );
        registry.register(
            "tidegate_core_replay_duration_seconds",
            "What reading a log took after its partition was claimed",
            self.replay_duration.clone(),
        );
        registry.register("tidegate_core_snapshots", "Snapshots written", self.snapshots.clone());
        registry.register(
            "tidegate_core_snapshot_failures",
            "Snapshots that the engine did not take; each is tried again",
            self.snapshot_failures.clone(),
        );
        registry.register("tidegate_core_snapshot_bytes", "Bytes of them", self.snapshot_bytes.clone());
        registry.register(
            "tidegate_core_snapshot_duration_seconds",
            "From the first piece of a snapshot to its last: publishes go on meanwhile",
            self.snapshot_duration.clone(),
        );
    }

    fn register_ownership(&self, registry: &mut Registry) {
        registry.register(
            "tidegate_core_partitions_served",
            "Partitions that this node owns and serves",
            self.partitions_served.clone(),
        );
        registry.register(
            "tidegate_core_partitions_declined",
            "Partitions that this node failed to take again and again, and leaves to others for now",
            self.partitions_declined.clone(),
        );
        registry.register("tidegate_core_claims", "Partitions taken, each a new term", self.claims.clone());
        registry.register(
            "tidegate_core_handovers",
            "Partitions given to another node in order",
            self.handovers.clone(),
        );
        registry.register(
            "tidegate_core_fences",
            "Partitions stopped at once: taken over, or the node could not prove to be alive",
            self.fences.clone(),
        );
    }

    pub(crate) fn count(&self, stats: Stats) {
        let add = |counter: &Counter, by: u64| {
            if by > 0 {
                counter.inc_by(by);
            }
        };
        add(&self.durable, stats.durable);
        add(&self.ephemeral, stats.ephemeral);
        add(&self.duplicate_keys, stats.duplicates);
        add(&self.recovered, stats.recovered);
        add(&self.gaps, stats.gaps);
    }

    pub(crate) fn observe_publish(&self, took: Duration) {
        self.publish_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn observe_append(&self, took: Duration, records: u64) {
        self.append_duration.observe(took.as_secs_f64());
        self.log_frames.inc();
        self.log_records.inc_by(records);
    }

    pub(crate) fn count_frame_refused(&self) {
        self.frames_refused.inc();
    }

    pub(crate) fn observe_replay(&self, took: Duration) {
        self.replay_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn observe_snapshot(&self, took: Duration, bytes: u64) {
        self.snapshots.inc();
        self.snapshot_bytes.inc_by(bytes);
        self.snapshot_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn count_snapshot_failure(&self) {
        self.snapshot_failures.inc();
    }

    pub(crate) fn set_declined(&self, partitions: usize) {
        self.partitions_declined.set(i64::try_from(partitions).unwrap_or(i64::MAX));
    }

    pub(crate) fn set_edges(&self, edges: &[FleetEntry]) {
        let there = || edges.iter().filter(|edge| edge.state.condition != EdgeCondition::Leave);
        self.edges.set(i64::try_from(there().count()).unwrap_or(i64::MAX));
        let oldest = there().map(|edge| edge.age).max().unwrap_or_default();
        self.oldest_edge.set(oldest.as_secs_f64());
    }

    pub(crate) fn count_claim(&self) {
        self.claims.inc();
    }

    pub(crate) fn count_handover(&self) {
        self.handovers.inc();
    }

    pub(crate) fn count_fence(&self) {
        self.fences.inc();
    }

    pub(crate) fn count_ephemeral_dropped(&self) {
        self.ephemeral_dropped.inc();
    }

    pub(crate) fn count_link_cut(&self) {
        self.links_cut.inc();
    }
}

impl Default for CoreMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What one partition has put into the gauges, which are sums over all partitions.
#[derive(Debug)]
pub(crate) struct PartitionGauges {
    metrics: CoreMetrics,
    channels: i64,
    interest: i64,
    history_bytes: i64,
    resumed: i64,
    presence: i64,
}

impl PartitionGauges {
    /// Nothing yet.
    pub(crate) fn new(metrics: CoreMetrics) -> Self {
        metrics.partitions_served.inc();
        Self { metrics, channels: 0, interest: 0, history_bytes: 0, resumed: 0, presence: 0 }
    }

    /// Corrects the sums to what is held now.
    pub(crate) fn update(&mut self, table: &ChannelTable, sessions: &Sessions, presence: &PresenceTable) {
        let history_bytes = i64::try_from(table.history_bytes()).unwrap_or(i64::MAX);
        // No count can reach 2^63.
        let (channels, interest) = (table.channels() as i64, table.interest() as i64);
        self.set([channels, interest, history_bytes, sessions.len() as i64, presence.entries() as i64]);
    }

    fn set(&mut self, [channels, interest, history_bytes, resumed, presence]: [i64; 5]) {
        correct(&self.metrics.channels, &mut self.channels, channels);
        correct(&self.metrics.interest, &mut self.interest, interest);
        correct(&self.metrics.history_bytes, &mut self.history_bytes, history_bytes);
        correct(&self.metrics.resumed, &mut self.resumed, resumed);
        correct(&self.metrics.presence, &mut self.presence, presence);
    }
}

impl Drop for PartitionGauges {
    /// A partition that ended holds nothing.
    fn drop(&mut self) {
        self.set([0; 5]);
        self.metrics.partitions_served.dec();
    }
}

fn correct(gauge: &Gauge, put: &mut i64, value: i64) {
    if *put != value {
        gauge.inc_by(value - *put);
        *put = value;
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

const REPLAY_SECONDS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
const PUBLISH_SECONDS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
