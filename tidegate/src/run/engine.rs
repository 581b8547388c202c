//! The engine that the configuration names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rand::Rng as _;
use tidegate_core::engine::{
    Engine, LocalConfig, LocalEngine, MemoryEngine, NatsConfig, NatsEngine, NatsLogin,
};
use tidegate_transport::clock;
use tracing::info;

use crate::config::{self, EngineKind, Settings};

/// Opens it: a folder is locked, servers are connected to.
pub(super) async fn open(settings: &Settings) -> anyhow::Result<Arc<dyn Engine>> {
    let partitions = settings.core.partitions;
    let epoch = clock::rng().next_u64();
    match settings.engine.kind {
        EngineKind::Memory => {
            info!(engine = "memory", partitions, "nothing outlives this process");
            // Nothing in this process reads the log again: the core keeps the history.
            Ok(Arc::new(MemoryEngine::new(epoch, partitions, 0)))
        }
        EngineKind::Local => {
            let config = local(&settings.engine.local);
            let path = config.path.clone();
            info!(engine = "local", path = %absolute(&path).display(), partitions, "opening the store");
            let opened =
                tokio::task::spawn_blocking(move || LocalEngine::open(config, partitions, epoch)).await;
            let engine = opened.context("opening the store failed")?.with_context(|| {
                format!(
                    "{}: `core.local.path` names another folder, `core.engine` another engine",
                    path.display()
                )
            })?;
            Ok(Arc::new(engine))
        }
        EngineKind::Nats => {
            let config = nats(settings);
            info!(engine = "nats", servers = config.servers.join(", "), partitions, "connecting to NATS");
            Ok(Arc::new(NatsEngine::connect(config, partitions).await?))
        }
    }
}

fn local(settings: &config::LocalEngine) -> LocalConfig {
    LocalConfig {
        retain_age: settings.retain.age,
        retain_bytes: settings.retain.bytes,
        reserve: settings.reserve,
        ..LocalConfig::new(settings.path.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_STORE)))
    }
}

fn nats(settings: &Settings) -> NatsConfig {
    let nats = &settings.engine.nats;
    let login = match (&nats.credentials_file, &nats.user, &nats.password_file, &nats.token_file) {
        (Some(file), ..) => NatsLogin::Credentials(file.clone()),
        (None, Some(user), Some(file), _) => NatsLogin::Password { user: user.clone(), file: file.clone() },
        (None, .., Some(file)) => NatsLogin::Token(file.clone()),
        _ => NatsLogin::Anonymous,
    };
    NatsConfig {
        servers: nats.servers.clone(),
        prefix: nats.prefix.clone(),
        region: settings.node.region.clone(),
        replicas: nats.replicas,
        login,
        ca: nats.ca.clone(),
        client_certificate: nats.certificate.clone().zip(nats.key.clone()),
        lease: nats.lease,
        retain_age: nats.retain.age,
        retain_bytes: nats.retain.bytes,
        ..NatsConfig::default()
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Where the program was started.
const DEFAULT_STORE: &str = "tidegate-data";
