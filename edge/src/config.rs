//! What an edge is told at start. The program parses its file into this; after that, invalid cannot be written.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use tidegate_protocol::namespace::Namespaces;
use tidegate_protocol::{NodeId, Region};

use crate::listener::ListenError;

/// An edge's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name, told to clients and backends.
    pub node: NodeId,
    /// Where it stands.
    pub region: Region,
    /// One single-threaded runtime each; at most [`MAX_WORKERS`], or [`MAX_QUIC_WORKERS`] where `quic` is set.
    pub workers: NonZeroUsize,
    /// UDP: QUIC and WebTransport.
    pub quic: Option<SocketAddr>,
    /// TCP with TLS: WebSocket, long poll, channel poll.
    pub tls: Option<SocketAddr>,
    /// TCP without TLS: the same behind a balancer that terminates TLS, benchmarks, and `dev`.
    pub plain: Option<SocketAddr>,
    /// Rules of channels.
    pub namespaces: Namespaces,
    /// Whether a session needs no token.
    pub anonymous: bool,
    /// Bounds on everything that a peer can grow.
    pub limits: Limits,
}

/// The most workers of a node: a session's id names its worker in one byte.
pub const MAX_WORKERS: usize = 256;
/// The most workers of a node that serves QUIC: so many can share a UDP port.
pub const MAX_QUIC_WORKERS: usize = tidegate_transport::quic::MAX_WORKERS;

impl Config {
    pub(crate) fn check_workers(&self) -> Result<(), ListenError> {
        let limit = if self.quic.is_some() { MAX_QUIC_WORKERS } else { MAX_WORKERS };
        let workers = self.workers.get();
        if workers > limit { Err(ListenError::TooManyWorkers { workers, limit }) } else { Ok(()) }
    }
}

/// Bounds on everything that a peer can grow, and how long it may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections per node, all transports, handshakes included.
    pub connections: usize,
    /// Bytes of one frame, and of one WebSocket message.
    pub frame: usize,
    /// Bytes of one payload.
    pub payload: usize,
    /// Bytes of a token.
    pub token: usize,
    /// Subscriptions of one session.
    pub subscriptions: usize,
    /// Questions of one session that wait for the core; further frames are not handled meanwhile.
    pub requests: usize,
    /// Bytes queued for one session, all lanes; a quarter of it is for control frames alone.
    pub session_queue: usize,
    /// Bytes queued for one subscription; over it the subscription is parked and catches up from history.
    pub subscription_queue: usize,
    /// Bytes of an HTTP request's header block.
    pub http_headers: usize,
    /// Bytes of an HTTP request's body.
    pub http_body: usize,
    /// TLS or QUIC handshake, and each HTTP request: its headers, then its body.
    pub handshake: Duration,
    /// From an open connection to its `connect` frame.
    pub connect: Duration,
    /// Between pings.
    pub ping: Duration,
    /// From a ping to its pong.
    pub pong: Duration,
    /// A long-poll session that nobody polls.
    pub longpoll_idle: Duration,
    /// A close that the client does not acknowledge.
    pub close: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            frame: 128 << 10,
            payload: 64 << 10,
            token: 8 << 10,
            subscriptions: 512,
            requests: 64,
            session_queue: 4 << 20,
            subscription_queue: 1 << 20,
            http_headers: 16 << 10,
            http_body: 256 << 10,
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            ping: Duration::from_secs(25),
            pong: Duration::from_secs(10),
            longpoll_idle: Duration::from_secs(60),
            close: Duration::from_secs(3),
        }
    }
}
