//! What nodes must do over every engine, as functions that each engine's tests call. Engines have [`PARTITIONS`].

pub(crate) mod cluster;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tidegate_protocol::frame::{ErrorCode, Payload};
use tidegate_protocol::link::{CoreFrame, EdgeFrame, HistoryRange, Publish, Recovery};
use tidegate_protocol::namespace::{HistoryBounds, Namespace, Namespaces};
use tidegate_protocol::{ChannelName, NodeId, Offset, Position};
use tidegate_transport::clock;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{CoreNode, Lifecycle};
use crate::config::CoreConfig;
use crate::engine::conformance::Setup;
use crate::engine::forgetful::Forgetful;
use crate::engine::{Engine, LogPosition, PartitionId, ReplayError};
use crate::metrics::CoreMetrics;
use crate::placement::partition_of;
use cluster::{Cluster, until_async};

pub use crate::engine::conformance::PARTITIONS;

/// Planned changes: nobody who uses the partitions is refused anything, or cut.
pub async fn one_node_after_the_other_joins_and_leaves_and_no_publish_is_refused(
    engines: Vec<Arc<dyn Engine>>,
) {
    let cluster = Cluster::over(engines);
    cluster.join("core-1").await;
    cluster.settled().await;
    let clients = cluster.clients(12);
    clients.publish_some().await;
    cluster.join("core-2").await;
    cluster.settled().await;
    cluster.join("core-3").await;
    cluster.settled().await;
    clients.publish_some().await;
    assert!(cluster.count("tidegate_core_handovers_total") > 0);
    for name in ["core-1", "core-2"] {
        let node = cluster.node(name);
        node.leave(Duration::from_secs(60)).await;
        assert!(!node.is_serving());
        cluster.nodes.lock().expect("no panic").remove(name);
        clients.publish_some().await;
    }
    cluster.settled().await;
    let ends = clients.stop().await;
    for end in &ends {
        assert_eq!((end.refused, end.cut), (0, 0), "{end:?}");
    }
    assert!(ends.iter().map(|end| end.moved).sum::<usize>() >= 12, "{ends:?}");
    cluster.check(&ends).await;
    assert_eq!(cluster.count("tidegate_core_fences_total"), 0);
    cluster.end().await;
}

/// The others wait for its lease to end, and for nothing else: how long until all is served again.
pub async fn a_node_crashes_and_the_others_go_on_from_its_last_acknowledgement(
    engines: Vec<Arc<dyn Engine>>,
) -> Duration {
    let cluster = Cluster::over(engines);
    for name in ["core-1", "core-2", "core-3"] {
        cluster.join(name).await;
    }
    cluster.settled().await;
    let clients = cluster.clients(12);
    clients.publish_some().await;
    let crashed = clock::now();
    cluster.crash("core-2");
    cluster.settled().await;
    let took = clock::now().saturating_duration_since(crashed);
    clients.publish_some().await;
    let ends = clients.stop().await;
    assert!(ends.iter().any(|end| end.cut > 0), "the node that crashed had partitions: {ends:?}");
    assert!(ends.iter().all(|end| end.refused == 0), "{ends:?}");
    cluster.check(&ends).await;
    cluster.end().await;
    took
}

/// It could still write: nobody has taken its logs yet.
pub async fn a_node_that_is_cut_off_stops_answering_before_others_take_over(engines: Vec<Arc<dyn Engine>>) {
    let cluster = Cluster::over(engines);
    let engine = Arc::new(Forgetful::new(cluster.engine()));
    let lonely = cluster.join_over("core-1", Arc::clone(&engine) as Arc<dyn Engine>).await;
    cluster.join("core-2").await;
    cluster.settled().await;
    let channel = cluster.channel_of("core-1");
    let partition = partition_of(&channel, PARTITIONS);
    let mut opened = lonely.open(partition, NodeId::new("edge-1")).await.expect("served");
    let first = lonely.publish(durable(&channel, "1")).await.expect("stored").expect("durable");

    engine.set_silent(true);
    // Its log would still take what it writes: nobody has claimed it yet.
    sleep(cluster.lease()).await;
    assert!(!lonely.is_serving());
    assert_eq!(
        lonely.publish(durable(&channel, "2")).await.expect_err("fenced").code,
        ErrorCode::Unavailable
    );
    assert!(lonely.open(partition, NodeId::new("edge-1")).await.is_none());
    let mut frames = Vec::new();
    assert_eq!(poll_fn(|cx| opened.link.receiver.poll_recv_many(cx, &mut frames, 9)).await, 0, "{frames:?}");
    until_async(|| async {
        cluster.node("core-2").history(channel.clone(), HistoryRange::default()).await.is_ok()
    })
    .await;
    let taken =
        cluster.node("core-2").history(channel.clone(), HistoryRange::default()).await.expect("taken over");
    assert_eq!(taken.position, first);

    // Back again, it gets what it had, in order.
    engine.set_silent(false);
    cluster.settled().await;
    let next = lonely.publish(durable(&channel, "3")).await.expect("stored").expect("durable");
    assert_eq!(next, Position::new(first.epoch, Offset(2)));
    assert!(cluster.count("tidegate_core_fences_total") > 0);
    cluster.end().await;
}

/// Of a channel that the log does not reach back to, the snapshot knows the numbering. `size` bytes two hundred times are more
/// than the engine keeps of a log. `new` is another handle on it, or the same.
pub async fn snapshots_keep_what_the_log_has_dropped(
    old: &Arc<dyn Engine>,
    new: &Arc<dyn Engine>,
    size: usize,
) {
    let config = CoreConfig { partitions: PARTITIONS, snapshot_frames: 20, ..CoreConfig::default() };
    let first = Alone::start(&config, old).await;
    let quiet = name("room:1");
    let partition = partition_of(&quiet, PARTITIONS);
    let in_it = |channel: &ChannelName| partition_of(channel, PARTITIONS) == partition;
    let busy = (0..).map(|n| name(&format!("busy:{n}"))).find(in_it).expect("some are");
    let kept = publish(&first.node, &quiet, "1").await;
    let filling = "x".repeat(size);
    for _ in 0..200 {
        publish(&first.node, &busy, &filling).await;
    }
    until_async(|| async {
        let begin = old.replay(PartitionId(partition), LogPosition(1)).await;
        matches!(begin, Err(ReplayError::Truncated { .. }))
            && !text(first.node.metrics()).contains("tidegate_core_snapshots_total 0\n")
    })
    .await;

    let second = Alone::start(&config, new).await;
    let next = publish(&second.node, &quiet, "2").await;
    assert_eq!(next, Position::new(kept.epoch, Offset(2)));
    first.end(false).await;
    second.end(false).await;
}

/// What is published while an engine has no room is refused, in words; nothing that was acknowledged is missing, and once
/// there is room everything goes on by itself. `fill` and `free` see to that.
pub async fn a_full_engine_refuses_what_it_cannot_keep_and_goes_on(
    engines: Vec<Arc<dyn Engine>>,
    fill: impl AsyncFnOnce(),
    free: impl AsyncFnOnce(),
) {
    let cluster = Cluster::over(engines);
    for name in ["core-1", "core-2"] {
        cluster.join(name).await;
    }
    cluster.settled().await;
    let clients = cluster.clients(12);
    clients.publish_some().await;
    fill().await;
    let node = cluster.node("core-1");
    // None of the clients'.
    let owned = |channel: &ChannelName| node.inner.slots.served(partition_of(channel, PARTITIONS)).is_some();
    let channel = (0..).map(|n| name(&format!("other:{n}"))).find(owned).expect("some are");
    let refused = until_refused(&node, &channel).await;
    assert!(refused.contains("has not: "), "{refused}");
    let began = clock::now();
    while clock::now() - began < cluster.lease() * 3 {
        let refused = node.publish(durable(&channel, "2")).await;
        assert!(refused.is_err(), "{refused:?}");
        assert!(
            node.history(channel.clone(), HistoryRange::default()).await.is_ok(),
            "what is there is told"
        );
        sleep(Duration::from_millis(50)).await;
    }
    free().await;
    clients.publish_some().await;
    let ends = clients.stop().await;
    cluster.check(&ends).await;
    cluster.end().await;
}

/// Whoever publishes is told, and so is whoever had something of what is lost; nobody waits for it. `delete` takes a log
/// away, with all that is in it.
pub async fn a_log_that_was_deleted_is_told_and_begun_anew(
    engines: Vec<Arc<dyn Engine>>,
    delete: impl AsyncFnOnce(u16),
) {
    let cluster = Cluster::over(engines);
    let node = cluster.join("core-1").await;
    cluster.settled().await;
    let channel = name("room:1");
    let first = publish(&node, &channel, "1").await;
    delete(partition_of(&channel, PARTITIONS)).await;
    let refused = until_refused(&node, &channel).await;
    assert!(refused.contains("deleted"), "{refused}");
    until_async(|| async { node.publish(durable(&channel, "2")).await.is_ok() }).await;
    let recovery = subscribe(&node, &channel, Some(first.clone())).await;
    assert!(!recovery.recovered && recovery.position.epoch != first.epoch, "{recovery:?}");
    assert_eq!(cluster.count("tidegate_core_fences_total"), 0);
    cluster.end().await;
}

async fn until_refused(node: &CoreNode, channel: &ChannelName) -> String {
    loop {
        match node.publish(durable(channel, "1")).await {
            Ok(_) => sleep(Duration::from_millis(5)).await,
            Err(error) => return error.message,
        }
    }
}

/// A node ends, in order or not, and with it all that is in memory; another one goes on where it was.
pub async fn what_was_acknowledged_outlives_the_node(setup: &mut impl Setup) {
    let config = CoreConfig { partitions: PARTITIONS, ..CoreConfig::default() };
    for orderly in [true, false] {
        let (channel, idle) = (name(&format!("busy:{orderly}")), name(&format!("idle:{orderly}")));
        let old = Alone::start(&config, &setup.engine()).await;
        let unborn = subscribe(&old.node, &idle, None).await.position;
        let keyed = Publish { key: Some("k".to_owned()), ..durable(&channel, "1") };
        let first = old.node.publish(keyed.clone()).await.expect("stored").expect("durable");
        for _ in 0..150 {
            publish(&old.node, &channel, "2").await;
        }
        old.end(orderly).await;
        setup.reopen().await;

        let new = Alone::start(&config, &setup.engine()).await;
        let at = |offset| Some(Position::new(first.epoch.clone(), Offset(offset)));
        let recovery = subscribe(&new.node, &channel, at(100)).await;
        assert!(recovery.recovered, "{recovery:?}");
        let offsets: Vec<u64> = recovery.publications.iter().map(|publication| publication.offset).collect();
        assert_eq!(offsets, (101..=151).collect::<Vec<_>>());
        assert_eq!(new.node.publish(keyed).await, Ok(Some(first.clone())), "stored once");
        assert_eq!(Some(publish(&new.node, &channel, "3").await), at(152));
        let still_unborn = subscribe(&new.node, &idle, Some(unborn.clone())).await;
        assert!(still_unborn.recovered && still_unborn.position == unborn, "{still_unborn:?}");
        let held = new.node.history(channel, HistoryRange::default()).await.expect("served");
        assert_eq!(held.publications.len(), 152);
        new.end(orderly).await;
        setup.reopen().await;
    }
}

/// A node that has every partition.
struct Alone {
    node: CoreNode,
    lifecycle: Lifecycle,
}

impl Alone {
    async fn start(config: &CoreConfig, engine: &Arc<dyn Engine>) -> Self {
        let lifecycle = lifecycle();
        let (engine, metrics) = (Arc::clone(engine), CoreMetrics::new());
        let node = CoreNode::start(config.clone(), engine, namespaces(), metrics, lifecycle.clone()).await;
        Self { node: node.expect("started"), lifecycle }
    }

    async fn end(self, orderly: bool) {
        let end = if orderly { &self.lifecycle.drain } else { &self.lifecycle.abort };
        end.cancel();
        self.lifecycle.tracker.close();
        self.lifecycle.tracker.wait().await;
    }
}

async fn publish(node: &CoreNode, channel: &ChannelName, data: &str) -> Position {
    node.publish(durable(channel, data)).await.expect("stored").expect("durable")
}

/// As an edge does that comes back.
async fn subscribe(node: &CoreNode, channel: &ChannelName, position: Option<Position>) -> Recovery {
    let partition = partition_of(channel, PARTITIONS);
    let mut opened = node.open(partition, NodeId::new("edge-1")).await.expect("served");
    let frame = EdgeFrame::Subscribe { request: 1, channel: channel.clone(), position };
    opened.link.sender.send(frame).await.expect("open");
    let mut frames = Vec::new();
    poll_fn(|cx| opened.link.receiver.poll_recv_many(cx, &mut frames, 1)).await;
    match frames.pop() {
        Some(CoreFrame::Recovered { result, .. }) => result.expect("allowed"),
        other => panic!("{other:?}"),
    }
}

/// Room for all that the tests publish.
pub(crate) fn namespaces() -> Arc<Namespaces> {
    let rules = Namespace {
        history: HistoryBounds { count: 1_000, bytes: 1 << 20, age: Duration::from_secs(300) },
        ..Namespace::default()
    };
    Arc::new(Namespaces::new(rules, BTreeMap::new(), false))
}

/// Of one node.
pub(crate) fn lifecycle() -> Lifecycle {
    Lifecycle {
        tracker: TaskTracker::new(),
        drain: CancellationToken::new(),
        abort: CancellationToken::new(),
    }
}

/// To be kept.
pub(crate) fn durable(channel: &ChannelName, data: &str) -> Publish {
    let payload = Payload::Binary(Bytes::copy_from_slice(data.as_bytes()));
    Publish { channel: channel.clone(), payload, key: None, user: None, ephemeral: false }
}

/// A channel.
pub(crate) fn name(channel: &str) -> ChannelName {
    ChannelName::new(channel).expect("valid")
}

/// All samples.
pub(crate) fn text(metrics: &CoreMetrics) -> String {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
    text
}
