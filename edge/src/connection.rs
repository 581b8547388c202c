//! A session and its connection: one task around one session machine, and what the fan-out hands over.
//!
//! The worker's fan-out calls [`Session::deliver`] from its own task, on the same thread: bytes go straight to a
//! connection that takes them, and wait in the session's backlog otherwise. The session's task does everything else.

mod driver;
mod gate;
mod outbound;
mod repeat;
mod resume;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use tidegate_protocol::frame::{ClientFrame, CloseCode, Goaway};
use tidegate_protocol::grants::Identity;
use tidegate_protocol::link::{Delivery, LinkError, Recovery};
use tidegate_protocol::session::server::{self, Due};
use tidegate_protocol::{ChannelName, Epoch, Position, SessionId};
use tidegate_transport::{Connection, RecvError, TransportKind, clock};
use tracing::{Instrument, debug_span};

pub(crate) use self::gate::Entrance;
use self::gate::Gate;
use crate::metrics::Metrics;
use crate::policy::repeats::Repeats;
use crate::policy::slow_consumer::Backlog;
use crate::presence::Present;
use crate::sessions::{SessionInfo, SessionKey, part_of};
use crate::upstream::{Answer, Run};
use crate::worker::{Admitted, Worker};

/// A session and its connection, shared between its task and the registry.
pub(crate) struct Session {
    worker: Rc<Worker>,
    kind: TransportKind,
    id: SessionId,
    opened: Instant,
    inner: RefCell<Inner>,
    /// Its key among the worker's.
    enrolled: Cell<usize>,
    /// Tells it from others that had the key before.
    serial: u32,
    /// The id of the logical session, under which the worker finds it; `id` is this connection's alone.
    known_as: Cell<Option<SessionId>>,
    /// The task's; woken when somebody else left something for it.
    waker: RefCell<Option<Waker>>,
}

struct Inner {
    machine: server::Session,
    connection: Box<dyn Connection>,
    /// `None` while nothing waits: nearly always.
    backlog: Option<Box<Backlog>>,
    /// Where each slot stands in the registry.
    keys: Vec<Option<(ChannelName, usize)>>,
    /// Subscriptions that count for who is on their channels.
    present: Vec<Present>,
    /// Subscriptions that missed somebody who came or went: told so once the client has taken what it was sent.
    presence_gaps: Vec<u32>,
    /// Subscriptions that are parked: refilled once the client has taken what it was sent.
    parked: Vec<u32>,
    /// The rest of a message, while the machine wants no input.
    unread: VecDeque<ClientFrame>,
    /// The ticket that the session is to be resumed with.
    resuming: Option<Box<resume::Resuming>>,
    /// What is sent again where the path loses packets.
    repeats: Repeats,
    /// Until the client has come in.
    gate: Option<Box<Gate>>,
    /// What a send met: the task ends the session with it.
    broken: Option<RecvError>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Starts the session of a connection on its worker; its key among the worker's. `identity`: what a token that came before
/// the first frame says.
pub(crate) fn start(
    worker: &Rc<Worker>,
    id: SessionId,
    connection: Box<dyn Connection>,
    identity: Option<Identity>,
    admitted: Admitted,
    entrance: Entrance,
) -> usize {
    let kind = connection.kind();
    let opened = clock::now();
    // Polling is long poll's heartbeat.
    let heartbeats = kind != TransportKind::LongPoll;
    let mut machine = server::Session::new(opened, worker.settings(), id, identity, heartbeats);
    if matches!(entrance, Entrance::Asks(_)) {
        machine.ask_first();
    }
    machine.place(worker.plans().next_rank(), worker.plans().current(), worker.lifetime());
    // Admitted before the worker began to end: told why, as all others.
    if let Some((code, reason)) = worker.ending() {
        machine.end(code, reason);
    }
    let inner = Inner {
        machine,
        connection,
        backlog: None,
        keys: Vec::new(),
        present: Vec::new(),
        presence_gaps: Vec::new(),
        parked: Vec::new(),
        unread: VecDeque::new(),
        resuming: None,
        repeats: Repeats::default(),
        gate: Some(Box::new(Gate::new(entrance))),
        broken: None,
    };
    let session = Rc::new(Session {
        worker: Rc::clone(worker),
        kind,
        id,
        opened,
        inner: RefCell::new(inner),
        enrolled: Cell::new(0),
        serial: worker.new_serial(),
        known_as: Cell::new(None),
        waker: RefCell::new(None),
    });
    let enrolled = worker.enroll(Rc::clone(&session));
    session.enrolled.set(enrolled);
    worker.metrics().connections[Metrics::index(kind)].inc();
    let task = async move {
        let ending = session.serve().await;
        // Boxed: the closing's state is large, and this task's memory is an idle connection's for life.
        Box::pin(session.close(ending)).await;
        session.worker.dismiss(enrolled);
        drop(admitted);
    };
    let span = debug_span!("conn", id = ?id, transport = kind.name());
    if span.is_disabled() {
        worker.spawn(task);
    } else {
        worker.spawn(task.instrument(span));
    }
    enrolled
}

impl Session {
    /// The id of its connection; a long poll's handle.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Its name for those outside of the worker.
    pub(crate) fn key(&self) -> SessionKey {
        let index = u32::try_from(self.enrolled.get()).unwrap_or(u32::MAX);
        SessionKey { worker: self.worker.index(), is_stream: false, index, serial: self.serial }
    }

    /// What those outside may know; `None` before it is served.
    pub(crate) fn info(&self) -> Option<SessionInfo> {
        let inner = self.inner.borrow();
        let machine = &inner.machine;
        (machine.is_served() || machine.is_ended()).then(|| SessionInfo {
            key: self.key(),
            transport: self.kind,
            moves: machine.moves(),
            busy: inner.backlog.is_some() || machine.is_busy(),
            leaving: machine.has_moved() || machine.is_ended(),
            part: inner.keys.iter().flatten().next().map(|(channel, _)| part_of(channel)),
        })
    }

    /// True where the client can be asked to move.
    pub(crate) fn takes_goaway(&self) -> bool {
        let machine = &self.inner.borrow().machine;
        machine.is_served() && machine.moves()
    }

    /// Asks the client to move; false where there is nobody to be asked.
    pub(crate) fn goaway(&self, goaway: Goaway) -> bool {
        let asked = self.inner.borrow_mut().machine.goaway(clock::now(), goaway);
        if asked {
            self.wake();
        }
        asked
    }

    /// The id of the logical session, once a ticket was given out for it.
    pub(crate) fn known_as(&self) -> Option<SessionId> {
        self.known_as.get()
    }

    /// By what it is connected.
    pub(crate) fn kind(&self) -> TransportKind {
        self.kind
    }

    /// Delivers what the subscription is due of a run of publications; how many were sent or wait. Called by the
    /// fan-out: no lock, no allocation unless the client is slow.
    pub(crate) fn deliver(&self, slot: u32, run: &Run) -> usize {
        let inner = &mut *self.inner.borrow_mut();
        match inner.machine.take(slot, run.first(), run.last()) {
            Due::Nothing => 0,
            Due::All => self.offer_run(inner, slot, run, run.first()),
            Due::From(offset) => self.offer_run(inner, slot, run, offset),
            Due::Gap => {
                self.await_refill(inner, slot);
                0
            }
        }
    }

    /// Delivers an ephemeral item: by datagram where it fits, else where it does not wait; the newest waits alone.
    pub(crate) fn deliver_ephemeral(&self, slot: u32, delivery: &Delivery) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        if !inner.machine.is_live(slot) || inner.machine.is_opening() {
            self.worker.metrics().ephemeral_dropped.parked.inc();
            return false;
        }
        self.offer_ephemeral(inner, slot, delivery)
    }

    /// Delivers a `join`, a `leave` or word that some of them were missed: by the subscription's own lane, in order. What
    /// does not go at once does not wait: one such word does, however many there were.
    pub(crate) fn deliver_presence(&self, slot: u32, delivery: &Delivery) -> bool {
        self.offer_presence(&mut self.inner.borrow_mut(), slot, delivery)
    }

    /// Tells the subscriber that the channel's numbering began anew.
    pub(crate) fn rebased(&self, slot: u32, position: &Position) {
        let inner = &mut *self.inner.borrow_mut();
        if !inner.machine.rebased(slot, position) {
            return;
        }
        self.worker.metrics().gaps.inc();
        self.begin_epoch(inner, slot, &position.epoch);
        // At once: publications of the new numbering are next.
        self.transmit(inner);
        self.wake();
    }

    /// Hands on what the core answered.
    pub(crate) fn answered(self: &Rc<Self>, answer: Answer) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.machine.is_ended() {
            // Nothing may follow the `close` frame.
            return;
        }
        match answer {
            Answer::Subscribe { slot, ask, asked, result } => {
                self.recovered(inner, slot, ask, asked, result);
            }
            Answer::Publish { id, channel, result } => inner.machine.published(id, &channel, result),
            Answer::History { id, channel, result } => inner.machine.history(id, &channel, result),
            Answer::Members { id, channel, result } => inner.machine.presence(id, &channel, result),
            Answer::Spent { result } => self.spent(inner, result),
        }
        self.transmit(inner);
        self.wake();
    }

    /// Ends the session from the server's side.
    pub(crate) fn end(&self, code: CloseCode, reason: &str) {
        self.inner.borrow_mut().machine.end(code, reason);
        self.wake();
    }

    /// The same, once what it asked the core is answered, and soon.
    pub(crate) fn end_answered(&self, code: CloseCode, reason: &str) {
        self.inner.borrow_mut().machine.leave(clock::now(), code, reason);
        self.wake();
    }

    fn recovered(
        self: &Rc<Self>,
        inner: &mut Inner,
        slot: u32,
        ask: u32,
        asked: bool,
        result: Result<Recovery, LinkError>,
    ) {
        let metrics = self.worker.metrics();
        match &result {
            Ok(recovery) if asked && recovery.recovered => metrics.recovered.inc(),
            Ok(_) if asked => metrics.gaps.inc(),
            _ => 0,
        };
        let budget = self.catch_up_budget(inner);
        let before = inner.machine.epoch(slot).cloned();
        let missed = inner.machine.recovered(clock::now(), slot, ask, result, budget);
        if let Some(epoch) = inner.machine.epoch(slot).cloned()
            && Some(&epoch) != before.as_ref()
        {
            self.begin_epoch(inner, slot, &epoch);
        }
        // Announced first: where the client comes from another edge, it may leave there as soon as it reads of this.
        while let Some(event) = inner.machine.poll_present() {
            self.present(inner, event);
        }
        // The frame that begins the subscription comes first on one pipe.
        self.transmit(inner);
        self.queue_catch_up(inner, slot, missed);
        if inner.machine.is_parked(slot) {
            self.await_refill(inner, slot);
        }
    }

    /// What comes next for a subscription is of this epoch. What waits is of another, and would be of no use.
    fn begin_epoch(&self, inner: &mut Inner, slot: u32, epoch: &Epoch) {
        self.drop_lane(inner, slot);
        inner.repeats.drop_lane(slot);
        inner.connection.begin_epoch(slot, epoch);
    }

    /// Wakes the task. It is on this thread, so that it runs later, whoever calls.
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests;
