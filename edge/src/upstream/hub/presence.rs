//! Sans-io: who is on the channels of a partition over this edge, and which workers want to be told of joins and leaves.
//!
//! What the owner was told is remembered by the link that it was told over: with another link all of it is told again.
//! Everything is said absolutely, so that only the newest state needs to be sent, however long a link is full.
//!
//! Joins and leaves come the other way. Where a worker had no room for one, and where another link took the place of one
//! that watched (who left meanwhile, or with the edge that had them, nobody tells), workers are told of a gap: their
//! clients ask for lists anew. After another link not at once: other edges have to tell the owner whom they have.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::frame::{PresenceGap, ServerBody};
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame};
use tidegate_protocol::{ChannelName, Offset};

use super::workers::{Client, ClientSet, Outbox, smallest};

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
    /// Who missed a join or a leave of what. Not more than there are watches.
    missed: BTreeSet<(Client, ChannelName)>,
    /// When watches from before this link are told of a gap; all below `next_gap` are still to be.
    gaps_at: Option<Instant>,
    next_gap: usize,
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
    /// The link that it was told over first.
    since: u32,
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

    /// Hands a join or a leave to those who watch.
    pub(crate) fn changed(&mut self, delivery: Delivery, outbox: &mut Outbox) {
        for client in self.watchers(&delivery.channel).iter() {
            if !outbox.offer(client, CoreFrame::PresenceChanged(delivery.clone())) {
                self.missed.insert((client, delivery.channel.clone()));
            }
        }
    }

    /// A worker has room again: it is told of what it missed.
    pub(crate) fn drained(&mut self, client: Client, outbox: &mut Outbox) {
        let of_later = self.missed.split_off(&(Client(client.0 + 1), smallest()));
        let of_client = self.missed.split_off(&(client, smallest()));
        self.missed.extend(of_later);
        for (_, channel) in of_client {
            if self.watchers(&channel).contains(client) {
                outbox.push(client, CoreFrame::PresenceChanged(gap(&channel)));
            }
        }
    }

    /// There is a new link, numbered like none before.
    pub(crate) fn opened(&mut self, now: Instant, link: u32) {
        self.link = link;
        self.next_member = self.members.len();
        self.next_watch = self.watches.len();
        self.gone = 0;
        self.gaps_at = (!self.watches.is_empty()).then(|| now + SETTLE);
        self.next_gap = usize::MAX;
    }

    /// When [`Announcements::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.gaps_at
    }

    /// Tells of gaps, so many at a time.
    pub(crate) fn handle_timeout(&mut self, now: Instant, outbox: &mut Outbox) {
        if self.gaps_at.is_none_or(|at| at > now) {
            return;
        }
        let from = self.next_gap.min(self.watches.len());
        let to = from.saturating_sub(GAPS);
        for index in (to..from).rev() {
            let Some((channel, watched)) = self.watches.get_index(index) else { continue };
            if watched.since != 0 && watched.since != self.link {
                let delivery = gap(channel);
                for client in watched.by.iter() {
                    outbox.push(client, CoreFrame::PresenceChanged(delivery.clone()));
                }
            }
        }
        self.next_gap = to;
        self.gaps_at = (to > 0).then(|| now + GAPS_PAUSE);
    }

    /// There is none any more.
    pub(crate) fn closed(&mut self) {
        self.link = 0;
        self.changed_members.clear();
        self.changed_watches.clear();
        self.next_member = 0;
        self.next_watch = 0;
        self.gaps_at = None;
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
            if watched.since == 0 {
                watched.since = self.link;
            }
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

/// Word that joins and leaves of a channel were missed.
fn gap(channel: &ChannelName) -> Delivery {
    let body = ServerBody::PresenceGap(PresenceGap { channel: channel.as_str().to_owned() });
    Delivery { channel: channel.clone(), offset: Offset(0), frame: Arc::new(SharedFrame::new(body)) }
}

/// Members who left while there was no link, and of whom the next one is told.
const MAX_GONE: usize = 16_384;
/// For the other edges to find a partition's new owner and to tell it whom they have.
const SETTLE: Duration = Duration::from_secs(3);
/// Channels of which gaps are told at once, and the pause before the next.
const GAPS: usize = 1024;
const GAPS_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use tidegate_protocol::frame::Join;

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
        all.opened(start(), 1);
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
        all.opened(start(), 1);
        all.set_sessions(A, member("ann"), 1);
        all.set_sessions(A, member("bob"), 1);
        said(&mut all);
        all.closed();
        all.set_sessions(A, member("bob"), 0);
        all.set_sessions(B, member("cid"), 1);
        all.set_sessions(B, member("dan"), 1);
        all.set_sessions(B, member("dan"), 0);
        all.opened(start(), 2);
        let mut told = said(&mut all);
        told.sort();
        let expected = [one("ann", 1, true), one("bob", 0, false), one("cid", 1, false)].concat();
        assert_eq!(told, expected);
        assert_eq!(all.members.len(), 2);
    }

    #[test]
    fn a_watch_is_on_while_any_worker_wants_it() {
        let mut all = Announcements::default();
        all.opened(start(), 1);
        all.set_watch(A, channel(), true);
        all.set_watch(B, channel(), true);
        assert_eq!(said(&mut all), one("watch", 1, false));
        all.set_watch(A, channel(), false);
        assert!(said(&mut all).is_empty());
        assert_eq!(all.watchers(&channel()).iter().collect::<Vec<_>>(), [B]);
        all.closed();
        all.opened(start(), 2);
        assert_eq!(said(&mut all), one("watch", 1, false));
        all.set_watch(B, channel(), false);
        all.set_watch(B, channel(), true);
        assert!(said(&mut all).is_empty(), "as it was");
        all.set_watch(B, channel(), false);
        assert_eq!(said(&mut all), one("watch", 0, false));
        assert!(all.watches.is_empty());
    }

    /// What a worker gets now: `gap`, or who joined.
    fn got(outbox: &mut Outbox, client: Client) -> Vec<String> {
        std::iter::from_fn(|| outbox.pop(client))
            .map(|frame| {
                let CoreFrame::PresenceChanged(delivery) = frame else { panic!("{frame:?}") };
                match &delivery.frame.frame().body {
                    Some(ServerBody::PresenceGap(gap)) => format!("gap in {}", gap.channel),
                    Some(ServerBody::Join(join)) => join.user.clone(),
                    body => panic!("{body:?}"),
                }
            })
            .collect()
    }

    fn joined(user: &str) -> Delivery {
        let (name, user) = (channel().as_str().to_owned(), user.to_owned());
        let body = ServerBody::Join(Join { channel: name, user, time_ms: 0 });
        Delivery { channel: channel(), offset: Offset(0), frame: Arc::new(SharedFrame::new(body)) }
    }

    #[test]
    fn who_had_no_room_for_a_join_is_told_of_a_gap_once_it_has() {
        let mut all = Announcements::default();
        let mut outbox = Outbox::new(2, 300);
        all.opened(start(), 1);
        all.set_watch(A, channel(), true);
        all.set_watch(B, channel(), true);
        all.changed(joined("ann"), &mut outbox);
        assert_eq!((got(&mut outbox, A).len(), got(&mut outbox, B).len()), (1, 1));
        for user in ["a", "b", "c", "d", "e"] {
            all.changed(joined(user), &mut outbox);
            got(&mut outbox, B);
        }
        assert_eq!(got(&mut outbox, A), ["a", "b", "c"], "then it was full");
        assert_eq!(outbox.take_drained(), [A]);
        all.drained(A, &mut outbox);
        all.drained(B, &mut outbox);
        assert_eq!(got(&mut outbox, A), ["gap in room:1"]);
        assert!(got(&mut outbox, B).is_empty() && all.missed.is_empty());
    }

    #[test]
    fn after_another_link_watches_from_before_are_told_of_a_gap() {
        let mut all = Announcements::default();
        let mut outbox = Outbox::new(2, 1 << 20);
        let now = start();
        all.opened(now, 1);
        assert_eq!(all.poll_timeout(), None, "nobody watched before");
        all.set_watch(A, channel(), true);
        said(&mut all);
        all.closed();
        all.set_watch(B, ChannelName::new("room:2").expect("valid"), true);
        all.opened(now, 2);
        said(&mut all);
        assert_eq!(all.poll_timeout(), Some(now + SETTLE));
        all.handle_timeout(now, &mut outbox);
        assert!(got(&mut outbox, A).is_empty(), "the others have yet to say whom they have");
        all.handle_timeout(now + SETTLE, &mut outbox);
        assert_eq!(got(&mut outbox, A), ["gap in room:1"]);
        assert!(got(&mut outbox, B).is_empty(), "it watched nobody before");
        assert_eq!(all.poll_timeout(), None);
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
    fn start() -> Instant {
        Instant::now()
    }
}
