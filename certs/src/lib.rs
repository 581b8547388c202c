//! Certificates of a Tidegate node: PEM files with hot reload, a development CA with short-lived leaves, a CA for the
//! nodes of a cluster, the hashes that browsers accept for WebTransport, and the TLS settings that both ends use.
//!
//! Nothing here waits, spawns or reads the clock: `now` is an argument, and a driver elsewhere polls
//! [`CertStore::refresh`] every few seconds. Calls that touch files block for as long as a small file takes.

mod certificate;
#[cfg(feature = "dev")]
mod cluster;
#[cfg(feature = "dev")]
mod dev;
mod hash;
mod pem;
mod store;
mod tls;

#[cfg(test)]
#[cfg(feature = "dev")]
mod testing;

pub use certificate::{LoadedCertificate, Names};
#[cfg(feature = "dev")]
pub use cluster::{ClusterAuthority, ClusterError, NodeCertificate};
#[cfg(feature = "dev")]
pub use dev::{DevCertificates, DevError};
pub use hash::{CertificateHash, ParseHashError};
pub use pem::{CertificateFiles, PemError, load_certificate, load_roots, roots_from_der};
pub use store::{CertStore, StoreError};
pub use tls::{
    TlsError, client_config_pinned, client_config_with_roots, crypto_provider, link_client_config,
    link_server_config, server_config,
};
