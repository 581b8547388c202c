//! The node's door: one [`Admission`] for all workers, with the clock, and the keys of the fleet.
//!
//! It is locked for a decision, which is made of a few dozen comparisons and at most two MACs; once for each client that
//! comes, never for what connections carry.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;
use tidegate_transport::clock;
use tidegate_transport::keys::SharedKeys;

use crate::policy::admission::{
    Admission, AdmissionConfig, Attempt, Decision, Lease, LeaseAsk, Refusal, SlotKeys, SlotTicket,
};

/// Who comes in, and when. Clones are the same.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<SharedKeys>,
    state: Mutex<State>,
}

struct State {
    admission: Admission,
    /// Of the keys that it has.
    version: u64,
}

/// Somebody who knocks.
#[derive(Debug, Clone, Copy)]
pub struct Knock<'a> {
    /// From where; a slot is kept for it.
    pub address: IpAddr,
    /// True: the address is the sender's. TCP, or QUIC with a token.
    pub validated: bool,
    /// What he shows.
    pub ticket: Option<&'a SlotTicket>,
    /// True: to tell him anything costs a handshake.
    pub costly_answer: bool,
}

/// One decision.
#[derive(Debug)]
pub enum Answer {
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

/// A place that was given: counts as a handshake until dropped.
#[must_use]
pub struct Entry {
    at: Instant,
    door: Door,
}

impl Door {
    /// Open. `keys` are those of the fleet: what they become later is followed.
    pub fn new(config: AdmissionConfig, keys: &Arc<SharedKeys>, node: &NodeId) -> Self {
        let version = keys.version();
        let slot_keys = Arc::new(slot_keys(keys));
        let admission =
            Admission::new(config, slot_keys, node, (clock::now(), clock::unix_ms()), clock::rng());
        let state = Mutex::new(State { admission, version });
        Self { inner: Arc::new(Inner { shared: Arc::clone(keys), state }) }
    }

    /// Decides.
    pub fn attempt(&self, knock: &Knock<'_>) -> Answer {
        let Knock { address, validated, ticket, costly_answer } = *knock;
        let attempt = Attempt { address, validated, ticket, costly_answer, arrived: false };
        let decision = self.state().admission.handle_attempt(clock::now(), &attempt);
        match decision {
            Decision::Admit { at } => Answer::Admit(Entry { at, door: self.clone() }),
            Decision::Defer { retry_after, ticket } => Answer::Defer { retry_after, ticket },
            Decision::Refuse(refusal) => Answer::Refuse(refusal),
        }
    }

    /// Clients per second that could come beyond those that do; 0 for a lame duck.
    pub fn slack(&self) -> f64 {
        self.state().admission.slack(clock::now())
    }

    /// A node that is being drained asks for places. `None` where there are none now.
    pub fn handle_lease_ask(&self, ask: LeaseAsk) -> Option<Lease> {
        self.state().admission.handle_lease_ask(clock::now(), ask)
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

impl Entry {
    /// When to go on. Never before the decision, and a second after it at most (five with a lease).
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Waits until then. Cancel-safe.
    pub async fn wait(&self) {
        tokio::time::sleep_until(self.at.into()).await;
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

fn slot_keys(keys: &SharedKeys) -> SlotKeys {
    let (current, previous) = keys.slot_keys();
    SlotKeys::new(&current, previous.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [u8; 32] = [1; 32];
    const NEW: [u8; 32] = [2; 32];
    const CLIENT: Knock<'static> = Knock {
        address: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        validated: true,
        ticket: None,
        costly_answer: false,
    };

    fn door(keys: &Arc<SharedKeys>) -> Door {
        Door::new(AdmissionConfig::for_rate(20.0), keys, &NodeId::new("edge-1"))
    }

    #[test]
    fn tickets_outlive_a_change_of_keys_and_not_the_next() {
        let keys = Arc::new(SharedKeys::new([&OLD]));
        let door = door(&keys);
        let mut entries = Vec::new();
        let ticket = loop {
            match door.attempt(&CLIENT) {
                Answer::Admit(entry) => entries.push(entry),
                Answer::Defer { ticket, .. } => break ticket,
                Answer::Refuse(refusal) => panic!("{refusal:?}"),
            }
        };
        let shown = |door: &Door| match door.attempt(&Knock { ticket: Some(&ticket), ..CLIENT }) {
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
        let Answer::Admit(entry) = door.attempt(&CLIENT) else { panic!("there is room") };
        assert!(matches!(door.attempt(&CLIENT), Answer::Defer { .. }));
        drop(entry);
        assert!(matches!(door.attempt(&CLIENT), Answer::Admit(_)));
    }
}
