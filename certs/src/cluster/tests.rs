//! Files, and real handshakes in memory.

use rustls::{CertificateError, Error};
use tempfile::tempdir;
use x509_parser::parse_x509_certificate;

use super::*;
use crate::store::CertStore;
use crate::testing::{DAY, Pair, handshake, now};
use crate::{DevCertificates, client_config_with_roots, link_client_config, link_server_config};

fn store(authority: &ClusterAuthority, node: &str) -> Arc<CertStore> {
    let certificate = authority.issue(node, &[], DAY, now()).unwrap();
    Arc::new(CertStore::fixed(certificate.certificate()))
}

/// A node of `dials` dials one of `listens`; each trusts its own CA.
fn connect(dials: &ClusterAuthority, listens: &ClusterAuthority, at: SystemTime) -> Result<Pair, Error> {
    let server = link_server_config(store(listens, "core-1"), listens.roots().unwrap(), &[]).unwrap();
    let client = link_client_config(store(dials, "edge-1"), dials.roots().unwrap(), &[]).unwrap();
    handshake(server, client, "10.0.0.1", at)
}

#[test]
fn nodes_of_a_cluster_trust_each_other_at_any_address() {
    let authority = ClusterAuthority::ephemeral(now()).unwrap();
    let mut pair = connect(&authority, &authority, now()).unwrap();
    assert_eq!(pair.carry("hello"), "hello");
    for (end, name) in [(&pair.server, "edge-1"), (&pair.client, "core-1")] {
        let shown = &end.peer_certificates().unwrap()[0];
        assert!(Leaf::parse(shown).unwrap().names.dns.iter().eq([name]));
    }
}

#[test]
fn another_cluster_is_not_trusted() {
    let (one, other) =
        (ClusterAuthority::ephemeral(now()).unwrap(), ClusterAuthority::ephemeral(now()).unwrap());
    let error = connect(&one, &other, now()).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer));
    // The other direction: the client trusts the server's CA, and shows a certificate of its own.
    let server = link_server_config(store(&one, "core-1"), one.roots().unwrap(), &[]).unwrap();
    let client = link_client_config(store(&other, "edge-1"), one.roots().unwrap(), &[]).unwrap();
    let error = handshake(server, client, "core-1", now()).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer));
}

#[test]
fn without_a_certificate_there_is_no_connection() {
    let authority = ClusterAuthority::ephemeral(now()).unwrap();
    let server = link_server_config(store(&authority, "core-1"), authority.roots().unwrap(), &[]).unwrap();
    let client = client_config_with_roots(authority.roots().unwrap(), &[]).unwrap();
    assert_eq!(handshake(server, client, "core-1", now()).unwrap_err(), Error::NoCertificatesPresented);
}

#[test]
fn a_certificate_ends() {
    let authority = ClusterAuthority::ephemeral(now()).unwrap();
    let error = connect(&authority, &authority, now() + 2 * DAY).unwrap_err();
    assert!(matches!(error, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })), "{error}");
}

#[test]
fn a_server_alone_cannot_dial() {
    // A leaf of another kind of CA, trusted here by mistake: good for servers only.
    let dev = DevCertificates::ephemeral(&[], now()).unwrap();
    let roots = || roots_from_der([dev.ca_der()]).unwrap();
    let leaf = || Arc::new(CertStore::fixed(dev.leaf()));
    let server = link_server_config(leaf(), roots(), &[]).unwrap();
    let client = link_client_config(leaf(), roots(), &[]).unwrap();
    let error = handshake(server, client, "localhost", now()).unwrap_err();
    assert!(matches!(error, Error::InvalidCertificate(_)), "{error}");
}

#[test]
fn nobody_to_trust_is_an_error() {
    let authority = ClusterAuthority::ephemeral(now()).unwrap();
    assert!(link_server_config(store(&authority, "a"), RootCertStore::empty(), &[]).is_err());
    assert!(link_client_config(store(&authority, "a"), RootCertStore::empty(), &[]).is_err());
}

#[test]
fn a_certificate_names_its_node_and_its_hosts() {
    let authority = ClusterAuthority::ephemeral(now()).unwrap();
    let hosts = ["Core-1.example".to_owned(), "10.0.0.7".to_owned(), "::1".to_owned()];
    let node = authority.issue("core-1", &hosts, 30 * DAY, now()).unwrap();
    let leaf = node.certificate();
    assert!(leaf.names().dns.iter().eq(["core-1", "core-1.example"]));
    assert_eq!(leaf.names().ip.len(), 2);
    assert!(leaf.not_after() > now() + 29 * DAY && leaf.not_after() <= now() + 30 * DAY);
    leaf.certified_key().keys_match().unwrap();
    let (_, parsed) = parse_x509_certificate(leaf.leaf_der()).unwrap();
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !parsed.is_ca());

    for bad in ["", "a b", "10.0.0.1", "*.example", "a/b", "../a", "é"] {
        let refused = authority.issue(bad, &[], DAY, now());
        assert!(matches!(refused, Err(ClusterError::InvalidName { .. })), "{bad}");
    }
    let refused = authority.issue("core-1", &["a b".to_owned()], DAY, now());
    assert!(matches!(refused, Err(ClusterError::InvalidName { name }) if name == "a b"));
}

#[test]
fn nothing_outlives_the_authority() {
    let authority = ClusterAuthority::ephemeral(now()).unwrap();
    let late = authority.not_after() - DAY;
    let node = authority.issue("core-1", &[], 365 * DAY, late).unwrap();
    assert!(node.certificate().not_after() <= authority.not_after());
    let refused = authority.issue("core-1", &[], DAY, authority.not_after() + DAY);
    assert!(matches!(refused, Err(ClusterError::Expired { .. })));
}

#[test]
fn files_are_made_once_and_serve_both_ends() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("cluster");
    assert!(matches!(ClusterAuthority::load(&path, now()), Err(ClusterError::NoAuthority { .. })));
    let created = ClusterAuthority::create(&path, now()).unwrap();
    assert!(matches!(ClusterAuthority::create(&path, now()), Err(ClusterError::Exists { .. })));
    let loaded = ClusterAuthority::load(&path, now()).unwrap();
    assert_eq!(loaded.ca_pem(), created.ca_pem());

    let files = |node: &str| loaded.issue(node, &[], DAY, now()).unwrap().write(&path).unwrap();
    let open = |node| Arc::new(CertStore::from_files(vec![files(node)], now()).unwrap());
    let roots = || load_roots(&path.join("ca.pem")).unwrap();
    let server = link_server_config(open("core-1"), roots(), &[]).unwrap();
    let client = link_client_config(open("edge-1"), roots(), &[]).unwrap();
    handshake(server, client, "core-1", now()).unwrap();

    // Issued again, in place of the old ones: read as the old ones are.
    let store = open("core-1");
    let before = store.hash();
    files("core-1");
    assert!(store.refresh(now()).unwrap());
    assert_ne!(store.hash(), before);

    #[cfg(unix)]
    for key in ["ca-key.pem", "core-1-key.pem"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(path.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn a_node_does_not_take_the_authoritys_files() {
    let directory = tempdir().unwrap();
    let authority = ClusterAuthority::create(directory.path(), now()).unwrap();
    for name in ["ca", "ca-key", "CA"] {
        let node = authority.issue(name, &[], DAY, now()).unwrap();
        assert!(matches!(node.write(directory.path()), Err(ClusterError::InvalidName { .. })), "{name}");
    }
    assert!(ClusterAuthority::load(directory.path(), now()).is_ok());
}
