//! Selection by name, and reload while connections stay up.

use std::fs;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::testing::{DAY, Pair, SelfSigned, handshake, now, self_signed, self_signed_between};
use crate::tls::{client_config_pinned, server_config};

const SECOND: Duration = Duration::from_secs(1);

fn store_of(certificates: &[&SelfSigned]) -> (TempDir, Vec<CertificateFiles>, Arc<CertStore>) {
    let directory = tempdir().unwrap();
    let files: Vec<_> = certificates
        .iter()
        .enumerate()
        .map(|(index, certificate)| certificate.write(directory.path(), &format!("site{index}")))
        .collect();
    let store = Arc::new(CertStore::from_files(files.clone(), now()).unwrap());
    (directory, files, store)
}

fn connect(store: &Arc<CertStore>, hash: CertificateHash, name: &str) -> Result<Pair, rustls::Error> {
    let client = client_config_pinned([hash], &[]).unwrap();
    handshake(server_config(Arc::clone(store), &[]), client, name, now())
}

fn shown(store: &CertStore, name: Option<&str>) -> CertificateDer<'static> {
    store.select(name).cert[0].clone()
}

#[test]
fn certificate_is_chosen_by_name() {
    let first = self_signed(&["a.example", "shared.example"]);
    let second = self_signed(&["b.example", "*.b.example", "shared.example"]);
    let (_directory, _files, store) = store_of(&[&first, &second]);
    for (name, expected) in [
        (Some("a.example"), &first),
        (Some("b.example"), &second),
        (Some("B.Example"), &second),
        (Some("b.example."), &second),
        (Some("x.b.example"), &second),
        // A wildcard stands for one label: neither for two nor for part of one.
        (Some("x.y.b.example"), &first),
        (Some("xb.example"), &first),
        (Some("shared.example"), &first),
        (Some("nobody.example"), &first),
        (Some("localhost"), &first),
        (None, &first),
    ] {
        assert_eq!(shown(&store, name), expected.certificate, "{name:?}");
    }
    assert_eq!(store.hash(), CertificateHash::of(&first.certificate));
}

#[test]
fn exact_name_beats_a_wildcard_listed_before_it() {
    let wildcard = self_signed(&["*.b.example"]);
    let exact = self_signed(&["x.b.example"]);
    let (_directory, _files, store) = store_of(&[&wildcard, &exact]);
    assert_eq!(shown(&store, Some("x.b.example")), exact.certificate);
    assert_eq!(shown(&store, Some("y.b.example")), wildcard.certificate);
}

#[test]
fn handshake_gets_the_certificate_of_the_name_it_asks_for() {
    let first = self_signed(&["a.example"]);
    let second = self_signed(&["*.b.example"]);
    let (_directory, _files, store) = store_of(&[&first, &second]);
    for (name, expected) in [("a.example", &first), ("x.b.example", &second), ("127.0.0.1", &first)] {
        let pair = connect(&store, CertificateHash::of(&expected.certificate), name).unwrap();
        assert_eq!(pair.leaf(), expected.certificate);
    }
}

#[test]
fn reload_serves_new_handshakes_and_leaves_connections_alone() {
    let old = self_signed(&["a.example"]);
    let (directory, _files, store) = store_of(&[&old]);
    let mut connection = connect(&store, store.hash(), "a.example").unwrap();
    assert_eq!(connection.carry("before"), "before");

    let new = self_signed(&["a.example"]);
    new.write(directory.path(), "site0");
    assert!(store.needs_reload(now()));
    assert!(store.refresh(now()).unwrap());
    assert!(!store.needs_reload(now()));
    assert!(!store.refresh(now()).unwrap());

    assert_eq!(connection.carry("after"), "after");
    assert_eq!(connection.leaf(), old.certificate);
    assert_eq!(store.hash(), CertificateHash::of(&new.certificate));
    assert_eq!(connect(&store, store.hash(), "a.example").unwrap().leaf(), new.certificate);
    connect(&store, CertificateHash::of(&old.certificate), "a.example").unwrap_err();
}

#[test]
fn certificate_handed_to_a_handshake_outlives_a_reload() {
    let old = self_signed(&["a.example"]);
    let (directory, _files, store) = store_of(&[&old]);
    // What a resolver handed out stays whole, whatever the store does next.
    let handed_out = store.select(Some("a.example"));
    self_signed(&["a.example"]).write(directory.path(), "site0");
    store.reload(now()).unwrap();
    assert_eq!(handed_out.cert[0], old.certificate);
    handed_out.keys_match().unwrap();
}

#[test]
fn failed_reload_keeps_all_the_old_certificates_and_says_so_once() {
    let (first, second) = (self_signed(&["a.example"]), self_signed(&["b.example"]));
    let (directory, files, store) = store_of(&[&first, &second]);
    // The first is renewed properly; of the second only the certificate is there yet.
    let renewed = self_signed(&["a.example"]);
    renewed.write(directory.path(), "site0");
    let late = self_signed(&["b.example"]);
    fs::write(&files[1].certificate, &late.certificate_pem).unwrap();

    let error = store.refresh(now()).unwrap_err();
    assert!(matches!(error, StoreError::Pem(PemError::KeyMismatch { .. })), "{error}");
    assert_eq!(shown(&store, Some("a.example")), first.certificate);
    assert_eq!(shown(&store, Some("b.example")), second.certificate);
    assert!(!store.refresh(now()).unwrap(), "nothing changed, nothing to say");
    store.reload(now()).unwrap_err();

    fs::write(&files[1].key, &late.key_pem).unwrap();
    assert!(store.refresh(now()).unwrap());
    assert_eq!(shown(&store, Some("a.example")), renewed.certificate);
    assert_eq!(shown(&store, Some("b.example")), late.certificate);
}

#[test]
fn deleted_file_is_one_error_and_its_return_is_noticed() {
    let site = self_signed(&["a.example"]);
    let (_directory, files, store) = store_of(&[&site]);
    fs::remove_file(&files[0].key).unwrap();
    assert!(matches!(store.refresh(now()), Err(StoreError::Pem(PemError::Unreadable { .. }))));
    assert!(!store.needs_reload(now()));
    fs::write(&files[0].key, &site.key_pem).unwrap();
    assert!(store.refresh(now()).unwrap());
}

#[test]
fn touched_file_is_not_a_change_but_same_length_content_is() {
    let site = self_signed(&["a.example"]);
    let (_directory, files, store) = store_of(&[&site]);
    let later = now() + DAY;
    fs::File::options().append(true).open(&files[0].certificate).unwrap().set_modified(later).unwrap();
    assert!(!store.needs_reload(now()));

    let text = site.certificate_pem.replace("BEGIN", "begin");
    assert_eq!(text.len(), site.certificate_pem.len());
    fs::write(&files[0].certificate, text).unwrap();
    fs::File::options().append(true).open(&files[0].certificate).unwrap().set_modified(later).unwrap();
    assert!(store.needs_reload(now()));
}

#[test]
fn certificate_from_the_future_is_put_in_place_when_its_time_comes() {
    let (directory, _files, store) = store_of(&[&self_signed(&["a.example"])]);
    let start = now() + DAY;
    let next = self_signed_between(&["a.example"], start, start + 30 * DAY);
    next.write(directory.path(), "site0");
    store.refresh(now()).unwrap_err();
    assert!(!store.refresh(start - SECOND).unwrap());
    assert!(store.refresh(start).unwrap());
    assert_eq!(shown(&store, None), next.certificate);
    assert!(!store.refresh(start + SECOND).unwrap());
}

#[test]
fn certificate_that_expires_in_service_stays_until_there_is_another() {
    let site = self_signed(&["a.example"]);
    let other = self_signed_between(&["b.example"], now() - DAY, now() + DAY);
    let (_directory, _files, store) = store_of(&[&site, &other]);
    assert_eq!(store.expires_at(), now() + DAY);
    assert!(!store.refresh(now() + 2 * DAY).unwrap());
    assert!(matches!(store.reload(now() + 2 * DAY), Err(StoreError::Pem(PemError::Expired { .. }))));
    assert_eq!(shown(&store, Some("b.example")), other.certificate);
}

#[test]
fn store_needs_at_least_one_certificate() {
    assert!(matches!(CertStore::from_files(Vec::new(), now()), Err(StoreError::NoCertificates)));
}

#[test]
fn development_leaf_is_renewed_and_its_hash_is_the_served_one() {
    let store = Arc::new(CertStore::from_dev(DevCertificates::ephemeral(&[], now()).unwrap()));
    let old = store.hash();
    assert_eq!(CertificateHash::of(&connect(&store, old, "localhost").unwrap().leaf()), old);
    assert!(!store.refresh(now() + 8 * DAY).unwrap());
    assert!(!store.needs_reload(now() + 10 * DAY), "there are no files");

    let due = now() + 10 * DAY;
    assert!(store.refresh(due).unwrap());
    assert!(!store.renew_if_due(due).unwrap());
    assert_ne!(store.hash(), old);
    let client = client_config_pinned([store.hash()], &[]).unwrap();
    let pair = handshake(server_config(Arc::clone(&store), &[]), client, "localhost", due).unwrap();
    assert_eq!(CertificateHash::of(&pair.leaf()), store.hash());
    assert!(store.expires_at() > due + 12 * DAY);
}

#[test]
fn failed_renewal_keeps_the_leaf_and_is_tried_again() {
    let parent = tempdir().unwrap();
    let directory = parent.path().join("certs");
    let store = CertStore::from_dev(DevCertificates::load_or_create(&directory, &[], now()).unwrap());
    let (old, due) = (store.hash(), now() + 10 * DAY);
    fs::remove_dir_all(&directory).unwrap();
    fs::write(&directory, "in the way").unwrap();
    assert!(matches!(store.refresh(due), Err(StoreError::Dev(DevError::Unwritable { .. }))));
    assert_eq!(store.hash(), old);
    fs::remove_file(&directory).unwrap();
    assert!(store.refresh(due).unwrap());
    assert_ne!(store.hash(), old);
}

#[test]
fn handshakes_and_reloads_go_on_side_by_side() {
    let certificates = [self_signed(&["a.example"]), self_signed(&["a.example"])];
    let (directory, _files, store) = store_of(&[&certificates[0]]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..2_000 {
                store.select(Some("a.example")).keys_match().unwrap();
            }
        });
        for turn in 0..50 {
            certificates[turn % 2].write(directory.path(), "site0");
            store.reload(now()).unwrap();
        }
        reader.join().unwrap();
    });
    assert_eq!(shown(&store, None), certificates[1].certificate);
}

#[test]
fn debug_shows_the_hash_and_no_key() {
    let site = self_signed(&["a.example"]);
    let (_directory, _files, store) = store_of(&[&site]);
    let text = format!("{store:?}");
    let hash = store.hash().to_base64();
    // Three letters of Base64 are chance: the hash itself may spell "key".
    let rest = text.replacen(&hash, "", 1);
    assert!(rest.len() < text.len() && !rest.to_lowercase().contains("key"), "{text}");
}
