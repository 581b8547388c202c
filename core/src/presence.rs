//! Sans-io: who is on the channels of a partition, as its links say.
//!
//! Links announce absolute counts: how many sessions of a user they have on a channel. Nothing of this is in the log: an
//! owner that begins anew hears it again from its links. What a link said outlives it for a grace, within which the next
//! link of the same name takes it over, one announcement after the other; the rest expires.
//!
//! A channel knows its users one by one up to a bound; those beyond it are kept as hashes, so that all counts stay right,
//! but nobody is told of their coming and going. What all channels of a partition hold together is bounded as well:
//! beyond that, nothing new is taken, and no list says that it is exact until the links that were refused are gone.

mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::frame::{ErrorCode, Join, Leave, ServerBody};
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame, LinkError, LinkName, Members};
use tidegate_protocol::namespace::Namespaces;
use tidegate_protocol::{ChannelName, Offset};

use crate::channel::LinkId;
use place::{Place, Said, Who};

/// What is kept at most, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Users that a channel knows one by one.
    pub(crate) users: usize,
    /// Users of a link on a channel, and watches of a link, all channels together.
    pub(crate) entries: usize,
    /// What a link said counts so long after its end, milliseconds.
    pub(crate) grace_ms: u64,
}

/// Who is on the channels of one partition.
#[derive(Debug)]
pub(crate) struct PresenceTable {
    bounds: Bounds,
    namespaces: Arc<Namespaces>,
    places: BTreeMap<ChannelName, Place>,
    links: BTreeMap<LinkId, LinkState>,
    /// The links of each name that something is known of, the newest last.
    names: BTreeMap<LinkName, Vec<LinkId>>,
    entries: usize,
    /// Links that said something for which there was no room.
    refused: usize,
    /// Something has expired and is not swept yet.
    sweeping: bool,
    /// Until then links may have yet to say whom they have.
    settled_ms: u64,
    /// Who asked before that.
    waiting: Vec<(LinkId, u64, ChannelName)>,
}

#[derive(Debug)]
struct LinkState {
    name: Option<LinkName>,
    /// It is gone; what it said counts until then.
    expires_ms: Option<u64>,
    /// Where it counts or watches.
    channels: BTreeSet<ChannelName>,
    refused: bool,
}

/// One announcement.
struct Announced {
    user: Option<Arc<str>>,
    sessions: u32,
    again: bool,
}

impl PresenceTable {
    /// Nobody yet. Channels of namespaces that keep no presence have none, whatever links say.
    pub(crate) fn new(bounds: Bounds, namespaces: Arc<Namespaces>) -> Self {
        Self {
            bounds,
            namespaces,
            places: BTreeMap::new(),
            links: BTreeMap::new(),
            names: BTreeMap::new(),
            entries: 0,
            refused: 0,
            sweeping: false,
            settled_ms: 0,
            waiting: Vec::new(),
        }
    }

    /// Another owner knew before who is there. Links tell it anew, and who asks waits until they had the time to.
    pub(crate) fn settle(&mut self, unix_ms: u64) {
        self.settled_ms = unix_ms + SETTLE_MS;
    }

    /// A link begins. What an earlier one of its name said waits to be said again.
    pub(crate) fn attach(&mut self, unix_ms: u64, link: LinkId, name: Option<&LinkName>) {
        if let Some(name) = name {
            let links = self.names.entry(name.clone()).or_default();
            for earlier in &*links {
                let state = self.links.get_mut(earlier);
                if let Some(expires_ms) = state.and_then(|state| state.expires_ms.as_mut()) {
                    *expires_ms = unix_ms + self.bounds.grace_ms;
                }
            }
            links.push(link);
        }
        let state =
            LinkState { name: name.cloned(), expires_ms: None, channels: BTreeSet::new(), refused: false };
        self.links.insert(link, state);
    }

    /// A link is gone.
    pub(crate) fn detach(&mut self, unix_ms: u64, link: LinkId) {
        let Some(state) = self.links.get_mut(&link) else { return };
        // Nobody can take over what has no name.
        let grace_ms = if state.name.is_some() { self.bounds.grace_ms } else { 0 };
        state.expires_ms = Some(unix_ms + grace_ms);
    }

    /// Takes a frame of a link if it is about presence, else gives it back. Appends the answer, and what watchers are
    /// told.
    pub(crate) fn handle_frame(
        &mut self,
        unix_ms: u64,
        link: LinkId,
        frame: EdgeFrame,
        outputs: &mut Vec<(LinkId, CoreFrame)>,
    ) -> Option<EdgeFrame> {
        match frame {
            EdgeFrame::Presence { channel, user, sessions, again } => {
                self.announce(unix_ms, link, channel, Announced { user, sessions, again }, outputs);
            }
            EdgeFrame::Watch { channel, on } => self.watch(link, channel, on),
            EdgeFrame::Members { request, channel } => {
                if unix_ms < self.settled_ms && self.waiting.len() < MAX_WAITING {
                    self.waiting.push((link, request, channel));
                } else {
                    outputs.push((link, CoreFrame::Members { request, result: self.members(&channel) }));
                }
            }
            frame => return Some(frame),
        }
        None
    }

    /// Answers who waited, forgets up to `steps` things that expired links said, and tells watchers.
    pub(crate) fn sweep(&mut self, unix_ms: u64, mut steps: usize, outputs: &mut Vec<(LinkId, CoreFrame)>) {
        if unix_ms >= self.settled_ms {
            for (link, request, channel) in std::mem::take(&mut self.waiting) {
                outputs.push((link, CoreFrame::Members { request, result: self.members(&channel) }));
            }
        }
        let expired = |state: &LinkState| state.expires_ms.is_some_and(|at| at <= unix_ms);
        let links: Vec<LinkId> =
            self.links.iter().filter(|(_, state)| expired(state)).map(|(link, _)| *link).collect();
        self.sweeping = !links.iter().all(|link| self.forget(unix_ms, *link, &mut steps, outputs));
    }

    /// True where [`Self::sweep`] has more to do at once.
    pub(crate) fn is_sweeping(&self) -> bool {
        self.sweeping
    }

    /// How much of [`Bounds::entries`] is used.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    fn members(&self, channel: &ChannelName) -> Result<Members, LinkError> {
        if !self.is_kept(channel) {
            let message = format!("no presence is kept in the namespace of `{}`", channel.as_str());
            return Err(LinkError { code: ErrorCode::NotAvailable, message });
        }
        let members = self.places.get(channel).map(Place::members);
        let mut members = members.unwrap_or_else(|| Members { exact: true, ..Members::default() });
        members.exact &= self.refused == 0;
        Ok(members)
    }

    fn is_kept(&self, channel: &ChannelName) -> bool {
        self.namespaces.rules(channel).is_some_and(|rules| rules.presence.is_some())
    }

    fn announce(
        &mut self,
        unix_ms: u64,
        link: LinkId,
        channel: ChannelName,
        announced: Announced,
        outputs: &mut Vec<(LinkId, CoreFrame)>,
    ) {
        if !self.links.contains_key(&link) || !self.is_kept(&channel) {
            return;
        }
        let Announced { user, sessions, again } = announced;
        let mut place = self.places.remove(&channel).unwrap_or_default();
        let who = place.resolve(user, self.bounds.users);
        let before = place.sessions_of(&who);
        for earlier in self.earlier(link) {
            if place.say(earlier, &who, 0) == Said::Ended {
                self.count_out(&place, earlier, &channel);
            }
        }
        if sessions > 0 && self.entries >= self.bounds.entries && !place.has_said(link, &who) {
            self.refuse(link);
        } else {
            match place.say(link, &who, sessions) {
                Said::Began => self.count_in(link, &channel),
                Said::Ended => self.count_out(&place, link, &channel),
                Said::Changed | Said::Nothing => {}
            }
        }
        let is_news = !(again && before == 0);
        if is_news {
            self.tell(unix_ms, &place, &channel, &who, before, outputs);
        }
        self.put_back(channel, place);
    }

    fn watch(&mut self, link: LinkId, channel: ChannelName, on: bool) {
        if !self.links.contains_key(&link) || !self.is_kept(&channel) {
            return;
        }
        let mut place = self.places.remove(&channel).unwrap_or_default();
        if !on {
            if place.watchers.remove(&link) {
                self.count_out(&place, link, &channel);
            }
        } else if !place.watchers.contains(&link) {
            if self.entries < self.bounds.entries {
                place.watchers.insert(link);
                self.count_in(link, &channel);
            } else {
                self.refuse(link);
            }
        }
        self.put_back(channel, place);
    }

    /// Takes what a link said off, as long as there are steps; true where nothing is left.
    fn forget(
        &mut self,
        unix_ms: u64,
        link: LinkId,
        steps: &mut usize,
        outputs: &mut Vec<(LinkId, CoreFrame)>,
    ) -> bool {
        while let Some(channel) = self.links.get(&link).and_then(|state| state.channels.first().cloned()) {
            let mut place = self.places.remove(&channel).unwrap_or_default();
            while let Some(who) = place.first_said(link).filter(|_| *steps > 0) {
                *steps -= 1;
                let before = place.sessions_of(&who);
                place.say(link, &who, 0);
                self.count_out(&place, link, &channel);
                self.tell(unix_ms, &place, &channel, &who, before, outputs);
            }
            if *steps > 0 && place.watchers.remove(&link) {
                *steps -= 1;
                self.count_out(&place, link, &channel);
            }
            self.put_back(channel, place);
            if *steps == 0 {
                return false;
            }
        }
        if let Some(state) = self.links.remove(&link) {
            self.refused -= usize::from(state.refused);
            if let Some(name) = state.name
                && let Some(links) = self.names.get_mut(&name)
            {
                links.retain(|other| *other != link);
                if links.is_empty() {
                    self.names.remove(&name);
                }
            }
        }
        true
    }

    /// Tells the links that watch of a user who has come or gone.
    fn tell(
        &self,
        unix_ms: u64,
        place: &Place,
        channel: &ChannelName,
        who: &Who,
        before: u64,
        outputs: &mut Vec<(LinkId, CoreFrame)>,
    ) {
        let Who::Known(user) = who else { return };
        let comes = match (before, place.sessions_of(who)) {
            (0, 1..) => true,
            (1.., 0) => false,
            _ => return,
        };
        if place.watchers.is_empty() {
            return;
        }
        let (name, user, time_ms) = (channel.as_str().to_owned(), user.to_string(), unix_ms);
        let body = if comes {
            ServerBody::Join(Join { channel: name, user, time_ms })
        } else {
            ServerBody::Leave(Leave { channel: name, user, time_ms })
        };
        let frame = Arc::new(SharedFrame::new(body));
        outputs.extend(place.watchers.iter().map(|link| {
            let frame = Arc::clone(&frame);
            (
                *link,
                CoreFrame::PresenceChanged(Delivery { channel: channel.clone(), offset: Offset(0), frame }),
            )
        }));
    }

    /// Links of the same name that were there before.
    fn earlier(&self, link: LinkId) -> Vec<LinkId> {
        let name = self.links.get(&link).and_then(|state| state.name.as_ref());
        let links = name.and_then(|name| self.names.get(name)).into_iter().flatten();
        links.take_while(|other| **other != link).copied().collect()
    }

    fn count_in(&mut self, link: LinkId, channel: &ChannelName) {
        self.entries += 1;
        if let Some(state) = self.links.get_mut(&link) {
            state.channels.insert(channel.clone());
        }
    }

    fn count_out(&mut self, place: &Place, link: LinkId, channel: &ChannelName) {
        self.entries -= 1;
        if !place.concerns(link)
            && let Some(state) = self.links.get_mut(&link)
        {
            state.channels.remove(channel);
        }
    }

    fn refuse(&mut self, link: LinkId) {
        if let Some(state) = self.links.get_mut(&link)
            && !state.refused
        {
            state.refused = true;
            self.refused += 1;
        }
    }

    fn put_back(&mut self, channel: ChannelName, place: Place) {
        if !place.is_empty() {
            self.places.insert(channel, place);
        }
    }
}

/// For edges to find a partition's new owner, and to say whom they have: until its second sweep.
const SETTLE_MS: u64 = 900;
/// Questions that wait for that; further ones are answered as well as can be.
const MAX_WAITING: usize = 4096;

#[cfg(test)]
mod tests;
