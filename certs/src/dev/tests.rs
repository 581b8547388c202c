//! The development CA, its leaf and its files.

use std::net::IpAddr;

use tempfile::tempdir;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::parse_x509_certificate;

use super::files::LOCK;
use super::*;
use crate::testing::now;

const SECOND: Duration = Duration::from_secs(1);

fn load(directory: &Path, now: SystemTime) -> DevCertificates {
    DevCertificates::load_or_create(directory, &[], now).unwrap()
}

/// Moment from which a leaf issued at [`now`] is due.
fn due() -> SystemTime {
    now() - BACKDATED + LEAF_LIFETIME - RENEW_BEFORE + SECOND
}

#[test]
fn leaf_is_what_browsers_accept_by_hash() {
    let dev = DevCertificates::ephemeral(&["Chat.test".into(), "192.0.2.7".into()], now()).unwrap();
    let leaf = dev.leaf().leaf_der();
    let (_, parsed) = parse_x509_certificate(leaf).unwrap();

    let validity = parsed.validity();
    let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert!(seconds < 14 * 24 * 60 * 60, "{seconds}");
    let now_seconds = i64::try_from(since_epoch(now()).as_secs()).unwrap();
    assert!(validity.not_before.timestamp() < now_seconds);
    assert!(validity.not_after.timestamp() > now_seconds + 12 * 24 * 60 * 60);

    let algorithm = &parsed.public_key().algorithm;
    assert_eq!(algorithm.algorithm, OID_KEY_TYPE_EC_PUBLIC_KEY);
    assert_eq!(algorithm.parameters.as_ref().unwrap().as_oid().unwrap(), OID_EC_P256);
    assert!(!parsed.is_ca());
    assert_eq!(parsed.version().0, 2, "X.509 version 3");

    let addresses = ["127.0.0.1", "192.0.2.7", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    assert!(dev.leaf().names().dns.iter().eq(["chat.test", "localhost"]));
    assert!(dev.leaf().names().ip.iter().eq(&addresses));
    assert_eq!(dev.hash(), CertificateHash::of(leaf));
    dev.leaf().certified_key().keys_match().unwrap();
}

#[test]
fn two_leaves_never_share_a_key() {
    let mut dev = DevCertificates::ephemeral(&[], now()).unwrap();
    let key = dev.leaf().certified_key().key.public_key().unwrap().into_owned();
    assert!(dev.renew_if_due(due()).unwrap());
    assert_ne!(dev.leaf().certified_key().key.public_key().unwrap(), key);
}

#[test]
fn texts_that_are_no_name_are_refused() {
    for name in ["", "a b", "https://a.test", "a.test:4433", "*.", "a.*.test", "*"] {
        let error = DevCertificates::ephemeral(&[name.into()], now()).unwrap_err();
        assert!(matches!(error, DevError::InvalidName { name: ref told } if told == name), "{name}: {error}");
    }
    DevCertificates::ephemeral(&["*.a.test".into()], now()).unwrap();
}

#[test]
fn stored_certificates_are_used_again() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("state/certs");
    let first = load(&path, now());
    let again = load(&path, now() + LEAF_LIFETIME - RENEW_BEFORE - BACKDATED);
    assert_eq!(first.hash(), again.hash());
    assert_eq!(first.ca_der(), again.ca_der());
    assert_eq!(again.ca_file(), Some(path.join("ca.pem")));
    again.leaf().certified_key().keys_match().unwrap();
}

#[test]
fn leaf_is_renewed_before_it_expires_and_the_ca_is_kept() {
    let directory = tempdir().unwrap();
    for stored in [false, true] {
        let mut dev = if stored {
            load(directory.path(), now())
        } else {
            DevCertificates::ephemeral(&[], now()).unwrap()
        };
        let (old, ca) = (dev.hash(), dev.ca_der());
        assert!(!dev.renew_if_due(due() - SECOND).unwrap());
        assert_eq!(dev.hash(), old);
        assert!(dev.renew_if_due(due()).unwrap());
        assert_ne!(dev.hash(), old);
        assert_eq!(dev.ca_der(), ca);
        assert!(dev.leaf().not_after() > due() + 12 * DAY);
        assert!(!dev.renew_if_due(due()).unwrap(), "once is enough");
        if stored {
            assert_eq!(load(directory.path(), due()).hash(), dev.hash());
        }
    }
}

#[test]
fn clock_set_back_renews_the_leaf() {
    let mut dev = DevCertificates::ephemeral(&[], now()).unwrap();
    let earlier = now() - DAY;
    assert!(dev.renew_if_due(earlier).unwrap());
    assert!(dev.leaf().not_before() < earlier);
}

#[test]
fn ca_is_replaced_before_a_leaf_would_outlive_it() {
    let directory = tempdir().unwrap();
    for stored in [false, true] {
        let mut dev = if stored {
            load(directory.path(), now())
        } else {
            DevCertificates::ephemeral(&[], now()).unwrap()
        };
        let ca = dev.ca_der();
        let last = now() - BACKDATED + CA_LIFETIME - LEAF_LIFETIME;
        assert!(dev.renew_if_due(last).unwrap());
        assert_eq!(dev.ca_der(), ca);
        assert!(dev.renew_if_due(last + 10 * DAY).unwrap());
        assert_ne!(dev.ca_der(), ca);
        assert!(dev.authority.accepts(dev.leaf(), &dev.names, last + 10 * DAY));
    }
    // Long after both ended.
    load(directory.path(), now() + 3 * CA_LIFETIME);
}

#[test]
fn other_names_get_another_leaf() {
    let directory = tempdir().unwrap();
    let first = load(directory.path(), now());
    let named = DevCertificates::load_or_create(directory.path(), &["a.test".into()], now()).unwrap();
    assert_ne!(first.hash(), named.hash());
    assert_eq!(first.ca_der(), named.ca_der());
    assert!(named.leaf().names().dns.contains("a.test"));
}

#[test]
fn damaged_or_foreign_leaf_is_replaced() {
    let directory = tempdir().unwrap();
    let mut hash = load(directory.path(), now()).hash();
    let other = DevCertificates::ephemeral(&[], now()).unwrap();
    let (foreign, foreign_key) = other.authority.issue(&other.names, now()).unwrap();
    let damages: [&dyn Fn(&Path); 4] = [
        &|path| fs::remove_file(path.join(LEAF_KEY)).unwrap(),
        &|path| fs::write(path.join(LEAF_CERTIFICATE), "half").unwrap(),
        // A crash between the two files of a renewal.
        &|path| fs::write(path.join(LEAF_KEY), foreign_key.serialize_pem()).unwrap(),
        // A leaf that another CA signed.
        &|path| {
            fs::write(path.join(LEAF_KEY), foreign_key.serialize_pem()).unwrap();
            fs::write(path.join(LEAF_CERTIFICATE), certificate_pem(foreign.leaf_der())).unwrap();
        },
    ];
    for damage in damages {
        damage(directory.path());
        let dev = load(directory.path(), now());
        assert_ne!(dev.hash(), hash);
        assert_ne!(dev.hash(), foreign.hash());
        hash = dev.hash();
        assert_eq!(load(directory.path(), now()).hash(), hash);
    }
}

#[test]
fn missing_ca_is_made_again_with_its_leaf() {
    let directory = tempdir().unwrap();
    let first = load(directory.path(), now());
    fs::remove_file(directory.path().join(CA_CERTIFICATE)).unwrap();
    let second = load(directory.path(), now());
    assert_ne!(first.ca_der(), second.ca_der());
    assert_ne!(first.hash(), second.hash());
}

#[test]
fn damaged_ca_is_an_error_and_stays_untouched() {
    let directory = tempdir().unwrap();
    load(directory.path(), now());
    fs::write(directory.path().join(CA_KEY), "not a key").unwrap();
    let error = DevCertificates::load_or_create(directory.path(), &[], now()).unwrap_err();
    assert!(matches!(error, DevError::DamagedAuthority { cause: PemError::NoKey { .. }, .. }), "{error}");
    assert!(error.to_string().contains("delete"), "{error}");
    assert_eq!(fs::read_to_string(directory.path().join(CA_KEY)).unwrap(), "not a key");
}

#[test]
fn path_that_is_no_directory_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = DevCertificates::load_or_create(file.path(), &[], now()).unwrap_err();
    assert!(matches!(error, DevError::Unwritable { ref path, .. } if path == file.path()), "{error}");
}

#[test]
fn processes_that_start_together_share_one_ca_and_leaf() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("certs");
    let found = std::thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(|| load(&path, now())));
        threads.map(|thread| thread.join().unwrap())
    });
    for dev in &found {
        assert_eq!((dev.hash(), dev.ca_der()), (found[0].hash(), found[0].ca_der()));
    }
}

#[cfg(unix)]
#[test]
fn keys_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = tempdir().unwrap();
    let directory = parent.path().join("certs");
    load(&directory, now());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    for name in [CA_KEY, LEAF_KEY] {
        let path = directory.join(name);
        assert_eq!(mode(&path), 0o600);
        // A careless restore is put right.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        load(&directory, now());
        assert_eq!(mode(&path), 0o600);
    }
    let mut names: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        [CA_KEY, CA_CERTIFICATE, LEAF_KEY, LEAF_CERTIFICATE, LOCK],
        "nothing else is left behind"
    );
}

#[test]
fn debug_prints_no_key() {
    let directory = tempdir().unwrap();
    let dev = load(directory.path(), now());
    let shown = format!("{dev:?} {:?}", dev.leaf());
    assert!(shown.contains(&dev.hash().to_base64()));
    for name in [CA_KEY, LEAF_KEY] {
        let pem = fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(!shown.contains(pem.lines().nth(1).unwrap()));
    }
    // Three letters of Base64 are chance: the hash itself may spell "key".
    let rest = shown.replace(&dev.hash().to_base64(), "");
    assert!(!rest.to_lowercase().contains("key"), "{shown}");
}
