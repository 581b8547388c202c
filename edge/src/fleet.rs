//! The fleet as an edge knows it: every edge's load, slack and state, this one's included, and a way to send the others
//! something. It comes over the links to the cores; a node without links is a fleet of one.

mod announcer;
mod merge;
mod metrics;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::fleet::{
    EdgeCondition, EdgeState, FleetEntry, Known, MAX_RELAY_BYTES, RelayError, Relayed,
};
use tidegate_transport::clock;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::door::Door;
use crate::metrics::Metrics;
use crate::upstream::hub::Uplink;
use announcer::Announcer;
use merge::Merge;
use metrics::FleetMetrics;

pub use announcer::About;
pub(crate) use merge::Way;

/// What an edge knows of its fleet. Clones are the same.
#[derive(Debug, Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Locked for as long as a list takes to be merged or copied.
    state: Mutex<State>,
    view: watch::Sender<Arc<FleetView>>,
    /// This edge's newest word, for every core.
    own: watch::Sender<Option<EdgeState>>,
    condition: watch::Sender<EdgeCondition>,
    relayed: mpsc::Sender<Relayed>,
    inbox: AsyncMutex<mpsc::Receiver<Relayed>>,
    metrics: FleetMetrics,
}

#[derive(Debug)]
struct State {
    merge: Merge,
    /// Connections to cores.
    ways: BTreeMap<Way, Arc<dyn Uplink>>,
}

/// The edges of a fleet at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FleetView {
    edges: Vec<Known>,
}

impl FleetView {
    pub(crate) fn new(edges: Vec<Known>) -> Self {
        Self { edges }
    }

    /// All that are there, by name; this edge among them once it has announced itself.
    pub fn edges(&self) -> &[Known] {
        &self.edges
    }

    /// One of them.
    pub fn get(&self, node: &NodeId) -> Option<&Known> {
        let place = self.edges.binary_search_by(|known| known.state.node.cmp(node)).ok()?;
        self.edges.get(place)
    }

    /// All of them, as statuses show them.
    pub fn entries(&self, now: Instant) -> Vec<FleetEntry> {
        let entry = |known: &Known| FleetEntry {
            state: known.state.clone(),
            age: now.saturating_duration_since(known.heard),
        };
        self.edges.iter().map(entry).collect()
    }
}

/// Follows the views of a [`Fleet`].
#[derive(Debug, Clone)]
pub struct FleetWatch {
    view: watch::Receiver<Arc<FleetView>>,
}

impl FleetWatch {
    /// The newest.
    pub fn current(&self) -> Arc<FleetView> {
        Arc::clone(&self.view.borrow())
    }

    /// Waits for one that this has not returned yet. `None` once the fleet is gone. Cancel-safe.
    pub async fn changed(&mut self) -> Option<Arc<FleetView>> {
        self.view.changed().await.ok()?;
        Some(Arc::clone(&self.view.borrow_and_update()))
    }
}

impl Fleet {
    /// Knows nobody yet. `own` is this edge's name. It stays alone unless a [`Hub`](crate::Hub) has made it.
    pub fn new(own: NodeId) -> Self {
        let (relayed, inbox) = mpsc::channel(MAX_RELAYED);
        let state = State { merge: Merge::new(own), ways: BTreeMap::new() };
        let inner = Inner {
            state: Mutex::new(state),
            view: watch::Sender::default(),
            own: watch::Sender::default(),
            condition: watch::Sender::new(EdgeCondition::Serve),
            relayed,
            inbox: AsyncMutex::new(inbox),
            metrics: FleetMetrics::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Who is there now.
    pub fn view(&self) -> Arc<FleetView> {
        Arc::clone(&self.inner.view.borrow())
    }

    /// The same, and what comes.
    pub fn watch(&self) -> FleetWatch {
        FleetWatch { view: self.inner.view.subscribe() }
    }

    /// Whether this edge takes clients: told to all at once, by [`Fleet::run`].
    pub fn set_condition(&self, condition: EdgeCondition) {
        self.inner.condition.send_replace(condition);
    }

    /// Tells all cores how this edge is, those that are connected later included. [`Fleet::run`] does so.
    pub fn announce(&self, state: EdgeState) {
        let mut shared = self.state();
        shared.merge.handle_own(clock::now(), state.clone());
        self.show(&shared);
        self.inner.own.send_replace(Some(state));
    }

    /// Sends `payload` to another edge, which gets it once at most, within about a round trip over a core that both have; or to
    /// a core.
    ///
    /// # Errors
    /// [`RelayError`] says whether it may have arrived all the same.
    pub async fn relay(&self, to: &NodeId, payload: Bytes) -> Result<(), RelayError> {
        if payload.len() > MAX_RELAY_BYTES {
            return Err(RelayError::TooLong);
        }
        let ways: Vec<Arc<dyn Uplink>> = {
            let shared = self.state();
            let known: Vec<_> =
                shared.merge.ways(to).filter_map(|way| shared.ways.get(&way).cloned()).collect();
            // No edge that anybody spoke of: one of the cores, perhaps.
            if known.is_empty() { shared.ways.values().cloned().collect() } else { known }
        };
        for uplink in ways {
            match timeout(RELAY_WAIT, uplink.relay(to.clone(), payload.clone())).await {
                // Not passed on for certain: another core may have a link to it.
                Ok(Err(RelayError::NoSuchEdge)) => {}
                Ok(result) => return result,
                Err(_) => return Err(RelayError::Unknown),
            }
        }
        Err(RelayError::NoSuchEdge)
    }

    /// What another edge sent to this one. Of what nobody takes, the newest is dropped. Cancel-safe; for one taker.
    pub async fn next_relayed(&self) -> Relayed {
        match self.inner.inbox.lock().await.recv().await {
            Some(relayed) => relayed,
            // Its sender is beside it.
            None => std::future::pending().await,
        }
    }

    /// Announces this edge, with the slack of its door, for as long as `end` is not cancelled, and forgets others in time.
    pub async fn run(&self, about: About, metrics: Arc<Metrics>, door: Door, end: CancellationToken) {
        let started = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_ms = u64::try_from(started.as_millis()).unwrap_or(u64::MAX);
        let mut announcer = Announcer::new(about, started_ms);
        let mut condition = self.inner.condition.subscribe();
        loop {
            let now = clock::now();
            announcer.handle_condition(*condition.borrow_and_update());
            announcer.handle_load(metrics.sessions(), door.slack());
            if let Some(state) = announcer.poll_announcement(now) {
                self.announce(state);
            }
            self.expire(now);
            // Biased: the condition changes rarely.
            tokio::select! {
                biased;
                () = end.cancelled() => return,
                _ = condition.changed() => {}
                () = sleep(TICK) => {}
            }
        }
    }

    /// The last word: this edge is gone. Returns when every core that answers has heard it. Announce nothing after it.
    pub async fn leave(&self) {
        let last = self.inner.own.borrow().clone();
        let Some(last) = last.filter(|last| last.condition != EdgeCondition::Leave) else { return };
        let state =
            EdgeState { condition: EdgeCondition::Leave, sequence: last.sequence + 1, slack: 0, ..last };
        self.announce(state.clone());
        let ways: Vec<_> = self.state().ways.values().cloned().collect();
        let mut told = JoinSet::new();
        for uplink in ways {
            let state = state.clone();
            told.spawn(async move {
                uplink.announce(state).await;
                // Answered, in its turn: the word before it has been heard.
                uplink.ask(Bytes::new()).await;
            });
        }
        let _late = timeout(LEAVE_WAIT, async { while told.join_next().await.is_some() {} }).await;
    }

    /// Names its metrics in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
    }

    /// Talks with a core about the fleet, until it is dropped.
    pub(crate) async fn follow(&self, way: Way, uplink: Arc<dyn Uplink>) {
        self.state().ways.insert(way, Arc::clone(&uplink));
        let _until = Following { fleet: self, way };
        let mut own = self.inner.own.subscribe();
        own.mark_changed();
        let announce = async {
            while own.changed().await.is_ok() {
                let state = own.borrow_and_update().clone();
                if let Some(state) = state {
                    uplink.announce(state).await;
                }
            }
        };
        let merge = async {
            while let Some(list) = uplink.next_fleet().await {
                self.handle_list(way, &list);
            }
        };
        let take = async {
            while let Some(relayed) = uplink.next_relayed().await {
                // Full: nobody takes what came before.
                let _lost = self.inner.relayed.try_send(relayed);
            }
        };
        tokio::join!(announce, merge, take);
        // Over: whoever called finds out by itself.
        std::future::pending().await
    }

    fn handle_list(&self, way: Way, list: &[FleetEntry]) {
        let mut shared = self.state();
        shared.merge.handle_list(clock::now(), way, list);
        self.show(&shared);
    }

    fn expire(&self, now: Instant) {
        let mut shared = self.state();
        if shared.merge.handle_timeout(now) {
            self.show(&shared);
        }
        drop(shared);
        self.inner.metrics.set(&self.view(), now);
    }

    /// Under the lock, so that no older view comes after a newer one.
    fn show(&self, state: &State) {
        self.inner.view.send_replace(Arc::new(state.merge.view()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It decides, and waits for nobody.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a connection.
struct Following<'a> {
    fleet: &'a Fleet,
    way: Way,
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        let mut shared = self.fleet.state();
        shared.merge.handle_hung_up(self.way);
        let uplink = shared.ways.remove(&self.way);
        drop(shared);
        drop(uplink);
    }
}

/// Between two looks at the load, and at who was not heard of for too long.
const TICK: Duration = Duration::from_millis(250);
/// For a core to say that it passed something on.
const RELAY_WAIT: Duration = Duration::from_secs(2);
/// For cores to hear the last word.
const LEAVE_WAIT: Duration = Duration::from_millis(500);
/// Payloads of others that nobody took yet.
const MAX_RELAYED: usize = 1024;
