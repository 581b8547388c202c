//! A node as one of several: the driver around [`Ownership`]. One task decides; every call of the engine runs in a task
//! of its own and reports, so that nothing holds the decisions up, above all not the one to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;
use tidegate_protocol::link::{Directory, DirectoryNode, DirectoryPartition};
use tidegate_transport::clock;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, info, warn};

use super::Inner;
use super::restore::{Ahead, Progress, RestoreError};
use super::slot::{Served, View};
use crate::engine::{
    AppendError, Claim, ClusterEvent, JoinError, LogPosition, Membership, NodeRecord, PartitionId,
    PartitionRecord, RenewError,
};
use crate::partition::End;
use crate::placement::ownership::{Action, Outcome, Ownership};

/// What a node knows of the cluster, and how its decisions are reached.
#[derive(Debug)]
pub(crate) struct Handle {
    inputs: mpsc::Sender<Input>,
    /// Who owns what.
    pub(super) directory: watch::Sender<Arc<Directory>>,
    /// The lease table behind it, for people.
    table: Mutex<Arc<Table>>,
    settled: AtomicBool,
    left: CancellationToken,
}

impl Handle {
    /// For [`run`], with what it is fed.
    pub(super) fn new() -> (Self, mpsc::Receiver<Input>) {
        let (inputs, receiver) = mpsc::channel(INPUTS);
        let directory = watch::Sender::new(Arc::default());
        let handle = Self {
            inputs,
            directory,
            table: Mutex::default(),
            settled: AtomicBool::new(false),
            left: CancellationToken::new(),
        };
        (handle, receiver)
    }

    /// The lease table, as this node has heard of it.
    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// True while this node is in the lease table and serves all that it is to serve.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Hands everything over and leaves; after `within` without waiting for anybody to be ready.
    pub(super) async fn leave(&self, within: Duration) {
        if self.inputs.send(Input::Leave { within }).await.is_ok() {
            // Releases are answered by an engine, which may be out of reach.
            let _ = timeout(within.max(LEAVE_WAIT), self.left.cancelled()).await;
        }
    }
}

/// What a node has heard of the lease table.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Those that live.
    pub(super) nodes: Vec<NodeRecord>,
    /// By number.
    pub(super) partitions: Vec<PartitionRecord>,
    /// What this node reads ahead, and how far that is.
    pub(super) ahead: Vec<(u16, Progress)>,
    /// What it leaves to others for now.
    pub(super) declines: Vec<u16>,
}

/// How a partition's task reaches the decisions about it.
#[derive(Debug)]
pub(crate) struct Control {
    inputs: mpsc::Sender<Input>,
    partition: u16,
    job: u64,
}

impl Control {
    /// The partition is about to claim its log anew. False where it may not have it any more.
    pub(crate) async fn reclaiming(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        let input = Input::Reclaiming { partition: self.partition, job: self.job, answer };
        self.inputs.send(input).await.is_ok() && answered.await.is_ok()
    }

    /// It has, and serves on.
    pub(crate) async fn reclaimed(&self, claim: &Claim) {
        let input = Input::Claimed { job: self.job, claim: copy(claim), serving: true };
        // Where nobody decides any more, the partition ends too.
        let _ = self.inputs.send(input).await;
    }
}

/// What the deciding task is told. A `job` is one stretch of a partition on this node: what comes of one that was
/// stopped is dropped.
#[derive(Debug)]
pub(crate) enum Input {
    Event(ClusterEvent),
    WatchBroken,
    Joined { began: Instant, joined: Result<Box<dyn Membership>, JoinError> },
    Renewed { joined: u64, membership: Box<dyn Membership>, outcome: Outcome },
    Claimed { job: u64, claim: Claim, serving: bool },
    Serving { partition: u16, job: u64, served: Served },
    Reclaiming { partition: u16, job: u64, answer: oneshot::Sender<()> },
    Job { partition: u16, job: u64, outcome: Outcome },
    Leave { within: Duration },
    Left,
}

/// A partition, as its driver has it.
#[derive(Debug, Default)]
struct Running {
    job: u64,
    stop: CancellationToken,
    ahead: Option<ReadingAhead>,
    claim: Option<Claim>,
    hand_over: Option<mpsc::Sender<Option<NodeId>>>,
}

/// A log that is read ahead of its claim.
#[derive(Debug)]
struct ReadingAhead {
    finish: CancellationToken,
    progress: Progress,
    task: JoinHandle<Option<Ahead>>,
}

impl ReadingAhead {
    /// What it has got so far.
    async fn take(mut self) -> Option<Ahead> {
        self.finish.cancel();
        (&mut self.task).await.ok().flatten()
    }
}

impl Drop for ReadingAhead {
    /// Nobody wants it.
    fn drop(&mut self) {
        self.finish.cancel();
    }
}

struct Cluster {
    node: Arc<Inner>,
    handle: Arc<Handle>,
    record: NodeRecord,
    machine: Ownership,
    /// Not here while it is being renewed, or begun again.
    membership: Option<Box<dyn Membership>>,
    /// One of both is under way.
    renewing: bool,
    joined: u64,
    leaving: bool,
    /// It has left.
    gone: bool,
    hurry_at: Option<Instant>,
    running: Vec<Running>,
    directory_is_old: bool,
    /// What this node leaves to others, as it was said last.
    declines: Vec<u16>,
}

/// Decides until the node has left, or aborts.
pub(super) async fn run(
    node: Arc<Inner>,
    handle: Arc<Handle>,
    record: NodeRecord,
    machine: Ownership,
    membership: Box<dyn Membership>,
    mut inputs: mpsc::Receiver<Input>,
) {
    let partitions = usize::from(node.slots.len());
    let (drain, abort) = (node.lifecycle.drain.clone(), node.lifecycle.abort.clone());
    let ended = CancellationToken::new();
    let _ended: DropGuard = ended.clone().drop_guard();
    node.lifecycle.tracker.spawn(follow_table(Arc::clone(&node), handle.inputs.clone(), ended));
    let mut cluster = Cluster {
        node,
        handle,
        record,
        machine,
        membership: Some(membership),
        renewing: false,
        joined: 0,
        leaving: false,
        gone: false,
        hurry_at: None,
        running: std::iter::repeat_with(Running::default).take(partitions).collect(),
        directory_is_old: false,
        declines: Vec::new(),
    };
    let mut draining = false;
    loop {
        // Before anything else: a process that was stopped for a while may have nothing to decide any more.
        cluster.machine.handle_timeout(clock::now());
        cluster.act();
        cluster.tell();
        if cluster.gone {
            break;
        }
        let timers = [cluster.machine.poll_timeout(), cluster.hurry_at];
        let timer = timers.into_iter().flatten().min();
        // Biased: ends come once; a timer that has passed is dealt with at once, above, and then is another one.
        tokio::select! {
            biased;
            () = abort.cancelled() => return cluster.stop_all(),
            () = drain.cancelled(), if !draining => {
                draining = true;
                cluster.machine.handle_hurry(clock::now());
            }
            () = sleep_until(timer) => {
                if cluster.hurry_at.is_some_and(|at| at <= clock::now()) {
                    cluster.hurry_at = None;
                    cluster.machine.handle_hurry(clock::now());
                }
            }
            input = inputs.recv() => match input {
                Some(input) => cluster.handle(input),
                None => break,
            },
        }
    }
    cluster.handle.left.cancel();
    info!("left the cluster");
}

impl Cluster {
    fn handle(&mut self, input: Input) {
        let now = clock::now();
        match input {
            Input::Event(event) => {
                self.directory_is_old = true;
                self.log(&event);
                self.machine.handle_event(now, event);
            }
            Input::WatchBroken => self.machine.handle_watch_broken(),
            Input::Joined { began, joined: Ok(membership) } => {
                info!("joined the cluster again");
                self.renewing = false;
                self.joined += 1;
                self.membership = Some(membership);
                if self.leaving {
                    return self.leave();
                }
                self.machine.handle_outcome(now, Outcome::Renewed(began));
                self.extend_lease();
            }
            Input::Joined { joined: Err(error), .. } => {
                warn!(%error, "cannot join the cluster yet");
                self.renewing = false;
                self.gone = self.leaving;
                self.machine.handle_outcome(now, Outcome::NotRenewed);
            }
            Input::Renewed { joined, membership, outcome } => {
                if joined != self.joined {
                    return;
                }
                self.renewing = false;
                self.membership = Some(membership);
                if self.leaving {
                    return self.leave();
                }
                self.machine.handle_outcome(now, outcome);
                self.extend_lease();
            }
            Input::Claimed { job, claim, serving } => {
                let partition = claim.partition().0;
                if self.is_current(partition, job) {
                    self.machine.handle_outcome(now, Outcome::Claimed(partition, claim.term()));
                    self.running[usize::from(partition)].claim = Some(claim);
                    if serving {
                        self.machine.handle_outcome(now, Outcome::Serving(partition));
                    }
                }
            }
            Input::Serving { partition, job, served } => {
                if self.is_current(partition, job) {
                    self.node.slots.set(partition, View::Serving(served));
                    self.machine.handle_outcome(now, Outcome::Serving(partition));
                }
            }
            Input::Reclaiming { partition, job, answer } => {
                if self.is_current(partition, job) {
                    self.machine.handle_outcome(now, Outcome::Reclaiming(partition));
                    // A partition that ended meanwhile needs none.
                    let _ = answer.send(());
                }
            }
            Input::Job { partition, job, outcome } => {
                if self.is_current(partition, job) {
                    if !matches!(outcome, Outcome::Prepared(_) | Outcome::Told(_) | Outcome::Proposed(..)) {
                        self.stop(partition);
                    }
                    self.machine.handle_outcome(now, outcome);
                }
            }
            Input::Leave { within } => {
                info!("handing everything over");
                // What is left then is to be let go of in that time, too.
                self.hurry_at = Some(now + within.saturating_sub(LAST_HURRY.min(within / 4)));
                self.machine.handle_drain(now);
            }
            Input::Left => self.gone = true,
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            debug!(?action);
            match action {
                Action::Join => self.join(),
                Action::Renew => self.renew(),
                Action::Claim(partition) => self.claim(partition),
                Action::Prepare(partition) => self.prepare(partition),
                Action::Ready(partition, term) => self.ready(partition, term),
                Action::Propose(partition, next) => self.propose(partition, next),
                Action::Release(partition, to) => {
                    self.node.slots.set(partition, View::Elsewhere);
                    let hand_over = self.running[usize::from(partition)].hand_over.take();
                    // One that ended meanwhile says so.
                    let _ = hand_over.map(|hand_over| hand_over.try_send(to));
                }
                Action::Stop(partition) | Action::DropPrepared(partition) => self.stop(partition),
                Action::FenceAll => {
                    warn!("this node cannot prove to be alive: everything stops until it can");
                    self.extend_lease();
                    self.stop_all();
                }
                Action::Leave => self.leave(),
            }
        }
    }

    /// What others look at.
    fn tell(&mut self) {
        self.handle.settled.store(self.machine.is_settled(), Ordering::Relaxed);
        self.tell_declines();
        if !std::mem::take(&mut self.directory_is_old) {
            return;
        }
        let ahead = (0..)
            .zip(&self.running)
            .filter_map(|(partition, running)| Some((partition, running.ahead.as_ref()?.progress.clone())));
        let table = Table {
            nodes: self.machine.nodes().cloned().collect(),
            partitions: self.machine.records().cloned().collect(),
            ahead: ahead.collect(),
            declines: self.declines.clone(),
        };
        *self.handle.table.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        let directory = self.directory();
        self.handle.directory.send_if_modified(|told| {
            let changed = **told != directory;
            if changed {
                *told = Arc::new(directory);
            }
            changed
        });
    }

    /// What this node cannot have, and somebody is to look into.
    fn tell_declines(&mut self) {
        let declines = self.machine.declines();
        if declines == self.declines {
            return;
        }
        for partition in declines.iter().filter(|partition| !self.declines.contains(partition)) {
            error!(partition, "this node fails to take the partition again and again: others are to have it");
        }
        for partition in self.declines.iter().filter(|partition| !declines.contains(partition)) {
            info!(partition, "this node is to have the partition again");
        }
        self.node.metrics.set_declined(declines.len());
        self.declines = declines;
        self.directory_is_old = true;
    }

    fn directory(&self) -> Directory {
        let machine = &self.machine;
        let nodes = machine.nodes().map(|record| DirectoryNode {
            id: record.id.clone(),
            address: Arc::from(record.address.as_str()),
        });
        let partitions = (0..).zip(machine.records()).map(|(partition, record)| {
            // Whoever is to have it next lets edges wait there.
            let owner = if record.released { &record.next } else { &record.owner };
            let owner = owner.clone().filter(|owner| machine.is_willing(owner, partition));
            DirectoryPartition { owner, term: record.term }
        });
        Directory { nodes: nodes.collect(), partitions: partitions.collect() }
    }

    fn log(&self, event: &ClusterEvent) {
        match event {
            ClusterEvent::Node { id, record: Some(record) } => {
                info!(
                    node = id.as_str(),
                    address = record.address,
                    version = record.version,
                    "node is alive"
                );
            }
            ClusterEvent::Node { id, record: None } => info!(node = id.as_str(), "node is gone"),
            ClusterEvent::Partition { partition, record } => {
                let owner = record.owner.as_ref().map(NodeId::as_str);
                debug!(partition = partition.0, owner, term = record.term, "partition");
            }
            ClusterEvent::Synced => debug!("the lease table is known"),
        }
    }

    fn extend_lease(&self) {
        self.node.lease.set(self.machine.alive_until());
    }

    fn is_current(&self, partition: u16, job: u64) -> bool {
        self.running.get(usize::from(partition)).is_some_and(|running| running.job == job)
    }

    /// Ends what there is of the partition, and drops what is still on its way from it.
    fn stop(&mut self, partition: u16) {
        let running = &mut self.running[usize::from(partition)];
        running.stop.cancel();
        *running = Running { job: running.job + 1, ..Running::default() };
        self.node.slots.set(partition, View::Elsewhere);
    }

    fn stop_all(&mut self) {
        for partition in 0..self.node.slots.len() {
            self.stop(partition);
        }
    }

    fn join(&mut self) {
        let (node, inputs) = (Arc::clone(&self.node), self.handle.inputs.clone());
        let record = NodeRecord { declines: self.machine.declines(), ..self.record.clone() };
        self.renewing = true;
        // Of the one that was lost nothing can be had any more.
        self.membership = None;
        self.spawn(async move {
            let began = clock::now();
            let joined = node.engine.join(record).await;
            let _ = inputs.send(Input::Joined { began, joined }).await;
        });
    }

    fn renew(&mut self) {
        let Some(mut membership) = self.membership.take() else { return };
        membership.set_declines(self.machine.declines());
        self.renewing = true;
        let (joined, inputs) = (self.joined, self.handle.inputs.clone());
        let patience = self.node.engine.capabilities().lease / 2;
        self.spawn(async move {
            let began = clock::now();
            let outcome = match timeout(patience, membership.renew()).await {
                Ok(Ok(())) => Outcome::Renewed(began),
                Ok(Err(RenewError::Lost)) => Outcome::Lost,
                Ok(Err(error)) => {
                    warn!(%error, "the lease was not renewed");
                    Outcome::NotRenewed
                }
                Err(_) => {
                    warn!("the lease was not renewed in time");
                    Outcome::NotRenewed
                }
            };
            let _ = inputs.send(Input::Renewed { joined, membership, outcome }).await;
        });
    }

    fn leave(&mut self) {
        self.leaving = true;
        self.extend_lease();
        self.stop_all();
        let Some(membership) = self.membership.take() else {
            // Where it is being renewed, its coming back calls this again.
            self.gone = !self.renewing;
            return;
        };
        let inputs = self.handle.inputs.clone();
        self.spawn(async move {
            let _ = timeout(LEAVE_WAIT, membership.leave()).await;
            let _ = inputs.send(Input::Left).await;
        });
    }

    fn claim(&mut self, partition: u16) {
        let running = &mut self.running[usize::from(partition)];
        running.job += 1;
        running.stop = self.node.lifecycle.abort.child_token();
        let (hand_over, orders) = mpsc::channel(1);
        running.hand_over = Some(hand_over);
        self.node.slots.set(partition, View::Coming);
        let claiming = Claiming {
            node: Arc::clone(&self.node),
            inputs: self.handle.inputs.clone(),
            partition,
            job: running.job,
            stop: running.stop.clone(),
        };
        let ahead = running.ahead.take();
        let stop = running.stop.clone();
        self.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = claiming.run(ahead, orders) => {}
            }
        });
    }

    fn prepare(&mut self, partition: u16) {
        let running = &mut self.running[usize::from(partition)];
        running.job += 1;
        running.stop = self.node.lifecycle.abort.child_token();
        let finish = running.stop.child_token();
        let (node, inputs, job) = (Arc::clone(&self.node), self.handle.inputs.clone(), running.job);
        let epoch = self.machine.records().nth(usize::from(partition)).map_or(0, |record| record.epoch);
        let stop = finish.clone();
        let progress = Progress::default();
        let read = progress.clone();
        let task = self.node.lifecycle.tracker.spawn(async move {
            let tell = |outcome| inputs.send(Input::Job { partition, job, outcome });
            let told = async {
                let _ = tell(Outcome::Prepared(partition)).await;
            };
            match node.restorer.follow(PartitionId(partition), epoch, stop, told, &read).await {
                Ok(ahead) => ahead,
                Err(error) => {
                    warn!(partition, %error, "the log cannot be read ahead");
                    let _ = tell(Outcome::NotPrepared(partition)).await;
                    None
                }
            }
        });
        running.ahead = Some(ReadingAhead { finish, progress, task });
        self.directory_is_old = true;
        self.node.slots.set(partition, View::Coming);
    }

    fn ready(&mut self, partition: u16, term: u64) {
        let job = self.running[usize::from(partition)].job;
        let (node, inputs) = (Arc::clone(&self.node), self.handle.inputs.clone());
        let me = self.record.id.clone();
        self.spawn(async move {
            if let Err(error) = node.engine.ready(PartitionId(partition), term, &me).await {
                debug!(partition, %error, "the owner could not be told that its log is read");
            }
            let _ = inputs.send(Input::Job { partition, job, outcome: Outcome::Told(partition) }).await;
        });
    }

    fn propose(&mut self, partition: u16, next: Option<NodeId>) {
        let running = &self.running[usize::from(partition)];
        let Some(claim) = running.claim.as_ref().map(copy) else { return };
        let job = running.job;
        let (node, inputs) = (Arc::clone(&self.node), self.handle.inputs.clone());
        self.spawn(async move {
            let outcome = match node.engine.propose(&claim, next.as_ref()).await {
                Ok(()) => Outcome::Proposed(partition, true),
                Err(AppendError::Fenced) => Outcome::Ended(partition),
                Err(error) => {
                    warn!(partition, %error, "a hand-over could not be proposed");
                    Outcome::Proposed(partition, false)
                }
            };
            let _ = inputs.send(Input::Job { partition, job, outcome }).await;
        });
    }

    /// Ends with the node.
    fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let abort = self.node.lifecycle.abort.clone();
        self.node.lifecycle.tracker.spawn(async move {
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                () = job => {}
            }
        });
    }
}

/// A partition on its way from a claim to being served.
struct Claiming {
    node: Arc<Inner>,
    inputs: mpsc::Sender<Input>,
    partition: u16,
    job: u64,
    stop: CancellationToken,
}

impl Claiming {
    async fn run(self, ahead: Option<ReadingAhead>, orders: mpsc::Receiver<Option<NodeId>>) {
        if let Err(error) = self.serve(ahead, orders).await {
            warn!(partition = self.partition, %error, "the partition cannot be served");
            self.tell(Outcome::Failed(self.partition)).await;
        }
    }

    async fn serve(
        &self,
        ahead: Option<ReadingAhead>,
        orders: mpsc::Receiver<Option<NodeId>>,
    ) -> Result<(), RestoreError> {
        let Self { node, partition, job, .. } = self;
        let began = clock::now();
        let claim = node.engine.claim(PartitionId(*partition), &node.name).await?;
        node.metrics.count_claim();
        let _ = self.inputs.send(Input::Claimed { job: *job, claim: copy(&claim), serving: false }).await;
        let ahead = match ahead {
            Some(ahead) => ahead.take().await,
            None => None,
        };
        let table = node.restorer.restore(&claim, ahead).await?;
        let took = clock::now().saturating_duration_since(began);
        node.metrics.observe_replay(took);
        info!(partition, term = claim.term(), tail = claim.tail().0, ?took, "serving");

        let control = Control { inputs: self.inputs.clone(), partition: *partition, job: *job };
        let (task, served) = node.partition(claim, table, orders, self.stop.clone(), Some(control));
        let (inputs, partition, job) = (self.inputs.clone(), *partition, *job);
        let _ = inputs.send(Input::Serving { partition, job, served }).await;
        let running = super::run(task, node.metrics.clone(), node.lifecycle.abort.clone());
        node.lifecycle.tracker.spawn(async move {
            let outcome = match running.await {
                End::HandedOver => Outcome::Released(partition),
                End::Failed => Outcome::Failed(partition),
                End::Drained | End::Fenced | End::Aborted => Outcome::Ended(partition),
            };
            let _ = inputs.send(Input::Job { partition, job, outcome }).await;
        });
        Ok(())
    }

    async fn tell(&self, outcome: Outcome) {
        let _ = self.inputs.send(Input::Job { partition: self.partition, job: self.job, outcome }).await;
    }
}

/// Follows the lease table, by one watch after the other.
async fn follow_table(node: Arc<Inner>, inputs: mpsc::Sender<Input>, ended: CancellationToken) {
    let follow = async {
        let mut pause = FIRST_PAUSE;
        loop {
            match node.engine.watch().await {
                Ok(mut watch) => {
                    while let Some(event) = watch.next().await {
                        pause = FIRST_PAUSE;
                        if inputs.send(Input::Event(event)).await.is_err() {
                            return;
                        }
                    }
                    warn!("the watch of the lease table broke");
                    if inputs.send(Input::WatchBroken).await.is_err() {
                        return;
                    }
                }
                Err(error) => warn!(%error, "the lease table cannot be watched"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    };
    tokio::select! {
        biased;
        () = ended.cancelled() => {}
        () = follow => {}
    }
}

/// To show it to the engine while the partition writes with it.
fn copy(claim: &Claim) -> Claim {
    Claim::new(claim.partition(), claim.term(), claim.epoch(), claim.first(), LogPosition(claim.tail().0))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Whoever reports waits beyond it; nobody reports more than a few things at a time.
const INPUTS: usize = 256;
const LEAVE_WAIT: Duration = Duration::from_secs(3);
/// Before the time for leaving is over.
const LAST_HURRY: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);
