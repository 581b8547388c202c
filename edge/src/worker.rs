//! One processor's part of the edge: a single-threaded runtime with its connections, registry and listeners. A
//! connection never leaves its worker; nothing on the delivery path is shared with another.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use slab::Slab;
use tidegate_fallback::http::OriginPolicy;
use tidegate_fallback::longpoll::LongPollHandle;
use tidegate_protocol::frame::{CloseCode, Goaway};
use tidegate_protocol::grants::Identity;
use tidegate_protocol::link::{EdgeFrame, HistoryRange, LinkName, Publish};
use tidegate_protocol::session::resume::{Outcome, Spending, SpentTable, Told};
use tidegate_protocol::session::server::Settings;
use tidegate_protocol::{ChannelName, Position, SessionId};
use tidegate_transport::{TransportKind, clock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{AuthError, Authenticator};
use crate::channel_poll::Waiter;
use crate::config::{Config, Limits};
use crate::connection::Session;
use crate::door::{Door, Resident};
use crate::events::Events;
use crate::metrics::Metrics;
use crate::plans::Plans;
use crate::policy::drain::POLL_PATIENCE;
use crate::policy::plan::Renewal;
use crate::presence::Presence;
use crate::registry::{Registry, Subscriber};
use crate::resume::TicketKeys;
use crate::sessions::{EndKind, SessionEnd, SessionInfo, SessionKey, SessionNews};
use crate::upstream::{Asker, Upstream};

/// Answers a request that the edge itself does not know, such as `dev`'s page; `None` to answer 404.
pub type Routes = Arc<dyn Fn(&http::Request<()>) -> Option<http::Response<Bytes>> + Send + Sync>;

/// What all workers of a node share. Read-only, or atomics off the delivery path.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) settings: Arc<Settings>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) tickets: Arc<TicketKeys>,
    /// What clients are told of when and where to come back.
    pub(crate) plans: Plans,
    /// Tickets spent in this process, for when the core is out of reach. Locked once for each resume.
    pub(crate) spent: Mutex<SpentTable<()>>,
    pub(crate) door: Door,
    pub(crate) origins: OriginPolicy,
    pub(crate) routes: Option<Routes>,
    /// `Alt-Svc` for answers over TLS, where HTTP/3 is served (RFC 7838 §3).
    pub(crate) alt_svc: Option<HeaderValue>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) connections: Arc<AtomicUsize>,
    /// Commands to every worker, in order.
    pub(crate) workers: Vec<mpsc::Sender<Command>>,
    /// Cancelled once TCP connections are accepted here.
    pub(crate) open: CancellationToken,
    /// Cancelled once another process accepts them.
    pub(crate) handed_over: CancellationToken,
    /// Lame duck: nothing new is admitted, sessions are told to go.
    pub(crate) drain: CancellationToken,
    /// Long-poll sessions of the node: while there are any, HTTP connections outlive the drain, for the polls that
    /// bring the close.
    pub(crate) long_polls: watch::Sender<usize>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shared {
    /// Waits until the node drains and every long-poll session has been told: sessions bound that wait themselves.
    pub(crate) async fn farewell(&self) {
        self.drain.cancelled().await;
        // The sender is here: it outlives this.
        let _ = self.long_polls.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// From one worker to another.
#[derive(Debug)]
pub(crate) enum Command {
    /// A long poll that arrived at the wrong worker.
    Poll {
        /// The request.
        request: tidegate_fallback::longpoll::PollRequest,
        /// Whose it is.
        session: SessionId,
        /// Where the response goes.
        response: oneshot::Sender<http::Response<Bytes>>,
    },
    /// Which sessions there are.
    List {
        /// Where the answer goes.
        response: oneshot::Sender<Vec<SessionInfo>>,
    },
    /// Ask these to move.
    Goaway {
        /// Whom, and how.
        asked: Vec<(SessionKey, Goaway)>,
        /// How many of them were asked.
        response: oneshot::Sender<usize>,
    },
    /// Tell every end.
    Watch {
        /// To whom; what it does not take is not told.
        news: mpsc::Sender<SessionNews>,
    },
}

/// A connection that counts against the node's bound, until dropped.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<AtomicUsize>);

#[cfg(test)]
impl Admitted {
    /// Counts against nobody's bound.
    pub(crate) fn uncounted() -> Self {
        Self(Arc::new(AtomicUsize::new(1)))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One worker. Lives on its thread.
pub(crate) struct Worker {
    index: u8,
    shared: Arc<Shared>,
    registry: RefCell<Registry>,
    presence: RefCell<Presence>,
    upstream: OnceCell<Upstream>,
    sessions: RefCell<Slab<Rc<Session>>>,
    long_polls: RefCell<HashMap<SessionId, LongPoll>>,
    /// Which connections serve a session that was given a ticket: several while it moves.
    known: RefCell<BTreeSet<(SessionId, usize)>>,
    events: RefCell<Slab<Rc<Events>>>,
    rng: RefCell<ChaCha8Rng>,
    tracker: TaskTracker,
    /// Of sessions, so that none is taken for one that was there before it.
    serials: Cell<u32>,
    /// Who hears of ends.
    news: RefCell<Option<mpsc::Sender<SessionNews>>>,
}

/// A session by long poll.
struct LongPoll {
    handle: LongPollHandle,
    /// Its key.
    session: usize,
    /// When the end of a poll was told.
    told: Option<Instant>,
    _resident: Resident,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Worker {
    pub(crate) fn new(index: u8, shared: Arc<Shared>) -> Self {
        Self {
            index,
            shared,
            registry: RefCell::default(),
            presence: RefCell::default(),
            upstream: OnceCell::new(),
            sessions: RefCell::default(),
            long_polls: RefCell::default(),
            known: RefCell::default(),
            events: RefCell::default(),
            rng: RefCell::new(clock::rng()),
            tracker: TaskTracker::new(),
            serials: Cell::new(0),
            news: RefCell::default(),
        }
    }

    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.config.limits
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.shared.settings)
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(crate) fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    pub(crate) fn registry(&self) -> RefMut<'_, Registry> {
        self.registry.borrow_mut()
    }

    pub(crate) fn presence(&self) -> RefMut<'_, Presence> {
        self.presence.borrow_mut()
    }

    /// Set once, before anything is served.
    pub(crate) fn attach(&self, upstream: Upstream) {
        assert!(self.upstream.set(upstream).is_ok(), "a worker has one link");
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        self.upstream.get().expect("attached before anything is served")
    }

    /// Spawns on this thread; shutdown waits for it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tracker.spawn_local(task);
    }

    /// Why no session can go on here, where so.
    pub(crate) fn ending(&self) -> Option<(CloseCode, &'static str)> {
        if self.shared.drain.is_cancelled() {
            Some((CloseCode::Shutdown, "the server is going away"))
        } else if self.upstream().is_lost() {
            Some((CloseCode::CoreUnavailable, "the channel tier is out of reach"))
        } else {
            None
        }
    }

    /// Room for one more session; `None` at the node's bound, while the core is behind or gone, and while draining.
    pub(crate) fn admit(&self) -> Option<Admitted> {
        if self.ending().is_some() { None } else { self.admit_connection() }
    }

    /// Room for one more connection: as for a session, but also while draining, for a known session's last poll.
    pub(crate) fn admit_connection(&self) -> Option<Admitted> {
        if self.upstream().is_lost() || self.upstream().is_congested() {
            return None;
        }
        let connections = &self.shared.connections;
        let admitted = Admitted(Arc::clone(connections));
        let before = connections.fetch_add(1, Ordering::Relaxed);
        // Dropping `admitted` takes it back.
        (before < self.limits().connections).then_some(admitted)
    }

    pub(crate) fn new_session_id(&self) -> SessionId {
        SessionId::generate(&mut *self.rng.borrow_mut(), self.index)
    }

    /// What clients are told of when and where to come back.
    pub(crate) fn plans(&self) -> &Plans {
        &self.shared.plans
    }

    /// After how long a connection that begins now is to be renewed.
    pub(crate) fn lifetime(&self) -> Option<Duration> {
        let longest = self.limits().renewal;
        let share = self.rng.borrow_mut().random_range(0.5..1.0);
        (!longest.is_zero()).then(|| longest.mul_f64(share))
    }

    /// Where a connection that has grown old goes on.
    pub(crate) fn renewal(&self) -> Renewal {
        self.plans().renewal(&mut self.rng.borrow_mut())
    }

    /// Checks a token.
    pub(crate) fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        self.shared.authenticator.verify(token, clock::now(), clock::wall())
    }

    pub(crate) fn enroll(&self, session: Rc<Session>) -> usize {
        self.sessions.borrow_mut().insert(session)
    }

    /// Tells sessions apart whose keys are the same, one after the other.
    pub(crate) fn new_serial(&self) -> u32 {
        let serial = self.serials.get().wrapping_add(1);
        self.serials.set(serial);
        serial
    }

    /// The sessions that are served here, and the streams of events.
    pub(crate) fn list(&self) -> Vec<SessionInfo> {
        let sessions = self.sessions.borrow();
        let events = self.events.borrow();
        let streams = events.iter().map(|(key, _)| SessionInfo {
            key: self.stream_key(key),
            transport: TransportKind::Sse,
            moves: false,
            busy: false,
            leaving: false,
            part: None,
        });
        sessions.iter().filter_map(|(_, session)| session.info()).chain(streams).collect()
    }

    /// Asks a session to move, ends a stream. False where it is gone, or not served yet.
    pub(crate) fn goaway(&self, key: SessionKey, goaway: Goaway) -> bool {
        if key.is_stream {
            let events = self.events.borrow().get(key.index as usize).cloned();
            let Some(events) = events else { return false };
            // It comes back by itself, wherever its name leads then.
            events.end(CloseCode::Shutdown, &goaway.reason);
            return true;
        }
        let session = self.sessions.borrow().get(key.index as usize).cloned();
        let asked = session.is_some_and(|session| session.key() == key && session.goaway(goaway));
        if asked {
            self.metrics().goaways.inc();
        }
        asked
    }

    /// From now on ends are told.
    pub(crate) fn watch(&self, news: mpsc::Sender<SessionNews>) {
        self.news.replace(Some(news));
    }

    /// A connection ended.
    pub(crate) fn tell_end(&self, key: SessionKey, kind: EndKind) {
        let mut news = self.news.borrow_mut();
        let end = SessionNews::End(SessionEnd { key, kind });
        match news.as_ref().map(|news| news.try_send(end)) {
            Some(Err(mpsc::error::TrySendError::Full(_))) => {
                self.metrics().ends_untold.inc();
            }
            Some(Err(mpsc::error::TrySendError::Closed(_))) => *news = None,
            Some(Ok(())) | None => {}
        }
    }

    /// A poll is about to be answered. True where somebody may have a `goaway` for it in a moment.
    pub(crate) fn tell_poll_end(&self, session: SessionId) -> bool {
        let mut news = self.news.borrow_mut();
        let Some(watcher) = &*news else { return false };
        let mut long_polls = self.long_polls.borrow_mut();
        let Some(poll) = long_polls.get_mut(&session) else { return false };
        let now = clock::now();
        // Once for each time that the watcher takes to answer.
        let is_waited_for = poll.told.is_some_and(|at| now.saturating_duration_since(at) < POLL_PATIENCE);
        let key = {
            let sessions = self.sessions.borrow();
            let session = sessions.get(poll.session).filter(|session| session.takes_goaway());
            session.map(|session| session.key())
        };
        let Some(key) = key.filter(|_| !is_waited_for) else { return false };
        match watcher.try_send(SessionNews::PollEnd(key)) {
            Ok(()) => {
                poll.told = Some(now);
                true
            }
            // The next end will do.
            Err(mpsc::error::TrySendError::Full(_)) => false,
            Err(mpsc::error::TrySendError::Closed(_)) => {
                *news = None;
                false
            }
        }
    }

    fn stream_key(&self, key: usize) -> SessionKey {
        let index = u32::try_from(key).unwrap_or(u32::MAX);
        SessionKey { worker: self.index, is_stream: true, index, serial: 0 }
    }

    pub(crate) fn dismiss(&self, key: usize) {
        let session = self.sessions.borrow_mut().try_remove(key);
        if let Some(id) = session.as_ref().and_then(|session| session.known_as()) {
            self.known.borrow_mut().remove(&(id, key));
        }
        let long_poll = session.and_then(|session| self.long_polls.borrow_mut().remove(&session.id()));
        if long_poll.is_some() {
            self.shared.long_polls.send_modify(|count| *count -= 1);
        }
    }

    /// Seals and opens tickets.
    pub(crate) fn tickets(&self) -> &TicketKeys {
        &self.shared.tickets
    }

    /// From now on a connection is told of what becomes of its session.
    pub(crate) fn make_known(&self, session: SessionId, key: usize) {
        self.known.borrow_mut().insert((session, key));
    }

    /// A session was resumed elsewhere, or revoked.
    pub(crate) fn session_moved(&self, session: SessionId, generation: u32, told: Told) {
        let keys: Vec<usize> =
            self.known.borrow().range((session, 0)..=(session, usize::MAX)).map(|(_, key)| *key).collect();
        for key in keys {
            let connection = self.sessions.borrow().get(key).cloned();
            if let Some(connection) = connection {
                connection.moved(generation, told);
            }
        }
    }

    /// Asks the core whether a ticket was spent.
    pub(crate) fn spend(&self, session: &Rc<Session>, spending: Spending, holder: LinkName) {
        let asker = Asker::Spend { session: Rc::downgrade(session) };
        self.upstream().ask(asker, |request| EdgeFrame::Spend { request, spending, holder });
    }

    /// Whether a ticket was spent, as far as this process knows.
    pub(crate) fn spend_here(&self, spending: &Spending) -> Outcome {
        let mut spent = self.shared.spent.lock().unwrap_or_else(PoisonError::into_inner);
        spent.spend(clock::unix_ms(), spending, ()).outcome
    }

    pub(crate) fn long_poll(&self, session: SessionId) -> Option<LongPollHandle> {
        self.long_polls.borrow().get(&session).map(|poll| poll.handle.clone())
    }

    /// A session by long poll begins; `key` is its key.
    pub(crate) fn add_long_poll(
        &self,
        id: SessionId,
        key: usize,
        handle: LongPollHandle,
        resident: Resident,
    ) {
        let poll = LongPoll { handle, session: key, told: None, _resident: resident };
        self.long_polls.borrow_mut().insert(id, poll);
        self.shared.long_polls.send_modify(|count| *count += 1);
    }

    pub(crate) fn subscribe(
        &self,
        session: &Rc<Session>,
        slot: u32,
        ask: u32,
        channel: ChannelName,
        position: Option<Position>,
    ) {
        let session = Rc::downgrade(session);
        let asker = Asker::Subscribe { session, slot, ask, asked: position.is_some() };
        self.upstream().ask(asker, |request| EdgeFrame::Subscribe { request, channel, position });
    }

    /// Takes a subscriber off the registry; the core hears of it where it was the channel's last.
    pub(crate) fn unsubscribe(&self, channel: &ChannelName, key: usize) {
        if self.registry().remove(channel, key) {
            self.upstream().send(EdgeFrame::Unsubscribe { channel: channel.clone() });
        }
    }

    pub(crate) fn publish(&self, session: &Rc<Session>, id: u64, publish: Publish) {
        let asker = Asker::Publish { session: Rc::downgrade(session), id, channel: publish.channel.clone() };
        self.upstream().ask(asker, |request| EdgeFrame::Publish { request, publish });
    }

    pub(crate) fn history(
        &self,
        session: &Rc<Session>,
        id: u64,
        channel: ChannelName,
        since: Option<Position>,
        limit: u32,
    ) {
        let asker = Asker::History { session: Rc::downgrade(session), id, channel: channel.clone() };
        let range = HistoryRange { since, limit, before: None };
        self.upstream().ask(asker, |request| EdgeFrame::History { request, channel, range });
    }

    pub(crate) fn members(&self, session: &Rc<Session>, id: u64, channel: ChannelName) {
        let asker = Asker::Members { session: Rc::downgrade(session), id, channel: channel.clone() };
        self.upstream().ask(asker, |request| EdgeFrame::Members { request, channel });
    }

    /// Subscribes a waiter; the key is for [`Worker::unsubscribe`].
    pub(crate) fn wait_on(
        &self,
        waiter: Rc<Waiter>,
        channel: &ChannelName,
        position: Option<Position>,
    ) -> usize {
        let key = self.registry().insert(channel, Subscriber::Waiter(Rc::clone(&waiter)));
        let channel = channel.clone();
        self.upstream().ask(Asker::Waiter(waiter), |request| EdgeFrame::Subscribe {
            request,
            channel,
            position,
        });
        key
    }

    /// Subscribes a stream of events; the keys are for [`Worker::unsubscribe`] and [`Worker::dismiss_events`].
    pub(crate) fn listen_to(
        &self,
        events: &Rc<Events>,
        channel: &ChannelName,
        position: Option<Position>,
    ) -> (usize, usize) {
        let key = self.registry().insert(channel, Subscriber::Events(Rc::clone(events)));
        let enrolled = self.events.borrow_mut().insert(Rc::clone(events));
        let channel = channel.clone();
        self.upstream().ask(Asker::Events(Rc::clone(events)), |request| EdgeFrame::Subscribe {
            request,
            channel,
            position,
        });
        (key, enrolled)
    }

    pub(crate) fn dismiss_events(&self, key: usize) {
        let events = self.events.borrow_mut().try_remove(key);
        if events.is_some() {
            self.tell_end(self.stream_key(key), EndKind::Closed(CloseCode::Shutdown));
        }
        drop(events);
    }

    /// A random time between the two.
    pub(crate) fn jitter(&self, least: Duration, most: Duration) -> Duration {
        let spread = (most - least).as_millis() as u64;
        least + Duration::from_millis(self.rng.borrow_mut().random_range(0..=spread))
    }

    /// The core is out of reach: every session is told to come back later.
    pub(crate) fn core_lost(&self) {
        let Some((code, reason)) = self.ending() else { return };
        for (_, session) in &*self.sessions.borrow() {
            session.end(code, reason);
        }
        for (_, events) in &*self.events.borrow() {
            events.end(code, reason);
        }
    }

    /// Tells every session that the node goes away, a few at a time. Those to come are told as they start.
    pub(crate) async fn end_all(&self) {
        let Some((code, reason)) = self.ending() else { return };
        let sessions: Vec<_> = self.sessions.borrow().iter().map(|(_, session)| Rc::clone(session)).collect();
        let streams: Vec<_> = self.events.borrow().iter().map(|(_, events)| Rc::clone(events)).collect();
        for chunk in streams.chunks(32) {
            for events in chunk {
                events.end(code, reason);
            }
            tokio::task::yield_now().await;
        }
        for chunk in sessions.chunks(32) {
            for session in chunk {
                session.end_answered(code, reason);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Lets go of everything that refers back here, for a worker whose tasks are about to be dropped.
    pub(crate) fn clear(&self) {
        self.upstream().clear();
        // Each taken out before it is dropped: a drop may come back here.
        let held = (self.sessions.take(), self.registry.take(), self.long_polls.take(), self.events.take());
        drop(held);
        let watching = self.presence.take();
        drop(watching);
        self.known.take();
    }
}
