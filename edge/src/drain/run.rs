//! One drain of this node: what happens goes into the machine, what it says is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;
use tidegate_protocol::frame::Goaway;
use tidegate_protocol::link::drain::{DrainCounts, DrainOrder, DrainReport, DrainStage};
use tidegate_protocol::link::fleet::EdgeCondition;
use tidegate_protocol::link::lease::LeaseFrame;
use tidegate_transport::clock;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::Inner;
use super::ledger::{Change, Ledger};
use super::paced::{Even, Paced};
use super::places::{Pace, Place, Places, Whither};
use crate::fleet::FleetWatch;
use crate::policy::admission::{DrainId, Issuer, Lease, LeaseAsk, SlotTicket};
use crate::policy::drain::{ConnectionKey, Departure, DrainConfig, Drainer, Event, Order, Stage};
use crate::sessions::{SessionKey, SessionNews};

/// What a drain is told beside what it sees itself.
#[derive(Debug)]
pub(super) enum Command {
    /// Another order.
    Order(DrainOrder),
    Pause,
    Resume,
    Abort,
    /// Of a target, for this drain.
    Lease(NodeId, LeaseFrame),
}

/// The same, with who waits until it is done.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) command: Command,
    pub(super) done: Option<oneshot::Sender<()>>,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) order: DrainOrder,
    pub(super) whither: Whither,
    /// Whether others know of it: not where another process has taken this one's place.
    pub(super) is_announced: bool,
}

/// A drain while it goes on.
struct Run {
    inner: Arc<Inner>,
    task: Task,
    began: Instant,
    even: Even,
    drainer: Drainer,
    /// What became of those of drainers before this one.
    before: DrainCounts,
    ledger: Ledger,
    places: Places,
    targets: BTreeMap<NodeId, Place>,
    paced: BTreeMap<NodeId, Paced>,
    /// Targets that are being asked for places.
    asking: BTreeSet<NodeId>,
    calls: JoinSet<Option<NodeId>>,
    goaways: Vec<(SessionKey, Goaway)>,
    stage: DrainStage,
    ended: Option<Instant>,
}

/// Drains until it is called off, or dropped. `report` is kept true.
pub(super) async fn run(
    inner: Arc<Inner>,
    task: Task,
    mut commands: mpsc::Receiver<Told>,
    report: watch::Sender<DrainReport>,
) {
    let mut news = inner.sessions.watch(NEWS).await;
    let mut view = inner.fleet.watch();
    let mut run = Run::new(inner, task, &view);
    let mut next_list = clock::now();
    let mut waits: Option<oneshot::Sender<()>> = None;
    loop {
        let now = clock::now();
        if next_list <= now {
            let listed = run.list(&mut news).await;
            next_list = clock::now() + LIST + LIST / 20_000 * u32::try_from(listed).unwrap_or(u32::MAX);
        }
        run.advance(&view).await;
        report.send_replace(run.report());
        if let Some(done) = waits.take() {
            // Who asked may have gone.
            let _ = done.send(());
        }
        if run.stage == DrainStage::Abort {
            // Leases are still on their way back.
            run.calls.detach_all();
            return;
        }
        let timer = run.drainer.poll_timeout().map_or(next_list, |at| at.min(next_list));
        tokio::select! {
            // Cancel-safe, all of them. The first are rare; news come in batches, between which the timer has its turn.
            biased;
            Some(Told { command, done }) = commands.recv() => {
                run.handle_command(command, &view);
                waits = done;
            }
            changed = view.changed() => match changed {
                Some(_) => run.handle_view(&view),
                None => return,
            },
            Some(asked) = run.calls.join_next() => {
                if let Ok(Some(target)) = asked {
                    run.asking.remove(&target);
                }
            }
            Some(one) = news.recv() => {
                run.handle_news(one);
                for _ in 0..BATCH {
                    let Ok(one) = news.try_recv() else { break };
                    run.handle_news(one);
                }
            }
            () = tokio::time::sleep_until(timer.into()) => {}
        }
    }
}

impl Run {
    fn new(inner: Arc<Inner>, task: Task, view: &FleetWatch) -> Self {
        let mut places = Places::new(inner.node.clone(), inner.region.clone(), task.whither.clone());
        let targets = by_node(places.handle_view(&view.current()));
        let now = clock::now();
        let drainer = drainer(&inner, &task, &task.order, &targets, now);
        info!(drain = task.order.drain, to = ?task.order.to, within_ms = task.order.within_ms, "draining");
        Self {
            inner,
            began: now,
            even: Even::new(now, Duration::from_millis(task.order.within_ms)),
            task,
            drainer,
            before: DrainCounts::default(),
            ledger: Ledger::default(),
            places,
            targets,
            paced: BTreeMap::new(),
            asking: BTreeSet::new(),
            calls: JoinSet::new(),
            goaways: Vec::new(),
            stage: DrainStage::LameDuck,
            ended: None,
        }
    }

    /// Does what is due, and what follows from it.
    async fn advance(&mut self, view: &FleetWatch) {
        let now = clock::now();
        if self.drainer.poll_timeout().is_some_and(|at| at <= now) {
            self.drainer.handle_timeout(now);
        }
        while let Some(event) = self.drainer.poll_event() {
            self.handle_event(event, view);
        }
        self.stage = match self.drainer.stage() {
            Stage::LameDuck => DrainStage::LameDuck,
            Stage::Move => DrainStage::Move,
            Stage::Pause => DrainStage::Pause,
            Stage::End if self.stage == DrainStage::Abort => DrainStage::Abort,
            Stage::End => DrainStage::Done,
        };
        if !self.goaways.is_empty() {
            // Who is gone meanwhile ended, which is told, or is missing in the next list.
            let goaways = std::mem::take(&mut self.goaways);
            self.inner.sessions.goaway(goaways).await;
        }
    }

    fn handle_event(&mut self, event: Event, view: &FleetWatch) {
        match event {
            Event::LameDuck(lame_duck) => self.set_lame_duck(lame_duck),
            Event::Ask { target, ask } => self.ask(target, ask, view),
            Event::Return { target, lease, from } => {
                self.send(target, LeaseFrame::Return { lease, from });
            }
            Event::Goaway { connection, target, ticket, after, deadline } => {
                self.goaway(connection, Some((target, ticket)), after, deadline);
            }
            Event::Close { connection, place, .. } => {
                // Who can move does so, if quickly; for the others it is the close.
                let moves = self.ledger.find(connection).is_some_and(|(_, moves)| moves);
                let deadline = if moves && place.is_some() { LAST_CHANCE } else { Duration::ZERO };
                self.goaway(connection, place, Duration::ZERO, deadline);
            }
            Event::Progress(_) => {}
            Event::Behind { needed, granted } => {
                warn!(
                    needed,
                    granted, "the drain will not be done in time at the pace that its targets allow"
                );
            }
            Event::Done(progress) => {
                self.ended = Some(clock::now());
                if progress.aborted {
                    self.stage = DrainStage::Abort;
                }
                let counts = self.counts();
                info!(?counts, aborted = progress.aborted, "the drain is over");
            }
        }
    }

    fn set_lame_duck(&self, lame_duck: bool) {
        if !self.task.is_announced {
            return;
        }
        let condition = match lame_duck {
            true => EdgeCondition::Drain { drain: self.task.order.drain },
            false => EdgeCondition::Serve,
        };
        self.inner.fleet.set_condition(condition);
        self.inner.set_lame_duck(lame_duck);
    }

    fn goaway(
        &mut self,
        connection: ConnectionKey,
        place: Option<(NodeId, SlotTicket)>,
        after: Duration,
        deadline: Duration,
    ) {
        let Some((key, _)) = self.ledger.find(connection) else { return };
        let target = place.as_ref().and_then(|(node, _)| self.targets.get(node));
        let endpoint = target.and_then(|target| target.endpoint.as_ref());
        // Who grants no places knows no tickets.
        let is_leased = target.is_some_and(|target| target.pace == Pace::Leased);
        let ticket = place.as_ref().map(|(_, ticket)| ticket).filter(|_| is_leased);
        let goaway = Goaway {
            endpoint: endpoint.map(|endpoint| format!("https://{endpoint}")),
            slot: ticket.map(|ticket| ticket.to_text()),
            after_ms: millis(after),
            deadline_ms: millis(deadline),
            reason: REASON.to_owned(),
        };
        self.goaways.push((key, goaway));
    }

    fn ask(&mut self, target: NodeId, ask: LeaseAsk, view: &FleetWatch) {
        let Some(place) = self.targets.get(&target) else { return };
        let now = clock::now();
        let rate = match place.pace {
            Pace::Leased => {
                // One that goes away meanwhile says nothing; nobody waits for it twice.
                if view.current().get(&target).is_some() && self.asking.insert(target.clone()) {
                    let LeaseAsk { drain, want, urgent } = ask;
                    self.call(target, LeaseFrame::Ask { drain: drain.0, want, urgent }, true);
                }
                return;
            }
            Pace::PerSecond(rate) => rate,
            Pace::Even => self.even.rate(now, self.counts().remaining),
        };
        let paced = self.paced.entry(target.clone()).or_insert_with(|| Paced::new(now, &target));
        if let Some(lease) = paced.grant(now, clock::unix_ms(), ask, rate) {
            self.drainer.handle_lease(now, &target, lease);
        }
    }

    /// Says it to a target, unless too much is being said already: leases that nobody gives back end by themselves.
    fn send(&mut self, target: NodeId, frame: LeaseFrame) {
        if self.targets.get(&target).is_none_or(|place| place.pace == Pace::Leased)
            && self.calls.len() < CALLS
        {
            self.call(target, frame, false);
        }
    }

    fn call(&mut self, target: NodeId, frame: LeaseFrame, is_ask: bool) {
        let fleet = self.inner.fleet.clone();
        self.calls.spawn(async move {
            // Not passed on: asked again, or forgotten.
            let _ = fleet.relay(&target, frame.encode()).await;
            is_ask.then_some(target)
        });
    }

    fn handle_command(&mut self, command: Command, view: &FleetWatch) {
        let now = clock::now();
        match command {
            Command::Order(order) => self.handle_order(order, view),
            Command::Pause => self.drainer.pause(now),
            Command::Resume => self.even.handle_resumed(self.drainer.resume(now)),
            Command::Abort if self.drainer.stage() == Stage::End => {
                // Nobody is left to be told that they may stay.
                self.stage = DrainStage::Abort;
                self.set_lame_duck(false);
            }
            Command::Abort => self.drainer.abort(now),
            Command::Lease(from, LeaseFrame::Grant { drain, lease, first_ms, spacing_us, count }) => {
                let (drain, issuer) = (DrainId(drain), Issuer::of(&from));
                let lease = Lease { drain, issuer, number: lease, first_ms, spacing_us, count };
                self.drainer.handle_lease(now, &from, lease);
            }
            Command::Lease(from, LeaseFrame::Revoke { lease }) => self.drainer.handle_revoked(&from, lease),
            Command::Lease(..) => {}
        }
    }

    fn handle_order(&mut self, order: DrainOrder, view: &FleetWatch) {
        if order.drain < self.task.order.drain {
            return;
        }
        info!(drain = order.drain, to = ?order.to, within_ms = order.within_ms, "another order for this drain");
        let now = clock::now();
        self.task.whither = Whither::Named(order.to.clone());
        self.task.order = order;
        self.began = now;
        self.even = Even::new(now, Duration::from_millis(self.task.order.within_ms));
        self.places.set(self.task.whither.clone());
        self.handle_view(view);
        if self.drainer.stage() != Stage::End {
            self.drainer.handle_order(now, machine_order(&self.task.order, &self.targets, now));
        }
        // Others are to know it by the order that holds.
        self.set_lame_duck(true);
    }

    fn handle_view(&mut self, view: &FleetWatch) {
        let view = view.current();
        let targets = by_node(self.places.handle_view(&view));
        // One that stopped serving before it died is no target any more, but clients may be on their way there.
        let mut gone = self.drainer.destinations();
        gone.extend(self.targets.keys().cloned());
        gone.retain(|node| !targets.contains_key(node));
        for node in &gone {
            self.paced.remove(node);
            // Whoever is on the way to one that takes nobody more has a place there. A dead one has none.
            if view.get(node).is_none() {
                self.drainer.handle_target_gone(node);
            }
        }
        self.targets = targets;
        let nodes: Vec<NodeId> = self.targets.keys().cloned().collect();
        self.drainer.handle_targets(&nodes);
    }

    /// Who is here; how many they are.
    async fn list(&mut self, news: &mut mpsc::Receiver<SessionNews>) -> usize {
        self.ledger.handle_list_asked();
        let sessions = self.inner.sessions.list().await;
        while let Ok(one) = news.try_recv() {
            self.handle_news(one);
        }
        let now = clock::now();
        for change in self.ledger.handle_list(&sessions) {
            match change {
                Change::Here(candidate) => {
                    if self.drainer.stage() == Stage::End {
                        self.begin_again(now);
                    }
                    self.drainer.handle_connection(candidate);
                }
                Change::Class(number, class) => self.drainer.handle_class(number, class),
                Change::There(number) => self.drainer.handle_there(number),
                Change::Gone(number) => self.drainer.handle_gone(now, number, Departure::Broken),
            }
        }
        sessions.len()
    }

    fn handle_news(&mut self, news: SessionNews) {
        let now = clock::now();
        match news {
            SessionNews::End(end) => {
                if let Some((number, departure)) = self.ledger.handle_end(end) {
                    self.drainer.handle_gone(now, number, departure);
                }
            }
            SessionNews::PollEnd(key) => {
                if let Some(number) = self.ledger.number(key) {
                    self.drainer.handle_poll_ended(now, number);
                }
            }
        }
    }

    /// Somebody was let in before the door was shut, and is only known now.
    fn begin_again(&mut self, now: Instant) {
        self.before = self.counts();
        self.ended = None;
        let within_ms = (self.task.order.within_ms / 4).max(AGAIN_MS).min(self.task.order.within_ms);
        let order = DrainOrder { within_ms, ..self.task.order.clone() };
        self.drainer = drainer(&self.inner, &self.task, &order, &self.targets, now);
    }

    fn counts(&self) -> DrainCounts {
        let now = self.drainer.progress(clock::now());
        let count = |before: u64, now: usize| before + u64::try_from(now).unwrap_or(u64::MAX);
        DrainCounts {
            total: count(self.before.total, now.total),
            moved: count(self.before.moved, now.moved),
            closed: count(self.before.closed, now.closed),
            forced: count(self.before.forced, now.forced),
            left: count(self.before.left, now.left),
            in_flight: count(0, now.in_flight),
            remaining: count(0, now.remaining),
        }
    }

    fn report(&self) -> DrainReport {
        let now = clock::now();
        let progress = self.drainer.progress(now);
        let (targets, unannounced) = self.inner.addresses(self.targets.values());
        DrainReport {
            order: self.task.order.clone(),
            stage: self.stage,
            elapsed_ms: millis(self.ended.unwrap_or(now).saturating_duration_since(self.began)),
            targets,
            unannounced,
            counts: self.counts(),
            rate: if self.stage == DrainStage::Move { progress.rate } else { 0.0 },
            eta_ms: progress.eta.filter(|_| self.stage == DrainStage::Move).map(millis),
            behind: self.drainer.is_behind() && self.stage == DrainStage::Move,
        }
    }
}

fn drainer(
    inner: &Inner,
    task: &Task,
    order: &DrainOrder,
    targets: &BTreeMap<NodeId, Place>,
    now: Instant,
) -> Drainer {
    let within = Duration::from_millis(order.within_ms);
    let defaults = DrainConfig::default();
    let config = DrainConfig {
        lame_duck: defaults.lame_duck.min(within / 10),
        forced: defaults.forced.min(within / 5),
        // Where another process listens already, a poll that comes back by a new TCP connection finds nobody who knows it.
        polls: if matches!(task.whither, Whither::Successor(_)) { Duration::ZERO } else { defaults.polls },
        ..defaults
    };
    let wall = (now, clock::unix_ms());
    Drainer::new(config, inner.door.slot_keys(), machine_order(order, targets, now), wall)
}

fn machine_order(order: &DrainOrder, targets: &BTreeMap<NodeId, Place>, now: Instant) -> Order {
    Order {
        drain: DrainId(order.drain),
        deadline: now + Duration::from_millis(order.within_ms),
        targets: targets.keys().cloned().collect(),
    }
}

fn by_node(places: Vec<Place>) -> BTreeMap<NodeId, Place> {
    places.into_iter().map(|place| (place.node.clone(), place)).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// News that wait to be heard; beyond them, the next list says who is gone, and a poll is told with its next answer.
const NEWS: usize = 4096;
/// News that are heard in one go.
const BATCH: usize = 256;
/// Between two looks at who is here, and as much more for each 20,000 of them.
const LIST: Duration = Duration::from_secs(1);
/// For a client that can move, once the time of all is over.
const LAST_CHANCE: Duration = Duration::from_secs(2);
/// For latecomers.
const AGAIN_MS: u64 = 30_000;
/// Frames on their way to targets, beside what they are asked.
const CALLS: usize = 256;
const REASON: &str = "the server is drained";
