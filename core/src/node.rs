//! A core node: its partitions, its links, and how it begins, alone or as one of several.

pub(crate) mod cluster;
#[cfg(any(test, feature = "conformance"))]
#[doc(hidden)]
pub mod conformance;
mod fleet;
pub(crate) mod lease;
mod listen;
mod requests;
pub(crate) mod restore;
pub(crate) mod slot;
mod status;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tidegate_protocol::link::LinkName;
use tidegate_protocol::link::drain::DrainQuestion;
use tidegate_protocol::link::fleet::FleetEntry;
use tidegate_protocol::namespace::Namespaces;
use tidegate_protocol::{NodeId, Region};
use tidegate_transport::clock;
use tidegate_transport::link::{self, CoreLink, DrainAnswer, EdgeLink};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channel::{ChannelTable, Limits, LinkId, LogFrameError};
use crate::config::CoreConfig;
use crate::engine::{Claim, ClaimError, Engine, JoinError, NodeRecord, PartitionId, ReplayError};
use crate::link::{serve, serve_partition};
use crate::metrics::CoreMetrics;
use crate::partition::{End, Pace, Partition, PartitionStatus, UnixClock};
use crate::placement::ownership::{Bounds, Ownership};
use crate::presence::PresenceTable;
use crate::session::Sessions;
use cluster::Control;
use fleet::Fleet;
use lease::Lease;
use restore::{RestoreError, Restorer};
use slot::{Served, Slots, View};

/// What a node's tasks run under.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Knows all tasks; wait for it after `drain` or `abort`.
    pub tracker: TaskTracker,
    /// Cancelled: links end, what partitions have queued is finished, then they end. Edges should be gone by then.
    pub drain: CancellationToken,
    /// Cancelled: everything ends at once. To the other nodes of a cluster that is a crash.
    pub abort: CancellationToken,
}

/// A running core node. Clones are the same node.
#[derive(Debug, Clone)]
pub struct CoreNode {
    inner: Arc<Inner>,
}

/// A partition's link within a process, and what is said first on one over the network.
#[derive(Debug)]
pub struct OpenedPartition {
    /// Of the owner.
    pub term: u64,
    /// Identity of the partition's log.
    pub epoch: u64,
    /// For frames.
    pub link: EdgeLink,
}

impl CoreNode {
    /// A node that is alone: takes all partitions, reads their logs, and serves them on the runtime that this is called
    /// in. It needs no lease; a partition that somebody else takes ends for good.
    pub async fn start(
        config: CoreConfig,
        engine: Arc<dyn Engine>,
        namespaces: Arc<Namespaces>,
        metrics: CoreMetrics,
        lifecycle: Lifecycle,
    ) -> Result<Self, StartError> {
        let name = NodeId::new("local");
        let inner = Inner::new(config, engine, namespaces, metrics, lifecycle, name, Lease::endless(), None)?;
        let mut partitions = Vec::with_capacity(usize::from(inner.slots.len()));
        for id in 0..inner.slots.len() {
            let began = clock::now();
            let claim = inner.engine.claim(PartitionId(id), &inner.name).await?;
            inner.metrics.count_claim();
            let table = inner.restorer.restore(&claim, None).await?;
            inner.metrics.observe_replay(clock::now().saturating_duration_since(began));
            let stop = inner.lifecycle.abort.child_token();
            partitions.push(inner.partition(claim, table, mpsc::channel(1).1, stop, None));
        }
        // Only now: a node that could not take every partition serves none.
        for (partition, (task, served)) in (0..).zip(partitions) {
            inner.slots.set(partition, View::Serving(served));
            let running = run(task, inner.metrics.clone(), inner.lifecycle.abort.clone());
            inner.lifecycle.tracker.spawn(running);
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A node of a cluster, which shares the engine with others. It serves what it wins, as soon as that is free or handed
    /// over; [`Self::is_serving`] tells when.
    pub async fn join(
        config: CoreConfig,
        engine: Arc<dyn Engine>,
        namespaces: Arc<Namespaces>,
        metrics: CoreMetrics,
        lifecycle: Lifecycle,
        record: NodeRecord,
    ) -> Result<Self, StartError> {
        let lease = engine.capabilities().lease;
        let (handle, inputs) = cluster::Handle::new();
        let handle = Arc::new(handle);
        let name = record.id.clone();
        let handover = Bounds { lease, handovers: config.handovers.max(1) };
        let inner = Inner::new(
            config,
            engine,
            namespaces,
            metrics,
            lifecycle,
            name,
            Lease::over(),
            Some(Arc::clone(&handle)),
        )?;
        // A node that crashed and is back finds itself alive until its old lease ends.
        let patience = clock::now() + lease * 2;
        let (began, membership) = loop {
            let began = clock::now();
            match inner.engine.join(record.clone()).await {
                Ok(membership) => break (began, membership),
                Err(JoinError::NameTaken(_)) if began < patience => sleep(lease / 6).await,
                Err(error) => return Err(error.into()),
            }
        };
        let partitions = inner.slots.len();
        let machine =
            Ownership::new(record.id.clone(), partitions, handover, clock::rng(), Some(began), clock::now());
        inner.lease.set(machine.alive_until());
        let inner = Arc::new(inner);
        let driver = cluster::run(Arc::clone(&inner), handle, record, machine, membership, inputs);
        inner.lifecycle.tracker.spawn(driver);
        Ok(Self { inner })
    }

    /// Hands every partition over to the other nodes, then leaves the cluster; after `within` without waiting for them to
    /// be ready. Links and requests end with the `drain` that follows. A node that is alone has nobody to leave.
    pub async fn leave(&self, within: Duration) {
        if let Some(cluster) = &self.inner.cluster {
            cluster.leave(within).await;
        }
    }

    /// A new link in this process. It ends when the edge drops both halves, or the receiving one and then something
    /// is sent, or the node cuts it; then its interest ends too.
    pub fn connect(&self) -> EdgeLink {
        self.connect_by(None)
    }

    /// The same for a worker of an edge: it is told, by this name, of sessions that it issued tickets to.
    pub fn connect_as(&self, name: LinkName) -> EdgeLink {
        self.connect_by(Some(name))
    }

    fn connect_by(&self, name: Option<LinkName>) -> EdgeLink {
        let (edge, core) = link::memory(self.inner.config.link_queue.max(1));
        self.attach(name, core);
        edge
    }

    /// Serves the core's end of a link to all partitions, within this process.
    pub fn attach(&self, name: Option<LinkName>, link: CoreLink) {
        let slots = self.inner.slots.clone();
        let id = self.inner.next_link();
        let cut = self.inner.lifecycle.drain.child_token();
        self.inner.spawn(serve(id, name, link, slots, cut));
    }

    /// A link to one partition for all workers of an edge, as [`Self::serve_links`] gives it to edges elsewhere: cut as
    /// soon as it is full, and told of a hand-over. Waits for a partition that this node is about to serve; `None` where it
    /// is not.
    pub async fn open(&self, partition: u16, edge: NodeId) -> Option<OpenedPartition> {
        let served = self.inner.open(partition).await?;
        let (term, epoch) = (served.term, served.epoch);
        let (link, core) = link::memory(self.inner.config.link_queue.max(1));
        self.inner.attach_partition(edge, core, served, &self.inner.lifecycle.drain);
        Some(OpenedPartition { term, epoch, link })
    }

    /// The edges that are linked to this node, and what they said of themselves last.
    pub fn edges(&self) -> Vec<FleetEntry> {
        self.inner.fleet.there()
    }

    /// Asks an edge about its drain, or to do something about it.
    ///
    /// # Errors
    /// Where it is not linked to this node, does not answer, or refuses.
    pub async fn ask_edge(&self, edge: &NodeId, question: DrainQuestion) -> DrainAnswer {
        self.inner.ask_edge(edge, question).await
    }

    /// Its counters.
    pub fn metrics(&self) -> &CoreMetrics {
        &self.inner.metrics
    }

    /// True while the node serves all that it is to serve. One that is alone serves everything until it drains, aborts, or
    /// loses a log; one of a cluster must be known to the others as alive. False also while an engine takes nothing more.
    pub fn is_serving(&self) -> bool {
        self.inner.is_serving()
    }
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// `partitions` is 0.
    #[error("a core node needs at least one partition")]
    NoPartitions,
    /// `batch_bytes` and `max_payload` do not fit the engine.
    #[error("batch_bytes + max_payload is over the engine's largest frame, {max_frame} bytes")]
    FrameLimit {
        /// What the engine takes, bytes.
        max_frame: usize,
    },
    /// It is not taken for a node of the cluster.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// A partition could not be taken.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A log could not be read.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A log holds what is not ours.
    #[error(transparent)]
    LogFrame(#[from] LogFrameError),
    /// A log ended before its tail.
    #[error("the log of partition {partition} ends before its tail")]
    Incomplete {
        /// Which one.
        partition: u16,
    },
}

impl From<RestoreError> for StartError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Claim(error) => error.into(),
            RestoreError::Replay(error) => error.into(),
            RestoreError::LogFrame(error) => error.into(),
            RestoreError::Incomplete(partition) => Self::Incomplete { partition },
        }
    }
}

#[derive(Debug)]
struct Inner {
    name: NodeId,
    /// Where its links are, once it has any.
    region: OnceLock<Region>,
    slots: Slots,
    config: Arc<CoreConfig>,
    engine: Arc<dyn Engine>,
    restorer: Restorer,
    namespaces: Arc<Namespaces>,
    metrics: CoreMetrics,
    lifecycle: Lifecycle,
    clock: UnixClock,
    lease: Arc<Lease>,
    pace: Arc<Pace>,
    /// Where others share the engine.
    cluster: Option<Arc<cluster::Handle>>,
    /// What the backend API may have in flight.
    backend: Semaphore,
    /// Edges that may wait for partitions.
    opening: Semaphore,
    next_link: AtomicU32,
    connections: Mutex<BTreeMap<u64, status::Connected>>,
    next_connection: AtomicU64,
    /// What edges say of themselves.
    fleet: Fleet,
}

impl Inner {
    #[expect(clippy::too_many_arguments, reason = "what a node is made of, in one place")]
    fn new(
        config: CoreConfig,
        engine: Arc<dyn Engine>,
        namespaces: Arc<Namespaces>,
        metrics: CoreMetrics,
        lifecycle: Lifecycle,
        name: NodeId,
        lease: Lease,
        cluster: Option<Arc<cluster::Handle>>,
    ) -> Result<Self, StartError> {
        let max_frame = engine.capabilities().max_frame;
        if config.partitions == 0 {
            return Err(StartError::NoPartitions);
        }
        if config.batch_bytes + config.max_payload + RECORD_OVERHEAD > max_frame {
            return Err(StartError::FrameLimit { max_frame });
        }
        let clock = UnixClock::start();
        let restorer = Restorer {
            engine: Arc::clone(&engine),
            namespaces: Arc::clone(&namespaces),
            limits: limits(&config),
            clock,
            turns: Arc::new(Semaphore::new(config.replays.clamp(1, Semaphore::MAX_PERMITS))),
        };
        Ok(Self {
            name,
            region: OnceLock::new(),
            slots: Slots::new(config.partitions),
            engine,
            restorer,
            namespaces,
            metrics,
            lifecycle,
            clock,
            lease: Arc::new(lease),
            pace: Arc::new(Pace::new()),
            cluster,
            backend: Semaphore::new(config.backend_in_flight.min(Semaphore::MAX_PERMITS)),
            opening: Semaphore::new(config.opening.min(Semaphore::MAX_PERMITS)),
            next_link: AtomicU32::new(LinkId::NODE.0 + 1),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(0),
            fleet: Fleet::new(),
            config: Arc::new(config),
        })
    }

    /// The task of a partition, to be run, and where it is found then. It ends at once when `stop` is cancelled.
    fn partition(
        &self,
        claim: Claim,
        table: ChannelTable,
        hand_over: mpsc::Receiver<Option<NodeId>>,
        stop: CancellationToken,
        control: Option<Control>,
    ) -> (Partition, Served) {
        let (sender, queue) = mpsc::channel(self.config.partition_queue.max(1));
        let status = Arc::new(PartitionStatus::new(claim.tail().0));
        let (term, epoch) = (claim.term(), claim.epoch());
        let served = Served { queue: sender, term, epoch, status: Arc::clone(&status) };
        let mut presence = PresenceTable::new(self.config.presence(), Arc::clone(&self.namespaces));
        if control.is_some() && term > 1 {
            presence.settle(self.clock.unix_ms());
        }
        let partition = Partition {
            table,
            sessions: Sessions::new(self.config.max_resumed),
            presence,
            engine: Arc::clone(&self.engine),
            replicated: self.engine.capabilities().replicated,
            slot: self.slots.handle(claim.partition().0),
            claim,
            queue,
            config: Arc::clone(&self.config),
            metrics: self.metrics.clone(),
            clock: self.clock,
            node: self.name.clone(),
            lease: Arc::clone(&self.lease),
            restorer: self.restorer.clone(),
            status,
            pace: Arc::clone(&self.pace),
            control,
            hand_over,
            tracker: self.lifecycle.tracker.clone(),
            drain: self.lifecycle.drain.clone(),
            abort: stop,
        };
        (partition, served)
    }

    /// Waits, where it is worth it, until the partition is served here.
    async fn open(&self, partition: u16) -> Option<Served> {
        if let Some(served) = self.slots.served(partition) {
            return Some(served);
        }
        let _turn = self.opening.try_acquire().ok()?;
        timeout(self.config.open_wait, self.slots.wait(partition)).await.ok()?
    }

    /// Serves the core's end of an edge's link to a partition, until `end` at the latest.
    fn attach_partition(&self, edge: NodeId, link: CoreLink, served: Served, end: &CancellationToken) {
        let name = LinkName { node: edge, worker: 0 };
        self.spawn(serve_partition(self.next_link(), name, link, served.queue, end.child_token()));
    }

    fn is_serving(&self) -> bool {
        let mine = |partition| match self.slots.served(partition) {
            Some(served) => !served.status.is_refusing(),
            None => self.cluster.is_some(),
        };
        self.cluster.as_ref().is_none_or(|cluster| cluster.is_settled()) && (0..self.slots.len()).all(mine)
    }

    fn next_link(&self) -> LinkId {
        LinkId(self.next_link.fetch_add(1, Ordering::Relaxed))
    }

    fn connected(&self) -> MutexGuard<'_, BTreeMap<u64, status::Connected>> {
        // Nothing is done while it is held but to insert, remove or copy.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let abort = self.lifecycle.abort.clone();
        self.lifecycle.tracker.spawn(async move {
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                () = task => {}
            }
        });
    }
}

/// Runs a partition to its end, and counts ends that nobody wanted.
async fn run(task: Partition, metrics: CoreMetrics, abort: CancellationToken) -> End {
    let end = task.run().await;
    if matches!(end, End::Fenced | End::Failed | End::Aborted) && !abort.is_cancelled() {
        metrics.count_fence();
    }
    end
}

fn limits(config: &CoreConfig) -> Limits {
    Limits {
        max_payload: config.max_payload,
        key_age: config.key_age,
        keys_per_channel: config.keys_per_channel,
        forget_after: config.forget_after,
        max_channels: config.max_channels,
    }
}

/// Names, keys, numbers and lengths of one record at their largest, bytes.
const RECORD_OVERHEAD: usize = 2 << 10;

#[cfg(test)]
mod tests;
