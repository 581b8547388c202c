//! The client's side of native QUIC: dialling, early data, and what shows that a path is dead.
//!
//! Streams and datagrams are left to whoever dials, so quinn's connection is in the signatures here (as rustls' settings
//! are in [`super::QuicServer::new`]): a wrapper would be as wide as what it wraps.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, ConnectionId, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt,
    ZeroRttAccepted,
};
use quinn_proto::TokenMemoryCache;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rustls::client::Resumption;

use super::crypto::QUIC_V1;
use super::path_watch::PtoEstimate;
use super::socket::wrap_client;
use super::{CongestionControl, QuicError};
use crate::clock;

/// Limits of a client's connections.
#[derive(Debug, Clone)]
pub struct DialConfig {
    /// A connection without a packet for so long is dead.
    pub idle_timeout: Duration,
    /// Between packets on an idle connection, give or take a fifth, so that the clients of one server do not fall into
    /// step. Below the 30 s after which many NATs forget a UDP flow; the client's task, since only its packets open a
    /// NAT again.
    pub keep_alive: Duration,
    /// What a round trip is taken for until one was measured: three of it pass before a lost first packet is sent again.
    pub initial_rtt: Duration,
    /// How sending is paced.
    pub congestion: CongestionControl,
    /// Bytes that may be in flight before anything was acknowledged: a `connect` with hundreds of `subscribe` frames shall
    /// be one flight. Three times what RFC 9002 §7.2 recommends, for the few kilobytes that a client says at all.
    pub initial_window: u32,
    /// Bytes that the server may send on one stream ahead of our reading.
    pub stream_window: u32,
    /// Bytes that the server may send on all its streams ahead of our reading.
    pub connection_window: u32,
    /// Bytes held until the server acknowledges them, over all streams.
    pub send_window: u32,
    /// Unidirectional streams that the server may have open: one per subscription, and one per catch-up.
    pub server_streams: u32,
    /// Bytes of datagrams held in each direction; the oldest make room.
    pub datagram_buffer: u32,
    /// Whether what is said first may travel in the first flight to a server that was met before.
    pub early_data: bool,
}

impl Default for DialConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(25),
            initial_rtt: Duration::from_millis(150),
            congestion: CongestionControl::CubicDelay,
            initial_window: 32 * 1200,
            stream_window: 256 << 10,
            connection_window: 4 << 20,
            send_window: 1 << 20,
            server_streams: 1024,
            datagram_buffer: 64 << 10,
            early_data: true,
        }
    }
}

/// Dials QUIC. Remembers the servers it met, in memory alone: their tickets, so that the next dial resumes and can say
/// something early, and their tokens, which show that the client is where it says (RFC 9000 §8.1.3). So one dialer per
/// client, not per dial; clones share what is remembered.
///
/// Both are shown once, and to servers of the name that they came from alone. Those know the client by its session anyway;
/// to whoever watches two networks they say nothing, since they come encrypted and are not seen before they are shown.
#[derive(Clone)]
pub struct QuicDialer {
    crypto: Arc<QuicClientConfig>,
    tokens: Arc<TokenMemoryCache>,
    config: Arc<DialConfig>,
    slot: Option<[u8; FIRST_ID_BYTES]>,
}

impl fmt::Debug for QuicDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicDialer").field("config", &self.config).finish_non_exhaustive()
    }
}

impl QuicDialer {
    /// `tls` says whom to trust, and its only ALPN is [`super::ALPN_NATIVE`]. What it says of resumption and early data
    /// does not count.
    ///
    /// # Errors
    /// When `tls` lacks TLS 1.3 with AES-128 (RFC 9001 §5.2), or a limit is beyond what QUIC can say.
    pub fn new(mut tls: rustls::ClientConfig, config: DialConfig) -> Result<Self, QuicError> {
        tls.enable_early_data = config.early_data;
        // Also without early data: it saves the server a signature, and a flight that is larger than what it may send to an
        // address that is not validated.
        tls.resumption = Resumption::in_memory_sessions(SERVERS * TICKETS);
        let crypto =
            QuicClientConfig::try_from(tls).map_err(|error| QuicError::Settings(error.to_string()))?;
        transport_config(&config)?;
        let tokens = Arc::new(TokenMemoryCache::new(SERVERS as u32, TOKENS));
        Ok(Self { crypto: Arc::new(crypto), tokens, config: Arc::new(config), slot: None })
    }

    /// The same dialer, whose dials show this ticket: a server that has no room for others keeps a place for it
    /// (PROTOCOL §9.3).
    #[must_use]
    pub fn with_slot(self, slot: Option<[u8; FIRST_ID_BYTES]>) -> Self {
        Self { slot, ..self }
    }

    /// Dials one address. Returns at once where early data can be sent, whether or not anybody is there
    /// ([`QuicClient::established`] tells); otherwise when the handshake is complete. No time limit: the caller bounds it.
    ///
    /// Where `early` is false it is the latter in any case; the server's ticket, if there is one, is spent all the same.
    ///
    /// # Errors
    /// When there is no socket, `name` is no server name, or the server does not answer or refuses.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn dial(&self, address: SocketAddr, name: &str, early: bool) -> Result<QuicClient, QuicError> {
        self.dial_watched(address, name, early, || {}).await
    }

    /// The same; `heard` is called when the server's first words came, before the handshake is complete.
    ///
    /// # Errors
    /// As [`QuicDialer::dial`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn dial_watched(
        &self,
        address: SocketAddr,
        name: &str,
        early: bool,
        heard: impl FnOnce(),
    ) -> Result<QuicClient, QuicError> {
        let mut endpoint = EndpointConfig::default();
        endpoint.supported_versions(vec![QUIC_V1]);
        let socket = wrap_client(client_socket(address)?)?;
        let endpoint =
            quinn::Endpoint::new_with_abstract_socket(endpoint, None, socket, Arc::new(TokioRuntime))?;
        let mut config = ClientConfig::new(self.crypto.clone());
        config.transport_config(Arc::new(transport_config(&self.config)?));
        // A configuration is of one dial, its own store would be too.
        config.token_store(self.tokens.clone());
        let first_id = ConnectionId::new(&self.slot.unwrap_or_else(no_slot));
        config.initial_dst_cid_provider(Arc::new(move || first_id));
        let connecting = endpoint
            .connect_with(config, address, name)
            .map_err(|error| QuicError::Settings(error.to_string()))?;
        let mut connecting = if early {
            match connecting.into_0rtt() {
                Ok((connection, accepted)) => {
                    let early = Some(accepted);
                    return Ok(QuicClient { endpoint, connection, early, pto: PtoEstimate::default() });
                }
                Err(connecting) => connecting,
            }
        } else {
            connecting
        };
        connecting.handshake_data().await.map_err(QuicError::lost)?;
        heard();
        let connection = connecting.await.map_err(QuicError::lost)?;
        Ok(QuicClient { endpoint, connection, early: None, pto: PtoEstimate::default() })
    }
}

/// What became of early data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyData {
    /// There was none.
    Unsent,
    /// The server has it, or will have it: streams opened early go on.
    Accepted,
    /// The server never saw it. Streams opened early are dead (`ZeroRttRejected`): what was said on them is to be said
    /// again on new ones, as was what went by datagram.
    Rejected,
}

/// A client's connection. It lives on in clones of [`QuicClient::connection`].
pub struct QuicClient {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    early: Option<ZeroRttAccepted>,
    pto: PtoEstimate,
}

impl fmt::Debug for QuicClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicClient").field("is_early", &self.is_early()).finish_non_exhaustive()
    }
}

impl QuicClient {
    /// For streams and datagrams. While [`QuicClient::is_early`], only what may be done twice may be said on it.
    pub fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    /// True until [`QuicClient::established`] was ready, where early data can be sent.
    pub fn is_early(&self) -> bool {
        self.early.is_some()
    }

    /// Waits for the end of the handshake. Cancel-safe; later calls say [`EarlyData::Unsent`].
    ///
    /// # Errors
    /// When the connection ends first.
    pub async fn established(&mut self) -> Result<EarlyData, QuicError> {
        let Some(accepted) = &mut self.early else { return Ok(EarlyData::Unsent) };
        let accepted = accepted.await;
        self.early = None;
        match self.connection.close_reason() {
            Some(error) => Err(QuicError::lost(error)),
            None if accepted => Ok(EarlyData::Accepted),
            None => Ok(EarlyData::Rejected),
        }
    }

    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// How long to wait for an acknowledgement before probing, about (RFC 9002 §6.2.1; see [`PtoEstimate`]).
    pub fn pto(&mut self) -> Duration {
        self.pto.update(self.connection.rtt())
    }

    /// UDP datagrams received so far: for [`super::PathWatch`]. Everything counts, acknowledgements too.
    pub fn received_datagrams(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Sends a probe; `false` where the connection takes no datagrams now or has ended.
    pub fn probe(&self) -> bool {
        let probe = probe_datagram(self.connection.max_datagram_size());
        probe.is_some_and(|probe| self.connection.send_datagram(probe).is_ok())
    }

    /// Goes on from a new socket of the OS' choice, after a change of networks: the connection stays. At once, a packet
    /// tells the server.
    ///
    /// # Errors
    /// When there is no socket; the one before stays then.
    pub fn rebind(&self) -> Result<(), QuicError> {
        self.rebind_to(client_socket(self.connection.remote_address())?)
    }

    /// Goes on from this socket.
    ///
    /// # Errors
    /// When the runtime cannot take it; the one before stays then.
    pub fn rebind_to(&self, socket: UdpSocket) -> Result<(), QuicError> {
        Ok(self.endpoint.rebind_abstract(wrap_client(socket)?)?)
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// When the OS does not say.
    pub fn local_address(&self) -> Result<SocketAddr, QuicError> {
        Ok(self.endpoint.local_addr()?)
    }
}

/// A datagram that says nothing: zeros, of which the first tells that the rest can be skipped. As large as it may be
/// up to [`PROBE_BYTES`]; `None` where the peer takes no datagrams.
///
/// A server sends no more than three times what it received to an address that it has not validated (RFC 9000 §8.1,
/// §9.3). A bare acknowledgement from a new address would let it answer with 120 bytes: no publication, and not
/// even the padded packet that validates the address. So whoever may have moved says something large.
pub fn probe_datagram(max_datagram_size: Option<usize>) -> Option<Bytes> {
    let limit = max_datagram_size.filter(|limit| *limit > 0)?;
    Some(Bytes::from_static(&[0; PROBE_BYTES]).slice(..limit.min(PROBE_BYTES)))
}

/// True for what [`probe_datagram`] makes: to be skipped unread.
pub fn is_probe(datagram: &[u8]) -> bool {
    datagram.first() == Some(&0)
}

/// What a probe is padded to: with what QUIC adds it stays below 1,200 bytes, which every path carries (RFC 9000 §14).
pub const PROBE_BYTES: usize = 1100;

/// A first connection id that is no ticket, and tells a server that its refusal would be read before TLS.
fn no_slot() -> [u8; FIRST_ID_BYTES] {
    let mut id = [0; FIRST_ID_BYTES];
    clock::rng().fill(&mut id);
    id[0] = NO_SLOT;
    id
}

fn client_socket(remote: SocketAddr) -> Result<UdpSocket, QuicError> {
    let local: SocketAddr =
        if remote.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    Ok(UdpSocket::bind(local)?)
}

fn transport_config(config: &DialConfig) -> Result<TransportConfig, QuicError> {
    let idle = IdleTimeout::try_from(config.idle_timeout)
        .map_err(|_| QuicError::Settings(format!("an idle timeout of {:?}", config.idle_timeout)))?;
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(keep_alive(config, &mut clock::rng())))
        .initial_rtt(config.initial_rtt)
        .congestion_controller_factory(config.congestion.factory(config.initial_window))
        .stream_receive_window(VarInt::from_u32(config.stream_window))
        .receive_window(VarInt::from_u32(config.connection_window))
        .send_window(u64::from(config.send_window))
        .max_concurrent_uni_streams(VarInt::from_u32(config.server_streams))
        // The control stream is ours to open.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(config.datagram_buffer as usize))
        .datagram_send_buffer_size(config.datagram_buffer as usize);
    Ok(transport)
}

fn keep_alive(config: &DialConfig, rng: &mut ChaCha8Rng) -> Duration {
    // Longer than the idle timeout is never.
    config.keep_alive.min(config.idle_timeout).mul_f64(rng.random_range(0.8..=1.2))
}

/// Of the connection id that a client chooses for its first packet: the longest there is (RFC 9000 §17.2).
const FIRST_ID_BYTES: usize = 20;
/// Its first byte, where it is no ticket.
const NO_SLOT: u8 = 0xe0;

/// Servers that are remembered; the one that was met first is forgotten.
const SERVERS: usize = 8;
/// Of each server: as many as rustls keeps.
const TICKETS: usize = 8;
/// Of each server: as many as one sends.
const TOKENS: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_as_large_as_it_may_be() {
        assert_eq!(probe_datagram(None), None);
        assert_eq!(probe_datagram(Some(0)), None);
        for (limit, length) in [(1, 1), (900, 900), (1100, 1100), (1400, 1100)] {
            let probe = probe_datagram(Some(limit)).unwrap();
            assert!(probe.len() == length && is_probe(&probe), "{limit}");
        }
        assert!(!is_probe(&[]) && !is_probe(&[1, 0]));
    }

    #[test]
    fn keep_alives_are_spread_and_limits_checked() {
        let (config, mut rng) = (DialConfig::default(), clock::rng());
        let all: Vec<Duration> = (0..1000).map(|_| keep_alive(&config, &mut rng)).collect();
        let range = Duration::from_secs(20)..=Duration::from_secs(30);
        assert!(all.iter().all(|one| range.contains(one)));
        assert!(all.iter().max().unwrap().abs_diff(*all.iter().min().unwrap()) > Duration::from_secs(9));

        let config = DialConfig { keep_alive: Duration::MAX, ..DialConfig::default() };
        assert!(transport_config(&config).is_ok());
        let config = DialConfig { idle_timeout: Duration::MAX, ..DialConfig::default() };
        assert!(matches!(transport_config(&config), Err(QuicError::Settings(_))));
    }
}
