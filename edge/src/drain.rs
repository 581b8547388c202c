//! Draining a node, and taking in the clients of others that are drained: what the rest of the process and the other nodes
//! may ask for, and what came of it.

mod exchange;
mod ledger;
mod paced;
mod places;
mod run;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_protocol::endpoint::endpoint_of;
use tidegate_protocol::link::drain::{
    DrainCounts, DrainOrder, DrainQuestion, DrainReport, DrainStage, MAX_PLACES,
};
use tidegate_protocol::link::fleet::EdgeState;
use tidegate_protocol::{NodeId, Region};
use tidegate_transport::clock;
use tidegate_transport::link::{CallError, DrainAnswer, DrainCalls};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::door::Door;
use crate::fleet::Fleet;
use crate::sessions::Sessions;
use paced::to_successor;
use places::{Pace, Place, Places, Whither};
use run::{Command, Task, Told};

pub use crate::policy::admission::SHARE;

/// Drains an edge, stops doing so, and lets in clients of edges that are drained. Clones are the same.
#[derive(Debug, Clone)]
pub struct DrainControl {
    inner: Arc<Inner>,
}

/// What a drain works with.
#[derive(Debug)]
pub(crate) struct Inner {
    node: NodeId,
    region: Region,
    sessions: Sessions,
    door: Door,
    fleet: Fleet,
    /// The node's end.
    end: CancellationToken,
    running: Mutex<Option<Running>>,
    /// Places that were granted to others, and until when.
    granted: Mutex<BTreeMap<u32, (NodeId, Instant)>>,
    /// Who is to be told that the places are none any more.
    revoked: mpsc::Sender<(NodeId, u32)>,
    revocations: tokio::sync::Mutex<mpsc::Receiver<(NodeId, u32)>>,
    calls: DrainCalls,
}

/// One drain: over when this is dropped.
#[derive(Debug)]
struct Running {
    commands: mpsc::Sender<Told>,
    report: watch::Receiver<DrainReport>,
    _stop: DropGuard,
}

/// Why an order is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// Nobody of those that are named takes clients.
    #[error("no node that takes clients is meant by `to`")]
    NoTarget,
    /// Nobody else of the region does.
    #[error("no other edge of this region takes clients: say where to")]
    Alone,
    /// `within` is too short, or too long.
    #[error("`within` is from 1s to 24h")]
    Within,
    /// Too many places.
    #[error("`to` can have {MAX_PLACES} places at most")]
    Places,
    /// A newer one holds.
    #[error("a newer order holds")]
    Outdated,
    /// The drain has more to do than it is told.
    #[error("the drain does not listen: try again")]
    Busy,
}

/// Where clients of `node` would go by an order to `to`, if these were all edges: names of edges, and of places outside of the
/// fleet their address.
pub fn targets_of(edges: &[EdgeState], node: &EdgeState, to: &[String]) -> Vec<NodeId> {
    let mut places = Places::new(node.node.clone(), node.region.clone(), Whither::Named(to.to_vec()));
    places.handle_edges(edges.iter()).into_iter().map(|place| place.node).collect()
}

impl DrainControl {
    pub(crate) fn new(sessions: Sessions, door: Door, fleet: Fleet, end: CancellationToken) -> Self {
        let (node, region) = sessions.place();
        let (revoked, revocations) = mpsc::channel(REVOCATIONS);
        let inner = Inner {
            node,
            region,
            sessions,
            door,
            fleet,
            end,
            running: Mutex::default(),
            granted: Mutex::default(),
            revoked,
            revocations: tokio::sync::Mutex::new(revocations),
            calls: DrainCalls::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The name of the node.
    pub fn node(&self) -> &NodeId {
        &self.inner.node
    }

    /// The sessions that it drains.
    pub fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    /// The nodes that they can go to.
    pub fn fleet(&self) -> &Fleet {
        &self.inner.fleet
    }

    /// Answers the other nodes: those that ask for places, and those that pass on orders. Runs until it is dropped; for one
    /// task.
    pub async fn answer_others(&self) {
        exchange::run(&self.inner).await;
    }

    /// Begins; where a drain goes on, the newer of the two orders holds. When nobody is left, newcomers are refused until
    /// it is called off.
    ///
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Where it can lead nowhere. Nothing has changed then.
    pub async fn begin(&self, order: DrainOrder) -> Result<(), DrainError> {
        let whither = Whither::Named(order.to.clone());
        check(&order)?;
        if self.targets(&whither).is_empty() {
            return Err(if order.to.is_empty() { DrainError::Alone } else { DrainError::NoTarget });
        }
        let heard = {
            let mut running = self.inner.running();
            match running.as_ref().filter(|running| running.is_on()) {
                Some(running) if order.drain < running.report.borrow().order.drain => {
                    return Err(DrainError::Outdated);
                }
                Some(running) => running.say(Command::Order(order))?,
                None => {
                    *running = Some(self.start(Task { order, whither, is_announced: true }));
                    return Ok(());
                }
            }
        };
        until_done(heard).await;
        Ok(())
    }

    /// Asks nobody more to move, until [`DrainControl::resume`].
    ///
    /// # Errors
    /// [`DrainError::Busy`].
    pub async fn pause(&self) -> Result<(), DrainError> {
        self.tell(Command::Pause).await
    }

    /// Goes on. The deadline is as much later.
    ///
    /// # Errors
    /// [`DrainError::Busy`].
    pub async fn resume(&self) -> Result<(), DrainError> {
        self.tell(Command::Resume).await
    }

    /// Serves as before. Who was asked to move goes all the same.
    ///
    /// # Errors
    /// [`DrainError::Busy`].
    pub async fn abort(&self) -> Result<(), DrainError> {
        self.tell(Command::Abort).await
    }

    /// How far it is, or how it ended; `None` where there was none.
    pub fn report(&self) -> Option<DrainReport> {
        self.inner.running().as_ref().map(|running| running.report.borrow().clone())
    }

    /// True from an order until it is called off.
    pub fn is_drained(&self) -> bool {
        self.inner.running().as_ref().is_some_and(Running::is_on)
    }

    /// Moves everybody to whichever other edges take clients, because this one ends; returns when nobody is left, or at
    /// once where nobody could go anywhere. Cancel-safe.
    pub async fn drain_before_end(&self, within: Duration) {
        if !self.targets(&Whither::Anywhere).is_empty() && !self.sessions().list().await.is_empty() {
            self.drain_to(Whither::Anywhere, within, true).await;
        }
    }

    /// Moves everybody to the process that listens in place of this one, at the pace that it can take by what this one saw
    /// last, at least at a part of `rate`, clients per second that a door lets in; returns when nobody is left. That is
    /// after `least` at the latest, or as long as the pace takes, twice. Cancel-safe.
    pub async fn drain_to_successor(&self, least: Duration, rate: f64) {
        let sessions = self.sessions().list().await.len();
        let (pace, needed) = to_successor(sessions, self.inner.door.slack(), rate);
        self.drain_to(Whither::Successor(pace), needed.max(least), false).await;
    }

    /// Asks another edge about its drain, or to do something about it. This one, too.
    ///
    /// # Errors
    /// Where it is out of reach, does not answer, or refuses.
    pub async fn ask(&self, node: &NodeId, question: DrainQuestion) -> DrainAnswer {
        if *node == self.inner.node {
            let answer = self.inner.answer(question).await;
            return answer.map_err(|error| CallError::Refused(error.to_string()));
        }
        let send = |payload| self.inner.fleet.relay(node, payload);
        self.inner.calls.ask(node, question, send).await
    }

    async fn drain_to(&self, whither: Whither, within: Duration, is_announced: bool) {
        let order = DrainOrder {
            drain: clock::unix_ms().saturating_mul(1000),
            to: Vec::new(),
            within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        };
        let mut report = {
            let mut running = self.inner.running();
            // One that is over has left nobody but latecomers.
            let started = self.start(Task { order, whither, is_announced });
            let report = started.report.clone();
            *running = Some(started);
            report
        };
        // An error: its task ended with the node.
        let _ = report.wait_for(|report| report.stage >= DrainStage::Done).await;
    }

    #[expect(clippy::disallowed_methods, reason = "ends with the node, and holds up nobody's end")]
    fn start(&self, task: Task) -> Running {
        let stop = self.inner.end.child_token();
        let places = self.targets(&task.whither);
        let (sender, report) = watch::channel(self.inner.first_report(&task.order, &places));
        let (commands, orders) = mpsc::channel(COMMANDS);
        let run = run::run(Arc::clone(&self.inner), task, orders, sender);
        tokio::spawn(stop.clone().run_until_cancelled_owned(run));
        Running { commands, report, _stop: stop.drop_guard() }
    }

    fn targets(&self, whither: &Whither) -> Vec<Place> {
        let Inner { node, region, .. } = &*self.inner;
        let mut places = Places::new(node.clone(), region.clone(), whither.clone());
        places.handle_view(&self.inner.fleet.view())
    }

    async fn tell(&self, command: Command) -> Result<(), DrainError> {
        let heard = match self.inner.running().as_ref().filter(|running| running.is_on()) {
            Some(running) => running.say(command)?,
            None => return Ok(()),
        };
        until_done(heard).await;
        Ok(())
    }
}

impl Inner {
    /// Shuts the door, or opens it. Those who were promised places are told that there are none.
    fn set_lame_duck(&self, lame_duck: bool) {
        for number in self.door.handle_lame_duck(lame_duck) {
            if let Some((node, _)) = self.granted().remove(&number) {
                // Beyond the bound they are refused as they come, or let in: who has a place keeps it.
                let _ = self.revoked.try_send((node, number));
            }
        }
    }

    fn first_report(&self, order: &DrainOrder, places: &[Place]) -> DrainReport {
        let (targets, unannounced) = self.addresses(places.iter());
        DrainReport {
            order: order.clone(),
            stage: DrainStage::LameDuck,
            elapsed_ms: 0,
            targets,
            unannounced,
            counts: DrainCounts::default(),
            rate: 0.0,
            eta_ms: None,
            behind: false,
        }
    }

    /// Of places; and those outside of the fleet that clients were not told of.
    fn addresses<'a>(&self, places: impl Iterator<Item = &'a Place> + Clone) -> (Vec<String>, Vec<String>) {
        let url = |endpoint: &String| format!("https://{endpoint}");
        let alternatives = self.sessions.alternatives();
        let is_known =
            |endpoint: &&String| alternatives.iter().any(|known| endpoint_of(known) == endpoint_of(endpoint));
        let outside = places.clone().filter(|place| place.pace == Pace::Even);
        let unannounced =
            outside.filter_map(|place| place.endpoint.as_ref()).filter(|endpoint| !is_known(endpoint));
        let all = places.filter_map(|place| place.endpoint.as_ref());
        (all.map(url).take(MAX_PLACES).collect(), unannounced.map(url).take(MAX_PLACES).collect())
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn granted(&self) -> MutexGuard<'_, BTreeMap<u32, (NodeId, Instant)>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Not called off.
    fn is_on(&self) -> bool {
        self.report.borrow().stage != DrainStage::Abort
    }

    /// Without an answer.
    fn tell(&self, command: Command) -> Result<(), DrainError> {
        self.commands.try_send(Told { command, done: None }).map_err(|_| DrainError::Busy)
    }

    /// Gives what says that it was done.
    fn say(&self, command: Command) -> Result<oneshot::Receiver<()>, DrainError> {
        let (done, heard) = oneshot::channel();
        self.commands.try_send(Told { command, done: Some(done) }).map_err(|_| DrainError::Busy)?;
        Ok(heard)
    }
}

/// So that who asks sees it in the report. A drain that is busy does it all the same.
async fn until_done(heard: oneshot::Receiver<()>) {
    let _ = timeout(HEARD, heard).await;
}

fn check(order: &DrainOrder) -> Result<(), DrainError> {
    if order.to.len() > MAX_PLACES {
        return Err(DrainError::Places);
    }
    if !(MIN_WITHIN..=MAX_WITHIN).contains(&Duration::from_millis(order.within_ms)) {
        return Err(DrainError::Within);
    }
    Ok(())
}

/// What a drain is told that it has not heard yet: more leases are lost, and asked for again.
const COMMANDS: usize = 1024;
const REVOCATIONS: usize = 1024;
/// For a drain to do what it is told.
const HEARD: Duration = Duration::from_secs(1);
const MIN_WITHIN: Duration = Duration::from_secs(1);
const MAX_WITHIN: Duration = Duration::from_secs(24 * 3600);
