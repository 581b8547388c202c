//! What a node says of itself: one JSON object, described in `docs/OPERATIONS.md`.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::Serialize;
use tidegate_protocol::NodeId;
use tidegate_transport::clock;

use super::Inner;

/// An edge that is connected.
#[derive(Debug, Clone)]
pub(super) struct Connected {
    pub(super) node: NodeId,
    pub(super) region: String,
    pub(super) version: String,
    pub(super) address: SocketAddr,
}

#[derive(Debug, Serialize)]
struct Status<'a> {
    node: &'a str,
    region: &'a str,
    version: &'a str,
    ready: bool,
    frames_per_second: u32,
    /// Served by this node.
    partitions: Vec<PartitionOf>,
    /// All of the cluster; none where the node is alone.
    nodes: Vec<NodeOf>,
    /// The same, by number of the partition.
    owners: Vec<OwnerOf>,
    links: Vec<LinkOf>,
}

#[derive(Debug, Serialize)]
struct PartitionOf {
    partition: u16,
    term: u64,
    epoch: u64,
    tail: u64,
    channels: u64,
    interest: u64,
    append_p50_us: Option<u64>,
    append_p99_us: Option<u64>,
    /// Commands that wait.
    queued: usize,
    /// The engine takes nothing more of it now.
    refusing: bool,
}

#[derive(Debug, Serialize)]
struct NodeOf {
    node: String,
    address: String,
    partitions: usize,
}

#[derive(Debug, Serialize)]
struct OwnerOf {
    owner: Option<String>,
    term: u64,
}

#[derive(Debug, Serialize)]
struct LinkOf {
    node: String,
    region: String,
    version: String,
    address: String,
}

/// As it is now.
pub(super) fn of(node: &Inner) -> Bytes {
    let partitions = (0..node.slots.len()).filter_map(|partition| {
        let served = node.slots.served(partition)?;
        Some(PartitionOf {
            partition,
            term: served.term,
            epoch: served.epoch,
            tail: served.status.tail(),
            channels: served.status.channels(),
            interest: served.status.interest(),
            append_p50_us: served.status.append_us(0.5),
            append_p99_us: served.status.append_us(0.99),
            queued: served.queue.max_capacity() - served.queue.capacity(),
            refusing: served.status.is_refusing(),
        })
    });
    let directory =
        node.cluster.as_ref().map(|cluster| cluster.directory.borrow().clone()).unwrap_or_default();
    let nodes = directory.nodes.iter().map(|known| NodeOf {
        node: known.id.as_str().to_owned(),
        address: known.address.to_string(),
        partitions: directory.partitions.iter().filter(|held| held.owner.as_ref() == Some(&known.id)).count(),
    });
    let owners = directory.partitions.iter().map(|held| OwnerOf {
        owner: held.owner.as_ref().map(|owner| owner.as_str().to_owned()),
        term: held.term,
    });
    let links = node.connected().values().cloned().collect::<Vec<_>>();
    let links = links.into_iter().map(|link| LinkOf {
        node: link.node.as_str().to_owned(),
        region: link.region,
        version: link.version,
        address: link.address.to_string(),
    });
    let status = Status {
        node: node.name.as_str(),
        region: node.region.get().map_or("", |region| region.as_str()),
        version: env!("CARGO_PKG_VERSION"),
        ready: node.is_serving(),
        frames_per_second: node.pace.rate(clock::now()),
        partitions: partitions.collect(),
        nodes: nodes.collect(),
        owners: owners.collect(),
        links: links.collect(),
    };
    serde_json::to_vec(&status).map(Bytes::from).unwrap_or_default()
}
