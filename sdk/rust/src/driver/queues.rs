//! The app's queues: what goes to subscriptions, and what waits for a place there.

use std::collections::VecDeque;
use std::sync::PoisonError;

use tidegate_protocol::ChannelName;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::client::{ClientEvent, Subscription, SubscriptionEvent};

use super::Driver;

/// Towards a subscription in the app's hands.
pub(super) struct Queue {
    pub(super) sender: mpsc::Sender<SubscriptionEvent>,
    pub(super) by_server: bool,
    /// Among the undelivered is word that joins and leaves were missed.
    pub(super) gap_waits: bool,
}

impl Queue {
    pub(super) fn new(sender: mpsc::Sender<SubscriptionEvent>, by_server: bool) -> Self {
        Self { sender, by_server, gap_waits: false }
    }
}

pub(super) type Undelivered = (ChannelName, mpsc::Sender<SubscriptionEvent>, SubscriptionEvent);

impl Driver {
    /// The first of the undelivered has a place, or nobody to go to.
    pub(super) fn handle_place(&mut self, open: bool) {
        let Some((channel, queue, event)) = self.undelivered.pop_front() else { return };
        if matches!(event, SubscriptionEvent::PresenceGap)
            && let Some(subscription) = self.subscriptions.get_mut(&channel)
        {
            subscription.gap_waits = false;
        }
        if !open || queue.try_send(event).is_err() {
            self.leave_if_dropped(&channel);
        }
    }

    /// Makes a handle for a subscription that the server began. Where nobody can take it, its events are discarded
    /// until the app asks for the channel.
    pub(super) fn hand_over(&mut self, channel: &ChannelName) {
        let Some(commands) = self.own_commands.upgrade() else { return };
        let (sender, events) = mpsc::channel(self.queue);
        let subscription = Subscription { channel: channel.clone(), events, commands };
        if self.events.try_send(ClientEvent::Subscribed(subscription)).is_ok() {
            self.subscriptions.insert(channel.clone(), Queue::new(sender, true));
        }
    }

    /// Puts an event into its subscription's queue, or behind what waits for a place.
    pub(super) fn deliver(&mut self, channel: ChannelName, event: SubscriptionEvent) {
        let Some(queue) = self.subscriptions.get(&channel) else { return };
        let full = if self.undelivered.is_empty() {
            match queue.sender.try_send(event) {
                Ok(()) => return,
                Err(TrySendError::Closed(_)) => return self.leave(&channel),
                Err(TrySendError::Full(event)) => event,
            }
        } else {
            event
        };
        if queue.by_server && self.nobody_listens() {
            self.subscriptions.remove(&channel);
            return;
        }
        self.undelivered.push_back((channel, queue.sender.clone(), full));
    }

    /// Puts an event into its subscription's queue, unless the app does not keep up.
    pub(super) fn deliver_at_most_once(&self, channel: &ChannelName, event: SubscriptionEvent) {
        if let Some(queue) = self.subscriptions.get(channel)
            && self.undelivered.is_empty()
        {
            drop(queue.sender.try_send(event));
        }
    }

    /// Puts who came or went into its subscription's queue; where the app does not keep up, word that some were missed
    /// waits for a place instead of all of them.
    pub(super) fn deliver_presence(&mut self, channel: &ChannelName, event: SubscriptionEvent) {
        let waits = !self.undelivered.is_empty();
        let Some(queue) = self.subscriptions.get_mut(channel) else { return };
        if queue.gap_waits {
            return;
        }
        let missed =
            if waits { true } else { matches!(queue.sender.try_send(event), Err(TrySendError::Full(_))) };
        if missed {
            queue.gap_waits = true;
            let sender = queue.sender.clone();
            self.undelivered.push_back((channel.clone(), sender, SubscriptionEvent::PresenceGap));
        }
    }

    /// The app never took its events, and with them the subscriptions that the server began.
    fn nobody_listens(&self) -> bool {
        self.untaken
            .upgrade()
            .is_some_and(|events| events.lock().unwrap_or_else(PoisonError::into_inner).is_some())
    }

    /// The app dropped a subscription of this channel; it may have joined again meanwhile.
    pub(super) fn leave_if_dropped(&mut self, channel: &ChannelName) {
        if self.subscriptions.get(channel).is_some_and(|queue| queue.sender.is_closed()) {
            self.leave(channel);
        }
    }

    /// Of many subscriptions that were dropped at once, not all could say so.
    pub(super) fn leave_all_dropped(&mut self) {
        let dropped = self.subscriptions.iter().filter(|(_, queue)| queue.sender.is_closed());
        let dropped: Vec<ChannelName> = dropped.map(|(channel, _)| channel.clone()).collect();
        for channel in &dropped {
            self.leave(channel);
        }
    }

    pub(super) fn leave(&mut self, channel: &ChannelName) {
        if self.subscriptions.remove(channel).is_some() {
            // Not subscribed any more: then there is nothing to leave.
            let _not_subscribed = self.session.unsubscribe(channel);
        }
    }
}

/// Waits until the first of the undelivered has a place; false where its subscription is gone.
pub(super) async fn place(undelivered: &VecDeque<Undelivered>) -> bool {
    match undelivered.front() {
        Some((_, queue, _)) => queue.reserve().await.is_ok(),
        None => std::future::pending().await,
    }
}
