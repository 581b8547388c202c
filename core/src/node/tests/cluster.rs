//! Several nodes over one engine, and edges that open partitions as they do over the network.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use tokio::task::JoinHandle;

use super::*;
use crate::node::OpenedPartition;
use crate::placement::partition_of;

#[tokio::test(start_paused = true)]
async fn one_node_after_the_other_joins_and_leaves_and_no_publish_is_refused() {
    let cluster = Cluster::new();
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
}

#[tokio::test(start_paused = true)]
async fn a_node_crashes_and_the_others_go_on_from_its_last_acknowledgement() {
    let cluster = Cluster::new();
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
    assert!(took < LEASE + Duration::from_millis(1_500), "{took:?}");
    clients.publish_some().await;
    let ends = clients.stop().await;
    assert!(ends.iter().any(|end| end.cut > 0), "the node that crashed had partitions: {ends:?}");
    assert!(ends.iter().all(|end| end.refused == 0), "{ends:?}");
    cluster.check(&ends).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_stops_answering_before_others_take_over() {
    let cluster = Cluster::new();
    let engine = Arc::new(Forgetful::new(Arc::clone(&cluster.engine)));
    let lonely = cluster.join_over("core-1", Arc::clone(&engine) as Arc<dyn Engine>).await;
    cluster.join("core-2").await;
    cluster.settled().await;
    let channel = cluster.channel_of("core-1");
    let partition = partition_of(&channel, PARTITIONS);
    let mut opened = lonely.open(partition, NodeId::new("edge-1")).await.expect("served");
    let first = lonely.publish(durable(&channel, "1")).await.expect("stored").expect("durable");

    engine.set_silent(true);
    // Its log would still take what it writes: nobody has claimed it yet.
    sleep(LEASE).await;
    assert!(!lonely.is_serving());
    assert_eq!(
        lonely.publish(durable(&channel, "2")).await.expect_err("fenced").code,
        ErrorCode::Unavailable
    );
    assert!(lonely.open(partition, NodeId::new("edge-1")).await.is_none());
    let mut frames = Vec::new();
    assert_eq!(poll_fn(|cx| opened.link.receiver.poll_recv_many(cx, &mut frames, 9)).await, 0, "{frames:?}");
    until_async(|| async { cluster.node("core-2").history(channel.clone(), None, 0).await.is_ok() }).await;
    let taken = cluster.node("core-2").history(channel.clone(), None, 0).await.expect("taken over");
    assert_eq!(taken.position, first);

    // Back again, it gets what it had, in order.
    engine.set_silent(false);
    cluster.settled().await;
    let next = lonely.publish(durable(&channel, "3")).await.expect("stored").expect("durable");
    assert_eq!(next, Position::new(first.epoch, Offset(2)));
    assert!(text(lonely.metrics()).contains("tidegate_core_fences_total"));
}

#[tokio::test(start_paused = true)]
async fn what_a_node_does_not_own_is_refused_with_advice() {
    let cluster = Cluster::new();
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
    let cluster = Cluster::new();
    cluster.join("core-1").await;
    let began = clock::now();
    let refused = cluster.try_join("core-1", Arc::clone(&cluster.engine), lifecycle()).await;
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
    assert_eq!(node.history(channel.clone(), None, 0).await.expect("served").position, first);

    engine.set_full(false);
    sleep(Duration::from_secs(2)).await;
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

#[tokio::test(start_paused = true)]
async fn snapshots_keep_what_the_log_has_dropped() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(1, 16, 2_000));
    let config = CoreConfig { snapshot_frames: 20, ..CoreConfig::default() };
    let old = start(config.clone(), Arc::clone(&engine)).await;
    let quiet = name("room:1");
    // In the same partition.
    let partition = partition_of(&quiet, 16);
    let busy = (0..).map(|n| name(&format!("busy:{n}"))).find(|busy| partition_of(busy, 16) == partition);
    let busy = busy.expect("some are");
    let kept = old.publish(durable(&quiet, "1")).await.expect("stored").expect("durable");
    for _ in 0..200 {
        old.publish(durable(&busy, "0123456789")).await.expect("stored");
    }
    sleep(Duration::from_secs(5)).await;
    assert!(!text(old.metrics()).contains("tidegate_core_snapshots_total 0\n"));
    assert!(matches!(
        engine.replay(PartitionId(partition), LogPosition(1)).await,
        Err(ReplayError::Truncated { .. })
    ));

    let new = start(config, engine).await;
    let next = new.publish(durable(&quiet, "2")).await.expect("stored").expect("durable");
    assert_eq!(next, Position::new(kept.epoch, Offset(2)));
}

/// Nodes over one engine.
struct Cluster {
    engine: Arc<dyn Engine>,
    nodes: Arc<Mutex<BTreeMap<String, (CoreNode, Lifecycle)>>>,
}

impl Cluster {
    fn new() -> Self {
        let engine = Arc::new(MemoryEngine::with_lease(0xabcd, PARTITIONS, 1 << 20, LEASE));
        Self { engine, nodes: Arc::default() }
    }

    async fn join(&self, name: &str) -> CoreNode {
        self.join_over(name, Arc::clone(&self.engine)).await
    }

    async fn join_over(&self, name: &str, engine: Arc<dyn Engine>) -> CoreNode {
        let lifecycle = lifecycle();
        let node = self.try_join(name, engine, lifecycle.clone()).await.expect("joined");
        let nodes = &mut self.nodes.lock().expect("no panic");
        nodes.insert(name.to_owned(), (node.clone(), lifecycle));
        node
    }

    async fn try_join(
        &self,
        name: &str,
        engine: Arc<dyn Engine>,
        lifecycle: Lifecycle,
    ) -> Result<CoreNode, StartError> {
        let config = CoreConfig { partitions: PARTITIONS, ..CoreConfig::default() };
        let id = NodeId::new(name);
        let record =
            NodeRecord { id, address: format!("{name}:4500"), version: "0".to_owned(), started_ms: 0 };
        CoreNode::join(config, engine, namespaces(), CoreMetrics::new(), lifecycle, record).await
    }

    fn node(&self, name: &str) -> CoreNode {
        self.nodes.lock().expect("no panic")[name].0.clone()
    }

    fn crash(&self, name: &str) {
        let (_, lifecycle) = self.nodes.lock().expect("no panic").remove(name).expect("it runs");
        lifecycle.abort.cancel();
    }

    fn all(&self) -> Vec<CoreNode> {
        self.nodes.lock().expect("no panic").values().map(|(node, _)| node.clone()).collect()
    }

    /// Waits until every partition is served by the node that wins it among those that are alive.
    async fn settled(&self) {
        until_async(|| async {
            let known = self.all().into_iter().map(|node| {
                let cluster = node.inner.cluster.clone().expect("one of several");
                let directory = cluster.directory.borrow().clone();
                cluster.is_settled().then_some((node, directory))
            });
            let Some(directories) = known.collect::<Option<Vec<_>>>() else { return false };
            let Some((_, directory)) = directories.first() else { return false };
            let live: Vec<NodeId> = directory.nodes.iter().map(|node| node.id.clone()).collect();
            live.len() == directories.len()
                && directories.iter().all(|(_, other)| other == directory)
                && (0..PARTITIONS).all(|partition| {
                    let winner = crate::placement::rendezvous::winner(&live, partition);
                    let serving =
                        directories.iter().filter(|(node, _)| node.inner.slots.served(partition).is_some());
                    let serving: Vec<_> = serving.map(|(node, _)| &node.inner.name).collect();
                    directory.owner(partition) == winner && serving == winner.into_iter().collect::<Vec<_>>()
                })
        })
        .await;
    }

    /// A channel that the node owns.
    fn channel_of(&self, node: &str) -> ChannelName {
        let node = self.node(node);
        let owned =
            |channel: &ChannelName| node.inner.slots.served(partition_of(channel, PARTITIONS)).is_some();
        (0..).map(|n| name(&format!("room:{n}"))).find(owned).expect("some are")
    }

    fn count(&self, metric: &str) -> u64 {
        let value = |node: CoreNode| {
            let text = text(node.metrics());
            let line = text.lines().find(|line| line.starts_with(metric)).expect("registered");
            line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("a number")
        };
        self.all().into_iter().map(value).sum()
    }

    fn clients(&self, count: usize) -> Clients {
        let stop = CancellationToken::new();
        let published = Arc::new(AtomicUsize::new(0));
        let clients = (0..count).map(|n| Client {
            channel: name(&format!("room:{n}")),
            nodes: Arc::clone(&self.nodes),
            opened: None,
            frames: Vec::new(),
            end: End::default(),
        });
        let tracker = TaskTracker::new();
        let tasks = clients.map(|client| tracker.spawn(client.run(stop.clone(), Arc::clone(&published))));
        Clients { tasks: tasks.collect(), stop, published }
    }

    /// Everything acknowledged is in the history of its channel, once, in order, and nothing else.
    async fn check(&self, ends: &[End]) {
        for (n, end) in ends.iter().enumerate() {
            let channel = name(&format!("room:{n}"));
            let partition = partition_of(&channel, PARTITIONS);
            let mut nodes = self.all().into_iter();
            let owner = nodes.find(|node| node.inner.slots.served(partition).is_some()).expect("owned");
            let history = owner.history(channel, None, 0).await.expect("served");
            let last = end.last.as_ref().expect("published");
            assert_eq!(history.position, *last);
            let kept: Vec<_> = history.publications.iter().map(|publication| publication.offset).collect();
            assert_eq!(kept, (1..=end.acknowledged).collect::<Vec<_>>());
        }
    }
}

struct Clients {
    tasks: Vec<JoinHandle<End>>,
    stop: CancellationToken,
    published: Arc<AtomicUsize>,
}

impl Clients {
    /// Waits until a good number more is acknowledged.
    async fn publish_some(&self) {
        let goal = self.published.load(Ordering::Relaxed) + 20 * self.tasks.len();
        until_async(|| async { self.published.load(Ordering::Relaxed) >= goal }).await;
    }

    async fn stop(self) -> Vec<End> {
        self.stop.cancel();
        let mut ends = Vec::new();
        for task in self.tasks {
            ends.push(task.await.expect("no panic"));
        }
        ends
    }
}

/// An edge with one channel: it publishes with keys, one after the other, and hears what it publishes.
struct Client {
    channel: ChannelName,
    nodes: Arc<Mutex<BTreeMap<String, (CoreNode, Lifecycle)>>>,
    opened: Option<OpenedPartition>,
    frames: Vec<CoreFrame>,
    end: End,
}

/// What a client met.
#[derive(Debug, Default)]
struct End {
    last: Option<Position>,
    acknowledged: u64,
    refused: usize,
    moved: usize,
    cut: usize,
}

impl Client {
    async fn run(mut self, stop: CancellationToken, published: Arc<AtomicUsize>) -> End {
        let mut n = 0;
        while !stop.is_cancelled() {
            n += 1;
            self.publish(n).await;
            published.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(7)).await;
        }
        // The last one's own publication.
        while self.end.last.as_ref().is_none_or(|last| last.offset.0 < self.end.acknowledged) {
            if let Some(frame) = self.next().await {
                self.take(frame);
            } else {
                self.open().await;
            }
        }
        self.end
    }

    /// Until it is acknowledged.
    async fn publish(&mut self, n: u64) {
        loop {
            if self.opened.is_none() {
                self.open().await;
            }
            let publish = Publish { key: Some(n.to_string()), ..durable(&self.channel, &n.to_string()) };
            let frame = EdgeFrame::Publish { request: n, publish };
            let opened = self.opened.as_ref().expect("just opened");
            // Closed or not, the receiver says.
            let _ = opened.link.sender.send(frame).await;
            while let Some(frame) = self.next().await {
                if let CoreFrame::Published { request, result } = &frame
                    && *request == n
                {
                    match result {
                        Ok(position) => {
                            let position = position.as_ref().expect("durable");
                            assert_eq!(position.offset, Offset(n), "stored once each");
                            self.end.acknowledged = n;
                            return;
                        }
                        Err(_) => self.end.refused += 1,
                    }
                    break;
                }
                self.take(frame);
            }
        }
    }

    /// The next frame; `None` where the link is over.
    async fn next(&mut self) -> Option<CoreFrame> {
        let Self { opened, frames, .. } = self;
        let receiver = &mut opened.as_mut()?.link.receiver;
        poll_fn(|cx| receiver.poll_recv_many(cx, frames, 1)).await;
        match self.frames.pop() {
            Some(CoreFrame::Moved { partition, .. }) => {
                assert_eq!(partition, partition_of(&self.channel, PARTITIONS));
                self.end.moved += 1;
                self.opened = None;
                None
            }
            Some(frame) => Some(frame),
            None => {
                self.end.cut += 1;
                self.opened = None;
                None
            }
        }
    }

    /// Finds the owner, and catches up: whatever happened, nothing is missing.
    async fn open(&mut self) {
        loop {
            let nodes: Vec<CoreNode> =
                self.nodes.lock().expect("no panic").values().map(|(node, _)| node.clone()).collect();
            for node in nodes {
                let partition = partition_of(&self.channel, PARTITIONS);
                let Some(opened) = node.open(partition, NodeId::new("edge-1")).await else { continue };
                let position = self.end.last.clone();
                let recovers = position.is_some();
                let frame = EdgeFrame::Subscribe { request: 0, channel: self.channel.clone(), position };
                let _ = opened.link.sender.send(frame).await;
                self.opened = Some(opened);
                match self.next().await {
                    Some(CoreFrame::Recovered { result, .. }) => {
                        let recovery = result.expect("allowed");
                        assert_eq!(recovery.recovered, recovers, "{recovery:?} after {:?}", self.end);
                        for publication in &recovery.publications {
                            self.hear(publication.offset);
                        }
                        self.end.last = Some(recovery.position);
                        return;
                    }
                    Some(other) => panic!("{other:?}"),
                    None => {}
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn take(&mut self, frame: CoreFrame) {
        match frame {
            CoreFrame::Publication(delivery) => self.hear(delivery.offset.0),
            // Of an attempt before the link was lost.
            CoreFrame::Published { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn hear(&mut self, offset: u64) {
        let last = self.end.last.as_mut().expect("subscribed");
        assert_eq!(offset, last.offset.0 + 1, "no gap, no duplicate");
        last.offset = Offset(offset);
    }
}

async fn until_async<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) {
    let began = clock::now();
    while clock::now() - began < Duration::from_secs(600) {
        if condition().await {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("the condition never held");
}

const PARTITIONS: u16 = 16;
const LEASE: Duration = Duration::from_secs(3);
