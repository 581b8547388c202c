//! Who on this worker is subscribed to what. Owned by one thread: no lock.

use std::collections::HashMap;
use std::rc::Rc;

use slab::Slab;
use tidegate_protocol::ChannelName;

use crate::channel_poll::Waiter;
use crate::connection::Session;
use crate::events::Events;

/// A local member of a channel.
#[derive(Debug, Clone)]
pub(crate) enum Subscriber {
    /// A session, by its own name for the subscription.
    Session {
        /// Whose.
        session: Rc<Session>,
        /// Its name for it.
        slot: u32,
    },
    /// A `GET …/poll` that waits.
    Waiter(Rc<Waiter>),
    /// A stream of Server-Sent Events.
    Events(Rc<Events>),
}

#[derive(Debug, Default)]
struct Channel {
    subscribers: Slab<Subscriber>,
    /// One past the highest key in use: where a walk ends.
    end: usize,
}

/// Subscribers by channel.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    channels: HashMap<ChannelName, Channel>,
}

impl Registry {
    /// Adds a subscriber; the key is for [`Registry::remove`].
    pub(crate) fn insert(&mut self, channel: &ChannelName, subscriber: Subscriber) -> usize {
        let entry = match self.channels.get_mut(channel) {
            Some(entry) => entry,
            None => self.channels.entry(channel.clone()).or_default(),
        };
        let key = entry.subscribers.insert(subscriber);
        entry.end = entry.end.max(key + 1);
        key
    }

    /// Takes a subscriber away; true where it was the channel's last.
    pub(crate) fn remove(&mut self, channel: &ChannelName, key: usize) -> bool {
        let Some(entry) = self.channels.get_mut(channel) else { return false };
        if entry.subscribers.try_remove(key).is_none() {
            return false;
        }
        // What a crowd left behind is not walked for ever.
        while entry.end > 0 && !entry.subscribers.contains(entry.end - 1) {
            entry.end -= 1;
        }
        let last = entry.subscribers.is_empty();
        if last {
            self.channels.remove(channel);
        }
        last
    }

    /// Appends up to `limit` subscribers of `channel`, from key `from` on, to `chunk`; the key to go on with, `None`
    /// at the end.
    ///
    /// A walk may be left and taken up again: who joins meanwhile begins at the head, and who leaves is not found.
    pub(crate) fn chunk(
        &self,
        channel: &ChannelName,
        from: usize,
        limit: usize,
        chunk: &mut Vec<Subscriber>,
    ) -> Option<usize> {
        let entry = self.channels.get(channel)?;
        let mut key = from;
        while key < entry.end {
            if chunk.len() == limit {
                return Some(key);
            }
            if let Some(subscriber) = entry.subscribers.get(key) {
                chunk.push(subscriber.clone());
            }
            key += 1;
        }
        None
    }

    /// True where somebody is on `channel`.
    pub(crate) fn has(&self, channel: &ChannelName) -> bool {
        self.channels.contains_key(channel)
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Join,
        Leave(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step =
            prop_oneof![3 => Just(Step::Join), 2 => any::<prop::sample::Index>().prop_map(Step::Leave)];
        prop::collection::vec(step, 0..40)
    }

    /// The registry beside a model of it: who is in, by key.
    #[derive(Default)]
    struct Crowd {
        registry: Registry,
        members: BTreeMap<usize, Rc<Waiter>>,
    }

    impl Crowd {
        fn apply(&mut self, channel: &ChannelName, step: &Step) {
            match step {
                Step::Join => {
                    let waiter = Rc::new(Waiter::new(true));
                    let key = self.registry.insert(channel, Subscriber::Waiter(Rc::clone(&waiter)));
                    assert!(self.members.insert(key, waiter).is_none(), "the key is taken");
                }
                Step::Leave(_) if self.members.is_empty() => {}
                Step::Leave(index) => {
                    let key = *index.get(&self.members.keys().copied().collect::<Vec<_>>());
                    self.members.remove(&key);
                    assert_eq!(self.registry.remove(channel, key), self.members.is_empty());
                    assert!(!self.registry.remove(channel, key), "once");
                }
            }
        }
    }

    fn address(waiter: &Rc<Waiter>) -> *const Waiter {
        Rc::as_ptr(waiter)
    }

    proptest! {
        #[test]
        fn a_walk_finds_each_who_stays_once_whoever_comes_and_goes(
            before in steps(),
            between in prop::collection::vec(steps(), 0..6),
            limit in 1usize..5,
        ) {
            let channel = ChannelName::new("room").expect("valid");
            let mut crowd = Crowd::default();
            before.iter().for_each(|step| crowd.apply(&channel, step));
            let mut staying: Vec<Rc<Waiter>> = crowd.members.values().cloned().collect();
            let mut found = Vec::new();
            let mut between = between.iter();
            let mut from = Some(0);
            while let Some(key) = from {
                let mut chunk = Vec::new();
                from = crowd.registry.chunk(&channel, key, limit, &mut chunk);
                prop_assert!(chunk.len() <= limit);
                for subscriber in chunk {
                    let Subscriber::Waiter(waiter) = subscriber else { panic!("only waiters joined") };
                    found.push(address(&waiter));
                }
                for step in between.next().into_iter().flatten() {
                    crowd.apply(&channel, step);
                }
                staying.retain(|waiter| {
                    found.contains(&address(waiter)) || crowd.members.values().any(|other| Rc::ptr_eq(waiter, other))
                });
            }
            for waiter in &staying {
                prop_assert_eq!(found.iter().filter(|address| **address == Rc::as_ptr(waiter)).count(), 1);
            }
            prop_assert_eq!(crowd.registry.is_empty(), crowd.members.is_empty());
            let end = crowd.registry.channels.get(&channel).map_or(0, |entry| entry.end);
            prop_assert_eq!(end, crowd.members.last_key_value().map_or(0, |(key, _)| key + 1));
        }
    }
}
