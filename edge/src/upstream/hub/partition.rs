//! Sans-io: the channels of one partition as the hub sees them: who wants which, what was asked, what came last.
//!
//! ```text
//!           Subscribe of a worker          answered                    link lost or moved
//! (unknown) ────────────────────► asked ────────────► live ─────────────────────────────────► stale
//!                                                      ▲   │ no worker wants it: Unsubscribe       │ new link
//!                                                      │   ▼                                       ▼
//!                                                      │ (unknown)      gap-fill or Rebased   asked again
//!                                                      └───────────────────────────────────────────┘
//! ```
//!
//! A channel is *live* on one link: on another it is stale by itself, so that a loss touches no channel. On a new link
//! every stale channel is asked for at the position that the hub handed on last, a bounded number at a time; what a worker
//! asks of a stale channel goes behind that. So whatever the link says is, per channel, one sequence, and the workers see
//! it without a gap.
//!
//! A worker that does not take what waits for it (see [`super::workers::Outbox`]) is *parked* on the channels that publish
//! meanwhile: once it has caught up on its queue, the hub asks the core for what came since, for it alone.

mod questions;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame, LinkError, Recovery};
use tidegate_protocol::{ChannelName, Epoch, Offset, Position};

use super::presence::Announcements;
use super::workers::{
    Client, ClientSet, Outbox, edge_frame_bytes, failure, recovery_bytes, smallest, unavailable,
};
use questions::{Resend, delivery, is_long, renumber, request_of, resend};

/// Bounds of a partition.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Questions of one worker that wait or are in flight; one more is answered `Unavailable`.
    pub(crate) requests: usize,
    /// Their bytes.
    pub(crate) request_bytes: usize,
    /// Questions in flight on the link; others wait here.
    pub(crate) in_flight: usize,
    /// Of the hub's own on top.
    pub(crate) resubscriptions: usize,
    /// How long a question waits for an owner.
    pub(crate) request_wait: Duration,
}

/// What happened since the driver last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stats {
    /// Channels asked for again on a new link.
    pub(crate) resubscriptions: u64,
    /// Publications that such a question brought.
    pub(crate) filled: u64,
    /// Channels whose continuity was lost.
    pub(crate) rebased: u64,
    /// Publishes sent again.
    pub(crate) resent: u64,
    /// Publishes whose outcome is unknown.
    pub(crate) unknown: u64,
    /// Publications that came twice, or for nobody.
    pub(crate) dropped: u64,
    /// Channels on which a worker that did not read was parked.
    pub(crate) parked: u64,
    /// Links ended for what came over them.
    pub(crate) resets: u64,
    /// Links refused for their term.
    pub(crate) stale: u64,
    /// Questions that found no room or no owner in time.
    pub(crate) refused: u64,
}

impl Stats {
    /// Both together.
    pub(crate) fn add(&mut self, other: Self) {
        self.resubscriptions += other.resubscriptions;
        self.filled += other.filled;
        self.rebased += other.rebased;
        self.resent += other.resent;
        self.unknown += other.unknown;
        self.dropped += other.dropped;
        self.parked += other.parked;
        self.resets += other.resets;
        self.stale += other.stale;
        self.refused += other.refused;
    }
}

/// The link says what cannot be: it is to be ended, and what it said before is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkFault {
    /// A publication is missing.
    #[error("a publication is missing")]
    Hole,
    /// The channel is at another position than what came before says.
    #[error("a channel is not where its publications led")]
    Elsewhere,
    /// An answer to nothing, or of the wrong kind.
    #[error("an answer that no question fits")]
    Answer,
}

/// One partition.
#[derive(Debug)]
pub(crate) struct Partition {
    bounds: Bounds,
    interests: IndexMap<ChannelName, Interest>,
    /// Questions of workers that wait to be sent, by number.
    queue: VecDeque<Asked>,
    in_flight: BTreeMap<u64, Question>,
    /// Of those, the hub's own.
    own_in_flight: usize,
    /// Of those, for parked workers.
    catch_ups: usize,
    /// Of workers' questions in flight, those whose answers may be long.
    long_in_flight: usize,
    /// What such answers weighed lately.
    answer_bytes: usize,
    /// What each client has waiting or in flight.
    held: BTreeMap<Client, Held>,
    /// Numbers questions, over all links.
    next: u64,
    /// Counts links; the one that channels are live on.
    link: u32,
    state: State,
    /// Unsubscribes, before any question that comes after them. At most as many as channels were live on the link.
    endings: VecDeque<ChannelName>,
    /// All below are still to be looked at for this link.
    cursor: usize,
    /// Refused by the core, to be tried again.
    again: VecDeque<ChannelName>,
    again_at: Option<Instant>,
    /// Unsubscribes that overtook questions of the same worker: those numbered below do not bring it back.
    cuts: BTreeMap<(ChannelName, Client), u64>,
    /// Who waits for what came after a position.
    parked: BTreeMap<(Client, ChannelName), Parked>,
    /// Where [`Partition::catch_up`] goes on, for workers that are not full any more.
    catching: Vec<(Client, Option<ChannelName>)>,
    announcements: Announcements,
    stats: Stats,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No link, since.
    Waiting(Instant),
    /// `first`: the number of the first question that can be on this link.
    Open { first: u64 },
}

/// A channel that some worker wants. There are many: no text twice, no timer.
#[derive(Debug, Default)]
struct Interest {
    /// Who gets its publications.
    active: ClientSet,
    /// What they were handed last.
    epoch: Epoch,
    offset: Offset,
    /// The link that it is live on.
    live: u32,
    /// The link that it was asked for on.
    known: u32,
    /// Questions of workers that wait or are in flight.
    pending: u32,
    /// The hub's own question, in flight where its number is of this link; 0: none.
    asked: u64,
    /// The last answer to it did not hold everything: the next goes on from there, and it is live only then.
    filling: bool,
    /// Workers parked on it.
    parked: u16,
}

#[derive(Debug)]
struct Parked {
    position: Position,
    /// The question in flight.
    asked: Option<u64>,
}

#[derive(Debug, Default)]
struct Held {
    count: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Asked {
    number: u64,
    client: Client,
    /// The client's own number.
    request: u64,
    /// With the number that the core echoes.
    frame: EdgeFrame,
    at: Instant,
    /// It was on a link that was lost.
    sent: bool,
}

#[derive(Debug)]
enum Question {
    /// A worker's.
    Asked(Asked),
    /// What came since the hub's position.
    Resubscribe(ChannelName),
    /// What came since a parked worker's.
    CatchUp(Client, ChannelName),
}

impl Partition {
    /// Wanted by nobody, without a link.
    pub(crate) fn new(now: Instant, bounds: Bounds) -> Self {
        Self {
            bounds,
            interests: IndexMap::new(),
            queue: VecDeque::new(),
            in_flight: BTreeMap::new(),
            own_in_flight: 0,
            catch_ups: 0,
            long_in_flight: 0,
            answer_bytes: FIRST_ANSWER,
            held: BTreeMap::new(),
            next: 1,
            link: 0,
            state: State::Waiting(now),
            endings: VecDeque::new(),
            cursor: 0,
            again: VecDeque::new(),
            again_at: None,
            cuts: BTreeMap::new(),
            parked: BTreeMap::new(),
            catching: Vec::new(),
            announcements: Announcements::default(),
            stats: Stats::default(),
        }
    }

    /// What a worker, or the backend, sends. Its questions are answered for certain.
    pub(crate) fn handle_client(
        &mut self,
        now: Instant,
        client: Client,
        frame: EdgeFrame,
        outbox: &mut Outbox,
    ) {
        match frame {
            EdgeFrame::Unsubscribe { channel } => self.unsubscribe(client, &channel),
            EdgeFrame::Presence { channel, user, sessions, .. } => {
                self.announcements.set_sessions(client, (channel, user), sessions);
            }
            EdgeFrame::Watch { channel, on } => self.announcements.set_watch(client, channel, on),
            question => self.ask(now, client, question, outbox),
        }
    }

    /// There is a link now; nothing is known on it.
    pub(crate) fn handle_opened(&mut self, now: Instant) {
        self.link += 1;
        self.answer_bytes = FIRST_ANSWER;
        self.state = State::Open { first: self.next };
        self.cursor = self.interests.len();
        self.announcements.opened(now, self.link);
        self.catching.clear();
        let mut clients: Vec<Client> = self.parked.keys().map(|(client, _)| *client).collect();
        clients.dedup();
        self.catching.extend(clients.into_iter().map(|client| (client, None)));
    }

    /// The link is gone. `handled`: what it has not answered may have been handled all the same.
    pub(crate) fn handle_closed(&mut self, now: Instant, handled: bool, outbox: &mut Outbox) {
        if matches!(self.state, State::Waiting(_)) {
            return;
        }
        self.state = State::Waiting(now);
        self.link += 1;
        self.endings.clear();
        self.again.clear();
        self.again_at = None;
        self.cursor = 0;
        self.own_in_flight = 0;
        self.catch_ups = 0;
        self.long_in_flight = 0;
        self.announcements.closed();
        let mut again = Vec::new();
        for (_, question) in std::mem::take(&mut self.in_flight) {
            match question {
                Question::Asked(asked) => match resend(&asked.frame, handled) {
                    Resend::Yes => again.push(Asked { sent: true, ..asked }),
                    Resend::No => self.refuse(asked, unavailable(), outbox),
                    Resend::Unknown => {
                        self.stats.unknown += 1;
                        self.refuse(asked, LinkError::outcome_unknown(), outbox);
                    }
                },
                Question::Resubscribe(_) => {}
                Question::CatchUp(client, channel) => {
                    if let Some(parked) = self.parked.get_mut(&(client, channel)) {
                        parked.asked = None;
                    }
                }
            }
        }
        for asked in again.into_iter().rev() {
            self.queue.push_front(asked);
        }
    }

    /// What the owner sends. The error: end the link, then [`Partition::handle_closed`].
    pub(crate) fn handle_core(
        &mut self,
        now: Instant,
        frame: CoreFrame,
        outbox: &mut Outbox,
    ) -> Result<(), LinkFault> {
        match frame {
            CoreFrame::Publication(delivery) => return self.publication(delivery, outbox),
            CoreFrame::Ephemeral(delivery) => {
                let active =
                    self.interests.get(&delivery.channel).map_or_else(ClientSet::default, |i| i.active);
                for client in active.iter() {
                    outbox.offer(client, CoreFrame::Ephemeral(delivery.clone()));
                }
            }
            CoreFrame::PresenceChanged(delivery) => self.announcements.changed(delivery, outbox),
            CoreFrame::Rebased { channel, position } => {
                if let Some(index) = self.interests.get_index_of(&channel)
                    && self.interests[index].live == self.link
                {
                    self.rebase(index, position, outbox);
                }
            }
            CoreFrame::SessionMoved { session, generation, told } => {
                for client in outbox.workers() {
                    outbox.push(client, CoreFrame::SessionMoved { session, generation, told });
                }
            }
            CoreFrame::Recovered { request, result } => return self.recovered(now, request, result, outbox),
            CoreFrame::Published { request, result } => {
                let asked = self.answered(request, |frame| matches!(frame, EdgeFrame::Publish { .. }))?;
                self.reply(&asked, CoreFrame::Published { request: asked.request, result }, outbox);
            }
            CoreFrame::Members { request, result } => {
                let asked = self.answered(request, |frame| matches!(frame, EdgeFrame::Members { .. }))?;
                self.reply(&asked, CoreFrame::Members { request: asked.request, result }, outbox);
            }
            CoreFrame::Spent { request, result } => {
                let asked = self.answered(request, |frame| matches!(frame, EdgeFrame::Spend { .. }))?;
                self.reply(&asked, CoreFrame::Spent { request: asked.request, result }, outbox);
            }
            // Whoever holds the links takes it.
            CoreFrame::Moved { .. } => {}
        }
        Ok(())
    }

    /// A worker is not full any more: it may be given what it missed.
    pub(crate) fn handle_drained(&mut self, client: Client, outbox: &mut Outbox) {
        self.announcements.drained(client, outbox);
        self.catch_up_from_the_first(client);
    }

    fn catch_up_from_the_first(&mut self, client: Client) {
        if !self.catching.iter().any(|(other, at)| *other == client && at.is_none()) {
            self.catching.retain(|(other, _)| *other != client);
            self.catching.push((client, None));
        }
    }

    /// Answers what waited for an owner for too long, and tries again what the core refused.
    pub(crate) fn handle_timeout(&mut self, now: Instant, outbox: &mut Outbox) {
        self.announcements.handle_timeout(now, outbox);
        while let Some(deadline) = self.deadline()
            && deadline <= now
            && let Some(asked) = self.queue.pop_front()
        {
            let maybe = asked.sent && matches!(asked.frame, EdgeFrame::Publish { .. });
            if maybe {
                self.stats.unknown += 1;
            } else {
                self.stats.refused += 1;
            }
            self.refuse(asked, if maybe { LinkError::outcome_unknown() } else { unavailable() }, outbox);
        }
        if self.again_at.is_some_and(|at| at <= now) {
            self.again_at = None;
            self.catching.extend(self.refused_catch_ups());
        }
    }

    /// When [`Partition::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.deadline(), self.again_at, self.announcements.poll_timeout()].into_iter().flatten().min()
    }

    /// The next frame for the link, `None` while there is none.
    pub(crate) fn poll_transmit(&mut self, outbox: &Outbox) -> Option<EdgeFrame> {
        let State::Open { .. } = self.state else { return None };
        if let Some(channel) = self.endings.pop_front() {
            return Some(EdgeFrame::Unsubscribe { channel });
        }
        if let Some(frame) = self.announcements.poll() {
            return Some(frame);
        }
        if self.own_in_flight < self.window()
            && let Some(frame) = self.next_own(outbox)
        {
            return Some(frame);
        }
        if self.in_flight.len() - self.own_in_flight >= self.bounds.in_flight {
            return None;
        }
        if let EdgeFrame::Subscribe { channel, .. } = &self.queue.front()?.frame
            && let Some(index) = self.interests.get_index_of(channel)
        {
            if self.is_stale(index) {
                return Some(self.resubscribe(index));
            }
            self.interests[index].known = self.link;
        }
        if self.queue.front().is_some_and(|asked| is_long(&asked.frame)) {
            if self.long_in_flight >= 2 * self.window() {
                return None;
            }
            self.long_in_flight += 1;
        }
        let asked = self.queue.pop_front()?;
        if asked.sent && matches!(asked.frame, EdgeFrame::Publish { .. }) {
            self.stats.resent += 1;
        }
        let frame = asked.frame.clone();
        self.in_flight.insert(asked.number, Question::Asked(asked));
        Some(frame)
    }

    /// What happened since the last call.
    pub(crate) fn take_stats(&mut self) -> Stats {
        std::mem::take(&mut self.stats)
    }

    /// True where something of [`Partition::poll_transmit`] may be due.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Channels that somebody wants.
    pub(crate) fn channels(&self) -> usize {
        self.interests.len()
    }

    /// Bytes of questions that wait or are in flight.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held.values().map(|held| held.bytes).sum()
    }

    /// Hands everything that waits to those that `place` finds, in order. For what waited before anybody knew how many
    /// partitions there are; no link was ever open.
    pub(crate) fn hand_over(
        &mut self,
        outbox: &mut Outbox,
        mut place: impl FnMut(Client, EdgeFrame, Instant, &mut Outbox),
    ) {
        for asked in std::mem::take(&mut self.queue) {
            let Asked { number, client, request, frame, at, .. } = asked;
            if let EdgeFrame::Subscribe { channel, .. } = &frame {
                let key = (channel.clone(), client);
                if self.cuts.get(&key).is_some_and(|cut| *cut <= number) {
                    self.cuts.remove(&key);
                    place(client, EdgeFrame::Unsubscribe { channel: key.0 }, at, outbox);
                }
            }
            place(client, renumber(frame, request), at, outbox);
        }
        for ((channel, client), _) in std::mem::take(&mut self.cuts) {
            let at = match self.state {
                State::Waiting(at) => at,
                State::Open { .. } => return,
            };
            place(client, EdgeFrame::Unsubscribe { channel }, at, outbox);
        }
        let State::Waiting(at) = self.state else { return };
        let (members, watches) = self.announcements.take();
        for (client, (channel, user), sessions) in members {
            place(client, EdgeFrame::Presence { channel, user, sessions, again: false }, at, outbox);
        }
        for (client, channel) in watches {
            place(client, EdgeFrame::Watch { channel, on: true }, at, outbox);
        }
        self.interests.clear();
        self.held.clear();
    }

    fn ask(&mut self, now: Instant, client: Client, frame: EdgeFrame, outbox: &mut Outbox) {
        let Some(request) = request_of(&frame) else { return };
        let held = self.held.entry(client).or_default();
        let bytes = edge_frame_bytes(&frame);
        if held.count >= self.bounds.requests || held.bytes + bytes > self.bounds.request_bytes {
            self.stats.refused += 1;
            if let Some(answer) = failure(&frame, request, unavailable()) {
                outbox.push(client, answer);
            }
            return;
        }
        held.count += 1;
        held.bytes += bytes;
        if let EdgeFrame::Subscribe { channel, .. } = &frame {
            match self.interests.get_mut(channel) {
                Some(interest) => interest.pending += 1,
                None => {
                    let interest = Interest { pending: 1, ..Interest::default() };
                    self.interests.insert(channel.clone(), interest);
                }
            }
        }
        let number = self.next;
        self.next += 1;
        let frame = renumber(frame, number);
        self.queue.push_back(Asked { number, client, request, frame, at: now, sent: false });
    }

    fn unsubscribe(&mut self, client: Client, channel: &ChannelName) {
        let Some(index) = self.interests.get_index_of(channel) else { return };
        let interest = &mut self.interests[index];
        interest.active.remove(client);
        if self.parked.remove(&(client, channel.clone())).is_some() {
            interest.parked -= 1;
        }
        if interest.pending > 0 {
            self.cuts.insert((channel.clone(), client), self.next);
        }
        self.settle(index);
    }

    /// Ends the interest in a channel that nobody wants or asks for.
    fn settle(&mut self, index: usize) {
        let interest = &self.interests[index];
        if interest.pending > 0 || interest.parked > 0 || !interest.active.is_empty() {
            return;
        }
        let known = self.is_open() && interest.known == self.link;
        if let Some((channel, _)) = self.interests.swap_remove_index(index)
            && known
        {
            self.endings.push_back(channel);
        }
        // What a million channels took is given back once few are left.
        let len = self.interests.len();
        if self.interests.capacity() > KEPT_CAPACITY.max(len * 4) {
            self.interests.shrink_to(len * 2);
        }
    }

    /// Wanted, but not on this link yet, and not asked for.
    fn is_stale(&self, index: usize) -> bool {
        let interest = &self.interests[index];
        let State::Open { first } = self.state else { return false };
        !interest.active.is_empty() && interest.live != self.link && interest.asked < first
    }

    /// Asks what came since what was handed on last.
    fn resubscribe(&mut self, index: usize) -> EdgeFrame {
        let number = self.next;
        self.next += 1;
        let (channel, interest) = self.interests.get_index_mut(index).expect("of a channel that was found");
        interest.asked = number;
        interest.known = self.link;
        let channel = channel.clone();
        let position = Some(Position::new(interest.epoch.clone(), interest.offset));
        self.own_in_flight += 1;
        self.stats.resubscriptions += 1;
        self.in_flight.insert(number, Question::Resubscribe(channel.clone()));
        EdgeFrame::Subscribe { request: number, channel, position }
    }

    /// How many questions may be in flight whose answers may be long: as many answers as the core's end of the link takes
    /// at once, as they were lately. Where it does not, it is cut.
    fn window(&self) -> usize {
        (ANSWERS / self.answer_bytes.max(1)).max(FEWEST).min(self.bounds.resubscriptions)
    }

    /// The hub's own next question.
    fn next_own(&mut self, outbox: &Outbox) -> Option<EdgeFrame> {
        while let Some(index) = self.cursor.checked_sub(1) {
            self.cursor = index;
            // What ended since may have made it the shorter.
            if index < self.interests.len() && self.is_stale(index) {
                return Some(self.resubscribe(index));
            }
        }
        if self.again_at.is_none() {
            while let Some(channel) = self.again.pop_front() {
                if let Some(index) = self.interests.get_index_of(&channel)
                    && self.is_stale(index)
                {
                    return Some(self.resubscribe(index));
                }
            }
        }
        self.catch_up(outbox)
    }

    /// Asks what a parked worker missed.
    fn catch_up(&mut self, outbox: &Outbox) -> Option<EdgeFrame> {
        if self.catch_ups >= CATCH_UPS {
            return None;
        }
        while let Some((client, after)) = self.catching.last().cloned() {
            if outbox.is_full(client) {
                // It comes back once it is not.
                self.catching.pop();
                continue;
            }
            let next = match after {
                None => self.parked.range((client, smallest())..).next(),
                Some(after) => {
                    let after = std::ops::Bound::Excluded((client, after));
                    self.parked.range((after, std::ops::Bound::Unbounded)).next()
                }
            };
            let Some(((_, channel), parked)) = next.filter(|((other, _), _)| *other == client) else {
                self.catching.pop();
                continue;
            };
            let (channel, waits) = (channel.clone(), parked.asked.is_none());
            if waits && let Some(index) = self.interests.get_index_of(&channel) {
                // The others first, so that all of this channel's answers are in order.
                let stale = self.is_stale(index);
                if stale && self.again_at.is_none() {
                    return Some(self.resubscribe(index));
                }
                if let Some(last) = self.catching.last_mut() {
                    last.1 = Some(channel.clone());
                }
                if stale {
                    continue;
                }
                let number = self.next;
                self.next += 1;
                let parked = self.parked.get_mut(&(client, channel.clone()))?;
                parked.asked = Some(number);
                let position = Some(parked.position.clone());
                self.interests[index].known = self.link;
                self.own_in_flight += 1;
                self.catch_ups += 1;
                self.in_flight.insert(number, Question::CatchUp(client, channel.clone()));
                return Some(EdgeFrame::Subscribe { request: number, channel, position });
            }
            if let Some(last) = self.catching.last_mut() {
                last.1 = Some(channel);
            }
        }
        None
    }

    fn refused_catch_ups(&self) -> Vec<(Client, Option<ChannelName>)> {
        let mut clients: Vec<Client> = self
            .parked
            .iter()
            .filter(|(_, parked)| parked.asked.is_none())
            .map(|((client, _), _)| *client)
            .collect();
        clients.dedup();
        clients.into_iter().map(|client| (client, None)).collect()
    }

    fn publication(&mut self, delivery: Delivery, outbox: &mut Outbox) -> Result<(), LinkFault> {
        let Some(index) = self.interests.get_index_of(&delivery.channel) else {
            self.stats.dropped += 1;
            return Ok(());
        };
        let interest = &self.interests[index];
        // Before the answer that makes a channel live, the answer holds it.
        if interest.live != self.link || delivery.offset <= interest.offset {
            self.stats.dropped += 1;
            return Ok(());
        }
        if delivery.offset != interest.offset.next() {
            return Err(LinkFault::Hole);
        }
        self.deliver(index, delivery, outbox);
        Ok(())
    }

    /// Hands a publication on to all that are active. Who is full is parked where it stood.
    fn deliver(&mut self, index: usize, delivery: Delivery, outbox: &mut Outbox) {
        let offset = delivery.offset;
        for client in self.interests[index].active.iter() {
            if !outbox.offer(client, CoreFrame::Publication(delivery.clone())) {
                self.park(index, client);
            }
        }
        self.interests[index].offset = offset;
    }

    fn park(&mut self, index: usize, client: Client) {
        let Some((channel, interest)) = self.interests.get_index_mut(index) else { return };
        interest.active.remove(client);
        interest.parked += 1;
        let position = Position::new(interest.epoch.clone(), interest.offset);
        self.parked.insert((client, channel.clone()), Parked { position, asked: None });
        self.stats.parked += 1;
    }

    /// The numbering begins anew at `position`.
    fn rebase(&mut self, index: usize, position: Position, outbox: &mut Outbox) {
        self.stats.rebased += 1;
        let Some((channel, interest)) = self.interests.get_index(index) else { return };
        let (channel, active) = (channel.clone(), interest.active);
        for client in active.iter() {
            let frame = CoreFrame::Rebased { channel: channel.clone(), position: position.clone() };
            if !outbox.offer(client, frame) {
                self.park(index, client);
            }
        }
        let interest = &mut self.interests[index];
        interest.epoch = position.epoch;
        interest.offset = position.offset;
    }

    fn recovered(
        &mut self,
        now: Instant,
        number: u64,
        result: Result<Recovery, LinkError>,
        outbox: &mut Outbox,
    ) -> Result<(), LinkFault> {
        if let Ok(recovery) = &result {
            self.answer_bytes = (self.answer_bytes * 7 + recovery_bytes(recovery)) / 8;
        }
        if let Some(Question::Asked(asked)) = self.in_flight.get(&number)
            && is_long(&asked.frame)
        {
            self.long_in_flight -= 1;
        }
        match self.in_flight.remove(&number) {
            Some(Question::Resubscribe(channel)) => {
                self.own_in_flight -= 1;
                self.resubscribed(now, number, &channel, result, outbox)
            }
            Some(Question::CatchUp(client, channel)) => {
                self.own_in_flight -= 1;
                self.catch_ups -= 1;
                self.caught_up(now, number, client, &channel, result, outbox)
            }
            Some(Question::Asked(asked)) => match &asked.frame {
                EdgeFrame::Subscribe { channel, .. } => {
                    let channel = channel.clone();
                    self.subscribed(asked, &channel, result, outbox)
                }
                EdgeFrame::History { .. } => {
                    self.reply(&asked, CoreFrame::Recovered { request: asked.request, result }, outbox);
                    Ok(())
                }
                _ => {
                    self.in_flight.insert(number, Question::Asked(asked));
                    Err(LinkFault::Answer)
                }
            },
            None => Err(LinkFault::Answer),
        }
    }

    /// The answer to a worker's own question.
    fn subscribed(
        &mut self,
        asked: Asked,
        channel: &ChannelName,
        result: Result<Recovery, LinkError>,
        outbox: &mut Outbox,
    ) -> Result<(), LinkFault> {
        let Some(index) = self.interests.get_index_of(channel) else { return Err(LinkFault::Answer) };
        let interest = &mut self.interests[index];
        let mut result = result;
        if let Ok(recovery) = &result {
            if interest.live == self.link {
                if recovery.position.epoch != interest.epoch || recovery.position.offset != interest.offset {
                    let number = asked.number;
                    self.in_flight.insert(number, Question::Asked(asked));
                    return Err(LinkFault::Elsewhere);
                }
            } else if interest.active.is_empty() {
                interest.live = self.link;
                interest.epoch = recovery.position.epoch.clone();
                interest.offset = recovery.position.offset;
            } else if interest.filling {
                // What those miss who have it already comes first.
                self.queue.push_front(asked);
                return Ok(());
            } else {
                // The core refused to say what those who have it already missed; with them behind, nobody can join.
                result = Err(unavailable());
            }
        }
        let begins = result.is_ok()
            && !self.parked.contains_key(&(asked.client, channel.clone()))
            && self.cuts.get(&(channel.clone(), asked.client)).is_none_or(|cut| *cut <= asked.number);
        if begins {
            self.interests[index].active.insert(asked.client);
        }
        self.reply(&asked, CoreFrame::Recovered { request: asked.request, result }, outbox);
        self.answered_pending(index);
        Ok(())
    }

    /// The answer to the hub's question for all that are active.
    fn resubscribed(
        &mut self,
        now: Instant,
        number: u64,
        channel: &ChannelName,
        result: Result<Recovery, LinkError>,
        outbox: &mut Outbox,
    ) -> Result<(), LinkFault> {
        // Nobody wants it any more, or somebody again.
        let Some(index) = self.interests.get_index_of(channel) else { return Ok(()) };
        if self.interests[index].asked != number {
            return Ok(());
        }
        self.interests[index].asked = 0;
        let Ok(recovery) = result else {
            self.interests[index].filling = false;
            self.again.push_back(channel.clone());
            self.again_at.get_or_insert(now + AGAIN);
            return Ok(());
        };
        let interest = &mut self.interests[index];
        let continues = recovery.recovered
            && recovery.position.epoch == interest.epoch
            && recovery.position.offset >= interest.offset;
        let cut = continues && recovery.cut_at().is_some();
        interest.filling = cut;
        if !cut {
            interest.live = self.link;
        }
        if !continues {
            self.rebase(index, recovery.position, outbox);
        } else {
            for publication in recovery.publications {
                if Offset(publication.offset) > self.interests[index].offset {
                    self.stats.filled += 1;
                    self.deliver(index, delivery(channel, publication), outbox);
                }
            }
            if cut {
                self.again.push_back(channel.clone());
            } else {
                self.interests[index].offset = recovery.position.offset;
            }
        }
        self.settle(index);
        Ok(())
    }

    /// The answer to the hub's question for a parked worker.
    fn caught_up(
        &mut self,
        now: Instant,
        number: u64,
        client: Client,
        channel: &ChannelName,
        result: Result<Recovery, LinkError>,
        outbox: &mut Outbox,
    ) -> Result<(), LinkFault> {
        let key = (client, channel.clone());
        let Some(index) = self.interests.get_index_of(channel) else { return Ok(()) };
        let Some(parked) = self.parked.get_mut(&key).filter(|parked| parked.asked == Some(number)) else {
            return Ok(());
        };
        if outbox.is_full(client) {
            // The answers before this one were enough. It is asked again once they are taken.
            parked.asked = None;
            return Ok(());
        }
        let interest = &mut self.interests[index];
        let joins = interest.live == self.link || interest.active.is_empty();
        let (Ok(recovery), true) = (result, joins) else {
            parked.asked = None;
            self.again_at.get_or_insert(now + AGAIN);
            return Ok(());
        };
        if interest.live != self.link {
            interest.live = self.link;
            interest.epoch = recovery.position.epoch.clone();
            interest.offset = recovery.position.offset;
        } else if recovery.position.epoch != interest.epoch || recovery.position.offset != interest.offset {
            parked.asked = None;
            return Err(LinkFault::Elsewhere);
        }
        let position = parked.position.clone();
        let continues = recovery.recovered
            && recovery.position.epoch == position.epoch
            && recovery.position.offset >= position.offset;
        if let Some(last) = recovery.cut_at().filter(|_| continues) {
            // The rest is asked for next, or once the worker has taken this.
            *parked = Parked { position: Position::new(position.epoch, last), asked: None };
            self.catch_up_from_the_first(client);
        } else {
            self.parked.remove(&key);
            interest.parked -= 1;
            interest.active.insert(client);
        }
        // What was asked for arrives as a whole: a worker that is full again is parked at what comes next.
        if continues {
            for publication in recovery.publications {
                if Offset(publication.offset) > position.offset {
                    self.stats.filled += 1;
                    outbox.push(client, CoreFrame::Publication(delivery(channel, publication)));
                }
            }
        } else {
            self.stats.rebased += 1;
            let frame = CoreFrame::Rebased { channel: channel.clone(), position: recovery.position };
            outbox.push(client, frame);
        }
        Ok(())
    }

    /// Takes the question that an answer is to.
    fn answered(&mut self, number: u64, fits: impl Fn(&EdgeFrame) -> bool) -> Result<Asked, LinkFault> {
        match self.in_flight.remove(&number) {
            Some(Question::Asked(asked)) if fits(&asked.frame) => Ok(asked),
            Some(question) => {
                // It is still to be answered.
                self.in_flight.insert(number, question);
                Err(LinkFault::Answer)
            }
            None => Err(LinkFault::Answer),
        }
    }

    fn reply(&mut self, asked: &Asked, answer: CoreFrame, outbox: &mut Outbox) {
        if let Some(held) = self.held.get_mut(&asked.client) {
            held.count -= 1;
            held.bytes -= edge_frame_bytes(&asked.frame);
        }
        outbox.push(asked.client, answer);
    }

    /// Answers a question that nobody will.
    fn refuse(&mut self, asked: Asked, error: LinkError, outbox: &mut Outbox) {
        if let Some(answer) = failure(&asked.frame, asked.request, error) {
            self.reply(&asked, answer, outbox);
        }
        if let EdgeFrame::Subscribe { channel, .. } = &asked.frame
            && let Some(index) = self.interests.get_index_of(channel)
        {
            self.answered_pending(index);
        }
    }

    /// One question less is open for a channel.
    fn answered_pending(&mut self, index: usize) {
        let Some((channel, interest)) = self.interests.get_index_mut(index) else { return };
        interest.pending -= 1;
        if interest.pending == 0 && !self.cuts.is_empty() {
            let from = (channel.clone(), Client(0));
            let to = (channel.clone(), Client(u16::MAX));
            let cut: Vec<_> = self.cuts.range(from..=to).map(|(key, _)| key.clone()).collect();
            for key in cut {
                self.cuts.remove(&key);
            }
        }
        self.settle(index);
    }

    /// When the oldest question has waited for too long. However often links come and go, four times as long at most.
    fn deadline(&self) -> Option<Instant> {
        let State::Waiting(since) = self.state else { return None };
        let asked = self.queue.front()?;
        let wait = self.bounds.request_wait;
        Some((asked.at.max(since) + wait).min(asked.at + 4 * wait))
    }
}

/// Bytes of answers that are under way at once, about: half of what waits for a link in a core at most.
const ANSWERS: usize = 4 << 20;
/// What an answer is taken to weigh before there was one: half of the largest.
const FIRST_ANSWER: usize = 128 << 10;
/// Questions in flight, however long answers are.
const FEWEST: usize = 8;
/// Questions for parked workers in flight: each answer may be a whole history.
const CATCH_UPS: usize = 16;
/// Places for channels that are kept, wanted or not.
const KEPT_CAPACITY: usize = 1024;
/// From a refused question of the hub's own to the next attempt.
const AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
