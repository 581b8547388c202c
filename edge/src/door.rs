//! The node's door: one [`Admission`] for all workers, with the clock, and the keys of the fleet.
//!
//! It is locked for a decision, which is made of a few dozen comparisons and at most two MACs; once for each client that
//! comes, never for what connections carry.

mod metrics;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use tidegate_protocol::NodeId;
use tidegate_protocol::frame::{Close, CloseCode};
use tidegate_protocol::hint::Hint;
use tidegate_protocol::session::server::refusal;
use tidegate_transport::clock;
use tidegate_transport::keys::SharedKeys;

use self::metrics::DoorMetrics;
use crate::policy::admission::{
    self, Admission, AdmissionConfig, Attempt, Decision, Lease, LeaseAsk, Refusal, SlotKeys, SlotTicket,
};

/// Who comes in, and when. Clones are the same.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<SharedKeys>,
    state: Mutex<State>,
    metrics: DoorMetrics,
}

struct State {
    admission: Admission,
    /// Of the keys that it has.
    version: u64,
}

/// One decision.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Go on, at the entry's moment.
    Admit(Entry),
    /// Tell him to come back.
    Defer {
        /// When.
        retry_after: Duration,
        /// To be shown then.
        ticket: SlotTicket,
    },
    /// Turn him away.
    Refuse(Refusal),
}

/// What somebody is told who does not come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// When to come back, or that it is no use.
    Told(Hint),
    /// This node takes nobody any more.
    LameDuck,
    /// To prove his address first.
    Unvalidated,
    /// Nothing.
    Busy,
}

impl Rejection {
    /// What is said to who has shaken hands; `later` is when to come back where nothing better is known.
    pub(crate) fn close(self, later: Duration) -> Close {
        match self {
            Self::Told(hint) => refusal(&hint),
            Self::LameDuck => CloseCode::Shutdown.frame("this server is being drained"),
            Self::Unvalidated | Self::Busy => refusal(&Hint::Later { after: later, ticket: None }),
        }
    }
}

/// Whether somebody who could show nothing yet may shake hands.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// He may.
    Pass(Visitor),
    /// To prove his address first.
    Unvalidated,
    /// He may not, and is told nothing.
    Busy,
}

/// A place that was given: counts as a handshake until dropped.
#[must_use]
pub(crate) struct Entry {
    at: Instant,
    door: Door,
}

/// Somebody about whom nothing is decided.
#[must_use]
pub(crate) struct Visitor {
    door: Door,
    address: IpAddr,
    /// That he was let shake hands by.
    arrived: Option<u64>,
}

/// A session that opens further connections, until dropped.
#[must_use]
pub(crate) struct Resident {
    door: Door,
    address: IpAddr,
}

/// What can be seen of a door.
pub(crate) struct Figures {
    /// Admitted and not finished.
    pub(crate) handshakes: usize,
    /// Kept for clients that were told to come back.
    pub(crate) slots: usize,
    /// Share of those expected to stay empty.
    pub(crate) no_show: f64,
    /// Clients per second.
    pub(crate) slack: f64,
}

impl Door {
    /// Open. `keys` are those of the fleet: what they become later is followed.
    pub fn new(config: AdmissionConfig, keys: &Arc<SharedKeys>, node: &NodeId) -> Self {
        let version = keys.version();
        let slot_keys = Arc::new(slot_keys(keys));
        let now = (clock::now(), clock::unix_ms());
        let admission = Admission::new(config, slot_keys, node, now, clock::rng());
        let state = Mutex::new(State { admission, version });
        Self { inner: Arc::new(Inner { shared: Arc::clone(keys), state, metrics: DoorMetrics::default() }) }
    }

    /// Somebody comes who can be told anything before it costs much, and shows a ticket or none. `validated`: the address
    /// is the sender's.
    pub(crate) fn knock(&self, address: IpAddr, validated: bool, ticket: Option<&SlotTicket>) -> Answer {
        self.attempt(&Attempt { address, validated, ticket, costly_answer: false, arrived: false })
    }

    /// Somebody comes who can show what he has only after a handshake.
    pub(crate) fn arrive(&self, address: IpAddr, validated: bool) -> Arrival {
        let arrival = self.state().admission.handle_arrival(clock::now(), address, validated);
        let arrival = match arrival {
            admission::Arrival::Pass(number) => {
                Arrival::Pass(Visitor { door: self.clone(), address, arrived: Some(number) })
            }
            admission::Arrival::Unvalidated => Arrival::Unvalidated,
            admission::Arrival::Busy => Arrival::Busy,
        };
        self.inner.metrics.count_arrival(&arrival);
        arrival
    }

    /// Somebody for whom no handshake is needed, or whose handshake was for something else.
    pub(crate) fn visitor(&self, address: IpAddr) -> Visitor {
        Visitor { door: self.clone(), address, arrived: None }
    }

    /// Somebody comes in who opens further connections from there.
    pub(crate) fn resident(&self, address: IpAddr) -> Resident {
        self.state().admission.handle_resident(address);
        Resident { door: self.clone(), address }
    }

    /// Clients per second that could come beyond those that do; 0 for a lame duck.
    pub fn slack(&self) -> f64 {
        self.state().admission.slack(clock::now())
    }

    /// `node`, which is being drained, asks for places. `None` where there are none now.
    pub fn handle_lease_ask(&self, node: &NodeId, ask: LeaseAsk) -> Option<Lease> {
        self.state().admission.handle_lease_ask(clock::now(), node, ask)
    }

    /// A drain does not need the places of a lease from an index on.
    pub fn handle_lease_returned(&self, number: u32, from: u16) {
        self.state().admission.handle_lease_returned(number, from);
    }

    /// Admits nobody any more but who was promised it by a lease, or everybody again. Gives the numbers of leases whose
    /// drains are to be told that they should send nobody more.
    pub fn handle_lame_duck(&self, lame_duck: bool) -> Vec<u32> {
        self.state().admission.handle_lame_duck(lame_duck)
    }

    /// The rate is another one from now on, clients per second.
    pub fn set_rate(&self, rate: f64) {
        self.state().admission.set_rate(clock::now(), rate);
    }

    /// What makes and checks tickets now: the same at all nodes with the same keys.
    pub fn slot_keys(&self) -> Arc<SlotKeys> {
        Arc::clone(self.state().admission.keys())
    }

    /// Names its metrics in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(self, registry);
    }

    pub(crate) fn figures(&self) -> Figures {
        let state = self.state();
        let admission = &state.admission;
        Figures {
            handshakes: admission.handshakes(),
            slots: admission.slots(),
            no_show: admission.no_show(),
            slack: admission.slack(clock::now()),
        }
    }

    fn attempt(&self, attempt: &Attempt<'_>) -> Answer {
        let decision = self.state().admission.handle_attempt(clock::now(), attempt);
        let answer = match decision {
            Decision::Admit { at } => Answer::Admit(Entry { at, door: self.clone() }),
            Decision::Defer { retry_after, ticket } => Answer::Defer { retry_after, ticket },
            Decision::Refuse(refusal) => Answer::Refuse(refusal),
        };
        self.inner.metrics.count(&answer);
        answer
    }

    /// With the keys of now.
    fn state(&self) -> MutexGuard<'_, State> {
        // It decides, and waits for nobody.
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.inner.shared.version();
        if state.version != version {
            state.version = version;
            state.admission.set_keys(Arc::new(slot_keys(&self.inner.shared)));
        }
        state
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Answer {
    /// The place, or what is to be told instead.
    pub(crate) fn into_entry(self) -> Result<Entry, Rejection> {
        match self {
            Self::Admit(entry) => Ok(entry),
            Self::Defer { retry_after, ticket } => {
                let ticket = Some(ticket.to_text().into());
                Err(Rejection::Told(Hint::Later { after: round_up(retry_after), ticket }))
            }
            Self::Refuse(Refusal::Address { retry_after }) => {
                Err(Rejection::Told(Hint::Later { after: round_up(retry_after), ticket: None }))
            }
            Self::Refuse(Refusal::Elsewhere) => Err(Rejection::Told(Hint::Elsewhere)),
            Self::Refuse(Refusal::LameDuck) => Err(Rejection::LameDuck),
            Self::Refuse(Refusal::Unvalidated) => Err(Rejection::Unvalidated),
            Self::Refuse(Refusal::Busy) => Err(Rejection::Busy),
        }
    }
}

impl Entry {
    /// When to go on. Never before the decision, and a second after it at most (five with a lease).
    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    /// Waits until then. Cancel-safe.
    pub(crate) async fn wait(&self) {
        if self.at > clock::now() {
            tokio::time::sleep_until(self.at.into()).await;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.door.state().admission.handle_finished();
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Visitor {
    /// From where.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Shows a ticket, or none. Where it is done again, for another session of the same connection, it counts against the
    /// network again.
    pub(crate) fn knock(&mut self, ticket: Option<&SlotTicket>) -> Answer {
        let arrived = self.decided();
        let Self { door, address, .. } = &*self;
        let attempt = Attempt { address: *address, validated: true, ticket, costly_answer: false, arrived };
        door.attempt(&attempt)
    }

    /// True where somebody waits for it.
    fn decided(&mut self) -> bool {
        let number = self.arrived.take();
        if let Some(number) = number {
            self.door.state().admission.handle_decided(number);
        }
        number.is_some()
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.decided();
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.door.state().admission.handle_resident_gone(self.address);
    }
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resident").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visitor").field("address", &self.address).finish_non_exhaustive()
    }
}

/// To whole milliseconds: nobody is to come before his time.
fn round_up(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
}

fn slot_keys(keys: &SharedKeys) -> SlotKeys {
    let (current, previous) = keys.slot_keys();
    SlotKeys::new(&current, previous.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [u8; 32] = [1; 32];
    const NEW: [u8; 32] = [2; 32];
    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn door(keys: &Arc<SharedKeys>) -> Door {
        Door::new(AdmissionConfig::for_rate(20.0), keys, &NodeId::new("edge-1"))
    }

    #[test]
    fn tickets_outlive_a_change_of_keys_and_not_the_next() {
        let keys = Arc::new(SharedKeys::new([&OLD]));
        let door = door(&keys);
        let mut entries = Vec::new();
        let ticket = loop {
            match door.knock(CLIENT, true, None) {
                Answer::Admit(entry) => entries.push(entry),
                Answer::Defer { ticket, .. } => break ticket,
                Answer::Refuse(refusal) => panic!("{refusal:?}"),
            }
        };
        let shown = |door: &Door| match door.knock(CLIENT, true, Some(&ticket)) {
            Answer::Defer { ticket: again, .. } => again.as_bytes() == ticket.as_bytes(),
            other => panic!("{other:?}"),
        };
        assert!(shown(&door), "too early: the same again");
        keys.replace([&NEW, &OLD]);
        assert!(shown(&door));
        keys.replace([&NEW]);
        assert!(!shown(&door));
    }

    #[test]
    fn an_entry_counts_as_a_handshake_until_it_is_dropped() {
        let keys = Arc::new(SharedKeys::new([&OLD]));
        let config = AdmissionConfig { handshakes: 1, ..AdmissionConfig::for_rate(1000.0) };
        let door = Door::new(config, &keys, &NodeId::new("edge-1"));
        let Answer::Admit(entry) = door.knock(CLIENT, true, None) else { panic!("there is room") };
        assert!(matches!(door.knock(CLIENT, true, None), Answer::Defer { .. }));
        drop(entry);
        assert!(matches!(door.knock(CLIENT, true, None), Answer::Admit(_)));
    }
}
