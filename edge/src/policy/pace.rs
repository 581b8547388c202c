//! Sans-io: asking all sessions of a node to move, evenly over half of the time that there is; the other half is for those
//! that are slow to go. Who does not move is closed by the session's own deadline.
//!
//! The driver lists the sessions when told ([`Event::List`]), asks them ([`Event::Goaway`]), and tells their ends.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;
use tidegate_protocol::frame::Goaway;

use crate::sessions::{EndKind, SessionEnd, SessionInfo, SessionKey};

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainOrder {
    /// Where to, `https://host[:port]` each, in turn. None: clients choose among the places that they know.
    pub to: Vec<String>,
    /// By when everybody is to be gone.
    pub within: Duration,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Progress {
    /// True once nobody was left; newcomers are sent on all the same.
    pub done: bool,
    /// Connections that were asked to move, so far.
    pub asked: usize,
    /// Of those: ended since, their sessions resumed elsewhere.
    pub moved: usize,
    /// Ended by the client: for good, or before word of its resume elsewhere had come.
    pub left: usize,
    /// Ended in another way: closed at their deadline, or lost.
    pub closed: usize,
    /// Connections that are here still, at the last count.
    pub remaining: usize,
    /// Asked per second, now.
    pub rate: f64,
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// Tell which sessions there are.
    List,
    /// Ask this one to move.
    Goaway(SessionKey, Goaway),
}

/// ```text
/// listing ──► asking, listing every second ──► (nobody left: done; who comes after that is asked all the same)
/// ```
#[derive(Debug)]
pub(crate) struct Pace {
    order: DrainOrder,
    began: Instant,
    waiting: VecDeque<SessionKey>,
    /// Waiting or asked, and not known to have ended.
    known: BTreeSet<SessionKey>,
    asked: BTreeSet<SessionKey>,
    /// Which of `to` is next.
    turn: usize,
    /// What may be asked at once.
    budget: f64,
    budget_at: Instant,
    next_tick: Instant,
    next_list: Instant,
    progress: Progress,
    events: VecDeque<Event>,
}

impl Pace {
    /// Begins: the first thing it wants is a list.
    pub(crate) fn new(now: Instant, order: DrainOrder) -> Self {
        Self {
            order,
            began: now,
            waiting: VecDeque::new(),
            known: BTreeSet::new(),
            asked: BTreeSet::new(),
            turn: 0,
            budget: 0.0,
            budget_at: now,
            next_tick: now,
            next_list: now,
            progress: Progress::default(),
            events: VecDeque::new(),
        }
    }

    /// These are there, all of them.
    pub(crate) fn handle_sessions(&mut self, now: Instant, mut sessions: Vec<SessionInfo>) {
        self.progress.remaining = sessions.len();
        self.progress.done |= sessions.is_empty();
        // Who ended without word of it counts as closed.
        let present: BTreeSet<SessionKey> = sessions.iter().map(|session| session.key).collect();
        let gone: Vec<SessionKey> = self.known.difference(&present).copied().collect();
        for key in gone {
            self.count_end(SessionEnd {
                key,
                kind: EndKind::Closed(tidegate_protocol::frame::CloseCode::ConnectionLost),
            });
        }
        sessions.retain(|session| !session.leaving && !self.known.contains(&session.key));
        // Who notices least goes first; long polls are served best while others keep the node warm.
        sessions.sort_by_key(|session| (!session.moves, session.busy));
        for session in sessions {
            self.known.insert(session.key);
            self.waiting.push_back(session.key);
        }
        let left = (self.began + self.order.within / 2).saturating_duration_since(now).max(LEAST);
        self.progress.rate = self.waiting.len() as f64 / left.as_secs_f64();
    }

    /// A connection ended.
    pub(crate) fn handle_end(&mut self, end: SessionEnd) {
        if self.known.contains(&end.key) {
            self.progress.remaining = self.progress.remaining.saturating_sub(1);
        }
        self.count_end(end);
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.next_list <= now {
            self.next_list = now + LIST;
            self.events.push_back(Event::List);
        }
        if self.next_tick > now {
            return;
        }
        self.next_tick = now + TICK;
        let since = now.saturating_duration_since(self.budget_at);
        self.budget_at = now;
        self.budget =
            (self.budget + self.progress.rate * since.as_secs_f64()).min(self.progress.rate.max(1.0));
        while self.budget >= 1.0
            && let Some(key) = self.waiting.pop_front()
        {
            if self.known.contains(&key) {
                self.budget -= 1.0;
                self.ask(now, key);
            }
        }
    }

    /// When to call [`Pace::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Instant {
        self.next_tick.min(self.next_list)
    }

    /// What the driver must do.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    fn ask(&mut self, now: Instant, key: SessionKey) {
        let endpoint = self.order.to.get(self.turn % self.order.to.len().max(1)).cloned();
        self.turn = self.turn.wrapping_add(1);
        self.asked.insert(key);
        self.progress.asked += 1;
        let left = (self.began + self.order.within).saturating_duration_since(now);
        let goaway = Goaway {
            endpoint,
            slot: None,
            after_ms: 0,
            deadline_ms: millis(left.clamp(SHORTEST, PATIENCE)),
            reason: REASON.to_owned(),
        };
        self.events.push_back(Event::Goaway(key, goaway));
    }

    fn count_end(&mut self, end: SessionEnd) {
        self.known.remove(&end.key);
        if self.asked.remove(&end.key) {
            match end.kind {
                EndKind::Moved => self.progress.moved += 1,
                EndKind::Done => self.progress.left += 1,
                EndKind::Closed(_) => self.progress.closed += 1,
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const TICK: Duration = Duration::from_millis(100);
const LIST: Duration = Duration::from_secs(1);
/// Nobody is asked faster than over this long.
const LEAST: Duration = Duration::from_secs(1);
/// How long a client that was asked keeps its connection: at most, and at least.
const PATIENCE: Duration = Duration::from_secs(30);
const SHORTEST: Duration = Duration::from_secs(5);
const REASON: &str = "the server is drained";

#[cfg(test)]
mod tests;
