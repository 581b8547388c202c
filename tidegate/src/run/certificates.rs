//! The certificates that the node serves: from files, or made for development.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tidegate_certs::{CertStore, DevCertificates};
use tidegate_transport::clock;

use crate::config::{Mode, Settings};

/// Certificates, and what a client would have to trust.
pub(super) struct Certificates {
    /// `None` where no listener needs any.
    pub(super) store: Option<Arc<CertStore>>,
    /// The development CA's certificate.
    pub(super) ca_file: Option<PathBuf>,
}

/// Files where there are some; a development certificate in `dev` otherwise.
pub(super) fn open(
    settings: &Settings,
    mode: Mode,
    certs_dir: Option<PathBuf>,
) -> anyhow::Result<Certificates> {
    let files = settings.certificate_files();
    if !files.is_empty() {
        let store = CertStore::from_files(files, clock::wall())?;
        return Ok(Certificates { store: Some(Arc::new(store)), ca_file: None });
    }
    if !mode.is_dev() {
        return Ok(Certificates { store: None, ca_file: None });
    }
    let folder = certs_dir
        .or_else(cache_folder)
        .context("there is no home folder for development certificates: name a folder with --certs-dir")?;
    let dev = DevCertificates::load_or_create(&folder, &[], clock::wall())?;
    let ca_file = dev.ca_file();
    Ok(Certificates { store: Some(Arc::new(CertStore::from_dev(dev))), ca_file })
}

/// Where `dev` keeps its CA's certificate, unless it was told another folder.
pub(crate) fn dev_ca_file() -> Option<PathBuf> {
    Some(cache_folder()?.join("ca.pem"))
}

/// `~/.cache/tidegate/dev`, or below `XDG_CACHE_HOME`.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("tidegate/dev"))
}
