//! Sans-io: states of edges, to messages and back.

use std::time::Duration;

use super::control::region;
use super::{WireError, schema};
use crate::link::fleet::{
    EdgeCondition, EdgeState, FleetEntry, MAX_EDGES, MAX_ENDPOINT_BYTES, MAX_ENDPOINTS,
};

pub(super) fn to_state(state: &EdgeState) -> schema::EdgeState {
    let (condition, drain) = match state.condition {
        EdgeCondition::Serve => (SERVE, 0),
        EdgeCondition::LameDuck => (LAME_DUCK, 0),
        EdgeCondition::Drain { drain } => (DRAIN, drain),
        EdgeCondition::Leave => (LEAVE, 0),
    };
    schema::EdgeState {
        node: state.node.as_str().to_owned(),
        region: state.region.as_str().to_owned(),
        endpoints: state.endpoints.clone(),
        sessions: state.sessions,
        rate: state.rate,
        slack: state.slack,
        condition,
        drain,
        started_unix_ms: state.started_unix_ms,
        sequence: state.sequence,
    }
}

pub(super) fn from_state(wire: schema::EdgeState) -> Result<EdgeState, WireError> {
    if wire.endpoints.len() > MAX_ENDPOINTS || wire.endpoints.iter().any(|url| !is_url(url)) {
        return Err(WireError::Field("an endpoint"));
    }
    let condition = match wire.condition {
        SERVE => EdgeCondition::Serve,
        LAME_DUCK => EdgeCondition::LameDuck,
        DRAIN => EdgeCondition::Drain { drain: wire.drain },
        LEAVE => EdgeCondition::Leave,
        // A later program's: all that is known is that it is not to be sent anybody.
        _ => EdgeCondition::LameDuck,
    };
    Ok(EdgeState {
        node: super::node(&wire.node)?,
        region: region(&wire.region)?,
        endpoints: wire.endpoints,
        sessions: wire.sessions,
        rate: wire.rate,
        slack: wire.slack,
        condition,
        started_unix_ms: wire.started_unix_ms,
        sequence: wire.sequence,
    })
}

pub(super) fn to_list(edges: &[FleetEntry]) -> schema::Fleet {
    schema::Fleet {
        edges: edges.iter().map(|edge| to_state(&edge.state)).collect(),
        ages_ms: edges.iter().map(|edge| u32::try_from(edge.age.as_millis()).unwrap_or(u32::MAX)).collect(),
    }
}

pub(super) fn from_list(wire: schema::Fleet) -> Result<Vec<FleetEntry>, WireError> {
    if wire.edges.len() > MAX_EDGES || wire.ages_ms.len() != wire.edges.len() {
        return Err(WireError::Field("the size of a fleet"));
    }
    let edges = wire.edges.into_iter().zip(wire.ages_ms);
    edges
        .map(|(edge, age)| {
            Ok(FleetEntry { state: from_state(edge)?, age: Duration::from_millis(u64::from(age)) })
        })
        .collect()
}

/// What goes to clients as it is: not too long, and nothing that ends a line.
fn is_url(url: &str) -> bool {
    !url.is_empty() && url.len() <= MAX_ENDPOINT_BYTES && url.bytes().all(|byte| byte.is_ascii_graphic())
}

const SERVE: u32 = 0;
const LAME_DUCK: u32 = 1;
const DRAIN: u32 = 2;
const LEAVE: u32 = 3;
