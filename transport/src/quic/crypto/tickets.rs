//! TLS sessions that clients resume over QUIC (RFC 8446 §4.6.1): in tickets that say everything themselves, so that any node
//! of the fleet resumes them, and with early data once, where they were given out.
//!
//! rustls takes early data only with a ticket that it can strike off (RFC 8446 §8.1), which it believes to be the case
//! where sessions are in a store and tickets are their numbers. So for the length of a handshake ours is such a store, and
//! it is a ticketer once that is right: with a ticket that this process did not give out, or that came before; and for
//! clients that have nothing to say early. Instead of a number the ticket then holds the session, sealed
//! ([`crate::keys`]); which of them are unused is all that is remembered, as many as there are bytes in a hash.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::server::{ProducesTickets, StoresServerSessions};

use crate::keys::{SharedKeys, TICKET_EPOCH};

/// What all handshakes of a process share.
///
/// One short lock for all workers, taken once when a handshake completes and once when a client resumes: beside the
/// handshake's own signature it is nothing.
pub(super) struct Tickets {
    keys: Arc<SharedKeys>,
    /// Of servers with the same limits: who says something early goes by those of the last time (RFC 9000 §7.4.1).
    purpose: Vec<u8>,
    capacity: usize,
    unused: Mutex<Unused>,
}

/// The newest tickets that were given out, at most `capacity`.
#[derive(Default)]
struct Unused {
    tickets: HashSet<Mark>,
    /// As they came; those that were used too, until their turn.
    order: VecDeque<Mark>,
}

type Mark = [u8; 16];

impl Tickets {
    /// `capacity`: how many tickets with early data are remembered; with 0 there are none such.
    pub(super) fn new(keys: Arc<SharedKeys>, purpose: Vec<u8>, capacity: usize) -> Self {
        Self { keys, purpose, capacity, unused: Mutex::default() }
    }

    fn give_out(&self, session: &[u8]) -> Option<Vec<u8>> {
        let ticket = self.keys.seal(&self.purpose, session)?;
        let mark = mark(&ticket);
        let mut unused = self.unused();
        if unused.order.len() >= self.capacity
            && let Some(oldest) = unused.order.pop_front()
        {
            unused.tickets.remove(&oldest);
        }
        unused.order.push_back(mark);
        unused.tickets.insert(mark);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.keys.open(&self.purpose, ticket)
    }

    /// True once for each ticket that was given out here.
    fn strike_off(&self, ticket: &[u8]) -> bool {
        self.unused().tickets.remove(&mark(ticket))
    }

    fn unused(&self) -> MutexGuard<'_, Unused> {
        // Nothing below panics halfway.
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of one handshake: what rustls takes for its store and its ticketer.
pub(super) struct HandshakeTickets {
    shared: Arc<Tickets>,
    /// Whether tickets are rustls' to make and to read: then there is no early data.
    is_ticketer: AtomicBool,
    /// The number that rustls gave a session, and the ticket that goes out in its place.
    issued: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
}

impl HandshakeTickets {
    pub(super) fn new(shared: Arc<Tickets>) -> Self {
        let is_ticketer = AtomicBool::new(shared.capacity == 0);
        Self { shared, is_ticketer, issued: Mutex::default() }
    }

    /// The client's hello was read: from now on tickets are given out, to `early` clients such as are good for early data.
    pub(super) fn after_hello(&self, early: bool) {
        self.is_ticketer.store(!early || self.shared.capacity == 0, Ordering::Relaxed);
    }

    /// Puts the ticket in the place of its number, in what rustls wrote (RFC 8446 §4.6.1). A message that is none of that
    /// kind stays as it is.
    pub(super) fn complete(&self, written: &mut Vec<u8>, start: usize) {
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((number, ticket)) = issued {
            replace_ticket(written, start, &number, &ticket);
        }
    }
}

impl StoresServerSessions for HandshakeTickets {
    fn put(&self, number: Vec<u8>, session: Vec<u8>) -> bool {
        let Some(ticket) = self.shared.give_out(&session) else { return false };
        *self.issued.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, ticket));
        true
    }

    /// Of TLS 1.2's session ids, which QUIC does not have.
    fn get(&self, _id: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let session = self.shared.open(ticket)?;
        if !self.shared.strike_off(ticket) {
            self.is_ticketer.store(true, Ordering::Relaxed);
        }
        Some(session)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl ProducesTickets for HandshakeTickets {
    fn enabled(&self) -> bool {
        self.is_ticketer.load(Ordering::Relaxed)
    }

    fn lifetime(&self) -> u32 {
        TICKET_EPOCH.as_secs() as u32
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.shared.keys.seal(&self.shared.purpose, session)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.shared.open(ticket)
    }
}

impl fmt::Debug for HandshakeTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets are in it.
        f.debug_struct("HandshakeTickets").field("is_ticketer", &self.is_ticketer).finish_non_exhaustive()
    }
}

fn mark(ticket: &[u8]) -> Mark {
    let hash = digest(&SHA256, ticket);
    let mut mark = Mark::default();
    mark.copy_from_slice(&hash.as_ref()[..16]);
    mark
}

/// The first message from `start` on, where it gives a client the ticket `from`, gives it `to` instead.
fn replace_ticket(written: &mut Vec<u8>, start: usize, from: &[u8], to: &[u8]) -> Option<()> {
    let message = written.get(start..)?;
    let (head, body) = message.split_at_checked(HEAD)?;
    let length = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
    if head[0] != NEW_SESSION_TICKET || body.len() < length {
        return None;
    }
    // Lifetime and what is added to the age, a nonce with its length, the ticket with its length.
    let at = 8 + 1 + usize::from(*body.get(8)?);
    let (of_length, ticket) = (body.get(at..at + 2)?, body.get(at + 2..at + 2 + from.len())?);
    if usize::from(of_length[0]) << 8 | usize::from(of_length[1]) != from.len() || ticket != from {
        return None;
    }
    let ticket_length = u16::try_from(to.len()).ok()?;
    let length = u32::try_from(length - from.len() + to.len()).ok()?;
    let at = start + HEAD + at;
    written.splice(at + 2..at + 2 + from.len(), to.iter().copied());
    written[at..at + 2].copy_from_slice(&ticket_length.to_be_bytes());
    written[start + 1..start + HEAD].copy_from_slice(&length.to_be_bytes()[1..]);
    Some(())
}

/// Kind and length of a handshake message.
const HEAD: usize = 4;
/// RFC 8446 §4.
const NEW_SESSION_TICKET: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(capacity: usize) -> Arc<Tickets> {
        Arc::new(Tickets::new(Arc::new(SharedKeys::new([&[1; 32]])), b"test".to_vec(), capacity))
    }

    #[test]
    fn a_ticket_is_struck_off_once_and_opens_for_ever() {
        let shared = tickets(4);
        let ticket = shared.give_out(b"session").unwrap();
        for first in [true, false, false] {
            let handshake = HandshakeTickets::new(Arc::clone(&shared));
            assert!(!handshake.enabled());
            assert_eq!(handshake.take(&ticket).as_deref(), Some(&b"session"[..]));
            assert_eq!(handshake.enabled(), !first, "then there is no early data");
        }
        let elsewhere = HandshakeTickets::new(tickets(4));
        assert!(elsewhere.take(&ticket).is_some() && elsewhere.enabled());
        assert!(HandshakeTickets::new(tickets(4)).take(b"no ticket").is_none());
    }

    #[test]
    fn the_oldest_makes_room_and_what_was_used_holds_none_for_ever() {
        let shared = tickets(3);
        let given: Vec<_> = (0..100_u8)
            .map(|number| {
                let ticket = shared.give_out(&[number]).unwrap();
                if number % 2 == 0 {
                    assert!(shared.strike_off(&ticket));
                }
                let unused = shared.unused();
                assert!(unused.order.len() <= 3 && unused.tickets.len() <= 3);
                ticket
            })
            .collect();
        let left: Vec<_> = given[95..].iter().map(|ticket| shared.strike_off(ticket)).collect();
        assert_eq!(left, [false, false, true, false, true]);
    }

    #[test]
    fn a_number_in_a_message_gives_way_to_the_ticket_and_nothing_else_does() {
        let number = [7; 32];
        let message = |ticket: &[u8]| {
            let body = [&[0; 8][..], &[2, 5, 5, 0, ticket.len() as u8], ticket, &[0, 0]].concat();
            [&[4, 0, 0, body.len() as u8][..], &body].concat()
        };
        let mut written = [&b"before"[..], &message(&number), b"behind"].concat();
        assert!(replace_ticket(&mut written, 6, &number, &[9; 100]).is_some());
        assert_eq!(written, [&b"before"[..], &message(&[9; 100]), b"behind"].concat());

        for damaged in [
            message(&[8; 32]),
            message(&number[..31]),
            message(&number)[..40].to_vec(),
            [&[8][..], &message(&number)[1..]].concat(),
            Vec::new(),
        ] {
            let mut written = damaged.clone();
            assert!(replace_ticket(&mut written, 0, &number, &[9; 100]).is_none());
            assert_eq!(written, damaged);
        }
    }
}
