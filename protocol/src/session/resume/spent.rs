//! Sans-io: the table of spent generations. The core keeps one in each partition; an edge keeps a small one for when
//! its core is out of reach.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::AttemptKey;
use crate::SessionId;

/// One attempt to resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spending {
    /// Of the ticket.
    pub session: SessionId,
    /// Of the ticket.
    pub generation: u32,
    /// Of the client; without one, no attempt is the same as another.
    pub key: Option<AttemptKey>,
    /// It came as early data, which whoever recorded it can send again.
    pub early: bool,
    /// For how long a ticket of this generation can still be valid.
    pub remember: Duration,
}

/// What the table says of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Honoured: nobody spent this generation before.
    First,
    /// Honoured: the same attempt once more.
    Repeated,
    /// Spent before, and this came early: ask again when the handshake is complete.
    NotEarly,
    /// The same attempt once more, but the session has moved on since. Not honoured, and nobody is harmed.
    Stale,
    /// Spent before by somebody else. The session is revoked.
    Theft,
    /// The session was revoked before.
    Revoked,
    /// The table is full: not honoured, since it could not be remembered.
    Full,
}

/// What those who hold connections of the session are to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The session goes on elsewhere: connections of an older generation end after the grace.
    Resumed,
    /// The same attempt arrived again: connections that began with it end at once, since nobody got their answer.
    Repeated,
    /// A spent ticket was used again: every connection of the session ends.
    Revoked,
}

/// An outcome, and whom to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent<H> {
    /// The answer.
    pub outcome: Outcome,
    /// Who held the session before, and what they are told.
    pub told: Option<(Told, Vec<H>)>,
}

/// Bounds of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Sessions. Beyond it further ones are not honoured ([`Outcome::Full`]): to forget one would let its spent tickets
    /// be used again, while a client that is refused has its token.
    pub sessions: usize,
}

/// Which generations of which sessions were spent, by whom, until no ticket of them can be valid.
///
/// `H` names who holds a session: connections are told through them.
#[derive(Debug)]
pub struct SpentTable<H> {
    bounds: Bounds,
    sessions: HashMap<SessionId, Entry<H>>,
    by_age: BTreeSet<(u64, SessionId)>,
}

#[derive(Debug)]
struct Entry<H> {
    /// Who spent what, oldest first; the last few.
    attempts: Vec<(u32, Option<AttemptKey>)>,
    /// Who may have connections, oldest first; the last few.
    holders: Vec<H>,
    revoked: bool,
    until_ms: u64,
}

impl<H: Copy + PartialEq> SpentTable<H> {
    /// Remembers nothing yet.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, sessions: HashMap::new(), by_age: BTreeSet::new() }
    }

    /// Judges an attempt that `holder` would serve, and remembers it. The ticket itself must be valid.
    pub fn spend(&mut self, unix_ms: u64, spending: &Spending, holder: H) -> Spent<H> {
        self.expire(unix_ms, EXPIRE_STEPS);
        let until_ms =
            unix_ms.saturating_add(u64::try_from(spending.remember.as_millis()).unwrap_or(u64::MAX));
        let Some(entry) = self.sessions.get_mut(&spending.session) else {
            if self.sessions.len() >= self.bounds.sessions {
                return Spent { outcome: Outcome::Full, told: None };
            }
            let entry = Entry {
                attempts: vec![(spending.generation, spending.key)],
                holders: vec![holder],
                revoked: false,
                until_ms,
            };
            self.sessions.insert(spending.session, entry);
            self.by_age.insert((until_ms, spending.session));
            return Spent { outcome: Outcome::First, told: None };
        };
        if entry.until_ms < until_ms {
            self.by_age.remove(&(entry.until_ms, spending.session));
            self.by_age.insert((until_ms, spending.session));
            entry.until_ms = until_ms;
        }
        entry.judge(spending, holder)
    }

    /// Forgets up to `steps` sessions that are of no use any more.
    pub fn expire(&mut self, unix_ms: u64, steps: usize) {
        for _ in 0..steps {
            match self.by_age.first() {
                Some(&(until_ms, session)) if until_ms <= unix_ms => {
                    self.by_age.pop_first();
                    self.sessions.remove(&session);
                }
                _ => return,
            }
        }
    }

    /// Sessions remembered.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// True where none is.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

impl<H: Copy + PartialEq> Entry<H> {
    fn judge(&mut self, spending: &Spending, holder: H) -> Spent<H> {
        let alone = |outcome| Spent { outcome, told: None };
        if self.revoked {
            return alone(Outcome::Revoked);
        }
        let newest = self.attempts.last().map_or(0, |(generation, _)| *generation);
        if spending.generation > newest {
            let told = self.holders.clone();
            keep_last(&mut self.attempts, (spending.generation, spending.key), MAX_ATTEMPTS);
            self.hold(holder);
            return Spent { outcome: Outcome::First, told: Some((Told::Resumed, told)) };
        }
        if spending.early {
            // Whatever it is: a recorded flight that is sent again has no effect.
            return alone(Outcome::NotEarly);
        }
        let same = spending.key.is_some() && self.attempts.contains(&(spending.generation, spending.key));
        match same {
            true if spending.generation == newest => {
                let told = self.holders.clone();
                self.hold(holder);
                Spent { outcome: Outcome::Repeated, told: Some((Told::Repeated, told)) }
            }
            true => alone(Outcome::Stale),
            false => {
                self.revoked = true;
                self.attempts = Vec::new();
                let told = std::mem::take(&mut self.holders);
                Spent { outcome: Outcome::Theft, told: Some((Told::Revoked, told)) }
            }
        }
    }

    fn hold(&mut self, holder: H) {
        self.holders.retain(|other| *other != holder);
        keep_last(&mut self.holders, holder, MAX_HOLDERS);
    }
}

fn keep_last<T>(list: &mut Vec<T>, item: T, limit: usize) {
    if list.len() >= limit {
        list.remove(0);
    }
    list.reserve_exact(1);
    list.push(item);
}

/// Sessions forgotten in passing, so that a table at its bound has room as soon as there can be any.
const EXPIRE_STEPS: usize = 4;
/// Attempts that a session's late ones are compared with. One that is older still counts as a theft.
const MAX_ATTEMPTS: usize = 4;
/// Holders told. One that is older holds nothing but connections that end by themselves, within the grace.
const MAX_HOLDERS: usize = 4;

#[cfg(test)]
mod tests;
