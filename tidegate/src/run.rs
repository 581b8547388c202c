//! Runs a gateway: what `dev` and `serve` share, from settings to an orderly end.

mod api;
mod banner;
mod certificates;
mod logging;
mod node;
mod signals;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use prometheus_client::registry::Registry;
use tidegate_certs::CertStore;
use tidegate_edge::auth::Authenticator;
use tidegate_edge::resume::TicketKeys;
use tidegate_fallback::http::OriginPolicy;
use tidegate_transport::clock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::config::{self, Loaded, Mode, Problems};
use crate::demo::{self, Demo};

pub(crate) use self::certificates::dev_ca_file;

use self::api::{Api, Readiness};
use self::node::Parts;
use self::signals::{Signal, Signals};

/// Runs until a signal ends it.
pub(crate) fn blocking(loaded: Loaded, certs_dir: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
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

    let certificates = certificates::open(&settings, mode, certs_dir)?;
    let authenticator = Arc::new(Authenticator::new(settings.auth().map_err(|problem| anyhow!(problem))?)?);
    let tickets = settings.ticket_keys()?.map(Arc::new);
    let page = (mode == Mode::Dev).then(Demo::default);
    let mut registry = Registry::default();
    let parts = Parts {
        certificates: certificates.store.clone(),
        authenticator: Arc::clone(&authenticator),
        tickets: tickets.clone(),
        origins: OriginPolicy::new(&settings.auth.origins)?,
        routes: page.as_ref().map(demo::routes),
        api_keys: settings.api_keys()?,
    };

    // The API first: a probe is answered from the beginning, and says that the node is not ready.
    let readiness = Arc::new(Readiness::default());
    let api = match settings.listen.api {
        Some(address) => Some(Api::bind(address, &settings, Arc::clone(&readiness))?),
        None => None,
    };
    let node = node::start(&settings, parts, &mut registry).await?;
    let api_address = api.as_ref().map(Api::address);
    let api = api.map(|api| api.serve(node.backend(), registry));
    if let (Some(page), Some(store)) = (&page, &certificates.store) {
        page.fill(node.addresses(), api_address, Arc::clone(store));
    }
    readiness.set(true);
    info!(
        file = file.map(|file| file.display().to_string()),
        addresses = ?node.addresses(),
        api = ?api_address,
        "ready"
    );
    if mode == Mode::Dev {
        let text = banner::text(&settings, node.addresses(), api_address, certificates.ca_file.as_deref());
        // Nobody may be reading; that is no reason not to serve.
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }

    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    let refresher = Refresher { store: certificates.store, authenticator, tickets };
    tasks.spawn(refresher.clone().every(REFRESH, stop.clone()));
    loop {
        match signals.next().await {
            Signal::Reload => refresher.reload(),
            Signal::End(name) => {
                info!(signal = name, "ending; once more ends at once");
                break;
            }
        }
    }

    readiness.set(false);
    let end = async {
        node.shutdown(settings.limits.shutdown).await;
        if let Some(api) = api {
            api.shutdown().await;
        }
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    };
    tokio::select! {
        () = end => info!("ended"),
        () = signals.again() => warn!("ended at once: sessions were cut"),
    }
    Ok(())
}

/// Reads certificates, key sets and ticket keys again.
#[derive(Clone)]
struct Refresher {
    store: Option<Arc<CertStore>>,
    authenticator: Arc<Authenticator>,
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
        if let Some(store) = &self.store {
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
        if let Some(store) = &self.store {
            match store.reload(clock::wall()) {
                Ok(()) => info!(certificate = %store.hash(), "certificates read again"),
                Err(problem) => error!(%problem, "certificates cannot be used; the old ones stay"),
            }
        }
        self.refresh_keys();
    }

    fn refresh_keys(&self) {
        let refresh = self.authenticator.refresh();
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

/// Often enough for people, rarely enough to cost nothing.
const REFRESH: Duration = Duration::from_secs(5);
