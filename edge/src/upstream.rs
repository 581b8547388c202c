//! The worker's end of its link to the core: questions out, answers and publications in, fan-out.

pub(crate) mod hub;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use indexmap::IndexMap;
use slab::Slab;
use tidegate_protocol::frame::shared::Framing;
use tidegate_protocol::frame::{ErrorCode, ServerBody};
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame, LinkError, Members, Recovery};
use tidegate_protocol::session::resume::Outcome;
use tidegate_protocol::{ChannelName, Offset, Position};
use tidegate_transport::link::{EdgeLink, LinkReceiver, LinkSender, TrySendError};
use tidegate_transport::{TransportKind, clock};
use tokio::sync::Notify;

use crate::channel_poll::Waiter;
use crate::connection::Session;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::presence;
use crate::registry::Subscriber;
use crate::worker::Worker;

/// What the core said to a session's question.
#[derive(Debug)]
pub(crate) enum Answer {
    /// To a subscribe.
    Subscribe {
        /// The session's name for the subscription.
        slot: u32,
        /// The session's number for the question.
        ask: u32,
        /// Whether a position was given.
        asked: bool,
        /// What comes after it.
        result: Result<Recovery, LinkError>,
    },
    /// To a publish.
    Publish {
        /// The client's id.
        id: u64,
        /// Where.
        channel: ChannelName,
        /// What it became.
        result: Result<Option<Position>, LinkError>,
    },
    /// To a history request.
    History {
        /// The client's id.
        id: u64,
        /// Which one.
        channel: ChannelName,
        /// What is retained.
        result: Result<Recovery, LinkError>,
    },
    /// To the question who is on a channel.
    Members {
        /// The client's id.
        id: u64,
        /// Which one.
        channel: ChannelName,
        /// Who is there.
        result: Result<Members, LinkError>,
    },
    /// To the question whether a ticket was spent.
    Spent {
        /// Whether it is honoured.
        result: Result<Outcome, LinkError>,
    },
}

/// Who waits for an answer. Bounded by each session's own bound on questions. A session that ended meanwhile is not
/// held: its connection goes with it.
#[derive(Debug)]
pub(crate) enum Asker {
    /// A session's subscribe.
    Subscribe { session: Weak<Session>, slot: u32, ask: u32, asked: bool },
    /// A session's publish.
    Publish { session: Weak<Session>, id: u64, channel: ChannelName },
    /// A session's history request.
    History { session: Weak<Session>, id: u64, channel: ChannelName },
    /// A session's question who is on a channel.
    Members { session: Weak<Session>, id: u64, channel: ChannelName },
    /// A session that resumes.
    Spend { session: Weak<Session> },
    /// A channel poll.
    Waiter(Rc<Waiter>),
    /// A stream of Server-Sent Events.
    Events(Rc<Events>),
}

/// The sending side of the link, and who waits for answers.
#[derive(Debug)]
pub(crate) struct Upstream {
    sender: Arc<dyn LinkSender<EdgeFrame>>,
    askers: RefCell<Slab<Asker>>,
    /// Who asked after the core was lost: answered by [`Upstream::run`], never from within the question.
    refused: RefCell<Vec<Asker>>,
    /// What the link had no room for, in order. Bounded by the sessions' bounds on questions and subscriptions, and by
    /// admitting no more sessions while it is long.
    overflow: RefCell<VecDeque<EdgeFrame>>,
    /// Something overflowed or was refused.
    left: Notify,
    lost: Cell<bool>,
}

impl Upstream {
    pub(crate) fn new(sender: Arc<dyn LinkSender<EdgeFrame>>) -> Self {
        Self {
            sender,
            askers: RefCell::default(),
            refused: RefCell::default(),
            overflow: RefCell::default(),
            left: Notify::new(),
            lost: Cell::new(false),
        }
    }

    /// The core is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// The core is far behind: nobody new should be let in.
    pub(crate) fn is_congested(&self) -> bool {
        self.overflow.borrow().len() >= CONGESTED
    }

    /// Asks; the answer goes to `asker`, later.
    pub(crate) fn ask(&self, asker: Asker, frame: impl FnOnce(u64) -> EdgeFrame) {
        if self.is_lost() {
            self.refused.borrow_mut().push(asker);
            self.left.notify_one();
            return;
        }
        let request = self.askers.borrow_mut().insert(asker);
        self.send(frame(request as u64));
    }

    /// Sends what needs no answer.
    pub(crate) fn send(&self, frame: EdgeFrame) {
        if self.is_lost() {
            return;
        }
        let mut overflow = self.overflow.borrow_mut();
        let waits = if overflow.is_empty() {
            match self.sender.try_send(frame) {
                // That the link is closed is for its receiver to find out, who answers all that wait.
                Ok(()) | Err(TrySendError::Closed) => return,
                Err(TrySendError::Full(frame)) => frame,
            }
        } else {
            frame
        };
        overflow.push_back(waits);
        self.left.notify_one();
    }

    /// Sends what overflowed and answers who was refused, for ever.
    pub(crate) async fn run(&self) {
        loop {
            for asker in self.refused.take() {
                asker.fail();
            }
            let next = self.overflow.borrow().front().cloned();
            match next {
                Some(frame) => {
                    if self.sender.send(frame).await.is_err() {
                        self.lose();
                    }
                    self.overflow.borrow_mut().pop_front();
                }
                None => self.left.notified().await,
            }
        }
    }

    /// Forgets everybody, at the end.
    pub(crate) fn clear(&self) {
        self.lost.set(true);
        self.overflow.take();
        self.refused.take();
        self.askers.take();
    }

    fn answer(&self, frame: CoreFrame) {
        let (request, answer) = match frame {
            CoreFrame::Recovered { request, result } => (request, CoreAnswer::Recovered(result)),
            CoreFrame::Published { request, result } => (request, CoreAnswer::Published(result)),
            CoreFrame::Spent { request, result } => (request, CoreAnswer::Spent(result)),
            CoreFrame::Members { request, result } => (request, CoreAnswer::Members(result)),
            CoreFrame::Publication(_)
            | CoreFrame::Ephemeral(_)
            | CoreFrame::Rebased { .. }
            | CoreFrame::PresenceChanged(_)
            | CoreFrame::Moved { .. }
            | CoreFrame::SessionMoved { .. } => return,
        };
        let asker = usize::try_from(request).ok().and_then(|key| self.askers.borrow_mut().try_remove(key));
        if let Some(asker) = asker {
            asker.hand_on(answer);
        }
    }

    /// The link is gone: every question is answered so, those to come as well.
    fn lose(&self) {
        self.lost.set(true);
        self.overflow.take();
        for (_, asker) in self.askers.take() {
            asker.fail();
        }
    }
}

/// An answer as it comes over the link.
enum CoreAnswer {
    Recovered(Result<Recovery, LinkError>),
    Published(Result<Option<Position>, LinkError>),
    Spent(Result<Outcome, LinkError>),
    Members(Result<Members, LinkError>),
}

impl Asker {
    fn hand_on(self, answer: CoreAnswer) {
        let (session, answer) = match (self, answer) {
            (Self::Subscribe { session, slot, ask, asked }, CoreAnswer::Recovered(result)) => {
                (session, Answer::Subscribe { slot, ask, asked, result })
            }
            (Self::History { session, id, channel }, CoreAnswer::Recovered(result)) => {
                (session, Answer::History { id, channel, result })
            }
            (Self::Publish { session, id, channel }, CoreAnswer::Published(result)) => {
                (session, Answer::Publish { id, channel, result })
            }
            (Self::Members { session, id, channel }, CoreAnswer::Members(result)) => {
                (session, Answer::Members { id, channel, result })
            }
            (Self::Spend { session }, CoreAnswer::Spent(result)) => (session, Answer::Spent { result }),
            (Self::Waiter(waiter), CoreAnswer::Recovered(result)) => return waiter.recovered(result),
            (Self::Events(events), CoreAnswer::Recovered(result)) => return events.recovered(result),
            // An answer of the wrong kind is none.
            (asker, _) => return asker.fail(),
        };
        if let Some(session) = session.upgrade() {
            session.answered(answer);
        }
    }

    fn fail(self) {
        let error =
            LinkError { code: ErrorCode::Unavailable, message: "the core is out of reach".to_owned() };
        let answer = match self {
            Self::Publish { .. } => CoreAnswer::Published(Err(error)),
            Self::Spend { .. } => CoreAnswer::Spent(Err(error)),
            Self::Members { .. } => CoreAnswer::Members(Err(error)),
            _ => CoreAnswer::Recovered(Err(error)),
        };
        self.hand_on(answer);
    }
}

/// Publications of one channel that waited together, in order: one write per subscriber.
#[derive(Debug)]
pub(crate) struct Run {
    deliveries: Vec<Delivery>,
    joined: [OnceCell<Bytes>; 3],
}

impl Run {
    fn new(deliveries: Vec<Delivery>) -> Self {
        Self { deliveries, joined: Default::default() }
    }

    pub(crate) fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }

    /// What of it comes at `offset` or later.
    pub(crate) fn since(&self, offset: Offset) -> &[Delivery] {
        let before = self.deliveries.partition_point(|delivery| delivery.offset < offset);
        &self.deliveries[before..]
    }

    pub(crate) fn first(&self) -> Offset {
        self.deliveries.first().map_or(Offset(0), |delivery| delivery.offset)
    }

    pub(crate) fn last(&self) -> Offset {
        self.deliveries.last().map_or(Offset(0), |delivery| delivery.offset)
    }

    /// All of it in one piece, joined once per framing; `None` where frames must stay apart (JSON for long poll and events).
    pub(crate) fn joined(&self, framing: Framing) -> Option<&Bytes> {
        let cell = match framing {
            Framing::Text | Framing::Event => return None,
            Framing::Delimited => &self.joined[0],
            Framing::WebSocketBinary => &self.joined[1],
            Framing::WebSocketText => &self.joined[2],
        };
        Some(match self.deliveries.as_slice() {
            [one] => one.frame.encoded(framing),
            many => cell.get_or_init(|| {
                let size = many.iter().map(|delivery| delivery.frame.encoded(framing).len()).sum();
                let mut joined = BytesMut::with_capacity(size);
                for delivery in many {
                    joined.extend_from_slice(delivery.frame.encoded(framing));
                }
                joined.freeze()
            }),
        })
    }
}

/// Takes what comes over the link and fans it out, until the core is gone.
pub(crate) async fn receive(worker: Rc<Worker>, link: EdgeLink) {
    let mut receiver = link.receiver;
    let mut frames = Vec::with_capacity(BATCH);
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        if next_batch(&mut *receiver, &mut frames).await == 0 {
            worker.upstream().lose();
            worker.core_lost();
            return;
        }
        // A new numbering ends what came before it: fan out up to it, tell, go on.
        let mut rest = frames.drain(..).peekable();
        while rest.peek().is_some() {
            let mut batch = Batch::default();
            let mut rebased = None;
            for frame in rest.by_ref() {
                if let CoreFrame::Rebased { channel, position } = frame {
                    rebased = Some((channel, position));
                    break;
                }
                batch.push(&worker, frame);
            }
            batch.fan_out(&worker, &mut chunk).await;
            if let Some((channel, position)) = rebased {
                rebase(&worker, &channel, &position, &mut chunk);
            }
        }
    }
}

async fn next_batch(receiver: &mut dyn LinkReceiver<CoreFrame>, frames: &mut Vec<CoreFrame>) -> usize {
    poll_fn(|cx| receiver.poll_recv_many(cx, frames, BATCH)).await
}

/// What waited on the link, by channel.
#[derive(Debug, Default)]
struct Batch {
    runs: IndexMap<ChannelName, Vec<Delivery>>,
    ephemeral: Vec<Delivery>,
    presence: Vec<Delivery>,
}

impl Batch {
    /// Answers go to their askers at once, before any publication of the batch: a subscription that begins with an
    /// answer must see the publications behind it, and knows by offset which came before.
    fn push(&mut self, worker: &Worker, frame: CoreFrame) {
        match frame {
            CoreFrame::Publication(delivery) => match self.runs.get_mut(&delivery.channel) {
                Some(run) => run.push(delivery),
                None => {
                    self.runs.insert(delivery.channel.clone(), vec![delivery]);
                }
            },
            CoreFrame::Ephemeral(delivery) => self.ephemeral.push(delivery),
            CoreFrame::PresenceChanged(delivery) => self.presence.push(delivery),
            CoreFrame::SessionMoved { session, generation, told } => {
                worker.session_moved(session, generation, told);
            }
            answer => worker.upstream().answer(answer),
        }
    }

    async fn fan_out(self, worker: &Rc<Worker>, chunk: &mut Vec<Subscriber>) {
        for (channel, deliveries) in self.runs {
            worker.metrics().publications.inc_by(deliveries.len() as u64);
            for run in split(deliveries) {
                fan_out(worker, &channel, &run, chunk).await;
            }
        }
        for delivery in self.ephemeral {
            fan_out_ephemeral(worker, &delivery, chunk).await;
        }
        for delivery in self.presence {
            presence::fan_out(worker, &delivery, chunk).await;
        }
    }
}

/// Runs whose joined bytes stay small.
fn split(deliveries: Vec<Delivery>) -> Vec<Run> {
    if let [_] = deliveries.as_slice() {
        return vec![Run::new(deliveries)];
    }
    let mut runs = Vec::new();
    let mut current = Vec::new();
    let mut bytes = 0;
    for delivery in deliveries {
        let size = payload_bytes(&delivery);
        if bytes + size > RUN_BYTES && !current.is_empty() {
            runs.push(Run::new(std::mem::take(&mut current)));
            bytes = 0;
        }
        bytes += size;
        current.push(delivery);
    }
    runs.push(Run::new(current));
    runs
}

/// Without encoding it: who knows in which framing it is wanted.
fn payload_bytes(delivery: &Delivery) -> usize {
    match &delivery.frame.frame().body {
        Some(ServerBody::Publication(publication)) => {
            publication.data.as_ref().or(publication.data_base64.as_ref()).map_or(0, |data| data.len())
        }
        _ => 0,
    }
}

async fn fan_out(worker: &Rc<Worker>, channel: &ChannelName, run: &Run, chunk: &mut Vec<Subscriber>) {
    let mut delivered = [0u64; TransportKind::ALL.len()];
    let mut from = Some(0);
    while let Some(key) = from {
        chunk.clear();
        from = worker.registry().chunk(channel, key, CHUNK, chunk);
        for subscriber in chunk.drain(..) {
            match subscriber {
                Subscriber::Session { session, slot } => {
                    delivered[Metrics::index(session.kind())] += session.deliver(slot, run) as u64;
                }
                Subscriber::Waiter(waiter) => waiter.deliver(run),
                Subscriber::Events(events) => {
                    delivered[Metrics::index(TransportKind::Sse)] += events.deliver(run) as u64;
                }
            }
        }
        if from.is_some() {
            // quinn's endpoint reads only between polls: without this, acknowledgements starve under a large fan-out.
            tokio::task::yield_now().await;
        }
    }
    let metrics = worker.metrics();
    for (counter, count) in metrics.deliveries.iter().zip(delivered) {
        if count > 0 {
            counter.inc_by(count);
        }
    }
    if let Some(ServerBody::Publication(first)) =
        run.deliveries.first().and_then(|d| d.frame.frame().body.as_ref())
    {
        let waited = clock::unix_ms().saturating_sub(first.time_ms);
        metrics.delivery_latency.observe(waited as f64 / 1000.0);
    }
}

async fn fan_out_ephemeral(worker: &Rc<Worker>, delivery: &Delivery, chunk: &mut Vec<Subscriber>) {
    let mut delivered = 0;
    let mut from = Some(0);
    while let Some(key) = from {
        chunk.clear();
        from = worker.registry().chunk(&delivery.channel, key, CHUNK, chunk);
        for subscriber in chunk.drain(..) {
            match subscriber {
                Subscriber::Session { session, slot } => {
                    delivered += u64::from(session.deliver_ephemeral(slot, delivery));
                }
                Subscriber::Events(events) => delivered += u64::from(events.deliver_ephemeral(delivery)),
                Subscriber::Waiter(_) => {}
            }
        }
        if from.is_some() {
            tokio::task::yield_now().await;
        }
    }
    worker.metrics().ephemeral_deliveries.inc_by(delivered);
}

fn rebase(worker: &Worker, channel: &ChannelName, position: &Position, chunk: &mut Vec<Subscriber>) {
    chunk.clear();
    worker.registry().chunk(channel, 0, usize::MAX, chunk);
    for subscriber in chunk.drain(..) {
        match subscriber {
            Subscriber::Session { session, slot } => session.rebased(slot, position),
            Subscriber::Waiter(waiter) => waiter.rebased(position),
            Subscriber::Events(events) => events.rebased(position),
        }
    }
}

/// Frames that the link has no room for, beyond which nobody is admitted.
const CONGESTED: usize = 16_384;
/// Frames taken off the link at once.
const BATCH: usize = 256;
/// Connections between two yields (measured: `docs/PERFORMANCE.md`).
const CHUNK: usize = 32;
/// Payload bytes of a run: under a WebSocket client's or a stream's buffer.
const RUN_BYTES: usize = 16 << 10;
