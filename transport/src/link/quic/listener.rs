//! The core's side: a socket for links, and who is let in.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionError, EndpointConfig, SendStream, TokioRuntime};
use socket2::SockRef;
use tidegate_protocol::link::wire::Control;
use tidegate_protocol::link::{Hello, Welcome};
use tidegate_protocol::{NodeId, Region};

use super::control::{self, ControlError, ControlReader};
use super::{CoreEnd, LinkConfig, LinkSetupError, Shared, code, is_for, why};
use crate::quic::SOCKET_BUFFER;

/// A core node's socket for links.
#[derive(Debug)]
pub struct LinkListener {
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    config: Arc<LinkConfig>,
}

impl LinkListener {
    /// Listens on `address`, on the current tokio runtime. `tls` wants client certificates of the cluster CA
    /// (`tidegate_certs::link_server_config`) and has the ALPN [`super::ALPN_LINK`].
    ///
    /// # Errors
    /// When the address cannot be had, `tls` lacks TLS 1.3 with AES-128 (RFC 9001 §5.2), or a limit is beyond what QUIC
    /// can say.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        config: LinkConfig,
    ) -> Result<Self, LinkSetupError> {
        let crypto =
            QuicServerConfig::try_from(tls).map_err(|error| LinkSetupError::Settings(error.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        // One more for control.
        let transport = config.transport(config.streams.saturating_add(1))?;
        server.transport_config(Arc::new(transport)).max_incoming(config.max_incoming).migration(false);
        // No address-validation tokens for later connections.
        server.validation_token.sent(0);
        let socket = UdpSocket::bind(address)?;
        widen(&socket)?;
        let endpoint =
            quinn::Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(TokioRuntime))?;
        let address = endpoint.local_addr()?;
        Ok(Self { endpoint, address, config: Arc::new(config) })
    }

    /// Where it is bound.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The next node that dials; `None` once closed. Cancel-safe.
    pub async fn accept(&self) -> Option<IncomingLink> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if self.endpoint.open_connections() < self.config.max_connections {
                return Some(IncomingLink { incoming, config: Arc::clone(&self.config) });
            }
            incoming.refuse();
        }
    }

    /// Ends every connection at once, and [`LinkListener::accept`].
    pub fn close(&self, reason: &str) {
        self.endpoint.close(code::CLOSED, reason.as_bytes());
    }

    /// Waits until the last packets of connections that ended are out. The caller bounds it.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// A node's first packet. Dropping it refuses the node.
pub struct IncomingLink {
    incoming: quinn::Incoming,
    config: Arc<LinkConfig>,
}

impl fmt::Debug for IncomingLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingLink").field("remote_address", &self.remote_address()).finish_non_exhaustive()
    }
}

impl IncomingLink {
    /// Where it came from.
    pub fn remote_address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Handshake and hello, within [`LinkConfig::handshake_timeout`]. Nobody without a certificate of the cluster CA comes
    /// to the hello; there, versions must meet and the certificate be for the node that it names. Then `decide` welcomes
    /// it or refuses, with a text for the people at the other end. Dropping the future hangs up.
    ///
    /// # Errors
    /// When the node is too slow, goes away, is not let in, or says something else.
    pub async fn greet(
        self,
        decide: impl FnOnce(&Hello) -> Result<Greeting, String> + Send,
    ) -> Result<CoreEnd, GreetError> {
        let limit = self.config.handshake_timeout;
        match tokio::time::timeout(limit, greet(self.incoming, self.config, decide)).await {
            Ok(greeted) => greeted,
            Err(_) => Err(GreetError::Timeout(limit)),
        }
    }
}

/// What a core says of itself to an edge that it welcomes. The version is agreed on before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Its name: one that its certificate is for.
    pub node: NodeId,
    /// Its cluster's.
    pub region: Region,
    /// How many its cluster has.
    pub partitions: u16,
}

/// Why a node that dialled is not linked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GreetError {
    /// It took too long.
    #[error("no hello within {0:?}")]
    Timeout(Duration),
    /// The handshake failed: no certificate, or none of the cluster CA; another ALPN; or it went away.
    #[error("no handshake: {0}")]
    Handshake(String),
    /// It says that it is somebody else, speaks another version, or was refused by the closure. It was told.
    #[error("refused: {0}")]
    Refused(String),
    /// It said something that is no hello.
    #[error("no hello: {0}")]
    Protocol(String),
    /// The connection ended first.
    #[error("connection lost: {0}")]
    Lost(String),
}

async fn greet(
    incoming: quinn::Incoming,
    config: Arc<LinkConfig>,
    decide: impl FnOnce(&Hello) -> Result<Greeting, String> + Send,
) -> Result<CoreEnd, GreetError> {
    let handshake = |error: ConnectionError| GreetError::Handshake(why(&error));
    let connection = incoming.accept().map_err(handshake)?.await.map_err(handshake)?;
    let (mut send, recv) = connection.accept_bi().await.map_err(|error| GreetError::Lost(why(&error)))?;
    // What edges must know at once is said here.
    let _over = send.set_priority(1);
    let mut reader = ControlReader::new(recv);
    let hello = match reader.next().await {
        Ok(Control::Hello(hello)) => hello,
        Err(ControlError::Lost(error)) => return Err(GreetError::Lost(why(&error))),
        other => {
            connection.close(code::PROTOCOL, b"no hello");
            return Err(GreetError::Protocol(match other {
                Err(ControlError::Malformed(error)) => error.to_string(),
                Err(_) => "the stream ended".to_owned(),
                Ok(_) => "another message".to_owned(),
            }));
        }
    };
    let decided = hello.agree().and_then(|version| {
        if !is_for(&connection, &hello.node) {
            return Err(format!("the certificate is not for a node named {}", hello.node.as_str()));
        }
        let Greeting { node, region, partitions } = decide(&hello)?;
        Ok(Welcome { version, node, region, partitions })
    });
    let welcome = match decided {
        Ok(welcome) => welcome,
        Err(reason) => {
            refuse(&connection, send, &reason).await;
            return Err(GreetError::Refused(reason));
        }
    };
    let lost = |error: quinn::WriteError| GreetError::Lost(error.to_string());
    let (partitions, version) = (welcome.partitions, welcome.version);
    control::write(&mut send, &Control::Welcome(welcome)).await.map_err(lost)?;
    Ok(CoreEnd::new(Shared::new(config), connection, hello, (version, partitions), send, reader))
}

/// Says why, and closes when that has arrived (or the caller's time is over).
async fn refuse(connection: &quinn::Connection, mut send: SendStream, reason: &str) {
    if control::write(&mut send, &Control::Refused(reason.to_owned())).await.is_ok() {
        let _over = send.finish();
        let _arrived = send.stopped().await;
    }
    connection.close(code::REFUSED, reason.as_bytes());
}

/// Bursts of many partitions at once shall not be lost in the kernel.
pub(super) fn widen(socket: &UdpSocket) -> std::io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)
}
