//! Sockets of a node, one set for each worker, and their accept loops.

mod channels;
mod h3;
mod http;
mod quic;
mod tcp;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ::http::HeaderValue;
use rand::Rng as _;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_transport::clock;
use tidegate_transport::quic::{ALPN_HTTP3, BindError, IdKey, QuicConfig, QuicServer, Strays};
use tracing::warn;

use crate::config::Config;
use crate::node::Addresses;
use crate::worker::Worker;

pub(crate) use http::serve_commands;
pub(crate) use quic::Listeners;

/// Why a node cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The socket cannot be had.
    #[error("cannot listen on {address} ({what}): {error}")]
    Bind {
        /// Which listener: `quic`, `tls`, `plain`, `http3`.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the OS said.
        error: io::Error,
    },
    /// More workers than a node can have with these listeners.
    #[error("{workers} workers are too many: at most {limit} (64 where QUIC is served, 256 otherwise)")]
    TooManyWorkers {
        /// How many were asked for.
        workers: usize,
        /// How many there can be.
        limit: usize,
    },
    /// A listener that needs a certificate, and none.
    #[error("the {what} listener needs a certificate")]
    NoCertificate {
        /// Which listener.
        what: &'static str,
    },
    /// The QUIC settings contradict themselves.
    #[error("QUIC cannot be set up: {0}")]
    Quic(String),
    /// No thread for a worker.
    #[error("no thread for a worker: {0}")]
    Thread(io::Error),
}

impl ListenError {
    fn bind_quic(what: &'static str, address: SocketAddr, error: BindError) -> Self {
        match error {
            BindError::Bind { source: error, .. } => Self::Bind { what, address, error },
            error => Self::Quic(error.to_string()),
        }
    }

    /// Whether somebody else has the address.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Bind { error, .. } if error.kind() == io::ErrorKind::AddrInUse)
    }
}

/// All sockets of a node.
pub(crate) struct Sockets {
    pub(crate) addresses: Addresses,
    pub(crate) workers: Vec<WorkerSockets>,
}

/// The sockets of one worker.
#[derive(Default)]
pub(crate) struct WorkerSockets {
    quic: Option<(Arc<QuicServer>, std::net::UdpSocket)>,
    tls: Option<(Arc<ServerConfig>, std::net::TcpListener)>,
    plain: Option<std::net::TcpListener>,
    http3: Option<(Arc<QuicServer>, std::net::UdpSocket)>,
}

/// TLS for TCP and for QUIC.
type Tls = (Arc<ServerConfig>, Arc<ServerConfig>);

/// Opens everything or nothing.
pub(crate) fn open(config: &Config, tls: Option<&Tls>, strays: &Strays) -> Result<Sockets, ListenError> {
    let count = config.workers.get();
    let mut addresses = Addresses::default();
    let mut workers: Vec<WorkerSockets> = (0..count).map(|_| WorkerSockets::default()).collect();
    if let Some(address) = config.quic {
        let (_, tls) = tls.ok_or(ListenError::NoCertificate { what: "quic" })?;
        let bound = tidegate_transport::quic::bind(address, count, IdKey(clock::rng().next_u32()))
            .map_err(|error| ListenError::bind_quic("quic", address, error))?;
        if bound.receive_buffer < QUIC_BUFFER {
            warn!(
                granted = bound.receive_buffer,
                "the UDP receive buffer is small: bursts of handshakes will lose datagrams; raise net.core.rmem_max to 8388608"
            );
        }
        addresses.quic = Some(bound.address);
        let server = QuicServer::new(Arc::clone(tls), bound.group.steering(), quic_config(config))
            .map_err(|error| ListenError::Quic(error.to_string()))?;
        let server = Arc::new(server.with_strays(strays.clone()));
        for (worker, socket) in workers.iter_mut().zip(bound.sockets) {
            worker.quic = Some((Arc::clone(&server), socket));
        }
    }
    if let Some(address) = config.tls {
        let (tls, _) = tls.ok_or(ListenError::NoCertificate { what: "tls" })?;
        let listeners = bind_tcp(address, count, config.limits.tcp_unsent)
            .map_err(|error| ListenError::Bind { what: "tls", address, error })?;
        addresses.tls = Some(listeners.0);
        for (worker, listener) in workers.iter_mut().zip(listeners.1) {
            worker.tls = Some((Arc::clone(tls), listener));
        }
    }
    if let Some(address) = config.plain {
        let listeners = bind_tcp(address, count, config.limits.tcp_unsent)
            .map_err(|error| ListenError::Bind { what: "plain", address, error })?;
        addresses.plain = Some(listeners.0);
        for (worker, listener) in workers.iter_mut().zip(listeners.1) {
            worker.plain = Some(listener);
        }
    }
    if let Some(address) = config.http3 {
        let (_, tls) = tls.ok_or(ListenError::NoCertificate { what: "http3" })?;
        let bound = tidegate_transport::quic::bind(address, count, IdKey(clock::rng().next_u32()))
            .map_err(|error| ListenError::bind_quic("http3", address, error))?;
        addresses.http3 = Some(bound.address);
        // The certificates of the other endpoint, and nothing but HTTP/3.
        let mut tls = ServerConfig::clone(tls);
        tls.alpn_protocols = vec![ALPN_HTTP3.to_vec()];
        let server = QuicServer::new(Arc::new(tls), bound.group.steering(), quic_config(config).for_http3())
            .map_err(|error| ListenError::Quic(error.to_string()))?;
        let server = Arc::new(server.with_strays(strays.clone()));
        for (worker, socket) in workers.iter_mut().zip(bound.sockets) {
            worker.http3 = Some((Arc::clone(&server), socket));
        }
    }
    Ok(Sockets { addresses, workers })
}

/// What tells a client of `tls` that the same is served over HTTP/3, at the same name (RFC 7838 §3).
pub(crate) fn alt_svc(port: u16) -> HeaderValue {
    HeaderValue::try_from(format!("h3=\":{port}\"; ma=86400")).expect("digits")
}

/// Starts a worker's accept loops.
pub(crate) fn serve(worker: &Rc<Worker>, sockets: WorkerSockets) -> Listeners {
    let mut listeners = Listeners::default();
    if let Some((server, socket)) = sockets.quic {
        listeners.quic = quic::serve(worker, &server, socket);
    }
    if let Some((server, socket)) = sockets.http3 {
        listeners.http3 = h3::serve(worker, &server, socket);
    }
    if let Some((tls, listener)) = sockets.tls {
        tcp::serve(worker, listener, Some(tls));
    }
    if let Some(listener) = sockets.plain {
        tcp::serve(worker, listener, None);
    }
    listeners
}

fn quic_config(config: &Config) -> QuicConfig {
    QuicConfig {
        handshake_timeout: config.limits.handshake,
        frame_limit: config.limits.frame,
        ..config.limits.quic.clone()
    }
}

/// One listener a worker on the same address; the kernel spreads connections over them. Of each connection the kernel
/// takes at most `unsent` bytes ahead of what it can send.
fn bind_tcp(
    address: SocketAddr,
    count: usize,
    unsent: usize,
) -> io::Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for index in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if index == 0 && address.port() != 0 {
            // SO_REUSEPORT would join the listeners of another gateway of the same user in silence.
            probe(address)?;
        }
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        // Accepted sockets have it from their listener.
        socket.set_tcp_notsent_lowat(u32::try_from(unsent).unwrap_or(u32::MAX))?;
        socket.listen(TCP_BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((address, listeners))
}

/// Fails where anybody listens there.
fn probe(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// Connections that the kernel holds until they are accepted.
const TCP_BACKLOG: i32 = 4096;
/// Below this a burst of handshakes loses datagrams (measured).
const QUIC_BUFFER: usize = 4 << 20;
