//! A client that reads slowly: so many bytes per second, and no more taken ahead than a small socket buffer holds.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Sleep;

use crate::http::Stream;

/// How fast a client reads, changed at any time.
#[derive(Debug, Clone)]
pub struct Pace {
    /// The channel whose streams are read so; on carriers with one pipe all of it is.
    pub channel: String,
    bytes_per_second: Arc<AtomicU64>,
}

impl Pace {
    /// Nothing is held back at first.
    pub fn of(channel: &str) -> Self {
        Self { channel: channel.to_owned(), bytes_per_second: Arc::new(AtomicU64::new(FREE)) }
    }

    /// So many bytes per second from now on.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// As fast as it comes, from now on.
    pub fn lift(&self) {
        self.set(FREE);
    }

    /// How many bytes may be read at once, of `wanted`.
    pub(super) fn portion(&self, wanted: usize) -> usize {
        match self.bytes_per_second.load(Ordering::Relaxed) {
            FREE => wanted,
            rate => wanted.min(usize::try_from(rate / 8).unwrap_or(wanted).max(1)),
        }
    }

    /// For how long nothing is read after so many bytes.
    pub(super) fn pause(&self, bytes: usize) -> Option<Duration> {
        match self.bytes_per_second.load(Ordering::Relaxed) {
            FREE => None,
            rate => Some(Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)),
        }
    }
}

/// Connects with a small receive buffer, and reads at a pace.
pub(super) async fn dial(address: SocketAddr, tls: Arc<ClientConfig>, pace: Pace) -> Result<Box<dyn Stream>> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let stream = socket.connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    let paced = Paced { stream, pace, pause: None };
    let name = ServerName::from(address.ip());
    Ok(Box::new(tokio_rustls::TlsConnector::from(tls).connect(name, paced).await?))
}

#[derive(Debug)]
struct Paced {
    stream: TcpStream,
    pace: Pace,
    pause: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let mut portion = vec![0; self.pace.portion(buffer.remaining())];
        let mut portion = ReadBuf::new(&mut portion);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut portion))?;
        let read = portion.filled().len();
        buffer.put_slice(portion.filled());
        self.pause = self.pace.pause(read).map(|pause| Box::pin(tokio::time::sleep(pause)));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The kernel doubles it.
const RECEIVE_BUFFER: u32 = 8 << 10;
/// No pace at all.
const FREE: u64 = u64::MAX;
