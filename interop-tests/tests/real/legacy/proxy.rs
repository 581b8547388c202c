//! A proxy that loses answers, and a web server for pages.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_interop_tests::http::send;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Passes requests on, and loses some of the answers: the request was served then, and its client does not know.
pub(super) struct Lossy {
    pub(super) address: SocketAddr,
    shared: Arc<LossyShared>,
    _stop: DropGuard,
}

struct LossyShared {
    target: SocketAddr,
    chance: f64,
    rng: Mutex<ChaCha8Rng>,
    counts: Mutex<Counts>,
}

/// How many answers there were.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) answers: usize,
    /// Of them: with status 200, and never seen by the client.
    pub(super) lost: usize,
}

impl Lossy {
    pub(super) async fn to(target: SocketAddr, chance: f64, seed: u64) -> Result<Self> {
        let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        let shared = Arc::new(LossyShared { target, chance, rng, counts: Mutex::default() });
        let serving = Arc::clone(&shared);
        let (address, stop) = serve(move |request| {
            let shared = Arc::clone(&serving);
            async move { pass_on(&shared, request).await }
        })
        .await?;
        Ok(Self { address, shared, _stop: stop })
    }

    pub(super) fn counts(&self) -> Counts {
        *locked(&self.shared.counts)
    }
}

async fn pass_on(shared: &LossyShared, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = head.uri.path_and_query().context("a path")?.as_str();
    let mut passed = Request::builder().method(head.method).uri(path).body(Full::new(body))?;
    for name in [http::header::CONTENT_TYPE, http::header::ORIGIN, http::header::AUTHORIZATION] {
        if let Some(value) = head.headers.get(&name) {
            passed.headers_mut().insert(name, value.clone());
        }
    }
    let answer = send(shared.target, None, passed).await?;
    let is_lost = locked(&shared.rng).random_bool(shared.chance);
    let counts = &mut *locked(&shared.counts);
    counts.answers += 1;
    if is_lost && answer.status.is_success() {
        counts.lost += 1;
        anyhow::bail!("lost");
    }
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

/// Serves an empty page at any path; the origin is its address, by whatever name.
pub(super) async fn blank_pages() -> Result<(u16, DropGuard)> {
    let page = |_: Request<Incoming>| async {
        let mut response =
            Response::new(Full::new(Bytes::from_static(b"<!doctype html><title>page</title>")));
        let html = http::HeaderValue::from_static("text/html");
        response.headers_mut().insert(http::header::CONTENT_TYPE, html);
        Ok::<_, Infallible>(response)
    };
    let (address, stop) = serve(page).await?;
    Ok((address.port(), stop))
}

/// HTTP/1.1. An error closes the connection without an answer.
async fn serve<F, R, E>(respond: F) -> Result<(SocketAddr, DropGuard)>
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response<Full<Bytes>>, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let (connections, all) = (tasks.clone(), stop.clone());
    tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(respond.clone());
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connections.spawn(all.clone().run_until_cancelled_owned(async move {
                // That a connection breaks off is what this is for.
                let _ = connection.await;
            }));
        }
    }));
    Ok((address, stop.drop_guard()))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
