//! The edge's side: dialling a core.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, EndpointConfig, TokioRuntime};
use tidegate_protocol::link::wire::Control;
use tidegate_protocol::link::{Hello, Welcome};
use tokio::task::JoinSet;

use super::control::{self, ControlError, ControlReader};
use super::listener::widen;
use super::{EdgeEnd, LinkConfig, LinkSetupError, Shared, code, is_for, why};

/// Dials core nodes.
#[derive(Clone)]
pub struct LinkDialer {
    client: ClientConfig,
    config: Arc<LinkConfig>,
}

impl fmt::Debug for LinkDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkDialer").field("config", &self.config).finish_non_exhaustive()
    }
}

impl LinkDialer {
    /// `tls` has a client certificate, trusts the cluster CA alone (`tidegate_certs::link_client_config`) and has the ALPN
    /// [`super::ALPN_LINK`].
    ///
    /// # Errors
    /// When `tls` lacks TLS 1.3 with AES-128 (RFC 9001 §5.2), or a limit is beyond what QUIC can say.
    pub fn new(tls: Arc<rustls::ClientConfig>, config: LinkConfig) -> Result<Self, LinkSetupError> {
        let crypto =
            QuicClientConfig::try_from(tls).map_err(|error| LinkSetupError::Settings(error.to_string()))?;
        let mut client = ClientConfig::new(Arc::new(crypto));
        // Cores open no streams.
        client.transport_config(Arc::new(config.transport(0)?));
        Ok(Self { client, config: Arc::new(config) })
    }

    /// Dials `host:port` and says hello, within [`LinkConfig::handshake_timeout`]. Of several addresses that the host has,
    /// the first that answers is taken. On the current tokio runtime; dropping the future hangs up.
    ///
    /// # Errors
    /// [`DialError`] says what to do about it.
    pub async fn dial(&self, address: &str, hello: Hello) -> Result<EdgeEnd, DialError> {
        let limit = self.config.handshake_timeout;
        match tokio::time::timeout(limit, self.dial_unbounded(address, hello)).await {
            Ok(dialled) => dialled,
            Err(_) => Err(DialError::Timeout { after: limit }),
        }
    }

    async fn dial_unbounded(&self, address: &str, hello: Hello) -> Result<EdgeEnd, DialError> {
        let (host, port) =
            split(address).ok_or_else(|| DialError::Address { address: address.to_owned() })?;
        let resolve = |cause| DialError::Resolve { host: host.to_owned(), cause };
        let found = tokio::net::lookup_host((host, port)).await.map_err(resolve)?;
        let mut attempts = JoinSet::new();
        for (place, remote) in found.take(MAX_ADDRESSES).enumerate() {
            let (client, host) = (self.client.clone(), host.to_owned());
            let wait = STAGGER * u32::try_from(place).expect("few");
            attempts.spawn(async move {
                tokio::time::sleep(wait).await;
                connect(client, remote, &host).await
            });
        }
        let mut failure = None;
        let connection = loop {
            let next = attempts.join_next();
            // Once one has failed, others that may never answer do not keep the reason back.
            let next = match &failure {
                None => next.await,
                Some(_) => tokio::time::timeout(GRACE, next).await.unwrap_or(None),
            };
            match next {
                Some(Ok(Ok(connection))) => break connection,
                Some(Ok(Err(error))) => failure = Some(error),
                Some(Err(error)) => failure = Some(DialError::Lost { detail: error.to_string() }),
                None => {
                    let nothing = || resolve(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
                    return Err(failure.unwrap_or_else(nothing));
                }
            }
        };
        drop(attempts);
        self.greet(connection, hello).await
    }

    async fn greet(&self, connection: quinn::Connection, hello: Hello) -> Result<EdgeEnd, DialError> {
        let hang_up = HangUp(Some(connection.clone()));
        let (mut send, recv) = connection.open_bi().await.map_err(|error| DialError::of(&error))?;
        let versions = hello.versions.clone();
        // An error is that of the answer.
        let _written = control::write(&mut send, &Control::Hello(hello)).await;
        let mut reader = ControlReader::new(recv);
        let welcome = match reader.next().await {
            Ok(Control::Welcome(welcome)) => welcome,
            Ok(Control::Refused(reason)) => return Err(DialError::Refused { reason }),
            Ok(_) => return Err(DialError::Protocol { detail: "another message".to_owned() }),
            Err(ControlError::Lost(error)) => return Err(DialError::of(&error)),
            Err(ControlError::Malformed(error)) => {
                return Err(DialError::Protocol { detail: error.to_string() });
            }
            Err(ControlError::Reset(_) | ControlError::Ended) => {
                return Err(DialError::Protocol { detail: "the stream ended".to_owned() });
            }
        };
        if !versions.contains(&welcome.version) {
            let detail = format!("it wants to speak version {}, which was not offered", welcome.version);
            return Err(DialError::Protocol { detail });
        }
        // The certificate is of the cluster, TLS has seen to that; and here it is this node's.
        if !is_for(&connection, &welcome.node) {
            let Welcome { node, .. } = welcome;
            return Err(DialError::WrongName { node: node.as_str().to_owned() });
        }
        hang_up.disarm();
        Ok(EdgeEnd::new(Shared::new(Arc::clone(&self.config)), connection, welcome, send, reader))
    }
}

/// Why a core is not linked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Not `host:port`.
    #[error("`{address}` is no address: it needs a host and a port, such as `core-1:7400`")]
    Address {
        /// The text.
        address: String,
    },
    /// The name is not known, or the resolver out of reach.
    #[error("cannot look up {host}: {cause}")]
    Resolve {
        /// The name.
        host: String,
        /// What the system said.
        cause: io::Error,
    },
    /// There is no socket to dial from.
    #[error("cannot use a UDP socket: {0}")]
    Socket(io::Error),
    /// Nobody answered: down, another port, or UDP is blocked.
    #[error("no answer within {after:?}: is it up, is that its port for links, does UDP pass?")]
    Timeout {
        /// How long it was waited for.
        after: Duration,
    },
    /// TLS does not trust what the core shows, or they have nothing in common.
    #[error("the core is not trusted: {detail}")]
    Untrusted {
        /// What TLS said.
        detail: String,
    },
    /// The core does not take our certificate.
    #[error("the core does not trust this node: {detail}")]
    Unwelcome {
        /// What its TLS said.
        detail: String,
    },
    /// The core says that it is a node that its certificate is not for.
    #[error("the core calls itself {node}, which is not among the names of its certificate")]
    WrongName {
        /// What it calls itself.
        node: String,
    },
    /// The core refused the hello: no common version, a name that our certificate is not for, or its own reasons.
    #[error("the core refused: {reason}")]
    Refused {
        /// In its words.
        reason: String,
    },
    /// It said something that is no answer to a hello.
    #[error("no answer to the hello: {detail}")]
    Protocol {
        /// What was wrong.
        detail: String,
    },
    /// The connection ended first.
    #[error("connection lost: {detail}")]
    Lost {
        /// How.
        detail: String,
    },
}

impl DialError {
    fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(here) if is_tls(here.code.into()) => {
                Self::Untrusted { detail: here.reason.clone() }
            }
            ConnectionError::ConnectionClosed(there) if is_tls(there.error_code.into()) => {
                let said = String::from_utf8_lossy(&there.reason);
                let detail = if said.is_empty() { there.error_code.to_string() } else { said.into_owned() };
                Self::Unwelcome { detail }
            }
            ConnectionError::ApplicationClosed(close) if close.error_code == code::REFUSED => {
                Self::Refused { reason: String::from_utf8_lossy(&close.reason).into_owned() }
            }
            other => Self::Lost { detail: why(other) },
        }
    }
}

/// Alerts of TLS in QUIC (RFC 9001 §4.8).
fn is_tls(code: u64) -> bool {
    (0x100..0x200).contains(&code)
}

/// `host:port`, an IPv6 address in brackets.
fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    if host.is_empty() || (bare.is_none() && host.contains(':')) {
        return None;
    }
    Some((host, port.parse().ok()?))
}

async fn connect(
    client: ClientConfig,
    remote: SocketAddr,
    host: &str,
) -> Result<quinn::Connection, DialError> {
    let local: SocketAddr =
        if remote.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(local).and_then(|socket| widen(&socket).map(|()| socket));
    let endpoint = socket.and_then(|socket| {
        quinn::Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
    });
    let endpoint = endpoint.map_err(DialError::Socket)?;
    let connecting = endpoint
        .connect_with(client, remote, host)
        .map_err(|error| DialError::Lost { detail: error.to_string() })?;
    connecting.await.map_err(|error| DialError::of(&error))
}

/// Closes a connection that came to nothing.
struct HangUp(Option<quinn::Connection>);

impl HangUp {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.close(code::CLOSED, b"");
        }
    }
}

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Before the next of them is tried beside the others.
const STAGGER: Duration = Duration::from_millis(200);
/// For the others, once one has failed.
const GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_at_the_port() {
        assert_eq!(split("core-1:7400"), Some(("core-1", 7400)));
        assert_eq!(split("10.0.0.1:1"), Some(("10.0.0.1", 1)));
        assert_eq!(split("[::1]:7400"), Some(("::1", 7400)));
        for bad in ["core-1", ":7400", "::1:7400", "core-1:", "core-1:99999", "core-1:x", "[]:1"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
