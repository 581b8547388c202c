//! Who can be asked, from the node that was asked: itself, and the edges that it can reach.

use std::time::Duration;

use rand::RngExt as _;
use serde_json::Value;
use tidegate_core::CoreNode;
use tidegate_edge::drain::{DrainControl, targets_of};
use tidegate_protocol::NodeId;
use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::drain::{DrainOrder, DrainQuestion, MAX_PLACES};
use tidegate_protocol::link::fleet::{EdgeCondition, EdgeState, RelayError};
use tidegate_transport::clock;
use tidegate_transport::link::{CallError, DrainAnswer};
use tokio::task::JoinSet;

use super::request::{Order, Which};
use super::{Refusal, answer};

/// Asks edges.
#[derive(Debug, Clone)]
pub(in crate::run) enum Desk {
    /// Of an edge.
    Edge(DrainControl),
    /// Of a core, which has no clients itself.
    Core(CoreNode),
}

impl Desk {
    /// True while clients are to be sent elsewhere.
    pub(in crate::run) fn is_drained(&self) -> bool {
        match self {
            Self::Edge(control) => control.is_drained(),
            Self::Core(_) => false,
        }
    }

    /// All that are there.
    pub(super) fn edges(&self) -> Vec<EdgeState> {
        match self {
            Self::Edge(control) => {
                control.fleet().view().edges().iter().map(|known| known.state.clone()).collect()
            }
            Self::Core(core) => core.edges().into_iter().map(|entry| entry.state).collect(),
        }
    }

    /// Those that are meant.
    pub(super) fn select(&self, edges: &[EdgeState], which: &Which) -> Result<Vec<NodeId>, Refusal> {
        let is_there =
            |name: &NodeId| Some(name) == self.own() || edges.iter().any(|edge| edge.node == *name);
        match which {
            Which::Here => match self.own() {
                Some(own) => Ok(vec![own.clone()]),
                None => Err(Refusal::new(
                    ErrorCode::BadRequest,
                    "this is a core, which has no clients: say `node` or `region`",
                )),
            },
            Which::Nodes(names) => {
                let mut nodes: Vec<NodeId> = names.iter().map(|name| NodeId::new(name)).collect();
                nodes.sort();
                nodes.dedup();
                match nodes.iter().find(|name| !is_there(name)) {
                    Some(unknown) => Err(Refusal::new(
                        ErrorCode::NotFound,
                        format!("no edge is called {unknown}{}", known(edges)),
                    )),
                    None => Ok(nodes),
                }
            }
            Which::Region(region) => {
                let of_region = edges.iter().filter(|edge| edge.region.as_str() == region);
                let nodes: Vec<NodeId> = of_region.map(|edge| edge.node.clone()).collect();
                if nodes.is_empty() {
                    let message = format!("no edge is in region {region}{}", known(edges));
                    return Err(Refusal::new(ErrorCode::NotFound, message));
                }
                Ok(nodes)
            }
            Which::All => Ok(self.drained(edges, false)),
        }
    }

    /// Those that say that they are drained, and this one too if so wanted.
    pub(super) fn drained(&self, edges: &[EdgeState], and_own: bool) -> Vec<NodeId> {
        let drained = edges.iter().filter(|edge| matches!(edge.condition, EdgeCondition::Drain { .. }));
        let mut nodes: Vec<NodeId> = drained.map(|edge| edge.node.clone()).collect();
        if let Some(own) = self.own().filter(|_| and_own || self.is_drained()) {
            nodes.push(own.clone());
        }
        nodes.sort();
        nodes.dedup();
        nodes
    }

    /// An order with a number of its own.
    pub(super) fn order(&self, to: Vec<String>, within: Duration) -> DrainOrder {
        let drain = clock::unix_ms().saturating_mul(1000) + clock::rng().random_range(0..1000_u64);
        DrainOrder { drain, to, within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Asks all of them at once; the whole answer, unless all refuse.
    pub(super) async fn ask_all(
        &self,
        edges: &[EdgeState],
        nodes: Vec<NodeId>,
        question: &DrainQuestion,
    ) -> Result<Value, Refusal> {
        let answers = self.answers(nodes, question).await;
        if answers.iter().all(|(_, answer)| answer.is_err())
            && let Some((node, Err(error))) = answers.first()
        {
            return Err(Refusal::new(code_of(error), format!("{node}: {error}")));
        }
        Ok(self.describe(edges, answers))
    }

    /// How far each is, as far as it says.
    pub(super) async fn look_at(&self, edges: &[EdgeState], nodes: Vec<NodeId>) -> Value {
        let mut answers = self.answers(nodes, &DrainQuestion::Look).await;
        // Those that have no drain have nothing to say.
        answers.retain(|(_, answer)| !matches!(answer, Ok(None)));
        self.describe(edges, answers)
    }

    async fn answers(&self, nodes: Vec<NodeId>, question: &DrainQuestion) -> Vec<(NodeId, DrainAnswer)> {
        let mut asked = JoinSet::new();
        for node in nodes {
            let (desk, question) = (self.clone(), question.clone());
            asked.spawn(async move {
                let answer = desk.ask(&node, question).await;
                (node, answer)
            });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by(|(one, _), (other, _)| one.cmp(other));
        answers
    }

    fn describe(&self, edges: &[EdgeState], answers: Vec<(NodeId, DrainAnswer)>) -> Value {
        let (mut drains, mut failed) = (Vec::new(), Vec::new());
        for (node, answer) in answers {
            let region = edges.iter().find(|edge| edge.node == node).map(|edge| edge.region.as_str());
            match answer {
                Ok(report) => drains.push(answer::drain(&node, region, report.as_ref())),
                Err(error) => failed.push(answer::failed(&node, &error)),
            }
        }
        answer::of(self.own(), drains, failed)
    }

    async fn ask(&self, node: &NodeId, question: DrainQuestion) -> DrainAnswer {
        match self {
            Self::Edge(control) => control.ask(node, question).await,
            Self::Core(core) => core.ask_edge(node, question).await,
        }
    }

    fn own(&self) -> Option<&NodeId> {
        match self {
            Self::Edge(control) => Some(control.node()),
            Self::Core(_) => None,
        }
    }
}

/// Where they go: as was said, or out of the region that is drained.
pub(super) fn destinations(edges: &[EdgeState], order: &Order) -> Result<Vec<String>, Refusal> {
    let Which::Region(region) = &order.which else { return Ok(order.to.clone()) };
    if !order.to.is_empty() {
        return Ok(order.to.clone());
    }
    let serving = edges.iter().filter(|edge| edge.condition == EdgeCondition::Serve);
    let mut regions: Vec<String> =
        serving.map(|edge| edge.region.as_str().to_owned()).filter(|other| other != region).collect();
    regions.sort_unstable();
    regions.dedup();
    if regions.is_empty() {
        return Err(Refusal::new(
            ErrorCode::Conflict,
            "no edge of another region takes clients: say where to",
        ));
    }
    if regions.len() > MAX_PLACES {
        return Err(Refusal::new(ErrorCode::BadRequest, "there are too many other regions: say where to"));
    }
    Ok(regions)
}

/// Of one of several nodes that are to be drained: the targets, which are none of those.
pub(super) fn targets(edges: &[EdgeState], nodes: &[NodeId], node: &NodeId, to: &[String]) -> Vec<NodeId> {
    let Some(own) = edges.iter().find(|edge| edge.node == *node) else { return Vec::new() };
    let others: Vec<EdgeState> =
        edges.iter().filter(|edge| edge.node == *node || !nodes.contains(&edge.node)).cloned().collect();
    targets_of(&others, own, to)
}

fn code_of(error: &CallError) -> ErrorCode {
    match error {
        CallError::Relay(RelayError::NoSuchEdge) => ErrorCode::NotFound,
        CallError::Refused(_) => ErrorCode::Conflict,
        _ => ErrorCode::Unavailable,
    }
}

fn known(edges: &[EdgeState]) -> String {
    let names: Vec<String> =
        edges.iter().take(16).map(|edge| format!("{} ({})", edge.node, edge.region.as_str())).collect();
    match names.is_empty() {
        true => "; this node knows of none".to_owned(),
        false => format!("; there are {}", names.join(", ")),
    }
}
