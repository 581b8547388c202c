//! Sans-io: the tickets that resume a client's session: which one is offered, and how long it is the same attempt.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::ConnectionId;

/// A ticket that was offered, and the key that makes a repeated offer the same attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) ticket: String,
    pub(super) key: String,
    /// It was offered before: its answer may have been lost.
    pub(super) repeated: bool,
}

/// What a session has to resume with.
///
/// A ticket that was offered stays the one to offer, with its key, until it was answered: the server may have honoured
/// it, and would take another key for a theft.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    newest: Option<String>,
    /// Offered, and not answered.
    attempt: Option<Offer>,
    /// The key of the attempt that was answered last.
    answered: Option<String>,
    /// A ticket was ever offered. An offer may arrive late, and count, when nobody waits for it any more.
    offered: bool,
    /// The connection whose tickets count: the one that was `connected` last.
    holder: Option<ConnectionId>,
}

impl Tickets {
    /// What to connect with; `None` where the token must do.
    pub(super) fn offer(&mut self, rng: &mut ChaCha8Rng) -> Option<Offer> {
        if let Some(attempt) = &mut self.attempt {
            attempt.repeated = true;
            return Some(attempt.clone());
        }
        let ticket = self.newest.take()?;
        let key = format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64());
        let offer = Offer { ticket, key, repeated: false };
        self.attempt = Some(offer.clone());
        self.offered = true;
        Some(offer)
    }

    /// `connected` came on a connection where `key` was offered, if anything was.
    pub(super) fn handle_connected(
        &mut self,
        connection: ConnectionId,
        key: Option<&str>,
        ticket: Option<String>,
    ) {
        let expected = match &self.attempt {
            Some(attempt) => key == Some(&attempt.key),
            // The second answer to an attempt says the same as the first, and a fresh session brings a fresh ticket.
            None => key.is_none() || key == self.answered.as_deref(),
        };
        if !expected {
            // The late answer to an attempt of before: its ticket may be spent by now.
            return;
        }
        if let Some(attempt) = self.attempt.take() {
            self.answered = Some(attempt.key);
        }
        self.newest = ticket;
        self.holder = Some(connection);
    }

    /// A `ping` brought a fresher one.
    pub(super) fn handle_fresher(&mut self, connection: ConnectionId, ticket: String) {
        if self.holder != Some(connection) {
            return;
        }
        match &mut self.attempt {
            // Tickets of one connection are spent together: with the same key it is still the same attempt.
            Some(attempt) => attempt.ticket = ticket,
            None => self.newest = Some(ticket),
        }
    }

    /// The server will not have what was offered; nor a fresher one of the same connection with another key.
    pub(super) fn clear(&mut self) {
        self.holder = None;
        self.newest = None;
        self.attempt = None;
    }

    /// True where it may be this client itself that resumed the session on another connection.
    pub(super) fn may_be_elsewhere(&self) -> bool {
        self.offered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn an_offer_is_repeated_until_it_is_answered() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (first, second) = (ConnectionId(1), ConnectionId(2));
        let mut tickets = Tickets::default();
        assert_eq!(tickets.offer(&mut rng), None);
        assert!(!tickets.may_be_elsewhere());
        tickets.handle_connected(first, None, Some("t1".to_owned()));
        tickets.handle_fresher(second, "forged".to_owned());
        let offer = tickets.offer(&mut rng).expect("t1");
        assert_eq!((offer.ticket.as_str(), offer.key.len(), offer.repeated), ("t1", 32, false));
        assert!(tickets.may_be_elsewhere());
        tickets.handle_fresher(first, "t2".to_owned());
        let again = tickets.offer(&mut rng).expect("t2");
        assert_eq!(again, Offer { ticket: "t2".to_owned(), key: offer.key.clone(), repeated: true });
        tickets.handle_connected(first, Some("another"), Some("spent".to_owned()));
        assert_eq!(tickets.offer(&mut rng), Some(again), "not answered by that");
        tickets.handle_connected(second, Some(&offer.key), Some("t3".to_owned()));
        let other = tickets.offer(&mut rng).expect("t3");
        assert!(other.ticket == "t3" && other.key != offer.key && !other.repeated);
        tickets.handle_connected(second, Some(&other.key), Some("t4".to_owned()));
        tickets.handle_connected(first, Some(&offer.key), Some("spent".to_owned()));
        tickets.handle_fresher(second, "t5".to_owned());
        tickets.clear();
        tickets.handle_fresher(second, "t6".to_owned());
        assert_eq!(tickets.offer(&mut rng), None);
    }
}
