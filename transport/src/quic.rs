//! QUIC towards clients. The server's side: one endpoint per worker, native connections and WebTransport. The client's:
//! dialling native QUIC.
//!
//! [`bind`] shares a UDP port out to workers, [`SocketGroup`] with the processes before and after this one. [`QuicServer`] is what their endpoints have in common, and each worker
//! runs a [`QuicEndpoint`] on its own runtime. What it accepts becomes a [`QuicConnection`], the same for both.
//! [`QuicDialer`] makes [`QuicClient`]s, whose path a [`PathWatch`] watches.

mod client;
mod congestion;
mod connection;
mod credits;
mod crypto;
mod datagrams;
mod early;
mod endpoint;
mod group;
mod http3;
mod ids;
mod inbound;
mod initials;
mod lanes;
mod path_watch;
mod socket;
mod steering;
mod webtransport;
mod worker_ids;

use std::sync::Arc;
use std::time::Duration;

pub use client::{DialConfig, EarlyData, PROBE_BYTES, QuicClient, QuicDialer, is_probe, probe_datagram};
pub use connection::{QuicConnection, QuicStats};
pub use endpoint::{Incoming, Pending, QuicEndpoint, QuicPending, QuicServer};
pub use group::{BindError, BoundSockets, SOCKET_BUFFER, SocketGroup, bind};
pub use http3::{ALPN_HTTP3, Http3Answer, Http3Body, Http3Connection, Http3Limits, Http3Request};
pub use ids::{
    GENERATIONS, IdKey, MAX_SERVER_ID, Place, ROUTING_KEY_BYTES, Routing, RoutingError, place,
    place_in_datagram,
};
pub use path_watch::{PathEvent, PathWatch, PtoEstimate};
pub use socket::Strays;
pub use steering::{MAX_WORKERS, Steering, SteeringError, WorkerSet};
pub use webtransport::{WebTransportClient, WebTransportPending};

use self::congestion::CubicDelayConfig;
use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};

/// ALPN of native clients (PROTOCOL §2).
pub const ALPN_NATIVE: &[u8] = b"tidegate/1";

/// ALPN of WebTransport: HTTP/3 (RFC 9114 §3.1).
pub const ALPN_WEBTRANSPORT: &[u8] = b"h3";

/// Limits of an endpoint and its connections.
#[derive(Debug, Clone)]
pub struct QuicConfig {
    /// A connection without a packet for so long is dead.
    pub idle_timeout: Duration,
    /// From a client's first packet to the end of the handshake; for WebTransport to the end of its request.
    pub handshake_timeout: Duration,
    /// What a round trip is taken for until one was measured: three of it pass before a lost first packet is sent again.
    pub initial_rtt: Duration,
    /// How sending is paced.
    pub congestion: CongestionControl,
    /// Bytes that may be in flight before anything was acknowledged.
    pub initial_window: u32,
    /// Bytes that a client may send on one stream ahead of our reading: a `connect` with 512 `subscribe` frames behind
    /// it, up to 64 KiB, is one flight.
    pub stream_window: u32,
    /// Bytes that a client may send on all its streams ahead of our reading.
    pub connection_window: u32,
    /// Bytes held for a client that were not acknowledged yet, over all streams. What is in there goes out in its order:
    /// the smaller it is, the more ranks count, and the slower a client far away is served in bulk.
    pub send_window: u32,
    /// Unidirectional streams that a client may have open. HTTP/3 takes three for itself and may open one that nobody
    /// knows (RFC 9114 §6.2.3); the next is told that it is too many.
    pub client_uni_streams: u32,
    /// Bidirectional streams that a client may have open. WebTransport takes one for its request, control is
    /// one, and the next is told that it is too many.
    pub client_bidi_streams: u32,
    /// Datagrams that are sent to a client in one call where more wait (GSO). Above 1, a connection that ever sent in
    /// bulk keeps a buffer of so many, 1.2 KB each; up to 10. Bulk costs half the CPU with 3.
    pub send_segments: usize,
    /// Bytes of datagrams held in each direction; the oldest make room.
    pub datagram_buffer: u32,
    /// Connections that wait to be accepted; one more is refused.
    pub max_incoming: usize,
    /// Packets that a client is asked to acknowledge together, where it can (RFC 9000 §13.2, ACK frequency extension).
    pub ack_threshold: u32,
    /// How long a client may wait with an acknowledgement, where it can be asked. A lost packet is noticed so much later.
    pub ack_delay: Duration,
    /// Whether a native client that was here before may say something in its first flight (0-RTT, ADR 0009).
    pub early_data: bool,
    /// Tickets that are remembered for it, the newest, some 50 bytes each. Their clients must come back to the same process;
    /// elsewhere they resume without.
    pub tickets: usize,
    /// Bytes of one frame from a client.
    pub frame_limit: usize,
    /// What balancers in front know; `None`: connection ids say nothing to them.
    pub routing: Option<Arc<Routing>>,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            // quinn's own (RFC 9002 §6.2.2): an answer that is sent again too early counts against the amplification limit.
            initial_rtt: Duration::from_millis(333),
            congestion: CongestionControl::CubicDelay,
            // 32 packets, not RFC 9002's ten (§7.2): a sender of little never makes its window grow, and a row of lost
            // acknowledgements on a long path fills one of ten (ADR 0011).
            initial_window: 32 * 1200,
            stream_window: 64 * 1024,
            connection_window: 64 * 1024,
            send_window: 64 * 1024,
            client_uni_streams: 5,
            client_bidi_streams: 3,
            send_segments: 1,
            datagram_buffer: 16 * 1024,
            max_incoming: 4096,
            ack_threshold: 10,
            ack_delay: Duration::from_millis(25),
            early_data: true,
            tickets: 65_536,
            frame_limit: 128 * 1024,
            routing: None,
        }
    }
}

/// How sending is paced to what the path carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CongestionControl {
    /// RFC 9438, deaf to losses that come without delay: ADR 0011.
    #[default]
    CubicDelay,
    /// RFC 9438.
    Cubic,
    /// RFC 9002 §7.
    NewReno,
    /// Experimental in quinn: for comparisons.
    Bbr,
}

impl CongestionControl {
    /// `initial_window`: bytes that may be in flight before anything was acknowledged.
    pub(crate) fn factory(self, initial_window: u32) -> Arc<dyn ControllerFactory + Send + Sync> {
        let window = u64::from(initial_window);
        match self {
            Self::CubicDelay => {
                let cubic = CubicConfig::default().initial_window(window).clone();
                Arc::new(CubicDelayConfig(Arc::new(cubic)))
            }
            Self::Cubic => Arc::new(CubicConfig::default().initial_window(window).clone()),
            Self::NewReno => Arc::new(NewRenoConfig::default().initial_window(window).clone()),
            Self::Bbr => Arc::new(BbrConfig::default().initial_window(window).clone()),
        }
    }
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuicError {
    /// TLS settings or limits that QUIC cannot work with.
    #[error("settings not fit for QUIC: {0}")]
    Settings(String),
    /// The socket cannot be used.
    #[error("cannot use the UDP socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The client took too long.
    #[error("no handshake within {0:?}")]
    HandshakeTimeout(Duration),
    /// Too many clients are answered that have not proved their addresses: this one was asked to do so, and may come again.
    #[error("the client is to prove its address first")]
    Unvalidated,
    /// An ALPN that is none of ours got through the TLS settings.
    #[error("unknown ALPN {0:?}")]
    UnknownAlpn(String),
    /// What came on `h3` asks for no WebTransport session.
    #[error("no WebTransport request: {0}")]
    NotWebTransport(String),
    /// The server answered a request for a WebTransport session with another status than 200.
    #[error("the server answered {0}")]
    Status(http::StatusCode),
    /// The client's first stream is not what the protocol wants.
    #[error("no control stream: {0}")]
    NoControlStream(String),
    /// The connection ended first.
    #[error("connection lost: {0}")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl QuicError {
    fn lost(error: quinn::ConnectionError) -> Self {
        Self::Lost(Box::new(error))
    }
}

#[cfg(test)]
mod tests;
