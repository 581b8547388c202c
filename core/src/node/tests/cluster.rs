//! Several nodes over one engine, and edges that open partitions as they do over the network.

use super::*;
use crate::node::conformance::cluster::Cluster;
use crate::node::conformance::{
    PARTITIONS, a_node_crashes_and_the_others_go_on_from_its_last_acknowledgement,
    a_node_that_is_cut_off_stops_answering_before_others_take_over,
    one_node_after_the_other_joins_and_leaves_and_no_publish_is_refused,
    snapshots_keep_what_the_log_has_dropped,
};
use crate::placement::partition_of;

#[tokio::test(start_paused = true)]
async fn nodes_come_and_go_over_the_memory_engine() {
    one_node_after_the_other_joins_and_leaves_and_no_publish_is_refused(engines()).await;
    let took = a_node_crashes_and_the_others_go_on_from_its_last_acknowledgement(engines()).await;
    assert!(took < LEASE + Duration::from_millis(1_500), "{took:?}");
    a_node_that_is_cut_off_stops_answering_before_others_take_over(engines()).await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_keep_what_the_memory_engine_has_dropped() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(1, PARTITIONS, 2_000));
    snapshots_keep_what_the_log_has_dropped(&engine, &engine, 10).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_node_does_not_own_is_refused_with_advice() {
    let cluster = cluster();
    cluster.join("core-1").await;
    cluster.join("core-2").await;
    cluster.settled().await;
    let channel = cluster.channel_of("core-2");
    let other = cluster.node("core-1");
    let refused = other.publish(durable(&channel, "1")).await.expect_err("not the owner");
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(refused.message.contains("edge"), "{}", refused.message);
    assert!(other.open(partition_of(&channel, PARTITIONS), NodeId::new("edge-1")).await.is_none());

    let backend: Arc<dyn link::Backend> = Arc::new(cluster.node("core-2"));
    assert!(backend.is_ready());
    backend.publish(vec![durable(&channel, "1")]).await.expect("taken").pop().expect("one").expect("stored");
    let status: serde_json::Value =
        serde_json::from_slice(&backend.status().await.expect("known")).expect("JSON");
    assert_eq!((&status["node"], &status["ready"]), (&"core-2".into(), &true.into()));
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(2));
    let partitions = status["partitions"].as_array().expect("a list");
    let own = partitions.iter().find(|own| own["partition"] == partition_of(&channel, PARTITIONS));
    assert_eq!(own.expect("its own")["tail"], 1);
    assert!(partitions.len() < usize::from(PARTITIONS));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_is_waited_for_and_then_refused() {
    let cluster = cluster();
    cluster.join("core-1").await;
    let began = clock::now();
    let refused = cluster.try_join("core-1", cluster.engine(), lifecycle()).await;
    assert!(matches!(refused, Err(StartError::Join(JoinError::NameTaken(_)))), "{refused:?}");
    assert!(clock::now() - began >= LEASE);
    // One that crashed and is back waits for its own old lease.
    cluster.crash("core-1");
    cluster.join("core-1").await;
    cluster.settled().await;
}

#[tokio::test(start_paused = true)]
async fn a_link_over_the_network_that_is_full_is_cut_at_once() {
    let config = CoreConfig { link_queue: 2, ..CoreConfig::default() };
    let node = start(config, memory(16)).await;
    let channel = name("room:1");
    let mut opened = node.open(partition_of(&channel, 16), NodeId::new("edge-1")).await.expect("served");
    let subscribe = EdgeFrame::Subscribe { request: 1, channel: channel.clone(), position: None };
    opened.link.sender.send(subscribe).await.expect("open");
    until(|| text(node.metrics()).contains("tidegate_core_interest 1\n")).await;
    let began = clock::now();
    for _ in 0..4 {
        node.publish(durable(&channel, "1")).await.expect("stored");
    }
    assert_eq!(clock::now(), began, "nobody waited for it");
    let mut frames = Vec::new();
    while poll_fn(|cx| opened.link.receiver.poll_recv_many(cx, &mut frames, 9)).await > 0 {}
    assert_eq!(frames.len(), 2);
    assert!(text(node.metrics()).contains("tidegate_core_links_cut_total 1\n"));
}

#[tokio::test(start_paused = true)]
async fn a_full_engine_refuses_publishes_and_nothing_of_them_is_seen() {
    let engine = Arc::new(Forgetful::new(memory(16)));
    let node = start(CoreConfig::default(), Arc::clone(&engine) as Arc<dyn Engine>).await;
    let (channel, idle) = (name("room:1"), name("room:2"));
    let mut edge = Edge::new(&node);
    edge.subscribe(&channel, None).await;
    let before = edge.subscribe(&idle, None).await.position;
    let first = node.publish(durable(&channel, "1")).await.expect("stored").expect("durable");
    assert_eq!(edge.next_offset().await, 1);

    engine.set_full(true);
    for _ in 0..3 {
        let refused = node.publish(durable(&channel, "2")).await.expect_err("full");
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert!(refused.message.contains("the disk is full"), "{}", refused.message);
    }
    assert!(!node.is_serving());
    // What is there is still told.
    assert_eq!(node.history(channel.clone(), HistoryRange::default()).await.expect("served").position, first);

    sleep(Duration::from_secs(5)).await;
    assert!(!node.is_serving());

    // Nobody publishes: it is seen all the same.
    engine.set_full(false);
    sleep(Duration::from_secs(2)).await;
    assert!(node.is_serving());
    let next = node.publish(durable(&channel, "3")).await.expect("stored").expect("durable");
    assert_eq!(next, Position::new(first.epoch, Offset(2)));
    // The same link, with the interest that it had.
    assert_eq!(edge.next_offset().await, 2);
    assert!(node.is_serving());
    let after = node.publish(durable(&idle, "1")).await.expect("stored").expect("durable");
    assert_eq!(after, Position::new(before.epoch, Offset(1)));
    assert_eq!(edge.next_offset().await, 1);
    assert!(text(node.metrics()).contains("tidegate_core_log_frames_refused_total 1\n"));
}

fn cluster() -> Cluster {
    Cluster::over(engines())
}

fn engines() -> Vec<Arc<dyn Engine>> {
    vec![Arc::new(MemoryEngine::with_lease(0xabcd, PARTITIONS, 1 << 20, LEASE))]
}

const LEASE: Duration = Duration::from_secs(3);
