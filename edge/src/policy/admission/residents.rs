//! Sans-io: networks with sessions here that come by connection after connection (long polls over HTTP/1.1). Who lives here is
//! not kept out by those who want to come in.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::ticket::Holder;

/// Each session may open one connection a second. As many are remembered as there are sessions.
#[derive(Debug, Default)]
pub(super) struct Residents {
    networks: HashMap<Holder, Network>,
    /// Who came lately, by time.
    recent: VecDeque<(Instant, Holder)>,
}

/// Never empty.
#[derive(Debug, Default)]
struct Network {
    sessions: usize,
    /// Connections of the last second.
    recent: usize,
}

impl Residents {
    /// A session begins.
    pub(super) fn enter(&mut self, holder: Holder) {
        self.networks.entry(holder).or_default().sessions += 1;
    }

    /// One ends.
    pub(super) fn leave(&mut self, holder: Holder) {
        self.change(holder, |network| {
            network.sessions = network.sessions.saturating_sub(1);
            // Its own connection, most likely: the others there have theirs.
            network.recent = network.recent.saturating_sub(1);
        });
    }

    /// True where a session of there has not had its connection of this second.
    pub(super) fn arrive(&mut self, now: Instant, holder: Holder) -> bool {
        while let Some(&(at, holder)) = self.recent.front()
            && now.saturating_duration_since(at) >= EACH
        {
            self.recent.pop_front();
            self.change(holder, |network| network.recent = network.recent.saturating_sub(1));
        }
        let Some(network) = self.networks.get_mut(&holder) else { return false };
        if network.recent >= network.sessions {
            return false;
        }
        network.recent += 1;
        self.recent.push_back((now, holder));
        true
    }

    fn change(&mut self, holder: Holder, change: impl FnOnce(&mut Network)) {
        let Entry::Occupied(mut network) = self.networks.entry(holder) else { return };
        change(network.get_mut());
        if network.get().sessions == 0 && network.get().recent == 0 {
            network.remove();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.networks.len() + self.recent.len()
    }
}

const EACH: Duration = Duration::from_secs(1);
