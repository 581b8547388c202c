//! Sockets of a node, one set for each worker, and their accept loops.

mod http;
mod quic;
mod tcp;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_transport::clock;
use tidegate_transport::quic::{BindError, QuicConfig, QuicServer};
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
        /// Which listener: `quic`, `tls`, `plain`.
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
    fn bind_quic(address: SocketAddr, error: BindError) -> Self {
        match error {
            BindError::Bind { source: error, .. } => Self::Bind { what: "quic", address, error },
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
}

/// TLS for TCP and for QUIC.
type Tls = (Arc<ServerConfig>, Arc<ServerConfig>);

/// Opens everything or nothing.
pub(crate) fn open(config: &Config, tls: Option<&Tls>) -> Result<Sockets, ListenError> {
    let count = config.workers.get();
    let mut addresses = Addresses::default();
    let mut workers: Vec<WorkerSockets> = (0..count).map(|_| WorkerSockets::default()).collect();
    if let Some(address) = config.quic {
        let (_, tls) = tls.ok_or(ListenError::NoCertificate { what: "quic" })?;
        let bound = tidegate_transport::quic::bind(address, count, &mut clock::rng())
            .map_err(|error| ListenError::bind_quic(address, error))?;
        if bound.receive_buffer < QUIC_BUFFER {
            warn!(
                granted = bound.receive_buffer,
                "the UDP receive buffer is small: bursts of handshakes will lose datagrams; raise net.core.rmem_max to 8388608"
            );
        }
        addresses.quic = Some(bound.address);
        let server = QuicServer::new(Arc::clone(tls), bound.steering, quic_config(config))
            .map_err(|error| ListenError::Quic(error.to_string()))?;
        let server = Arc::new(server);
        for (worker, socket) in workers.iter_mut().zip(bound.sockets) {
            worker.quic = Some((Arc::clone(&server), socket));
        }
    }
    if let Some(address) = config.tls {
        let (tls, _) = tls.ok_or(ListenError::NoCertificate { what: "tls" })?;
        let listeners =
            bind_tcp(address, count).map_err(|error| ListenError::Bind { what: "tls", address, error })?;
        addresses.tls = Some(listeners.0);
        for (worker, listener) in workers.iter_mut().zip(listeners.1) {
            worker.tls = Some((Arc::clone(tls), listener));
        }
    }
    if let Some(address) = config.plain {
        let listeners =
            bind_tcp(address, count).map_err(|error| ListenError::Bind { what: "plain", address, error })?;
        addresses.plain = Some(listeners.0);
        for (worker, listener) in workers.iter_mut().zip(listeners.1) {
            worker.plain = Some(listener);
        }
    }
    Ok(Sockets { addresses, workers })
}

/// Starts a worker's accept loops.
pub(crate) fn serve(worker: &Rc<Worker>, sockets: WorkerSockets) -> Listeners {
    let mut listeners = Listeners::default();
    if let Some((server, socket)) = sockets.quic {
        listeners.quic = quic::serve(worker, &server, socket);
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
        ..QuicConfig::default()
    }
}

/// One listener a worker on the same address; the kernel spreads connections over them.
fn bind_tcp(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<std::net::TcpListener>)> {
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
