//! One WebSocket as a [`Connection`]: every lane on one ordered pipe, nothing allocated per send.

use std::fmt;
use std::io;
use std::mem::{MaybeUninit, take};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use tidegate_protocol::ChannelName;
use tidegate_protocol::frame::codec::{decode_message, decode_text};
use tidegate_protocol::frame::shared::Framing;
use tidegate_protocol::frame::{ClientFrame, CloseCode};
use tidegate_transport::{Closing, Connection, Inbound, Lane, RecvError, Sent, TransportKind};
use tokio::io::ReadBuf;

use super::handshake::Subprotocol;
use super::io::WebSocketIo;
use super::reader::{Incoming, Kind, ReadError, Reader};

/// Bounds of one connection.
#[derive(Debug, Clone, Copy)]
pub struct WebSocketLimits {
    /// The largest frame, bytes; a JSON message, which may hold several, is held to it as well.
    pub frame_bytes: usize,
}

/// A client by WebSocket.
///
/// What was taken but not written yet is at most the rest of one offered `Bytes` and one control frame.
pub struct WebSocketConnection {
    io: WebSocketIo,
    subprotocol: Subprotocol,
    state: State,
    frame_bytes: usize,
    reader: Reader,
    /// The rest of a frame that was written in part. Nothing may come between.
    remainder: Bytes,
    /// A pong or close frame that waits for it. Only the newest pong counts (RFC 6455 §5.5.3).
    reply: Bytes,
    /// Bytes that were written may still be inside `io`.
    unflushed: bool,
    /// Of the task that drives this connection, for when a send leaves something to be pushed.
    waker: Option<Waker>,
}

/// ```text
///          client's close                      shut down
/// Open ───────────────────► PeerClosed ──────────────────────────────► Ended
///  │ │  bad input            poll_close, its bytes drained              ▲
///  │ └──────────► Broken ───────────────► Parting ──────► Draining ─────┤
///  │ poll_close                              ▲                          │
///  └──────────────────────► AwaitingPeer ────┴──────────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The client sent its close frame; the answer is queued or written.
    PeerClosed,
    /// What the client sends can no longer be told apart.
    Broken,
    /// Our close frame is queued or written; the client's is awaited.
    AwaitingPeer,
    /// Both close frames are exchanged: the stream is shut down next.
    Parting {
        /// Read on until the end of the stream: unread bytes would make the kernel reset the connection, and the
        /// client would miss the close frame.
        drain: bool,
    },
    Draining,
    Ended,
}

impl WebSocketConnection {
    /// Speaks `subprotocol` over `io`, of which `read_ahead` was read already.
    pub fn new(
        mut io: WebSocketIo,
        read_ahead: &[u8],
        subprotocol: Subprotocol,
        limits: WebSocketLimits,
    ) -> Self {
        io.limit_buffers();
        let mut reader = match subprotocol {
            Subprotocol::Json => Reader::new(Kind::Text, limits.frame_bytes),
            // The limit counts without the length in front.
            Subprotocol::Proto => Reader::new(Kind::Binary, limits.frame_bytes.saturating_add(MAX_VARINT)),
        };
        // Copied: as it is, it pins hyper's whole buffer.
        reader.push(read_ahead);
        Self {
            io,
            subprotocol,
            state: State::Open,
            frame_bytes: limits.frame_bytes,
            reader,
            remainder: Bytes::new(),
            reply: Bytes::new(),
            unflushed: false,
            waker: None,
        }
    }

    /// What was agreed upon in the handshake.
    pub fn subprotocol(&self) -> Subprotocol {
        self.subprotocol
    }

    #[cfg(test)]
    pub(super) fn io_kind(&self) -> &'static str {
        match self.io {
            WebSocketIo::Plain(_) => "Plain",
            WebSocketIo::Tls(_) => "Tls",
            WebSocketIo::Other(_) => "Other",
        }
    }

    #[cfg(test)]
    pub(super) fn reader_capacity(&self) -> usize {
        self.reader.capacity()
    }

    /// Goes through what was read, up to the first thing for the session. At most one pong is written, however many
    /// pings came: the last one's.
    fn next_inbound(&mut self) -> Result<Option<Inbound>, RecvError> {
        let mut ping = None;
        let inbound = loop {
            match self.reader.next() {
                Ok(Some(Incoming::Message(message))) => {
                    let frames = self.decode(message)?;
                    if !frames.is_empty() {
                        break Some(Inbound::Frames(frames));
                    }
                }
                Ok(Some(Incoming::Ping(payload))) => ping = Some(payload),
                Ok(Some(Incoming::Close { code })) => {
                    self.state = State::PeerClosed;
                    ping = None;
                    // Echoed (RFC 6455 §5.5.1).
                    self.queue_reply(close_frame(code, ""));
                    break Some(Inbound::Closed { code: code.map(u32::from) });
                }
                Ok(None) => break None,
                Err(error) => return Err(self.fail(error.close_code(), &error)),
            }
        };
        if let Some(payload) = ping {
            self.queue_reply(control_frame(PONG, &payload));
        }
        Ok(inbound)
    }

    fn decode(&mut self, message: Bytes) -> Result<Vec<ClientFrame>, RecvError> {
        let frames = match self.subprotocol {
            Subprotocol::Json => decode_text(&message, self.frame_bytes),
            Subprotocol::Proto => decode_message(message, self.frame_bytes),
        };
        frames.map_err(|error| self.fail(error.close_code(), &error))
    }

    fn fail(&mut self, code: CloseCode, error: &dyn std::error::Error) -> RecvError {
        self.state = State::Broken;
        RecvError::Protocol { code, reason: error.to_string() }
    }

    /// Reads once into the reader; `false` at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut chunk = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        ready!(self.io.poll_read(cx, &mut chunk))?;
        self.reader.push(chunk.filled());
        Poll::Ready(Ok(!chunk.filled().is_empty()))
    }

    fn has_pending(&self) -> bool {
        !self.remainder.is_empty() || !self.reply.is_empty()
    }

    /// Writes what can be written now and keeps the rest. Only where nothing is pending.
    fn write(&mut self, bytes: &Bytes) -> io::Result<()> {
        let progress = self.io.try_write(bytes)?;
        if progress.written < bytes.len() {
            self.remainder = bytes.slice(progress.written..);
        }
        self.unflushed = !progress.flushed;
        if self.has_pending() || self.unflushed {
            // The task goes on with it: nobody is bound to ask `poll_ready`.
            if let Some(waker) = &self.waker {
                waker.wake_by_ref();
            }
        }
        Ok(())
    }

    /// Sends a control frame, behind what is under way. A close is the last; pongs give way to it.
    fn queue_reply(&mut self, frame: Bytes) {
        if self.has_pending() {
            if self.reply.first() != Some(&CLOSE) {
                self.reply = frame;
            }
        } else if self.write(&frame).is_err() {
            // The next read or push meets the same error and reports it.
            self.remainder = frame;
        }
    }

    /// Pushes out what was taken.
    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.remainder.is_empty() {
                // Also lets go of the shared frame.
                self.remainder = take(&mut self.reply);
                if self.remainder.is_empty() {
                    break;
                }
            }
            let written = ready!(self.io.poll_write(cx, &self.remainder))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.remainder.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(self.io.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for the client's close frame or the end of the stream, and passes over anything else.
    fn poll_peer_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ReadError>> {
        for _ in 0..READS_PER_POLL {
            loop {
                match self.reader.next()? {
                    Some(Incoming::Close { .. }) => return Poll::Ready(Ok(())),
                    Some(_) => {}
                    None => break,
                }
            }
            match ready!(self.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads and forgets until the end of the stream.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..READS_PER_POLL {
            let mut chunk = [const { MaybeUninit::uninit() }; READ_BYTES];
            let mut chunk = ReadBuf::uninit(&mut chunk);
            match ready!(self.io.poll_read(cx, &mut chunk)) {
                Ok(()) if !chunk.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One step towards the end; an error leaves nothing more to do.
    fn poll_part(&mut self, cx: &mut Context<'_>, closing: &Closing) -> Poll<io::Result<()>> {
        loop {
            self.state = match self.state {
                State::Open | State::Broken => {
                    let frame = closing.code.frame(&closing.reason);
                    // Codes are below 5,000: `CloseCode` holds no others.
                    self.queue_reply(close_frame(Some(frame.code as u16), &frame.reason));
                    match self.state {
                        State::Open => State::AwaitingPeer,
                        _ => State::Parting { drain: true },
                    }
                }
                State::PeerClosed => State::Parting { drain: false },
                State::AwaitingPeer => {
                    ready!(self.poll_push(cx))?;
                    State::Parting { drain: ready!(self.poll_peer_close(cx)).is_err() }
                }
                State::Parting { drain } => {
                    ready!(self.poll_push(cx))?;
                    ready!(self.io.poll_shutdown(cx))?;
                    if drain { State::Draining } else { State::Ended }
                }
                State::Draining => {
                    ready!(self.poll_drain(cx));
                    State::Ended
                }
                State::Ended => return Poll::Ready(Ok(())),
            };
        }
    }
}

impl Connection for WebSocketConnection {
    fn kind(&self) -> TransportKind {
        TransportKind::WebSocket
    }

    fn framing(&self) -> Framing {
        self.subprotocol.framing()
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Inbound, RecvError>> {
        if self.state != State::Open {
            return Poll::Ready(Err(RecvError::Lost("the WebSocket is closing".to_owned())));
        }
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        for _ in 0..READS_PER_POLL {
            if let Some(inbound) = self.next_inbound()? {
                return Poll::Ready(Ok(inbound));
            }
            if let Poll::Ready(Err(error)) = self.poll_push(cx) {
                return Poll::Ready(Err(lost(&error)));
            }
            match ready!(self.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) => {
                    return Poll::Ready(Err(RecvError::Lost("ended without a close frame".to_owned())));
                }
                Err(error) => return Poll::Ready(Err(lost(&error))),
            }
        }
        // Others get their turn before this client is read on.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn open_lane(&mut self, _subscription: u32, _channel: &ChannelName, _rank: i8) {}

    fn close_lane(&mut self, _subscription: u32) {}

    fn finish_catch_up(&mut self, _subscription: u32) {}

    fn send(&mut self, _lane: Lane, bytes: &Bytes) -> Result<Sent, RecvError> {
        // Whoever sent something bad is still told why.
        if !matches!(self.state, State::Open | State::Broken) {
            return Err(RecvError::Lost("the WebSocket is closing".to_owned()));
        }
        if self.has_pending() {
            return Ok(Sent::Full);
        }
        self.write(bytes).map_err(|error| lost(&error))?;
        Ok(Sent::Taken)
    }

    fn send_datagram(&mut self, _bytes: &Bytes) -> bool {
        false
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, _lane: Lane) -> Poll<Result<(), RecvError>> {
        self.poll_push(cx).map_err(|error| lost(&error))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, closing: &Closing) -> Poll<()> {
        if ready!(self.poll_part(cx, closing)).is_err() {
            self.state = State::Ended;
        }
        Poll::Ready(())
    }

    fn buffered(&self) -> usize {
        self.remainder.len() + self.reply.len()
    }
}

impl fmt::Debug for WebSocketConnection {
    /// Without what is under way: payloads never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketConnection")
            .field("io", &self.io)
            .field("subprotocol", &self.subprotocol)
            .field("state", &self.state)
            .field("buffered", &self.buffered())
            .finish_non_exhaustive()
    }
}

fn lost(error: &io::Error) -> RecvError {
    RecvError::Lost(error.to_string())
}

/// A close frame; `reason` has at most 120 bytes.
fn close_frame(code: Option<u16>, reason: &str) -> Bytes {
    match code {
        Some(code) => control_frame(CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat()),
        None => control_frame(CLOSE, &[]),
    }
}

/// An unmasked control frame; `payload` has at most 125 bytes.
fn control_frame(first: u8, payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(2 + payload.len());
    frame.push(first);
    frame.push(payload.len() as u8);
    frame.extend_from_slice(payload);
    Bytes::from(frame)
}

/// First bytes of whole control frames: FIN and the opcode.
const CLOSE: u8 = 0x88;
const PONG: u8 = 0x8a;
const MAX_VARINT: usize = 5;
/// Read at once, into the stack: an idle connection has no read buffer.
const READ_BYTES: usize = 8 * 1024;
/// How long one client is read before others get their turn.
const READS_PER_POLL: usize = 16;
