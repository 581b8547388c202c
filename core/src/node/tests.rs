//! A node and its links in one process.

mod cluster;
mod local;
mod network;
mod trouble;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, HistoryRange, Publish, Recovery};
use tidegate_protocol::{ChannelName, Offset, Position};

use super::conformance::{durable, lifecycle, name, namespaces, text};
use super::*;
use crate::engine::forgetful::Forgetful;
use crate::engine::{LogPosition, MemoryEngine};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_link_gets_everything_once_and_in_order() {
    const PUBLISHERS: usize = 4;
    const EACH: usize = 250;
    let node = start(CoreConfig::default(), memory(16)).await;
    let channels: Vec<ChannelName> = (0..5).map(|n| name(&format!("room:{n}"))).collect();
    let mut links = Vec::new();
    for _ in 0..3 {
        let mut link = Edge::new(&node);
        for channel in &channels {
            assert!(!link.subscribe(channel, None).await.recovered);
        }
        links.push(link);
    }
    let publishers = TaskTracker::new();
    for publisher in 0..PUBLISHERS {
        let (node, channels) = (node.clone(), channels.clone());
        publishers.spawn(async move {
            for n in 0..EACH {
                let channel = &channels[n % channels.len()];
                node.publish(durable(channel, &format!("{publisher}{n:04}"))).await.expect("stored");
            }
        });
    }
    publishers.close();
    let total = PUBLISHERS * EACH;
    for link in &mut links {
        let mut last: BTreeMap<ChannelName, u64> = BTreeMap::new();
        for _ in 0..total {
            let CoreFrame::Publication(delivery) = link.next().await else { panic!("not a publication") };
            let last = last.entry(delivery.channel).or_default();
            assert_eq!(delivery.offset, Offset(*last + 1));
            *last += 1;
        }
        assert!(last.values().all(|last| *last == (total / channels.len()) as u64), "{last:?}");
    }
    publishers.wait().await;
    let text = text(node.metrics());
    assert!(
        text.contains(&format!("tidegate_core_publications_total{{kind=\"durable\"}} {total}\n")),
        "{text}"
    );
    assert!(text.contains(&format!("tidegate_core_publish_duration_seconds_count {total}\n")), "{text}");
    assert!(text.contains("tidegate_core_interest 15\n"), "{text}");
    assert!(text.contains("tidegate_core_channels 5\n"), "{text}");
    assert!(text.contains(&format!("tidegate_core_history_bytes {}\n", total * 5)), "{text}");
}

#[tokio::test(start_paused = true)]
async fn interest_ends_with_the_link() {
    let node = start(CoreConfig::default(), memory(16)).await;
    let (mut gone, mut stays) = (Edge::new(&node), Edge::new(&node));
    for n in 0..50 {
        gone.subscribe(&name(&format!("room:{n}")), None).await;
    }
    stays.subscribe(&name("room:1"), None).await;
    assert!(text(node.metrics()).contains("tidegate_core_interest 51\n"));
    drop(gone);
    until(|| text(node.metrics()).contains("tidegate_core_interest 1\n")).await;
    node.publish(durable(&name("room:1"), "1")).await.expect("stored");
    assert!(matches!(stays.next().await, CoreFrame::Publication(_)));
}

#[tokio::test(start_paused = true)]
async fn a_link_whose_receiver_is_dropped_ends_with_the_next_answer() {
    let config = CoreConfig { partitions: 1, batch_commands: 1, ..CoreConfig::default() };
    let node = start(config, memory(1)).await;
    let Edge { mut link, .. } = Edge::new(&node);
    let channel = name("room:1");
    let subscribe = |channel| EdgeFrame::Subscribe { request: 1, channel: name(channel), position: None };
    link.sender.send(subscribe("room:1")).await.expect("open");
    until(|| text(node.metrics()).contains("tidegate_core_interest 1\n")).await;
    link.receiver = Box::new(NoReceiver);
    // The answer to the first finds the link closed; the second is in the queue by then and must not count.
    let publish = EdgeFrame::Publish { request: 2, publish: durable(&channel, "1") };
    link.sender.send(publish).await.expect("open");
    link.sender.send(subscribe("room:2")).await.expect("open");
    while link.sender.send(subscribe("room:3")).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let head = node.history(channel, HistoryRange::default()).await.expect("served").position;
    assert_eq!(head.offset, Offset(1));
    until(|| text(node.metrics()).contains("tidegate_core_interest 0\n")).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_link_holds_publications_back_and_loses_none() {
    let node = start(CoreConfig { link_queue: 4, ..CoreConfig::default() }, memory(16)).await;
    let channel = name("room:1");
    let mut link = Edge::new(&node);
    link.subscribe(&channel, None).await;
    let batch = (0..20).map(|n| durable(&channel, &n.to_string())).collect();
    let results = node.publish_batch(batch).await.expect("admitted");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    for offset in 1..=20 {
        assert_eq!(link.next_offset().await, offset);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_link_is_passed_over_by_ephemeral_items() {
    let node = start(CoreConfig { link_queue: 4, ..CoreConfig::default() }, memory(16)).await;
    let channel = name("room:1");
    let mut link = Edge::new(&node);
    link.subscribe(&channel, None).await;
    for n in 0..10 {
        let ephemeral = Publish { ephemeral: true, ..durable(&channel, &n.to_string()) };
        assert_eq!(node.publish(ephemeral).await, Ok(None));
    }
    until(|| text(node.metrics()).contains("tidegate_core_ephemeral_dropped_total 6\n")).await;
    for _ in 0..4 {
        assert!(matches!(link.next().await, CoreFrame::Ephemeral(_)));
    }
    node.publish(durable(&channel, "1")).await.expect("stored");
    assert_eq!(link.next_offset().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_never_read_is_cut_and_the_others_go_on() {
    let node = start(CoreConfig { link_queue: 2, ..CoreConfig::default() }, memory(16)).await;
    let channel = name("room:1");
    let (mut stuck, mut reader) = (Edge::new(&node), Edge::new(&node));
    stuck.subscribe(&channel, None).await;
    reader.subscribe(&channel, None).await;
    for offset in 1..=5 {
        node.publish(durable(&channel, "1")).await.expect("stored");
        // Once the stuck link is full the partition waits for it: paused time runs to the end of its patience.
        assert_eq!(reader.next_offset().await, offset);
    }
    assert_eq!((stuck.next_offset().await, stuck.next_offset().await), (1, 2));
    assert!(stuck.is_closed().await);
    let text = text(node.metrics());
    assert!(text.contains("tidegate_core_links_cut_total 1\n"), "{text}");
    until(|| self::text(node.metrics()).contains("tidegate_core_interest 1\n")).await;
}

#[tokio::test(start_paused = true)]
async fn answers_come_in_the_order_of_the_requests() {
    let node = start(CoreConfig::default(), memory(16)).await;
    let channel = name("room:1");
    let edge = Edge::new(&node);
    let publish = |request| EdgeFrame::Publish { request, publish: durable(&channel, "1") };
    let subscribe = EdgeFrame::Subscribe { request: 2, channel: channel.clone(), position: None };
    let history = EdgeFrame::History { request: 5, channel: channel.clone(), range: HistoryRange::default() };
    let unsubscribe = EdgeFrame::Unsubscribe { channel: channel.clone() };
    for frame in [publish(1), subscribe, publish(3), unsubscribe, publish(4), history] {
        edge.link.sender.send(frame).await.expect("open");
    }
    let mut edge = edge;
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(match edge.next().await {
            CoreFrame::Published { request, result } => {
                (request, result.expect("stored").expect("durable").offset.0)
            }
            CoreFrame::Recovered { request, result } => (request, result.expect("known").position.offset.0),
            CoreFrame::Publication(delivery) => (0, delivery.offset.0),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, vec![(1, 1), (2, 1), (3, 2), (0, 2), (4, 3), (5, 3)]);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_channel_is_told_as_another_epoch() {
    let node = start(CoreConfig::default(), memory(16)).await;
    let channel = name("room:1");
    let before = node.publish(durable(&channel, "1")).await.expect("stored").expect("durable");
    sleep(Duration::from_secs(290)).await;
    let kept = node.history(channel.clone(), HistoryRange::default()).await.expect("served");
    assert_eq!((kept.position, kept.publications.len()), (before.clone(), 1));
    // History is kept for 300 s, and an empty channel for 300 s since it was last asked for.
    sleep(Duration::from_secs(302)).await;
    assert!(text(node.metrics()).contains("tidegate_core_channels 0\n"));
    let mut edge = Edge::new(&node);
    let told = edge.subscribe(&channel, Some(before.clone())).await;
    assert_eq!((told.recovered, told.position.offset), (false, Offset(0)));
    assert_ne!(told.position.epoch, before.epoch);
    assert!(text(node.metrics()).contains("tidegate_core_recoveries_total{outcome=\"gap\"} 1\n"));
}

#[tokio::test(start_paused = true)]
async fn a_node_restarted_over_its_engine_goes_on_and_the_old_one_stops() {
    let engine = memory(16);
    let old = start(CoreConfig::default(), Arc::clone(&engine)).await;
    let channel = name("room:1");
    let mut edge = Edge::new(&old);
    edge.subscribe(&channel, None).await;
    let keyed = Publish { key: Some("k".to_owned()), ..durable(&channel, "1") };
    let first = old.publish(keyed.clone()).await.expect("stored").expect("durable");
    for _ in 0..200 {
        old.publish(durable(&channel, "2")).await.expect("stored");
    }

    let new = start(CoreConfig::default(), engine).await;
    let recovery =
        Edge::new(&new).subscribe(&channel, Some(Position::new(first.epoch.clone(), Offset(150)))).await;
    assert!(recovery.recovered);
    let offsets: Vec<u64> = recovery.publications.iter().map(|publication| publication.offset).collect();
    assert_eq!(offsets, (151..=201).collect::<Vec<_>>());
    assert_eq!(new.publish(keyed).await, Ok(Some(first.clone())));
    let next = new.publish(durable(&channel, "3")).await.expect("stored").expect("durable");
    assert_eq!(next, Position::new(first.epoch, Offset(202)));

    // The old owner cannot number anything any more, says so, and lets its edges go.
    let refused = old.publish(durable(&channel, "zombie")).await.expect_err("fenced");
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(!old.is_serving());
    assert!(new.is_serving());
    for offset in 1..=201 {
        assert_eq!(edge.next_offset().await, offset);
    }
    assert!(edge.is_closed().await);
    let refused = old.publish(durable(&channel, "zombie")).await.expect_err("ended");
    assert_eq!(refused.code, ErrorCode::Unavailable);
    let held = new.history(channel, HistoryRange::default()).await.expect("served");
    assert_eq!(held.position, next);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_was_lost_stores_nothing_twice() {
    let engine = Arc::new(Forgetful::new(memory(1)));
    let config = CoreConfig { partitions: 1, ..CoreConfig::default() };
    let node = start(config, Arc::clone(&engine) as Arc<dyn Engine>).await;
    let channel = name("room:1");
    let mut edge = Edge::new(&node);
    edge.subscribe(&channel, None).await;
    for offset in 1..=5 {
        engine.lose(1);
        let position = node.publish(durable(&channel, "1")).await.expect("stored").expect("durable");
        assert_eq!(position.offset, Offset(offset));
        assert_eq!(edge.next_offset().await, offset);
    }
    assert_eq!(engine.replay(PartitionId(0), LogPosition(1)).await.expect("held").len(), 5);
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_bound_are_refused_and_none_is_stored() {
    let config = CoreConfig { backend_in_flight: 2, ..CoreConfig::default() };
    let node = start(config, memory(16)).await;
    let channel = name("room:1");
    let three = vec![durable(&channel, "1"); 3];
    let refused = node.publish_batch(three).await.expect_err("over the bound");
    assert_eq!(refused.code, ErrorCode::Unavailable);
    let two = node.publish_batch(vec![durable(&channel, "1"); 2]).await.expect("within it");
    assert_eq!(two[1].as_ref().expect("stored").as_ref().expect("durable").offset, Offset(2));
}

#[tokio::test(start_paused = true)]
async fn a_drained_node_finishes_what_is_queued() {
    let lifecycle = lifecycle();
    let node = start_in(CoreConfig::default(), memory(16), lifecycle.clone()).await;
    let channel = name("room:1");
    let mut edge = Edge::new(&node);
    edge.subscribe(&channel, None).await;
    let batch = (0..50).map(|n| durable(&channel, &n.to_string())).collect();
    let (results, ()) = tokio::join!(node.publish_batch(batch), async { lifecycle.drain.cancel() });
    let stored = results.expect("admitted").iter().filter(|result| result.is_ok()).count();
    assert_eq!(stored, 50);
    lifecycle.tracker.close();
    lifecycle.tracker.wait().await;
    assert!(!node.is_serving());
    assert_eq!(node.publish(durable(&channel, "1")).await.expect_err("ended").code, ErrorCode::Unavailable);
    assert!(text(node.metrics()).contains("tidegate_core_channels 0\n"));
}

#[tokio::test(start_paused = true)]
async fn an_aborted_node_ends_although_a_link_is_stuck() {
    let lifecycle = lifecycle();
    let config =
        CoreConfig { link_queue: 1, link_wait: Duration::from_secs(1_000_000), ..CoreConfig::default() };
    let node = start_in(config, memory(16), lifecycle.clone()).await;
    let channel = name("room:1");
    let mut edge = Edge::new(&node);
    edge.subscribe(&channel, None).await;
    let results = node.publish_batch(vec![durable(&channel, "1"); 3]).await.expect("admitted");
    assert!(results[0].is_ok());
    lifecycle.abort.cancel();
    lifecycle.tracker.close();
    lifecycle.tracker.wait().await;
}

#[tokio::test]
async fn a_node_that_cannot_work_does_not_start() {
    let run = |config, engine| start_result(config, engine, lifecycle());
    let none = CoreConfig { partitions: 0, ..CoreConfig::default() };
    assert!(matches!(run(none, memory(16)).await, Err(StartError::NoPartitions)));
    let large = CoreConfig { batch_bytes: 1 << 30, ..CoreConfig::default() };
    assert!(matches!(run(large, memory(16)).await, Err(StartError::FrameLimit { .. })));
    let short = run(CoreConfig::default(), memory(3)).await;
    assert!(matches!(short, Err(StartError::Claim(ClaimError::UnknownPartition(3)))));
    let foreign = memory(16);
    let mut claim = foreign.claim(PartitionId(0), &NodeId::new("a")).await.expect("claimed");
    foreign.append(&mut claim, Bytes::from_static(b"not ours")).await.expect("stored");
    assert!(matches!(run(CoreConfig::default(), foreign).await, Err(StartError::LogFrame(_))));
}

/// An edge's end of a link.
struct Edge {
    link: EdgeLink,
    frames: Vec<CoreFrame>,
    requests: u64,
}

impl Edge {
    fn new(node: &CoreNode) -> Self {
        Self { link: node.connect(), frames: Vec::new(), requests: 0 }
    }

    async fn next(&mut self) -> CoreFrame {
        self.try_next().await.expect("the link is open")
    }

    async fn try_next(&mut self) -> Option<CoreFrame> {
        let Self { link, frames, .. } = self;
        poll_fn(|cx| link.receiver.poll_recv_many(cx, frames, 1)).await;
        frames.pop()
    }

    async fn next_offset(&mut self) -> u64 {
        match self.next().await {
            CoreFrame::Publication(delivery) => delivery.offset.0,
            other => panic!("{other:?}"),
        }
    }

    async fn is_closed(&mut self) -> bool {
        self.try_next().await.is_none()
    }

    /// Subscribes where nothing else is on its way.
    async fn subscribe(&mut self, channel: &ChannelName, position: Option<Position>) -> Recovery {
        self.requests += 1;
        let frame = EdgeFrame::Subscribe { request: self.requests, channel: channel.clone(), position };
        self.link.sender.send(frame).await.expect("open");
        match self.next().await {
            CoreFrame::Recovered { request, result } if request == self.requests => result.expect("allowed"),
            other => panic!("{other:?}"),
        }
    }
}

#[derive(Debug)]
struct NoReceiver;

impl link::LinkReceiver<CoreFrame> for NoReceiver {
    fn poll_recv_many(
        &mut self,
        _: &mut std::task::Context<'_>,
        _: &mut Vec<CoreFrame>,
        _: usize,
    ) -> std::task::Poll<usize> {
        std::task::Poll::Ready(0)
    }
}

/// Lets the node's tasks run until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the condition never held");
}

async fn start(config: CoreConfig, engine: Arc<dyn Engine>) -> CoreNode {
    start_in(config, engine, lifecycle()).await
}

async fn start_in(config: CoreConfig, engine: Arc<dyn Engine>, lifecycle: Lifecycle) -> CoreNode {
    start_result(config, engine, lifecycle).await.expect("started")
}

async fn start_result(
    config: CoreConfig,
    engine: Arc<dyn Engine>,
    lifecycle: Lifecycle,
) -> Result<CoreNode, StartError> {
    CoreNode::start(config, engine, namespaces(), CoreMetrics::new(), lifecycle).await
}

fn memory(partitions: u16) -> Arc<dyn Engine> {
    Arc::new(MemoryEngine::new(0xabcd, partitions, 1 << 20))
}
