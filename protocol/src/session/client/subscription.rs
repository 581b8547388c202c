//! Sans-io: one subscription of a client: puts publications in order, drops duplicates, notices what is missing. While the
//! session moves from one connection to another it takes from both, whichever has the next first.

mod ahead;
mod line;

use std::collections::VecDeque;
use std::time::Instant;

use crate::frame::{Publication, Subscribed};
use crate::{ChannelName, Epoch, Offset, Position};

use super::carrier::Numbering;
use super::{Event, SessionError, Side};

pub(super) use line::{Line, Phase};

/// What a subscription asks of the session.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing.
    Nothing,
    /// To unsubscribe, and to subscribe again from the last position. What comes in order meanwhile counts.
    Resync,
    /// The same; but what comes meanwhile may be of another numbering.
    Restart,
}

/// How a channel is joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Where much waits to be sent to this client, channels of a higher rank go first.
    pub rank: i8,
    /// To be told who joins and leaves.
    pub presence: bool,
}

/// Bounds of the hold buffer: of each connection's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct HoldBounds {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

/// What a `subscribed` says.
struct Beginning {
    head: Position,
    /// Everything after that comes.
    recovered: Option<Offset>,
    /// The server has less than it was asked after.
    is_behind: bool,
    /// Another numbering than the subscription's is later than that: this side was at it, and is not any more.
    is_news: bool,
}

#[derive(Debug)]
pub(super) struct Subscription {
    channel: ChannelName,
    pub(super) options: SubscribeOptions,
    /// The last publication delivered; `None` to begin at the head.
    pub(super) position: Option<Position>,
    /// Begun by the server, and not yet asked for by the app.
    pub(super) server: bool,
    /// The app has left; it goes when the server knows.
    pub(super) left: bool,
    /// The app was told that it began, and it has gone on since.
    told: bool,
    /// Of the connection that the session is on.
    pub(super) line: Line,
    /// Of the one that it moves to.
    pub(super) next_line: Option<Line>,
    bounds: HoldBounds,
}

impl Subscription {
    pub(super) fn new(
        channel: ChannelName,
        position: Option<Position>,
        options: SubscribeOptions,
        bounds: HoldBounds,
    ) -> Self {
        Self {
            channel,
            options,
            position,
            server: false,
            left: false,
            told: false,
            line: Line::new(bounds),
            next_line: None,
            bounds,
        }
    }

    pub(super) fn channel(&self) -> &ChannelName {
        &self.channel
    }

    pub(super) fn line(&self, side: Side) -> Option<&Line> {
        match side {
            Side::Current => Some(&self.line),
            Side::Next => self.next_line.as_ref(),
        }
    }

    pub(super) fn line_mut(&mut self, side: Side) -> Option<&mut Line> {
        match side {
            Side::Current => Some(&mut self.line),
            Side::Next => self.next_line.as_mut(),
        }
    }

    /// The app asks anew, from `position`, for what it had left or had never asked for.
    pub(super) fn begin_anew(&mut self, position: Option<Position>, options: SubscribeOptions) {
        (self.position, self.options) = (position, options);
        (self.left, self.server, self.told) = (false, false, false);
    }

    /// The session has no connection: nothing is under way.
    pub(super) fn reset(&mut self) {
        self.line.reset();
        self.next_line = None;
        self.told = false;
    }

    /// The session begins to move.
    pub(super) fn begin_move(&mut self) {
        self.next_line = Some(Line::new(self.bounds));
    }

    /// True where the next connection brings everything from here on.
    pub(super) fn may_move(&self) -> bool {
        let continues = |line: &Line| line.continues(self.position.as_ref());
        self.left || self.next_line.as_ref().is_some_and(continues)
    }

    /// The next connection takes the place of the present one.
    pub(super) fn finish_move(&mut self) -> Need {
        self.line = self.next_line.take().unwrap_or_else(|| Line::new(self.bounds));
        self.stand_alone()
    }

    /// The next connection is gone: the present one goes on.
    pub(super) fn cancel_move(&mut self) -> Need {
        self.next_line = None;
        if self.line.phase == Phase::Ended {
            self.line.reset();
        }
        self.stand_alone()
    }

    /// One connection is left to bring what the two brought together.
    fn stand_alone(&mut self) -> Need {
        let line = &self.line;
        match line.phase {
            Phase::Live if !line.is_of(self.position.as_ref()) => Need::Restart,
            // What lies between only the other one could have brought; history may reach back to it.
            Phase::Live if !line.continues(self.position.as_ref()) => Need::Resync,
            Phase::Live | Phase::Resyncing { .. } => Need::Nothing,
            _ => {
                self.told = false;
                Need::Nothing
            }
        }
    }

    /// When to give up on a gap and subscribe again on that side.
    pub(super) fn gap_deadline(&self, side: Side) -> Option<Instant> {
        self.line(side)?.gap_deadline(self.position.as_ref())
    }

    /// Takes `subscribed`: the answer to a request that named `asked`.
    pub(super) fn handle_subscribed(
        &mut self,
        side: Side,
        now: Instant,
        subscribed: Subscribed,
        asked: Option<Position>,
        events: &mut VecDeque<Event>,
    ) -> Result<Need, SessionError> {
        let head = head_of(&subscribed)?;
        let asked = asked.as_ref();
        let new_epoch = asked.is_some_and(|asked| !asked.epoch.is_any() && asked.epoch != head.epoch);
        let mut recovered = asked.filter(|_| subscribed.recovered && !new_epoch).map(|asked| asked.offset);
        if let Some(has) = &self.position
            && asked.is_none_or(|asked| asked.epoch != has.epoch)
            && !self.is_vouched_by(side.other())
        {
            // Asked before the other connection, gone since, brought the subscription to where it is.
            let same = has.epoch == head.epoch;
            if same && has.offset >= head.offset {
                recovered = recovered.or(Some(head.offset));
            } else if !(same && recovered.is_some_and(|from| from <= has.offset)) {
                if let Some(line) = self.line_mut(side) {
                    line.phase = Phase::Live;
                    line.clear();
                }
                return Ok(Need::Restart);
            }
        }
        // The server knows less than this side: it has lost something.
        let is_behind = !new_epoch && asked.is_some_and(|asked| asked.offset > head.offset);
        let present = self.position.as_ref().map(|position| &position.epoch);
        let is_news = asked.is_some_and(|asked| Some(&asked.epoch) == present);
        let beginning = Beginning { head, recovered, is_behind, is_news };
        Ok(self.begin_line(side, now, beginning, subscribed, events))
    }

    /// Takes `subscribed` without a request: the server began it.
    pub(super) fn handle_begun(
        &mut self,
        side: Side,
        now: Instant,
        subscribed: Subscribed,
        events: &mut VecDeque<Event>,
    ) -> Result<Need, SessionError> {
        let beginning =
            Beginning { head: head_of(&subscribed)?, recovered: None, is_behind: false, is_news: true };
        Ok(self.begin_line(side, now, beginning, subscribed, events))
    }

    /// Takes `subscribed` without an id: continuity was lost on that side.
    pub(super) fn handle_rebased(
        &mut self,
        side: Side,
        now: Instant,
        subscribed: Subscribed,
        events: &mut VecDeque<Event>,
    ) -> Result<Need, SessionError> {
        let position = self.position.clone();
        let Some(line) = self.line_mut(side) else { return Ok(Need::Nothing) };
        match line.phase {
            Phase::Live => {
                let is_news = line.is_of(position.as_ref());
                let head = head_of(&subscribed)?;
                // One that was overtaken by what it says will be missing: nothing is.
                let stale = line.epoch == head.epoch
                    && self
                        .position
                        .as_ref()
                        .is_some_and(|has| has.epoch == head.epoch && has.offset >= head.offset);
                if stale {
                    return Ok(Need::Nothing);
                }
                let beginning = Beginning { head, recovered: None, is_behind: false, is_news };
                return Ok(self.begin_line(side, now, beginning, subscribed, events));
            }
            Phase::Resyncing { request } => line.phase = Phase::Leaving { request },
            // Of a subscription that the answer, which comes behind it, knows nothing of.
            Phase::Asked { .. } => {}
            Phase::Waiting { .. } | Phase::Leaving { .. } | Phase::Ended => {}
        }
        Ok(Need::Nothing)
    }

    /// Takes a publication, in whatever order it comes.
    pub(super) fn handle_publication(
        &mut self,
        side: Side,
        now: Instant,
        numbering: Numbering,
        publication: Publication,
        events: &mut VecDeque<Event>,
    ) -> Need {
        let last = self.last();
        let position = self.position.clone();
        let Some(line) = self.line_mut(side) else { return Need::Nothing };
        if matches!(line.phase, Phase::Waiting { .. } | Phase::Leaving { .. } | Phase::Ended) {
            return Need::Nothing;
        }
        let Some(publication) = line.admit(numbering, publication) else { return Need::Nothing };
        match line.phase {
            Phase::Waiting { .. } | Phase::Leaving { .. } | Phase::Ended | Phase::Asked { .. } => {
                Need::Nothing
            }
            // The other connection knows of another numbering; this one has yet to be told.
            Phase::Live if !line.is_of(position.as_ref()) => {
                line.pass_over(publication.offset);
                Need::Nothing
            }
            Phase::Live => {
                self.put_in_order(side, now, publication, events);
                self.release_held(now, events);
                self.need(side)
            }
            // What the old subscription still brings in order need not come again; the rest will.
            Phase::Resyncing { .. } => {
                let same = position.is_some_and(|position| position.epoch == line.epoch);
                if same && line.is_next(last, publication.offset) {
                    self.deliver(now, publication, events);
                    self.release_held(now, events);
                }
                Need::Nothing
            }
        }
    }

    fn begin_line(
        &mut self,
        side: Side,
        now: Instant,
        beginning: Beginning,
        subscribed: Subscribed,
        events: &mut VecDeque<Event>,
    ) -> Need {
        let Beginning { head, recovered, is_behind, is_news } = beginning;
        let vouched = self.is_vouched_by(side.other());
        let Some(line) = self.line_mut(side) else { return Need::Nothing };
        line.phase = Phase::Live;
        let lossy = line.begin_epoch(&head.epoch);
        line.head = head.offset;
        line.from = recovered.unwrap_or(head.offset);
        line.conflated = subscribed.conflated;
        line.progress = Some(now);
        line.attempts = 0;
        let from = line.from;
        match &mut self.position {
            Some(has) if has.epoch.is_any() || has.epoch == head.epoch => {
                let has_more = self.told && !has.epoch.is_any() && has.offset >= head.offset && !is_behind;
                if recovered.is_some() && from <= has.offset {
                    has.epoch = head.epoch.clone();
                    if !self.told {
                        self.tell(head, true, true, events);
                    }
                } else if !vouched && !has_more {
                    self.move_to(head, events);
                }
            }
            // The other connection brings what comes next, and is told itself of what is later than that.
            Some(_) if vouched && !is_news => {}
            _ => self.move_to(head, events),
        }
        let position = self.position.clone();
        let Some(line) = self.line_mut(side) else { return Need::Nothing };
        if !line.is_of(position.as_ref()) {
            line.pass_over_held();
            for publication in subscribed.publications {
                line.pass_over(publication.offset);
            }
            return if lossy { Need::Resync } else { Need::Nothing };
        }
        for publication in subscribed.publications {
            self.put_in_order(side, now, publication, events);
        }
        self.release_held(now, events);
        if lossy { Need::Resync } else { self.need(side) }
    }

    /// Continues from `head`, and tells that something was missed.
    fn move_to(&mut self, head: Position, events: &mut VecDeque<Event>) {
        let had = self.position.replace(head.clone());
        let same = had.as_ref().is_some_and(|had| had.epoch == head.epoch);
        if !same {
            for line in [Some(&mut self.line), self.next_line.as_mut()].into_iter().flatten() {
                // Of a numbering that is over.
                if line.phase == Phase::Live && line.epoch != head.epoch {
                    line.pass_over_held();
                }
            }
        }
        self.tell(head, false, had.is_some(), events);
    }

    fn tell(
        &mut self,
        position: Position,
        recovered: bool,
        was_recovering: bool,
        events: &mut VecDeque<Event>,
    ) {
        self.told = true;
        events.push_back(Event::Subscribed {
            channel: self.channel.clone(),
            position,
            recovered,
            was_recovering,
            server: self.server,
        });
    }

    fn put_in_order(
        &mut self,
        side: Side,
        now: Instant,
        publication: Publication,
        events: &mut VecDeque<Event>,
    ) {
        let last = self.last();
        let Some(line) = self.line_mut(side) else { return };
        if line.is_next(last, publication.offset) {
            self.deliver(now, publication, events);
        } else if publication.offset > last {
            line.hold(publication);
        }
    }

    /// Delivers what either side held and what is next now.
    fn release_held(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        loop {
            let last = self.last();
            let position = self.position.as_ref();
            let mut due = None;
            for line in [Some(&mut self.line), self.next_line.as_mut()].into_iter().flatten() {
                if due.is_none() && line.is_of(position) {
                    due = line.pop_due(last);
                }
            }
            let Some(publication) = due else { return };
            if publication.offset > last {
                self.deliver(now, publication, events);
            }
        }
    }

    fn deliver(&mut self, now: Instant, publication: Publication, events: &mut VecDeque<Event>) {
        let epoch = self.position.take().map_or_else(Epoch::default, |position| position.epoch);
        let position = Position::new(epoch, Offset(publication.offset));
        for line in [Some(&mut self.line), self.next_line.as_mut()].into_iter().flatten() {
            line.progress = Some(now);
            line.attempts = 0;
            if matches!(line.phase, Phase::Asked { .. }) {
                line.prune(&position);
            }
        }
        self.position = Some(position.clone());
        events.push_back(Event::Publication { channel: self.channel.clone(), position, publication });
    }

    /// True where that side brings everything after the position.
    fn is_vouched_by(&self, side: Side) -> bool {
        self.line(side).is_some_and(|line| line.continues(self.position.as_ref()))
    }

    fn last(&self) -> u64 {
        self.position.as_ref().map_or(0, |position| position.offset.0)
    }

    fn need(&self, side: Side) -> Need {
        if self.line(side).is_some_and(|line| line.overflowed) { Need::Resync } else { Need::Nothing }
    }
}

fn head_of(subscribed: &Subscribed) -> Result<Position, SessionError> {
    let position = subscribed.position.clone().map(Position::from);
    position.ok_or(SessionError::Malformed("`subscribed` without a position"))
}
