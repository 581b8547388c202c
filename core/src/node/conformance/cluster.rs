//! Nodes over one engine, and edges that open partitions as they do over the network.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_protocol::link::{CoreFrame, EdgeFrame, HistoryRange, Publish};
use tidegate_protocol::{ChannelName, NodeId, Offset, Position};
use tidegate_transport::clock;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{PARTITIONS, durable, lifecycle, name, namespaces, text};
use crate::config::CoreConfig;
use crate::engine::{Engine, NodeRecord};
use crate::metrics::CoreMetrics;
use crate::node::{CoreNode, Lifecycle, OpenedPartition, StartError};
use crate::placement::partition_of;

/// Nodes over one engine.
pub(crate) struct Cluster {
    /// Handles on it: nodes take turns.
    engines: Vec<Arc<dyn Engine>>,
    pub(crate) nodes: Arc<Mutex<BTreeMap<String, (CoreNode, Lifecycle)>>>,
}

impl Cluster {
    /// None yet. The engine has [`PARTITIONS`].
    pub(crate) fn over(engines: Vec<Arc<dyn Engine>>) -> Self {
        Self { engines, nodes: Arc::default() }
    }

    /// A handle on the engine: not the one of the node before.
    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        let nodes = self.nodes.lock().expect("no panic").len();
        Arc::clone(&self.engines[nodes % self.engines.len()])
    }

    pub(crate) fn lease(&self) -> Duration {
        self.engine().capabilities().lease
    }

    pub(crate) async fn join(&self, name: &str) -> CoreNode {
        self.join_over(name, self.engine()).await
    }

    pub(crate) async fn join_over(&self, name: &str, engine: Arc<dyn Engine>) -> CoreNode {
        let lifecycle = lifecycle();
        let node = self.try_join(name, engine, lifecycle.clone()).await.expect("joined");
        let nodes = &mut self.nodes.lock().expect("no panic");
        nodes.insert(name.to_owned(), (node.clone(), lifecycle));
        node
    }

    pub(crate) async fn try_join(
        &self,
        name: &str,
        engine: Arc<dyn Engine>,
        lifecycle: Lifecycle,
    ) -> Result<CoreNode, StartError> {
        let config = CoreConfig { partitions: PARTITIONS, ..CoreConfig::default() };
        let id = NodeId::new(name);
        let (address, version) = (format!("{name}:4500"), "0".to_owned());
        let record = NodeRecord { id, address, version, started_ms: 0, declines: Vec::new() };
        CoreNode::join(config, engine, namespaces(), CoreMetrics::new(), lifecycle, record).await
    }

    pub(crate) fn node(&self, name: &str) -> CoreNode {
        self.nodes.lock().expect("no panic")[name].0.clone()
    }

    pub(crate) fn crash(&self, name: &str) {
        let (_, lifecycle) = self.nodes.lock().expect("no panic").remove(name).expect("it runs");
        lifecycle.abort.cancel();
    }

    fn all(&self) -> Vec<CoreNode> {
        self.nodes.lock().expect("no panic").values().map(|(node, _)| node.clone()).collect()
    }

    /// Waits until every partition is served by the node that wins it among those that are alive.
    pub(crate) async fn settled(&self) {
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

    /// They end all at once, for their engines to be used by others.
    pub(crate) async fn end(&self) {
        let nodes = std::mem::take(&mut *self.nodes.lock().expect("no panic"));
        for (_, lifecycle) in nodes.into_values() {
            lifecycle.abort.cancel();
            lifecycle.tracker.close();
            lifecycle.tracker.wait().await;
        }
    }

    /// A channel that the node owns.
    pub(crate) fn channel_of(&self, node: &str) -> ChannelName {
        let node = self.node(node);
        let owned =
            |channel: &ChannelName| node.inner.slots.served(partition_of(channel, PARTITIONS)).is_some();
        (0..).map(|n| name(&format!("room:{n}"))).find(owned).expect("some are")
    }

    pub(crate) fn count(&self, metric: &str) -> u64 {
        let value = |node: CoreNode| {
            let text = text(node.metrics());
            let line = text.lines().find(|line| line.starts_with(metric)).expect("registered");
            line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("a number")
        };
        self.all().into_iter().map(value).sum()
    }

    pub(crate) fn clients(&self, count: usize) -> Clients {
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
    pub(crate) async fn check(&self, ends: &[End]) {
        for (n, end) in ends.iter().enumerate() {
            let channel = name(&format!("room:{n}"));
            let partition = partition_of(&channel, PARTITIONS);
            let mut nodes = self.all().into_iter();
            let owner = nodes.find(|node| node.inner.slots.served(partition).is_some()).expect("owned");
            let history = owner.history(channel, HistoryRange::default()).await.expect("served");
            let last = end.last.as_ref().expect("published");
            assert_eq!(history.position, *last);
            let kept: Vec<_> = history.publications.iter().map(|publication| publication.offset).collect();
            assert_eq!(kept, (1..=end.acknowledged).collect::<Vec<_>>());
        }
    }
}

pub(crate) struct Clients {
    tasks: Vec<JoinHandle<End>>,
    stop: CancellationToken,
    published: Arc<AtomicUsize>,
}

impl Clients {
    /// Waits until a good number more is acknowledged.
    pub(crate) async fn publish_some(&self) {
        let goal = self.published.load(Ordering::Relaxed) + 20 * self.tasks.len();
        until_async(|| async { self.published.load(Ordering::Relaxed) >= goal }).await;
    }

    pub(crate) async fn stop(self) -> Vec<End> {
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
pub(crate) struct End {
    last: Option<Position>,
    acknowledged: u64,
    pub(crate) refused: usize,
    pub(crate) moved: usize,
    pub(crate) cut: usize,
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

pub(crate) async fn until_async<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) {
    let began = clock::now();
    while clock::now() - began < Duration::from_secs(600) {
        if condition().await {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("the condition never held");
}
