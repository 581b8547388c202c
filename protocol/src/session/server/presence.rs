//! Sans-io: who is on a channel: what a client may ask, and what its own subscriptions count for.

use crate::ChannelName;
use crate::frame::{ErrorCode, Presence, PresenceGap, PresenceRequest, PresentUser, ServerBody, ServerFrame};
use crate::link::{LinkError, Members};

use super::subscriptions::State as SubscriptionState;
use super::{Event, Session};

impl Session {
    /// The core said who is on a channel.
    pub fn presence(&mut self, id: u64, channel: &ChannelName, result: Result<Members, LinkError>) {
        self.in_flight -= 1;
        match result {
            Ok(members) => self.reply(id, ServerBody::Presence(reply(channel, members))),
            Err(error) => self.fail(id, error.code, error.message),
        }
    }

    /// Some who came or went were not told to a subscription: its client is to ask for the list anew, where it watches.
    pub fn presence_gap(&mut self, slot: u32) {
        if let Some(subscription) = self.subscriptions.get(slot).filter(|subscription| subscription.watches) {
            let gap = PresenceGap { channel: subscription.channel.as_str().to_owned() };
            self.transmits.push_back(ServerFrame::new(0, ServerBody::PresenceGap(gap)));
        }
    }

    /// The next [`Event::Present`], before all other events: what `subscribed` begins is to count before the client can know
    /// of it, and leave another connection where it counted till then.
    pub fn poll_present(&mut self) -> Option<Event> {
        let at = self.events.iter().position(|event| matches!(event, Event::Present { .. }))?;
        self.events.remove(at)
    }

    pub(super) fn ask_presence(&mut self, id: u64, request: &PresenceRequest) {
        let channel = match ChannelName::new(&request.channel) {
            Ok(channel) => channel,
            Err(error) => return self.fail(id, ErrorCode::BadRequest, error.to_string()),
        };
        if self.check_presence(id, &channel) {
            self.in_flight += 1;
            self.events.push_back(Event::Members { id, channel });
        }
    }

    /// Whether the session may see who is on a channel; where not, the error reply is queued.
    pub(super) fn check_presence(&mut self, id: u64, channel: &ChannelName) -> bool {
        let rules = self.settings.namespaces.rules(channel);
        let (code, message) = match rules {
            None => (ErrorCode::NotFound, format!("unknown namespace `{}`", channel.namespace())),
            Some(rules) if rules.presence.is_none() => {
                let message = format!("no presence is kept in the namespace of `{}`", channel.as_str());
                (ErrorCode::NotAvailable, message)
            }
            Some(rules)
                if self.identity().is_some_and(|identity| identity.may_see_presence(channel, rules)) =>
            {
                return true;
            }
            Some(_) => (ErrorCode::Forbidden, "not allowed to see who is on this channel".to_owned()),
        };
        self.fail(id, code, message);
        false
    }

    /// A subscription has begun: from now on it counts, where its namespace counts at all.
    pub(super) fn begin_presence(&mut self, slot: u32) {
        let Some(subscription) = self.subscriptions.get(slot) else { return };
        let rules = self.settings.namespaces.rules(&subscription.channel);
        if rules.is_some_and(|rules| rules.presence.is_some()) {
            self.tell_presence(slot);
        }
    }

    /// Ends the watches that the present token does not grant.
    pub(super) fn end_watches(&mut self) {
        let Some(identity) = self.identity() else { return };
        let namespaces = &self.settings.namespaces;
        let ended = self.subscriptions.slots_where(|channel| {
            !namespaces.rules(channel).is_some_and(|rules| identity.may_see_presence(channel, rules))
        });
        for slot in ended {
            let Some(subscription) = self.subscriptions.get_mut(slot).filter(|one| one.watches) else {
                continue;
            };
            subscription.watches = false;
            if !matches!(subscription.state, SubscriptionState::Starting { .. }) {
                self.tell_presence(slot);
            }
        }
    }

    fn tell_presence(&mut self, slot: u32) {
        let Some(subscription) = self.subscriptions.get(slot) else { return };
        let (channel, watch) = (subscription.channel.clone(), subscription.watches);
        let user = self.identity().and_then(|identity| identity.user.clone());
        self.events.push_back(Event::Present { slot, channel, user, watch });
    }
}

/// As many users as fit in a frame.
fn reply(channel: &ChannelName, members: Members) -> Presence {
    let Members { users, users_total, sessions, exact } = members;
    let mut presence =
        Presence { channel: channel.as_str().to_owned(), users: Vec::new(), users_total, sessions, exact };
    let mut room = PRESENCE_BYTES;
    for (user, sessions) in users {
        let size = user.len() + USER_OVERHEAD;
        if size > room {
            presence.exact = false;
            break;
        }
        room -= size;
        presence.users.push(PresentUser { user: user.to_string(), sessions });
    }
    presence
}

/// A `presence` reply, encoded, about.
const PRESENCE_BYTES: usize = 256 << 10;
/// What JSON takes for each user beside the name.
const USER_OVERHEAD: usize = 40;
