//! The hub on one thread, with time that passes only where everybody waits, and cores in memory.

use std::collections::BTreeSet;
use std::future::poll_fn;

use serde_json::Value;
use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::frame::{Payload, Publication, ServerBody};
use tidegate_protocol::link::fleet::{EdgeCondition, EdgeState, FleetEntry, RelayError, Relayed};
use tidegate_protocol::link::{Delivery, Directory, DirectoryNode, DirectoryPartition, Welcome};
use tidegate_protocol::{Epoch, Offset};
use tidegate_transport::link::{CoreLink, LinkSender};
use tokio::task::LocalSet;

use super::*;
use crate::policy::admission::AdmissionConfig;
use crate::resume::TicketKeys;
use crate::{About, Door, FleetWatch};

/// A cluster whose cores share one log.
#[derive(Debug, Clone)]
struct Cluster(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    directory: watch::Sender<Arc<Directory>>,
    channels: BTreeMap<ChannelName, Vec<Publication>>,
    keys: Vec<Option<String>>,
    links: Vec<CoreEnd>,
    /// Cut: connections to each core.
    alive: BTreeMap<NodeId, CancellationToken>,
    /// What the edge said of itself, over all connections.
    heard: Vec<EdgeState>,
    fleet: watch::Sender<Arc<Vec<FleetEntry>>>,
    relay: mpsc::Sender<Relayed>,
    relayed: Arc<tokio::sync::Mutex<mpsc::Receiver<Relayed>>>,
}

#[derive(Debug)]
struct CoreEnd {
    sender: Arc<dyn LinkSender<CoreFrame>>,
    interest: BTreeSet<ChannelName>,
    cut: CancellationToken,
}

const PARTITIONS: u16 = 2;

impl Cluster {
    fn new(owner: &str) -> Self {
        let nodes = ["core-1", "core-2"].map(NodeId::new);
        let alive = nodes.map(|node| (node, CancellationToken::new())).into();
        let (directory, _) = watch::channel(Arc::new(owned_by(owner, 1)));
        let (relay, relayed) = mpsc::channel(8);
        Self(Arc::new(Mutex::new(State {
            directory,
            channels: BTreeMap::new(),
            keys: Vec::new(),
            links: Vec::new(),
            alive,
            heard: Vec::new(),
            fleet: watch::Sender::default(),
            relay,
            relayed: Arc::new(tokio::sync::Mutex::new(relayed)),
        })))
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().expect("no test panics with it"))
    }

    /// A core dies, and another one has everything.
    fn fail_over(&self, from: &str, to: &str, term: u64) {
        self.with(|state| {
            state.alive[&NodeId::new(from)].cancel();
            state.links.iter_mut().for_each(|link| link.interest.clear());
            state.directory.send_replace(Arc::new(owned_by(to, term)));
        });
    }

    fn publish(&self, channel: &ChannelName, text: &str) {
        self.with(|state| state.publish(channel, text));
    }
}

impl State {
    fn publish(&mut self, channel: &ChannelName, text: &str) {
        let stored = self.channels.entry(channel.clone()).or_default();
        let publication = Publication {
            channel: channel.as_str().to_owned(),
            offset: stored.len() as u64 + 1,
            data: Some(Bytes::from(text.to_owned())),
            data_base64: None,
            user: None,
            time_ms: 0,
        };
        stored.push(publication.clone());
        let offset = Offset(publication.offset);
        let frame = Arc::new(SharedFrame::new(ServerBody::Publication(publication)));
        for link in self.links.iter().filter(|link| link.interest.contains(channel)) {
            let delivery = Delivery { channel: channel.clone(), offset, frame: Arc::clone(&frame) };
            let _ = link.sender.try_send(CoreFrame::Publication(delivery));
        }
    }

    fn answer(&mut self, link: usize, frame: EdgeFrame) {
        let head = |channels: &BTreeMap<ChannelName, Vec<Publication>>, channel: &ChannelName| {
            Position::new(Epoch::new("e"), Offset(channels.get(channel).map_or(0, Vec::len) as u64))
        };
        let answer = match frame {
            EdgeFrame::Subscribe { request, channel, position } => {
                self.links[link].interest.insert(channel.clone());
                let after = position.as_ref().map_or(u64::MAX, |position| position.offset.0);
                let stored = self.channels.get(&channel).into_iter().flatten();
                let publications = stored.filter(|p| p.offset > after).cloned().collect();
                let (position, recovered) = (head(&self.channels, &channel), after != u64::MAX);
                CoreFrame::Recovered { request, result: Ok(Recovery { position, recovered, publications }) }
            }
            EdgeFrame::Unsubscribe { channel } => {
                self.links[link].interest.remove(&channel);
                return;
            }
            EdgeFrame::Publish { request, publish } => {
                let Payload::Json(text) = &publish.payload else { panic!("JSON") };
                if &text[..] == LAST_WORDS {
                    // The edge hears of the end before it reads what came first.
                    self.alive.values().for_each(CancellationToken::cancel);
                }
                self.keys.push(publish.key.clone());
                self.publish(&publish.channel, std::str::from_utf8(text).expect("UTF-8"));
                let position = head(&self.channels, &publish.channel);
                CoreFrame::Published { request, result: Ok(Some(position)) }
            }
            EdgeFrame::History { request, channel, .. } => {
                let publications = self.channels.get(&channel).cloned().unwrap_or_default();
                let position = head(&self.channels, &channel);
                let result = Ok(Recovery { position, recovered: false, publications });
                CoreFrame::Recovered { request, result }
            }
            EdgeFrame::Members { request, .. } => {
                CoreFrame::Members { request, result: Ok(Members { sessions: 7, ..Members::default() }) }
            }
            frame => panic!("{frame:?}"),
        };
        let _ = self.links[link].sender.try_send(answer);
    }
}

fn owned_by(owner: &str, term: u64) -> Directory {
    let node = |name: &str| DirectoryNode { id: NodeId::new(name), address: Arc::from(format!("{name}:1")) };
    let partition = DirectoryPartition { owner: Some(NodeId::new(owner)), term };
    Directory {
        nodes: vec![node("core-1"), node("core-2")],
        partitions: vec![partition; usize::from(PARTITIONS)],
    }
}

#[derive(Debug)]
struct Connected {
    cluster: Cluster,
    welcome: Welcome,
    directories: tokio::sync::Mutex<watch::Receiver<Arc<Directory>>>,
    fleet: tokio::sync::Mutex<watch::Receiver<Arc<Vec<FleetEntry>>>>,
    relayed: Arc<tokio::sync::Mutex<mpsc::Receiver<Relayed>>>,
    over: CancellationToken,
}

impl Dialer for Cluster {
    fn dial(&self, address: Arc<str>, hello: Hello) -> UplinkFuture<'_, Result<Arc<dyn Uplink>, String>> {
        Box::pin(async move {
            assert_eq!(hello.node, NodeId::new("edge-1"));
            let node = NodeId::new(address.split(':').next().expect("host:port"));
            let (over, mut directories, mut fleet, relayed) = self.with(|state| {
                let alive = state.alive.get(&node).filter(|alive| !alive.is_cancelled()).cloned();
                let (directory, fleet) = (state.directory.subscribe(), state.fleet.subscribe());
                (alive, directory, fleet, Arc::clone(&state.relayed))
            });
            let over = over.ok_or("nobody is there")?;
            directories.mark_changed();
            fleet.mark_changed();
            let welcome = Welcome { version: 1, node, region: Region::new("eu"), partitions: PARTITIONS };
            let (directories, fleet) = (tokio::sync::Mutex::new(directories), tokio::sync::Mutex::new(fleet));
            let cluster = self.clone();
            let connected = Connected { cluster, welcome, directories, fleet, relayed, over };
            Ok(Arc::new(connected) as Arc<dyn Uplink>)
        })
    }
}

impl Uplink for Connected {
    fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    fn open(&self, partition: u16) -> UplinkFuture<'_, Result<OpenedLink, OpenFailure>> {
        Box::pin(async move {
            let owner = self.cluster.with(|state| {
                let directory = state.directory.borrow();
                directory.partitions[usize::from(partition)].clone()
            });
            if owner.owner.as_ref() != Some(&self.welcome.node) {
                return Err(OpenFailure::NotOwner);
            }
            let (edge, core) = memory(64);
            tokio::task::spawn_local(serve(self.cluster.clone(), core, self.over.child_token()));
            Ok(OpenedLink { term: owner.term, link: edge })
        })
    }

    fn next_directory(&self) -> UplinkFuture<'_, Option<Arc<Directory>>> {
        Box::pin(async {
            let mut directories = self.directories.lock().await;
            directories.changed().await.ok()?;
            Some(Arc::clone(&directories.borrow_and_update()))
        })
    }

    fn ask(&self, what: Bytes) -> UplinkFuture<'_, Option<Bytes>> {
        let is_status = what.as_ref() == b"status";
        assert!(is_status || what.is_empty(), "{what:?}");
        Box::pin(async move { is_status.then(|| Bytes::from_static(br#"{"version":"9"}"#)) })
    }

    fn announce(&self, state: EdgeState) -> UplinkFuture<'_, ()> {
        self.cluster.with(|cluster| cluster.heard.push(state));
        Box::pin(async {})
    }

    fn next_fleet(&self) -> UplinkFuture<'_, Option<Arc<Vec<FleetEntry>>>> {
        Box::pin(async {
            let mut fleet = self.fleet.lock().await;
            fleet.changed().await.ok()?;
            Some(Arc::clone(&fleet.borrow_and_update()))
        })
    }

    /// The other edge sends everything back.
    fn relay(&self, to: NodeId, payload: Bytes) -> UplinkFuture<'_, Result<(), RelayError>> {
        let sent = self.cluster.with(|cluster| {
            let is_known = cluster.fleet.borrow().iter().any(|entry| entry.state.node == to);
            let relayed = is_known.then_some(Relayed { from: to, payload }).ok_or(RelayError::NoSuchEdge)?;
            cluster.relay.try_send(relayed).map_err(|_| RelayError::Busy)
        });
        Box::pin(async move { sent })
    }

    fn next_relayed(&self) -> UplinkFuture<'_, Option<Relayed>> {
        Box::pin(async { self.relayed.lock().await.recv().await })
    }

    fn closed(&self) -> UplinkFuture<'_, String> {
        Box::pin(async {
            self.over.cancelled().await;
            "it died".to_owned()
        })
    }

    fn close(&self, _reason: &str) {}
}

async fn serve(cluster: Cluster, link: CoreLink, cut: CancellationToken) {
    let index = cluster.with(|state| {
        let interest = BTreeSet::new();
        state.links.push(CoreEnd { sender: link.sender, interest, cut: cut.clone() });
        state.links.len() - 1
    });
    let mut receiver = link.receiver;
    let mut frames = Vec::new();
    loop {
        let taken = tokio::select! {
            biased;
            () = cut.cancelled() => 0,
            taken = poll_fn(|cx| receiver.poll_recv_many(cx, &mut frames, 16)) => taken,
        };
        if taken == 0 {
            break;
        }
        frames.drain(..).for_each(|frame| cluster.with(|state| state.answer(index, frame)));
    }
    // The edge sees the end of its receiver once nothing sends to it.
    cluster.with(|state| {
        state.links[index].interest.clear();
        state.links[index].sender = memory(1).1.sender;
    });
}

struct Bench {
    cluster: Cluster,
    hub: Hub,
    workers: Vec<EdgeLink>,
    metrics: Arc<HubMetrics>,
}

fn simulate(change: impl FnOnce(&mut HubConfig), scenario: impl AsyncFnOnce(&mut Bench)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let cluster = Cluster::new("core-1");
        let eu = Region::new("eu");
        let regions = BTreeMap::from([(eu.clone(), vec!["core-1:1".to_owned()])]);
        let mut config = HubConfig::new(NodeId::new("edge-1"), eu.clone(), HomeRules::new(eu), regions, 2);
        change(&mut config);
        let metrics = Arc::new(HubMetrics::default());
        let dialer = Arc::new(cluster.clone());
        let (hub, workers, runner, ended) =
            Hub::build(config, dialer, Arc::clone(&metrics)).expect("a good configuration");
        tokio::task::spawn_local(async move {
            runner.run().await;
            ended.send_replace(true);
        });
        let mut bench = Bench { cluster, hub, workers, metrics };
        scenario(&mut bench).await;
        bench.hub.shutdown().await;
        for worker in &mut bench.workers {
            let mut rest = Vec::new();
            while poll_fn(|cx| worker.receiver.poll_recv_many(cx, &mut rest, 100)).await > 0 {}
        }
    });
}

impl Bench {
    async fn send(&self, worker: usize, frame: EdgeFrame) {
        self.workers[worker].sender.send(frame).await.expect("the hub is there");
    }

    async fn next(&mut self, worker: usize) -> CoreFrame {
        let mut frames = Vec::new();
        let receiver = &mut self.workers[worker].receiver;
        assert_eq!(poll_fn(|cx| receiver.poll_recv_many(cx, &mut frames, 1)).await, 1, "the link is over");
        frames.remove(0)
    }

    async fn subscribe(&mut self, worker: usize, channel: &ChannelName) -> Position {
        self.send(worker, EdgeFrame::Subscribe { request: 5, channel: channel.clone(), position: None })
            .await;
        match self.next(worker).await {
            CoreFrame::Recovered { request: 5, result: Ok(recovery) } => recovery.position,
            frame => panic!("{frame:?}"),
        }
    }

    async fn publication(&mut self, worker: usize) -> (u64, String) {
        match self.next(worker).await {
            CoreFrame::Publication(delivery) => {
                let Some(ServerBody::Publication(publication)) = &delivery.frame.frame().body else {
                    panic!("no publication")
                };
                let data = publication.data.clone().expect("JSON");
                (delivery.offset.0, String::from_utf8(data.to_vec()).expect("UTF-8"))
            }
            frame => panic!("{frame:?}"),
        }
    }
}

/// A core that is told this answers and dies.
const LAST_WORDS: &[u8] = b"\"farewell\"";

fn channel() -> ChannelName {
    ChannelName::new("room:1").expect("valid")
}

fn publish(channel: ChannelName, text: &'static str) -> Publish {
    let payload = Payload::Json(Bytes::from_static(text.as_bytes()));
    Publish { channel, payload, key: None, user: None, ephemeral: false }
}

/// Metrics as they are scraped.
fn scrape(metrics: &HubMetrics) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("into memory");
    text
}

#[test]
fn workers_and_the_backend_share_one_interest() {
    simulate(
        |_| {},
        async |bench| {
            assert!(!bench.hub.is_ready());
            bench.subscribe(0, &channel()).await;
            bench.subscribe(1, &channel()).await;
            let results = bench.hub.publish(vec![publish(channel(), "1")]).await.expect("taken");
            assert_eq!(results, [Ok(Some(Position::new(Epoch::new("e"), Offset(1))))]);
            assert_eq!(bench.publication(0).await, (1, "1".to_owned()));
            assert_eq!(bench.publication(1).await, (1, "1".to_owned()));
            let keys = bench.cluster.with(|state| state.keys.clone());
            assert!(matches!(&keys[..], [Some(key)] if key.len() == 32), "a key of its own: {keys:?}");
            let interested =
                bench.cluster.with(|state| state.links.iter().map(|link| link.interest.len()).sum::<usize>());
            assert_eq!(interested, 1, "one copy for all workers");
            let history = bench.hub.history(channel(), HistoryRange::default()).await.expect("read");
            assert_eq!(history.publications.len(), 1);
            assert_eq!(bench.hub.members(channel()).await.expect("asked").sessions, 7);
            assert!(bench.hub.is_ready());
        },
    );
}

#[test]
fn what_a_core_said_before_it_was_lost_counts() {
    simulate(
        |_| {},
        async |bench| {
            bench.subscribe(0, &channel()).await;
            let publish = publish(channel(), std::str::from_utf8(LAST_WORDS).expect("ASCII"));
            // Without a key: nobody would send it again.
            bench.send(0, EdgeFrame::Publish { request: 7, publish }).await;
            assert_eq!(bench.publication(0).await.0, 1);
            match bench.next(0).await {
                CoreFrame::Published { request: 7, result: Ok(Some(position)) } => {
                    assert_eq!(position.offset, Offset(1));
                }
                frame => panic!("{frame:?}"),
            }
        },
    );
}

#[test]
fn another_owner_is_found_and_nothing_is_missed() {
    simulate(
        |_| {},
        async |bench| {
            bench.subscribe(0, &channel()).await;
            bench.cluster.publish(&channel(), "1");
            assert_eq!(bench.publication(0).await, (1, "1".to_owned()));
            bench.cluster.fail_over("core-1", "core-2", 2);
            bench.cluster.publish(&channel(), "2");
            // A question meanwhile waits.
            bench.send(1, EdgeFrame::Publish { request: 8, publish: publish(channel(), "3") }).await;
            // The directory that named the other core may be lost with the first one: it dials again, in vain, and waits.
            bench.cluster.with(|state| {
                state.alive.insert(NodeId::new("core-1"), CancellationToken::new());
            });
            assert_eq!(bench.publication(0).await, (2, "2".to_owned()));
            assert_eq!(bench.publication(0).await, (3, "3".to_owned()));
            match bench.next(1).await {
                CoreFrame::Published { request: 8, result: Ok(Some(position)) } => {
                    assert_eq!(position.offset, Offset(3));
                }
                frame => panic!("{frame:?}"),
            }
            let text = scrape(&bench.metrics);
            assert!(text.contains("tidegate_edge_core_resubscriptions_total 1\n"), "{text}");
            assert!(text.contains("tidegate_edge_core_filled_publications_total 1\n"), "{text}");
            // The other partition's link may still be opening.
            let linked = async {
                while !scrape(&bench.metrics).contains("tidegate_edge_core_links{region=\"eu\"} 2\n") {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), linked).await.expect("soon");
        },
    );
}

#[test]
fn a_request_without_an_owner_is_answered_in_time() {
    simulate(
        |_| {},
        async |bench| {
            bench.cluster.with(|state| state.alive[&NodeId::new("core-1")].cancel());
            let before = clock::now();
            bench.send(0, EdgeFrame::Publish { request: 3, publish: publish(channel(), "1") }).await;
            let CoreFrame::Published { request: 3, result: Err(error) } = bench.next(0).await else {
                panic!("another answer")
            };
            assert_eq!(error.code, ErrorCode::Unavailable);
            let waited = clock::now() - before;
            assert!(waited >= Duration::from_secs(5) && waited < Duration::from_secs(6), "{waited:?}");
            assert!(!bench.hub.is_ready());
        },
    );
}

#[test]
fn a_worker_that_does_not_read_stops_nobody_and_misses_nothing() {
    let tight = |config: &mut HubConfig| {
        config.link_queue = 4;
        config.worker_queue = 2000;
    };
    simulate(tight, async |bench| {
        bench.subscribe(0, &channel()).await;
        bench.subscribe(1, &channel()).await;
        for n in 1..=200 {
            bench.cluster.publish(&channel(), &n.to_string());
            assert_eq!(bench.publication(0).await.0, n);
        }
        let text = scrape(&bench.metrics);
        assert!(text.contains("tidegate_edge_core_parked_channels_total 1\n"), "{text}");
        for n in 1..=200 {
            assert_eq!(bench.publication(1).await, (n, n.to_string()));
        }
        bench.cluster.publish(&channel(), "201");
        assert_eq!(bench.publication(1).await.0, 201);
    });
}

#[test]
fn the_status_names_regions_cores_and_partitions() {
    simulate(
        |_| {},
        async |bench| {
            bench.subscribe(0, &channel()).await;
            let status: Value =
                serde_json::from_slice(&bench.hub.status().await.expect("there")).expect("JSON");
            assert_eq!(status["ready"], true);
            let eu = &status["regions"]["eu"];
            assert_eq!(eu["cores"]["core-1"]["version"], "9", "{status}");
            assert_eq!(eu["links"][0]["partitions"], 2);
            assert_eq!(eu["partitions"][1]["owner"], "core-1");
            let cut = bench.cluster.with(|state| state.links.iter().all(|link| !link.cut.is_cancelled()));
            assert!(cut);
        },
    );
}

#[test]
fn the_hub_tells_cores_of_this_edge_and_this_edge_of_others() {
    simulate(
        |_| {},
        async |bench| {
            let fleet = bench.hub.fleet().clone();
            let about = About {
                node: NodeId::new("edge-1"),
                region: Region::new("eu"),
                endpoints: Vec::new(),
                rate: 100,
            };
            let keys = TicketKeys::random(&mut clock::rng());
            let door = Door::new(AdmissionConfig::for_rate(100.0), keys.shared(), &about.node);
            let end = CancellationToken::new();
            let running = {
                let (fleet, end) = (fleet.clone(), end.clone());
                async move { fleet.run(about, Arc::default(), door, end).await }
            };
            let running = tokio::task::spawn_local(running);
            let mut watch = fleet.watch();
            let until = async |watch: &mut FleetWatch, names: &[&str]| loop {
                let view = watch.current();
                if view.edges().iter().map(|edge| edge.state.node.as_str()).eq(names.iter().copied()) {
                    return view;
                }
                watch.changed().await.expect("it is there");
            };
            until(&mut watch, &["edge-1"]).await;
            let (to, nothing) = (NodeId::new("edge-2"), Bytes::from_static(b"x"));
            assert_eq!(fleet.relay(&to, nothing.clone()).await, Err(RelayError::NoSuchEdge));
            let other = EdgeState {
                node: to.clone(),
                region: Region::new("us"),
                endpoints: Vec::new(),
                sessions: 7,
                rate: 50,
                slack: 20,
                condition: EdgeCondition::Serve,
                started_unix_ms: 1,
                sequence: 9,
            };
            let entry = FleetEntry { state: other, age: Duration::from_millis(500) };
            bench.cluster.with(|state| state.fleet.send_replace(Arc::new(vec![entry.clone()])));
            let view = until(&mut watch, &["edge-1", "edge-2"]).await;
            let known = view.get(&to).expect("known");
            assert_eq!((known.state.sessions, known.state.slack), (7, 20));
            assert_eq!(view.entries(clock::now())[1], entry);
            assert_eq!(fleet.relay(&to, nothing.clone()).await, Ok(()));
            assert_eq!(fleet.next_relayed().await, Relayed { from: to.clone(), payload: nothing.clone() });

            // Every core that comes is told at once, and all of them when something changes.
            let before = clock::now();
            bench.cluster.fail_over("core-1", "core-2", 2);
            fleet.set_condition(EdgeCondition::Drain { drain: 3 });
            let drains = |state: &EdgeState| state.condition == EdgeCondition::Drain { drain: 3 };
            while !bench.cluster.with(|state| state.heard.iter().any(drains)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(clock::now() - before < Duration::from_secs(1));
            // Whom nobody speaks of any more is forgotten.
            until(&mut watch, &["edge-1"]).await;
            let waited = clock::now() - before;
            assert!((4_000..6_000).contains(&waited.as_millis()), "{waited:?}");

            end.cancel();
            running.await.expect("it ends");
            bench.hub.shutdown().await;
            let (last, sequences) = bench.cluster.with(|state| {
                let sequences: Vec<u64> = state.heard.iter().map(|state| state.sequence).collect();
                (state.heard.last().cloned().expect("said"), sequences)
            });
            assert_eq!((last.condition, last.slack), (EdgeCondition::Leave, 0));
            assert!(sequences.iter().all(|said| *said <= last.sequence), "{sequences:?}");
            assert!(fleet.view().edges().is_empty());
        },
    );
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let start = |home: &str, cores: Vec<String>, workers: usize| {
        let regions = BTreeMap::from([(Region::new("eu"), cores)]);
        let home = HomeRules::new(Region::new(home));
        let config = HubConfig::new(NodeId::new("edge-1"), Region::new("eu"), home, regions, workers);
        Hub::build(config, Arc::new(Cluster::new("core-1")), Arc::default()).map(|_| ()).expect_err("refused")
    };
    let one = || vec!["core-1:1".to_owned()];
    assert!(matches!(start("us", one(), 1), HubError::UnknownRegion(region) if region == "us"));
    assert!(matches!(start("eu", Vec::new(), 1), HubError::NoCores(region) if region == "eu"));
    assert!(matches!(start("eu", one(), 0), HubError::Workers { workers: 0 }));
}
