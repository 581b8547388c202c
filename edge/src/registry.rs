//! Who on this worker is subscribed to what. Owned by one thread: no lock.

use std::collections::HashMap;
use std::rc::Rc;

use slab::Slab;
use tidegate_protocol::ChannelName;

use crate::channel_poll::Waiter;
use crate::connection::Session;

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
}
