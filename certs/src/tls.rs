//! TLS settings of both ends: TLS 1.3 only, one provider. Servers keep nothing for connections that are over; clients keep
//! the tickets of a few servers.

mod link;
mod pinned;
mod verifier;

use std::sync::Arc;

use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};

use crate::hash::CertificateHash;
use crate::store::CertStore;

use self::link::OfCluster;
use self::pinned::Pinned;
use self::verifier::Verifier;

/// aws-lc, with AES-128 first: it is what QUIC begins with anyway, the cheapest per byte with AES
/// instructions, and browsers ask for it first too. Clients without such instructions ask for ChaCha20 and
/// get it: their order decides.
///
/// Passed explicitly everywhere, since another crate in the build may bring a second provider, and rustls
/// then has no default.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..default_provider()
    })
}

/// TLS for a listener of the gateway: certificates from `store`, no client certificates.
///
/// `alpn` in order of preference: `h2`, `http/1.1` on TCP; `tidegate/1`, `h3` on QUIC. No session tickets,
/// no session store, no early data: the edge adds tickets of its fleet's keys.
pub fn server_config(store: Arc<CertStore>, alpn: &[&[u8]]) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites and key exchanges")
        .with_no_client_auth()
        .with_cert_resolver(store);
    finish_server(&mut config, alpn);
    config
}

/// TLS for a node that other nodes dial: its certificate from `store`, and nobody without one of the CA's in `roots`.
///
/// # Errors
/// When there is no root: nobody could connect.
pub fn link_server_config(
    store: Arc<CertStore>,
    roots: RootCertStore,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
        .build()
        .map_err(|_| TlsError::NoRoots)?;
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites and key exchanges")
        .with_client_cert_verifier(clients)
        .with_cert_resolver(store);
    finish_server(&mut config, alpn);
    Ok(config)
}

/// TLS for a node that dials others: its certificate from `store`, trust in the CA's in `roots` alone. Names are not
/// checked here: the dialer compares the certificate's with the name that the other node gives itself.
///
/// # Errors
/// When there is no root: such a node could connect to nobody.
pub fn link_client_config(
    store: Arc<CertStore>,
    roots: RootCertStore,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let mut config = client_builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(OfCluster { roots })))
        .with_client_cert_resolver(store);
    config.alpn_protocols = owned(alpn);
    // A resumed handshake would not look at certificates again.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// TLS for a client that trusts what these roots signed, and checks the server's name.
///
/// Whoever dials again with the same settings resumes where the server gave a ticket: without a signature, and without
/// another look at the certificate. A ticket is shown once, to a server of the name that it came from; eight names are
/// remembered, in memory alone. No early data.
///
/// # Errors
/// When there is no root: such a client could connect to nobody.
pub fn client_config_with_roots(
    roots: impl Into<Arc<RootCertStore>>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let roots = roots.into();
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    Ok(finish_client(client_builder().with_root_certificates(roots), alpn))
}

/// TLS for a client that accepts exactly the certificates with these hashes, while they are valid.
///
/// The hash stands in for CA and name, as with a browser's `serverCertificateHashes`; the server still proves
/// that it holds the certificate's key. Resumes as [`client_config_with_roots`] does.
///
/// # Errors
/// When there is no hash: such a client could connect to nobody.
pub fn client_config_pinned(
    hashes: impl IntoIterator<Item = CertificateHash>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let verifier = Verifier::new(Pinned::new(hashes).ok_or(TlsError::NoHashes)?);
    let builder = client_builder().dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Ok(finish_client(builder, alpn))
}

/// Why a TLS configuration would be useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// No root certificates.
    #[error("no root certificates given: name the CA that signed the server's certificate")]
    NoRoots,
    /// No hashes.
    #[error(
        "no certificate hash given: take it from the server's start message or `openssl x509 -fingerprint -sha256`"
    )]
    NoHashes,
}

fn client_builder() -> ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites and key exchanges")
}

fn finish_server(config: &mut ServerConfig, alpn: &[&[u8]]) {
    config.alpn_protocols = owned(alpn);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
}

fn finish_client(builder: ConfigBuilder<ClientConfig, WantsClientCert>, alpn: &[&[u8]]) -> ClientConfig {
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = owned(alpn);
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    config
}

fn owned(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

/// That a client remembers: eight servers' tickets, the last eight of each.
const SESSIONS: usize = 64;

#[cfg(test)]
#[cfg(feature = "dev")]
mod tests;
