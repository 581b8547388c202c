//! A worker on a [`LocalSet`], a core that the test plays, and connections that it plays as well.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_fallback::http::OriginPolicy;
use tidegate_protocol::frame::codec::decode_message;
use tidegate_protocol::frame::shared::{Framing, SharedFrame};
use tidegate_protocol::frame::{
    ClientBody, ClientFrame, Connect, Connected, Ephemeral, Publication, Publish, ServerBody, ServerFrame,
    Subscribe, Unsubscribe,
};
use tidegate_protocol::grants::Identity;
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame, Recovery};
use tidegate_protocol::namespace::{Access, Namespace, Namespaces};
use tidegate_protocol::session::resume::{Bounds, SpentTable};
use tidegate_protocol::{ChannelName, Epoch, NodeId, Offset, Position, Region};
use tidegate_transport::link::{CoreLink, memory};
use tidegate_transport::{
    Closing, Connection, Inbound, Lane, PathStats, RecvError, Sent, TransportKind, clock,
};
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::auth::{AuthConfig, Authenticator};
use crate::config::{Config, Limits, Resume};
use crate::connection;
use crate::door::Door;
use crate::metrics::Metrics;
use crate::plans::Plans;
use crate::policy::admission::AdmissionConfig;
use crate::resume::TicketKeys;
use crate::upstream::{self, Upstream};
use crate::worker::{Shared, Worker};

/// Runs a scenario on one thread, with time that passes only where everybody waits; then nothing may be left.
pub(super) fn simulate(limits: Limits, scenario: impl AsyncFnOnce(&mut Bench)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let mut bench = Bench::new(limits);
        scenario(&mut bench).await;
        bench.end().await;
    });
}

/// Waits for something that takes no time.
pub(super) async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..PATIENCE {
        if holds() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it does not come to be");
}

/// Lets everybody do what there is to do now.
pub(super) async fn settle() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

pub(super) struct Bench {
    worker: Rc<Worker>,
    core: Option<CoreLink>,
    pending: VecDeque<EdgeFrame>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let open = Namespace { publish: Access::Anyone, subscribe: Access::Anyone, ..Namespace::default() };
        let named = BTreeMap::from([
            ("latest".to_owned(), Namespace { conflate: true, ..open.clone() }),
            ("open".to_owned(), Namespace { presence: Some(Access::Anyone), ..open.clone() }),
        ]);
        let config = Config {
            node: NodeId::new("edge-1"),
            region: Region::new("here"),
            workers: NonZeroUsize::MIN,
            quic: None,
            tls: None,
            plain: None,
            http3: None,
            alternatives: Vec::new(),
            namespaces: Namespaces::new(open, named, false),
            anonymous: true,
            resume: Some(Resume::default()),
            admission: AdmissionConfig::for_rate(1e6),
            limits,
        };
        let auth = AuthConfig {
            keys: Vec::new(),
            jwks_files: Vec::new(),
            issuer: None,
            audience: None,
            leeway: Duration::ZERO,
            max_token_bytes: 1024,
            max_subscriptions: 16,
        };
        let tickets = Arc::new(TicketKeys::random(&mut clock::rng()));
        let shared = Shared {
            door: Door::new(config.admission.clone(), tickets.shared(), &config.node),
            settings: Arc::new(crate::node::settings(&config)),
            config,
            authenticator: Arc::new(Authenticator::new(auth).expect("no keys to be wrong")),
            tickets,
            plans: Plans::new(NodeId::new("edge-1"), Vec::new(), clock::rng()),
            spent: Mutex::new(SpentTable::new(Bounds { sessions: 2 })),
            origins: OriginPolicy::default(),
            routes: None,
            alt_svc: None,
            metrics: Arc::new(Metrics::default()),
            connections: Arc::new(AtomicUsize::new(0)),
            workers: Vec::new(),
            open: CancellationToken::new(),
            handed_over: CancellationToken::new(),
            drain: CancellationToken::new(),
            long_polls: tokio::sync::watch::Sender::new(0),
        };
        let (edge, core) = memory(4096);
        let worker = Rc::new(Worker::new(0, Arc::new(shared)));
        worker.attach(Upstream::new(Arc::clone(&edge.sender)));
        let pushing = Rc::clone(&worker);
        let tasks = vec![
            tokio::task::spawn_local(upstream::receive(Rc::clone(&worker), edge)),
            tokio::task::spawn_local(async move { pushing.upstream().run().await }),
        ];
        Self { worker, core: Some(core), pending: VecDeque::new(), tasks }
    }

    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    pub(super) fn metrics(&self) -> &Metrics {
        self.worker.metrics()
    }

    pub(super) fn now(&self) -> Instant {
        clock::now()
    }

    /// A client that has said nothing yet.
    pub(super) fn connect(&self, kind: TransportKind) -> Client {
        self.begin(kind, None)
    }

    /// One whose token names server-side subscriptions.
    pub(super) fn connect_as(&self, kind: TransportKind, channels: &[&str]) -> Client {
        let subscriptions = channels.iter().map(|name| channel(name)).collect();
        self.begin(kind, Some(Identity { subscriptions, ..Identity::default() }))
    }

    /// One whose session is open.
    pub(super) async fn open(&self, kind: TransportKind) -> Client {
        let client = self.connect(kind);
        client.hello();
        until(|| client.replied(1)).await;
        client.forget();
        client
    }

    fn begin(&self, kind: TransportKind, identity: Option<Identity>) -> Client {
        let wire = Rc::new(RefCell::new(Wire::new(kind)));
        let connection = Box::new(Scripted(Rc::clone(&wire)));
        // One that was let in just before the node began to end has its place too.
        let admitted = crate::worker::Admitted::uncounted();
        let visitor = self.worker.shared().door.visitor(std::net::Ipv4Addr::LOCALHOST.into());
        let entrance = connection::Entrance::Asks(visitor);
        let id = self.worker.new_session_id();
        connection::start(&self.worker, id, connection, identity, admitted, entrance);
        Client { wire }
    }

    pub(super) fn send(&self, frame: CoreFrame) {
        self.core.as_ref().expect("a core").sender.try_send(frame).expect("room on the link");
    }

    pub(super) fn rebase(&self, name: &str, epoch: &str, offset: u64) {
        let position = Position::new(Epoch::new(epoch), Offset(offset));
        self.send(CoreFrame::Rebased { channel: channel(name), position });
    }

    pub(super) fn publish(&self, name: &str, offset: u64) {
        let frame = Arc::new(SharedFrame::new(ServerBody::Publication(publication(name, offset))));
        self.send(CoreFrame::Publication(Delivery { channel: channel(name), offset: Offset(offset), frame }));
    }

    /// What the core is asked next, if it is asked at all before everybody waits.
    pub(super) async fn try_next(&mut self) -> Option<EdgeFrame> {
        let receiver = &mut self.core.as_mut().expect("a core").receiver;
        for _ in 0..100 {
            if let Some(frame) = self.pending.pop_front() {
                return Some(frame);
            }
            let mut frames = Vec::new();
            let received = poll_fn(|cx| Poll::Ready(receiver.poll_recv_many(cx, &mut frames, 64))).await;
            assert_ne!(received, Poll::Ready(0), "the edge hung up");
            self.pending.extend(frames);
            if self.pending.is_empty() {
                tokio::task::yield_now().await;
            }
        }
        None
    }

    pub(super) async fn expect_silence(&mut self) {
        if let Some(frame) = self.try_next().await {
            panic!("the core is asked {frame:?}");
        }
    }

    /// The request and position of the next question about a channel; it must be the next thing asked.
    pub(super) async fn subscribe_question(&mut self) -> (u64, (ChannelName, Option<Position>)) {
        match self.try_next().await {
            Some(EdgeFrame::Subscribe { request, channel, position }) => (request, (channel, position)),
            other => panic!("no subscribe but {other:?}"),
        }
    }

    /// As [`Bench::subscribe_question`]; answered by [`Bench::answer_with`].
    pub(super) async fn subscribe_frame(&mut self) -> (ChannelName, Option<Position>) {
        self.try_subscribe_frame().await.expect("a subscribe")
    }

    pub(super) async fn try_subscribe_frame(&mut self) -> Option<(ChannelName, Option<Position>)> {
        let frame = self.try_next().await?;
        let EdgeFrame::Subscribe { channel, position, .. } = &frame else {
            panic!("no subscribe: {frame:?}")
        };
        let asked = (channel.clone(), position.clone());
        self.pending.push_front(frame);
        Some(asked)
    }

    /// Answers the question that was looked at last.
    pub(super) async fn answer_with(&mut self, recovery: Recovery) {
        let (request, _) = self.subscribe_question().await;
        self.send(CoreFrame::Recovered { request, result: Ok(recovery) });
    }

    /// Waits for a question about a channel and answers it.
    pub(super) async fn answer(&mut self, recovery: Recovery) {
        loop {
            match self.try_next().await {
                Some(EdgeFrame::Subscribe { request, .. }) => {
                    return self.send(CoreFrame::Recovered { request, result: Ok(recovery) });
                }
                Some(EdgeFrame::Unsubscribe { .. }) => {}
                other => panic!("no subscribe but {other:?}"),
            }
        }
    }

    pub(super) fn lose_core(&mut self) {
        self.core = None;
    }

    /// Waits until every session is gone and nothing of them is left.
    pub(super) async fn assert_empty(&self) {
        let background = self.tasks.len();
        // Itself, and what the link's two tasks hold until they end.
        until(|| Rc::strong_count(&self.worker) <= 1 + background).await;
        let metrics = self.metrics();
        assert_eq!(metrics.connections.each_ref().map(|gauge| gauge.get()), [0; TransportKind::ALL.len()]);
        assert_eq!(metrics.subscriptions.get(), 0);
        assert_eq!(metrics.queue_bytes.get(), 0);
        assert!(self.worker.registry().is_empty(), "a subscriber is left");
    }

    /// Everybody is sent home, whatever the scenario left.
    async fn end(self) {
        self.worker.shared().drain.cancel();
        self.worker.end_all().await;
        self.worker.tracker().close();
        self.worker.tracker().wait().await;
        self.assert_empty().await;
        for task in self.tasks {
            task.abort();
            assert!(!task.await.is_err_and(|error| error.is_panic()), "a task of the worker panicked");
        }
        until(|| Rc::strong_count(&self.worker) == 1).await;
    }
}

/// The test's end of a connection.
pub(super) struct Client {
    wire: Rc<RefCell<Wire>>,
}

impl Client {
    pub(super) fn say(&self, id: u64, body: ClientBody) {
        self.wire.borrow_mut().hear(Ok(Inbound::Frames(vec![ClientFrame::new(id, body)])));
    }

    pub(super) fn hello(&self) {
        self.say(1, ClientBody::Connect(Connect::default()));
    }

    pub(super) fn subscribe(&self, id: u64, channel: &str, position: Option<Position>) {
        let position = position.map(Into::into);
        self.say(
            id,
            ClientBody::Subscribe(Subscribe {
                channel: channel.to_owned(),
                position,
                ..Subscribe::default()
            }),
        );
    }

    /// Subscribes from `head` on.
    pub(super) async fn live(&self, bench: &mut Bench, id: u64, channel: &str, head: u64) {
        self.subscribe(id, channel, None);
        bench.answer(recovery(head, false, &[])).await;
        until(|| self.replied(id)).await;
    }

    /// One publish for each id, all in one message.
    pub(super) fn publish_many(&self, ids: RangeInclusive<u64>, channel: &str) {
        let publish = Publish {
            channel: channel.to_owned(),
            data_base64: Some(Bytes::from_static(b"x")),
            ..Publish::default()
        };
        let frames = ids.map(|id| ClientFrame::new(id, ClientBody::Publish(publish.clone()))).collect();
        self.wire.borrow_mut().hear(Ok(Inbound::Frames(frames)));
    }

    pub(super) fn hang_up(&self) {
        self.wire.borrow_mut().hear(Ok(Inbound::Closed { code: None }));
    }

    pub(super) fn break_off(&self, error: RecvError) {
        self.wire.borrow_mut().hear(Err(error));
    }

    /// Takes nothing more, on any lane.
    pub(super) fn jam(&self) {
        self.wire.borrow_mut().jammed = true;
    }

    pub(super) fn unjam(&self) {
        self.unjam_quietly();
        self.wire.borrow_mut().wake();
    }

    /// Takes bytes again, and its waker comes late.
    pub(super) fn unjam_quietly(&self) {
        self.wire.borrow_mut().jammed = false;
    }

    pub(super) fn block(&self, lane: Lane) {
        self.wire.borrow_mut().blocked.insert(lane);
    }

    pub(super) fn unblock(&self, lane: Lane) {
        let mut wire = self.wire.borrow_mut();
        wire.blocked.remove(&lane);
        wire.wake();
    }

    /// Breaks at the write after so many more.
    pub(super) fn break_after(&self, writes: usize) {
        self.wire.borrow_mut().breaks_after = Some(writes);
    }

    pub(super) fn take_datagrams(&self, taken: bool) {
        self.wire.borrow_mut().takes_datagrams = taken;
    }

    /// The handshake is complete, or not.
    pub(super) fn establish(&self, established: bool) {
        let mut wire = self.wire.borrow_mut();
        wire.early = !established;
        wire.wake();
    }

    pub(super) fn say_by_datagram(&self, body: ClientBody) {
        self.wire.borrow_mut().hear(Ok(Inbound::Datagram(vec![ClientFrame::new(0, body)])));
    }

    /// Connects with a ticket.
    pub(super) fn resume(&self, ticket: &str, key: Option<&str>) {
        let connect =
            Connect { resume: Some(ticket.to_owned()), key: key.map(str::to_owned), ..Connect::default() };
        self.say(1, ClientBody::Connect(connect));
    }

    /// What the server said to `connect`, if it let the client in.
    pub(super) fn connected(&self) -> Option<Connected> {
        self.frames().into_iter().find_map(|frame| match frame.body {
            Some(ServerBody::Connected(connected)) => Some(connected),
            _ => None,
        })
    }

    pub(super) fn datagrams(&self) -> usize {
        self.wire.borrow().datagrams.len()
    }

    /// The offsets of the publications in each datagram.
    pub(super) fn repeated(&self) -> Vec<Vec<u64>> {
        let offset = |frame: ServerFrame| match frame.body {
            Some(ServerBody::Publication(publication)) => publication.offset,
            other => panic!("no publication but {other:?}"),
        };
        let wire = self.wire.borrow();
        wire.datagrams.iter().map(|bytes| decode(bytes).into_iter().map(offset).collect()).collect()
    }

    pub(super) fn forget_datagrams(&self) {
        self.wire.borrow_mut().datagrams.clear();
    }

    /// Unsubscribes.
    pub(super) fn leave(&self, id: u64, channel: &str) {
        self.say(id, ClientBody::Unsubscribe(Unsubscribe { channel: channel.to_owned() }));
    }

    /// What the transport says of its path.
    pub(super) fn set_path(&self, path: PathStats) {
        self.wire.borrow_mut().path = Some(path);
    }

    /// Does not answer a close.
    pub(super) fn hold_close(&self) {
        self.wire.borrow_mut().holds_close = true;
    }

    pub(super) fn release_close(&self) {
        let mut wire = self.wire.borrow_mut();
        wire.holds_close = false;
        wire.wake();
    }

    /// Waits until the connection is gone.
    pub(super) async fn ended(&self) {
        let gone = Rc::clone(&self.wire.borrow().changed);
        while !self.is_dropped() {
            gone.notified().await;
        }
    }

    /// Waits for such a frame.
    pub(super) async fn received(&self, fits: impl Fn(&ServerFrame) -> bool) {
        let changed = Rc::clone(&self.wire.borrow().changed);
        while !self.frames().iter().any(&fits) {
            changed.notified().await;
        }
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.wire.borrow().dropped
    }

    pub(super) fn is_ending(&self) -> bool {
        let wire = self.wire.borrow();
        wire.closing.is_some() || wire.dropped
    }

    pub(super) fn close_code(&self) -> Option<u32> {
        self.wire.borrow().closing.as_ref().map(|closing| closing.code.number())
    }

    pub(super) fn catch_ups_finished(&self) -> usize {
        self.wire.borrow().catch_ups_finished
    }

    /// The epochs that each subscription's lanes were given.
    pub(super) fn epochs(&self) -> Vec<(u32, String)> {
        self.wire.borrow().epochs.clone()
    }

    /// The ids of the frames in all datagrams.
    pub(super) fn marks(&self) -> Vec<u64> {
        self.wire.borrow().datagrams.iter().flat_map(decode).map(|frame| frame.id).collect()
    }

    pub(super) fn lanes(&self) -> Vec<String> {
        self.wire.borrow().lanes.clone()
    }

    /// Everything that was written since the last [`Client::forget`].
    pub(super) fn frames(&self) -> Vec<ServerFrame> {
        self.wire.borrow().written.iter().flat_map(|(_, bytes)| decode(bytes)).collect()
    }

    pub(super) fn forget(&self) {
        self.wire.borrow_mut().written.clear();
    }

    pub(super) fn replied(&self, id: u64) -> bool {
        self.frames().iter().any(|frame| frame.id == id)
    }

    pub(super) fn offsets(&self, channel: &str) -> Vec<u64> {
        let offset = |frame: ServerFrame| match frame.body {
            Some(ServerBody::Publication(publication)) if publication.channel == channel => {
                Some(publication.offset)
            }
            _ => None,
        };
        self.frames().into_iter().filter_map(offset).collect()
    }

    pub(super) fn ephemeral(&self) -> Vec<String> {
        let text = |frame: ServerFrame| match frame.body {
            Some(ServerBody::Ephemeral(item)) => {
                item.data.map(|data| String::from_utf8_lossy(&data).into_owned())
            }
            _ => None,
        };
        self.frames().into_iter().filter_map(text).collect()
    }

    /// How many frames each write on a lane held.
    pub(super) fn writes_on(&self, lane: Lane) -> Vec<usize> {
        let wire = self.wire.borrow();
        wire.written.iter().filter(|(of, _)| *of == lane).map(|(_, bytes)| decode(bytes).len()).collect()
    }
}

/// What a connection has done and is to do.
struct Wire {
    kind: TransportKind,
    inbound: VecDeque<Result<Inbound, RecvError>>,
    written: Vec<(Lane, Bytes)>,
    lanes: Vec<String>,
    epochs: Vec<(u32, String)>,
    jammed: bool,
    blocked: BTreeSet<Lane>,
    breaks_after: Option<usize>,
    takes_datagrams: bool,
    /// The handshake is not complete.
    early: bool,
    datagrams: Vec<Bytes>,
    path: Option<PathStats>,
    catch_ups_finished: usize,
    holds_close: bool,
    closing: Option<Closing>,
    dropped: bool,
    waker: Option<Waker>,
    /// The test is told of every write and of the end.
    changed: Rc<Notify>,
}

impl Wire {
    fn new(kind: TransportKind) -> Self {
        Self {
            kind,
            inbound: VecDeque::new(),
            written: Vec::new(),
            lanes: Vec::new(),
            epochs: Vec::new(),
            jammed: false,
            blocked: BTreeSet::new(),
            breaks_after: None,
            takes_datagrams: false,
            early: false,
            datagrams: Vec::new(),
            path: None,
            catch_ups_finished: 0,
            holds_close: false,
            closing: None,
            dropped: false,
            waker: None,
            changed: Rc::new(Notify::new()),
        }
    }

    fn hear(&mut self, inbound: Result<Inbound, RecvError>) {
        self.inbound.push_back(inbound);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn is_full(&self, lane: Lane) -> bool {
        self.jammed || self.blocked.contains(&lane)
    }
}

struct Scripted(Rc<RefCell<Wire>>);

impl Connection for Scripted {
    fn kind(&self) -> TransportKind {
        self.0.borrow().kind
    }

    fn framing(&self) -> Framing {
        Framing::Delimited
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Inbound, RecvError>> {
        let mut wire = self.0.borrow_mut();
        match wire.inbound.pop_front() {
            Some(inbound) => Poll::Ready(inbound),
            None => {
                wire.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn open_lane(&mut self, subscription: u32, channel: &ChannelName, rank: i8) {
        let rank = if rank == 0 { String::new() } else { format!(" {rank}") };
        self.0.borrow_mut().lanes.push(format!("open {subscription} {channel}{rank}"));
    }

    fn begin_epoch(&mut self, subscription: u32, epoch: &Epoch) {
        self.0.borrow_mut().epochs.push((subscription, epoch.as_str().to_owned()));
    }

    fn rank_lane(&mut self, subscription: u32, rank: i8) {
        self.0.borrow_mut().lanes.push(format!("rank {subscription} {rank}"));
    }

    fn close_lane(&mut self, subscription: u32) {
        self.0.borrow_mut().lanes.push(format!("close {subscription}"));
    }

    fn finish_catch_up(&mut self, _subscription: u32) {
        self.0.borrow_mut().catch_ups_finished += 1;
    }

    fn send(&mut self, lane: Lane, bytes: &Bytes) -> Result<Sent, RecvError> {
        let mut wire = self.0.borrow_mut();
        assert!(wire.closing.is_none(), "a write after the close");
        if wire.is_full(lane) {
            return Ok(Sent::Full);
        }
        if let Some(left) = &mut wire.breaks_after {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return Err(RecvError::Lost("broken".to_owned())),
            }
        }
        wire.written.push((lane, bytes.clone()));
        wire.changed.notify_one();
        Ok(Sent::Taken)
    }

    fn send_datagram(&mut self, bytes: &Bytes) -> bool {
        let mut wire = self.0.borrow_mut();
        if wire.takes_datagrams {
            wire.datagrams.push(bytes.clone());
        }
        wire.takes_datagrams
    }

    fn path(&self) -> Option<PathStats> {
        self.0.borrow().path
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, lane: Lane) -> Poll<Result<(), RecvError>> {
        let mut wire = self.0.borrow_mut();
        if wire.is_full(lane) {
            wire.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, closing: &Closing) -> Poll<()> {
        let mut wire = self.0.borrow_mut();
        wire.closing = Some(closing.clone());
        if wire.holds_close || wire.jammed {
            wire.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn buffered(&self) -> usize {
        0
    }

    fn is_early(&self) -> bool {
        self.0.borrow().early
    }

    fn poll_established(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecvError>> {
        let mut wire = self.0.borrow_mut();
        if wire.early {
            wire.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        let mut wire = self.0.borrow_mut();
        wire.dropped = true;
        wire.changed.notify_one();
    }
}

pub(super) fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).expect("a valid name")
}

pub(super) fn publication(channel: &str, offset: u64) -> Publication {
    Publication {
        channel: channel.to_owned(),
        offset,
        data_base64: Some(Bytes::from(vec![7; 50])),
        ..Publication::default()
    }
}

pub(super) fn ephemeral(name: &str, data: &str) -> CoreFrame {
    let item = Ephemeral {
        channel: name.to_owned(),
        data: Some(Bytes::copy_from_slice(data.as_bytes())),
        ..Ephemeral::default()
    };
    let frame = Arc::new(SharedFrame::new(ServerBody::Ephemeral(item)));
    CoreFrame::Ephemeral(Delivery { channel: channel(name), offset: Offset(0), frame })
}

pub(super) fn recovery(head: u64, recovered: bool, publications: &[Publication]) -> Recovery {
    let position = Position::new(Epoch::new("e"), Offset(head));
    Recovery { position, recovered, publications: publications.to_vec() }
}

fn decode(bytes: &Bytes) -> Vec<ServerFrame> {
    decode_message(bytes.clone(), 1 << 20).expect("our own frames")
}

/// Turns that something may take which takes no time.
const PATIENCE: usize = 10_000;
