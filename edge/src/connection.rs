//! The driver of one session: one task around one session machine and one connection.
//!
//! The worker's fan-out calls [`Session::deliver`] from its own task, on the same thread: bytes go straight to a
//! connection that takes them, and wait in the session's backlog otherwise. The session's task does everything else.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use tidegate_protocol::frame::shared::Framing;
use tidegate_protocol::frame::{CloseCode, Publication, ServerBody, ServerFrame};
use tidegate_protocol::grants::Identity;
use tidegate_protocol::link::{Delivery, LinkError, Recovery};
use tidegate_protocol::session::server::{self, Due, Event};
use tidegate_protocol::{ChannelName, Offset, Position, SessionId};
use tidegate_transport::{Closing, Connection, Inbound, Lane, RecvError, Sent, TransportKind, clock};
use tokio::time::Sleep;
use tracing::{Instrument, debug, debug_span, trace};

use crate::metrics::{CloseLabels, Code, Metrics};
use crate::policy::slow_consumer::{Backlog, Bounds, Queued};
use crate::registry::Subscriber;
use crate::upstream::{Answer, Run};
use crate::worker::Worker;

/// A session and its connection, shared between its task, the registry and requests that wait for the core.
pub(crate) struct Session {
    worker: Rc<Worker>,
    kind: TransportKind,
    id: SessionId,
    opened: Instant,
    inner: RefCell<Inner>,
    /// The task's; woken when the fan-out left something for it.
    waker: RefCell<Option<Waker>>,
    /// The task has something to do that no transport will wake it for.
    dirty: Cell<bool>,
}

struct Inner {
    machine: server::Session,
    connection: Box<dyn Connection>,
    /// `None` while nothing waits: nearly always.
    backlog: Option<Box<Backlog>>,
    /// Where each slot stands in the registry.
    keys: Vec<Option<(ChannelName, usize)>>,
    /// Subscriptions that are parked: refilled once nothing waits.
    parked: Vec<u32>,
    /// What a send met: the task ends the session with it.
    broken: Option<RecvError>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Starts the session of a connection on its worker. `identity`: what a token that came before the first frame says.
pub(crate) fn start(
    worker: &Rc<Worker>,
    id: SessionId,
    connection: Box<dyn Connection>,
    identity: Option<Identity>,
    slot: crate::worker::Admitted,
) -> Rc<Session> {
    let kind = connection.kind();
    let opened = clock::now();
    // Polling is long poll's heartbeat.
    let heartbeats = kind != TransportKind::LongPoll;
    let machine = server::Session::new(opened, worker.settings(), id, identity, heartbeats);
    let inner =
        Inner { machine, connection, backlog: None, keys: Vec::new(), parked: Vec::new(), broken: None };
    let session = Rc::new(Session {
        worker: Rc::clone(worker),
        kind,
        id,
        opened,
        inner: RefCell::new(inner),
        waker: RefCell::new(None),
        dirty: Cell::new(false),
    });
    let registered = worker.enroll(Rc::clone(&session));
    worker.metrics().connections[Metrics::index(kind)].inc();
    let task = {
        let session = Rc::clone(&session);
        async move {
            let ending = session.serve().await;
            session.close(ending).await;
            session.worker.dismiss(registered);
            drop(slot);
        }
    };
    let span = debug_span!("conn", id = ?id, transport = kind.name());
    if span.is_disabled() {
        worker.spawn(task);
    } else {
        worker.spawn(task.instrument(span));
    }
    session
}

/// How serving ended.
enum Ending {
    /// By our decision: the close is still to be sent.
    Close(Closing),
    /// The other side or the network: nobody listens.
    Gone(CloseCode),
}

impl Session {
    /// Its id.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// By what it is connected.
    pub(crate) fn kind(&self) -> TransportKind {
        self.kind
    }

    /// Delivers what the subscription is due of a run of publications. Called by the fan-out: no lock, no allocation
    /// unless the client is slow.
    pub(crate) fn deliver(&self, slot: u32, run: &Run) -> usize {
        let inner = &mut *self.inner.borrow_mut();
        let framing = inner.connection.framing();
        let delivered = match inner.machine.take(slot, run.first(), run.last()) {
            Due::Nothing => 0,
            Due::All => match run.joined(framing) {
                Some(bytes) => {
                    self.offer(inner, slot, run.first(), bytes);
                    run.len()
                }
                None => self.offer_each(inner, slot, run, run.first()),
            },
            Due::From(offset) => self.offer_each(inner, slot, run, offset),
            Due::Gap => {
                inner.parked.push(slot);
                self.wake();
                0
            }
        };
        // What the transport took but could not write is pushed on by the task.
        if delivered > 0 && inner.connection.buffered() > 0 {
            self.wake();
        }
        delivered
    }

    /// Delivers an ephemeral item: by datagram where it fits, else where it does not wait; the newest waits alone.
    pub(crate) fn deliver_ephemeral(&self, slot: u32, delivery: &Delivery) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        if !inner.machine.is_live(slot) {
            return false;
        }
        let bytes = delivery.frame.encoded(inner.connection.framing());
        if inner.connection.send_datagram(bytes) {
            return true;
        }
        let one_pipe = self.one_pipe();
        if !inner.backlog.as_ref().is_some_and(|backlog| backlog.holds_up(slot, one_pipe)) {
            match inner.connection.send(Lane::Subscription(slot), bytes) {
                Ok(Sent::Taken) => {
                    if inner.connection.buffered() > 0 {
                        self.wake();
                    }
                    return true;
                }
                Ok(Sent::Full) => {}
                Err(error) => {
                    self.break_off(inner, error);
                    return false;
                }
            }
        }
        let bounds = self.bounds();
        self.with_backlog(inner, |backlog| backlog.push_ephemeral(bounds, slot, bytes.clone()));
        self.wake();
        true
    }

    /// Tells the subscriber that the channel's numbering began anew.
    pub(crate) fn rebased(&self, slot: u32, position: &Position) {
        self.inner.borrow_mut().machine.rebased(slot, position);
        self.worker.metrics().gaps.inc();
        self.wake();
    }

    /// Hands on what the core answered.
    pub(crate) fn answered(&self, answer: Answer) {
        let now = clock::now();
        let inner = &mut *self.inner.borrow_mut();
        match answer {
            Answer::Subscribe { slot, ask, asked, result } => {
                self.recovered(inner, now, slot, ask, asked, result)
            }
            Answer::Publish { id, channel, result } => inner.machine.published(id, &channel, result),
            Answer::History { id, channel, result } => inner.machine.history(id, &channel, result),
        }
        self.advance(inner);
        self.wake();
    }

    /// Ends the session from the server's side.
    pub(crate) fn end(&self, code: CloseCode, reason: &str) {
        self.inner.borrow_mut().machine.end(code, reason);
        self.wake();
    }

    fn recovered(
        &self,
        inner: &mut Inner,
        now: Instant,
        slot: u32,
        ask: u32,
        asked: bool,
        result: Result<Recovery, LinkError>,
    ) {
        if asked {
            match &result {
                Ok(recovery) if recovery.recovered => self.worker.metrics().recovered.inc(),
                Ok(_) => self.worker.metrics().gaps.inc(),
                Err(_) => 0,
            };
        }
        let bounds = self.bounds();
        let budget = inner
            .backlog
            .as_ref()
            .map_or_else(|| Backlog::default().catch_up_budget(bounds), |b| b.catch_up_budget(bounds));
        let missed = inner.machine.recovered(now, slot, ask, result, budget);
        // The frame that begins the subscription comes first on one pipe.
        self.transmit(inner);
        if !missed.is_empty() {
            let framing = inner.connection.framing();
            let encoded: Vec<Bytes> =
                missed.into_iter().map(|publication| encode(framing, publication)).collect();
            self.with_backlog(inner, |backlog| {
                for bytes in encoded {
                    backlog.push_catch_up(slot, bytes);
                }
            });
        }
        if inner.machine.is_parked(slot) && !inner.parked.contains(&slot) {
            inner.parked.push(slot);
        }
    }

    fn offer_each(&self, inner: &mut Inner, slot: u32, run: &Run, from: Offset) -> usize {
        let framing = inner.connection.framing();
        let mut offered = 0;
        for delivery in run.deliveries().iter().filter(|delivery| delivery.offset >= from) {
            if !self.offer(inner, slot, delivery.offset, delivery.frame.encoded(framing)) {
                break;
            }
            offered += 1;
        }
        offered
    }

    /// False once the subscription is parked: what follows is not to be offered.
    fn offer(&self, inner: &mut Inner, slot: u32, first: Offset, bytes: &Bytes) -> bool {
        let one_pipe = self.one_pipe();
        if !inner.backlog.as_ref().is_some_and(|backlog| backlog.holds_up(slot, one_pipe)) {
            match inner.connection.send(Lane::Subscription(slot), bytes) {
                Ok(Sent::Taken) => return true,
                Ok(Sent::Full) => {}
                Err(error) => {
                    self.break_off(inner, error);
                    return false;
                }
            }
        }
        let bounds = self.bounds();
        let conflated = inner.machine.subscription(slot).is_some_and(|(_, conflated)| conflated);
        let queued = self
            .with_backlog(inner, |backlog| backlog.push_live(bounds, slot, first, bytes.clone(), conflated));
        self.wake();
        match queued {
            Queued::Waits => true,
            Queued::Parked { last } => {
                trace!(slot, last = last.0, "parked");
                inner.machine.park(slot, last);
                inner.parked.push(slot);
                self.worker.metrics().parked.inc();
                false
            }
        }
    }

    /// Serves until the session ends.
    async fn serve(self: &Rc<Self>) -> Ending {
        let mut timer = std::pin::pin!(Timer::default());
        poll_fn(|cx| {
            // One stays registered: the fan-out wakes this task by it.
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            drop(waker);
            for _ in 0..TURNS {
                match self.turn(cx, timer.as_mut()) {
                    Turn::Again => {}
                    Turn::Idle => return Poll::Pending,
                    Turn::Over(ending) => return Poll::Ready(ending),
                }
            }
            // A client that always has something to say does not starve its neighbours.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn turn(self: &Rc<Self>, cx: &mut Context<'_>, timer: Pin<&mut Timer>) -> Turn {
        self.dirty.set(false);
        let inner = &mut *self.inner.borrow_mut();
        if let Some(error) = inner.broken.take() {
            return self.fail(inner, error);
        }
        if let Some(ending) = self.drain_events(inner) {
            return Turn::Over(Ending::Close(ending));
        }
        if let Err(error) = self.flush(cx, inner) {
            return self.fail(inner, error);
        }
        // Refilling asks the core; the answer wakes this task.
        if inner.backlog.is_none() && inner.connection.buffered() == 0 && !inner.parked.is_empty() {
            for slot in std::mem::take(&mut inner.parked) {
                inner.machine.refill(slot);
            }
            return Turn::Again;
        }
        if timer.poll_elapsed(cx, inner.machine.poll_timeout()) {
            inner.machine.handle_timeout(clock::now());
            return Turn::Again;
        }
        if !inner.machine.wants_input()
            || inner.backlog.as_ref().is_some_and(|b| b.bytes() > self.bounds().session / 2)
        {
            return if self.dirty.get() { Turn::Again } else { Turn::Idle };
        }
        match inner.connection.poll_recv(cx) {
            Poll::Pending if self.dirty.get() => Turn::Again,
            Poll::Pending => Turn::Idle,
            Poll::Ready(Ok(Inbound::Frames(frames))) => {
                for frame in frames {
                    trace!(id = frame.id, "frame");
                    if let Err(error) = inner.machine.handle_frame(clock::now(), frame) {
                        inner.machine.end(error.close_code(), &error.to_string());
                    }
                    if let Some(ending) = self.drain_events(inner) {
                        return Turn::Over(Ending::Close(ending));
                    }
                }
                Turn::Again
            }
            Poll::Ready(Ok(Inbound::Datagram(frames))) => {
                self.worker.metrics().datagrams_in.inc();
                for frame in frames {
                    if let Err(error) = inner.machine.handle_datagram(clock::now(), frame) {
                        inner.machine.end(error.close_code(), &error.to_string());
                    }
                    if let Some(ending) = self.drain_events(inner) {
                        return Turn::Over(Ending::Close(ending));
                    }
                }
                Turn::Again
            }
            Poll::Ready(Ok(Inbound::Closed { code })) => {
                debug!(code, "closed by the client");
                inner.machine.abandon();
                Turn::Over(Ending::Close(Closing { code: CloseCode::Done, reason: String::new() }))
            }
            Poll::Ready(Err(error)) => self.fail(inner, error),
        }
    }

    /// The connection cannot go on.
    fn fail(self: &Rc<Self>, inner: &mut Inner, error: RecvError) -> Turn {
        debug!(%error, "failed");
        match error {
            RecvError::Protocol { code, reason } => {
                inner.machine.end(code, &reason);
                match self.drain_events(inner) {
                    Some(ending) => Turn::Over(Ending::Close(ending)),
                    None => Turn::Over(Ending::Gone(code)),
                }
            }
            _ => {
                inner.machine.abandon();
                Turn::Over(Ending::Gone(CloseCode::ConnectionLost))
            }
        }
    }

    /// Moves everything that the machine has to say: frames to the connection, questions to the core. Some: it ended.
    fn drain_events(self: &Rc<Self>, inner: &mut Inner) -> Option<Closing> {
        let mut ending = None;
        loop {
            self.transmit(inner);
            let Some(event) = inner.machine.poll_event() else { break };
            match event {
                Event::Authenticate { token } => self.authenticate(inner, token),
                Event::Opened => {
                    self.worker.metrics().connects[Metrics::index(self.kind)].inc();
                }
                Event::Subscribe { slot, ask, begins, channel, position } => {
                    if begins {
                        self.join(inner, slot, &channel);
                    }
                    let asked = position.is_some();
                    self.worker.subscribe(Rc::clone(self), slot, ask, asked, channel, position);
                }
                Event::Unsubscribe { slot, .. } => self.leave(inner, slot),
                Event::Publish { id, publish } => self.worker.publish(Rc::clone(self), id, publish),
                Event::History { id, channel, since, limit } => {
                    self.worker.history(Rc::clone(self), id, channel, since, limit);
                }
                Event::Refresh { id, token } => {
                    let checked = self.worker.authenticate(&token).map_err(|error| error.to_string());
                    inner.machine.refreshed(clock::now(), id, checked);
                }
                Event::End { code, reason } => {
                    if code == CloseCode::HeartbeatTimeout {
                        self.worker.metrics().heartbeat_failures.inc();
                    }
                    ending = Some(Closing { code, reason });
                }
            }
        }
        ending
    }

    fn authenticate(&self, inner: &mut Inner, token: Option<String>) {
        let checked = match token {
            Some(token) => self.worker.authenticate(&token).map_err(|error| error.to_string()),
            // The machine asks so only where anonymous sessions are allowed.
            None => Ok(Identity::anonymous()),
        };
        match checked {
            Ok(identity) => inner.machine.admit(clock::now(), identity),
            Err(reason) => inner.machine.refuse(CloseCode::Unauthorized, &reason),
        }
    }

    fn join(self: &Rc<Self>, inner: &mut Inner, slot: u32, channel: &ChannelName) {
        inner.connection.open_lane(slot, channel);
        let subscriber = Subscriber::Session { session: Rc::clone(self), slot };
        let key = self.worker.registry().insert(channel, subscriber);
        let index = slot as usize;
        if inner.keys.len() <= index {
            inner.keys.reserve_exact(index + 1 - inner.keys.len());
            inner.keys.resize(index + 1, None);
        }
        inner.keys[index] = Some((channel.clone(), key));
        self.worker.metrics().subscriptions.inc();
    }

    fn leave(&self, inner: &mut Inner, slot: u32) {
        let Some((channel, key)) = inner.keys.get_mut(slot as usize).and_then(Option::take) else { return };
        self.worker.unsubscribe(&channel, key);
        self.worker.metrics().subscriptions.dec();
        inner.connection.close_lane(slot);
        inner.parked.retain(|parked| *parked != slot);
        if let Some(backlog) = &mut inner.backlog {
            let before = backlog.bytes();
            backlog.drop_lane(slot);
            self.account(before, backlog.bytes());
        }
    }

    /// After an answer: what it queued goes out at once where it can.
    fn advance(&self, inner: &mut Inner) {
        self.transmit(inner);
    }

    /// Moves the machine's control frames to the connection, or behind those that wait.
    fn transmit(&self, inner: &mut Inner) {
        while let Some(frame) = inner.machine.poll_transmit() {
            let bytes = inner.connection.framing().encode(&frame);
            let waits = inner.backlog.as_ref().is_some_and(|backlog| !backlog.is_empty());
            if !waits {
                match inner.connection.send(Lane::Control, &bytes) {
                    Ok(Sent::Taken) => continue,
                    Ok(Sent::Full) => {}
                    Err(error) => return self.break_off(inner, error),
                }
            }
            let bounds = self.bounds();
            if self.with_backlog(inner, |backlog| backlog.push_control(bounds, bytes)).is_err() {
                let reason = "the client does not read its control frames".to_owned();
                return self.break_off(inner, RecvError::Protocol { code: CloseCode::SlowConsumer, reason });
            }
        }
    }

    /// Pushes on what waits, and registers for what cannot go on.
    fn flush(&self, cx: &mut Context<'_>, inner: &mut Inner) -> Result<(), RecvError> {
        loop {
            let Some(backlog) = &mut inner.backlog else {
                if inner.connection.buffered() > 0 {
                    let _ = inner.connection.poll_ready(cx, Lane::Control)?;
                }
                return Ok(());
            };
            let before = backlog.bytes();
            let connection = &mut inner.connection;
            let pumped = backlog.pump(self.one_pipe(), |lane, bytes| connection.send(lane, bytes))?;
            self.account(before, backlog.bytes());
            if backlog.is_empty() {
                inner.backlog = None;
            }
            for slot in pumped.caught_up {
                inner.connection.finish_catch_up(slot);
            }
            let mut ready = pumped.blocked.is_empty() && inner.backlog.is_some();
            for lane in pumped.blocked {
                ready |= inner.connection.poll_ready(cx, lane)?.is_ready();
            }
            if !ready && inner.backlog.is_some() {
                return Ok(());
            }
        }
    }

    /// Ends the connection: what was queued on the control lane, the close, then the transport; all within the bound.
    async fn close(self: &Rc<Self>, ending: Ending) {
        let code = match &ending {
            Ending::Close(closing) => closing.code,
            Ending::Gone(code) => *code,
        };
        self.release();
        if let Ending::Close(closing) = ending {
            let limit = self.worker.limits().close;
            let closed = poll_fn(|cx| {
                let inner = &mut *self.inner.borrow_mut();
                if inner.broken.is_some() || self.flush(cx, inner).is_err() {
                    return Poll::Ready(());
                }
                if inner.backlog.is_some() {
                    return Poll::Pending;
                }
                inner.connection.poll_close(cx, &closing)
            });
            // At the bound the connection is dropped, which ends it too.
            let _ = tokio::time::timeout(limit, closed).await;
        }
        let inner = &mut *self.inner.borrow_mut();
        if let Some(backlog) = inner.backlog.take() {
            self.account(backlog.bytes(), 0);
        }
        let metrics = self.worker.metrics();
        metrics.connections[Metrics::index(self.kind)].dec();
        metrics.closes.get_or_create(&CloseLabels { transport: self.kind.name(), code: Code(code) }).inc();
        metrics.connection_age.observe(clock::now().duration_since(self.opened).as_secs_f64());
        debug!(code = code.number(), "ended");
    }

    /// Takes every subscription off the registry, so that nothing more is delivered.
    fn release(&self) {
        let inner = &mut *self.inner.borrow_mut();
        for slot in (0u32..).take(inner.keys.len()) {
            self.leave(inner, slot);
        }
    }

    fn break_off(&self, inner: &mut Inner, error: RecvError) {
        inner.broken.get_or_insert(error);
        self.wake();
    }

    fn with_backlog<T>(&self, inner: &mut Inner, change: impl FnOnce(&mut Backlog) -> T) -> T {
        let backlog = inner.backlog.get_or_insert_default();
        let before = backlog.bytes();
        let result = change(backlog);
        self.account(before, backlog.bytes());
        result
    }

    fn account(&self, before: usize, after: usize) {
        // Sizes are far below i64's range.
        self.worker.metrics().queue_bytes.inc_by(after as i64 - before as i64);
    }

    fn bounds(&self) -> Bounds {
        let limits = self.worker.limits();
        Bounds { session: limits.session_queue, subscription: limits.subscription_queue }
    }

    fn one_pipe(&self) -> bool {
        matches!(self.kind, TransportKind::WebSocket | TransportKind::LongPoll)
    }

    fn wake(&self) {
        self.dirty.set(true);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

enum Turn {
    Again,
    Idle,
    Over(Ending),
}

/// One timer that follows the machine's deadline; boxed on first use, and reset only when the deadline moved.
#[derive(Default)]
struct Timer {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn poll_elapsed(mut self: Pin<&mut Self>, cx: &mut Context<'_>, at: Option<Instant>) -> bool {
        let Some(at) = at else { return false };
        let deadline = tokio::time::Instant::from_std(at);
        if self.sleep.is_none() {
            self.sleep = Some(Box::pin(tokio::time::sleep_until(deadline)));
            self.at = Some(at);
        }
        let moved = self.at != Some(at);
        self.at = Some(at);
        let Some(sleep) = &mut self.sleep else { return false };
        if moved {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}

fn encode(framing: Framing, publication: Publication) -> Bytes {
    framing.encode(&ServerFrame::new(0, ServerBody::Publication(publication)))
}

/// Rounds of one poll.
const TURNS: usize = 32;
