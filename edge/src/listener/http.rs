//! HTTP on any carrier: WebSocket, long poll, channel poll, events. And HTTP/1.1 and HTTP/2 on TCP.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tidegate_fallback::http::{
    allow_origin, check_origin, error_code_response, error_response, preflight_response, request_slot,
    request_token, retry_after, vary_by_origin,
};
use tidegate_fallback::longpoll::{
    BATCH_BYTES, LongPollConnection, LongPollLimits, PollRequest, PollResponse,
};
use tidegate_fallback::websocket::{WebSocketConnection, WebSocketLimits, downcast, upgrade};
use tidegate_protocol::SessionId;
use tidegate_protocol::frame::{CloseCode, ErrorCode};
use tidegate_protocol::grants::Identity;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::channels::{self, Verb};
use super::tcp::failed;
use crate::connection::{self, Entrance};
use crate::door::{Rejection, Visitor};
use crate::events::{AnswerBody, RETRY_MAX, RETRY_MIN};
use crate::policy::admission::SlotTicket;
use crate::policy::drain::POLL_PATIENCE;
use crate::worker::{Admitted, Command, Worker};

/// What the requests of one connection share.
pub(super) struct Carrier {
    worker: Rc<Worker>,
    /// Taken over by the session of a WebSocket; otherwise given back with the TCP connection.
    admitted: RefCell<Option<Admitted>>,
    /// Asks to come in; taken over by the first session.
    visitor: RefCell<Option<Visitor>>,
    from: IpAddr,
    /// A request without a session was let in: those that follow are its own.
    let_in: Cell<bool>,
    /// A request came: from then on hyper's own timeouts hold.
    spoken: Cell<bool>,
    /// Whether the client asked over TLS on TCP: it is told of HTTP/3 then.
    tls: bool,
}

impl Carrier {
    /// For requests over HTTP/3, whose connection counts by itself.
    pub(super) fn over_http3(worker: &Rc<Worker>, visitor: Visitor) -> Self {
        Self { spoken: Cell::new(true), ..Self::new(worker, None, visitor, false) }
    }

    fn new(worker: &Rc<Worker>, admitted: Option<Admitted>, visitor: Visitor, tls: bool) -> Self {
        Self {
            worker: Rc::clone(worker),
            admitted: RefCell::new(admitted),
            from: visitor.address(),
            visitor: RefCell::new(Some(visitor)),
            let_in: Cell::new(false),
            spoken: Cell::new(false),
            tls,
        }
    }

    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// For the next session: what the connection was let shake hands by, or another attempt of the same client.
    fn visitor(&self) -> Visitor {
        let first = self.visitor.borrow_mut().take();
        first.unwrap_or_else(|| self.worker.shared().door.visitor(self.from))
    }

    /// Lets in who asks for something without a session, once for its connection; waits for the moment.
    pub(super) async fn let_in(&self, uri: &Uri) -> Result<(), Rejection> {
        if self.let_in.get() {
            return Ok(());
        }
        let slot = request_slot(uri).and_then(|text| SlotTicket::from_text(&text));
        let answer = self.visitor().knock(slot.as_ref());
        answer.into_entry()?.wait().await;
        self.let_in.set(true);
        Ok(())
    }
}

/// Serves HTTP on an accepted connection, in a task of its own.
pub(super) fn serve<S>(worker: &Rc<Worker>, stream: S, admitted: Admitted, visitor: Visitor, tls: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let context = Rc::new(Carrier::new(worker, Some(admitted), visitor, tls));
    let limits = worker.limits();
    let mut builder = auto::Builder::new(LocalExecutor(Rc::clone(worker)));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.handshake)
        .max_buf_size(limits.http_headers.max(HTTP1_MIN_BUFFER))
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(u32::try_from(limits.http_headers).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(limits.ping)
        .keep_alive_timeout(limits.pong);
    let shared = Arc::clone(worker.shared());
    worker.spawn(async move {
        let service = {
            let context = Rc::clone(&context);
            service_fn(move |request| {
                let context = Rc::clone(&context);
                context.spoken.set(true);
                async move { Ok::<_, Infallible>(respond(&context, request).await) }
            })
        };
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = Box::pin(connection);
        // hyper's timeouts begin with the first byte: until then a connection would cost nothing to hold open.
        let silence = async {
            tokio::time::sleep(context.worker.limits().handshake).await;
            if context.spoken.get() {
                std::future::pending::<()>().await;
            }
        };
        let served = tokio::select! {
            biased;
            served = connection.as_mut() => served,
            () = shared.farewell() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = silence => return failed(&context.worker, "timeout"),
        };
        if let Err(error) = served {
            debug!(%error, "HTTP connection failed");
            if !context.spoken.get() {
                failed(&context.worker, "http");
            }
        }
    });
}

/// Runs a worker's share of requests that arrived at another.
pub(crate) async fn serve_commands(worker: Rc<Worker>, mut inbox: mpsc::Receiver<Command>) {
    while let Some(command) = inbox.recv().await {
        let (request, session, response) = match command {
            Command::Poll { request, session, response } => (request, session, response),
            Command::List { response } => {
                // Whoever asked may have stopped waiting; so with the next.
                let _ = response.send(worker.list());
                continue;
            }
            Command::Goaway { asked, response } => {
                let count =
                    asked.into_iter().filter(|(key, goaway)| worker.goaway(*key, goaway.clone())).count();
                let _ = response.send(count);
                continue;
            }
            Command::Watch { news } => {
                worker.watch(news);
                continue;
            }
        };
        let serving = Rc::clone(&worker);
        worker.spawn(async move {
            let mut response = response;
            let answer = tokio::select! {
                answer = poll_here(&serving, session, request) => answer,
                // The client hung up: the session must not take itself for polled.
                () = response.closed() => return,
            };
            // It may hang up just now.
            let _ = response.send(answer);
        });
    }
}

/// Answers a request, whatever it came over.
pub(super) async fn respond<B>(context: &Carrier, request: Request<B>) -> Response<AnswerBody>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let worker = &context.worker;
    let mut response = if request.uri().path().starts_with("/v1/") {
        endpoint(context, request).await
    } else {
        elsewhere(worker, &request).map(AnswerBody::from)
    };
    let status = response.status();
    let headers = response.headers_mut();
    let busy = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
    if busy && !headers.contains_key(header::RETRY_AFTER) {
        retry_after(headers, worker.jitter(RETRY_MIN, RETRY_MAX));
    }
    if let Some(alt_svc) = worker.shared().alt_svc.as_ref().filter(|_| context.tls) {
        headers.insert(header::ALT_SVC, alt_svc.clone());
    }
    response
}

async fn endpoint<B>(context: &Carrier, request: Request<B>) -> Response<AnswerBody>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let worker = &context.worker;
    let path = request.uri().path();
    let origin = match check_origin(&worker.shared().origins, request.headers()) {
        Ok(origin) => origin,
        Err(error) => {
            // Without a word to the page: it may not read even this.
            let mut response = if path == "/v1/poll" {
                // As every refusal of a poll: what the client's session reads (PROTOCOL §6.4).
                PollResponse::refused(CloseCode::BadOrigin, &error.to_string()).into_http()
            } else {
                error_code_response(ErrorCode::Forbidden, &error.to_string())
            };
            vary_by_origin(response.headers_mut());
            return response.map(AnswerBody::from);
        }
    };
    let mut response = if request.method() == Method::OPTIONS {
        match &origin {
            Some(origin) => preflight_response(origin).map(AnswerBody::from),
            None => method_not_allowed("GET, POST").map(AnswerBody::from),
        }
    } else {
        let get = request.method() == Method::GET;
        match (path, channels::route(path)) {
            ("/v1/connect", _) => web_socket(context, request).map(AnswerBody::from),
            ("/v1/poll", _) if request.method() == Method::POST => {
                long_poll(context, request).await.map(AnswerBody::from)
            }
            ("/v1/poll", _) => method_not_allowed("POST").map(AnswerBody::from),
            (_, Some(_)) if !get => method_not_allowed("GET").map(AnswerBody::from),
            (_, Some((channel, Verb::Poll))) => {
                channels::poll(context, channel, request.headers(), request.uri()).await.map(AnswerBody::from)
            }
            (_, Some((channel, Verb::Events))) => {
                let version = request.version();
                channels::events(context, channel, version, request.headers(), request.uri()).await
            }
            (_, None) => elsewhere(worker, &request).map(AnswerBody::from),
        }
    };
    match &origin {
        Some(origin) => allow_origin(response.headers_mut(), origin),
        None => vary_by_origin(response.headers_mut()),
    }
    response
}

fn elsewhere<B>(worker: &Worker, request: &Request<B>) -> Response<Bytes> {
    let head = Request::builder().method(request.method()).uri(request.uri()).body(());
    let answered = match (&worker.shared().routes, head) {
        (Some(routes), Ok(mut head)) => {
            *head.headers_mut() = request.headers().clone();
            routes(&head)
        }
        _ => None,
    };
    answered.unwrap_or_else(|| error_code_response(ErrorCode::NotFound, "nothing is served at this path"))
}

fn method_not_allowed(allow: &'static str) -> Response<Bytes> {
    let mut response =
        error_response(StatusCode::METHOD_NOT_ALLOWED, &format!("this address takes {allow}"), false);
    response.headers_mut().insert(header::ALLOW, ::http::HeaderValue::from_static(allow));
    response
}

/// What a token in the header or the query says; the refusal is ready to send.
pub(super) fn identify(worker: &Worker, headers: &HeaderMap, uri: &Uri) -> Result<Option<Identity>, String> {
    let token = request_token(headers, uri, worker.limits().token).map_err(|error| error.to_string())?;
    match token {
        Some(token) => worker.authenticate(token.reveal()).map(Some).map_err(|error| error.to_string()),
        None => Ok(None),
    }
}

/// Accepts an upgrade, and starts the session once hyper has let go of the connection.
fn web_socket<B>(context: &Carrier, mut request: Request<B>) -> Response<Bytes> {
    let worker = &context.worker;
    let accepted = match upgrade(&request) {
        Ok(accepted) => accepted,
        Err(error) => return error.response(),
    };
    let identity = match identify(worker, request.headers(), request.uri()) {
        Ok(identity) => identity,
        Err(message) => return error_code_response(ErrorCode::Unauthorized, &message),
    };
    // Over HTTP/1.1 the session takes the connection's place over; over HTTP/2 the connection lives on beside it.
    let own = if request.version() == Version::HTTP_2 { None } else { context.admitted.borrow_mut().take() };
    let Some(admitted) = own.or_else(|| worker.admit()) else {
        return error_code_response(ErrorCode::Unavailable, "the server is full");
    };
    let entrance = Entrance::Asks(context.visitor());
    let upgraded = hyper::upgrade::on(&mut request);
    // The request pins hyper's read buffer: it must be gone before the session begins.
    drop(request);
    let limits = WebSocketLimits { frame_bytes: worker.limits().frame };
    let starting = Rc::clone(worker);
    worker.spawn(async move {
        match upgraded.await {
            Ok(upgraded) => {
                let (io, read_ahead) = downcast(upgraded);
                let connection = WebSocketConnection::new(io, &read_ahead, accepted.subprotocol, limits);
                drop(read_ahead);
                let id = starting.new_session_id();
                connection::start(&starting, id, Box::new(connection), identity, admitted, entrance);
            }
            Err(error) => {
                debug!(%error, "upgrade failed");
                failed(&starting, "upgrade");
            }
        }
    });
    accepted.response.map(|()| Bytes::new())
}

async fn long_poll<B>(context: &Carrier, request: Request<B>) -> Response<Bytes>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let worker = &context.worker;
    let (head, body) = request.into_parts();
    let body = match read_body(worker, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let request = match PollRequest::parse(&body, worker.limits().frame) {
        Ok(request) => request,
        Err(error) => return PollResponse::from(error).into_http(),
    };
    let Some(session) = request.session else {
        // Later polls carry the session's id, a secret of its own: the token may have been refreshed since.
        let identity = match identify(worker, &head.headers, &head.uri) {
            Ok(identity) => identity,
            Err(message) => return PollResponse::refused(CloseCode::Unauthorized, &message).into_http(),
        };
        let Some(admitted) = worker.admit() else {
            return overloaded(worker, "the server is full");
        };
        // Here and not with the session's `connect`: whoever does not come in needs no session to be told.
        let slot = request.slot().and_then(SlotTicket::from_text);
        let entry = match context.visitor().knock(slot.as_ref()).into_entry() {
            Ok(entry) => entry,
            Err(rejection) => return turned_away(worker, rejection),
        };
        entry.wait().await;
        let id = worker.new_session_id();
        let limits = LongPollLimits {
            // What waits beyond a batch waits where ranks and bounds of subscriptions count.
            mailbox_bytes: worker.limits().subscription_queue.min(BATCH_BYTES),
            expiry: worker.limits().longpoll_idle,
        };
        let (connection, handle) = LongPollConnection::open(id, limits);
        let entrance = Entrance::Decided(entry);
        let key = connection::start(worker, id, Box::new(connection), identity, admitted, entrance);
        let resident = worker.shared().door.resident(context.from);
        worker.add_long_poll(id, key, handle.clone(), resident);
        return handle.poll(request).await.into_http();
    };
    // It does not ask to come in: whoever waits at the door may have its place there.
    context.visitor.borrow_mut().take();
    if session.worker() == worker.index() {
        return poll_here(worker, session, request).await;
    }
    let Some(other) = worker.shared().workers.get(usize::from(session.worker())) else {
        return unknown_session();
    };
    let (response, answered) = oneshot::channel();
    if other.try_send(Command::Poll { request, session, response }).is_err() {
        return overloaded(worker, "the session's worker is busy");
    }
    answered.await.unwrap_or_else(|_| unknown_session())
}

async fn poll_here(worker: &Worker, session: SessionId, request: PollRequest) -> Response<Bytes> {
    match worker.long_poll(session) {
        Some(handle) => {
            let wait = request.wait;
            // Whoever drains the node may have something for it: asked when nothing else came.
            let longer = || match worker.tell_poll_end(session) {
                true => wait.min(POLL_PATIENCE),
                false => Duration::ZERO,
            };
            let response = handle.poll_longer(request, longer).await;
            if response.has_frames() {
                // What there is does not wait: the next poll brings it.
                worker.tell_poll_end(session);
            }
            response.into_http()
        }
        None => unknown_session(),
    }
}

/// Says to who does not come in when he may.
fn turned_away(worker: &Worker, rejection: Rejection) -> Response<Bytes> {
    let later = worker.jitter(RETRY_MIN, RETRY_MAX);
    let is_told = matches!(rejection, Rejection::Told(_));
    let response = PollResponse::closing(rejection.close(later));
    let retry_after = response.retry_after.or_else(|| (!is_told).then_some(later));
    PollResponse { retry_after, ..response }.into_http()
}

/// Says when to come back, in the header and, to the millisecond, in the body.
fn overloaded(worker: &Worker, reason: &str) -> Response<Bytes> {
    let after = worker.jitter(RETRY_MIN, RETRY_MAX);
    PollResponse::deferred(CloseCode::Overloaded, reason, after).into_http()
}

fn unknown_session() -> Response<Bytes> {
    PollResponse::refused(CloseCode::UnknownSession, "this edge does not know the session: connect anew")
        .into_http()
}

async fn read_body<B>(worker: &Worker, body: B) -> Result<Bytes, Response<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limit = worker.limits().http_body;
    let too_large =
        || PollResponse::refused(CloseCode::FrameTooLarge, &format!("a body has at most {limit} bytes"));
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large().into_http());
    }
    let body = Limited::new(body, limit).collect();
    match tokio::time::timeout(worker.limits().handshake, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large().into_http()),
        Ok(Err(error)) => {
            Err(error_response(StatusCode::BAD_REQUEST, &format!("the body broke off: {error}"), true))
        }
        Err(_) => Err(error_response(StatusCode::REQUEST_TIMEOUT, "the body did not come in time", true)),
    }
}

/// Spawns hyper's own tasks (HTTP/2 streams) on the worker.
#[derive(Clone)]
struct LocalExecutor(Rc<Worker>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// hyper wants at least so much.
const HTTP1_MIN_BUFFER: usize = 8 << 10;
/// Requests at once on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 128;
