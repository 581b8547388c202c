//! What an edge counts of its fleet.

use std::sync::atomic::AtomicU64;
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::FleetView;

/// Gauges.
#[derive(Debug, Default)]
pub(super) struct FleetMetrics {
    edges: Gauge,
    oldest: Gauge<f64, AtomicU64>,
}

impl FleetMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let fleet = registry.sub_registry_with_prefix("tidegate_edge_fleet");
        fleet.register("edges", "Edges of the fleet that are known, this one included", self.edges.clone());
        fleet.register_with_unit(
            "oldest",
            "Since the last word of that edge which said nothing for longest",
            Unit::Seconds,
            self.oldest.clone(),
        );
    }

    pub(super) fn set(&self, view: &FleetView, now: Instant) {
        self.edges.set(i64::try_from(view.edges().len()).unwrap_or(i64::MAX));
        let oldest = view.edges().iter().map(|known| now.saturating_duration_since(known.heard)).max();
        self.oldest.set(oldest.unwrap_or_default().as_secs_f64());
    }
}
