//! The driver of one partition: one task owns its channels and its claim on the log; no locks.
//!
//! It takes everything that waits in its queue, lets the table decide, appends what is to be kept as one log frame,
//! and only then answers and fans out. Order of the outputs is the order of the table, so per link and channel it is
//! the order of the log.
//!
//! A full link in this process makes the partition wait, up to `link_wait`; then the link is cut, because one edge that
//! does not read must not stop all others. A full link over the network is cut at once: its edge opens it again and
//! catches up. Only ephemeral items are passed over instead.

mod command;
mod ending;
mod keeping;
mod links;
mod rebuild;
mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, LinkError, LinkName};
use tidegate_transport::clock;
use tidegate_transport::link::{LinkSender, TrySendError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use crate::channel::{ChannelTable, LinkId};
use crate::config::CoreConfig;
use crate::engine::{AppendError, Claim, Engine};
use crate::metrics::{CoreMetrics, PartitionGauges};
use crate::node::cluster::Control;
use crate::node::lease::Lease;
use crate::node::restore::Restorer;
use crate::node::slot::SlotHandle;
use crate::presence::PresenceTable;
use crate::session::Sessions;
use command::with_request;
use keeping::Keeping;
use links::{Entry, Links};
use rebuild::Refusing;

pub(crate) use command::{Command, Reach, UnixClock, refusal};
pub(crate) use status::{Pace, PartitionStatus};

/// A partition and all that it waits for.
#[derive(Debug)]
pub(crate) struct Partition {
    /// What decides of channels.
    pub(crate) table: ChannelTable,
    /// What decides of sessions.
    pub(crate) sessions: Sessions,
    /// What decides of who is there.
    pub(crate) presence: PresenceTable,
    /// Keeps the log.
    pub(crate) engine: Arc<dyn Engine>,
    /// It keeps it on several machines: frames are dear.
    pub(crate) replicated: bool,
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
    /// Who this is.
    pub(crate) node: NodeId,
    /// Until when this node may answer anybody.
    pub(crate) lease: Arc<Lease>,
    /// Reads the log anew.
    pub(crate) restorer: Restorer,
    /// Where links find the partition.
    pub(crate) slot: SlotHandle,
    /// What it says of itself.
    pub(crate) status: Arc<PartitionStatus>,
    /// What all partitions of the node write.
    pub(crate) pace: Arc<Pace>,
    /// Whom a new claim is told, where others own partitions too.
    pub(crate) control: Option<Control>,
    /// Who is to have the partition; nobody ever, where its sender is gone.
    pub(crate) hand_over: mpsc::Receiver<Option<NodeId>>,
    /// Knows the tasks that write beside the log.
    pub(crate) tracker: TaskTracker,
    /// Cancelled: finish what is queued, then end.
    pub(crate) drain: CancellationToken,
    /// Cancelled: end at once.
    pub(crate) abort: CancellationToken,
}

impl Partition {
    /// Runs until the node drains, gives the partition away, or may not have it any more.
    pub(crate) async fn run(self) -> End {
        let abort = self.abort.clone();
        let partition = self.claim.partition();
        let gauges = PartitionGauges::new(self.metrics.clone());
        let driver = Driver {
            keeping: Keeping::new(&self),
            partition: self,
            links: Links::default(),
            requests: Slab::new(),
            outputs: Vec::new(),
            publishes: Vec::new(),
            records: 0,
            refusing: None,
            gauges,
        };
        let end = tokio::select! {
            biased;
            () = abort.cancelled() => End::Aborted,
            end = driver.run() => end,
        };
        // What was being written beside the log has no claim any more.
        abort.cancel();
        debug!(partition = partition.0, ?end, "the partition ended");
        end
    }
}

/// Why a partition's task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The node drains: the partition was released to nobody.
    Drained,
    /// It was released to another node.
    HandedOver,
    /// The log is not ours any more, or the node's lease is over.
    Fenced,
    /// It cannot be built anew here: another node may be able to.
    Failed,
    /// It was stopped at once.
    Aborted,
}

/// Why a partition cannot go on here.
#[derive(Debug)]
enum Stop {
    /// The log is not ours any more, or may not be.
    Fenced,
    /// It cannot be built anew.
    Failed,
}

#[derive(Debug)]
struct Driver {
    partition: Partition,
    links: Links,
    requests: Slab<oneshot::Sender<CoreFrame>>,
    outputs: Vec<(LinkId, CoreFrame)>,
    /// When the publishes of this batch were queued.
    publishes: Vec<Instant>,
    /// Publications in the log frame that is being filled.
    records: u64,
    refusing: Option<Refusing>,
    keeping: Keeping,
    gauges: PartitionGauges,
}

impl Driver {
    async fn run(mut self) -> End {
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
            let purging = self.partition.table.is_purging() || self.partition.presence.is_sweeping();
            // Biased: a drain comes once and the sweep once a second, so the queue never starves; purging is also
            // done behind every batch, so a queue that never empties does not starve it either.
            let taken = tokio::select! {
                biased;
                () = &mut drained, if !draining => {
                    draining = true;
                    self.partition.queue.close();
                    continue;
                }
                Some(to) = self.partition.hand_over.recv(), if !draining => {
                    return self.hand_over(to).await;
                }
                _ = sweep.tick() => {
                    self.sweep().await;
                    self.keeping.begin(&self.partition);
                    continue;
                }
                permit = self.keeping.ready() => {
                    self.keeping.write_piece(&self.partition, permit);
                    // The next one is not taken before the queue had its turn.
                    match self.partition.queue.try_recv() {
                        Ok(command) => commands.push(command),
                        Err(_) => continue,
                    }
                    1
                }
                taken = self.partition.queue.recv_many(&mut commands, limit) => taken,
                () = tokio::task::yield_now(), if purging => {
                    self.sweep().await;
                    continue;
                }
            };
            if taken == 0 {
                break;
            }
            self.linger(&mut commands, limit).await;
            match self.handle(&mut commands).await {
                Ok(()) => {}
                Err(Stop::Fenced) => return End::Fenced,
                Err(Stop::Failed) => return End::Failed,
            }
            if purging {
                self.sweep().await;
            }
        }
        self.partition.engine.release(self.partition.claim, None).await;
        End::Drained
    }

    /// Collects more into one log frame, where the engine has many to write.
    async fn linger(&mut self, commands: &mut Vec<Command>, limit: usize) {
        let Partition { config, pace, .. } = &self.partition;
        let is_publish = |command: &&Command| {
            let (Command::Frame { frame, .. } | Command::Request { frame, .. }) = *command else {
                return false;
            };
            matches!(frame, EdgeFrame::Publish { publish, .. } if !publish.ephemeral)
        };
        if config.linger.is_zero()
            || commands.len() >= limit
            || !self.partition.replicated
            || pace.rate(clock::now()) < config.linger_above
            // One that came alone would wait for none: those that matter came while the last frame was written.
            || commands.iter().filter(is_publish).nth(1).is_none()
        {
            return;
        }
        sleep(config.linger).await;
        while commands.len() < limit
            && let Ok(command) = self.partition.queue.try_recv()
        {
            commands.push(command);
        }
    }

    async fn handle(&mut self, commands: &mut Vec<Command>) -> Result<(), Stop> {
        let unix_ms = self.partition.clock.unix_ms();
        for command in commands.drain(..) {
            match command {
                Command::Frame { link, frame, at } => {
                    // A link that was cut may still have frames in the queue; they must not bring interest back.
                    if self.links.get(link).is_some() {
                        self.handle_frame(unix_ms, link, frame, at);
                    }
                }
                Command::Request { frame, answer, at } => {
                    let request = self.requests.insert(answer) as u64;
                    self.handle_frame(unix_ms, LinkId::NODE, with_request(frame, request), at);
                }
                Command::Attach { link, name, reach, sender, cut } => {
                    self.attach(link, name, reach, sender, cut)
                }
                Command::Detach { link } => self.remove_link(link),
            }
            if self.partition.table.log_frame_bytes() >= self.partition.config.batch_bytes {
                self.commit().await?;
            }
        }
        self.commit().await
    }

    fn attach(
        &mut self,
        link: LinkId,
        name: Option<LinkName>,
        reach: Reach,
        sender: Arc<dyn LinkSender<CoreFrame>>,
        cut: CancellationToken,
    ) {
        self.partition.presence.attach(self.partition.clock.unix_ms(), link, name.as_ref());
        match (name, reach) {
            (Some(name), Reach::Process) => self.partition.sessions.attach(link, name),
            (Some(name), Reach::Network) => self.partition.sessions.attach_node(link, name.node),
            (None, _) => {}
        }
        self.attach_link(link, reach, sender, cut);
    }

    fn attach_link(
        &mut self,
        link: LinkId,
        reach: Reach,
        sender: Arc<dyn LinkSender<CoreFrame>>,
        cut: CancellationToken,
    ) {
        self.links.insert(link, Entry { reach, sender, cut });
    }

    fn handle_frame(&mut self, unix_ms: u64, link: LinkId, frame: EdgeFrame, at: Instant) {
        if matches!(&frame, EdgeFrame::Publish { publish, .. } if !publish.ephemeral) {
            if let Some(error) = self.refuses() {
                self.outputs.extend(refusal(frame, error).map(|frame| (link, frame)));
                return;
            }
            self.publishes.push(at);
            self.records += 1;
        }
        if let Some(frame) = self.handle_unlogged(unix_ms, link, frame) {
            self.partition.table.handle_frame(unix_ms, link, frame);
        }
    }

    /// What no log says: who is there, which tickets are spent. The rest is given back.
    fn handle_unlogged(&mut self, unix_ms: u64, link: LinkId, frame: EdgeFrame) -> Option<EdgeFrame> {
        let outputs = &mut self.outputs;
        match self.partition.presence.handle_frame(unix_ms, link, frame, outputs)? {
            EdgeFrame::Spend { request, spending, holder } => {
                self.partition.sessions.spend(unix_ms, link, request, &spending, &holder, outputs);
                None
            }
            frame => Some(frame),
        }
    }

    /// Logs what was decided since the last time, then tells everybody.
    async fn commit(&mut self) -> Result<(), Stop> {
        let records = std::mem::take(&mut self.records);
        if let Some(frame) = self.partition.table.take_log_frame() {
            let began = clock::now();
            match self.append(frame).await {
                Ok(()) => {}
                Err(NotKept::Fenced) => {
                    self.partition.table.fail(&LinkError::outcome_unknown());
                    self.send_outputs().await;
                    return Err(Stop::Fenced);
                }
                Err(NotKept::Refused(reason)) => return self.refuse(&reason).await,
            }
            let tail = self.partition.claim.tail().0;
            self.partition.table.commit(tail);
            self.keeping.count();
            let now = clock::now();
            let took = now.saturating_duration_since(began);
            self.partition.metrics.observe_append(took, records);
            self.partition.status.observe_append(took);
            self.partition.status.set_tail(tail);
            self.partition.pace.count(now);
        }
        // Somebody else may own it by now, and have told others differently. What is in the log stays there.
        if !self.partition.lease.holds(clock::now()) {
            warn!(
                partition = self.partition.claim.partition().0,
                "the node's lease is over: the partition stops"
            );
            return Err(Stop::Fenced);
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
    async fn append(&mut self, frame: Bytes) -> Result<(), NotKept> {
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
                Err(AppendError::Refused(reason)) => return Err(NotKept::Refused(reason)),
                Err(reason) => {
                    error!(partition = claim.partition().0, %reason, "the partition ends: its log is lost to it");
                    return Err(NotKept::Fenced);
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
        let (CoreFrame::Published { request, .. }
        | CoreFrame::Recovered { request, .. }
        | CoreFrame::Members { request, .. }) = &frame
        else {
            return;
        };
        let request = usize::try_from(*request).unwrap_or(usize::MAX);
        if let Some(answer) = self.requests.try_remove(request) {
            // The backend may have gone away meanwhile.
            let _ = answer.send(frame);
        }
    }

    async fn send(&mut self, link: LinkId, frame: CoreFrame) {
        let Some(entry) = self.links.get(link) else { return };
        match entry.sender.try_send(frame) {
            Ok(()) => {}
            Err(TrySendError::Closed) => self.cut(link),
            Err(TrySendError::Full(CoreFrame::Ephemeral(_))) => {
                self.partition.metrics.count_ephemeral_dropped();
            }
            Err(TrySendError::Full(_)) if entry.reach == Reach::Network => {
                debug!(link = link.0, "a link over the network is full and is cut");
                self.partition.metrics.count_link_cut();
                self.cut(link);
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
        if let Some(entry) = self.links.get(link) {
            entry.cut.cancel();
        }
        self.remove_link(link);
    }

    fn remove_link(&mut self, link: LinkId) {
        if self.links.remove(link) {
            self.partition.table.remove_link(link);
            self.partition.sessions.detach(link);
            self.partition.presence.detach(self.partition.clock.unix_ms(), link);
        }
    }

    async fn sweep(&mut self) {
        self.end_refusing().await;
        let unix_ms = self.partition.clock.unix_ms();
        self.partition.table.sweep(unix_ms, SWEEP_STEPS);
        self.partition.sessions.sweep(unix_ms, SWEEP_STEPS);
        self.partition.presence.sweep(unix_ms, SWEEP_STEPS, &mut self.outputs);
        self.update_gauges();
        // Whom that made leave. Of channels nothing waits here: what they decide is sent once it is logged.
        if !self.outputs.is_empty() {
            self.send_outputs().await;
        }
    }

    fn update_gauges(&mut self) {
        let Partition { table, sessions, presence, .. } = &self.partition;
        self.gauges.update(table, sessions, presence);
        self.partition.status.set_sizes(table.channels(), table.interest());
    }
}

/// Why a log frame is not in the log, as far as anybody knows.
#[derive(Debug)]
enum NotKept {
    Fenced,
    Refused(String),
}

/// A sweep of a million channels takes about four minutes, and holds the partition up for well under a millisecond
/// at a time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const SWEEP_STEPS: usize = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);
