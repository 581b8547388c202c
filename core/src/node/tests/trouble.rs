//! Leases that end unnoticed, engines that take nothing more, nodes that cannot have what they are to have.

use tidegate_protocol::namespace::{Access, Namespace};

use super::*;
use crate::node::conformance::PARTITIONS;
use crate::node::conformance::cluster::{Cluster, until_async};
use crate::placement::partition_of;
use crate::placement::rendezvous::winner;

#[tokio::test(start_paused = true)]
async fn what_is_logged_once_the_lease_is_over_is_told_to_nobody() {
    let engine = memory(16);
    let node = start(CoreConfig::default(), Arc::clone(&engine)).await;
    let channel = name("room:1");
    let mut edge = Edge::new(&node);
    edge.subscribe(&channel, None).await;
    // As for a process that was stopped for a while: no timer has run yet.
    node.inner.lease.set(None);
    let refused = node.publish(durable(&channel, "1")).await.expect_err("not known");
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(edge.is_closed().await, "it heard of nothing");
    assert!(!node.is_serving() && node.history(channel.clone(), HistoryRange::default()).await.is_err());
    let partition = PartitionId(partition_of(&channel, 16));
    assert_eq!(engine.replay(partition, LogPosition(1)).await.expect("read").len(), 1, "it is in the log");
    // The others notice as soon as they have anything to say.
    until(|| text(node.metrics()).contains("tidegate_core_fences_total 16\n")).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_while_publications_are_collected_answers_none_of_them() {
    let engine = Arc::new(Forgetful::new(memory(16)));
    engine.set_replicated();
    let linger = Duration::from_secs(5);
    let config = CoreConfig { linger, linger_above: 0, ..CoreConfig::default() };
    let node = start(config, engine).await;
    let channel = name("room:1");
    node.publish(durable(&channel, "1")).await.expect("stored");
    let began = clock::now();
    let over = async {
        sleep(linger / 2).await;
        node.inner.lease.set(None);
    };
    let publishes = vec![durable(&channel, "2"), durable(&channel, "3")];
    let (results, ()) = tokio::join!(node.publish_batch(publishes), over);
    assert!(clock::now() - began >= linger, "they were collected");
    for result in results.expect("admitted") {
        assert_eq!(result.expect_err("not known").code, ErrorCode::Unavailable);
    }
    assert!(!node.is_serving());
}

#[tokio::test(start_paused = true)]
async fn in_a_cluster_a_full_engine_costs_the_links_and_not_the_ownership() {
    let (cluster, engine) = two_nodes().await;
    let node = cluster.node("core-1");
    let channel = cluster.channel_of("core-1");
    let partition = partition_of(&channel, PARTITIONS);
    let edge = NodeId::new("edge-1");
    let mut opened = node.open(partition, edge.clone()).await.expect("served");
    let first = node.publish(durable(&channel, "1")).await.expect("stored").expect("durable");

    engine.set_full(true);
    let refused = node.publish(durable(&channel, "2")).await.expect_err("full");
    assert!(refused.message.contains("the disk is full"), "{}", refused.message);
    let mut frames = Vec::new();
    let taken = poll_fn(|cx| opened.link.receiver.poll_recv_many(cx, &mut frames, 9)).await;
    assert_eq!(taken, 0, "cut, and nobody is told of a move: {frames:?}");
    assert_eq!(node.history(channel.clone(), HistoryRange::default()).await.expect("served").position, first);
    let again = node.open(partition, edge.clone()).await.expect("served on");
    assert_eq!((again.term, again.epoch), (opened.term, opened.epoch), "nothing was claimed");

    engine.set_full(false);
    sleep(Duration::from_secs(2)).await;
    let next = node.publish(durable(&channel, "3")).await.expect("stored").expect("durable");
    assert_eq!(next, Position::new(first.epoch, Offset(2)));
    cluster.settled().await;
    assert_eq!(cluster.count("tidegate_core_fences_total"), 0);
    assert_eq!(cluster.count("tidegate_core_log_frames_refused_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_cannot_be_built_anew_goes_to_another_node() {
    let (cluster, engine) = two_nodes().await;
    let node = cluster.node("core-1");
    let channel = cluster.channel_of("core-1");
    let partition = partition_of(&channel, PARTITIONS);
    let first = node.publish(durable(&channel, "1")).await.expect("stored").expect("durable");

    engine.set_full(true);
    engine.curse([partition]);
    assert!(node.publish(durable(&channel, "2")).await.is_err());
    let began = clock::now();
    let other = cluster.node("core-2");
    until_async(|| async { other.open(partition, NodeId::new("edge-1")).await.is_some() }).await;
    assert!(clock::now() - began < Duration::from_secs(30), "{:?}", clock::now() - began);
    assert_eq!(
        other.history(channel.clone(), HistoryRange::default()).await.expect("served").position,
        first
    );
    assert!(node.is_serving(), "all that it is to serve");
    let status = backend_status(&node).await;
    assert_eq!(status["declines"], serde_json::json!([partition]));
    assert!(text(node.metrics()).contains("tidegate_core_partitions_declined 1\n"));
    let told = backend_status(&other).await;
    let known = told["nodes"].as_array().expect("a list").iter().find(|node| node["node"] == "core-1");
    assert_eq!(known.expect("alive")["declines"], serde_json::json!([partition]));

    // Once that is over, the partition goes back in order.
    engine.set_full(false);
    engine.curse([]);
    cluster.settled().await;
    assert_eq!(node.history(channel, HistoryRange::default()).await.expect("served").position, first);
    assert_eq!(backend_status(&node).await["declines"], serde_json::json!([]));
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_a_partition_is_built_anew_is_counted() {
    let engine = Arc::new(Forgetful::new(memory(16)));
    let rules = Namespace { presence: Some(Access::Anyone), ..Namespace::default() };
    let namespaces = Arc::new(Namespaces::new(rules, BTreeMap::new(), false));
    let shared = Arc::clone(&engine) as Arc<dyn Engine>;
    let started =
        CoreNode::start(CoreConfig::default(), shared, namespaces, CoreMetrics::new(), lifecycle()).await;
    let node = started.expect("started");
    let channel = name("room:1");
    let partition = partition_of(&channel, 16);
    let mut edge = Edge::new(&node);
    edge.subscribe(&channel, None).await;
    engine.set_full(true);
    engine.curse([partition]);
    assert!(node.publish(durable(&channel, "1")).await.is_err());

    let user = Some(Arc::from("ada"));
    let frame = EdgeFrame::Presence { channel: channel.clone(), user, sessions: 1, again: false };
    edge.link.sender.send(frame).await.expect("open");
    edge.link.sender.send(EdgeFrame::Unsubscribe { channel: channel.clone() }).await.expect("open");
    let ask = EdgeFrame::Subscribe { request: 77, channel: name("room:1"), position: None };
    edge.link.sender.send(ask).await.expect("open");
    match edge.next().await {
        CoreFrame::Recovered { request: 77, result: Err(error) } => {
            assert_eq!(error.code, ErrorCode::Unavailable)
        }
        other => panic!("{other:?}"),
    }
    engine.set_full(false);
    engine.curse([]);
    until_async(|| async { node.publish(durable(&channel, "2")).await.is_ok() }).await;
    assert_eq!(node.members(channel).await.expect("served").sessions, 1);
    assert!(text(node.metrics()).contains("tidegate_core_interest 0\n"));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_fails_is_tried_again_soon() {
    let engine = Arc::new(Forgetful::new(memory(16)));
    let config = CoreConfig { snapshot_frames: 10, ..CoreConfig::default() };
    let node = start(config, Arc::clone(&engine) as Arc<dyn Engine>).await;
    let channel = name("room:1");
    let partition = PartitionId(partition_of(&channel, 16));
    engine.refuse_pieces(2);
    for n in 0..20 {
        node.publish(durable(&channel, &n.to_string())).await.expect("stored");
    }
    let began = clock::now();
    let written = || async { engine.snapshot(partition).await.expect("read").is_some() };
    until_async(written).await;
    let took = clock::now() - began;
    // After 5 s, and 10 s after that.
    assert!((Duration::from_secs(15)..Duration::from_secs(25)).contains(&took), "{took:?}");
    until_async(|| async { text(node.metrics()).contains("tidegate_core_snapshots_total 1\n") }).await;
    assert!(text(node.metrics()).contains("tidegate_core_snapshot_failures_total 2\n"));
    // The next one is due by the usual rule.
    for n in 0..10 {
        node.publish(durable(&channel, &n.to_string())).await.expect("stored");
    }
    until_async(|| async { text(node.metrics()).contains("tidegate_core_snapshots_total 2\n") }).await;
}

#[tokio::test(start_paused = true)]
async fn the_lag_is_what_the_lease_table_does_not_know_of() {
    let node = start(CoreConfig::default(), memory(16)).await;
    let channel = name("room:1");
    for n in 0..5 {
        node.publish(durable(&channel, &n.to_string())).await.expect("stored");
    }
    let own = |status: &serde_json::Value| {
        let partition = usize::from(partition_of(&name("room:1"), 16));
        let own = &status["partitions"][partition];
        (own["tail"].as_u64().expect("known"), own["lag"].as_u64().expect("known"))
    };
    let status = backend_status(&node).await;
    let (tail, lag) = own(&status);
    assert!(tail > 0 && lag == tail, "{status}");
    assert_eq!((&status["engine"]["name"], &status["engine"]["durable"]), (&"memory".into(), &false.into()));
    until_async(|| async { own(&backend_status(&node).await) == (tail, 0) }).await;
}

/// Two nodes that share an engine; `core-1` has it through one that can fail.
async fn two_nodes() -> (Cluster, Arc<Forgetful>) {
    let lease = Duration::from_secs(3);
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::with_lease(0xabcd, PARTITIONS, 1 << 20, lease));
    let cluster = Cluster::over(vec![Arc::clone(&engine)]);
    let fails = Arc::new(Forgetful::new(engine));
    cluster.join_over("core-1", Arc::clone(&fails) as Arc<dyn Engine>).await;
    cluster.join("core-2").await;
    cluster.settled().await;
    let both = [NodeId::new("core-1"), NodeId::new("core-2")];
    assert!((0..PARTITIONS).any(|partition| winner(&both, partition) == Some(&both[0])));
    (cluster, fails)
}

async fn backend_status(node: &CoreNode) -> serde_json::Value {
    let backend: Arc<dyn link::Backend> = Arc::new(node.clone());
    serde_json::from_slice(&backend.status().await.expect("known")).expect("JSON")
}
