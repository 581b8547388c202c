//! Sans-io: the connections of a node under the numbers that a drain knows them by.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_transport::TransportKind;

use crate::policy::drain::{Candidate, Class, ConnectionKey, Departure};
use crate::sessions::{EndKind, PARTS, SessionEnd, SessionInfo, SessionKey};

/// What a list changes.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    /// Somebody new is here.
    Here(Candidate),
    /// It is of this class now.
    Class(ConnectionKey, Class),
    /// Its session is over, or was resumed on another connection: it has only to say so.
    There(ConnectionKey),
    /// It is gone, and nobody said how.
    Gone(ConnectionKey),
}

/// Who is here.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    numbers: BTreeMap<SessionKey, Entry>,
    keys: BTreeMap<ConnectionKey, SessionKey>,
    next: u64,
    /// Ended since a list was asked for: it may have them still.
    ended: BTreeSet<SessionKey>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    number: ConnectionKey,
    moves: bool,
}

impl Ledger {
    /// How the workers call it, and whether it does what `goaway` asks.
    pub(crate) fn find(&self, number: ConnectionKey) -> Option<(SessionKey, bool)> {
        let key = self.keys.get(&number)?;
        Some((*key, self.numbers.get(key)?.moves))
    }

    /// The number of one that is here.
    pub(crate) fn number(&self, key: SessionKey) -> Option<ConnectionKey> {
        self.numbers.get(&key).map(|entry| entry.number)
    }

    /// A list is about to be asked for.
    pub(crate) fn handle_list_asked(&mut self) {
        self.ended.clear();
    }

    /// All that there are.
    pub(crate) fn handle_list(&mut self, sessions: &[SessionInfo]) -> Vec<Change> {
        let mut news = Vec::new();
        for session in sessions {
            let class = class_of(session);
            match self.numbers.get(&session.key) {
                Some(known) if session.leaving => news.push(Change::There(known.number)),
                Some(known) => news.push(Change::Class(known.number, class)),
                None if session.leaving || self.ended.contains(&session.key) => {}
                None => {
                    self.next += 1;
                    let number = ConnectionKey(self.next);
                    self.numbers.insert(session.key, Entry { number, moves: session.moves });
                    self.keys.insert(number, session.key);
                    // Numbers follow the workers' tables; the drain scatters them.
                    let rank = self.next as u32;
                    // Who is on no channel is spread over all.
                    let tenant = session.part.map_or_else(|| self.next % u64::from(PARTS), u64::from);
                    news.push(Change::Here(Candidate { connection: number, class, rank, tenant }));
                }
            }
        }
        let present: BTreeSet<SessionKey> = sessions.iter().map(|session| session.key).collect();
        let gone: Vec<SessionKey> =
            self.numbers.keys().filter(|key| !present.contains(key)).copied().collect();
        for key in gone {
            if let Some(number) = self.remove(key) {
                news.push(Change::Gone(number));
            }
        }
        news
    }

    /// A connection ended; the drain's name for it, and how.
    pub(crate) fn handle_end(&mut self, end: SessionEnd) -> Option<(ConnectionKey, Departure)> {
        if self.ended.len() < MAX_ENDED {
            self.ended.insert(end.key);
        }
        let departure = match end.kind {
            EndKind::Moved => Departure::Resumed,
            EndKind::Done => Departure::Done,
            EndKind::Closed(_) => Departure::Broken,
        };
        Some((self.remove(end.key)?, departure))
    }

    fn remove(&mut self, key: SessionKey) -> Option<ConnectionKey> {
        let entry = self.numbers.remove(&key)?;
        self.keys.remove(&entry.number);
        Some(entry.number)
    }
}

fn class_of(session: &SessionInfo) -> Class {
    match session.transport {
        _ if !session.moves => Class::BreakOnly,
        TransportKind::LongPoll => Class::LongPoll,
        _ if session.busy => Class::Busy,
        _ => Class::Idle,
    }
}

/// Beyond these, one that ended while a list was made may be counted twice.
const MAX_ENDED: usize = 65_536;

#[cfg(test)]
mod tests {
    use tidegate_protocol::frame::CloseCode;

    use super::*;

    fn session(serial: u32) -> SessionInfo {
        let key = SessionKey { worker: 0, is_stream: false, index: 3, serial };
        let transport = TransportKind::Quic;
        SessionInfo { key, transport, moves: true, busy: false, leaving: false, part: None }
    }

    fn end(serial: u32, kind: EndKind) -> SessionEnd {
        SessionEnd { key: session(serial).key, kind }
    }

    #[test]
    fn who_comes_is_named_once_and_who_goes_is_told_once() {
        let mut ledger = Ledger::default();
        let news = ledger.handle_list(&[session(1), session(2)]);
        let [Change::Here(first), Change::Here(second)] = &news[..] else { panic!("{news:?}") };
        assert_ne!(first.connection, second.connection);
        assert_eq!(ledger.find(first.connection), Some((session(1).key, true)));
        assert_ne!(first.tenant, second.tenant, "of no channel, so of all");
        let busy = SessionInfo { busy: true, ..session(1) };
        let news = ledger.handle_list(&[busy]);
        assert_eq!(news, [Change::Class(first.connection, Class::Busy), Change::Gone(second.connection)]);
        assert_eq!(ledger.handle_end(end(1, EndKind::Moved)), Some((first.connection, Departure::Resumed)));
        assert_eq!(ledger.handle_end(end(1, EndKind::Done)), None);
        assert_eq!(ledger.find(first.connection), None);
    }

    #[test]
    fn those_of_one_part_of_the_channel_tier_are_of_one_tenant() {
        let mut ledger = Ledger::default();
        let of_part = |serial, part| SessionInfo { part: Some(part), ..session(serial) };
        let news = ledger.handle_list(&[of_part(1, 7), of_part(2, 9), of_part(3, 7)]);
        let tenants: Vec<_> = news
            .iter()
            .map(|one| match one {
                Change::Here(candidate) => candidate.tenant,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(tenants, [7, 9, 7]);
    }

    #[test]
    fn who_ended_while_the_list_was_made_is_not_here_again() {
        let mut ledger = Ledger::default();
        ledger.handle_list(&[session(1)]);
        ledger.handle_list_asked();
        let lost = end(1, EndKind::Closed(CloseCode::ConnectionLost));
        assert!(ledger.handle_end(lost).is_some());
        assert!(ledger.handle_list(&[session(1)]).is_empty());
        let leaving = SessionInfo { leaving: true, ..session(2) };
        assert!(ledger.handle_list(&[leaving]).is_empty(), "on its way out by itself");
        let news = ledger.handle_list(&[session(3)]);
        let [Change::Here(Candidate { connection, .. })] = news[..] else { panic!("{news:?}") };
        let leaving = SessionInfo { leaving: true, ..session(3) };
        assert_eq!(ledger.handle_list(&[leaving]), [Change::There(connection)]);
    }

    #[test]
    fn classes_say_how_one_can_leave() {
        let with = |transport, moves, busy| class_of(&SessionInfo { transport, moves, busy, ..session(1) });
        assert_eq!(with(TransportKind::Quic, true, false), Class::Idle);
        assert_eq!(with(TransportKind::WebSocket, true, true), Class::Busy);
        assert_eq!(with(TransportKind::LongPoll, true, true), Class::LongPoll);
        assert_eq!(with(TransportKind::LongPoll, false, false), Class::BreakOnly);
        assert_eq!(with(TransportKind::Sse, false, false), Class::BreakOnly);
    }
}
