//! HTTP/3 requests over an endpoint of their own, for those who ask for no WebTransport: `h3` over quinn.
//!
//! `h3` collects a frame until it is whole, however long the client says that it is, and credit grows as it reads. So
//! each stream is read through a [`Metered`] reader, which ends it where a client sends more than a request may have.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{
    BidiStream, Connection, ConnectionErrorIncoming, OpenStreams, RecvStream, SendStream,
    StreamErrorIncoming, StreamId, WriteBuf,
};
use h3::server::{self, RequestResolver, RequestStream};
use http::{Request, Response};

use super::endpoint::Incoming;
use super::{QuicConfig, QuicError};

/// ALPN of HTTP/3 (RFC 9114 §3.1).
pub const ALPN_HTTP3: &[u8] = b"h3";

/// Bounds on one connection's requests.
#[derive(Debug, Clone, Copy)]
pub struct Http3Limits {
    /// Bytes of a request's header section, as RFC 9114 §4.2.2 counts them; beyond it `h3` answers 431.
    pub headers: usize,
    /// Bytes of a request's body.
    pub body: usize,
}

impl Http3Limits {
    /// With what framing costs, and room for the answer that says that it was too much.
    fn stream_bytes(self) -> usize {
        self.headers.saturating_add(self.body).saturating_add(STREAM_SLACK)
    }
}

impl Incoming {
    /// Drives the handshake of an HTTP/3 client, within [`QuicConfig::handshake_timeout`]. Dropping the future drops the
    /// client.
    ///
    /// # Errors
    /// When the client is too slow or goes away.
    pub fn http3(
        self,
        limits: Http3Limits,
    ) -> impl Future<Output = Result<Http3Connection, QuicError>> + Send + use<> {
        Box::pin(async move {
            let limit = self.config.handshake_timeout;
            let shaking = async {
                let raw = self.accept()?.await.map_err(QuicError::lost)?;
                let carrier = Metered::new(h3_quinn::Connection::new(raw.clone()), limits.stream_bytes());
                let requests = server::builder()
                    .max_field_section_size(limits.headers as u64)
                    .build(carrier)
                    .await
                    .map_err(lost)?;
                Ok(Http3Connection { requests, raw })
            };
            match tokio::time::timeout(limit, shaking).await {
                Ok(connection) => connection,
                Err(_) => Err(QuicError::HandshakeTimeout(limit)),
            }
        })
    }
}

impl QuicConfig {
    /// For HTTP/3: more streams and wider windows than a session needs, no early data, no datagrams to speak of.
    pub fn for_http3(self) -> Self {
        Self {
            // Longer than the longest poll waits in silence.
            idle_timeout: HTTP3_IDLE,
            connection_window: HTTP3_WINDOW,
            send_window: HTTP3_WINDOW,
            client_bidi_streams: HTTP3_STREAMS,
            early_data: false,
            tickets: 0,
            ..self
        }
    }
}

/// One client's connection. Dropping it ends its requests.
pub struct Http3Connection {
    requests: server::Connection<Metered<h3_quinn::Connection>, Bytes>,
    raw: quinn::Connection,
}

impl fmt::Debug for Http3Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http3Connection")
            .field("remote_address", &self.remote_address())
            .finish_non_exhaustive()
    }
}

impl Http3Connection {
    /// The next request, before its headers are read; `None` at the end. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Http3Request> {
        // What ended it was the peer's doing, or ours: either way it is over.
        self.requests.accept().await.ok().flatten().map(Http3Request)
    }

    /// Tells the client that no request after those that it sent so far is answered here (GOAWAY). Go on with
    /// [`Http3Connection::accept`] until the end.
    pub async fn go_away(&mut self) {
        // A connection that is gone needs no farewell.
        let _ = self.requests.shutdown(0).await;
    }

    /// Ends it in order, once nothing more is to be sent.
    pub fn close(&self) {
        self.raw.close(quinn::VarInt::from_u32(H3_NO_ERROR), b"");
    }

    /// Where the client is.
    pub fn remote_address(&self) -> SocketAddr {
        self.raw.remote_address()
    }
}

/// A request whose headers are still to come.
pub struct Http3Request(RequestResolver<Metered<h3_quinn::Connection>, Bytes>);

impl fmt::Debug for Http3Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http3Request(..)")
    }
}

impl Http3Request {
    /// Reads the headers, without end: the caller bounds it. Too many were answered by 431 here.
    ///
    /// # Errors
    /// When the stream or the connection ends first, or what came is no request.
    pub async fn read(self) -> Result<(Request<()>, Http3Answer, Http3Body), QuicError> {
        let (request, stream) = self.0.resolve_request().await.map_err(lost)?;
        let (send, recv) = stream.split();
        Ok((request, Http3Answer(send), Http3Body(recv)))
    }
}

/// Where the answer to a request goes. Dropped before [`Http3Answer::finish`]: the stream is reset.
pub struct Http3Answer(RequestStream<h3_quinn::SendStream<Bytes>, Bytes>);

impl fmt::Debug for Http3Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http3Answer(..)")
    }
}

impl Http3Answer {
    /// Sends status and headers.
    ///
    /// # Errors
    /// When the client no longer wants them.
    pub async fn head(&mut self, head: Response<()>) -> Result<(), QuicError> {
        self.0.send_response(head).await.map_err(lost)
    }

    /// Sends a part of the body, as far as the client takes it.
    ///
    /// # Errors
    /// When the client no longer wants it.
    pub async fn data(&mut self, data: Bytes) -> Result<(), QuicError> {
        self.0.send_data(data).await.map_err(lost)
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// When the client no longer wants it.
    pub async fn finish(mut self) -> Result<(), QuicError> {
        self.0.finish().await.map_err(lost)
    }

    /// Gives up in the middle: the client must not take what it has for the whole.
    pub fn reset(mut self) {
        self.0.stop_stream(Code::H3_INTERNAL_ERROR);
    }
}

/// A request's body.
pub struct Http3Body(RequestStream<Metered<h3_quinn::RecvStream>, Bytes>);

impl fmt::Debug for Http3Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http3Body(..)")
    }
}

impl Http3Body {
    /// The next part; `None` at the end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, QuicError>> {
        let data = ready!(self.0.poll_recv_data(cx)).map_err(lost)?;
        Poll::Ready(Ok(data.map(|mut data| data.copy_to_bytes(data.remaining()))))
    }
}

/// A connection, or one of its streams, that may bring so many bytes on each stream and no more.
struct Metered<S> {
    inner: S,
    left: usize,
}

impl<S> Metered<S> {
    fn new(inner: S, left: usize) -> Self {
        Self { inner, left }
    }
}

impl<B: Buf, C: Connection<B>> Connection<B> for Metered<C>
where
    C::BidiStream: BidiStream<B>,
{
    type RecvStream = Metered<C::RecvStream>;
    type OpenStreams = Metered<C::OpenStreams>;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        // Control and QPACK streams live as long as the connection: some bytes for each request.
        self.inner.poll_accept_recv(cx).map_ok(|stream| Metered::new(stream, CONTROL_BYTES))
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        self.inner.poll_accept_bidi(cx).map_ok(|stream| Metered::new(stream, self.left))
    }

    fn opener(&self) -> Self::OpenStreams {
        Metered::new(self.inner.opener(), self.left)
    }
}

impl<B: Buf, O: OpenStreams<B>> OpenStreams<B> for Metered<O> {
    type BidiStream = Metered<O::BidiStream>;
    type SendStream = O::SendStream;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        self.inner.poll_open_bidi(cx).map_ok(|stream| Metered::new(stream, self.left))
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        self.inner.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.inner.close(code, reason);
    }
}

impl<R: RecvStream> RecvStream for Metered<R> {
    type Buf = R::Buf;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Self::Buf>, StreamErrorIncoming>> {
        let data = ready!(self.inner.poll_data(cx))?;
        let size = data.as_ref().map_or(0, Buf::remaining);
        match self.left.checked_sub(size) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Ok(data))
            }
            None => {
                self.left = 0;
                let error_code = Code::H3_EXCESSIVE_LOAD.value();
                self.inner.stop_sending(error_code);
                Poll::Ready(Err(StreamErrorIncoming::StreamTerminated { error_code }))
            }
        }
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.inner.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.inner.recv_id()
    }
}

impl<B: Buf, S: SendStream<B>> SendStream<B> for Metered<S> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.inner.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.inner.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.inner.send_id()
    }
}

impl<B: Buf, S: BidiStream<B>> BidiStream<B> for Metered<S> {
    type SendStream = S::SendStream;
    type RecvStream = Metered<S::RecvStream>;

    fn split(self) -> (Self::SendStream, Self::RecvStream) {
        let (send, recv) = self.inner.split();
        (send, Metered::new(recv, self.left))
    }
}

fn lost(error: impl std::error::Error + Send + Sync + 'static) -> QuicError {
    QuicError::Lost(Box::new(error))
}

/// Bytes of a stream beyond headers and body: frame headers, a frame that greases (RFC 9114 §7.2.8).
const STREAM_SLACK: usize = 16 << 10;
/// Bytes of each of a client's own unidirectional streams in a connection's life: settings, and a few for each request.
const CONTROL_BYTES: usize = 1 << 20;
/// Requests of a connection at once.
const HTTP3_STREAMS: u32 = 64;
/// Bytes in flight of a connection, each way.
const HTTP3_WINDOW: u32 = 256 << 10;
/// A connection without a packet for so long is dead.
const HTTP3_IDLE: std::time::Duration = std::time::Duration::from_secs(90);
/// RFC 9114 §8.1.
const H3_NO_ERROR: u32 = 0x100;
