//! The server's half of QUIC's cryptographic handshake (RFC 9001), made to cost little while a connection is idle.
//!
//! quinn's own session keeps rustls' whole connection for as long as a client stays, and every packet key as an expanded
//! AEAD context. Neither is needed: once the client's Finished was read and the ticket written, TLS has nothing more to
//! say on a server, and a context can be built from its key when a packet comes. [`ServerCrypto`] drops the former and
//! [`keys`] keeps the latter only for connections that are busy. Figures: ADR 0008.
//!
//! Clients get a ticket each ([`tickets`]); native ones may send early data with it (ADR 0009).

mod cache;
mod keys;
mod tickets;

use std::any::Any;
use std::sync::Arc;

use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::quic::{DirectionalKeys, KeyChange, Secrets, ServerConnection, Version};

use self::tickets::{HandshakeTickets, Tickets};
use super::{ALPN_NATIVE, QuicConfig, QuicError};
use crate::keys::SharedKeys;

/// QUIC version 1 (RFC 9000): what we speak.
pub(crate) const QUIC_V1: u32 = 1;

/// TLS settings of a server, as quinn wants them.
pub(crate) struct ServerCrypto {
    tls: Arc<rustls::ServerConfig>,
    tickets: Arc<Tickets>,
    /// Makes Initial keys and Retry tags, which no secret goes into.
    initial: QuicServerConfig,
}

impl ServerCrypto {
    /// From `tls`: certificates, ALPNs, cipher suites and the like. Client certificates are not asked for, whatever
    /// it says: nothing would remain here to handle them. Clients get one ticket each, of `keys`; of those that are good for
    /// early data as many are remembered as `config` says, and without early data there are none such.
    pub(crate) fn new(
        tls: &rustls::ServerConfig,
        config: &QuicConfig,
        keys: Arc<SharedKeys>,
    ) -> Result<Self, QuicError> {
        let unfit = |error: &dyn std::fmt::Display| QuicError::Settings(error.to_string());
        let mut own = rustls::ServerConfig::builder_with_provider(keys::thin(tls.crypto_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unfit(&error))?
            .with_no_client_auth()
            .with_cert_resolver(tls.cert_resolver.clone());
        own.alpn_protocols.clone_from(&tls.alpn_protocols);
        own.ignore_client_order = tls.ignore_client_order;
        own.key_log = tls.key_log.clone();
        own.time_provider = tls.time_provider.clone();
        own.cert_compressors.clone_from(&tls.cert_compressors);
        own.cert_compression_cache = tls.cert_compression_cache.clone();
        let capacity = if config.early_data { config.tickets } else { 0 };
        own.send_tls13_tickets = 1;
        // QUIC has its own bound, the flow control, and knows no other value (RFC 9001 §4.6.1).
        own.max_early_data_size = if capacity == 0 { 0 } else { u32::MAX };
        let tickets = Arc::new(Tickets::new(keys, purpose(config), capacity));
        let tls = Arc::new(own);
        // Also finds out whether TLS 1.3 and a suite for QUIC are there.
        ServerConnection::new(tls.clone(), Version::V1, Vec::new()).map_err(|error| unfit(&error))?;
        let initial = QuicServerConfig::try_from(tls.clone()).map_err(|error| unfit(&error))?;
        Ok(Self { tls, tickets, initial })
    }
}

impl ServerConfig for ServerCrypto {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        if version == QUIC_V1 { self.initial.initial_keys(version, dst_cid) } else { Err(UnsupportedVersion) }
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.initial.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, _version: u32, params: &TransportParameters) -> Box<dyn Session> {
        let mut encoded = Vec::new();
        params.write(&mut encoded);
        let tickets = Arc::new(HandshakeTickets::new(self.tickets.clone()));
        let mut settings = rustls::ServerConfig::clone(&self.tls);
        settings.session_storage = tickets.clone();
        settings.ticketer = tickets.clone();
        let tls = ServerConnection::new(Arc::new(settings), Version::V1, encoded)
            .expect("the same settings were tried by `ServerCrypto::new`");
        let handshake = Box::new(Handshake { tls, tickets, has_data: false, next: None });
        Box::new(ServerSession { config: self, stage: Stage::Handshake(handshake) })
    }
}

/// What [`Session::handshake_data`] gives, in place of [`HandshakeData`], while a native client's early data is taken and
/// the handshake not complete.
pub(crate) struct EarlyHello;

/// One connection's.
struct ServerSession {
    config: Arc<ServerCrypto>,
    stage: Stage,
}

/// ```text
/// Handshake ──the client's Finished came, nothing is left to send──► Established
/// ```
enum Stage {
    // Boxed: fifteen times the size of what remains of it.
    Handshake(Box<Handshake>),
    Established(Established),
}

struct Handshake {
    tls: ServerConnection,
    tickets: Arc<HandshakeTickets>,
    /// quinn was told that the client's hello is there.
    has_data: bool,
    /// Of the keys after the first, once those were handed out.
    next: Option<Secrets>,
}

/// What is kept of a handshake that is over.
struct Established {
    next: Secrets,
    protocol: Option<Box<[u8]>>,
    server_name: Option<Box<str>>,
}

impl Handshake {
    fn data(&self) -> HandshakeData {
        HandshakeData {
            protocol: self.tls.alpn_protocol().map(<[u8]>::to_vec),
            server_name: self.tls.server_name().map(str::to_owned),
        }
    }

    /// Early data's keys: TLS took it, and the client is a native one. WebTransport's CONNECT may not be early
    /// (draft-ietf-webtrans-http3 §3.5), so its clients' tickets are not good for it ([`tickets`]), and there are no keys
    /// for them here.
    fn early_keys(&self) -> Option<DirectionalKeys> {
        if self.tls.alpn_protocol() == Some(ALPN_NATIVE) { self.tls.zero_rtt_keys() } else { None }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        self.tls.read_hs(bytes).map_err(|error| {
            let alert = self.tls.alert().map(|alert| TransportErrorCode::crypto(alert.into()));
            TransportError {
                code: alert.unwrap_or(TransportErrorCode::PROTOCOL_VIOLATION),
                frame: None,
                reason: error.to_string(),
            }
        })?;
        let came = self.tls.alpn_protocol().is_some()
            || self.tls.server_name().is_some()
            || !self.tls.is_handshaking();
        // What is read next is the client's Finished, or a second hello, which is never early.
        self.tickets.after_hello(self.tls.alpn_protocol() == Some(ALPN_NATIVE));
        let first = came && !self.has_data;
        self.has_data |= came;
        Ok(first)
    }
}

impl Session for ServerSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        debug_assert!(side.is_server(), "clients alone ask, after a Retry");
        self.config.initial.initial_keys(QUIC_V1, dst_cid).expect("quinn knows version 1")
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let data = match &self.stage {
            Stage::Handshake(handshake) if !handshake.has_data => return None,
            Stage::Handshake(handshake)
                if handshake.tls.is_handshaking() && handshake.early_keys().is_some() =>
            {
                return Some(Box::new(EarlyHello));
            }
            Stage::Handshake(handshake) => handshake.data(),
            Stage::Established(established) => HandshakeData {
                protocol: established.protocol.as_deref().map(<[u8]>::to_vec),
                server_name: established.server_name.as_deref().map(str::to_owned),
            },
        };
        Some(Box::new(data))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        // quinn asks once, when it has read the client's hello.
        let Stage::Handshake(handshake) = &self.stage else { return None };
        let keys = handshake.early_keys()?;
        Some((Box::new(keys.header), Box::new(keys.packet)))
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        matches!(&self.stage, Stage::Handshake(handshake) if handshake.tls.is_handshaking())
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        match &mut self.stage {
            Stage::Handshake(handshake) => handshake.read(bytes),
            // A client has nothing to say after its Finished: updating keys by TLS is forbidden (RFC 9001 §6), and so
            // is a certificate that comes late (§4.4).
            Stage::Established(_) => Err(TransportError {
                code: TransportErrorCode::crypto(UNEXPECTED_MESSAGE),
                frame: None,
                reason: "TLS after the handshake".to_owned(),
            }),
        }
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Stage::Handshake(handshake) = &self.stage else { return Ok(None) };
        match handshake.tls.quic_transport_parameters() {
            Some(mut bytes) => Ok(Some(TransportParameters::read(Side::Server, &mut bytes)?)),
            None => Ok(None),
        }
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        let Stage::Handshake(handshake) = &mut self.stage else { return None };
        let start = buffer.len();
        let change = handshake.tls.write_hs(buffer);
        handshake.tickets.complete(buffer, start);
        match change {
            Some(KeyChange::Handshake { keys }) => Some(boxed(keys)),
            Some(KeyChange::OneRtt { keys, next }) => {
                handshake.next = Some(next);
                Some(boxed(keys))
            }
            None => {
                // quinn asks after each thing that it read, and until there is nothing more: this is the end.
                if buffer.is_empty()
                    && !handshake.tls.is_handshaking()
                    && let Some(next) = handshake.next.take()
                {
                    let HandshakeData { protocol, server_name } = handshake.data();
                    self.stage = Stage::Established(Established {
                        next,
                        protocol: protocol.map(Vec::into_boxed_slice),
                        server_name: server_name.map(String::into_boxed_str),
                    });
                }
                None
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        // RFC 9001 §6.1: each generation's secrets come from those before; header keys stay (§5.4).
        let next = match &mut self.stage {
            Stage::Handshake(handshake) => handshake.next.as_mut()?,
            Stage::Established(established) => &mut established.next,
        };
        let keys = next.next_packet_keys();
        Some(KeyPair { local: Box::new(keys.local), remote: Box::new(keys.remote) })
    }

    fn is_valid_retry(&self, _orig_dst_cid: &ConnectionId, _header: &[u8], _payload: &[u8]) -> bool {
        // Servers send them.
        false
    }

    fn export_keying_material(
        &self,
        _output: &mut [u8],
        _label: &[u8],
        _context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        // The secret to export from is gone with the handshake.
        Err(ExportKeyingMaterialError)
    }
}

/// What a client remembers of a server's limits beside the ticket, and goes by when it says something early.
fn purpose(config: &QuicConfig) -> Vec<u8> {
    let limits = [
        config.stream_window,
        config.connection_window,
        config.client_uni_streams,
        config.client_bidi_streams,
        config.datagram_buffer,
    ];
    let limits = limits.iter().flat_map(|limit| limit.to_be_bytes());
    b"quic".iter().copied().chain(limits).collect()
}

fn boxed(keys: rustls::quic::Keys) -> Keys {
    Keys {
        header: KeyPair { local: Box::new(keys.local.header), remote: Box::new(keys.remote.header) },
        packet: KeyPair { local: Box::new(keys.local.packet), remote: Box::new(keys.remote.packet) },
    }
}

/// TLS' alert `unexpected_message` (RFC 8446 §6).
const UNEXPECTED_MESSAGE: u8 = 10;

#[cfg(test)]
mod tests;
