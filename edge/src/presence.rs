//! Who is on which channel, on this worker: what the core is told of it, and which sessions want to be told by the core.
//!
//! Announcements are absolute and per user: a hundred tabs of one are one entry. Nothing is held for channels of
//! namespaces that keep no presence. Bounded by the sessions' own bounds on subscriptions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::ChannelName;
use tidegate_protocol::link::{Delivery, EdgeFrame};

use crate::connection::Session;
use crate::registry::{Registry, Subscriber};
use crate::worker::Worker;

/// What one worker knows of presence. Owned by one thread: no lock.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    /// Sessions by channel and user; anonymous ones together.
    sessions: HashMap<ChannelName, HashMap<Option<Arc<str>>, u32>>,
    watchers: Registry,
}

/// A subscription that counts.
#[derive(Debug)]
pub(crate) struct Present {
    /// The session's name for it.
    pub(crate) slot: u32,
    channel: ChannelName,
    user: Option<Arc<str>>,
    /// Its key among those that watch.
    watcher: Option<usize>,
}

impl Presence {
    /// One more session of a user; what to tell the core.
    fn come(&mut self, channel: &ChannelName, user: &Option<Arc<str>>) -> EdgeFrame {
        let users = match self.sessions.get_mut(channel) {
            Some(users) => users,
            None => self.sessions.entry(channel.clone()).or_default(),
        };
        let sessions = users.entry(user.clone()).or_default();
        *sessions += 1;
        announcement(channel, user, *sessions)
    }

    /// One less.
    fn go(&mut self, channel: &ChannelName, user: &Option<Arc<str>>) -> Option<EdgeFrame> {
        let users = self.sessions.get_mut(channel)?;
        let Entry::Occupied(mut entry) = users.entry(user.clone()) else { return None };
        *entry.get_mut() -= 1;
        let sessions = *entry.get();
        if sessions == 0 {
            entry.remove();
            if users.is_empty() {
                self.sessions.remove(channel);
            }
        }
        Some(announcement(channel, user, sessions))
    }

    /// One more subscription that wants to be told; its key, and what to tell the core where it is the first.
    fn watch(&mut self, channel: &ChannelName, subscriber: Subscriber) -> (usize, Option<EdgeFrame>) {
        let first = !self.watchers.has(channel);
        let key = self.watchers.insert(channel, subscriber);
        (key, first.then(|| EdgeFrame::Watch { channel: channel.clone(), on: true }))
    }

    /// One less.
    fn unwatch(&mut self, channel: &ChannelName, key: usize) -> Option<EdgeFrame> {
        let last = self.watchers.remove(channel, key);
        last.then(|| EdgeFrame::Watch { channel: channel.clone(), on: false })
    }
}

impl Worker {
    /// A session's subscription counts, and watches or not. Said again, it may only have begun or ended to watch.
    pub(crate) fn be_present(
        &self,
        session: &Rc<Session>,
        present: &mut Vec<Present>,
        slot: u32,
        channel: &ChannelName,
        user: Option<Arc<str>>,
        watch: bool,
    ) {
        if let Some(one) = present.iter_mut().find(|one| one.slot == slot) {
            return self.set_watch(session, one, watch);
        }
        let come = self.presence().come(channel, &user);
        let mut one = Present { slot, channel: channel.clone(), user, watcher: None };
        // Told of others before others are told of it: nobody who joins at the same time is missed.
        self.set_watch(session, &mut one, watch);
        self.upstream().send(come);
        if present.is_empty() {
            // Most sessions have one or two: no room for four.
            present.reserve_exact(1);
        }
        present.push(one);
    }

    /// A session that goes on at another edge is gone from here. What that edge says of it takes another way to the core,
    /// and may take longer: it counts here for a while, lest others be told that its user left.
    pub(crate) fn be_gone_later(self: &Rc<Self>, mut present: Vec<Present>) {
        if present.is_empty() {
            return;
        }
        for one in &mut present {
            let unwatch = one.watcher.take().and_then(|key| self.presence().unwatch(&one.channel, key));
            if let Some(frame) = unwatch {
                self.upstream().send(frame);
            }
        }
        let worker = Rc::clone(self);
        self.spawn(async move {
            let end = &worker.shared().drain;
            let _ended_first = end.run_until_cancelled(tokio::time::sleep(LINGER)).await;
            for slot in present.iter().map(|one| one.slot).collect::<Vec<_>>() {
                worker.be_gone(&mut present, slot);
            }
        });
    }

    /// The subscription of a slot is gone.
    pub(crate) fn be_gone(&self, present: &mut Vec<Present>, slot: u32) {
        let Some(index) = present.iter().position(|one| one.slot == slot) else { return };
        let one = present.swap_remove(index);
        if present.is_empty() {
            // An idle session holds no buffer.
            *present = Vec::new();
        }
        let unwatch = one.watcher.and_then(|key| self.presence().unwatch(&one.channel, key));
        let go = self.presence().go(&one.channel, &one.user);
        for frame in [unwatch, go].into_iter().flatten() {
            self.upstream().send(frame);
        }
    }

    fn set_watch(&self, session: &Rc<Session>, one: &mut Present, watch: bool) {
        let frame = match (one.watcher, watch) {
            (None, true) => {
                let subscriber = Subscriber::Session { session: Rc::clone(session), slot: one.slot };
                let (key, frame) = self.presence().watch(&one.channel, subscriber);
                one.watcher = Some(key);
                frame
            }
            (Some(key), false) => {
                one.watcher = None;
                self.presence().unwatch(&one.channel, key)
            }
            (None, false) | (Some(_), true) => None,
        };
        if let Some(frame) = frame {
            self.upstream().send(frame);
        }
    }
}

/// Delivers a `join` or `leave`, or that some were missed, to the subscriptions that watch.
pub(crate) async fn fan_out(worker: &Rc<Worker>, delivery: &Delivery, chunk: &mut Vec<Subscriber>) {
    let mut delivered = 0;
    let mut from = Some(0);
    while let Some(key) = from {
        chunk.clear();
        from = worker.presence().watchers.chunk(&delivery.channel, key, CHUNK, chunk);
        for subscriber in chunk.drain(..) {
            if let Subscriber::Session { session, slot } = subscriber {
                delivered += u64::from(session.deliver_presence(slot, delivery));
            }
        }
        if from.is_some() {
            tokio::task::yield_now().await;
        }
    }
    worker.metrics().ephemeral_deliveries.inc_by(delivered);
}

fn announcement(channel: &ChannelName, user: &Option<Arc<str>>, sessions: u32) -> EdgeFrame {
    EdgeFrame::Presence { channel: channel.clone(), user: user.clone(), sessions, again: false }
}

/// How long who moved to another edge counts here as well.
const LINGER: Duration = Duration::from_secs(2);
/// Connections between two yields, as for publications.
const CHUNK: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel_poll::Waiter;

    fn counts(frame: Option<EdgeFrame>) -> Option<(Option<String>, u32)> {
        match frame? {
            EdgeFrame::Presence { user, sessions, again: false, .. } => {
                Some((user.as_deref().map(str::to_owned), sessions))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_core_is_told_how_many_sessions_a_user_has_here() {
        let channel = ChannelName::new("room:1").expect("valid");
        let (ann, nobody) = (Some(Arc::from("ann")), None);
        let mut presence = Presence::default();
        assert_eq!(counts(Some(presence.come(&channel, &ann))), Some((Some("ann".to_owned()), 1)));
        assert_eq!(counts(Some(presence.come(&channel, &ann))), Some((Some("ann".to_owned()), 2)));
        assert_eq!(counts(Some(presence.come(&channel, &nobody))), Some((None, 1)));
        assert_eq!(counts(presence.go(&channel, &ann)), Some((Some("ann".to_owned()), 1)));
        assert_eq!(counts(presence.go(&channel, &ann)), Some((Some("ann".to_owned()), 0)));
        assert_eq!(counts(presence.go(&channel, &ann)), None, "who is gone cannot go");
        assert_eq!(counts(presence.go(&channel, &nobody)), Some((None, 0)));
        assert!(presence.sessions.is_empty());
    }

    #[test]
    fn the_core_is_told_of_the_first_watch_and_the_last() {
        let channel = ChannelName::new("room:1").expect("valid");
        let anybody = || Subscriber::Waiter(Rc::new(Waiter::new(true)));
        let mut presence = Presence::default();
        let (first, told) = presence.watch(&channel, anybody());
        assert!(matches!(told, Some(EdgeFrame::Watch { on: true, .. })), "{told:?}");
        let (second, told) = presence.watch(&channel, anybody());
        assert!(told.is_none());
        assert!(presence.unwatch(&channel, first).is_none());
        let told = presence.unwatch(&channel, second);
        assert!(matches!(told, Some(EdgeFrame::Watch { on: false, .. })), "{told:?}");
        assert!(presence.unwatch(&channel, second).is_none(), "once");
    }
}
