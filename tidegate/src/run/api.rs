//! The listener of the backend API: bounds, probes and metrics. What the API does is the core's.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tidegate_core::BackendApi;
use tidegate_transport::link::Backend;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::drain::{self, Desk};
use crate::config::Settings;

/// Whether `GET /readyz` says yes.
#[derive(Debug, Default)]
pub(super) struct Readiness(AtomicBool);

impl Readiness {
    pub(super) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bound, not yet serving.
pub(super) struct Api {
    listener: TcpListener,
    copy: StdListener,
    address: SocketAddr,
    bounds: Bounds,
    readiness: Arc<Readiness>,
}

#[derive(Clone, Copy)]
struct Bounds {
    connections: usize,
    headers: usize,
    header_timeout: Duration,
}

impl Api {
    pub(super) fn bind(
        address: SocketAddr,
        settings: &Settings,
        readiness: Arc<Readiness>,
        inherited: Option<StdListener>,
    ) -> anyhow::Result<Self> {
        let there = inherited.filter(|listener| {
            listener.local_addr().is_ok_and(|there| {
                there.ip() == address.ip() && (address.port() == 0 || address.port() == there.port())
            })
        });
        let bind = || {
            let listener = match there {
                Some(listener) => listener,
                None => StdListener::bind(address)?,
            };
            let copy = listener.try_clone()?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok::<_, std::io::Error>((TcpListener::from_std(listener)?, copy, address))
        };
        let (listener, copy, address) = bind().with_context(|| {
            format!("cannot listen on TCP {address} for the backend API; choose another address with --api or `listen.api`")
        })?;
        let bounds = Bounds {
            connections: settings.api.connections,
            headers: settings.limits.edge.http_headers,
            header_timeout: settings.limits.edge.handshake,
        };
        Ok(Self { listener, copy, address, bounds, readiness })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// `answers` what `backend` can; that says whether the node can do anything, too.
    pub(super) fn serve(
        self,
        answers: BackendApi,
        backend: Arc<dyn Backend>,
        desk: Desk,
        registry: Registry,
    ) -> ServingApi {
        let (accepting, stop) = (CancellationToken::new(), CancellationToken::new());
        let tasks = TaskTracker::new();
        let state = Arc::new(State { answers, backend, desk, registry, readiness: self.readiness });
        let accept = accept(self.listener, self.bounds, state, tasks.clone(), stop.clone());
        tasks.spawn(accepting.clone().run_until_cancelled_owned(accept));
        ServingApi { listener: self.copy, accepting, stop, tasks }
    }
}

/// Accepting and answering.
pub(super) struct ServingApi {
    listener: StdListener,
    /// Cancelled where connections are accepted no more, and where they are to end as well.
    accepting: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ServingApi {
    /// For the next process.
    pub(super) fn listener(&self) -> std::io::Result<StdListener> {
        self.listener.try_clone()
    }

    /// Accepts no more connections: another process does. Those that are there stay.
    pub(super) fn hand_over(&self) {
        self.accepting.cancel();
    }

    /// Connections that are there end once what they asked is answered.
    pub(super) fn end_connections(&self) {
        self.stop.cancel();
    }

    /// Takes no more requests; those that are being answered are waited for, within reason.
    pub(super) async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(LAST_ANSWERS, self.tasks.wait()).await.is_err() {
            warn!("requests to the backend API were cut");
        }
    }
}

struct State {
    answers: BackendApi,
    backend: Arc<dyn Backend>,
    desk: Desk,
    registry: Registry,
    readiness: Arc<Readiness>,
}

impl State {
    /// False while clients should be sent elsewhere.
    fn is_ready(&self) -> bool {
        self.readiness.is_ready() && self.backend.is_ready() && !self.desk.is_drained()
    }
}

async fn accept(
    listener: TcpListener,
    bounds: Bounds,
    state: Arc<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(bounds.connections.min(Semaphore::MAX_PERMITS)));
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((slot, listener.accept().await))
        };
        match stop.run_until_cancelled(accepted).await {
            None | Some(None) => return,
            Some(Some((slot, Ok((stream, _))))) => {
                let connection = serve(stream, bounds, Arc::clone(&state), stop.clone());
                tasks.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Some(Some((_, Err(error)))) => {
                // Out of file descriptors, most likely: others must end before it can go on.
                warn!(%error, "cannot accept a connection to the backend API");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, bounds: Bounds, state: Arc<State>, stop: CancellationToken) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(&state, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .max_buf_size(bounds.headers.max(MIN_BUFFER))
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%error, "a connection to the backend API ended");
    }
}

async fn answer(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/healthz" if reads => text(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" if reads && state.is_ready() => text(StatusCode::OK, TEXT, "ready\n".to_owned()),
        "/readyz" if reads => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n".to_owned()),
        "/metrics" if reads => {
            let mut metrics = String::new();
            match prometheus_client::encoding::text::encode(&mut metrics, &state.registry) {
                Ok(()) => text(StatusCode::OK, OPEN_METRICS, metrics),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
            }
        }
        "/healthz" | "/readyz" | "/metrics" => {
            text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n".to_owned())
        }
        path if drain::matches(path) => drain::answer(&state.desk, &state.answers, request).await,
        _ => state.answers.handle(request).await,
    }
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// For answers under way when the node ends.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// hyper takes no less.
const MIN_BUFFER: usize = 8192;
