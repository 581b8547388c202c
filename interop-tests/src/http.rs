//! Plain HTTP/1.1 requests, one connection each: what a backend, a probe or a poll without a library would send.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::wait::{PATIENCE, within};

/// TCP or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> Stream for S {}

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {:?}", self.status, self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Connects.
///
/// # Errors
/// When nothing listens or TLS fails.
pub async fn dial(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    let Some(config) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::from(address.ip());
    Ok(Box::new(tokio_rustls::TlsConnector::from(config).connect(name, stream).await?))
}

/// Sends one request over a connection of its own.
///
/// # Errors
/// When the connection fails, or no answer comes.
pub async fn send(
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    mut request: Request<Full<Bytes>>,
) -> Result<Answer> {
    let exchange = async {
        let stream = dial(address, tls).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Moves the bytes until the sender is dropped.
        TaskTracker::new().spawn(connection);
        let host = http::HeaderValue::from_str(&address.to_string())?;
        request.headers_mut().entry(http::header::HOST).or_insert(host);
        answer(sender.send_request(request).await?).await
    };
    // Longer than any poll waits that a test asks for.
    within(PATIENCE * 2, "an HTTP answer", exchange).await?
}

/// Reads the rest of an answer.
///
/// # Errors
/// When it breaks off.
pub async fn answer(response: Response<hyper::body::Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
}

/// A request without a body.
///
/// # Panics
/// When `path` is no path.
pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).body(Full::default()).expect("a path")
}

/// A request with one.
///
/// # Panics
/// When `path` is no path.
pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path).body(Full::new(body.into())).expect("a path")
}
