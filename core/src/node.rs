//! A core node: its partitions, its links, and the handle that the backend API publishes through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, LinkError, LinkName, Publish, Recovery};
use tidegate_protocol::namespace::Namespaces;
use tidegate_protocol::{ChannelName, Position};
use tidegate_transport::clock;
use tidegate_transport::link::{self, CoreLink, EdgeLink};
use tokio::sync::{Semaphore, TryAcquireError, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channel::{ChannelTable, Limits, LinkId, LogFrameError, outcome_unknown};
use crate::config::CoreConfig;
use crate::engine::{ClaimError, Engine, LogPosition, PartitionId, ReplayError};
use crate::link::{serve, unavailable};
use crate::metrics::CoreMetrics;
use crate::partition::{Command, Partition, UnixClock};
use crate::placement::partition_of;
use crate::session::Sessions;

/// What a node's tasks run under.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Knows all tasks; wait for it after `drain` or `abort`.
    pub tracker: TaskTracker,
    /// Cancelled: links end, what partitions have queued is finished, then they end. Edges should be gone by then.
    pub drain: CancellationToken,
    /// Cancelled: everything ends at once.
    pub abort: CancellationToken,
}

/// A running core node. Clones are the same node.
#[derive(Debug, Clone)]
pub struct CoreNode {
    inner: Arc<Inner>,
}

impl CoreNode {
    /// Takes all partitions, reads their logs, and serves them on the runtime that this is called in.
    pub async fn start(
        config: CoreConfig,
        engine: Arc<dyn Engine>,
        namespaces: Arc<Namespaces>,
        metrics: CoreMetrics,
        lifecycle: Lifecycle,
    ) -> Result<Self, StartError> {
        let max_frame = engine.capabilities().max_frame;
        if config.partitions == 0 {
            return Err(StartError::NoPartitions);
        }
        if config.batch_bytes + config.max_payload + RECORD_OVERHEAD > max_frame {
            return Err(StartError::FrameLimit { max_frame });
        }
        let config = Arc::new(config);
        let clock = UnixClock::start();
        let mut queues = Vec::with_capacity(usize::from(config.partitions));
        let mut partitions = Vec::with_capacity(usize::from(config.partitions));
        for id in (0..config.partitions).map(PartitionId) {
            let claim = engine.claim(id).await?;
            let mut table =
                ChannelTable::new(limits(&config), Arc::clone(&namespaces), claim.epoch(), claim.tail().0);
            replay(&*engine, id, claim.first(), claim.tail(), &mut table, clock).await?;
            let (sender, queue) = mpsc::channel(config.partition_queue.max(1));
            queues.push(sender);
            partitions.push(Partition {
                table,
                sessions: Sessions::new(config.max_resumed),
                engine: Arc::clone(&engine),
                claim,
                queue,
                config: Arc::clone(&config),
                metrics: metrics.clone(),
                clock,
                drain: lifecycle.drain.clone(),
                abort: lifecycle.abort.clone(),
            });
        }
        // Only now: a node that could not take every partition serves none.
        for partition in partitions {
            lifecycle.tracker.spawn(partition.run());
        }
        let backend = Semaphore::new(config.backend_in_flight.min(Semaphore::MAX_PERMITS));
        let next_link = AtomicU32::new(LinkId::NODE.0 + 1);
        let queues = Arc::from(queues);
        Ok(Self { inner: Arc::new(Inner { queues, config, metrics, lifecycle, backend, next_link }) })
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

    /// Serves the core's end of a link, in-process or not.
    pub fn attach(&self, name: Option<LinkName>, link: CoreLink) {
        let inner = &self.inner;
        let id = LinkId(inner.next_link.fetch_add(1, Ordering::Relaxed));
        let cut = inner.lifecycle.drain.child_token();
        let abort = inner.lifecycle.abort.clone();
        let queues = Arc::clone(&inner.queues);
        inner.lifecycle.tracker.spawn(async move {
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                () = serve(id, name, link, queues, cut) => {}
            }
        });
    }

    /// Publishes for the backend; `None` for an ephemeral one.
    pub async fn publish(&self, publish: Publish) -> Result<Option<Position>, LinkError> {
        let mut results = self.publish_batch(vec![publish]).await?;
        results.pop().unwrap_or_else(|| Err(unavailable()))
    }

    /// Publishes for the backend, in order per channel, all at once. The outer error means that none was taken.
    pub async fn publish_batch(
        &self,
        publishes: Vec<Publish>,
    ) -> Result<Vec<Result<Option<Position>, LinkError>>, LinkError> {
        let _permits = self.admit(publishes.len())?;
        let mut results = Vec::with_capacity(publishes.len());
        let deadline = tokio::time::Instant::from_std(clock::now() + self.inner.config.backend_wait);
        let mut pending = Vec::with_capacity(publishes.len());
        for publish in publishes {
            let queue = self.queue(&publish.channel);
            let frame = EdgeFrame::Publish { request: 0, publish };
            let sent = tokio::time::timeout_at(deadline, request(queue, frame)).await;
            pending.push(sent.unwrap_or_else(|_| Err(unavailable())));
        }
        for answer in pending {
            results.push(match answer {
                Ok(answer) => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(Ok(CoreFrame::Published { result, .. })) => result,
                    _ => Err(outcome_unknown()),
                },
                Err(error) => Err(error),
            });
        }
        Ok(results)
    }

    /// Reads history for the backend: what comes after `since`, at most the newest `limit` (0: all).
    pub async fn history(
        &self,
        channel: ChannelName,
        since: Option<Position>,
        limit: u32,
    ) -> Result<Recovery, LinkError> {
        let _permit = self.admit(1)?;
        let queue = self.queue(&channel);
        let frame = EdgeFrame::History { request: 0, channel, since, limit };
        let answer = async { request(queue, frame).await?.await.map_err(|_| unavailable()) };
        match timeout(self.inner.config.backend_wait, answer).await {
            Ok(Ok(CoreFrame::Recovered { result, .. })) => result,
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Err(unavailable()),
        }
    }

    /// Its counters.
    pub fn metrics(&self) -> &CoreMetrics {
        &self.inner.metrics
    }

    /// False once a partition has ended: the node drains, aborts, or lost a log to another node.
    pub fn is_serving(&self) -> bool {
        self.inner.queues.iter().all(|queue| !queue.is_closed())
    }

    fn queue(&self, channel: &ChannelName) -> &mpsc::Sender<Command> {
        &self.inner.queues[usize::from(partition_of(channel, self.inner.config.partitions))]
    }

    fn admit(&self, requests: usize) -> Result<tokio::sync::SemaphorePermit<'_>, LinkError> {
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        self.inner.backend.try_acquire_many(requests).map_err(|error| {
            let message = match error {
                TryAcquireError::NoPermits => "too many backend requests are in flight: try again",
                TryAcquireError::Closed => "the node is going away",
            };
            LinkError { code: ErrorCode::Unavailable, message: message.to_owned() }
        })
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

#[derive(Debug)]
struct Inner {
    queues: Arc<[mpsc::Sender<Command>]>,
    config: Arc<CoreConfig>,
    metrics: CoreMetrics,
    lifecycle: Lifecycle,
    /// What the backend API may have in flight.
    backend: Semaphore,
    next_link: AtomicU32,
}

async fn replay(
    engine: &dyn Engine,
    partition: PartitionId,
    first: LogPosition,
    tail: LogPosition,
    table: &mut ChannelTable,
    clock: UnixClock,
) -> Result<(), StartError> {
    let mut next = first;
    while next <= tail {
        let frames = engine.replay(partition, next).await?;
        if frames.is_empty() {
            return Err(StartError::Incomplete { partition: partition.0 });
        }
        for (position, frame) in frames {
            table.replay(&frame, clock.unix_ms())?;
            next = position.next();
        }
    }
    Ok(())
}

async fn request(
    queue: &mpsc::Sender<Command>,
    frame: EdgeFrame,
) -> Result<oneshot::Receiver<CoreFrame>, LinkError> {
    let (sender, answer) = oneshot::channel();
    let command = Command::Request { frame, answer: sender, at: clock::now() };
    queue.send(command).await.map_err(|_| unavailable())?;
    Ok(answer)
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
