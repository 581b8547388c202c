//! An edge: its workers, their listeners, and its end.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ServerConfig;
use tidegate_fallback::http::OriginPolicy;
use tidegate_protocol::session::resume::{Bounds, SpentTable};
use tidegate_protocol::session::server::Settings;
use tidegate_transport::clock;
use tidegate_transport::link::EdgeLink;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::auth::Authenticator;
use crate::config::Config;
use crate::door::Door;
use crate::drain::DrainControl;
use crate::fleet::Fleet;
use crate::listener::{self, Handover, ListenError, Sockets, WorkerSockets};
use crate::metrics::Metrics;
use crate::plans::Plans;
use crate::resume::TicketKeys;
use crate::sessions::Sessions;
use crate::upstream::{self, Upstream};
use crate::worker::{Command, Routes, Shared, Worker};

/// What an edge is built from, beside its [`Config`].
#[expect(missing_debug_implementations, reason = "holds TLS keys and closures")]
pub struct Parts {
    /// TLS for TCP (ALPN `h2`, `http/1.1`) and for QUIC (ALPN `tidegate/1`, `h3`), in this order.
    pub tls: Option<(Arc<ServerConfig>, Arc<ServerConfig>)>,
    /// Checks tokens.
    pub authenticator: Arc<Authenticator>,
    /// Seals and opens resume tickets, and what else the fleet shares is made from it; `None`: with a key that only this
    /// process has.
    pub tickets: Option<Arc<TicketKeys>>,
    /// Which pages may connect.
    pub origins: OriginPolicy,
    /// Answers what the edge does not know.
    pub routes: Option<Routes>,
    /// One link to the core for each worker.
    pub links: Vec<EdgeLink>,
    /// What it listens with, opened with the same [`Config`]; `None`: it is opened here.
    pub sockets: Option<Sockets>,
    /// Whether TCP connections wait for [`EdgeNode::take_over`].
    pub waits: bool,
}

/// Where an edge listens.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// UDP: QUIC and WebTransport.
    pub quic: Option<SocketAddr>,
    /// TCP with TLS.
    pub tls: Option<SocketAddr>,
    /// TCP without TLS.
    pub plain: Option<SocketAddr>,
    /// UDP: HTTP/3.
    pub http3: Option<SocketAddr>,
}

/// A running edge.
#[derive(Debug)]
pub struct EdgeNode {
    addresses: Addresses,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
    abort: CancellationToken,
    open: CancellationToken,
    handed_over: CancellationToken,
    handover: Mutex<Handover>,
    workers: Vec<Running>,
    sessions: Sessions,
    door: Door,
    plans: Plans,
}

#[derive(Debug)]
struct Running {
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl EdgeNode {
    /// Opens every listener that is not, then starts the workers.
    ///
    /// # Errors
    /// Where there are too many workers, or a socket cannot be had: which one, and why.
    ///
    /// # Panics
    /// Where `parts.links` does not hold one link for each worker.
    pub fn start(config: Config, parts: Parts) -> Result<Self, ListenError> {
        let count = config.workers.get();
        config.check_workers()?;
        assert_eq!(parts.links.len(), count, "one link for each worker");
        let metrics = Arc::new(Metrics::default());
        let tickets = parts.tickets.unwrap_or_else(|| Arc::new(TicketKeys::random(&mut clock::rng())));
        let keys = tickets.shared();
        let sockets = match parts.sockets {
            Some(sockets) => sockets,
            None => Sockets::open(&config, keys.id_key(config.node.as_str()), Handover::default())?,
        };
        let Sockets { addresses, handover, workers: sockets } = sockets;
        let sockets =
            listener::prepare(&config, parts.tls.as_ref(), sockets, &handover, keys, &metrics.strays)?;
        let door = Door::new(config.admission.clone(), keys, &config.node);
        let (open, handed_over) = (CancellationToken::new(), CancellationToken::new());
        if !parts.waits {
            open.cancel();
        }
        let plans = Plans::new(config.node.clone(), config.alternatives.clone(), clock::rng());
        let drain = CancellationToken::new();
        let abort = CancellationToken::new();
        let (commands, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(COMMANDS)).unzip();
        let shared = Arc::new(Shared {
            settings: Arc::new(settings(&config)),
            config,
            authenticator: parts.authenticator,
            tickets,
            plans: plans.clone(),
            spent: Mutex::new(SpentTable::new(Bounds { sessions: SPENT_HERE })),
            door: door.clone(),
            origins: parts.origins,
            routes: parts.routes,
            alt_svc: addresses.http3.map(|address| listener::alt_svc(address.port())),
            metrics: Arc::clone(&metrics),
            connections: Arc::new(AtomicUsize::new(0)),
            workers: commands,
            open: open.clone(),
            handed_over: handed_over.clone(),
            drain: drain.clone(),
            long_polls: watch::Sender::new(0),
        });
        // Where a thread cannot be had, dropping the node ends those before it.
        let sessions = Sessions::new(Arc::clone(&shared));
        let handover = Mutex::new(handover);
        let workers = Vec::with_capacity(count);
        let mut node = Self {
            addresses,
            metrics,
            drain,
            abort,
            open,
            handed_over,
            handover,
            workers,
            sessions,
            door,
            plans,
        };
        let ends = sockets.into_iter().zip(parts.links).zip(inboxes);
        for (index, ((sockets, link), inbox)) in (0..=u8::MAX).zip(ends) {
            let (end, ended) = oneshot::channel();
            let shared = Arc::clone(&shared);
            let abort = node.abort.clone();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    run(index, shared, sockets, link, inbox, &abort);
                    // Nobody waits where the node itself was dropped.
                    let _ = end.send(());
                })
                .map_err(ListenError::Thread)?;
            node.workers.push(Running { thread, ended });
        }
        info!(workers = count, addresses = ?node.addresses, "edge serves");
        Ok(node)
    }

    /// Where it listens; ports that were 0 are known here.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Who comes in.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Its counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The listeners for the next process, which says when it takes over: nothing changes here until then.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn handover(&self) -> io::Result<Handover> {
        self.held().try_clone()
    }

    /// New connections come here from now on: TCP connections too, where [`Parts::waits`] held them back. Nothing where
    /// this process has handed over itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_over(&self) -> Result<(), ListenError> {
        let held = self.held();
        if !self.handed_over.is_cancelled() {
            held.attach()?;
            self.open.cancel();
        }
        Ok(())
    }

    /// A process before this one has ended, which had these generations of connection ids: no packet goes to it any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget(&self, quic: Option<u8>, http3: Option<u8>) -> Result<(), ListenError> {
        let mut held = self.held();
        let Handover { quic: first, http3: second, .. } = &mut *held;
        for (group, generation) in [(first, quic), (second, http3)] {
            if let (Some(group), Some(generation)) = (group, generation) {
                group.forget(generation);
            }
        }
        if self.handed_over.is_cancelled() { Ok(()) } else { held.attach() }
    }

    /// Another process accepts connections from now on. Those that are here stay, until [`EdgeNode::shutdown`].
    pub fn hand_over(&self) {
        // Under the lock: nothing is attached here afterwards.
        let _held = self.held();
        self.handed_over.cancel();
    }

    fn held(&self) -> MutexGuard<'_, Handover> {
        // Nothing panics halfway while it is locked.
        self.handover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves its sessions to other nodes of `fleet`, and takes in theirs. One is enough: each would answer the others.
    pub fn drain_control(&self, fleet: Fleet) -> DrainControl {
        DrainControl::new(self.sessions.clone(), self.door.clone(), fleet, self.drain.clone())
    }

    /// What its clients are told of when and where to come back: of use once [`Plans::run`] follows the fleet.
    pub fn plans(&self) -> &Plans {
        &self.plans
    }

    /// Ends in order: admits nobody, tells every client, waits for them for `grace`, then ends what is left.
    pub async fn shutdown(mut self, grace: Duration) {
        self.drain.cancel();
        let deadline = tokio::time::sleep(grace);
        tokio::pin!(deadline);
        for worker in std::mem::take(&mut self.workers) {
            let Running { thread, mut ended } = worker;
            tokio::select! {
                _ = &mut ended => {}
                () = &mut deadline, if !self.abort.is_cancelled() => {
                    self.abort.cancel();
                    let _ = ended.await;
                }
            }
            if thread.join().is_err() {
                error!("a worker panicked");
            }
        }
    }
}

impl Drop for EdgeNode {
    /// Without [`EdgeNode::shutdown`]: at once, and nobody waits for it.
    fn drop(&mut self) {
        self.drain.cancel();
        self.abort.cancel();
    }
}

pub(crate) fn settings(config: &Config) -> Settings {
    let limits = &config.limits;
    Settings {
        node: config.node.clone(),
        region: config.region.clone(),
        namespaces: config.namespaces.clone(),
        anonymous: config.anonymous,
        connect_timeout: limits.connect,
        ping: limits.ping,
        pong: limits.pong,
        max_subscriptions: limits.subscriptions,
        max_requests: limits.requests,
        max_payload: limits.payload,
        max_token: limits.token,
        tickets: config.resume.map(|resume| resume.lifetime),
        grace: config.resume.unwrap_or_default().grace,
        resume_wait: RESUME_WAIT,
    }
}

/// A worker's thread.
fn run(
    index: u8,
    shared: Arc<Shared>,
    sockets: WorkerSockets,
    link: EdgeLink,
    inbox: mpsc::Receiver<Command>,
    abort: &CancellationToken,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "a worker has no runtime");
            return;
        }
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let worker = Rc::new(Worker::new(index, Arc::clone(&shared)));
        worker.attach(Upstream::new(Arc::clone(&link.sender)));
        let background = [
            tokio::task::spawn_local(upstream::receive(Rc::clone(&worker), link)),
            tokio::task::spawn_local({
                let worker = Rc::clone(&worker);
                async move { worker.upstream().run().await }
            }),
            tokio::task::spawn_local(listener::serve_commands(Rc::clone(&worker), inbox)),
        ];
        let listeners = listener::serve(&worker, sockets);
        shared.drain.cancelled().await;
        worker.end_all().await;
        worker.tracker().close();
        tokio::select! {
            () = worker.tracker().wait() => {}
            () = abort.cancelled() => {}
        }
        listeners.close().await;
        for task in background {
            task.abort();
        }
        worker.clear();
    });
}

/// Long polls on their way to their worker; beyond it the poll is answered 503.
const COMMANDS: usize = 1024;
/// For the core to say whether a ticket is spent; then this process decides by what it knows itself.
const RESUME_WAIT: Duration = Duration::from_secs(2);
/// Sessions of which this process remembers spent tickets; beyond it, none more is honoured without the core.
pub(crate) const SPENT_HERE: usize = 65_536;
