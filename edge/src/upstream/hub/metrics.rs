//! The hub's counters. Labels are regions, which the configuration names.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tidegate_protocol::Region;

use super::partition::Stats;

/// One struct for the whole hub.
#[derive(Debug, Default)]
pub struct HubMetrics {
    links: Family<RegionLabel, Gauge>,
    connections: Family<RegionLabel, Gauge>,
    queue_bytes: Gauge<i64, AtomicI64>,
    resubscriptions: Counter,
    filled: Counter,
    rebased: Counter,
    resent: Counter,
    unknown: Counter,
    refused: Counter,
    parked: Counter,
    dropped: Counter,
    resets: Counter,
    stale: Counter,
    dial_failures: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegionLabel {
    region: String,
}

impl HubMetrics {
    /// Names every metric in `registry`; the program prefixes nothing.
    pub fn register(&self, registry: &mut Registry) {
        let hub = registry.sub_registry_with_prefix("tidegate_edge_core");
        hub.register("links", "Partitions linked to their owner, by region", self.links.clone());
        hub.register("connections", "Connections to cores, by region", self.connections.clone());
        hub.register_with_unit(
            "queue",
            "Waiting for cores and for workers",
            Unit::Bytes,
            self.queue_bytes.clone(),
        );
        hub.register(
            "resubscriptions",
            "Channels asked for again after a link was lost or a partition moved",
            self.resubscriptions.clone(),
        );
        hub.register("filled_publications", "Publications that those brought", self.filled.clone());
        hub.register("rebased_channels", "Channels whose continuity was lost", self.rebased.clone());
        hub.register("resent_publishes", "Publishes sent again", self.resent.clone());
        hub.register(
            "unknown_outcomes",
            "Publishes answered with an error though they may be stored",
            self.unknown.clone(),
        );
        hub.register(
            "refused_requests",
            "Requests that found no owner in time, or no room",
            self.refused.clone(),
        );
        hub.register(
            "parked_channels",
            "Channels on which a worker that did not read was parked",
            self.parked.clone(),
        );
        hub.register(
            "dropped_publications",
            "Publications that came twice, or for nobody any more",
            self.dropped.clone(),
        );
        hub.register("link_resets", "Links ended for what came over them", self.resets.clone());
        hub.register("stale_links", "Links refused: their owner's term was over", self.stale.clone());
        hub.register(
            "dial_failures",
            "Attempts to connect to a core that failed",
            self.dial_failures.clone(),
        );
    }

    pub(crate) fn count(&self, stats: Stats) {
        let counters = [
            (&self.resubscriptions, stats.resubscriptions),
            (&self.filled, stats.filled),
            (&self.rebased, stats.rebased),
            (&self.resent, stats.resent),
            (&self.unknown, stats.unknown),
            (&self.refused, stats.refused),
            (&self.parked, stats.parked),
            (&self.dropped, stats.dropped),
            (&self.resets, stats.resets),
            (&self.stale, stats.stale),
        ];
        for (counter, count) in counters.into_iter().filter(|(_, count)| *count > 0) {
            counter.inc_by(count);
        }
    }

    pub(crate) fn count_dial_failure(&self) {
        self.dial_failures.inc();
    }

    pub(crate) fn set_links(&self, region: &Region, links: usize, connections: usize) {
        let label = RegionLabel { region: region.as_str().to_owned() };
        self.links.get_or_create_owned(&label).set(links as i64);
        self.connections.get_or_create_owned(&label).set(connections as i64);
    }

    pub(crate) fn set_queue(&self, bytes: usize) {
        self.queue_bytes.set(bytes as i64);
    }
}
