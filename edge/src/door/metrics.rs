//! What the door counts.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{Answer, Arrival, Door};
use crate::policy::admission::Refusal;

/// Decisions by kind.
#[derive(Debug, Default)]
pub(super) struct DoorMetrics {
    decisions: Family<DecisionLabel, Counter>,
    arrivals: Family<DecisionLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: &'static str,
}

impl DoorMetrics {
    pub(super) fn count(&self, answer: &Answer) {
        let decision = match answer {
            Answer::Admit(_) => "admit",
            Answer::Defer { .. } => "defer",
            Answer::Refuse(Refusal::Address { .. }) => "address",
            Answer::Refuse(Refusal::Unvalidated) => "unvalidated",
            Answer::Refuse(Refusal::Elsewhere) => "elsewhere",
            Answer::Refuse(Refusal::LameDuck) => "lame_duck",
            Answer::Refuse(Refusal::Busy) => "busy",
        };
        self.decisions.get_or_create_owned(&DecisionLabel { decision }).inc();
    }

    pub(super) fn count_arrival(&self, arrival: &Arrival) {
        let decision = match arrival {
            Arrival::Pass(_) => "pass",
            Arrival::Unvalidated => "unvalidated",
            Arrival::Busy => "busy",
        };
        self.arrivals.get_or_create_owned(&DecisionLabel { decision }).inc();
    }

    pub(super) fn register(&self, door: &Door, registry: &mut Registry) {
        let edge = registry.sub_registry_with_prefix("tidegate_edge");
        edge.register(
            "admission_decisions",
            "Clients that asked to come in, by decision",
            self.decisions.clone(),
        );
        edge.register(
            "admission_arrivals",
            "Connections that could show nothing before a handshake, by whether they were let shake hands",
            self.arrivals.clone(),
        );
        edge.register_collector(Box::new(Gauges(door.clone())));
    }
}

/// What is asked for when somebody looks.
#[derive(Debug)]
struct Gauges(Door);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = self.0.figures();
        let gauges = [
            (
                "admission_handshakes",
                "Clients that were let in and have not connected yet",
                now.handshakes as f64,
            ),
            (
                "admission_slots",
                "Places that are kept for clients that were told to come back",
                now.slots as f64,
            ),
            ("admission_no_show_ratio", "Share of the slots that are expected to stay empty", now.no_show),
            ("admission_slack", "Clients per second that could come beyond those that do", now.slack),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
