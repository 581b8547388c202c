//! What a node listens with, one set for each worker, and their accept loops.

mod channels;
mod entrance;
mod h3;
mod http;
mod quic;
mod sockets;
mod tcp;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ::http::HeaderValue;
use rustls::ServerConfig;
use tidegate_transport::keys::SharedKeys;
use tidegate_transport::quic::{ALPN_HTTP3, BindError, QuicConfig, QuicServer, Strays};

use crate::config::Config;
use crate::worker::Worker;

pub(crate) use http::serve_commands;
pub(crate) use quic::Listeners;
pub(crate) use sockets::WorkersOf;
pub use sockets::{Handover, Sockets};

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

/// What a worker listens with.
#[derive(Default)]
pub(crate) struct WorkerSockets {
    quic: Option<(Arc<QuicServer>, std::net::UdpSocket)>,
    http3: Option<(Arc<QuicServer>, std::net::UdpSocket)>,
    tcp: Vec<(Option<Arc<ServerConfig>>, std::net::TcpListener)>,
}

/// TLS for TCP and for QUIC.
type Tls = (Arc<ServerConfig>, Arc<ServerConfig>);

/// Puts TLS and QUIC on the sockets.
pub(crate) fn prepare(
    config: &Config,
    tls: Option<&Tls>,
    sockets: WorkersOf,
    group: &Handover,
    keys: &Arc<SharedKeys>,
    strays: &Strays,
) -> Result<Vec<WorkerSockets>, ListenError> {
    let node = config.node.as_str();
    let mut workers: Vec<WorkerSockets> =
        (0..config.workers.get()).map(|_| WorkerSockets::default()).collect();
    if let Some(quic) = &group.quic {
        let (_, tls) = tls.ok_or(ListenError::NoCertificate { what: "quic" })?;
        let server = QuicServer::new(Arc::clone(tls), quic.steering(), quic_config(config), keys, node)
            .map_err(|error| ListenError::Quic(error.to_string()))?;
        let server = Arc::new(server.with_strays(strays.clone()));
        for (worker, socket) in workers.iter_mut().zip(sockets.quic) {
            worker.quic = Some((Arc::clone(&server), socket));
        }
    }
    if let Some(http3) = &group.http3 {
        let (_, tls) = tls.ok_or(ListenError::NoCertificate { what: "http3" })?;
        // The certificates of the other endpoint, and nothing but HTTP/3.
        let mut tls = ServerConfig::clone(tls);
        tls.alpn_protocols = vec![ALPN_HTTP3.to_vec()];
        let quic = quic_config(config).for_http3();
        let server = QuicServer::new(Arc::new(tls), http3.steering(), quic, keys, node)
            .map_err(|error| ListenError::Quic(error.to_string()))?;
        let server = Arc::new(server.with_strays(strays.clone()));
        for (worker, socket) in workers.iter_mut().zip(sockets.http3) {
            worker.http3 = Some((Arc::clone(&server), socket));
        }
    }
    if !sockets.tls.is_empty() {
        let (tls, _) = tls.ok_or(ListenError::NoCertificate { what: "tls" })?;
        // Clients that come back need no signature, at any node of the fleet.
        let mut tls = ServerConfig::clone(tls);
        tls.ticketer = keys.ticketer();
        tls.send_tls13_tickets = 1;
        let tls = Arc::new(tls);
        for (worker, listeners) in workers.iter_mut().zip(sockets.tls) {
            worker.tcp.extend(listeners.into_iter().map(|listener| (Some(Arc::clone(&tls)), listener)));
        }
    }
    for (worker, listeners) in workers.iter_mut().zip(sockets.plain) {
        worker.tcp.extend(listeners.into_iter().map(|listener| (None, listener)));
    }
    Ok(workers)
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
    for (tls, listener) in sockets.tcp {
        tcp::serve(worker, listener, tls);
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
