//! What is wrong with a file is said precisely.

use std::fs;

use tempfile::{TempDir, tempdir};

use super::*;
use crate::testing::{DAY, SelfSigned, now, self_signed, self_signed_between};

fn written(certificate: &SelfSigned) -> (TempDir, CertificateFiles) {
    let directory = tempdir().unwrap();
    let files = certificate.write(directory.path(), "site");
    (directory, files)
}

/// The error for these files, having checked that its text names `file`.
fn refused(files: &CertificateFiles, file: &Path) -> PemError {
    let error = load_certificate(files, now()).unwrap_err();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    error
}

#[test]
fn chain_and_key_are_loaded_with_names_and_dates() {
    let site = self_signed(&["a.example", "*.B.example", "192.0.2.7", "2001:db8::1"]);
    let (_directory, files) = written(&site);
    let intermediate = self_signed(&["ca.example"]);
    fs::write(&files.certificate, format!("{}{}", site.certificate_pem, intermediate.certificate_pem))
        .unwrap();

    let loaded = load_certificate(&files, now()).unwrap();
    assert_eq!(loaded.certified_key().cert, [site.certificate.clone(), intermediate.certificate]);
    assert_eq!(loaded.hash(), crate::CertificateHash::of(&site.certificate));
    assert!(loaded.names().dns.iter().eq(["*.b.example", "a.example"]));
    assert!(loaded.names().ip.iter().map(ToString::to_string).eq(["192.0.2.7", "2001:db8::1"]));
    assert_eq!((loaded.not_before(), loaded.not_after()), (now() - DAY, now() + 30 * DAY));
}

#[test]
fn one_file_may_hold_both() {
    let site = self_signed(&["a.example"]);
    let (_directory, mut files) = written(&site);
    fs::write(&files.certificate, format!("{}{}", site.key_pem, site.certificate_pem)).unwrap();
    files.key.clone_from(&files.certificate);
    load_certificate(&files, now()).unwrap();
}

#[test]
fn missing_file_is_named() {
    let (_directory, mut files) = written(&self_signed(&["a.example"]));
    files.key.set_file_name("absent.pem");
    let error = refused(&files, &files.key);
    assert!(
        matches!(error, PemError::Unreadable { ref cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    );
}

#[test]
fn file_too_long_to_be_a_certificate_is_not_read_whole() {
    let (_directory, files) = written(&self_signed(&["a.example"]));
    File::options().write(true).open(&files.certificate).unwrap().set_len(1 << 40).unwrap();
    let error = refused(&files, &files.certificate);
    assert!(
        matches!(error, PemError::Unreadable { ref cause, .. } if cause.kind() == io::ErrorKind::FileTooLarge)
    );
}

#[test]
fn swapped_paths_are_recognised() {
    let (_directory, files) = written(&self_signed(&["a.example"]));
    let swapped = CertificateFiles { certificate: files.key.clone(), key: files.certificate.clone() };
    let error = refused(&swapped, &files.key);
    assert!(
        matches!(error, PemError::NoCertificate { .. }) && error.to_string().contains("swapped"),
        "{error}"
    );

    let same = CertificateFiles { certificate: files.certificate.clone(), key: files.certificate.clone() };
    let error = refused(&same, &files.certificate);
    assert!(matches!(error, PemError::NoKey { .. }) && error.to_string().contains("swapped"), "{error}");
}

#[test]
fn files_without_any_section_are_refused() {
    let (_directory, files) = written(&self_signed(&["a.example"]));
    fs::write(&files.key, "").unwrap();
    assert!(matches!(refused(&files, &files.key), PemError::NoKey { hint: "", .. }));
    fs::write(&files.certificate, "hello").unwrap();
    assert!(matches!(refused(&files, &files.certificate), PemError::NoCertificate { hint: "", .. }));
}

#[test]
fn encrypted_key_is_told_apart_from_no_key() {
    let (_directory, files) = written(&self_signed(&["a.example"]));
    fs::write(
        &files.key,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    assert!(matches!(refused(&files, &files.key), PemError::EncryptedKey { .. }));
}

#[test]
fn garbage_in_a_key_section_is_an_unsupported_key_and_is_not_repeated() {
    let (_directory, files) = written(&self_signed(&["a.example"]));
    fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n").unwrap();
    let error = refused(&files, &files.key);
    assert!(matches!(error, PemError::UnsupportedKey { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("c2VjcmV0"));
}

#[test]
fn key_of_another_certificate_is_a_mismatch() {
    let (_directory, files) = written(&self_signed(&["a.example"]));
    fs::write(&files.key, self_signed(&["a.example"]).key_pem).unwrap();
    let error = refused(&files, &files.key);
    assert!(matches!(error, PemError::KeyMismatch { .. }));
    assert!(error.to_string().contains(files.certificate.to_str().unwrap()), "{error}");
}

#[test]
fn chain_in_the_wrong_order_is_explained() {
    let site = self_signed(&["a.example"]);
    let (_directory, files) = written(&site);
    let other = self_signed(&["ca.example"]).certificate_pem;
    fs::write(&files.certificate, format!("{other}{}", site.certificate_pem)).unwrap();
    assert!(matches!(refused(&files, &files.certificate), PemError::LeafNotFirst { number: 2, .. }));
}

#[test]
fn truncated_and_damaged_certificates_are_told_apart() {
    let site = self_signed(&["a.example"]);
    let (_directory, files) = written(&site);
    fs::write(&files.certificate, &site.certificate_pem[..site.certificate_pem.len() - 40]).unwrap();
    let error = refused(&files, &files.certificate);
    assert!(
        matches!(error, PemError::Malformed { .. }) && error.to_string().contains("CERTIFICATE"),
        "{error}"
    );

    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&files.certificate, format!("{}{damaged}", site.certificate_pem)).unwrap();
    let error = refused(&files, &files.certificate);
    assert!(matches!(error, PemError::InvalidCertificate { number: 2, .. }), "{error}");
}

#[test]
fn certificate_is_refused_outside_its_dates_and_taken_at_their_edges() {
    let (from, to) = (now() - DAY, now() + DAY);
    let (_directory, files) = written(&self_signed_between(&["a.example"], from, to));
    let second = std::time::Duration::from_secs(1);
    load_certificate(&files, from).unwrap();
    load_certificate(&files, to).unwrap();
    let early = load_certificate(&files, from - second).unwrap_err();
    assert!(matches!(early, PemError::NotYetValid { not_before, .. } if not_before == from));
    let late = load_certificate(&files, to + second).unwrap_err();
    assert!(matches!(late, PemError::Expired { not_after, .. } if not_after == to));
    assert!(late.to_string().contains("2027"), "{late}");
}

#[test]
fn roots_come_from_a_file_or_from_memory() {
    let root = self_signed(&["ca.example"]);
    let (_directory, files) = written(&root);
    assert_eq!(load_roots(&files.certificate).unwrap().len(), 1);
    assert_eq!(roots_from_der([root.certificate.clone(), root.certificate]).unwrap().len(), 2);

    assert!(matches!(load_roots(&files.key), Err(PemError::NoCertificate { .. })));
    assert!(matches!(roots_from_der([]), Err(PemError::NoCertificate { .. })));
    let garbage = CertificateDer::from(vec![1, 2, 3]);
    assert!(matches!(roots_from_der([garbage]), Err(PemError::InvalidCertificate { number: 1, .. })));
}
