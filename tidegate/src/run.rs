//! Runs a node: what `dev`, `serve`, `edge` and `core` share, from settings to an orderly end.

mod api;
mod backend;
mod banner;
mod certificates;
mod core;
mod drain;
mod edge;
mod engine;
mod fleet;
mod handover;
mod links;
mod logging;
mod node;
mod served;
mod signals;
mod status;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use prometheus_client::registry::Registry;
use rand::Rng as _;
use tidegate_certs::CertStore;
use tidegate_core::{BackendAccess, BackendApi, BackendConfig};
use tidegate_edge::Sockets;
use tidegate_edge::auth::Authenticator;
use tidegate_edge::resume::{KEY_BYTES, TicketKeys};
use tidegate_fallback::http::OriginPolicy;
use tidegate_transport::clock;
use tidegate_transport::link::Backend;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::config::{self, Loaded, Mode, Problems, Settings};
use crate::demo::{self, Demo};

pub(crate) use self::certificates::dev_ca_file;

use self::api::{Api, Readiness};
use self::backend::NodeBackend;
use self::certificates::Certificates;
use self::edge::Parts;
use self::handover::{Door, Estate, Predecessor};
use self::links::Identity;
use self::node::Node;
use self::served::{Served, leave};
use self::signals::Signals;
use self::status::Facts;

/// Runs until a signal ends it.
pub(crate) fn blocking(loaded: Loaded, certs_dir: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if loaded.mode == Mode::Core {
        builder.worker_threads(loaded.settings.core_threads().get());
    }
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    let ended = runtime.block_on(run(loaded, certs_dir));
    // A file that cannot be read to its end (a network's, a pipe) must not hold up the end of the process.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}

/// Checks, starts, serves, ends.
async fn run(loaded: Loaded, certs_dir: Option<PathBuf>) -> anyhow::Result<()> {
    let problems = config::check(&loaded, clock::wall());
    if !problems.is_empty() {
        return Err(Problems(problems).into());
    }
    let Loaded { settings, mode, file, .. } = loaded;
    logging::start(&settings.log)?;
    // Before anything is bound: from here on a signal is an orderly end.
    let mut signals = Signals::listen()?;

    let identity = mode.is_clustered().then(|| Identity::open(&settings)).transpose()?;
    let (predecessor, estate) = tokio::select! {
        asked = ask(&settings, mode) => asked?,
        () = signals.end() => return Ok(()),
    };
    let takes_over = predecessor.is_some();
    let Estate { listeners, api: inherited_api, secret, before } = estate;
    let clients = mode.has_edge().then(|| Clients::open(&settings, mode, certs_dir, secret)).transpose()?;
    let page = mode.is_dev().then(Demo::default);
    let parts = match &clients {
        Some(clients) => {
            let sockets = edge::open(&settings.edge(), &clients.tickets, listeners)?;
            Some(clients.parts(&settings, page.as_ref(), sockets, takes_over)?)
        }
        None => None,
    };
    let mut registry = Registry::default();

    // The API first: a probe is answered from the beginning, and says that the node is not ready.
    let readiness = Arc::new(Readiness::default());
    let api = match settings.listen.api {
        Some(address) => Some(Api::bind(address, &settings, Arc::clone(&readiness), inherited_api)?),
        None => None,
    };
    // Who owns channels can start only after the other has ended; what comes meanwhile waits in the sockets.
    let predecessor = match (predecessor, &parts) {
        (Some(predecessor), Some(parts)) if mode.has_core() => {
            parts.sockets.handover().attach()?;
            predecessor.take().await?;
            info!("waiting for the process before to end");
            tokio::select! {
                () = predecessor.ended() => None,
                () = signals.end() => return Ok(()),
            }
        }
        (predecessor, _) => predecessor,
    };
    let node = tokio::select! {
        started = Node::start(&settings, mode, identity.as_ref(), parts, &mut registry) => started?,
        // An engine that is out of reach may hold the start up for long.
        () = signals.end() => {
            info!("ended before the start was done");
            return Ok(());
        }
    };
    let backend: Arc<dyn Backend> =
        Arc::new(NodeBackend::new(node.backend(), Facts::new(&settings, mode), node.fleet().cloned()));
    let api_address = api.as_ref().map(Api::address);
    if let Some(predecessor) = predecessor {
        tokio::select! {
            ready = until_ready(&*backend) => ready?,
            () = signals.end() => return Ok(()),
        }
        node.take_over()?;
        predecessor.take().await?;
    } else if takes_over {
        node.take_over()?;
    }
    let api = match api {
        Some(api) => {
            let answers = BackendApi::new(Arc::clone(&backend), backend_config(&settings)?);
            Some(api.serve(answers, Arc::clone(&backend), node.desk(), registry))
        }
        None => None,
    };
    let client_certificates = clients.as_ref().and_then(|clients| clients.certificates.store.clone());
    if let (Some(page), Some(store)) = (&page, &client_certificates) {
        page.fill(node.addresses(), api_address, Arc::clone(store));
    }
    let door = match &settings.node.handover {
        Some(path) if mode.has_edge() => {
            Some(Door::open(path).with_context(|| format!("cannot listen at {}", path.display()))?)
        }
        _ => None,
    };
    readiness.set(true);
    info!(
        command = mode.command(),
        node = settings.node_name(),
        file = file.map(|file| file.display().to_string()),
        addresses = ?node.addresses(),
        api = ?api_address,
        "ready"
    );
    if mode.is_dev() {
        let ca_file = clients.as_ref().and_then(|clients| clients.certificates.ca_file.as_deref());
        let text = banner::text(&settings, node.addresses(), api_address, ca_file);
        // Nobody may be reading; that is no reason not to serve.
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }

    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    let stores = client_certificates.into_iter().chain(identity.map(|identity| identity.store));
    let secret = clients.as_ref().and_then(|clients| clients.secret);
    let refresher = Refresher {
        stores: stores.collect(),
        authenticator: clients.as_ref().map(|clients| Arc::clone(&clients.authenticator)),
        tickets: clients.map(|clients| clients.tickets),
    };
    tasks.spawn(refresher.clone().every(REFRESH, stop.clone()));
    let served = Served::new(&node, api.as_ref(), secret, before);
    let successor = served.until_the_end(&mut signals, &refresher, door.as_ref()).await?;

    readiness.set(false);
    match (&successor, door) {
        (Some(_), door) => {
            // Its place is the successor's.
            drop(door);
            leave(&node, api.as_ref(), &mut signals, settings.limits.shutdown).await;
        }
        (None, Some(door)) => door.close(),
        (None, None) => {}
    }
    let strays = node.strays();
    let is_replaced = successor.is_some();
    let end = async {
        if !is_replaced {
            node.move_elsewhere(settings.limits.shutdown).await;
        }
        let end_api = async {
            drop(backend);
            if let Some(api) = api {
                api.shutdown().await;
            }
        };
        node.shutdown(settings.limits.shutdown, end_api).await;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    };
    tokio::select! {
        () = end => info!(workers = strays.of_workers(), processes = strays.of_processes(), "ended"),
        () = signals.end() => warn!("ended at once: sessions were cut"),
    }
    // Its end tells the successor of ours.
    drop(successor);
    Ok(())
}

/// Asks the process that serves, if there is one, for what it has. A core alone has nothing that could be taken.
async fn ask(settings: &Settings, mode: Mode) -> anyhow::Result<(Option<Predecessor>, Estate)> {
    let asked = match &settings.node.handover {
        Some(path) if mode.has_edge() => Predecessor::ask(path).await?,
        _ => None,
    };
    Ok(asked.map_or_else(Default::default, |(predecessor, estate)| (Some(predecessor), estate)))
}

/// Who takes over must be able to serve: until it is, the other process does.
async fn until_ready(backend: &dyn Backend) -> anyhow::Result<()> {
    let ready = async {
        while !backend.is_ready() {
            tokio::time::sleep(READY_PROBE).await;
        }
    };
    let waited = tokio::time::timeout(READY, ready).await;
    waited.ok().with_context(|| format!("not ready within {READY:?}: the process before goes on"))
}

/// What clients are let in by.
struct Clients {
    certificates: Certificates,
    authenticator: Arc<Authenticator>,
    tickets: Arc<TicketKeys>,
    /// What those were made from, where no files hold any.
    secret: Option<[u8; KEY_BYTES]>,
}

impl Clients {
    /// `secret`: of the process before.
    fn open(
        settings: &Settings,
        mode: Mode,
        certs_dir: Option<PathBuf>,
        secret: Option<[u8; KEY_BYTES]>,
    ) -> anyhow::Result<Self> {
        let (tickets, secret) = match settings.ticket_keys()? {
            Some(tickets) => (tickets, None),
            None => {
                let secret = secret.unwrap_or_else(random);
                (TicketKeys::of(&secret), Some(secret))
            }
        };
        Ok(Self {
            certificates: certificates::open(settings, mode, certs_dir)?,
            authenticator: Arc::new(Authenticator::new(
                settings.auth().map_err(|problem| anyhow!(problem))?,
            )?),
            tickets: Arc::new(tickets),
            secret,
        })
    }

    fn parts(
        &self,
        settings: &Settings,
        page: Option<&Demo>,
        sockets: Sockets,
        waits: bool,
    ) -> anyhow::Result<Parts> {
        Ok(Parts {
            certificates: self.certificates.store.clone(),
            authenticator: Arc::clone(&self.authenticator),
            tickets: Arc::clone(&self.tickets),
            origins: OriginPolicy::new(&settings.auth.origins)?,
            routes: page.map(demo::routes),
            sockets,
            waits,
        })
    }
}

fn backend_config(settings: &Settings) -> anyhow::Result<BackendConfig> {
    let keys = settings.api_keys()?;
    let access = if keys.is_empty() {
        BackendAccess::Open
    } else {
        // Only what is text can be sent in a header.
        let texts = keys.iter().map(|key| String::from_utf8(key.expose().to_vec()));
        BackendAccess::Keys(texts.collect::<Result<_, _>>().ok().context("a key in [api] is not text")?)
    };
    Ok(BackendConfig {
        access,
        max_body: settings.api.body,
        body_timeout: settings.api.body_timeout,
        max_batch: settings.api.batch,
        ..BackendConfig::default()
    })
}

/// Reads certificates, key sets and ticket keys again.
#[derive(Clone)]
struct Refresher {
    /// What clients see, and what other nodes do.
    stores: Vec<Arc<CertStore>>,
    /// `None` where no client connects.
    authenticator: Option<Arc<Authenticator>>,
    tickets: Option<Arc<TicketKeys>>,
}

impl Refresher {
    /// Looks for changes until it is stopped. Files are read on a thread that may block.
    async fn every(self, period: Duration, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let this = self.clone();
            let refreshed = tokio::task::spawn_blocking(move || this.refresh());
            if let Some(Err(_)) = stop.run_until_cancelled(refreshed).await {
                error!("looking for new certificates failed");
            }
        }
    }

    fn refresh(&self) {
        for store in &self.stores {
            match store.refresh(clock::wall()) {
                Ok(true) => info!(certificate = %store.hash(), "serving new certificates"),
                Ok(false) => {}
                Err(problem) => error!(%problem, "new certificates cannot be used; the old ones stay"),
            }
        }
        self.refresh_keys();
    }

    /// An operator's request: also what did not change is read, and the result is told.
    fn reload(&self) {
        for store in &self.stores {
            match store.reload(clock::wall()) {
                Ok(()) => info!(certificate = %store.hash(), "certificates read again"),
                Err(problem) => error!(%problem, "certificates cannot be used; the old ones stay"),
            }
        }
        self.refresh_keys();
    }

    fn refresh_keys(&self) {
        let Some(authenticator) = &self.authenticator else { return };
        let refresh = authenticator.refresh();
        if refresh.changed {
            info!("token keys read again");
        }
        for problem in refresh.problems {
            error!(%problem, "token keys cannot be used; the old ones stay");
        }
        let Some(tickets) = &self.tickets else { return };
        let refresh = tickets.refresh();
        if refresh.changed {
            info!("ticket keys read again");
        }
        for problem in refresh.problems {
            error!(%problem, "ticket keys cannot be used; the old ones stay");
        }
    }
}

fn random() -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    clock::rng().fill_bytes(&mut bytes);
    bytes
}

/// For a process that takes over to reach its cores.
const READY: Duration = Duration::from_secs(30);
const READY_PROBE: Duration = Duration::from_millis(20);
/// Often enough for people, rarely enough to cost nothing.
const REFRESH: Duration = Duration::from_secs(5);
