//! What comes from a client: frames on the control stream, datagrams, and streams that it should not open.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use quinn::{ConnectionError, ReadError, RecvStream, VarInt};
use tidegate_protocol::frame::codec::{self, DecodeError, Decoder};
use tidegate_protocol::frame::{ClientFrame, CloseCode};
use web_transport_quinn::Session;
use web_transport_quinn::proto::VarInt as ProtoVarInt;

use super::client::is_probe;
use super::webtransport::{DATAGRAM_HEADER, is_session_stream, session_close, session_code};
use crate::{Inbound, RecvError};

/// The receiving half of one connection.
pub(crate) struct Inbox {
    control: RecvStream,
    decoder: Decoder,
    frame_limit: usize,
    /// Boxed, and kept between polls: quinn's futures hold the registration that wakes us.
    arrivals: Option<Pin<Box<dyn Future<Output = Arrival> + Send>>>,
    /// HTTP/3's own streams, open as long as the connection is: closing one is an error (RFC 9114 §6.2.1).
    http3_streams: Vec<Http3Stream>,
    /// Which of control and datagrams is asked first: they take turns.
    control_first: bool,
    /// Comes after frames that were good.
    failure: Option<DecodeError>,
    ended: bool,
}

/// Over what the streams travel.
pub(crate) enum Carrier {
    Native,
    // Boxed: it is ten times the size of what else a connection holds, and native ones have none.
    WebTransport(Box<Session>),
}

type Received = Result<Inbound, RecvError>;

impl Inbox {
    pub(crate) fn new(control: RecvStream, frame_limit: usize) -> Self {
        Self {
            control,
            decoder: Decoder::new(frame_limit),
            frame_limit,
            arrivals: None,
            http3_streams: Vec::new(),
            control_first: true,
            failure: None,
            ended: false,
        }
    }

    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &quinn::Connection,
        carrier: &Carrier,
    ) -> Poll<Received> {
        if self.ended {
            return Poll::Ready(Err(RecvError::Lost("the connection has ended".into())));
        }
        self.control_first = !self.control_first;
        let polled = if self.control_first {
            self.poll_control(cx, connection, carrier)
                .or_else_pending(|| self.poll_arrivals(cx, connection, carrier))
        } else {
            self.poll_arrivals(cx, connection, carrier)
                .or_else_pending(|| self.poll_control(cx, connection, carrier))
        };
        let received = ready!(polled);
        self.ended = !matches!(received, Ok(Inbound::Frames(_) | Inbound::Datagram(_)));
        Poll::Ready(received)
    }

    fn poll_control(
        &mut self,
        cx: &mut Context<'_>,
        connection: &quinn::Connection,
        carrier: &Carrier,
    ) -> Poll<Received> {
        loop {
            let frames = self.decode();
            if !frames.is_empty() {
                return Poll::Ready(Ok(Inbound::Frames(frames)));
            }
            if let Some(error) = self.failure.take() {
                return Poll::Ready(Err(protocol_error(&error)));
            }
            // Cancel-safe: the waker stays with the stream.
            let read = pin!(self.control.read_chunk(READ_BYTES, true)).poll(cx);
            match ready!(read) {
                Ok(Some(chunk)) => self.decoder.push(&chunk.bytes),
                Ok(None) => return Poll::Ready(self.finished(connection, carrier)),
                Err(ReadError::Reset(code)) => {
                    return Poll::Ready(Ok(Inbound::Closed { code: carrier.close_code(code) }));
                }
                Err(ReadError::ConnectionLost(error)) => return Poll::Ready(carrier.ended(&error)),
                Err(error) => return Poll::Ready(Err(RecvError::Lost(error.to_string()))),
            }
        }
    }

    /// Whole frames that were read already, at most [`MAX_FRAMES`].
    fn decode(&mut self) -> Vec<ClientFrame> {
        let mut frames = Vec::new();
        while self.failure.is_none() && frames.len() < MAX_FRAMES {
            match self.decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => self.failure = Some(error),
            }
        }
        frames
    }

    /// The client ended its control stream: in order, unless in the middle of a frame.
    fn finished(&self, connection: &quinn::Connection, carrier: &Carrier) -> Received {
        match connection.close_reason() {
            Some(error) => carrier.ended(&error),
            None if self.decoder.is_empty() => Ok(Inbound::Closed { code: None }),
            None => Err(protocol_error(&DecodeError::Truncated)),
        }
    }

    fn poll_arrivals(
        &mut self,
        cx: &mut Context<'_>,
        connection: &quinn::Connection,
        carrier: &Carrier,
    ) -> Poll<Received> {
        loop {
            if self.session_stream_came(cx) {
                return Poll::Ready(Err(out_of_order("a second stream: only control may be opened")));
            }
            let arrivals = self.arrivals.get_or_insert_with(|| next_arrival(connection.clone()));
            let arrival = ready!(arrivals.as_mut().poll(cx));
            self.arrivals = None;
            match arrival {
                Arrival::Datagram(bytes) => {
                    if let Some(received) = self.datagram(bytes, carrier) {
                        return Poll::Ready(received);
                    }
                }
                Arrival::Uni(stream) if carrier.is_http3() => {
                    self.http3_streams.push(Http3Stream::new(stream))
                }
                Arrival::Uni(_) | Arrival::Bidi => {
                    return Poll::Ready(Err(out_of_order("a second stream: only control may be opened")));
                }
                // The control stream tells how, after what it still holds.
                Arrival::Lost => return self.poll_control(cx, connection, carrier),
            }
        }
    }

    /// `None` where there is nothing in it for the session.
    fn datagram(&self, mut bytes: Bytes, carrier: &Carrier) -> Option<Received> {
        if carrier.is_http3() {
            // Of another session, or no HTTP/3 datagram at all: dropped, as one lost on the way.
            let id = ProtoVarInt::decode(&mut bytes).ok()?;
            if id.into_inner() != u64::from(DATAGRAM_HEADER) {
                return None;
            }
        }
        if is_probe(&bytes) {
            return None;
        }
        match codec::decode_message(bytes, self.frame_limit) {
            Ok(frames) if frames.is_empty() => None,
            Ok(frames) => Some(Ok(Inbound::Datagram(frames))),
            Err(error) => Some(Err(protocol_error(&error))),
        }
    }

    /// Sorts HTTP/3's unidirectional streams by type; true where one belongs to the session.
    fn session_stream_came(&mut self, cx: &mut Context<'_>) -> bool {
        let mut came = false;
        self.http3_streams.retain_mut(|stream| match stream.poll_type(cx) {
            Poll::Pending => true,
            Poll::Ready(Some(kind)) if is_session_stream(kind) => {
                came = true;
                false
            }
            // QPACK's streams stay, unread: our settings allow no dynamic table. Others are dropped, which asks the
            // client to stop them (RFC 9114 §6.2.3).
            Poll::Ready(Some(kind)) => HTTP3_CRITICAL.contains(&kind),
            Poll::Ready(None) => false,
        });
        came
    }
}

impl Carrier {
    pub(crate) fn is_http3(&self) -> bool {
        matches!(self, Self::WebTransport(_))
    }

    /// The application's code in a code of QUIC.
    fn close_code(&self, code: VarInt) -> Option<u32> {
        match self {
            Self::Native => u32::try_from(code.into_inner()).ok(),
            Self::WebTransport(_) => session_code(code),
        }
    }

    /// How a connection ended that gives nothing more to read.
    fn ended(&self, error: &ConnectionError) -> Received {
        match (error, self) {
            (ConnectionError::ApplicationClosed(close), _) => {
                Ok(Inbound::Closed { code: self.close_code(close.error_code) })
            }
            // The session's task has seen the client's close capsule, or the end of the CONNECT stream, and closed.
            (ConnectionError::LocallyClosed, Self::WebTransport(session)) => {
                Ok(Inbound::Closed { code: session_close(session) })
            }
            _ => Err(RecvError::Lost(error.to_string())),
        }
    }
}

enum Arrival {
    Datagram(Bytes),
    Uni(RecvStream),
    Bidi,
    Lost,
}

/// The next datagram or stream. One future for the three: an idle connection holds one allocation for all it waits for.
fn next_arrival(connection: quinn::Connection) -> Pin<Box<dyn Future<Output = Arrival> + Send>> {
    Box::pin(async move {
        let mut datagram = pin!(connection.read_datagram());
        let mut uni = pin!(connection.accept_uni());
        let mut bidi = pin!(connection.accept_bi());
        poll_fn(|cx| {
            if let Poll::Ready(result) = datagram.as_mut().poll(cx) {
                return Poll::Ready(result.map_or(Arrival::Lost, Arrival::Datagram));
            }
            if let Poll::Ready(result) = uni.as_mut().poll(cx) {
                return Poll::Ready(result.map_or(Arrival::Lost, Arrival::Uni));
            }
            bidi.as_mut().poll(cx).map(|result| result.map_or(Arrival::Lost, |_| Arrival::Bidi))
        })
        .await
    })
}

/// A unidirectional stream of HTTP/3, whose type comes first (RFC 9114 §6.2).
struct Http3Stream {
    stream: RecvStream,
    kind: Option<u64>,
    /// The type's first bytes: a varint of up to 8 (RFC 9000 §16).
    header: [u8; 8],
    read: usize,
}

impl Http3Stream {
    fn new(stream: RecvStream) -> Self {
        Self { stream, kind: None, header: [0; 8], read: 0 }
    }

    /// Its type; `None` where it ended before.
    fn poll_type(&mut self, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        while self.kind.is_none() {
            let whole = 1 << (self.header[0] >> 6);
            // The first byte tells how many there are.
            let want = if self.read == 0 { 1 } else { whole };
            if self.read == want {
                self.kind = ProtoVarInt::decode(&mut &self.header[..want]).ok().map(ProtoVarInt::into_inner);
                break;
            }
            match ready!(self.stream.poll_read(cx, &mut self.header[self.read..want])) {
                Ok(1..) if self.read == 0 => self.read = 1,
                Ok(bytes @ 1..) => self.read += bytes,
                Ok(0) | Err(_) => return Poll::Ready(None),
            }
        }
        Poll::Ready(self.kind)
    }
}

trait OrElsePending<T> {
    fn or_else_pending(self, other: impl FnOnce() -> Poll<T>) -> Poll<T>;
}

impl<T> OrElsePending<T> for Poll<T> {
    fn or_else_pending(self, other: impl FnOnce() -> Self) -> Self {
        if self.is_ready() { self } else { other() }
    }
}

fn protocol_error(error: &DecodeError) -> RecvError {
    RecvError::Protocol { code: error.close_code(), reason: error.to_string() }
}

fn out_of_order(reason: &str) -> RecvError {
    RecvError::Protocol { code: CloseCode::OutOfOrder, reason: reason.into() }
}

/// The most frames handed on at once: beyond that the reader decides whether it wants more.
const MAX_FRAMES: usize = 64;

/// The most bytes taken from the stream at once.
const READ_BYTES: usize = 16 * 1024;

/// Control, QPACK encoder, QPACK decoder (RFC 9114 §11.2.4, RFC 9204 §8.2).
const HTTP3_CRITICAL: [u64; 3] = [0, 2, 3];
