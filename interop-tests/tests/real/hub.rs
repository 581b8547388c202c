//! The hub of an edge and the core nodes of a region, over QUIC on the loopback device: nodes come, hand over, leave and
//! crash, and what the workers see of it is nothing. And two edges, that see each other.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use serde_json::Value;
use tidegate_certs::{CertStore, ClusterAuthority, link_client_config, link_server_config};
use tidegate_core::engine::{Engine, MemoryEngine, NodeRecord};
use tidegate_core::{CoreConfig, CoreMetrics, CoreNode, Lifecycle};
use tidegate_edge::policy::admission::AdmissionConfig;
use tidegate_edge::resume::TicketKeys;
use tidegate_edge::{About, Door, HomeRules, Hub, HubConfig, HubMetrics};
use tidegate_interop_tests::wait::{PATIENCE, until, within};
use tidegate_protocol::frame::Payload;
use tidegate_protocol::link::fleet::{RelayError, Relayed};
use tidegate_protocol::link::{CoreFrame, EdgeFrame, HistoryRange, Publish};
use tidegate_protocol::namespace::{Access, Namespace, Namespaces};
use tidegate_protocol::{ChannelName, NodeId, Position, Region};
use tidegate_transport::clock;
use tidegate_transport::link::quic::{ALPN_LINK, LinkConfig, LinkDialer, LinkListener};
use tidegate_transport::link::{Backend as _, EdgeLink};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cores_come_hand_over_leave_and_crash_and_workers_see_every_publication_once() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.join("core-1").await?;
    cluster.join("core-2").await?;
    let (hub, links) = cluster.hub(2)?;
    until("all partitions are linked", || async { hub.is_ready().then_some(()).context("not ready") })
        .await?;

    let delivered = Arc::new(AtomicUsize::new(0));
    let stop = CancellationToken::new();
    let mut workers = JoinSet::new();
    for link in links {
        workers.spawn(work(link, Arc::clone(&delivered), stop.clone()));
    }
    let publisher = Publisher::start(&hub, stop.clone());
    publisher.publish_some().await?;
    cluster.join("core-3").await?;
    publisher.publish_some().await?;
    within(PATIENCE, "core-1 leaves", cluster.node("core-1")?.leave(Duration::from_secs(10))).await?;
    publisher.publish_some().await?;
    cluster.crash("core-2")?;
    publisher.publish_some().await?;
    until("all partitions are linked again", || async { hub.is_ready().then_some(()).context("not ready") })
        .await?;
    let published = publisher.stop().await?;

    // Each worker gets all of it.
    let total: usize = published.values().map(|position| position.offset.0 as usize).sum();
    until("everything is delivered", || async {
        let so_far = delivered.load(Ordering::Relaxed);
        ensure!(so_far >= total * 2, "{so_far} of twice {total}");
        Ok(())
    })
    .await?;
    stop.cancel();
    while let Some(seen) = workers.join_next().await {
        ensure!(seen?? == published, "a worker ends elsewhere");
    }

    let status: Value = serde_json::from_slice(&hub.status().await?)?;
    let eu = &status["regions"]["eu"];
    ensure!(eu["ready"] == true && eu["cores"]["core-3"]["node"] == "core-3", "{status}");
    let owned = eu["partitions"].as_array().context("a list")?;
    ensure!(owned.iter().all(|partition| partition["owner"] == "core-3"), "{status}");
    within(PATIENCE, "the hub ends", hub.shutdown()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_starts_after_its_edges_is_found() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let listener = cluster.listener("core-1")?;
    let address = listener.local_address().to_string();
    cluster.addresses.push(address);
    let (hub, _links) = cluster.hub(1)?;
    let refused = hub.publish(vec![publish(&channel(1))]).await?;
    ensure!(matches!(&refused[..], [Err(_)]), "{refused:?}");
    ensure!(!hub.is_ready());
    cluster.serve("core-1", listener).await?;
    until("it is found", || async { hub.is_ready().then_some(()).context("not ready") }).await?;
    let position = hub.publish(vec![publish(&channel(1))]).await?.remove(0)?.context("durable")?;
    ensure!(hub.history(channel(1), HistoryRange::default()).await?.position == position);
    hub.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edges_know_of_each_other_and_reach_each_other_within_their_allowance() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.join("core-1").await?;
    cluster.join("core-2").await?;
    let names = ["edge-1", "edge-2"].map(NodeId::new);
    let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
    let mut hubs = Vec::new();
    for name in &names {
        let (hub, links) = cluster.hub_of(name.as_str(), 1)?;
        let about = About {
            node: name.clone(),
            region: Region::new("eu"),
            endpoints: vec![format!("quic://{}:4433", name.as_str())],
            rate: 700,
        };
        let door = Door::new(AdmissionConfig::for_rate(700.0), TicketKeys::of(&[1; 32]).shared(), name);
        let (fleet, end) = (hub.fleet().clone(), end.clone());
        tasks.spawn(async move { fleet.run(about, Arc::default(), door, end).await });
        hubs.push((hub, links));
    }
    let [one, two] = [hubs[0].0.fleet(), hubs[1].0.fleet()];
    until("both know both", || async {
        for fleet in [one, two] {
            let view = fleet.view();
            let known: Vec<&NodeId> = view.edges().iter().map(|edge| &edge.state.node).collect();
            ensure!(known.into_iter().eq(&names), "{view:?}");
        }
        Ok(())
    })
    .await?;
    let view = one.view();
    let other = view.get(&names[1]).context("it is there")?;
    ensure!(other.state.endpoints == ["quic://edge-2:4433"] && other.state.slack == 700, "{other:?}");

    let payload = Bytes::from_static(b"lease");
    one.relay(&names[1], payload.clone()).await?;
    let relayed = within(PATIENCE, "it arrives", two.next_relayed()).await?;
    ensure!(relayed == Relayed { from: names[0].clone(), payload: payload.clone() }, "{relayed:?}");
    two.relay(&names[0], payload.clone()).await?;
    ensure!(within(PATIENCE, "its answer does", one.next_relayed()).await?.from == names[1]);
    let nobody = one.relay(&NodeId::new("edge-3"), payload.clone()).await;
    ensure!(nobody == Err(RelayError::NoSuchEdge), "{nobody:?}");
    let mut sent = 0;
    let refused = loop {
        match one.relay(&names[1], payload.clone()).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        ensure!(sent < 50_000, "nothing holds it back");
    };
    ensure!(refused == RelayError::Busy, "{refused:?} after {sent}");
    two.relay(&names[0], payload).await?;

    end.cancel();
    tasks.close();
    tasks.wait().await;
    let left = clock::now();
    within(PATIENCE, "edge-2 leaves", hubs[1].0.shutdown()).await?;
    until("it is gone", || async { one.view().get(&names[1]).is_none().then_some(()).context("there") })
        .await?;
    let took = clock::now() - left;
    ensure!(took < Duration::from_secs(2), "{took:?}");
    hubs[0].0.shutdown().await;
    Ok(())
}

/// A worker's end: subscribes to everything, then follows it; where each channel ends.
async fn work(
    mut link: EdgeLink,
    delivered: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> Result<BTreeMap<ChannelName, Position>> {
    for (request, channel) in (0..).zip(channels()) {
        link.sender.send(EdgeFrame::Subscribe { request, channel, position: None }).await?;
    }
    let names: Vec<ChannelName> = channels().collect();
    let mut at: BTreeMap<ChannelName, Position> = BTreeMap::new();
    let mut frames = Vec::new();
    loop {
        let taken = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(at),
            taken = poll_fn(|cx| link.receiver.poll_recv_many(cx, &mut frames, 64)) => taken,
        };
        ensure!(taken > 0, "the link of a worker never closes");
        for frame in frames.drain(..) {
            match frame {
                CoreFrame::Recovered { request, result } => {
                    // What was published before counts as seen.
                    let position = result?.position;
                    delivered.fetch_add(position.offset.0 as usize, Ordering::Relaxed);
                    at.insert(names[request as usize].clone(), position);
                }
                CoreFrame::Publication(delivery) => {
                    let at = at.get_mut(&delivery.channel).context("before the answer")?;
                    ensure!(delivery.offset == at.offset.next(), "{} after {at:?}", delivery.offset);
                    at.offset = delivery.offset;
                    delivered.fetch_add(1, Ordering::Relaxed);
                }
                frame => bail!("{frame:?}"),
            }
        }
    }
}

/// Publishes on every channel without end.
struct Publisher {
    task: tokio::task::JoinHandle<Result<BTreeMap<ChannelName, Position>>>,
    published: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Publisher {
    fn start(hub: &Hub, stop: CancellationToken) -> Self {
        let published = Arc::new(AtomicUsize::new(0));
        let stop = stop.child_token();
        let task = TaskTracker::new().spawn(publish_all(hub.clone(), Arc::clone(&published), stop.clone()));
        Self { task, published, stop }
    }

    async fn publish_some(&self) -> Result<()> {
        let before = self.published.load(Ordering::Relaxed);
        until("publishes go on", || async {
            let so_far = self.published.load(Ordering::Relaxed);
            ensure!(!self.task.is_finished(), "the publisher failed");
            ensure!(so_far >= before + 20 * CHANNELS, "{} since", so_far - before);
            Ok(())
        })
        .await
    }

    async fn stop(self) -> Result<BTreeMap<ChannelName, Position>> {
        self.stop.cancel();
        self.task.await?
    }
}

async fn publish_all(
    hub: Hub,
    published: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> Result<BTreeMap<ChannelName, Position>> {
    let mut last: BTreeMap<ChannelName, Position> = BTreeMap::new();
    while !stop.is_cancelled() {
        let results = hub.publish(channels().map(|channel| publish(&channel)).collect()).await?;
        for (channel, result) in channels().zip(results) {
            let position = result.with_context(|| format!("on {channel}"))?.context("durable")?;
            if let Some(before) = last.get(&channel) {
                ensure!(before.epoch == position.epoch, "{channel}: {before:?}, then {position:?}");
                ensure!(before.offset.next() == position.offset, "{channel}: {before:?}, then {position:?}");
            }
            last.insert(channel, position);
            published.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(last)
}

struct Cluster {
    authority: ClusterAuthority,
    engine: Arc<dyn Engine>,
    nodes: BTreeMap<String, (CoreNode, Lifecycle)>,
    addresses: Vec<String>,
}

impl Cluster {
    fn new() -> Result<Self> {
        let authority = ClusterAuthority::ephemeral(clock::wall())?;
        let engine = Arc::new(MemoryEngine::with_lease(1, PARTITIONS, 1 << 24, LEASE));
        Ok(Self { authority, engine, nodes: BTreeMap::new(), addresses: Vec::new() })
    }

    fn store(&self, node: &str) -> Result<Arc<CertStore>> {
        let day = Duration::from_secs(24 * 60 * 60);
        let certificate = self.authority.issue(node, &[], day, clock::wall())?;
        Ok(Arc::new(CertStore::fixed(certificate.certificate())))
    }

    fn listener(&self, node: &str) -> Result<LinkListener> {
        let tls = link_server_config(self.store(node)?, self.authority.roots()?, &[ALPN_LINK])?;
        Ok(LinkListener::bind("127.0.0.1:0".parse()?, Arc::new(tls), LinkConfig::default())?)
    }

    async fn join(&mut self, name: &str) -> Result<()> {
        let listener = self.listener(name)?;
        self.addresses.push(listener.local_address().to_string());
        self.serve(name, listener).await
    }

    async fn serve(&mut self, name: &str, listener: LinkListener) -> Result<()> {
        let open = Namespace { publish: Access::Anyone, subscribe: Access::Anyone, ..Namespace::default() };
        let namespaces = Arc::new(Namespaces::new(open, BTreeMap::new(), false));
        let lifecycle = Lifecycle {
            tracker: TaskTracker::new(),
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        let record = NodeRecord {
            id: NodeId::new(name),
            address: listener.local_address().to_string(),
            version: "0".to_owned(),
            started_ms: 0,
            declines: Vec::new(),
        };
        let config = CoreConfig { partitions: PARTITIONS, ..CoreConfig::default() };
        let (engine, metrics) = (Arc::clone(&self.engine), CoreMetrics::new());
        let node = CoreNode::join(config, engine, namespaces, metrics, lifecycle.clone(), record).await?;
        node.serve_links(listener, Region::new("eu"));
        self.nodes.insert(name.to_owned(), (node, lifecycle));
        Ok(())
    }

    fn node(&self, name: &str) -> Result<&CoreNode> {
        self.nodes.get(name).map(|(node, _)| node).ok_or_else(|| anyhow!("{name} is not there"))
    }

    fn crash(&mut self, name: &str) -> Result<()> {
        let (_, lifecycle) = self.nodes.remove(name).with_context(|| format!("{name} is not there"))?;
        lifecycle.abort.cancel();
        Ok(())
    }

    /// The hub of `edge-1`.
    fn hub(&self, workers: usize) -> Result<(Hub, Vec<EdgeLink>)> {
        self.hub_of("edge-1", workers)
    }

    /// An edge's hub that knows the first node's address alone.
    fn hub_of(&self, name: &str, workers: usize) -> Result<(Hub, Vec<EdgeLink>)> {
        let tls = link_client_config(self.store(name)?, self.authority.roots()?, &[ALPN_LINK])?;
        let dialer = LinkDialer::new(Arc::new(tls), LinkConfig::default())?;
        let eu = Region::new("eu");
        let regions = BTreeMap::from([(eu.clone(), self.addresses[..1].to_vec())]);
        let config = HubConfig::new(NodeId::new(name), eu.clone(), HomeRules::new(eu), regions, workers);
        Ok(Hub::start(config, Arc::new(dialer), Arc::new(HubMetrics::default()))?)
    }
}

fn channel(n: usize) -> ChannelName {
    ChannelName::new(&format!("room:{n}")).expect("valid")
}

fn channels() -> impl Iterator<Item = ChannelName> {
    (0..CHANNELS).map(channel)
}

fn publish(channel: &ChannelName) -> Publish {
    let payload = Payload::Json(Bytes::from_static(b"{\"n\":1}"));
    Publish { channel: channel.clone(), payload, key: None, user: None, ephemeral: false }
}

const PARTITIONS: u16 = 8;
const CHANNELS: usize = 30;
const LEASE: Duration = Duration::from_millis(1500);
