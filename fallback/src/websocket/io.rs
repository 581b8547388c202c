//! What a WebSocket runs over, taken out of hyper's hands so that hyper's buffers are freed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::rt::{Read, Write};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Any other byte stream, such as one stream of an HTTP/2 connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The bytes below a WebSocket.
pub enum WebSocketIo {
    /// A socket.
    Plain(TcpStream),
    /// A socket under TLS; boxed, since it is a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
    /// Anything else.
    Other(Box<dyn Duplex>),
}

impl std::fmt::Debug for WebSocketIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Tls(_) => "Tls",
            Self::Other(_) => "Other",
        })
    }
}

/// What one attempt to write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes taken.
    pub(super) written: usize,
    /// All that was ever taken has left for the kernel.
    pub(super) flushed: bool,
}

impl WebSocketIo {
    /// Bounds what TLS holds for a client that does not read: encrypted, hence not shared between connections.
    pub(super) fn limit_buffers(&mut self) {
        if let Self::Tls(stream) = self {
            stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        }
    }

    /// Writes what can be written now. Registers no waker that anyone waits for.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<Progress> {
        let mut cx = Context::from_waker(Waker::noop());
        let written = match self {
            Self::Plain(stream) => match stream.try_write(bytes) {
                Ok(written) => return Ok(Progress { written, flushed: true }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            },
            _ => match self.poll_write(&mut cx, bytes) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            },
        };
        let flushed = match self.poll_flush(&mut cx) {
            Poll::Ready(result) => result.map(|()| true)?,
            Poll::Pending => false,
        };
        Ok(Progress { written, flushed })
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Other(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Other(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Other(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Other(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Takes the byte stream out of an upgraded connection, with what hyper had already read of it.
///
/// Knows `TokioIo` around a `TcpStream`, a `TlsStream<TcpStream>` or a boxed one, served by hyper itself or by
/// hyper-util's `auto` builder. Everything else (HTTP/2) stays behind [`Upgraded`].
pub fn downcast(upgraded: Upgraded) -> (WebSocketIo, Bytes) {
    let upgraded = match take::<TcpStream>(upgraded) {
        Ok((stream, read_ahead)) => return (WebSocketIo::Plain(stream), read_ahead),
        Err(upgraded) => upgraded,
    };
    let upgraded = match take::<TlsStream<TcpStream>>(upgraded) {
        Ok((stream, read_ahead)) => return (WebSocketIo::Tls(Box::new(stream)), read_ahead),
        Err(upgraded) => upgraded,
    };
    match take::<Box<TlsStream<TcpStream>>>(upgraded) {
        Ok((stream, read_ahead)) => (WebSocketIo::Tls(stream), read_ahead),
        Err(upgraded) => (WebSocketIo::Other(Box::new(TokioIo::new(upgraded))), Bytes::new()),
    }
}

fn take<T>(upgraded: Upgraded) -> Result<(T, Bytes), Upgraded>
where
    TokioIo<T>: Read + Write + Unpin + 'static,
{
    match upgraded.downcast::<TokioIo<T>>() {
        Ok(parts) => Ok((parts.io.into_inner(), parts.read_buf)),
        Err(upgraded) => auto::upgrade::downcast::<TokioIo<T>>(upgraded)
            .map(|parts| (parts.io.into_inner(), parts.read_buf)),
    }
}

/// One TLS record.
const TLS_BUFFER_BYTES: usize = 16 * 1024;
