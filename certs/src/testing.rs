//! What the tests of this crate share: certificates of any kind, files, and handshakes in memory.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::certificate::{rustls_time, since_epoch};
use crate::pem::CertificateFiles;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A moment in 2027, far from the machine's own clock.
pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A self-signed certificate, valid from a day before [`now`] to 30 days after.
pub(crate) struct SelfSigned {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

pub(crate) fn self_signed(names: &[&str]) -> SelfSigned {
    self_signed_between(names, now() - DAY, now() + 30 * DAY)
}

pub(crate) fn self_signed_between(
    names: &[&str],
    not_before: SystemTime,
    not_after: SystemTime,
) -> SelfSigned {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(not_before);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(not_after);
    let certificate = params.self_signed(&key).unwrap();
    SelfSigned {
        certificate: certificate.der().clone(),
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
    }
}

impl SelfSigned {
    /// Writes `<stem>.pem` and `<stem>-key.pem`.
    pub(crate) fn write(&self, directory: &Path, stem: &str) -> CertificateFiles {
        let files = CertificateFiles {
            certificate: directory.join(format!("{stem}.pem")),
            key: directory.join(format!("{stem}-key.pem")),
        };
        fs::write(&files.certificate, &self.certificate_pem).unwrap();
        fs::write(&files.key, &self.key_pem).unwrap();
        files
    }
}

/// Both ends of one connection.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) client: Connection,
    pub(crate) server: Connection,
}

/// A whole handshake in memory, with both clocks at `at`; the first error of either end.
pub(crate) fn handshake(
    mut server: ServerConfig,
    mut client: ClientConfig,
    name: &str,
    at: SystemTime,
) -> Result<Pair, rustls::Error> {
    client.time_provider = Arc::new(FixedTime(rustls_time(at)));
    server.time_provider = Arc::new(FixedTime(rustls_time(at)));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut pair = Pair {
        client: ClientConnection::new(Arc::new(client), name)?.into(),
        server: ServerConnection::new(Arc::new(server))?.into(),
    };
    while pair.client.is_handshaking() || pair.server.is_handshaking() {
        assert!(pair.client.wants_write() || pair.server.wants_write(), "the handshake stands still");
        pair.exchange()?;
    }
    // What the server sends after its end of the handshake: tickets, if there were any.
    pair.exchange()?;
    Ok(pair)
}

impl Pair {
    /// Sends a text through the connection and reads it at the other end.
    pub(crate) fn carry(&mut self, text: &str) -> String {
        self.client.writer().write_all(text.as_bytes()).unwrap();
        self.exchange().unwrap();
        let mut read = vec![0; text.len()];
        self.server.reader().read_exact(&mut read).unwrap();
        String::from_utf8(read).unwrap()
    }

    /// The leaf that the client was shown.
    pub(crate) fn leaf(&self) -> CertificateDer<'static> {
        self.client.peer_certificates().unwrap()[0].clone().into_owned()
    }

    fn exchange(&mut self) -> Result<(), rustls::Error> {
        transfer(&mut self.client, &mut self.server)?;
        transfer(&mut self.server, &mut self.client)
    }
}

fn transfer(from: &mut Connection, to: &mut Connection) -> Result<(), rustls::Error> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut rest = wire.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

#[derive(Debug)]
struct FixedTime(UnixTime);

impl TimeProvider for FixedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}
