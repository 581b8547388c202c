//! What a node shows to other nodes, and believes them by.

use std::sync::Arc;

use anyhow::Context as _;
use tidegate_certs::{CertStore, CertificateFiles, link_client_config, link_server_config, load_roots};
use tidegate_transport::clock;
use tidegate_transport::link::quic::{ALPN_LINK, LinkConfig, LinkDialer, LinkListener};

use crate::config::Settings;

/// This node's certificate, and the cluster's CA.
pub(super) struct Identity {
    /// Read again when its files change: new links use it.
    pub(super) store: Arc<CertStore>,
    roots: std::path::PathBuf,
}

impl Identity {
    pub(super) fn open(settings: &Settings) -> anyhow::Result<Self> {
        let cluster = &settings.cluster;
        let missing = "links between nodes need `cluster.ca`, `cluster.certificate` and `cluster.key`";
        let (Some(roots), Some(certificate), Some(key)) =
            (cluster.ca.clone(), cluster.certificate.clone(), cluster.key.clone())
        else {
            anyhow::bail!(missing);
        };
        let store = CertStore::from_files(vec![CertificateFiles { certificate, key }], clock::wall())?;
        Ok(Self { store: Arc::new(store), roots })
    }

    /// Listens for links on the runtime that this is called in.
    pub(super) fn listen(&self, settings: &Settings) -> anyhow::Result<LinkListener> {
        let tls = link_server_config(Arc::clone(&self.store), load_roots(&self.roots)?, &[ALPN_LINK])?;
        let address = settings.cluster.listen;
        LinkListener::bind(address, Arc::new(tls), config(settings)).with_context(|| {
            format!("cannot listen on UDP {address} for links; choose another address with `cluster.listen`")
        })
    }

    pub(super) fn dialer(&self, settings: &Settings) -> anyhow::Result<LinkDialer> {
        let tls = link_client_config(Arc::clone(&self.store), load_roots(&self.roots)?, &[ALPN_LINK])?;
        Ok(LinkDialer::new(Arc::new(tls), config(settings))?)
    }
}

fn config(settings: &Settings) -> LinkConfig {
    let link = &settings.cluster.link;
    LinkConfig {
        idle_timeout: link.idle_timeout,
        keep_alive: link.heartbeat,
        send_queue: link.queue,
        ..LinkConfig::default()
    }
}
