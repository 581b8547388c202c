//! Sans-io: who is on one channel.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tidegate_protocol::link::Members;

use crate::channel::LinkId;

/// What links said of one channel, and what it comes to.
#[derive(Debug, Default)]
pub(super) struct Place {
    said: BTreeMap<LinkId, BTreeMap<Who, u32>>,
    /// Sessions of the users that are known one by one.
    known: BTreeMap<Arc<str>, u64>,
    /// Sessions of those beyond the bound, by the hash of their names.
    counted: BTreeMap<u64, u64>,
    sessions: u64,
    /// Links that want to be told.
    pub(super) watchers: BTreeSet<LinkId>,
}

/// Of whom something is said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// All who have no name.
    Anonymous,
    /// A user whom the channel knows.
    Known(Arc<str>),
    /// A user beyond the bound. Two of one hash count as one.
    Counted(u64),
}

/// What became of what a link says of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// The first time.
    Began,
    /// More or less than before.
    Changed,
    /// No sessions any more.
    Ended,
    /// It says nothing, as before.
    Nothing,
}

impl Place {
    /// Whom a name stands for; one that was beyond the bound is known by it once there is room.
    pub(super) fn resolve(&mut self, user: Option<Arc<str>>, bound: usize) -> Who {
        let Some(user) = user else { return Who::Anonymous };
        if self.known.contains_key(&user) {
            return Who::Known(user);
        }
        let hash = hash_of(&user);
        if self.known.len() >= bound {
            return Who::Counted(hash);
        }
        if let Some(sessions) = self.counted.remove(&hash) {
            self.known.insert(Arc::clone(&user), sessions);
            for said in self.said.values_mut() {
                if let Some(sessions) = said.remove(&Who::Counted(hash)) {
                    said.insert(Who::Known(Arc::clone(&user)), sessions);
                }
            }
        }
        Who::Known(user)
    }

    /// Over all links.
    pub(super) fn sessions_of(&self, who: &Who) -> u64 {
        match who {
            Who::Anonymous => 0,
            Who::Known(user) => self.known.get(user).copied().unwrap_or(0),
            Who::Counted(hash) => self.counted.get(hash).copied().unwrap_or(0),
        }
    }

    /// True where the link has said something of them.
    pub(super) fn has_said(&self, link: LinkId, who: &Who) -> bool {
        self.said.get(&link).is_some_and(|said| said.contains_key(who))
    }

    /// The link has so many sessions of theirs now.
    pub(super) fn say(&mut self, link: LinkId, who: &Who, sessions: u32) -> Said {
        let before = if sessions > 0 {
            self.said.entry(link).or_default().insert(who.clone(), sessions)
        } else {
            let Some(said) = self.said.get_mut(&link) else { return Said::Nothing };
            let before = said.remove(who);
            if said.is_empty() {
                self.said.remove(&link);
            }
            before
        };
        let (said, count) = (u64::from(before.unwrap_or(0)), u64::from(sessions));
        self.sessions = self.sessions - said + count;
        match who {
            Who::Anonymous => {}
            Who::Known(user) => replace(&mut self.known, user, said, count),
            Who::Counted(hash) => replace(&mut self.counted, hash, said, count),
        }
        match (before, sessions) {
            (None, 0) => Said::Nothing,
            (None, _) => Said::Began,
            (Some(_), 0) => Said::Ended,
            (Some(_), _) => Said::Changed,
        }
    }

    /// Somebody of whom the link has said something.
    pub(super) fn first_said(&self, link: LinkId) -> Option<Who> {
        self.said.get(&link).and_then(|said| said.keys().next().cloned())
    }

    /// True where the link counts or watches here.
    pub(super) fn concerns(&self, link: LinkId) -> bool {
        self.said.contains_key(&link) || self.watchers.contains(&link)
    }

    /// True where nobody counts or watches here.
    pub(super) fn is_empty(&self) -> bool {
        self.said.is_empty() && self.watchers.is_empty()
    }

    /// Who is here.
    pub(super) fn members(&self) -> Members {
        let users = self
            .known
            .iter()
            .map(|(user, sessions)| (Arc::clone(user), u32::try_from(*sessions).unwrap_or(u32::MAX)));
        Members {
            users: users.collect(),
            users_total: (self.known.len() + self.counted.len()) as u64,
            sessions: self.sessions,
            exact: self.counted.is_empty(),
        }
    }
}

/// What a link said of somebody is another number now; a total of 0 goes.
fn replace<K: Ord + Clone>(totals: &mut BTreeMap<K, u64>, key: &K, before: u64, count: u64) {
    match totals.get(key).copied().unwrap_or(0) - before + count {
        0 => drop(totals.remove(key)),
        total => drop(totals.insert(key.clone(), total)),
    }
}

fn hash_of(user: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    user.hash(&mut hasher);
    hasher.finish()
}
