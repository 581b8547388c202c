//! The session's task: reads, asks the core, keeps the machine's time, and ends the connection.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tidegate_protocol::ChannelName;
use tidegate_protocol::frame::{ClientFrame, CloseCode, Goaway};
use tidegate_protocol::grants::Identity;
use tidegate_protocol::session::server::Event;
use tidegate_transport::{Closing, Inbound, Lane, RecvError, clock};
use tokio::time::Sleep;
use tracing::{debug, trace};

use super::{Inner, Session};
use crate::metrics::{CloseLabels, Code, Metrics};
use crate::policy::plan::Renewal;
use crate::registry::Subscriber;
use crate::sessions::EndKind;

/// How serving ended.
pub(super) enum Ending {
    /// By our decision, or the client's: the close is still to be sent.
    Close(Closing),
    /// The network, or the client without a word: nobody listens.
    Gone(CloseCode),
}

enum Turn {
    Again,
    Idle,
    Over(Ending),
}

impl Session {
    /// Serves until the session ends.
    pub(super) async fn serve(self: &Rc<Self>) -> Ending {
        let mut timer = Timer::default();
        poll_fn(|cx| {
            // One stays registered: the fan-out wakes this task by it.
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            drop(waker);
            for _ in 0..TURNS {
                match self.turn(cx, &mut timer) {
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

    fn turn(self: &Rc<Self>, cx: &mut Context<'_>, timer: &mut Timer) -> Turn {
        let inner = &mut *self.inner.borrow_mut();
        match self.try_turn(cx, inner, timer) {
            Ok(turn) => turn,
            Err(error) => self.fail(inner, error),
        }
    }

    fn try_turn(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        inner: &mut Inner,
        timer: &mut Timer,
    ) -> Result<Turn, RecvError> {
        if let Some(ending) = self.drain_events(inner) {
            return Ok(Turn::Over(Ending::Close(ending)));
        }
        if let Some(error) = inner.broken.take() {
            return Err(error);
        }
        self.flush(cx, inner)?;
        if self.refill(cx, inner)? {
            return Ok(Turn::Again);
        }
        self.tell_presence_gaps(cx, inner)?;
        if self.poll_resume(cx, inner)? {
            return Ok(Turn::Again);
        }
        let gate = inner.gate.as_ref().and_then(|gate| gate.poll_timeout());
        let timeouts = [inner.machine.poll_timeout(), inner.repeats.poll_timeout(), gate];
        if timer.poll_elapsed(cx, timeouts.into_iter().flatten().min()) {
            let plan = self.worker.plans().current();
            if inner.machine.plan_epoch() != Some(plan.epoch) {
                inner.machine.handle_plan(plan);
            }
            inner.machine.handle_timeout(clock::now());
            self.open_gate(inner);
            self.repeat(inner);
            return Ok(Turn::Again);
        }
        if !self.reads(inner) {
            // Reading pushes out what a transport still holds; now this does.
            if let Poll::Ready(result) = inner.connection.poll_ready(cx, Lane::Control) {
                result?;
            }
            return Ok(Turn::Idle);
        }
        if inner.unread.is_empty() {
            match inner.connection.poll_recv(cx) {
                Poll::Pending => return Ok(Turn::Idle),
                Poll::Ready(inbound) => match inbound? {
                    Inbound::Frames(frames) => inner.unread = frames.into(),
                    Inbound::Datagram(frames) => {
                        self.worker.metrics().datagrams_in.inc();
                        return Ok(self.take_datagram(inner, frames));
                    }
                    Inbound::Closed { code } => {
                        debug!(code, "closed by the client");
                        inner.machine.abandon();
                        self.discard_backlog(inner);
                        let closing = Closing { code: CloseCode::Done, reason: String::new() };
                        return Ok(Turn::Over(Ending::Close(closing)));
                    }
                },
            }
        }
        Ok(self.take_frames(inner))
    }

    /// Handles what was read, until the machine wants no more.
    fn take_frames(self: &Rc<Self>, inner: &mut Inner) -> Turn {
        while let Some(frame) = inner.unread.pop_front() {
            trace!(id = frame.id, "frame");
            let now = clock::now();
            let handled = if inner.connection.is_early() {
                inner.machine.handle_early_frame(now, frame)
            } else {
                inner.machine.handle_frame(now, frame)
            };
            if let Err(error) = handled {
                inner.machine.end(error.close_code(), &error.to_string());
            }
            if let Some(ending) = self.drain_events(inner) {
                return Turn::Over(Ending::Close(ending));
            }
            if !self.reads(inner) {
                return Turn::Again;
            }
        }
        // An idle session holds no buffer.
        inner.unread = Default::default();
        Turn::Again
    }

    /// Ephemeral, so that what is too much is dropped.
    fn take_datagram(self: &Rc<Self>, inner: &mut Inner, frames: Vec<ClientFrame>) -> Turn {
        for frame in frames {
            // Early data can be sent again by whoever recorded it, and what is ephemeral may be dropped.
            if !self.reads(inner) || inner.connection.is_early() {
                break;
            }
            if let Err(error) = inner.machine.handle_datagram(clock::now(), frame) {
                inner.machine.end(error.close_code(), &error.to_string());
            }
            if let Some(ending) = self.drain_events(inner) {
                return Turn::Over(Ending::Close(ending));
            }
        }
        Turn::Again
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
                Event::Knock => self.knock(inner),
                Event::Authenticate { token } => self.authenticate(inner, token),
                Event::Resume { ticket, key } => self.resume(inner, &ticket, key.as_deref()),
                Event::Unanswered => self.decide_here(inner),
                Event::Issue => self.issue(inner),
                Event::Opened => {
                    inner.gate = None;
                    self.worker.metrics().connects[Metrics::index(self.kind)].inc();
                }
                Event::Renew => self.renew(inner),
                Event::Subscribe { slot, ask, begins, channel, position, rank } => {
                    if begins {
                        self.join(inner, slot, &channel, rank);
                    } else {
                        self.rank(inner, slot, rank);
                    }
                    self.worker.subscribe(self, slot, ask, channel, position);
                }
                event @ Event::Present { .. } => self.present(inner, event),
                Event::Unsubscribe { slot, .. } => self.leave(inner, slot),
                Event::Publish { id, publish } => self.worker.publish(self, id, publish),
                Event::History { id, channel, since, limit } => {
                    self.worker.history(self, id, channel, since, limit);
                }
                Event::Members { id, channel } => self.worker.members(self, id, channel),
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

    /// The connection is old: the client is asked to make another one.
    fn renew(&self, inner: &mut Inner) {
        let now = clock::now();
        let endpoint = match self.worker.renewal() {
            Renewal::To(place) => Some(format!("https://{place}")),
            Renewal::Anywhere => None,
            Renewal::Later => return inner.machine.renew_later(now),
        };
        let deadline_ms = RENEWAL_DEADLINE.as_millis() as u64;
        let reason = "renewal".to_owned();
        if inner.machine.renew(now, Goaway { endpoint, deadline_ms, reason, ..Goaway::default() }) {
            self.worker.metrics().renewals.inc();
        }
    }

    /// Says that a subscription counts for who is on its channel.
    pub(super) fn present(self: &Rc<Self>, inner: &mut Inner, event: Event) {
        if let Event::Present { slot, channel, user, watch } = event {
            self.worker.be_present(self, &mut inner.present, slot, &channel, user, watch);
        }
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

    fn join(self: &Rc<Self>, inner: &mut Inner, slot: u32, channel: &ChannelName, rank: i8) {
        inner.connection.open_lane(slot, channel, rank);
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

    fn rank(&self, inner: &mut Inner, slot: u32, rank: i8) {
        inner.connection.rank_lane(slot, rank);
        if let Some(backlog) = &mut inner.backlog {
            backlog.set_rank(slot, rank);
        }
    }

    fn leave(&self, inner: &mut Inner, slot: u32) {
        let Some((channel, key)) = inner.keys.get_mut(slot as usize).and_then(Option::take) else { return };
        self.worker.unsubscribe(&channel, key);
        self.worker.be_gone(&mut inner.present, slot);
        self.worker.metrics().subscriptions.dec();
        inner.connection.close_lane(slot);
        inner.parked.retain(|parked| *parked != slot);
        inner.presence_gaps.retain(|gap| *gap != slot);
        self.drop_lane(inner, slot);
        inner.repeats.drop_lane(slot);
    }

    /// Ends the connection: what was queued on the control lane, the close, then the transport; all within the bound.
    pub(super) async fn close(&self, ending: Ending) {
        self.release();
        let code = match ending {
            Ending::Gone(code) => code,
            Ending::Close(closing) => {
                let goodbye = poll_fn(|cx| self.poll_goodbye(cx, &closing));
                if tokio::time::timeout(self.worker.limits().close, goodbye).await.is_err() {
                    // It did not take its control frames. The transport's own close may reach it yet, with the code.
                    let inner = &mut *self.inner.borrow_mut();
                    let mut cx = Context::from_waker(Waker::noop());
                    let _dropped_next = inner.connection.poll_close(&mut cx, &closing);
                }
                closing.code
            }
        };
        let inner = &mut *self.inner.borrow_mut();
        self.discard_backlog(inner);
        inner.gate = None;
        let metrics = self.worker.metrics();
        metrics.connections[Metrics::index(self.kind)].dec();
        metrics.closes.get_or_create(&CloseLabels { transport: self.kind.name(), code: Code(code) }).inc();
        let kind = match code {
            _ if inner.machine.has_moved() => EndKind::Moved,
            CloseCode::Done => EndKind::Done,
            code => EndKind::Closed(code),
        };
        if kind == EndKind::Moved {
            metrics.moves.inc();
        }
        self.worker.tell_end(self.key(), kind);
        metrics.connection_age.observe(clock::now().duration_since(self.opened).as_secs_f64());
        debug!(code = code.number(), "ended");
    }

    fn poll_goodbye(&self, cx: &mut Context<'_>, closing: &Closing) -> Poll<()> {
        let inner = &mut *self.inner.borrow_mut();
        if inner.broken.is_some() || self.flush(cx, inner).is_err() {
            return Poll::Ready(());
        }
        if inner.backlog.is_some() {
            return Poll::Pending;
        }
        inner.connection.poll_close(cx, closing)
    }

    /// Takes every subscription off the registry, so that nothing more is delivered.
    fn release(&self) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.machine.is_expected_elsewhere() {
            self.worker.be_gone_later(std::mem::take(&mut inner.present));
        }
        for slot in (0u32..).take(inner.keys.len()) {
            self.leave(inner, slot);
        }
    }
}

/// One timer that follows the machine's deadline; boxed on first use, and reset only when the deadline moved.
#[derive(Default)]
struct Timer {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn poll_elapsed(&mut self, cx: &mut Context<'_>, at: Option<Instant>) -> bool {
        let Some(at) = at else { return false };
        let deadline = tokio::time::Instant::from_std(at);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if self.at.replace(at).is_some_and(|before| before != at) {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}

/// Rounds of one poll.
const TURNS: usize = 32;
/// For a client to have another connection; then it stays where it is.
const RENEWAL_DEADLINE: Duration = Duration::from_secs(300);
