//! What `/v1/drain` answers, as `docs/OPERATIONS.md` has it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_edge::drain::SHARE;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::drain::{DrainReport, DrainStage};
use tidegate_protocol::link::fleet::EdgeState;
use tidegate_transport::link::CallError;

use super::desk::targets;

/// Everything that was asked; `own`: of the node that answers.
pub(super) fn of(own: Option<&NodeId>, drains: Vec<Value>, failed: Vec<Value>) -> Value {
    let is_own =
        |drain: &&Value| own.is_some_and(|own| drain["node"] == own.as_str() && !drain["drain"].is_null());
    let drain = drains.iter().find(is_own).cloned().unwrap_or_default();
    let draining = drains.iter().any(is_on);
    json!({ "draining": draining, "drain": drain, "drains": drains, "failed": failed })
}

/// One node.
pub(super) fn drain(node: &NodeId, region: Option<&str>, report: Option<&DrainReport>) -> Value {
    let Some(report) = report else {
        return json!({ "node": node.as_str(), "region": region, "drain": null });
    };
    let counts = &report.counts;
    json!({
        "node": node.as_str(),
        "region": region,
        "drain": report.order.drain,
        "state": stage(report.stage),
        "done": report.stage == DrainStage::Done,
        "to": report.order.to,
        "targets": report.targets,
        "unannounced": report.unannounced,
        "within_ms": report.order.within_ms,
        "elapsed_ms": report.elapsed_ms,
        "total": counts.total,
        "moved": counts.moved,
        "closed": counts.closed,
        "forced": counts.forced,
        "left": counts.left,
        "in_flight": counts.in_flight,
        "remaining": counts.remaining,
        "rate": (report.rate * 10.0).round() / 10.0,
        "eta_ms": report.eta_ms,
        "behind": report.behind,
    })
}

/// One that does not answer, or refuses.
pub(super) fn failed(node: &NodeId, error: &CallError) -> Value {
    json!({ "node": node.as_str(), "error": error.to_string() })
}

/// What an order would do: who goes where, and how long that takes as things are now.
pub(super) fn dry_run(edges: &[EdgeState], nodes: &[NodeId], to: &[String], within: Duration) -> Value {
    let state = |node: &NodeId| edges.iter().find(|edge| edge.node == *node);
    let mut shares: BTreeMap<NodeId, f64> = BTreeMap::new();
    let mut from = Vec::new();
    let mut sessions = 0;
    for node in nodes {
        let targets = targets(edges, nodes, node, to);
        let count = state(node).map_or(0, |edge| edge.sessions);
        let slacks: Vec<f64> = targets.iter().map(|target| slack_of(state(target))).collect();
        let all: f64 = slacks.iter().sum();
        for (target, slack) in targets.iter().zip(&slacks) {
            let share = if all > 0.0 { slack / all } else { 1.0 / targets.len().max(1) as f64 };
            *shares.entry(target.clone()).or_default() += count as f64 * share;
        }
        sessions += count;
        let names: Vec<&str> = targets.iter().map(NodeId::as_str).collect();
        let region = state(node).map(|edge| edge.region.as_str());
        from.push(json!({ "node": node.as_str(), "region": region, "sessions": count, "targets": names }));
    }
    let rate: f64 = shares.keys().map(|target| slack_of(state(target)) * SHARE).sum();
    let outside = shares.keys().any(|target| state(target).is_none());
    let takes = (rate > 0.0 && !outside).then(|| sessions as f64 / rate);
    let targets: Vec<Value> = shares
        .iter()
        .map(|(target, share)| {
            let state = state(target);
            json!({
                "node": target.as_str(),
                "region": state.map(|edge| edge.region.as_str()),
                "sessions": state.map(|edge| edge.sessions),
                "slack": state.map(|edge| edge.slack),
                "gets": share.round() as u64,
            })
        })
        .collect();
    json!({
        "dry_run": true,
        "drains": from,
        "targets": targets,
        "sessions": sessions,
        "rate": takes.map(|_| rate),
        "takes_ms": takes.map(|seconds| (seconds * 1000.0).ceil() as u64),
        "within_ms": u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        "fits": !shares.is_empty() && takes.is_none_or(|seconds| seconds < within.as_secs_f64() * 0.8),
    })
}

fn slack_of(state: Option<&EdgeState>) -> f64 {
    state.map_or(0.0, |edge| f64::from(edge.slack))
}

fn is_on(drain: &Value) -> bool {
    !drain["drain"].is_null() && drain["state"] != stage(DrainStage::Abort)
}

fn stage(stage: DrainStage) -> &'static str {
    match stage {
        DrainStage::LameDuck => "lame_duck",
        DrainStage::Move => "moving",
        DrainStage::Pause => "paused",
        DrainStage::Done => "done",
        DrainStage::Abort => "aborted",
    }
}

#[cfg(test)]
mod tests {
    use tidegate_protocol::Region;
    use tidegate_protocol::link::fleet::EdgeCondition;

    use super::*;

    fn edge(node: &str, region: &str, sessions: u64, slack: u32) -> EdgeState {
        EdgeState {
            node: NodeId::new(node),
            region: Region::new(region),
            endpoints: vec![format!("https://{node}:1")],
            sessions,
            rate: 500,
            slack,
            condition: EdgeCondition::Serve,
            started_unix_ms: 1,
            sequence: 1,
        }
    }

    #[test]
    fn a_dry_run_shares_by_slack_among_those_that_stay() {
        let edges = [
            edge("a", "eu", 3000, 500),
            edge("b", "eu", 1000, 500),
            edge("c", "us", 0, 100),
            edge("d", "us", 0, 300),
        ];
        let nodes = [NodeId::new("a"), NodeId::new("b")];
        let plan = dry_run(&edges, &nodes, &["us".to_owned()], Duration::from_secs(60));
        let gets: Vec<u64> = plan["targets"]
            .as_array()
            .expect("targets")
            .iter()
            .filter_map(|target| target["gets"].as_u64())
            .collect();
        assert_eq!(gets, [1000, 3000]);
        assert_eq!((&plan["sessions"], &plan["rate"]), (&json!(4000), &json!(320.0)));
        assert_eq!((&plan["takes_ms"], &plan["fits"]), (&json!(12_500), &json!(true)));
        let plan = dry_run(&edges, &nodes, &["us".to_owned()], Duration::from_secs(13));
        assert_eq!(plan["fits"], false);
        let plan = dry_run(&edges, &nodes, &[], Duration::from_secs(60));
        assert_eq!(
            (&plan["targets"], &plan["fits"]),
            (&json!([]), &json!(false)),
            "nobody of the region is left"
        );
    }
}
