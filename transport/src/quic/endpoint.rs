//! One worker's endpoint: accepts, and finds out by ALPN what a connection is.

use std::fmt;
use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::udp::Transmit;
use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use quinn_proto::ConnectionId;
use tidegate_protocol::frame::CloseCode;

use super::connection::QuicConnection;
use super::crypto::{EarlyHello, QUIC_V1, ServerCrypto};
use super::early::Early;
use super::socket::{Arrivals, Frugal, Strays};
use super::steering::Steering;
use super::webtransport::WebTransportPending;
use super::worker_ids::{IdScheme, WorkerIds};
use super::{ALPN_NATIVE, ALPN_WEBTRANSPORT, QuicConfig, QuicError, socket};
use crate::clock;
use crate::keys::SharedKeys;

/// What the endpoints of all workers have in common: TLS, limits, and the keys for stateless resets and tokens, so
/// that any worker can answer for any other.
#[derive(Clone)]
pub struct QuicServer {
    endpoint: EndpointConfig,
    server: ServerConfig,
    scheme: IdScheme,
    strays: Strays,
    config: Arc<QuicConfig>,
}

impl fmt::Debug for QuicServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicServer").field("scheme", &self.scheme).field("config", &self.config).finish()
    }
}

impl QuicServer {
    /// `tls` with the ALPNs that it serves: [`ALPN_NATIVE`], [`ALPN_WEBTRANSPORT`]. Whatever it says, there are no client
    /// certificates here, and tickets and early data as [`QuicConfig`] says. `keys` are those of the fleet, `node` the name
    /// that keeps this node's stateless resets from others.
    ///
    /// # Errors
    /// When `tls` lacks TLS 1.3 with AES-128 (RFC 9001 §5.2), or a limit is beyond what QUIC can say.
    pub fn new(
        tls: Arc<rustls::ServerConfig>,
        steering: &Steering,
        config: QuicConfig,
        keys: &Arc<SharedKeys>,
        node: &str,
    ) -> Result<Self, QuicError> {
        let crypto = ServerCrypto::new(&tls, &config, Arc::clone(keys))?;
        let mut server = ServerConfig::new(Arc::new(crypto), keys.token_key());
        server.transport_config(Arc::new(transport_config(&config)?)).max_incoming(config.max_incoming);
        // Two: who comes back is known to be where it is, and one of its packets may be lost.
        server.validation_token.sent(2);
        // Who waits to be let in sends its first flight again, and early data.
        server.incoming_buffer_size(WAITING_BYTES).incoming_buffer_size_total(ALL_WAITING_BYTES);
        let mut endpoint = EndpointConfig::new(keys.reset_key(node));
        // After a crash all clients ask at once; quinn's own interval would answer 50 a second.
        endpoint.supported_versions(vec![QUIC_V1]).min_reset_interval(RESET_INTERVAL);
        let scheme = IdScheme::new(steering, config.routing.clone());
        Ok(Self { endpoint, server, scheme, strays: Strays::default(), config: Arc::new(config) })
    }

    /// Counts what arrives at the wrong socket there.
    #[must_use]
    pub fn with_strays(self, strays: Strays) -> Self {
        Self { strays, ..self }
    }

    /// One worker's endpoint, on the current tokio runtime. `socket` is the worker's own of [`super::BoundSockets`].
    ///
    /// # Errors
    /// When the runtime cannot take the socket.
    ///
    /// # Panics
    /// Outside a tokio runtime, or when there is no such worker.
    pub fn endpoint(&self, socket: UdpSocket, worker: usize) -> Result<QuicEndpoint, QuicError> {
        let place = self.scheme.place(worker);
        let handshake = self.config.handshake_timeout;
        let arrivals = Arc::new(Arrivals::new(self.scheme.key(), place, self.strays.clone(), handshake));
        let scheme = self.scheme.clone();
        let mut endpoint = self.endpoint.clone();
        endpoint.cid_generator(move || Box::new(WorkerIds::new(scheme.clone(), place, clock::rng())));
        let socket = socket::wrap(socket, self.config.send_segments, Arc::clone(&arrivals))?;
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            endpoint,
            Some(self.server.clone()),
            socket.clone(),
            Arc::new(TokioRuntime),
        )?;
        let refusals = Arc::new(Refusals { socket, arrivals, crypto: Arc::clone(&self.server.crypto) });
        Ok(QuicEndpoint { endpoint, refusals, config: self.config.clone() })
    }
}

/// One worker's endpoint. Connections live on beside it: it can be dropped, not their runtime.
#[derive(Debug, Clone)]
pub struct QuicEndpoint {
    endpoint: quinn::Endpoint,
    refusals: Arc<Refusals>,
    config: Arc<QuicConfig>,
}

impl QuicEndpoint {
    /// The next client; `None` once the endpoint is closed. Cancel-safe.
    pub async fn accept(&self) -> Option<Incoming> {
        let incoming = self.endpoint.accept().await?;
        Some(Incoming { incoming, refusals: Arc::clone(&self.refusals), config: self.config.clone() })
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// When the OS does not say.
    pub fn local_address(&self) -> Result<SocketAddr, QuicError> {
        Ok(self.endpoint.local_addr()?)
    }

    /// Connections that are open or in their handshake.
    pub fn open_connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Answers nobody new from now on; connections live on. Where clients should learn at once: [`Incoming::refuse`].
    pub fn stop_accepting(&self) {
        self.endpoint.set_server_config(None);
    }

    /// Ends every connection at once, and [`QuicEndpoint::accept`].
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.endpoint.close(VarInt::from_u32(code.number()), reason.as_bytes());
    }

    /// Waits until every connection has ended and its last packets are out.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// What it takes to refuse with a reason.
struct Refusals {
    socket: Arc<Frugal>,
    arrivals: Arc<Arrivals>,
    crypto: Arc<dyn quinn::crypto::ServerConfig>,
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").finish_non_exhaustive()
    }
}

/// A client's first packet. Dropping it refuses the client.
pub struct Incoming {
    incoming: quinn::Incoming,
    refusals: Arc<Refusals>,
    pub(super) config: Arc<QuicConfig>,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("remote_address", &self.remote_address()).finish_non_exhaustive()
    }
}

impl Incoming {
    /// Where it came from; proved only if [`Incoming::is_validated`].
    pub fn remote_address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// The client has shown that it receives what is sent to its address (RFC 9000 §8.1).
    pub fn is_validated(&self) -> bool {
        self.incoming.remote_address_validated()
    }

    /// Whether [`Incoming::handshake`] can do without a proof of the address, within the next seconds: ask before anything is
    /// spent on this client, and [`Incoming::retry`] where not.
    pub fn has_room(&self) -> bool {
        self.is_validated() || self.refusals.arrivals.has_room(self.remote_address())
    }

    /// Answers `CONNECTION_REFUSED`: the cheapest way to say no.
    pub fn refuse(self) {
        self.incoming.refuse();
    }

    /// The connection id that the client chose for the server at first. Its first packet may say something by it.
    pub fn chosen_id(&self) -> impl Deref<Target = [u8]> + use<> {
        self.incoming.orig_dst_cid()
    }

    /// Answers `CONNECTION_REFUSED` with a reason, in one packet of less than 250 bytes, before any of TLS. The client
    /// cannot tell whose it is: whoever saw its first packet could have sent it. Not an address but a validated one should
    /// be answered so, nor more than 127 bytes said.
    ///
    /// Where so many clients came since that nothing is known of this one's ids any more: [`Incoming::refuse`].
    pub fn refuse_with(self, reason: &str) {
        let Refusals { socket, arrivals, crypto } = &*self.refusals;
        let remote = self.incoming.remote_address();
        let initial = arrivals.find_initial(remote, &self.incoming.orig_dst_cid());
        let keyed = initial.and_then(|initial| {
            let keys = crypto.initial_keys(QUIC_V1, &ConnectionId::new(initial.to.as_bytes())).ok()?;
            let tag = keys.packet.local.tag_len();
            Some(initial.refuse(reason.as_bytes(), tag, |packet, number_at, payload_at| {
                keys.packet.local.encrypt(0, packet, payload_at);
                keys.header.local.encrypt(number_at, packet);
            }))
        });
        let Some(contents) = keyed else { return self.refuse() };
        let src_ip = self.incoming.local_ip();
        let transmit =
            Transmit { destination: remote, ecn: None, contents: &contents, segment_size: None, src_ip };
        // Not sent: as lost on the way. The client asks again.
        let _lost = socket.try_send_echo(&transmit);
        self.incoming.ignore();
    }

    /// Says nothing, as if the packet had been lost.
    pub fn ignore(self) {
        self.incoming.ignore();
    }

    /// Lets the client prove its address first, at the price of a round trip and of no memory here. Where it has done so
    /// already: it is refused.
    pub fn retry(self) {
        if let Err(refused) = self.incoming.retry() {
            refused.into_incoming().refuse();
        }
    }

    /// Drives the handshake, within [`QuicConfig::handshake_timeout`]; for WebTransport until the client's request is
    /// there. Dropping the future drops the client.
    ///
    /// # Errors
    /// When the client is too slow, goes away, or asks for nothing that is served here; when its address must be validated
    /// first, which it was asked for.
    pub fn handshake(self) -> impl Future<Output = Result<Pending, QuicError>> + Send + use<> {
        // Boxed: the task that awaits it holds the connection for long, and this only for a moment.
        Box::pin(async move {
            let limit = self.config.handshake_timeout;
            match tokio::time::timeout(limit, handshake(self)).await {
                Ok(pending) => pending,
                Err(_) => Err(QuicError::HandshakeTimeout(limit)),
            }
        })
    }
}

impl Incoming {
    /// Goes on with it. To an address that is not validated goes no more than three times what came from there; where there
    /// are too many to count, it is to be validated first.
    pub(super) fn accept(self) -> Result<quinn::Connecting, QuicError> {
        let is_counted = self.is_validated()
            || self.refusals.arrivals.open_account(self.remote_address(), &self.incoming.orig_dst_cid());
        if !is_counted {
            self.retry();
            return Err(QuicError::Unvalidated);
        }
        self.incoming.accept().map_err(QuicError::lost)
    }
}

/// A client whose handshake is done, or as good as done where it sent early data. Dropping it closes the connection.
#[derive(Debug)]
pub enum Pending {
    /// ALPN `tidegate/1`.
    Quic(QuicPending),
    /// ALPN `h3`, with a request for a WebTransport session that is not answered yet.
    WebTransport(WebTransportPending),
}

/// A native client, before its control stream. Dropping it closes the connection.
pub struct QuicPending {
    connection: quinn::Connection,
    early: Option<Box<Early>>,
    config: Arc<QuicConfig>,
}

impl fmt::Debug for QuicPending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicPending").field("remote_address", &self.remote_address()).finish_non_exhaustive()
    }
}

impl QuicPending {
    /// Where the client is.
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Waits for the client's first bidirectional stream, without end: the caller bounds it. Dropping the future closes
    /// the connection as one that sent no `connect` in time.
    ///
    /// # Errors
    /// When the connection ends first.
    pub async fn accept(self) -> Result<QuicConnection, QuicError> {
        let Self { connection, early, config } = self;
        let silent = Silent(Some(connection.clone()));
        let (send, recv) = connection.accept_bi().await.map_err(QuicError::lost)?;
        silent.disarm();
        Ok(QuicConnection::native(connection, early, send, recv, &config))
    }

    /// Closes the connection with a code, without waiting.
    pub fn close(self, code: CloseCode, reason: &str) {
        self.connection.close(VarInt::from_u32(code.number()), reason.as_bytes());
    }
}

/// Closes a connection whose client never opened its control stream: without a stream there is no lane for a `close`
/// frame, so the transport's own close must carry the code.
struct Silent(Option<quinn::Connection>);

impl Silent {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            let code = CloseCode::ConnectTimeout.number();
            connection.close(VarInt::from_u32(code), b"no connect frame in time");
        }
    }
}

async fn handshake(incoming: Incoming) -> Result<Pending, QuicError> {
    let config = Arc::clone(&incoming.config);
    let mut connecting = incoming.accept()?;
    let is_early = connecting.handshake_data().await.map_err(QuicError::lost)?.is::<EarlyHello>();
    // Only who has something to say early is listened to early. WebTransport never has: CONNECT waits.
    if is_early {
        let (connection, complete) =
            connecting.into_0rtt().unwrap_or_else(|_| unreachable!("a server always can"));
        let early = Some(Box::new(Early::new(complete, config.handshake_timeout)));
        return Ok(Pending::Quic(QuicPending { connection, early, config }));
    }
    let connection = connecting.await.map_err(QuicError::lost)?;
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let alpn = data.and_then(|data| data.protocol).unwrap_or_default();
    match &alpn[..] {
        ALPN_NATIVE => Ok(Pending::Quic(QuicPending { connection, early: None, config })),
        ALPN_WEBTRANSPORT => WebTransportPending::read(connection, config).await.map(Pending::WebTransport),
        other => {
            let code = CloseCode::Unsupported.number();
            connection.close(VarInt::from_u32(code), b"unknown ALPN");
            Err(QuicError::UnknownAlpn(String::from_utf8_lossy(other).into_owned()))
        }
    }
}

fn transport_config(config: &QuicConfig) -> Result<TransportConfig, QuicError> {
    let windows = [config.stream_window, config.connection_window, config.send_window, config.initial_window];
    if windows.contains(&0) || config.idle_timeout.is_zero() || config.initial_rtt.is_zero() {
        let reason = "a window, the idle timeout or the initial round trip is 0";
        return Err(QuicError::Settings(reason.to_owned()));
    }
    let idle = IdleTimeout::try_from(config.idle_timeout)
        .map_err(|_| QuicError::Settings(format!("an idle timeout of {:?}", config.idle_timeout)))?;
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(config.ack_threshold))
        .max_ack_delay(Some(config.ack_delay));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .initial_rtt(config.initial_rtt)
        .congestion_controller_factory(config.congestion.factory(config.initial_window))
        .stream_receive_window(VarInt::from_u32(config.stream_window))
        .receive_window(VarInt::from_u32(config.connection_window))
        .send_window(u64::from(config.send_window))
        .max_concurrent_uni_streams(VarInt::from_u32(config.client_uni_streams))
        .max_concurrent_bidi_streams(VarInt::from_u32(config.client_bidi_streams))
        .datagram_receive_buffer_size(Some(config.datagram_buffer as usize))
        .datagram_send_buffer_size(config.datagram_buffer as usize)
        .ack_frequency_config(Some(acks))
        // Probes cost 1.7 KB a connection and a third of the CPU of connecting; our datagrams are small.
        .mtu_discovery_config(None);
    Ok(transport)
}

/// Of a client that waits to be let in: some ten datagrams.
const WAITING_BYTES: u64 = 16 << 10;
const ALL_WAITING_BYTES: u64 = 32 << 20;
/// Between two stateless resets of one endpoint.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_let_nothing_through_are_refused() {
        assert!(transport_config(&QuicConfig::default()).is_ok());
        for config in [
            QuicConfig { send_window: 0, ..QuicConfig::default() },
            QuicConfig { stream_window: 0, ..QuicConfig::default() },
            QuicConfig { initial_rtt: Duration::ZERO, ..QuicConfig::default() },
            // QUIC takes it for "never".
            QuicConfig { idle_timeout: Duration::ZERO, ..QuicConfig::default() },
            QuicConfig { idle_timeout: Duration::MAX, ..QuicConfig::default() },
        ] {
            assert!(matches!(transport_config(&config), Err(QuicError::Settings(_))), "{config:?}");
        }
    }
}
