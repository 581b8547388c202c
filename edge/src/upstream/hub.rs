//! The hub: what the workers of an edge share of their links to the cores. Every worker has an ordinary link that never
//! closes; behind it, each region's partitions come and go.

mod dialer;
mod driver;
mod home;
mod machine;
mod metrics;
mod partition;
mod presence;
mod quic;
mod region;
mod status;
mod workers;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::{
    CoreFrame, EdgeFrame, Hello, HistoryRange, LinkError, Members, Publish, Recovery,
};
use tidegate_protocol::{ChannelName, NodeId, Position, Region};
use tidegate_transport::clock;
use tidegate_transport::link::{Backend, BackendFuture, EdgeLink, memory, published};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::fleet::Fleet;
use driver::{Command, Runner};
use machine::Machine;
use partition::Bounds;
use workers::{ClientSet, unavailable};

pub use dialer::{Dialer, OpenedLink, Uplink, UplinkFuture};
pub use home::HomeRules;
pub use metrics::HubMetrics;
pub use region::OpenFailure;

/// What a hub is built from. Fields beyond those of [`HubConfig::new`] have defaults that need no change.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The edge's name; its certificate must be for it.
    pub node: NodeId,
    /// Where the edge stands.
    pub region: Region,
    /// Version of the program, for people.
    pub program: String,
    /// Which region has which channel.
    pub home: HomeRules,
    /// Addresses of cores, `host:port`, by region: those to begin with, the others are found by them.
    pub regions: BTreeMap<Region, Vec<String>>,
    /// One link each.
    pub workers: usize,
    /// Frames that wait on a worker's link, in each direction.
    pub link_queue: usize,
    /// Bytes that wait for a worker beyond that; over it, the channels that publish are parked for it, and filled up from
    /// history once half of it is taken. Over twice as much (answers), nothing more is read from the worker.
    pub worker_queue: usize,
    /// Requests of one worker in one partition that are not answered yet; more are answered `Unavailable` at once.
    pub requests: usize,
    /// Their bytes.
    pub request_bytes: usize,
    /// Requests under way to one partition's owner; others wait here.
    pub in_flight: usize,
    /// Channels of one partition asked for again at once after its link was lost.
    pub resubscriptions: usize,
    /// How long a request waits where its partition has no owner that can be reached.
    pub request_wait: Duration,
    /// Requests of the backend API under way; more are refused.
    pub backend_in_flight: usize,
    /// For any of them.
    pub backend_wait: Duration,
}

impl HubConfig {
    /// With defaults fit for production.
    pub fn new(
        node: NodeId,
        region: Region,
        home: HomeRules,
        regions: BTreeMap<Region, Vec<String>>,
        workers: usize,
    ) -> Self {
        Self {
            node,
            region,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            home,
            regions,
            workers,
            link_queue: 4096,
            worker_queue: 32 << 20,
            requests: 16_384,
            request_bytes: 32 << 20,
            in_flight: 4096,
            resubscriptions: 512,
            request_wait: Duration::from_secs(5),
            backend_in_flight: 16_384,
            backend_wait: Duration::from_secs(10),
        }
    }
}

/// Why a hub could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A rule of homes names a region that there is nothing about.
    #[error("channels are at home in region {0:?}, which has no cores")]
    UnknownRegion(String),
    /// A region has no address.
    #[error("region {0:?} has no address of a core")]
    NoCores(String),
    /// None, or more than a hub can tell apart.
    #[error("a hub serves 1 to {limit} workers, not {workers}", limit = ClientSet::LIMIT - 1)]
    Workers {
        /// That many.
        workers: usize,
    },
    /// The system has no thread to give.
    #[error("the hub has no thread: {0}")]
    Thread(std::io::Error),
}

/// A running hub. Clones are the same hub.
#[derive(Debug, Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    commands: mpsc::Sender<Command>,
    fleet: Fleet,
    /// What the backend API may have in flight.
    backend: Semaphore,
    backend_wait: Duration,
    ready: Arc<AtomicBool>,
    end: CancellationToken,
    ended: watch::Receiver<bool>,
    /// Makes keys. Locked for a few nanoseconds.
    rng: Mutex<ChaCha8Rng>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Hub {
    /// Starts the hub's thread. The links are the workers', in order; they stay open until the hub is shut down.
    ///
    /// # Errors
    /// Where the configuration does not fit together, or there is no thread.
    pub fn start(
        config: HubConfig,
        dialer: Arc<dyn Dialer>,
        metrics: Arc<HubMetrics>,
    ) -> Result<(Self, Vec<EdgeLink>), HubError> {
        let (hub, links, runner, ended) = Self::build(config, dialer, metrics)?;
        std::thread::Builder::new()
            .name("hub".to_owned())
            .spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        error!(%error, "the hub has no runtime");
                        return;
                    }
                };
                tokio::task::LocalSet::new().block_on(&runtime, runner.run());
                // Whoever holds the sockets has still to say that the connections are over.
                runtime.block_on(async { tokio::time::sleep(LAST_PACKETS).await });
                ended.send_replace(true);
            })
            .map_err(HubError::Thread)?;
        Ok((hub, links))
    }

    fn build(
        config: HubConfig,
        dialer: Arc<dyn Dialer>,
        metrics: Arc<HubMetrics>,
    ) -> Result<(Self, Vec<EdgeLink>, Runner, watch::Sender<bool>), HubError> {
        if let Some(region) = config.home.regions().into_iter().find(|r| !config.regions.contains_key(*r)) {
            return Err(HubError::UnknownRegion(region.as_str().to_owned()));
        }
        if let Some((region, _)) = config.regions.iter().find(|(_, cores)| cores.is_empty()) {
            return Err(HubError::NoCores(region.as_str().to_owned()));
        }
        let workers = match u16::try_from(config.workers) {
            Ok(workers) if (1..ClientSet::LIMIT).contains(&workers) => workers,
            _ => return Err(HubError::Workers { workers: config.workers }),
        };
        let bounds = Bounds {
            requests: config.requests.max(1),
            request_bytes: config.request_bytes,
            in_flight: config.in_flight.max(1),
            resubscriptions: config.resubscriptions.max(1),
            request_wait: config.request_wait,
        };
        let mut rng = clock::rng();
        let machine_rng = rand::SeedableRng::from_rng(&mut rng);
        let now = clock::now();
        let machine = Machine::new(
            now,
            workers,
            config.home,
            config.regions,
            &bounds,
            config.worker_queue,
            machine_rng,
        );
        let (links, workers) = (0..workers).map(|_| memory(config.link_queue.max(1))).unzip();
        let (sender, commands) = mpsc::channel(COMMANDS);
        let ready = Arc::new(AtomicBool::new(false));
        let end = CancellationToken::new();
        let (ended, watch_end) = watch::channel(false);
        let fleet = Fleet::new(config.node.clone());
        let hello = Hello::new(config.node, config.region, &config.program);
        let inner = Inner {
            commands: sender,
            fleet: fleet.clone(),
            backend: Semaphore::new(config.backend_in_flight.min(Semaphore::MAX_PERMITS)),
            backend_wait: config.backend_wait,
            ready: Arc::clone(&ready),
            end: end.clone(),
            ended: watch_end,
            rng: Mutex::new(rng),
        };
        let runner = Runner { machine, dialer, hello, fleet, workers, commands, metrics, ready, end };
        Ok((Self { inner: Arc::new(inner) }, links, runner, ended))
    }

    /// What its cores say of all edges, and what this one says of itself.
    pub fn fleet(&self) -> &Fleet {
        &self.inner.fleet
    }

    /// Ends it: other edges are told that this one leaves, the workers' links close, and the connections to cores. Call once
    /// the workers are gone.
    pub async fn shutdown(&self) {
        self.inner.fleet.leave().await;
        self.inner.end.cancel();
        // An error: the thread is gone, too.
        let _ = self.inner.ended.clone().wait_for(|ended| *ended).await;
    }

    fn admit(&self, requests: usize) -> Result<SemaphorePermit<'_>, LinkError> {
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        self.inner.backend.try_acquire_many(requests).map_err(|_| {
            let message = "too many backend requests are in flight: try again".to_owned();
            LinkError { code: ErrorCode::Unavailable, message }
        })
    }

    /// Hands a question to the hub's thread.
    async fn ask(&self, frame: EdgeFrame) -> Result<oneshot::Receiver<CoreFrame>, LinkError> {
        let (answer, receiver) = oneshot::channel();
        let command = Command::Ask { frame, answer };
        self.inner.commands.send(command).await.map_err(|_| unavailable())?;
        Ok(receiver)
    }

    async fn answer(&self, frame: EdgeFrame) -> Result<CoreFrame, LinkError> {
        let _permit = self.admit(1)?;
        let answer = async { self.ask(frame).await?.await.map_err(|_| unavailable()) };
        timeout_at(self.deadline().into(), answer).await.unwrap_or_else(|_| Err(unavailable()))
    }

    async fn publish_all(
        &self,
        publishes: Vec<Publish>,
    ) -> Result<Vec<Result<Option<Position>, LinkError>>, LinkError> {
        let _permits = self.admit(publishes.len())?;
        let deadline = self.deadline();
        let mut pending = Vec::with_capacity(publishes.len());
        for mut publish in publishes {
            // So that it can be sent again wherever it got stuck.
            if publish.key.is_none() && !publish.ephemeral {
                publish.key = Some(self.random_key());
            }
            let frame = EdgeFrame::Publish { request: 0, publish };
            pending.push(
                timeout_at(deadline.into(), self.ask(frame)).await.unwrap_or_else(|_| Err(unavailable())),
            );
        }
        Ok(published(pending, deadline).await)
    }

    fn deadline(&self) -> Instant {
        clock::now() + self.inner.backend_wait
    }

    fn random_key(&self) -> String {
        let mut rng = self.inner.rng.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64())
    }
}

impl Backend for Hub {
    fn publish(
        &self,
        publishes: Vec<Publish>,
    ) -> BackendFuture<'_, Vec<Result<Option<Position>, LinkError>>> {
        Box::pin(self.publish_all(publishes))
    }

    fn history(&self, channel: ChannelName, range: HistoryRange) -> BackendFuture<'_, Recovery> {
        Box::pin(async move {
            match self.answer(EdgeFrame::History { request: 0, channel, range }).await? {
                CoreFrame::Recovered { result, .. } => result,
                _ => Err(unavailable()),
            }
        })
    }

    fn members(&self, channel: ChannelName) -> BackendFuture<'_, Members> {
        Box::pin(async move {
            match self.answer(EdgeFrame::Members { request: 0, channel }).await? {
                CoreFrame::Members { result, .. } => result,
                _ => Err(unavailable()),
            }
        })
    }

    fn status(&self) -> BackendFuture<'_, Bytes> {
        Box::pin(async move {
            let (answer, receiver) = oneshot::channel();
            self.inner.commands.send(Command::Status { answer }).await.map_err(|_| unavailable())?;
            let status = timeout_at(self.deadline().into(), receiver).await;
            status.ok().and_then(Result::ok).ok_or_else(unavailable)
        })
    }

    fn is_ready(&self) -> bool {
        self.inner.ready.load(Ordering::Relaxed)
    }
}

/// Requests of the backend API on their way to the hub's thread; those behind wait.
const COMMANDS: usize = 1024;
const LAST_PACKETS: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
