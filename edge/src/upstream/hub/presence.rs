//! Sans-io: who is on the channels of a partition over this edge, and which workers want to be told of joins and leaves.
//!
//! What the owner was told is remembered by the link that it was told over: with another link all of it is told again.
//! Everything is said absolutely, so that only the newest state needs to be sent, however long a link is full.

use std::collections::VecDeque;
use std::sync::Arc;

use indexmap::IndexMap;
use tidegate_protocol::ChannelName;
use tidegate_protocol::link::EdgeFrame;

use super::workers::{Client, ClientSet};

type Member = (ChannelName, Option<Arc<str>>);

/// What a partition's owner is told of its own accord.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    members: IndexMap<Member, Present>,
    watches: IndexMap<ChannelName, Watched>,
    /// What changed since it was told; of the present link only.
    changed_members: VecDeque<Member>,
    changed_watches: VecDeque<ChannelName>,
    /// All below are still to be told over the present link. Downwards: removing one by a swap with the last never hides
    /// one.
    next_member: usize,
    next_watch: usize,
    /// The present link; 0: none.
    link: u32,
    /// Members that are gone while there was no link.
    gone: usize,
}

#[derive(Debug, Default)]
struct Present {
    /// Sessions by worker; never 0.
    sessions: Vec<(Client, u32)>,
    /// What was said last, over whatever link.
    told: u32,
    told_on: u32,
    /// It is among the changed ones of this link.
    queued_on: u32,
}

impl Present {
    fn total(&self) -> u32 {
        self.sessions.iter().fold(0, |sum, (_, sessions)| sum.saturating_add(*sessions))
    }
}

#[derive(Debug, Default)]
struct Watched {
    by: ClientSet,
    told_on: u32,
    queued_on: u32,
}

impl Announcements {
    /// A worker says how many sessions of a user are on a channel there.
    pub(crate) fn set_sessions(&mut self, client: Client, member: Member, sessions: u32) {
        let index = match self.members.get_index_of(&member) {
            Some(index) => index,
            None if sessions == 0 => return,
            None => self.members.insert_full(member.clone(), Present::default()).0,
        };
        let present = &mut self.members[index];
        match present.sessions.iter().position(|(other, _)| *other == client) {
            Some(place) if sessions == 0 => {
                present.sessions.swap_remove(place);
            }
            Some(place) => present.sessions[place].1 = sessions,
            None if sessions == 0 => {}
            None => {
                present.sessions.reserve_exact(1);
                present.sessions.push((client, sessions));
            }
        }
        if self.link != 0 {
            if present.queued_on != self.link {
                present.queued_on = self.link;
                self.changed_members.push_back(member);
            }
        } else if present.sessions.is_empty() {
            // The next owner is told that they are gone, unless they are many: it finds out by itself, later.
            self.gone += 1;
            if present.told == 0 || self.gone > MAX_GONE {
                self.members.swap_remove_index(index);
            }
        }
    }

    /// A worker wants to be told of joins and leaves, or no longer.
    pub(crate) fn set_watch(&mut self, client: Client, channel: ChannelName, on: bool) {
        let index = match self.watches.get_index_of(&channel) {
            Some(index) => index,
            None if !on => return,
            None => self.watches.insert_full(channel.clone(), Watched::default()).0,
        };
        let watched = &mut self.watches[index];
        if on {
            watched.by.insert(client);
        } else {
            watched.by.remove(client);
        }
        if self.link != 0 {
            if watched.queued_on != self.link {
                watched.queued_on = self.link;
                self.changed_watches.push_back(channel);
            }
        } else if watched.by.is_empty() {
            self.watches.swap_remove_index(index);
        }
    }

    /// Who wants to be told of joins and leaves.
    pub(crate) fn watchers(&self, channel: &ChannelName) -> ClientSet {
        self.watches.get(channel).map_or_else(ClientSet::default, |watched| watched.by)
    }

    /// There is a new link, numbered like none before.
    pub(crate) fn opened(&mut self, link: u32) {
        self.link = link;
        self.next_member = self.members.len();
        self.next_watch = self.watches.len();
        self.gone = 0;
    }

    /// There is none any more.
    pub(crate) fn closed(&mut self) {
        self.link = 0;
        self.changed_members.clear();
        self.changed_watches.clear();
        self.next_member = 0;
        self.next_watch = 0;
    }

    /// What is to be said next.
    pub(crate) fn poll(&mut self) -> Option<EdgeFrame> {
        while let Some(channel) = self.changed_watches.pop_front() {
            if let Some(index) = self.watches.get_index_of(&channel)
                && let Some(frame) = self.tell_watch(index)
            {
                return Some(frame);
            }
        }
        while let Some(member) = self.changed_members.pop_front() {
            if let Some(index) = self.members.get_index_of(&member)
                && let Some(frame) = self.tell_member(index)
            {
                return Some(frame);
            }
        }
        while let Some(index) = self.next_watch.checked_sub(1) {
            self.next_watch = index;
            if let Some(frame) = self.tell_watch(index) {
                return Some(frame);
            }
        }
        while let Some(index) = self.next_member.checked_sub(1) {
            self.next_member = index;
            if let Some(frame) = self.tell_member(index) {
                return Some(frame);
            }
        }
        None
    }

    /// Everything, for another instance: whoever places channels anew.
    #[expect(clippy::type_complexity, reason = "taken apart at once")]
    pub(crate) fn take(&mut self) -> (Vec<(Client, Member, u32)>, Vec<(Client, ChannelName)>) {
        let mut members = Vec::new();
        for (member, present) in self.members.drain(..) {
            members.extend(present.sessions.iter().map(|(client, count)| (*client, member.clone(), *count)));
        }
        let mut watches = Vec::new();
        for (channel, watched) in self.watches.drain(..) {
            watches.extend(watched.by.iter().map(|client| (client, channel.clone())));
        }
        self.closed();
        (members, watches)
    }

    fn tell_watch(&mut self, index: usize) -> Option<EdgeFrame> {
        let (channel, watched) = self.watches.get_index_mut(index)?;
        let channel = channel.clone();
        watched.queued_on = 0;
        let (on, told) = (!watched.by.is_empty(), watched.told_on == self.link);
        if on {
            watched.told_on = self.link;
        } else {
            self.watches.swap_remove_index(index);
        }
        (on != told).then_some(EdgeFrame::Watch { channel, on })
    }

    fn tell_member(&mut self, index: usize) -> Option<EdgeFrame> {
        let ((channel, user), present) = self.members.get_index_mut(index)?;
        let (channel, user) = (channel.clone(), user.clone());
        present.queued_on = 0;
        let sessions = present.total();
        let (told, said_here) = (present.told, present.told_on == self.link);
        present.told = sessions;
        present.told_on = self.link;
        if sessions == 0 {
            self.members.swap_remove_index(index);
        }
        let is_news = if said_here { sessions != told } else { sessions > 0 || told > 0 };
        // A leave is news, whenever it is told.
        let again = !said_here && told > 0 && sessions > 0;
        is_news.then_some(EdgeFrame::Presence { channel, user, sessions, again })
    }
}

/// Members who left while there was no link, and of whom the next one is told.
const MAX_GONE: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    const A: Client = Client(0);
    const B: Client = Client(1);

    fn channel() -> ChannelName {
        ChannelName::new("room:1").expect("valid")
    }

    fn member(user: &str) -> Member {
        (channel(), Some(Arc::from(user)))
    }

    /// What is said: user, sessions, again.
    fn said(announcements: &mut Announcements) -> Vec<(String, u32, bool)> {
        std::iter::from_fn(|| announcements.poll())
            .map(|frame| match frame {
                EdgeFrame::Presence { user, sessions, again, .. } => {
                    (user.as_deref().unwrap_or_default().to_owned(), sessions, again)
                }
                EdgeFrame::Watch { on, .. } => ("watch".to_owned(), u32::from(on), false),
                frame => panic!("{frame:?}"),
            })
            .collect()
    }

    fn one(user: &str, sessions: u32, again: bool) -> Vec<(String, u32, bool)> {
        vec![(user.to_owned(), sessions, again)]
    }

    #[test]
    fn sessions_are_summed_over_workers_and_said_absolutely() {
        let mut all = Announcements::default();
        all.set_sessions(A, member("ann"), 2);
        assert!(said(&mut all).is_empty(), "to nobody");
        all.opened(1);
        assert_eq!(said(&mut all), one("ann", 2, false));
        all.set_sessions(B, member("ann"), 1);
        all.set_sessions(A, member("ann"), 1);
        assert_eq!(said(&mut all), Vec::new(), "two as before");
        all.set_sessions(A, member("ann"), 0);
        assert_eq!(said(&mut all), one("ann", 1, false));
        all.set_sessions(B, member("ann"), 0);
        assert_eq!(said(&mut all), one("ann", 0, false));
        assert!(all.members.is_empty());
    }

    #[test]
    fn another_owner_is_told_again_and_of_those_who_left_meanwhile() {
        let mut all = Announcements::default();
        all.opened(1);
        all.set_sessions(A, member("ann"), 1);
        all.set_sessions(A, member("bob"), 1);
        said(&mut all);
        all.closed();
        all.set_sessions(A, member("bob"), 0);
        all.set_sessions(B, member("cid"), 1);
        all.set_sessions(B, member("dan"), 1);
        all.set_sessions(B, member("dan"), 0);
        all.opened(2);
        let mut told = said(&mut all);
        told.sort();
        let expected = [one("ann", 1, true), one("bob", 0, false), one("cid", 1, false)].concat();
        assert_eq!(told, expected);
        assert_eq!(all.members.len(), 2);
    }

    #[test]
    fn a_watch_is_on_while_any_worker_wants_it() {
        let mut all = Announcements::default();
        all.opened(1);
        all.set_watch(A, channel(), true);
        all.set_watch(B, channel(), true);
        assert_eq!(said(&mut all), one("watch", 1, false));
        all.set_watch(A, channel(), false);
        assert!(said(&mut all).is_empty());
        assert_eq!(all.watchers(&channel()).iter().collect::<Vec<_>>(), [B]);
        all.closed();
        all.opened(2);
        assert_eq!(said(&mut all), one("watch", 1, false));
        all.set_watch(B, channel(), false);
        all.set_watch(B, channel(), true);
        assert!(said(&mut all).is_empty(), "as it was");
        all.set_watch(B, channel(), false);
        assert_eq!(said(&mut all), one("watch", 0, false));
        assert!(all.watches.is_empty());
    }
}
