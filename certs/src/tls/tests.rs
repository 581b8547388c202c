//! Real handshakes in memory.

use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, CipherSuite, Error, ProtocolVersion};

use super::*;
use crate::dev::DevCertificates;
use crate::pem::{load_roots, roots_from_der};
use crate::testing::{DAY, Pair, handshake, now, self_signed};

fn dev() -> DevCertificates {
    DevCertificates::ephemeral(&[], now()).unwrap()
}

fn server(dev: DevCertificates, alpn: &[&[u8]]) -> ServerConfig {
    server_config(Arc::new(CertStore::from_dev(dev)), alpn)
}

fn connect_pinned(dev: DevCertificates, hash: CertificateHash, at: SystemTime) -> Result<Pair, Error> {
    handshake(server(dev, &[]), client_config_pinned([hash], &[]).unwrap(), "localhost", at)
}

#[test]
fn pinned_client_connects_and_talks() {
    let dev = dev();
    let hash = dev.hash();
    let mut pair = connect_pinned(dev, hash, now()).unwrap();
    assert_eq!(pair.carry("hello"), "hello");
    assert_eq!(pair.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let suite = pair.client.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
}

#[test]
fn one_of_several_hashes_is_enough_and_the_name_does_not_matter() {
    let dev = dev();
    let hashes = [CertificateHash::from([7; 32]), dev.hash()];
    let client = client_config_pinned(hashes, &[]).unwrap();
    handshake(server(dev, &[]), client, "elsewhere.example", now()).unwrap();
}

#[test]
fn pinned_client_refuses_another_certificate_of_the_same_ca() {
    let mut dev = dev();
    let old = dev.hash();
    let due = now() + 10 * DAY;
    assert!(dev.renew_if_due(due).unwrap());
    let new = dev.hash();
    let error = connect_pinned(dev, old, due).unwrap_err();
    assert!(matches!(error, Error::InvalidCertificate(CertificateError::Other(_))), "{error}");
    assert!(error.to_string().contains(&new.to_base64()), "{error}");
}

#[test]
fn pinned_client_refuses_a_certificate_outside_its_dates() {
    let (from, to) = (dev().leaf().not_before(), dev().leaf().not_after());
    for (at, late) in [(to + DAY, true), (from - DAY, false)] {
        let dev = dev();
        let hash = dev.hash();
        match connect_pinned(dev, hash, at).unwrap_err() {
            Error::InvalidCertificate(CertificateError::ExpiredContext { .. }) if late => {}
            Error::InvalidCertificate(CertificateError::NotValidYetContext { .. }) if !late => {}
            other => panic!("{other}"),
        }
    }
}

/// A thief has the certificate, which every handshake shows, but not its key.
#[test]
fn pinned_client_refuses_a_signature_by_another_key() {
    let dev = dev();
    let other = PrivateKeyDer::from_pem_slice(self_signed(&["localhost"]).key_pem.as_bytes()).unwrap();
    let stolen =
        CertifiedKey::new(dev.leaf().certified_key().cert.clone(), any_supported_type(&other).unwrap());
    let server = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(stolen)));
    let client = client_config_pinned([dev.hash()], &[]).unwrap();
    let error = handshake(server, client, "localhost", now()).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::BadSignature));
}

#[test]
fn client_with_the_ca_connects_to_all_names_of_the_leaf() {
    for name in ["localhost", "127.0.0.1", "::1"] {
        let dev = dev();
        let roots = roots_from_der([dev.ca_der()]).unwrap();
        let client = client_config_with_roots(roots, &[]).unwrap();
        let mut pair = handshake(server(dev, &[]), client, name, now()).unwrap();
        assert_eq!(pair.carry(name), name);
    }
}

#[test]
fn client_with_the_ca_file_connects_before_and_after_a_renewal() {
    let directory = tempfile::tempdir().unwrap();
    let dev = DevCertificates::load_or_create(directory.path(), &[], now()).unwrap();
    let ca_file = dev.ca_file().unwrap();
    let store = Arc::new(CertStore::from_dev(dev));
    for at in [now(), now() + 10 * DAY, now() + 20 * DAY] {
        store.refresh(at).unwrap();
        let client = client_config_with_roots(load_roots(&ca_file).unwrap(), &[]).unwrap();
        let pair = handshake(server_config(Arc::clone(&store), &[]), client, "localhost", at).unwrap();
        assert_eq!(CertificateHash::of(&pair.leaf()), store.hash());
    }
}

#[test]
fn client_with_roots_refuses_another_ca_another_name_and_an_expired_leaf() {
    let trusting = |dev: &DevCertificates| {
        client_config_with_roots(roots_from_der([dev.ca_der()]).unwrap(), &[]).unwrap()
    };
    let other = trusting(&dev());
    let error = handshake(server(dev(), &[]), other, "localhost", now()).unwrap_err();
    assert!(matches!(error, Error::InvalidCertificate(_)), "{error}");

    let served = dev();
    let client = trusting(&served);
    let error = handshake(server(served, &[]), client, "elsewhere.example", now()).unwrap_err();
    let CertificateError::NotValidForNameContext { .. } = certificate_error(error) else {
        panic!("the name was not checked");
    };

    let served = dev();
    let client = trusting(&served);
    let error = handshake(server(served, &[]), client, "localhost", now() + 14 * DAY).unwrap_err();
    let CertificateError::ExpiredContext { .. } = certificate_error(error) else {
        panic!("the dates were not checked");
    };
}

fn certificate_error(error: Error) -> CertificateError {
    match error {
        Error::InvalidCertificate(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn clients_that_could_connect_to_nobody_are_not_built() {
    assert_eq!(client_config_pinned([], &[]).unwrap_err(), TlsError::NoHashes);
    assert_eq!(client_config_with_roots(RootCertStore::empty(), &[]).unwrap_err(), TlsError::NoRoots);
}

#[test]
fn application_protocol_is_the_first_of_the_servers_that_the_client_offers() {
    let negotiated = |offered: &[&[u8]]| {
        let dev = dev();
        let client = client_config_pinned([dev.hash()], offered).unwrap();
        handshake(server(dev, &[b"h2", b"http/1.1"]), client, "localhost", now())
            .map(|pair| pair.server.alpn_protocol().map(<[u8]>::to_vec))
    };
    assert_eq!(negotiated(&[b"http/1.1", b"h2"]).unwrap().as_deref(), Some(&b"h2"[..]));
    assert_eq!(negotiated(&[b"http/1.1"]).unwrap().as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(negotiated(&[]).unwrap(), None);
    assert_eq!(negotiated(&[b"tidegate/1"]).unwrap_err(), Error::NoApplicationProtocol);
}

#[test]
fn tls_1_2_is_refused() {
    let dev = dev();
    let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots_from_der([dev.ca_der()]).unwrap())
        .with_no_client_auth();
    let error = handshake(server(dev, &[]), client, "localhost", now()).unwrap_err();
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");
}

#[test]
fn nothing_is_kept_for_resumption() {
    let dev = dev();
    let hash = dev.hash();
    let config = server(dev, &[]);
    assert!(!config.session_storage.can_cache());
    assert!(!config.ticketer.enabled());
    let client = client_config_pinned([hash], &[]).unwrap();
    let pair = handshake(config, client, "localhost", now()).unwrap();
    let rustls::Connection::Client(client) = &pair.client else { panic!("the client's end") };
    assert_eq!(client.tls13_tickets_received(), 0);
}
