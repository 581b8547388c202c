//! WebTransport over HTTP/3, both ends: the request, the answer, and the few bytes in front of each stream and datagram
//! (draft-ietf-webtrans-http3 §4). `web-transport-quinn` does SETTINGS, CONNECT and the close capsule; streams and
//! datagrams are written and read here, so that both kinds of connection share one hot path.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, StatusCode, header};
use quinn::VarInt;
use url::Url;
use web_transport_quinn::proto::{self, Frame, StreamUni, VarInt as ProtoVarInt};
use web_transport_quinn::{ClientError, ConnectError, Request, Session, SessionError, WebTransportError};

use super::connection::QuicConnection;
use super::{QuicConfig, QuicError};

/// A request for a WebTransport session. Dropping it closes the connection unanswered.
pub struct WebTransportPending {
    // Boxed: it is large and short-lived, and whoever awaits beside it is neither.
    request: Box<Request>,
    config: Arc<QuicConfig>,
}

impl std::fmt::Debug for WebTransportPending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither query nor headers: tokens travel there.
        f.debug_struct("WebTransportPending")
            .field("remote_address", &self.remote_address())
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

impl WebTransportPending {
    /// Exchanges SETTINGS and reads the client's request (at most 16 KiB, RFC 9114 §4.2.2).
    pub(crate) async fn read(
        connection: quinn::Connection,
        config: Arc<QuicConfig>,
    ) -> Result<Self, QuicError> {
        match Request::accept(connection.clone()).await {
            Ok(request) => Ok(Self { request: Box::new(request), config }),
            Err(error) => {
                // An ordinary HTTP/3 client: it is told that its request was not looked at.
                connection.close(H3_REQUEST_REJECTED, b"only WebTransport is served here");
                Err(QuicError::NotWebTransport(error.to_string()))
            }
        }
    }

    /// Where the client is.
    pub fn remote_address(&self) -> SocketAddr {
        self.request.conn().remote_address()
    }

    /// The requested path, still percent-encoded.
    pub fn path(&self) -> &str {
        self.request.url.path()
    }

    /// What follows the `?`, still percent-encoded.
    pub fn query(&self) -> Option<&str> {
        self.request.url.query()
    }

    /// The page's origin: `None` where there is no such header, or one that is no text.
    pub fn origin(&self) -> Option<&str> {
        self.request.headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok())
    }

    /// The request's headers, without pseudo-headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.request.headers
    }

    /// Subprotocols that the client offers, best first.
    pub fn protocols(&self) -> &[String] {
        &self.request.protocols
    }

    /// Answers 200, then waits for the client's first bidirectional stream, without end: the caller bounds it. Dropping
    /// the future closes the connection.
    ///
    /// # Errors
    /// When the connection ends first, or the first stream is none of the session's.
    pub async fn accept(self) -> Result<QuicConnection, QuicError> {
        let Self { request, config } = self;
        Box::pin(async move {
            let connection = request.conn().clone();
            // From here on a task of the session holds the connection too: dropping our handles no longer closes it.
            let guard = CloseOnDrop(Some(connection.clone()));
            let session = request.ok().await.map_err(|error| QuicError::Lost(Box::new(error)))?;
            let (send, mut recv) = connection.accept_bi().await.map_err(QuicError::lost)?;
            read_bidi_header(&mut recv).await.map_err(|reason| QuicError::NoControlStream(reason.into()))?;
            guard.disarm();
            Ok(QuicConnection::web_transport(session, send, recv, &config))
        })
        .await
    }

    /// Answers with another status and closes once the client has it.
    pub async fn reject(self, status: StatusCode) {
        let connection = self.request.conn().clone();
        let _closes = CloseOnDrop(Some(connection.clone()));
        if Box::pin(self.request.reject(status)).await.is_ok() {
            // Closing at once could overtake the answer. Clients hang up when they have it; who does not is not
            // waited for.
            let _elapsed = tokio::time::timeout(REJECT_LINGER, connection.closed()).await;
        }
    }
}

/// A client's WebTransport session: the only one of its connection, which lives as long as a clone of this.
#[derive(Clone)]
pub struct WebTransportClient {
    session: Arc<Session>,
}

impl std::fmt::Debug for WebTransportClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebTransportClient").finish_non_exhaustive()
    }
}

impl WebTransportClient {
    /// Asks for a session at `https://AUTHORITY/PATH`, on a connection that was dialled for [`super::ALPN_WEBTRANSPORT`]. The
    /// caller bounds the time.
    ///
    /// # Errors
    /// When that is no URL, the server answers with another status than 200 ([`QuicError::Status`]), or the connection ends.
    pub async fn request(
        connection: &quinn::Connection,
        authority: &str,
        path: &str,
    ) -> Result<Self, QuicError> {
        let url = format!("https://{authority}{path}")
            .parse::<Url>()
            .map_err(|error| QuicError::Settings(error.to_string()))?;
        let session = Session::connect(connection.clone(), url).await.map_err(|error| match error {
            ClientError::HttpError(ConnectError::ProtoError(proto::ConnectError::WrongStatus(Some(
                status,
            )))) => QuicError::Status(status),
            ClientError::Connection(error) => QuicError::lost(error),
            error => QuicError::NotWebTransport(error.to_string()),
        })?;
        Ok(Self { session: Arc::new(session) })
    }

    /// Opens a bidirectional stream of the session.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn open_bi(&self) -> Result<(quinn::SendStream, quinn::RecvStream), QuicError> {
        let connection: &quinn::Connection = &self.session;
        let (mut send, recv) = connection.open_bi().await.map_err(QuicError::lost)?;
        let written = send.write_all(BIDI_HEADER).await;
        written.map_err(|error| QuicError::Lost(Box::new(error)))?;
        Ok((send, recv))
    }

    /// Reads what is in front of a unidirectional stream that the server opened; false where it is none of the session's.
    pub async fn is_ours(&self, recv: &mut quinn::RecvStream) -> bool {
        let Ok(kind) = ProtoVarInt::read(recv).await else { return false };
        is_session_stream(kind.into_inner()) && ProtoVarInt::read(recv).await == Ok(SESSION_ID)
    }

    /// What to send by datagram.
    pub fn to_datagram(payload: &[u8]) -> Bytes {
        [&[DATAGRAM_HEADER], payload].concat().into()
    }

    /// What came by datagram; `None` where it is none of the session's.
    pub fn from_datagram(mut datagram: Bytes) -> Option<Bytes> {
        (!datagram.is_empty() && datagram.get_u8() == DATAGRAM_HEADER).then_some(datagram)
    }

    /// Waits for the end of the session; the server's code and reason, where it gave some.
    pub async fn closed(&self) -> (Option<u32>, String) {
        match self.session.closed().await {
            SessionError::WebTransportError(WebTransportError::Closed(code, reason)) => (Some(code), reason),
            SessionError::ConnectionError(quinn::ConnectionError::ApplicationClosed(closed)) => {
                (session_code(closed.error_code), String::from_utf8_lossy(&closed.reason).into_owned())
            }
            error => (None, error.to_string()),
        }
    }

    /// What a connection is closed with to end its session with this code.
    pub fn close_code(code: u32) -> VarInt {
        VarInt::from_u64(proto::error_to_http3(code)).unwrap_or(H3_NO_ERROR)
    }
}

/// In front of each stream that we open: its type and the session's id. That id is the one of the CONNECT stream, and
/// CONNECT is the first stream that the client opened: 0.
pub(crate) const UNI_HEADER: &[u8] = &[0x40, 0x54, 0x00];

/// In front of a datagram: the quarter stream id (RFC 9297 §2.1).
pub(crate) const DATAGRAM_HEADER: u8 = 0;

/// The close code that an HTTP/3 error carries; `None` where it is HTTP/3's own.
pub(crate) fn session_code(code: VarInt) -> Option<u32> {
    proto::error_from_http3(code.into_inner())
}

/// With what the client closed the session, where its capsule said so.
pub(crate) fn session_close(session: &Session) -> Option<u32> {
    match session.close_reason() {
        Some(SessionError::WebTransportError(WebTransportError::Closed(code, _))) => Some(code),
        _ => None,
    }
}

/// True where a unidirectional stream of this type belongs to the session, not to HTTP/3.
pub(crate) fn is_session_stream(stream_type: u64) -> bool {
    stream_type == StreamUni::WEBTRANSPORT.0.into_inner()
}

struct CloseOnDrop(Option<quinn::Connection>);

impl CloseOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.close(H3_NO_ERROR, b"");
        }
    }
}

async fn read_bidi_header(recv: &mut quinn::RecvStream) -> Result<(), &'static str> {
    let signal = ProtoVarInt::read(recv).await.map_err(|_| "the stream ended in its header")?;
    if Frame(signal) != Frame::WEBTRANSPORT {
        return Err("an HTTP/3 request on a WebTransport connection");
    }
    let id = ProtoVarInt::read(recv).await.map_err(|_| "the stream ended in its header")?;
    if id == SESSION_ID { Ok(()) } else { Err("a stream of an unknown WebTransport session") }
}

/// In front of a client's bidirectional stream.
const BIDI_HEADER: &[u8] = &[0x40, 0x41, 0x00];
const SESSION_ID: ProtoVarInt = ProtoVarInt::from_u32(0);
const H3_NO_ERROR: VarInt = VarInt::from_u32(0x100);
const H3_REQUEST_REJECTED: VarInt = VarInt::from_u32(0x10b);
const REJECT_LINGER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_header_is_what_the_codec_makes() {
        let mut header = Vec::new();
        StreamUni::WEBTRANSPORT.encode(&mut header);
        SESSION_ID.encode(&mut header);
        assert_eq!(UNI_HEADER, header);
        header.clear();
        Frame::WEBTRANSPORT.encode(&mut header);
        SESSION_ID.encode(&mut header);
        assert_eq!(BIDI_HEADER, header);
    }

    #[test]
    fn datagrams_of_the_session_are_told_from_others() {
        let datagram = WebTransportClient::to_datagram(b"abc");
        assert_eq!(WebTransportClient::from_datagram(datagram).as_deref(), Some(&b"abc"[..]));
        for other in [&b""[..], &b"\x01abc"[..]] {
            assert_eq!(WebTransportClient::from_datagram(Bytes::from_static(other)), None);
        }
    }

    #[test]
    fn close_codes_survive_http3() {
        for code in [0, 1, 29, 30, 31, 4000, 4108, 4200, u32::MAX] {
            let mapped = proto::error_to_http3(code);
            assert_eq!(session_code(VarInt::from_u64(mapped).unwrap()), Some(code));
        }
        assert_eq!(session_code(H3_NO_ERROR), None);
    }
}
