//! What an edge is told at start. The program parses its file into this; after that, invalid cannot be written.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use tidegate_protocol::namespace::Namespaces;
use tidegate_protocol::plan::Alternative;
use tidegate_protocol::{NodeId, Region};
use tidegate_transport::quic::QuicConfig;

use crate::listener::ListenError;
use crate::policy::admission::AdmissionConfig;

/// An edge's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name, told to clients and backends.
    pub node: NodeId,
    /// Where it stands.
    pub region: Region,
    /// One single-threaded runtime each; at most [`MAX_WORKERS`], or [`MAX_QUIC_WORKERS`] where `quic` or `http3`
    /// is set.
    pub workers: NonZeroUsize,
    /// UDP: QUIC and WebTransport.
    pub quic: Option<SocketAddr>,
    /// TCP with TLS: WebSocket, long poll, channel poll, events.
    pub tls: Option<SocketAddr>,
    /// TCP without TLS: the same behind a balancer that terminates TLS, benchmarks, and `dev`.
    pub plain: Option<SocketAddr>,
    /// UDP: the HTTP endpoints over HTTP/3. It is told to clients of `tls`, and needs `tls`' certificates.
    pub http3: Option<SocketAddr>,
    /// Rules of channels.
    pub namespaces: Namespaces,
    /// Whether a session needs no token.
    pub anonymous: bool,
    /// Where else clients may be sent, as told in `connected`: at most 16 are believed.
    pub alternatives: Vec<Alternative>,
    /// Resume tickets; `None` where none are issued or honoured.
    pub resume: Option<Resume>,
    /// How many clients it takes on, and how fast.
    pub admission: AdmissionConfig,
    /// Bounds on everything that a peer can grow.
    pub limits: Limits,
}

/// The most workers of a node: a session's id names its worker in one byte.
pub const MAX_WORKERS: usize = 256;
/// The most workers of a node that serves QUIC: so many can share a UDP port.
pub const MAX_QUIC_WORKERS: usize = tidegate_transport::quic::MAX_WORKERS;

impl Config {
    pub(crate) fn check_workers(&self) -> Result<(), ListenError> {
        let limit = if self.quic.is_some() || self.http3.is_some() { MAX_QUIC_WORKERS } else { MAX_WORKERS };
        let workers = self.workers.get();
        if workers > limit { Err(ListenError::TooManyWorkers { workers, limit }) } else { Ok(()) }
    }
}

/// How sessions are resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// How long a ticket is valid; renewed when half of it is over.
    pub lifetime: Duration,
    /// From a resume to the end of the session's older connections.
    pub grace: Duration,
}

impl Default for Resume {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(600), grace: Duration::from_secs(30) }
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
    /// How long an ephemeral item may wait for a client; older ones are dropped.
    pub ephemeral_age: Duration,
    /// Whether publications are sent again where a QUIC or WebTransport connection loses packets.
    pub repeats: bool,
    /// Bytes that the kernel may hold of what was not sent yet, per TCP connection (`TCP_NOTSENT_LOWAT`).
    pub tcp_unsent: usize,
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
    /// The age that no connection of a client that can move passes: from half of it on, each is asked to make another one.
    /// Zero: never.
    pub renewal: Duration,
    /// A long-poll session that nobody polls.
    pub longpoll_idle: Duration,
    /// A close that the client does not acknowledge.
    pub close: Duration,
    /// QUIC's own, except that its frame limit and handshake timeout are `frame` and `handshake`.
    pub quic: QuicConfig,
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
            ephemeral_age: Duration::from_secs(1),
            repeats: true,
            tcp_unsent: 16 << 10,
            http_headers: 16 << 10,
            http_body: 256 << 10,
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            ping: Duration::from_secs(25),
            pong: Duration::from_secs(10),
            renewal: Duration::from_secs(6 * 3600),
            longpoll_idle: Duration::from_secs(60),
            close: Duration::from_secs(3),
            quic: QuicConfig::default(),
        }
    }
}
