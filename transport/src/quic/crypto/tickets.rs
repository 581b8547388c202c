//! TLS sessions that native clients may resume (RFC 8446 §4.6.1): each once, the newest ones only.
//!
//! Kept here and not in the tickets themselves: rustls takes early data only from a ticket that it can strike off, which
//! is what keeps a recorded first flight from being played twice (RFC 8446 §8.1). All workers of a process share one
//! store; another process knows nothing of it and does an ordinary handshake.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::server::StoresServerSessions;

use crate::quic::ALPN_NATIVE;

/// A bounded store; what is oldest makes room.
///
/// One short lock for all workers, taken once when a handshake completes and once when a client resumes: beside the
/// handshake's own signature it is nothing.
pub(super) struct Tickets {
    capacity: usize,
    store: Mutex<Store>,
}

#[derive(Default)]
struct Store {
    sessions: HashMap<Id, Box<[u8]>>,
    /// As they came, at most `capacity`; those that were taken too, until their turn.
    order: VecDeque<Id>,
}

/// Random, from rustls.
type Id = [u8; 32];

impl Tickets {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, store: Mutex::default() }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // Nothing below panics halfway.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoresServerSessions for Tickets {
    /// False where there shall be no ticket: for a session that is not a native client's.
    fn put(&self, id: Vec<u8>, session: Vec<u8>) -> bool {
        let Ok(id) = Id::try_from(id) else { return false };
        // rustls writes the ALPN into what it stores, in clear, and nothing else in there can contain a slash: a
        // server name cannot, and a secret of 48 random bytes will not hold these ten.
        if !session.windows(ALPN_NATIVE.len()).any(|part| part == ALPN_NATIVE) {
            return false;
        }
        let mut store = self.store();
        let store = &mut *store;
        if store.order.len() >= self.capacity
            && let Some(oldest) = store.order.pop_front()
        {
            store.sessions.remove(&oldest);
        }
        store.order.push_back(id);
        store.sessions.insert(id, session.into_boxed_slice());
        true
    }

    /// Of TLS 1.2's session ids, which QUIC does not have.
    fn get(&self, _id: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.store().sessions.remove(id).map(<[u8]>::into_vec)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets are in it.
        f.debug_struct("Tickets").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(tickets: &Tickets, id: u8) -> bool {
        tickets.put(vec![id; 32], [&[id][..], ALPN_NATIVE].concat())
    }

    fn take(tickets: &Tickets, id: u8) -> Option<u8> {
        tickets.take(&[id; 32]).map(|session| session[0])
    }

    #[test]
    fn a_session_is_taken_once() {
        let tickets = Tickets::new(4);
        assert!(put(&tickets, 1) && put(&tickets, 2));
        assert_eq!(take(&tickets, 1), Some(1));
        assert_eq!(take(&tickets, 1), None);
        assert_eq!(take(&tickets, 2), Some(2));
    }

    #[test]
    fn the_oldest_makes_room_and_what_was_taken_holds_none_for_ever() {
        let tickets = Tickets::new(3);
        for id in 0..100 {
            assert!(put(&tickets, id));
            if id % 2 == 0 {
                assert_eq!(take(&tickets, id), Some(id));
            }
            let store = tickets.store();
            assert!(store.order.len() <= 3 && store.sessions.len() <= 3);
        }
        assert_eq!([95, 96, 97, 98, 99].map(|id| take(&tickets, id)), [None, None, Some(97), None, Some(99)]);
    }

    #[test]
    fn sessions_of_other_protocols_are_not_kept() {
        let tickets = Tickets::new(3);
        assert!(!tickets.put(vec![1; 32], b"\x02h3 tidegate/2".to_vec()));
        assert!(!tickets.put(vec![1; 31], ALPN_NATIVE.to_vec()), "an id that is none of rustls'");
        assert_eq!(take(&tickets, 1), None);
    }
}
