//! Long poll: a session over `POST /v1/poll`. The HTTP side holds a [`LongPollHandle`] per session and passes polls to
//! it; the session's driver holds the [`LongPollConnection`]. Both live on one thread and share a [`Mailbox`].

mod mailbox;
mod request;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_protocol::frame::shared::Framing;
use tidegate_protocol::frame::{ClientFrame, ServerBody, ServerFrame};
use tidegate_protocol::{ChannelName, SessionId};
use tidegate_transport::{Closing, Connection, Inbound, Lane, RecvError, Sent, TransportKind, clock};
use tokio::time::{Sleep, sleep, sleep_until};

pub use mailbox::{AckError, Arrival, BATCH_BYTES, BATCH_FRAMES, Batch, Mailbox};
pub(crate) use request::wait;
pub use request::{DEFAULT_WAIT, MAX_WAIT, PollError, PollRequest, PollResponse, status_of};

/// Bounds of one session.
#[derive(Debug, Clone, Copy)]
pub struct LongPollLimits {
    /// Bytes that wait for the client, or for its acknowledgement, before sends find the connection full.
    pub mailbox_bytes: usize,
    /// A session that is not polled for so long ends (PROTOCOL: 60 s, or 5 s where it goes on elsewhere).
    pub expiry: Duration,
}

/// A client by long poll, as its driver sees it. Dropping it ends the session for the HTTP side.
pub struct LongPollConnection {
    shared: Rc<RefCell<Shared>>,
    /// Set when the session began or was last found alive, not at every poll.
    timer: Pin<Box<Sleep>>,
}

/// A client by long poll, as the HTTP side sees it.
#[derive(Clone)]
pub struct LongPollHandle {
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    session: SessionId,
    limits: LongPollLimits,
    mailbox: Mailbox,
    /// Frames of accepted polls that the driver has not taken yet, at most [`MAX_REQUESTS`] polls' worth.
    inbound: VecDeque<Vec<ClientFrame>>,
    phase: Phase,
    /// Counts polls; the one with this number waits, those before it are superseded.
    newest_poll: u64,
    /// When the last poll was answered or given up; `None` while one waits.
    idle_since: Option<Instant>,
    /// The driver's.
    task: Option<Waker>,
    /// The waiting poll's.
    poll: Option<Waker>,
}

enum Phase {
    Open,
    /// The close frame is in the mailbox.
    Closing(Closing),
    Ended,
}

impl LongPollConnection {
    /// Opens a session that has not been polled yet.
    pub fn open(session: SessionId, limits: LongPollLimits) -> (Self, LongPollHandle) {
        let shared = Rc::new(RefCell::new(Shared {
            session,
            limits,
            mailbox: Mailbox::new(limits.mailbox_bytes),
            inbound: VecDeque::new(),
            phase: Phase::Open,
            newest_poll: 0,
            idle_since: Some(clock::now()),
            task: None,
            poll: None,
        }));
        let connection = Self { shared: shared.clone(), timer: Box::pin(sleep(limits.expiry)) };
        (connection, LongPollHandle { shared })
    }
}

impl LongPollHandle {
    /// The session that it belongs to.
    pub fn session(&self) -> SessionId {
        self.shared.borrow().session
    }

    /// Hands the request's frames to the session and answers with the next batch, as soon as there is one.
    ///
    /// A newer poll of the same session makes this one return at once. Dropping the future gives the poll up.
    pub fn poll(&self, request: PollRequest) -> impl Future<Output = PollResponse> + use<> {
        self.poll_longer(request, || Duration::ZERO)
    }

    /// The same; `longer` is asked once, when the time is over and there is no frame, how much longer one may come.
    pub fn poll_longer<F: FnOnce() -> Duration>(
        &self,
        request: PollRequest,
        longer: F,
    ) -> impl Future<Output = PollResponse> + use<F> {
        let shared = self.shared.clone();
        async move {
            let number = match shared.borrow_mut().arrive(request.ack, request.frames) {
                Ok(number) => number,
                Err(response) => return response,
            };
            let waiting = Waiting { shared, number, ack: request.ack };
            let (mut timer, mut longer) = (None, Some(longer));
            poll_fn(|cx| {
                if let Poll::Ready(response) = waiting.poll_answer(cx) {
                    return Poll::Ready(response);
                }
                let timer = timer.get_or_insert_with(|| Box::pin(sleep(request.wait)));
                loop {
                    ready!(timer.as_mut().poll(cx));
                    match longer.take().map(|longer| longer()) {
                        Some(more) if !more.is_zero() => timer.set(sleep(more)),
                        _ => return Poll::Ready(waiting.no_frames()),
                    }
                }
            })
            .await
        }
    }
}

/// A poll that waits, until it is answered or dropped.
struct Waiting {
    shared: Rc<RefCell<Shared>>,
    number: u64,
    /// What its client has.
    ack: u64,
}

impl Waiting {
    fn poll_answer(&self, cx: &Context<'_>) -> Poll<PollResponse> {
        let mut shared = self.shared.borrow_mut();
        if shared.newest_poll == self.number {
            shared.poll_answer(cx)
        } else {
            Poll::Ready(self.empty(&shared))
        }
    }

    fn no_frames(&self) -> PollResponse {
        self.empty(&self.shared.borrow())
    }

    /// Names the batch that this poll acknowledged. The newest may be on its way in the answer to a newer poll: a
    /// client that were told its number here would acknowledge what it never got.
    fn empty(&self, shared: &Shared) -> PollResponse {
        PollResponse::batch(shared.session, Batch { number: self.ack, frames: &[] })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        if shared.newest_poll == self.number {
            shared.idle_since = Some(clock::now());
            shared.poll = None;
        }
    }
}

impl Shared {
    /// Takes a poll in; the number to wait with, or an answer that needs no waiting.
    fn arrive(&mut self, ack: u64, frames: Vec<ClientFrame>) -> Result<u64, PollResponse> {
        // Told before anything changes: the client sends the same poll again.
        if !frames.is_empty() && self.inbound.len() >= MAX_REQUESTS && ack == self.mailbox.last_batch() {
            return Err(PollError::TooMany.into());
        }
        let arrival =
            self.mailbox.acknowledge(ack).map_err(|error| PollResponse::from(PollError::from(error)))?;
        if let (Arrival::Repeat, Some(batch)) = (arrival, self.mailbox.kept_batch()) {
            // Also after the end: the lost answer may have held the close frame.
            if self.idle_since.is_some() {
                self.idle_since = Some(clock::now());
            }
            return Err(PollResponse::batch(self.session, batch));
        }
        match self.phase {
            Phase::Open if !frames.is_empty() => self.inbound.push_back(frames),
            Phase::Open | Phase::Closing(_) => {}
            Phase::Ended => return Err(PollError::UnknownSession.into()),
        }
        self.newest_poll += 1;
        self.idle_since = None;
        wake(&mut self.poll);
        // There are frames to take, or room after the acknowledgement.
        wake(&mut self.task);
        Ok(self.newest_poll)
    }

    /// For the newest poll.
    fn poll_answer(&mut self, cx: &Context<'_>) -> Poll<PollResponse> {
        if let Phase::Closing(closing) = &self.phase
            && self.mailbox.last_batch() == 0
            && self.mailbox.queued() == 1
        {
            // The session never came to be: HTTP's own way to say so.
            let response = PollResponse::refused(closing.code, &closing.reason);
            self.mailbox.clear_queue();
            wake(&mut self.task);
            return Poll::Ready(response);
        }
        if let Some(batch) = self.mailbox.make_batch() {
            let response = PollResponse::batch(self.session, batch);
            if matches!(self.phase, Phase::Closing(_)) {
                wake(&mut self.task);
            }
            return Poll::Ready(response);
        }
        if matches!(self.phase, Phase::Ended) {
            return Poll::Ready(PollError::UnknownSession.into());
        }
        remember(&mut self.poll, cx);
        Poll::Pending
    }

    fn end(&mut self) {
        self.phase = Phase::Ended;
        self.inbound = VecDeque::new();
        // The driver's task may live on only through its waker.
        self.task = None;
        wake(&mut self.poll);
    }

    fn check_open(&self) -> Result<(), RecvError> {
        match self.phase {
            Phase::Open => Ok(()),
            _ => Err(RecvError::Lost("the long-poll session is closing".to_owned())),
        }
    }
}

impl Connection for LongPollConnection {
    fn kind(&self) -> TransportKind {
        TransportKind::LongPoll
    }

    fn framing(&self) -> Framing {
        Framing::Text
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Inbound, RecvError>> {
        let mut shared = self.shared.borrow_mut();
        shared.check_open()?;
        remember(&mut shared.task, cx);
        if let Some(frames) = shared.inbound.pop_front() {
            if shared.inbound.is_empty() {
                shared.inbound = VecDeque::new();
            }
            return Poll::Ready(Ok(Inbound::Frames(frames)));
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = clock::now();
            let deadline = shared.idle_since.unwrap_or(now) + shared.limits.expiry;
            if deadline <= now {
                let waited = shared.limits.expiry;
                shared.end();
                return Poll::Ready(Err(RecvError::Lost(format!("not polled for {waited:?}"))));
            }
            self.timer.set(sleep_until(deadline.into()));
        }
    }

    fn open_lane(&mut self, _subscription: u32, _channel: &ChannelName, _rank: i8) {}

    fn close_lane(&mut self, _subscription: u32) {}

    fn finish_catch_up(&mut self, _subscription: u32) {}

    fn send(&mut self, _lane: Lane, bytes: &Bytes) -> Result<Sent, RecvError> {
        let mut shared = self.shared.borrow_mut();
        shared.check_open()?;
        if shared.mailbox.is_full() {
            return Ok(Sent::Full);
        }
        shared.mailbox.push(bytes.clone());
        wake(&mut shared.poll);
        Ok(Sent::Taken)
    }

    fn send_datagram(&mut self, _bytes: &Bytes) -> bool {
        false
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, _lane: Lane) -> Poll<Result<(), RecvError>> {
        let mut shared = self.shared.borrow_mut();
        shared.check_open()?;
        if shared.mailbox.is_full() {
            remember(&mut shared.task, cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Adds the `close` frame if it was not the last one sent, and waits until a poll has taken everything.
    fn poll_close(&mut self, cx: &mut Context<'_>, closing: &Closing) -> Poll<()> {
        let mut shared = self.shared.borrow_mut();
        if matches!(shared.phase, Phase::Open) {
            if !shared.mailbox.ends_with(CLOSE_PREFIX) {
                let close = ServerFrame::new(0, ServerBody::Close(closing.code.frame(&closing.reason)));
                shared.mailbox.push(Framing::Text.encode(&close));
            }
            shared.phase = Phase::Closing(closing.clone());
            wake(&mut shared.poll);
        }
        if shared.mailbox.queued() == 0 {
            shared.end();
        }
        if matches!(shared.phase, Phase::Ended) {
            return Poll::Ready(());
        }
        remember(&mut shared.task, cx);
        Poll::Pending
    }

    /// A client's `done` may not reach this process: its poll holds the one connection that leads here, and another one leads to
    /// whoever listens now. No further poll comes then, which is as good.
    fn supersede(&mut self) {
        let mut shared = self.shared.borrow_mut();
        shared.limits.expiry = shared.limits.expiry.min(SUPERSEDED);
        self.timer.set(sleep(shared.limits.expiry));
        wake(&mut shared.task);
    }

    fn buffered(&self) -> usize {
        self.shared.borrow().mailbox.bytes()
    }
}

impl Drop for LongPollConnection {
    fn drop(&mut self) {
        self.shared.borrow_mut().end();
    }
}

impl fmt::Debug for LongPollConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LongPollConnection({:?})", self.shared.borrow().session)
    }
}

impl fmt::Debug for LongPollHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LongPollHandle({:?})", self.shared.borrow().session)
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn remember(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

/// From one poll to the next of a session that goes on elsewhere.
const SUPERSEDED: Duration = Duration::from_secs(5);
/// Polls whose frames may wait for the driver.
const MAX_REQUESTS: usize = 4;
/// How a `close` frame begins in JSON: it answers nothing, so it has no id.
const CLOSE_PREFIX: &[u8] = b"{\"close\":";

#[cfg(test)]
mod tests;
