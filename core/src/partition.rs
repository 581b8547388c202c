//! The driver of one partition: one task owns its channels and its claim on the log; no locks.
//!
//! It takes everything that waits in its queue, lets the table decide, appends what is to be kept as one log frame,
//! and only then answers and fans out. Order of the outputs is the order of the table, so per link and channel it is
//! the order of the log.
//!
//! A full link makes the partition wait, up to `link_wait`; then the link is cut, because one edge that does not read
//! must not stop all others. Only ephemeral items are passed over instead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, LinkName};
use tidegate_transport::clock;
use tidegate_transport::link::{LinkSender, TrySendError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::channel::{ChannelTable, LinkId};
use crate::config::CoreConfig;
use crate::engine::{AppendError, Claim, Engine};
use crate::metrics::{CoreMetrics, PartitionGauges};
use crate::session::Sessions;

/// What a partition is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A link begins. Before any of its frames.
    Attach {
        /// Which one.
        link: LinkId,
        /// Whose it is, where anybody is to be found by it.
        name: Option<LinkName>,
        /// Towards the edge.
        sender: Arc<dyn LinkSender<CoreFrame>>,
        /// Cancelled to end the link.
        cut: CancellationToken,
    },
    /// A link ended. Behind all of its frames.
    Detach {
        /// Which one.
        link: LinkId,
    },
    /// A frame of a link.
    Frame {
        /// Which one.
        link: LinkId,
        /// What.
        frame: EdgeFrame,
        /// When it was queued.
        at: Instant,
    },
    /// A request of the backend API; its `request` number is not used.
    Request {
        /// What.
        frame: EdgeFrame,
        /// Takes the answer.
        answer: oneshot::Sender<CoreFrame>,
        /// When it was queued.
        at: Instant,
    },
}

/// Unix time that goes on with the monotonic clock from where the wall clock was when the node started: it never
/// steps, and a simulation that pauses tokio's clock pauses it too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnixClock {
    unix_ms: u64,
    at: Instant,
}

impl UnixClock {
    /// In step with the wall clock now.
    pub(crate) fn start() -> Self {
        Self { unix_ms: clock::unix_ms(), at: clock::now() }
    }

    /// Milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> u64 {
        let since = clock::now().saturating_duration_since(self.at);
        self.unix_ms + u64::try_from(since.as_millis()).unwrap_or(u64::MAX >> 1)
    }
}

/// A partition and all that it waits for.
#[derive(Debug)]
pub(crate) struct Partition {
    /// What decides of channels.
    pub(crate) table: ChannelTable,
    /// What decides of sessions.
    pub(crate) sessions: Sessions,
    /// Keeps the log.
    pub(crate) engine: Arc<dyn Engine>,
    /// The right to write it.
    pub(crate) claim: Claim,
    /// Everything comes through here.
    pub(crate) queue: mpsc::Receiver<Command>,
    /// Bounds.
    pub(crate) config: Arc<CoreConfig>,
    /// Counters.
    pub(crate) metrics: CoreMetrics,
    /// Time.
    pub(crate) clock: UnixClock,
    /// Cancelled: finish what is queued, then end.
    pub(crate) drain: CancellationToken,
    /// Cancelled: end at once.
    pub(crate) abort: CancellationToken,
}

impl Partition {
    /// Runs until the node drains or aborts, nobody can send to it any more, or the log is taken over.
    pub(crate) async fn run(self) {
        let abort = self.abort.clone();
        let partition = self.claim.partition();
        let gauges = PartitionGauges::new(self.metrics.clone());
        let driver = Driver {
            partition: self,
            links: BTreeMap::new(),
            requests: Slab::new(),
            outputs: Vec::new(),
            publishes: Vec::new(),
            gauges,
        };
        tokio::select! {
            biased;
            () = abort.cancelled() => debug!(partition = partition.0, "aborted"),
            () = driver.run() => {}
        }
    }
}

#[derive(Debug)]
struct LinkEntry {
    sender: Arc<dyn LinkSender<CoreFrame>>,
    cut: CancellationToken,
}

/// The log is not ours any more.
#[derive(Debug)]
struct Fenced;

#[derive(Debug)]
struct Driver {
    partition: Partition,
    links: BTreeMap<LinkId, LinkEntry>,
    requests: Slab<oneshot::Sender<CoreFrame>>,
    outputs: Vec<(LinkId, CoreFrame)>,
    /// When the publishes of this batch were queued.
    publishes: Vec<Instant>,
    gauges: PartitionGauges,
}

impl Driver {
    async fn run(mut self) {
        self.update_gauges();
        let drain = self.partition.drain.clone();
        let drained = drain.cancelled();
        tokio::pin!(drained);
        let mut draining = false;
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let limit = self.partition.config.batch_commands.max(1);
        let mut commands = Vec::with_capacity(limit);
        loop {
            let purging = self.partition.table.is_purging();
            // Biased: a drain comes once and the sweep once a second, so the queue never starves; purging is also
            // done behind every batch, so a queue that never empties does not starve it either.
            let taken = tokio::select! {
                biased;
                () = &mut drained, if !draining => {
                    draining = true;
                    self.partition.queue.close();
                    continue;
                }
                _ = sweep.tick() => {
                    self.sweep();
                    continue;
                }
                taken = self.partition.queue.recv_many(&mut commands, limit) => taken,
                () = tokio::task::yield_now(), if purging => {
                    self.sweep();
                    continue;
                }
            };
            if taken == 0 {
                break;
            }
            if self.handle(&mut commands).await.is_err() {
                return self.give_up();
            }
            if purging {
                self.sweep();
            }
        }
        self.partition.engine.release(self.partition.claim).await;
    }

    async fn handle(&mut self, commands: &mut Vec<Command>) -> Result<(), Fenced> {
        let unix_ms = self.partition.clock.unix_ms();
        for command in commands.drain(..) {
            match command {
                Command::Frame { link, frame, at } => {
                    // A link that was cut may still have frames in the queue; they must not bring interest back.
                    if self.links.contains_key(&link) {
                        self.handle_frame(unix_ms, link, frame, at);
                    }
                }
                Command::Request { frame, answer, at } => {
                    let request = self.requests.insert(answer) as u64;
                    self.handle_frame(unix_ms, LinkId::NODE, with_request(frame, request), at);
                }
                Command::Attach { link, name, sender, cut } => {
                    if let Some(name) = name {
                        self.partition.sessions.attach(link, name);
                    }
                    self.links.insert(link, LinkEntry { sender, cut });
                }
                Command::Detach { link } => self.remove_link(link),
            }
            if self.partition.table.log_frame_bytes() >= self.partition.config.batch_bytes {
                self.commit().await?;
            }
        }
        self.commit().await
    }

    fn handle_frame(&mut self, unix_ms: u64, link: LinkId, frame: EdgeFrame, at: Instant) {
        if matches!(&frame, EdgeFrame::Publish { publish, .. } if !publish.ephemeral) {
            self.publishes.push(at);
        }
        match frame {
            EdgeFrame::Spend { request, spending, holder } => {
                let outputs = &mut self.outputs;
                self.partition.sessions.spend(unix_ms, link, request, &spending, &holder, outputs);
            }
            frame => self.partition.table.handle_frame(unix_ms, link, frame),
        }
    }

    /// Logs what was decided since the last time, then tells everybody.
    async fn commit(&mut self) -> Result<(), Fenced> {
        if let Some(frame) = self.partition.table.take_log_frame() {
            if let Err(fenced) = self.append(frame).await {
                self.partition.table.fail();
                self.send_outputs().await;
                return Err(fenced);
            }
            self.partition.table.commit(self.partition.claim.tail().0);
        }
        if !self.publishes.is_empty() {
            let now = clock::now();
            for at in self.publishes.drain(..) {
                self.partition.metrics.observe_publish(now.saturating_duration_since(at));
            }
        }
        self.partition.metrics.count(self.partition.table.take_stats());
        self.update_gauges();
        self.send_outputs().await;
        Ok(())
    }

    /// Sends the same bytes until the engine says whether they are stored.
    async fn append(&mut self, frame: Bytes) -> Result<(), Fenced> {
        let Partition { engine, claim, .. } = &mut self.partition;
        let mut pause = FIRST_PAUSE;
        loop {
            match engine.append(claim, frame.clone()).await {
                Ok(_) => return Ok(()),
                Err(AppendError::Unavailable(reason)) => {
                    warn!(partition = claim.partition().0, %reason, "the log cannot be written; trying again");
                    sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
                Err(reason) => {
                    error!(partition = claim.partition().0, %reason, "the partition ends: its log is lost to it");
                    return Err(Fenced);
                }
            }
        }
    }

    async fn send_outputs(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.partition.table.drain_outputs(&mut outputs);
        // The backend's answers never wait for a link.
        if !self.requests.is_empty() {
            for (_, frame) in outputs.extract_if(.., |(link, _)| *link == LinkId::NODE) {
                self.answer(frame);
            }
        }
        for (link, frame) in outputs.drain(..) {
            self.send(link, frame).await;
        }
        self.outputs = outputs;
    }

    fn answer(&mut self, frame: CoreFrame) {
        let (CoreFrame::Published { request, .. } | CoreFrame::Recovered { request, .. }) = &frame else {
            return;
        };
        let request = usize::try_from(*request).unwrap_or(usize::MAX);
        if let Some(answer) = self.requests.try_remove(request) {
            // The backend may have gone away meanwhile.
            let _ = answer.send(frame);
        }
    }

    async fn send(&mut self, link: LinkId, frame: CoreFrame) {
        let Some(entry) = self.links.get(&link) else { return };
        match entry.sender.try_send(frame) {
            Ok(()) => {}
            Err(TrySendError::Closed) => self.cut(link),
            Err(TrySendError::Full(CoreFrame::Ephemeral(_))) => {
                self.partition.metrics.count_ephemeral_dropped();
            }
            Err(TrySendError::Full(frame)) => {
                match timeout(self.partition.config.link_wait, entry.sender.send(frame)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => self.cut(link),
                    Err(_) => {
                        warn!(link = link.0, "a link stayed full and is cut");
                        self.partition.metrics.count_link_cut();
                        self.cut(link);
                    }
                }
            }
        }
    }

    fn cut(&mut self, link: LinkId) {
        if let Some(entry) = self.links.get(&link) {
            entry.cut.cancel();
        }
        self.remove_link(link);
    }

    fn remove_link(&mut self, link: LinkId) {
        if self.links.remove(&link).is_some() {
            self.partition.table.remove_link(link);
            self.partition.sessions.detach(link);
        }
    }

    fn sweep(&mut self) {
        let unix_ms = self.partition.clock.unix_ms();
        self.partition.table.sweep(unix_ms, SWEEP_STEPS);
        self.partition.sessions.sweep(unix_ms, SWEEP_STEPS);
        self.update_gauges();
    }

    fn update_gauges(&mut self) {
        self.gauges.update(&self.partition.table, &self.partition.sessions);
    }

    /// Somebody else owns the log. Edges find their links closed and come back to whoever serves the channels.
    fn give_up(mut self) {
        self.partition.queue.close();
        for entry in self.links.values() {
            entry.cut.cancel();
        }
    }
}

fn with_request(frame: EdgeFrame, request: u64) -> EdgeFrame {
    match frame {
        EdgeFrame::Publish { publish, .. } => EdgeFrame::Publish { request, publish },
        EdgeFrame::Subscribe { channel, position, .. } => EdgeFrame::Subscribe { request, channel, position },
        EdgeFrame::History { channel, since, limit, .. } => {
            EdgeFrame::History { request, channel, since, limit }
        }
        EdgeFrame::Spend { spending, holder, .. } => EdgeFrame::Spend { request, spending, holder },
        EdgeFrame::Unsubscribe { channel } => EdgeFrame::Unsubscribe { channel },
    }
}

/// A sweep of a million channels takes about four minutes, and holds the partition up for well under a millisecond
/// at a time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const SWEEP_STEPS: usize = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);
