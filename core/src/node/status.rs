//! What a node says of itself: one JSON object, described in `docs/OPERATIONS.md`.

use std::net::SocketAddr;
use std::sync::Weak;

use bytes::Bytes;
use serde::Serialize;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::fleet::FleetEntry;
use tidegate_transport::clock;
use tidegate_transport::link::quic::CoreEnd;

use super::Inner;
use crate::engine::About;

/// An edge that is connected.
#[derive(Debug, Clone)]
pub(super) struct Connected {
    pub(super) node: NodeId,
    pub(super) region: String,
    pub(super) version: String,
    pub(super) address: SocketAddr,
    /// Dropping it ends the connection: that is for whoever serves it.
    pub(super) end: Weak<CoreEnd>,
}

#[derive(Debug, Serialize)]
struct Status<'a> {
    node: &'a str,
    region: &'a str,
    version: &'a str,
    engine: EngineOf,
    ready: bool,
    frames_per_second: u32,
    /// Served by this node.
    partitions: Vec<PartitionOf>,
    /// All of the cluster; none where the node is alone.
    nodes: Vec<NodeOf>,
    /// The same, by number of the partition.
    owners: Vec<OwnerOf>,
    /// Partitions that this node failed to take, and leaves to others for now.
    declines: Vec<u16>,
    /// What it reads ahead, to have it next.
    ahead: Vec<AheadOf>,
    links: Vec<LinkOf>,
    /// Edges that said how they are.
    edges: Vec<FleetEntry>,
}

#[derive(Debug, Serialize)]
struct EngineOf {
    #[serde(flatten)]
    about: About,
    durable: bool,
    replicated: bool,
    shared: bool,
    max_frame: usize,
    lease_ms: u64,
}

#[derive(Debug, Serialize)]
struct AheadOf {
    partition: u16,
    /// The last log frame that was read.
    read: u64,
}

#[derive(Debug, Serialize)]
struct PartitionOf {
    partition: u16,
    term: u64,
    epoch: u64,
    tail: u64,
    /// Log frames that the lease table does not know of yet.
    lag: u64,
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
    version: String,
    started_ms: u64,
    declines: Vec<u16>,
    partitions: usize,
}

#[derive(Debug, Serialize)]
struct OwnerOf {
    owner: Option<String>,
    term: u64,
    /// Who is to have it, and whether its log is read there.
    next: Option<String>,
    next_ready: bool,
    /// A position that is certainly in the log.
    high_water: u64,
}

#[derive(Debug, Serialize)]
struct LinkOf {
    node: String,
    region: String,
    version: String,
    address: String,
    rtt_ms: Option<f64>,
    queued_bytes: Option<usize>,
    lost_packets: Option<u64>,
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
            lag: served.status.lag(),
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
    let table = node.cluster.as_ref().map(|cluster| cluster.table()).unwrap_or_default();
    let nodes = table.nodes.iter().map(|known| NodeOf {
        node: known.id.as_str().to_owned(),
        address: known.address.clone(),
        version: known.version.clone(),
        started_ms: known.started_ms,
        declines: known.declines.clone(),
        partitions: directory.partitions.iter().filter(|held| held.owner.as_ref() == Some(&known.id)).count(),
    });
    let text = |node: &NodeId| node.as_str().to_owned();
    let owners = directory.partitions.iter().zip(&table.partitions).map(|(held, record)| OwnerOf {
        owner: held.owner.as_ref().map(text),
        term: held.term,
        next: record.next.as_ref().filter(|_| !record.released).map(text),
        next_ready: record.ready,
        high_water: record.high_water,
    });
    let ahead = table
        .ahead
        .iter()
        .map(|(partition, progress)| AheadOf { partition: *partition, read: progress.read() });
    let capabilities = node.engine.capabilities();
    let engine = EngineOf {
        about: node.engine.about(),
        durable: capabilities.durable,
        replicated: capabilities.replicated,
        shared: capabilities.shared,
        max_frame: capabilities.max_frame,
        lease_ms: u64::try_from(capabilities.lease.as_millis()).unwrap_or(u64::MAX),
    };
    let links = node.connected().values().cloned().collect::<Vec<_>>();
    let links = links.into_iter().map(|link| {
        let condition = link.end.upgrade().map(|end| end.condition());
        LinkOf {
            node: link.node.as_str().to_owned(),
            region: link.region,
            version: link.version,
            address: link.address.to_string(),
            rtt_ms: condition.map(|condition| condition.round_trip.as_secs_f64() * 1000.0),
            queued_bytes: condition.map(|condition| condition.queued),
            lost_packets: condition.map(|condition| condition.lost_packets),
        }
    });
    let status = Status {
        node: node.name.as_str(),
        region: node.region.get().map_or("", |region| region.as_str()),
        version: env!("CARGO_PKG_VERSION"),
        engine,
        ready: node.is_serving(),
        frames_per_second: node.pace.rate(clock::now()),
        partitions: partitions.collect(),
        nodes: nodes.collect(),
        owners: owners.collect(),
        declines: table.declines.clone(),
        ahead: ahead.collect(),
        links: links.collect(),
        edges: node.fleet.there(),
    };
    serde_json::to_vec(&status).map(Bytes::from).unwrap_or_default()
}
