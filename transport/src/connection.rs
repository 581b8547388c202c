//! What a client's connection is to the worker that owns it, whatever the transport.
//!
//! A connection is driven by one task on one thread. Sending never waits: [`Connection::send`] takes bytes now or
//! says [`Sent::Full`], and the caller queues (and bounds) what was not taken; [`Connection::poll_ready`] says when to
//! go on. Bytes come encoded in the connection's [`Framing`] and are shared between connections.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::frame::shared::Framing;
use tidegate_protocol::frame::{ClientFrame, CloseCode};
use tidegate_protocol::{ChannelName, Epoch};

/// By what a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransportKind {
    /// Native QUIC, ALPN `tidegate/1`.
    Quic,
    /// WebTransport over HTTP/3.
    WebTransport,
    /// WebSocket over HTTP/1.1 or HTTP/2.
    WebSocket,
    /// `POST /v1/poll`.
    LongPoll,
    /// Server-Sent Events: no session, and no [`Connection`] of its own.
    Sse,
}

impl TransportKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Quic, Self::WebTransport, Self::WebSocket, Self::LongPoll, Self::Sse];

    /// Its name in metrics, logs and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::WebTransport => "webtransport",
            Self::WebSocket => "websocket",
            Self::LongPoll => "longpoll",
            Self::Sse => "sse",
        }
    }
}

/// What a frame belongs to inside a session. A transport maps lanes to streams, or to one ordered pipe.
///
/// The number is the session's own name for a subscription, reused only after [`Connection::close_lane`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Requests, replies, pings.
    Control,
    /// Live publications of one subscription.
    Subscription(u32),
    /// What one subscription missed; ends.
    CatchUp(u32),
}

/// What became of bytes that were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Taken whole: the transport sends or holds them.
    Taken,
    /// Not one byte was taken: offer them again after `poll_ready`.
    Full,
}

/// What came from the client.
#[derive(Debug)]
pub enum Inbound {
    /// Frames on the control lane, in order.
    Frames(Vec<ClientFrame>),
    /// Ephemeral frames by datagram: unordered, perhaps repeated.
    Datagram(Vec<ClientFrame>),
    /// The client closed in order.
    Closed {
        /// Its code, where the transport carries one.
        code: Option<u32>,
    },
}

/// Why nothing more comes from a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// What came cannot be decoded or is over a limit.
    #[error("{reason}")]
    Protocol {
        /// What the connection ends with.
        code: CloseCode,
        /// For people.
        reason: String,
    },
    /// The network, or the client without a word.
    #[error("connection lost: {0}")]
    Lost(String),
}

/// How a connection ends.
#[derive(Debug, Clone)]
pub struct Closing {
    /// The code on the wire.
    pub code: CloseCode,
    /// For people; at most 120 bytes are sent.
    pub reason: String,
}

/// What a transport knows of its path.
#[derive(Debug, Clone, Copy)]
pub struct PathStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Bytes that may be in flight.
    pub congestion_window: u64,
    /// Packets sent on this path.
    pub sent_packets: u64,
    /// Of those, lost.
    pub lost_packets: u64,
    /// The largest datagram that [`Connection::send_datagram`] takes now; 0 where the client takes none.
    pub datagram_size: usize,
}

/// One live connection, driven by one task.
pub trait Connection {
    /// By what it is connected.
    fn kind(&self) -> TransportKind;

    /// The encoding and layout that [`Connection::send`] wants.
    fn framing(&self) -> Framing;

    /// The next thing from the client. Reads only when asked: not asking is the back-pressure.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Inbound, RecvError>>;

    /// Names a subscription's lanes before the first bytes on them. What waits of a higher rank goes first, where the
    /// transport has an order of its own.
    fn open_lane(&mut self, subscription: u32, channel: &ChannelName, rank: i8);

    /// What comes on a subscription's lanes from now on is of this epoch: told before the first bytes on them. What was
    /// taken of another epoch may be dropped.
    fn begin_epoch(&mut self, _subscription: u32, _epoch: &Epoch) {}

    /// Gives a subscription's lanes another rank.
    fn rank_lane(&mut self, _subscription: u32, _rank: i8) {}

    /// Ends a subscription's lanes: what was taken is still delivered, what was not is lost.
    fn close_lane(&mut self, subscription: u32);

    /// Ends a catch-up lane after its last bytes were taken.
    fn finish_catch_up(&mut self, subscription: u32);

    /// Offers bytes to a lane, without waiting and without a waker: whole frames in this connection's framing.
    fn send(&mut self, lane: Lane, bytes: &Bytes) -> Result<Sent, RecvError>;

    /// Offers one datagram. Dropped where it does not fit or the transport has none: `false` then.
    fn send_datagram(&mut self, bytes: &Bytes) -> bool;

    /// What is known of the path; `None` where losses are the transport's own business.
    fn path(&self) -> Option<PathStats> {
        None
    }

    /// Pushes out what was taken; ready when `lane` may take more. Registers the waker otherwise.
    fn poll_ready(&mut self, cx: &mut Context<'_>, lane: Lane) -> Poll<Result<(), RecvError>>;

    /// Sends the close (code and reason), after what was taken on the control lane, and waits until the client has
    /// it or the transport gives up. The caller bounds the wait.
    fn poll_close(&mut self, cx: &mut Context<'_>, closing: &Closing) -> Poll<()>;

    /// The session goes on elsewhere: should the client be gone here, nobody need wait for it.
    fn supersede(&mut self) {}

    /// Bytes taken but not yet on their way, as far as this transport can see.
    fn buffered(&self) -> usize;

    /// True while the handshake is not complete: what [`Connection::poll_recv`] gave so far may be early data (0-RTT),
    /// which whoever recorded it can send again. Once false it stays so, and then what came early is no replay either:
    /// only who holds the client's keys completes a handshake. It turns false in `poll_recv` and `poll_established`
    /// alone.
    fn is_early(&self) -> bool {
        false
    }

    /// Ready when the handshake is complete; with an error when the connection ended before, which
    /// [`Connection::poll_recv`] tells too. Registers the waker otherwise.
    fn poll_established(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), RecvError>> {
        Poll::Ready(Ok(()))
    }
}
