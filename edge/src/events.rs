//! `GET /v1/channels/{channel}/events`: a subscriber that is told by Server-Sent Events, without a session.

mod stream;

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame};
use tidegate_fallback::events::EventWriter;
use tidegate_protocol::frame::CloseCode;
use tidegate_protocol::link::{Delivery, EdgeFrame, LinkError, Recovery};
use tidegate_protocol::{ChannelName, Position};
use tidegate_transport::{TransportKind, clock};
use tokio::time::Sleep;

use self::stream::{Outcome, Stream};
use crate::metrics::{CloseLabels, Code, Metrics};
use crate::upstream::{Asker, Run};
use crate::worker::{Admitted, Worker};

/// A stream of events, shared between its body, the registry and the upstream.
pub(crate) struct Events {
    worker: Rc<Worker>,
    inner: RefCell<Inner>,
}

struct Inner {
    stream: Stream,
    /// The core has answered once.
    answered: bool,
    /// The core's refusal, or what ended it: what waits is still written, then this is told.
    ending: Option<Ending>,
    waker: Option<Waker>,
    /// Bytes that the node's gauge knows of.
    counted: usize,
}

enum Ending {
    Refused(LinkError),
    Closed(CloseCode, String),
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// The core's answer.
    pub(crate) fn recovered(&self, result: Result<Recovery, LinkError>) {
        let inner = &mut *self.inner.borrow_mut();
        match result {
            Ok(recovery) => {
                let outcome = inner.stream.recovered(recovery);
                match outcome {
                    Some(Outcome::Recovered) => self.worker.metrics().recovered.inc(),
                    Some(Outcome::Gap) => self.worker.metrics().gaps.inc(),
                    Some(Outcome::Head) | None => 0,
                };
                if inner.stream.is_parked() {
                    self.worker.metrics().parked.inc();
                }
            }
            Err(error) => _ = inner.ending.get_or_insert(Ending::Refused(error)),
        }
        inner.answered = true;
        inner.count(self.worker.metrics(), inner.stream.waiting_bytes());
        inner.wake();
    }

    /// Takes a run of publications; how many wait now.
    pub(crate) fn deliver(&self, run: &Run) -> usize {
        let inner = &mut *self.inner.borrow_mut();
        let parked = inner.stream.is_parked();
        let taken = inner.stream.deliver(run.deliveries());
        if inner.stream.is_parked() && !parked {
            self.worker.metrics().parked.inc();
        }
        inner.count(self.worker.metrics(), inner.stream.waiting_bytes());
        inner.wake();
        taken
    }

    /// Takes an ephemeral item.
    pub(crate) fn deliver_ephemeral(&self, delivery: &Delivery) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let taken = inner.stream.deliver_ephemeral(delivery);
        inner.wake();
        taken
    }

    /// The channel's numbering began anew.
    pub(crate) fn rebased(&self, position: &Position) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.stream.rebased(position) {
            self.worker.metrics().gaps.inc();
            inner.wake();
        }
    }

    /// Ends it from the server's side, once what waits has been written.
    pub(crate) fn end(&self, code: CloseCode, reason: &str) {
        let inner = &mut *self.inner.borrow_mut();
        inner.ending.get_or_insert_with(|| Ending::Closed(code, reason.to_owned()));
        inner.wake();
    }
}

impl Inner {
    /// Tells the node's gauge what waits now.
    fn count(&mut self, metrics: &Metrics, bytes: usize) {
        if bytes != self.counted {
            metrics.queue_bytes.inc_by(bytes as i64 - self.counted as i64);
            self.counted = bytes;
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What a stream is opened with.
pub(crate) struct Opening {
    pub(crate) channel: ChannelName,
    pub(crate) position: Option<Position>,
    pub(crate) conflated: bool,
    /// When the token ends.
    pub(crate) expires: Option<Instant>,
    /// Where the stream is a connection of its own, beside others on one socket.
    pub(crate) admitted: Option<Admitted>,
}

/// Subscribes, and waits for the core's first answer.
///
/// # Errors
/// Where the core refuses: there is no stream then.
pub(crate) async fn open(worker: &Rc<Worker>, opening: Opening) -> Result<EventBody, LinkError> {
    let Opening { channel, position, conflated, expires, admitted } = opening;
    let stream = Stream::new(position.clone(), conflated, worker.limits().subscription_queue);
    let inner = Inner { stream, answered: false, ending: None, waker: None, counted: 0 };
    let events = Rc::new(Events { worker: Rc::clone(worker), inner: RefCell::new(inner) });
    let (key, enrolled) = worker.listen_to(&events, &channel, position);
    let now = clock::now();
    let kind = Metrics::index(TransportKind::Sse);
    worker.metrics().connections[kind].inc();
    worker.metrics().subscriptions.inc();
    let mut body = EventBody {
        worker: Rc::clone(worker),
        events,
        channel,
        key,
        enrolled,
        writer: EventWriter::default(),
        opened: now,
        expires,
        ping_at: now + worker.limits().ping,
        timer: Box::pin(tokio::time::sleep_until(now.into())),
        code: CloseCode::ConnectionLost,
        ended: false,
        _admitted: admitted,
    };
    std::future::poll_fn(|cx| body.poll_answered(cx)).await?;
    worker.metrics().connects[kind].inc();
    body.writer.retry(worker.jitter(RETRY_MIN, RETRY_MAX));
    Ok(body)
}

/// The body of the answer: pulled by whoever writes to the socket, so that a slow reader is not written for.
pub(crate) struct EventBody {
    worker: Rc<Worker>,
    events: Rc<Events>,
    channel: ChannelName,
    key: usize,
    enrolled: usize,
    writer: EventWriter,
    opened: Instant,
    expires: Option<Instant>,
    ping_at: Instant,
    timer: Pin<Box<Sleep>>,
    /// How it ends.
    code: CloseCode,
    ended: bool,
    _admitted: Option<Admitted>,
}

impl EventBody {
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let inner = &mut *self.events.inner.borrow_mut();
        if let Some(Ending::Refused(error)) = &inner.ending {
            self.code = CloseCode::CoreUnavailable;
            return Poll::Ready(Err(error.clone()));
        }
        if inner.answered || inner.ending.is_some() {
            return Poll::Ready(Ok(()));
        }
        inner.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let now = clock::now();
        if self.expires.is_some_and(|expires| expires <= now) {
            self.events.end(CloseCode::TokenExpired, "the token has expired");
        }
        let inner = &mut *self.events.inner.borrow_mut();
        inner.stream.write(&mut self.writer);
        inner.count(self.worker.metrics(), inner.stream.waiting_bytes());
        if self.writer.is_empty() {
            if let Some(ending) = &inner.ending {
                let (code, reason) = match ending {
                    Ending::Refused(error) => (CloseCode::CoreUnavailable, error.message.as_str()),
                    Ending::Closed(code, reason) => (*code, reason.as_str()),
                };
                self.code = code;
                self.ended = true;
                self.writer.close(code, reason, self.worker.jitter(RETRY_MIN, RETRY_MAX));
            } else if let Some(position) = inner.stream.refill() {
                let asker = Asker::Events(Rc::clone(&self.events));
                let channel = self.channel.clone();
                self.worker.upstream().ask(asker, |request| EdgeFrame::Subscribe {
                    request,
                    channel,
                    position: Some(position),
                });
            } else if self.ping_at <= now {
                self.writer.ping();
            }
        }
        if !self.writer.is_empty() {
            self.ping_at = now + self.worker.limits().ping;
            return Poll::Ready(Some(self.writer.take()));
        }
        inner.waker = Some(cx.waker().clone());
        let due = self.expires.map_or(self.ping_at, |expires| expires.min(self.ping_at));
        self.timer.as_mut().reset(due.into());
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for EventBody {
    /// However the stream ends: read to its end, refused, or the client hung up.
    fn drop(&mut self) {
        self.worker.unsubscribe(&self.channel, self.key);
        self.worker.dismiss_events(self.enrolled);
        let metrics = self.worker.metrics();
        self.events.inner.borrow_mut().count(metrics, 0);
        metrics.connections[Metrics::index(TransportKind::Sse)].dec();
        metrics.subscriptions.dec();
        let labels = CloseLabels { transport: TransportKind::Sse.name(), code: Code(self.code) };
        metrics.closes.get_or_create(&labels).inc();
        metrics.connection_age.observe(clock::now().duration_since(self.opened).as_secs_f64());
    }
}

/// The body of any answer.
pub(crate) enum AnswerBody {
    /// All of it is there.
    Whole(Full<Bytes>),
    /// It comes as things happen.
    Events(Box<EventBody>),
}

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Full::new(bytes))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Events(body) => body.poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Events(body) => body.ended && body.writer.is_empty(),
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Events(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// When an `EventSource` comes back: spread, so that those of one node do not come together.
pub(crate) const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest.
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(5);
