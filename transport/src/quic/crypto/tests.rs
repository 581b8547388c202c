//! The session and its keys against rustls and RFC 9001.

use rustls::quic::ClientConnection;
use tidegate_certs::{CertStore, DevCertificates, client_config_pinned, server_config};

use super::*;
use crate::clock;

/// A client's TLS with its secrets, and the server's session, the handshake done.
struct Pair {
    client: ClientConnection,
    client_next: Secrets,
    server: Box<dyn Session>,
    /// Bytes of TLS that the server sent after the client's Finished.
    after: usize,
}

/// A server's settings, and those of a client that knows it.
fn settings(alpn: &[u8], tickets: usize) -> (Arc<ServerCrypto>, Arc<rustls::ClientConfig>) {
    let (mut servers, client) = fleet(alpn, tickets, &[1]);
    (servers.remove(0), client)
}

/// Those of several processes with one certificate, each with the secret of a number, and of a client that knows them.
fn fleet(alpn: &[u8], tickets: usize, secrets: &[u8]) -> (Vec<Arc<ServerCrypto>>, Arc<rustls::ClientConfig>) {
    let dev = DevCertificates::ephemeral(&[], clock::wall()).unwrap();
    let store = Arc::new(CertStore::from_dev(dev));
    let mut tls = client_config_pinned([store.hash()], &[alpn]).unwrap();
    tls.enable_early_data = true;
    tls.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let server = server_config(store, &[b"h3", ALPN_NATIVE]);
    let config = QuicConfig { tickets, ..QuicConfig::default() };
    let crypto = |secret: &u8| {
        let keys = Arc::new(SharedKeys::new([&[*secret; 32]]));
        Arc::new(ServerCrypto::new(&server, &config, keys).unwrap())
    };
    (secrets.iter().map(crypto).collect(), Arc::new(tls))
}

impl Pair {
    fn new() -> Self {
        let (crypto, tls) = settings(ALPN_NATIVE, 0);
        Self::with(&crypto, &tls)
    }

    fn with(crypto: &Arc<ServerCrypto>, tls: &Arc<rustls::ClientConfig>) -> Self {
        let mut client =
            ClientConnection::new(tls.clone(), Version::V1, "localhost".try_into().unwrap(), Vec::new())
                .unwrap();
        let params = TransportParameters::read(Side::Client, &mut &[][..]).unwrap();
        let mut server = crypto.clone().start_session(QUIC_V1, &params);
        assert!(server.is_handshaking() && server.handshake_data().is_none());

        let mut client_next = None;
        let (mut told, mut after) = (0, 0);
        while client_next.is_none() || server.is_handshaking() {
            let mut flight = Vec::new();
            while let Some(change) = client.write_hs(&mut flight) {
                if let KeyChange::OneRtt { next, .. } = change {
                    client_next = Some(next);
                }
            }
            if !flight.is_empty() {
                told += usize::from(server.read_handshake(&flight).unwrap());
            }
            loop {
                let mut flight = Vec::new();
                let keys = server.write_handshake(&mut flight);
                if !server.is_handshaking() {
                    after += flight.len();
                }
                if !flight.is_empty() {
                    client.read_hs(&flight).unwrap();
                } else if keys.is_none() {
                    break;
                }
            }
        }
        assert_eq!(told, 1, "quinn is told once that the client's hello is there");
        Self { client, client_next: client_next.unwrap(), server, after }
    }
}

fn data(session: &dyn Session) -> HandshakeData {
    *session.handshake_data().unwrap().downcast::<HandshakeData>().unwrap()
}

#[test]
fn what_is_asked_of_a_session_later_outlives_its_handshake() {
    let pair = Pair::new();
    let data = data(&*pair.server);
    assert_eq!(data.protocol.as_deref(), Some(&b"tidegate/1"[..]));
    assert_eq!(data.server_name.as_deref(), Some("localhost"));
    assert_eq!(pair.client.alpn_protocol(), Some(&b"tidegate/1"[..]));
    assert!(pair.server.export_keying_material(&mut [0; 8], b"label", b"").is_err());
}

#[test]
fn keys_are_updated_after_the_handshake_as_often_as_asked() {
    let mut pair = Pair::new();
    for generation in 1..=5_u64 {
        let ours = pair.server.next_1rtt_keys().unwrap();
        let theirs = pair.client_next.next_packet_keys();
        let mut packet = b"headpayload\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        ours.local.encrypt(generation, &mut packet, 4);
        let (header, sealed) = packet.split_at_mut(4);
        assert_eq!(theirs.remote.decrypt_in_place(generation, header, sealed).unwrap(), b"payload");

        let mut payload = *b"answer";
        let tag = theirs.local.encrypt_in_place(generation, b"head", &mut payload).unwrap();
        let mut sealed = bytes::BytesMut::from(&[&payload, tag.as_ref()].concat()[..]);
        ours.remote.decrypt(generation, b"head", &mut sealed).unwrap();
        assert_eq!(sealed, b"answer"[..]);
        assert!(ours.remote.decrypt(generation, b"head", &mut sealed).is_err());
    }
}

#[test]
fn every_client_gets_a_ticket_and_a_native_one_is_heard_early_with_it() {
    for (alpn, tickets, early) in [(ALPN_NATIVE, 4, true), (ALPN_NATIVE, 0, false), (&b"h3"[..], 4, false)] {
        let (crypto, tls) = settings(alpn, tickets);
        let first = Pair::with(&crypto, &tls);
        assert!(first.after > 0, "no ticket");
        assert!(first.server.early_crypto().is_none());

        let mut again =
            ClientConnection::new(tls, Version::V1, "localhost".try_into().unwrap(), Vec::new()).unwrap();
        assert_eq!(again.zero_rtt_keys().is_some(), early);
        let mut flight = Vec::new();
        assert!(again.write_hs(&mut flight).is_none());
        let params = TransportParameters::read(Side::Client, &mut &[][..]).unwrap();
        for replay in [false, true] {
            let mut server = crypto.clone().start_session(QUIC_V1, &params);
            server.read_handshake(&flight).unwrap();
            let taken = early && !replay;
            assert_eq!(server.early_crypto().is_some(), taken);
            assert_eq!(server.handshake_data().unwrap().is::<EarlyHello>(), taken);
        }
    }
}

#[test]
fn what_a_session_keeps_of_a_resumed_handshake_is_the_same() {
    let (crypto, tls) = settings(ALPN_NATIVE, 4);
    for _ in 0..3 {
        let pair = Pair::with(&crypto, &tls);
        assert!(pair.after > 0);
        assert_eq!(data(&*pair.server).protocol.as_deref(), Some(ALPN_NATIVE));
        assert!(pair.server.early_crypto().is_none());
    }
}

#[test]
fn a_session_is_resumed_by_any_process_with_the_same_keys_and_by_no_other() {
    use rustls::HandshakeKind::{Full, Resumed};
    for alpn in [ALPN_NATIVE, b"h3"] {
        for tickets in [0, 4] {
            let (servers, tls) = fleet(alpn, tickets, &[1, 1, 2]);
            // Each handshake brings the ticket for the next: at the others, and at those that never saw it.
            let kinds: Vec<_> = [0, 0, 1, 1, 0, 2, 2, 1]
                .iter()
                .map(|server| Pair::with(&servers[*server], &tls).client.handshake_kind().unwrap())
                .collect();
            assert_eq!(kinds, [Full, Resumed, Resumed, Resumed, Resumed, Full, Resumed, Full], "{alpn:?}");
        }
    }
}

#[test]
fn a_ticket_of_another_process_is_good_for_no_early_data() {
    let (servers, tls) = fleet(ALPN_NATIVE, 4, &[1, 1]);
    Pair::with(&servers[0], &tls);
    let mut again =
        ClientConnection::new(tls, Version::V1, "localhost".try_into().unwrap(), Vec::new()).unwrap();
    let mut flight = Vec::new();
    again.write_hs(&mut flight);
    assert!(again.zero_rtt_keys().is_some());
    let params = TransportParameters::read(Side::Client, &mut &[][..]).unwrap();
    for (server, early) in [(1, false), (0, true), (0, false)] {
        let mut server = servers[server].clone().start_session(QUIC_V1, &params);
        server.read_handshake(&flight).unwrap();
        assert_eq!(server.early_crypto().is_some(), early);
    }
}

#[test]
fn tls_after_the_handshake_is_an_error() {
    let mut pair = Pair::new();
    // A KeyUpdate (RFC 8446 §4.6.3), which RFC 9001 §6 answers by this very code.
    let error = pair.server.read_handshake(&[24, 0, 0, 1, 0]).unwrap_err();
    assert_eq!(u64::from(error.code), 0x010a);
    assert!(pair.server.write_handshake(&mut Vec::new()).is_none());
}

#[test]
fn what_is_no_tls_is_an_alert() {
    let dev = DevCertificates::ephemeral(&[], clock::wall()).unwrap();
    let tls = server_config(Arc::new(CertStore::from_dev(dev)), &[b"h3"]);
    let keys = Arc::new(SharedKeys::new([&[1; 32]]));
    let crypto = Arc::new(ServerCrypto::new(&tls, &QuicConfig::default(), keys).unwrap());
    let params = TransportParameters::read(Side::Client, &mut &[][..]).unwrap();
    let mut session = crypto.start_session(QUIC_V1, &params);
    // A ClientHello of two bytes.
    let error = session.read_handshake(&[1, 0, 0, 2, 3, 3]).unwrap_err();
    assert!(u64::from(error.code) & !0xff == 0x100, "{error}");
}
