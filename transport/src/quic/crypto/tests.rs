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
}

impl Pair {
    fn new() -> Self {
        let dev = DevCertificates::ephemeral(&[], clock::wall()).unwrap();
        let store = Arc::new(CertStore::from_dev(dev));
        let tls = client_config_pinned([store.hash()], &[b"tidegate/1"]).unwrap();
        let crypto = ServerCrypto::new(&server_config(store, &[b"h3", b"tidegate/1"])).unwrap();
        let mut client =
            ClientConnection::new(Arc::new(tls), Version::V1, "localhost".try_into().unwrap(), Vec::new())
                .unwrap();
        let params = TransportParameters::read(Side::Client, &mut &[][..]).unwrap();
        let mut server = Arc::new(crypto).start_session(QUIC_V1, &params);
        assert!(server.is_handshaking() && server.handshake_data().is_none());

        let mut client_next = None;
        let mut told = 0;
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
                if !flight.is_empty() {
                    client.read_hs(&flight).unwrap();
                } else if keys.is_none() {
                    break;
                }
            }
        }
        assert_eq!(told, 1, "quinn is told once that the client's hello is there");
        Self { client, client_next: client_next.unwrap(), server }
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
    let crypto = Arc::new(ServerCrypto::new(&tls).unwrap());
    let params = TransportParameters::read(Side::Client, &mut &[][..]).unwrap();
    let mut session = crypto.start_session(QUIC_V1, &params);
    // A ClientHello of two bytes.
    let error = session.read_handshake(&[1, 0, 0, 2, 3, 3]).unwrap_err();
    assert!(u64::from(error.code) & !0xff == 0x100, "{error}");
}
