//! Sans-io: what a client's session makes of the server's frames.

use std::time::{Duration, Instant};

use rand::RngExt;

use crate::frame::{
    self, Close, Connected, ErrorCode, ErrorReply, Publication, ServerBody, Subscribed, Unsubscribed,
};
use crate::{ChannelName, Position};

use super::Session;
use super::carrier::Numbering;
use super::connections::{Side, Stage};
use super::event::{Event, History, RequestError, RequestId, SessionError};
use super::outage::End;
use super::requests::Request;
use super::subscription::{Need, Phase, SubscribeOptions, Subscription};

impl Session {
    pub(super) fn handle_connected(
        &mut self,
        now: Instant,
        side: Side,
        connected: Connected,
    ) -> Result<(), SessionError> {
        let Some(connection) = self.connection_mut(side) else { return Ok(()) };
        let Stage::Opening { publications, connect, .. } = &mut connection.stage else {
            return Err(SessionError::AlreadyConnected);
        };
        let (early, key) = (std::mem::take(publications), connect.key.take());
        connection.stage = Stage::Open {
            silence: Duration::from_millis(connected.ping_ms.min(MAX_PING_MS)) * 2,
            token_due: connected.expires_ms.map(|ms| token_due(now, ms)),
        };
        if let Some(plan) = connected.plan {
            connection.handle_plan(plan);
        }
        let id = connection.id;
        self.left_behind = None;
        self.tickets.handle_connected(id, key.as_deref(), connected.resume);
        self.events.push_back(Event::Connected {
            connection: id,
            session: connected.session,
            resumed: connected.resumed,
            user: connected.user,
            node: connected.node,
            region: connected.region,
        });
        match side {
            Side::Current => self.reconnect.handle_connected(now),
            Side::Next => self.open_next(now),
        }
        let missed_early = early.len() >= MAX_EARLY;
        for subscribed in connected.subscriptions {
            let name = ChannelName::new(&subscribed.channel)
                .map_err(|_| SessionError::Malformed("a server-side subscription with a bad channel name"))?;
            // Those that the client knows are asked for with their positions.
            if self.subscriptions.contains_key(&name)
                || self.subscriptions.len() >= self.config.max_subscriptions
            {
                continue;
            }
            let mut subscription =
                Subscription::new(name.clone(), None, SubscribeOptions::default(), self.hold_bounds());
            subscription.server = true;
            if self.next.is_some() {
                subscription.begin_move();
            }
            let need = subscription.handle_begun(side, now, subscribed, &mut self.events)?;
            self.subscriptions.insert(name.clone(), subscription);
            self.meet(side, &name, if missed_early { Need::Resync } else { need });
        }
        for (numbering, publication) in early {
            self.handle_publication(now, side, numbering, publication);
        }
        self.ask_waiting(now, side.other());
        Ok(())
    }

    pub(super) fn handle_publication(
        &mut self,
        now: Instant,
        side: Side,
        numbering: Numbering,
        publication: Publication,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(publication.channel.as_str()) else {
            if let Some(Stage::Opening { publications, .. }) =
                self.connection_mut(side).map(|connection| &mut connection.stage)
                && publications.len() < MAX_EARLY
            {
                publications.push((numbering, publication));
            }
            return;
        };
        let need = subscription.handle_publication(side, now, numbering, publication, &mut self.events);
        let channel = subscription.channel().clone();
        if let Some(connection) = self.connection_mut(side) {
            connection.probe.handle_item(now);
        }
        self.meet(side, &channel, need);
    }

    pub(super) fn handle_ephemeral(&mut self, now: Instant, side: Side, ephemeral: frame::Ephemeral) {
        if let Some(channel) = self.ephemeral_of(now, side, &ephemeral.channel) {
            self.events.push_back(Event::Ephemeral { channel, ephemeral });
        }
    }

    pub(super) fn handle_join(&mut self, now: Instant, side: Side, join: frame::Join) {
        if let Some(channel) = self.ephemeral_of(now, side, &join.channel) {
            self.events.push_back(Event::Join { channel, join });
        }
    }

    pub(super) fn handle_leave(&mut self, now: Instant, side: Side, leave: frame::Leave) {
        if let Some(channel) = self.ephemeral_of(now, side, &leave.channel) {
            self.events.push_back(Event::Leave { channel, leave });
        }
    }

    pub(super) fn handle_presence_gap(&mut self, now: Instant, side: Side, channel: &str) {
        if let Some(channel) = self.ephemeral_of(now, side, channel) {
            self.events.push_back(Event::PresenceGap { channel });
        }
    }

    /// The channel of an at-most-once item, where it counts.
    fn ephemeral_of(&mut self, now: Instant, side: Side, channel: &str) -> Option<ChannelName> {
        if let Some(connection) = self.connection_mut(side) {
            connection.probe.handle_item(now);
        }
        let subscription = self.subscriptions.get(channel)?;
        // While both connections bring them, one of them counts: the one that is live.
        let is_live = |side| subscription.line(side).is_some_and(|line| line.phase == Phase::Live);
        let from = if is_live(Side::Next) { Side::Next } else { Side::Current };
        (!subscription.left && from == side).then(|| subscription.channel().clone())
    }

    pub(super) fn handle_ping(&mut self, side: Side, ping: frame::Ping) {
        let Some(connection) = self.connection_mut(side) else { return };
        connection.pong_owed = true;
        if let Some(plan) = ping.plan {
            connection.handle_plan(plan);
        }
        let id = connection.id;
        if let Some(ticket) = ping.resume {
            self.tickets.handle_fresher(id, ticket);
        }
    }

    pub(super) fn handle_pong(&mut self, now: Instant, side: Side, id: u64) {
        let Some(connection) = self.connection_mut(side) else { return };
        if let Some(round_trip) = connection.probe.handle_pong(now, id) {
            let connection = connection.id;
            self.events.push_back(Event::RoundTrip { connection, round_trip });
        }
    }

    /// `subscribed` without an id: continuity of a live subscription was lost.
    pub(super) fn handle_rebased(
        &mut self,
        now: Instant,
        side: Side,
        subscribed: Subscribed,
    ) -> Result<(), SessionError> {
        let Some(subscription) = self.subscriptions.get_mut(subscribed.channel.as_str()) else {
            return Ok(());
        };
        let need = subscription.handle_rebased(side, now, subscribed, &mut self.events)?;
        let channel = subscription.channel().clone();
        self.meet(side, &channel, need);
        Ok(())
    }

    /// `unsubscribed` without an id: the server ended it.
    pub(super) fn handle_unsubscribed(&mut self, side: Side, unsubscribed: Unsubscribed) {
        let moves = self.next.is_some();
        let Some(subscription) = self.subscriptions.get_mut(unsubscribed.channel.as_str()) else { return };
        let Some(line) = subscription.line_mut(side) else { return };
        if !matches!(line.phase, Phase::Live | Phase::Resyncing { .. }) {
            return;
        }
        if moves && side == Side::Current {
            // The next connection will say so as well, or know better.
            line.clear();
            line.phase = Phase::Ended;
            return;
        }
        let channel = subscription.channel().clone();
        self.remove_subscription(&channel, unsubscribed.error);
    }

    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        side: Side,
        id: u64,
        body: ServerBody,
    ) -> Result<(), SessionError> {
        if let Some(connection) = self.connection_mut(side) {
            connection.lane.handle_answer(id);
        }
        let other = self.connection(side.other());
        if matches!(body, ServerBody::Error(_)) && other.is_some_and(|other| other.lane.waits_for(id)) {
            // It may go better there, and must not be done after it was told that it failed.
            return Ok(());
        }
        // A second answer, to a request that was sent twice, says nothing new.
        let Some(request) = self.requests.answer(id) else { return Ok(()) };
        let request_id = RequestId(id);
        match (request, body) {
            (Request::Subscribe(channel, asked), ServerBody::Subscribed(subscribed)) => {
                let asked = asked.position.map(Position::from);
                return self.handle_asked(now, side, id, &channel, subscribed, asked);
            }
            (Request::Subscribe(channel, _), ServerBody::Error(error)) => {
                self.handle_not_subscribed(now, side, id, &channel, error);
            }
            // An error as well: then there was no such subscription.
            (Request::Unsubscribe(channel), ServerBody::Unsubscribed(_) | ServerBody::Error(_)) => {
                self.handle_left(now, side, id, &channel);
            }
            (
                Request::Publish(_),
                ServerBody::Published(frame::Published { position: Some(position), .. }),
            ) => {
                self.events.push_back(Event::Published { request: request_id, result: Ok(position.into()) });
            }
            (
                Request::History(_),
                ServerBody::History(frame::History {
                    position: Some(position), recovered, publications, ..
                }),
            ) => {
                let result = Ok(History { position: position.into(), recovered, publications });
                self.events.push_back(Event::History { request: request_id, result });
            }
            (Request::Presence(_), ServerBody::Presence(presence)) => {
                self.events.push_back(Event::Presence { request: request_id, result: Ok(presence) });
            }
            (Request::Refresh(token), ServerBody::Refreshed(refreshed)) => {
                self.token = Some(token);
                if let Some(connection) = self.connection_mut(side)
                    && let Stage::Open { token_due: due, .. } = &mut connection.stage
                {
                    *due = refreshed.expires_ms.map(|ms| token_due(now, ms));
                }
                self.events.push_back(Event::Refreshed { request: request_id, result: Ok(()) });
            }
            (request, ServerBody::Error(error)) => self.fail(id, request, RequestError::Refused(error)),
            (request, _) => {
                self.fail(id, request, RequestError::Unanswered);
                return Err(SessionError::WrongAnswer);
            }
        }
        Ok(())
    }

    fn handle_asked(
        &mut self,
        now: Instant,
        side: Side,
        id: u64,
        channel: &ChannelName,
        subscribed: Subscribed,
        asked: Option<Position>,
    ) -> Result<(), SessionError> {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return Ok(()) };
        if subscription.line(side).is_some_and(|line| line.phase == (Phase::Asked { request: id })) {
            let need = subscription.handle_subscribed(side, now, subscribed, asked, &mut self.events)?;
            self.meet(side, channel, need);
        }
        Ok(())
    }

    fn handle_not_subscribed(
        &mut self,
        now: Instant,
        side: Side,
        id: u64,
        channel: &ChannelName,
        error: ErrorReply,
    ) {
        let subscription = self.subscriptions.get_mut(channel);
        let Some(line) = subscription.and_then(|subscription| subscription.line_mut(side)) else { return };
        if line.phase != (Phase::Asked { request: id }) {
            return;
        }
        line.clear();
        line.attempts = line.attempts.saturating_add(1);
        if error.retry {
            let bound = SUBSCRIBE_RETRY.saturating_mul(1 << line.attempts.min(6)).min(SUBSCRIBE_RETRY_CAP);
            let delay = bound.mul_f64(self.rng.random_range(0.0..1.0));
            line.phase = Phase::Waiting { retry_at: Some(now + delay) };
        } else if error.code == ErrorCode::Conflict.number() && line.attempts == 1 {
            // The server has one that this side knows nothing of: begin anew, once.
            line.phase = Phase::Live;
            self.meet(side, channel, Need::Restart);
        } else {
            self.remove_subscription(channel, Some(error));
        }
    }

    fn handle_left(&mut self, now: Instant, side: Side, id: u64, channel: &ChannelName) {
        let subscription = self.subscriptions.get_mut(channel);
        let Some(line) = subscription.and_then(|subscription| subscription.line_mut(side)) else { return };
        match line.phase {
            Phase::Leaving { request } | Phase::Resyncing { request } if request == id => {
                line.reset();
                self.remove_left();
                self.ask_waiting(now, side);
            }
            _ => {}
        }
    }

    pub(super) fn handle_close(&mut self, now: Instant, side: Side, close: Close) {
        self.end_connection(now, side, End::by_frame(close));
    }
}

/// A minute before the token expires, or in the last quarter of a short life.
fn token_due(now: Instant, expires_ms: u64) -> Instant {
    let left = Duration::from_millis(expires_ms.min(MAX_EXPIRES_MS));
    now + left - TOKEN_LEAD.min(left / 4)
}

/// Publications that come before `connected`; where they are more, their subscriptions begin anew.
const MAX_EARLY: usize = 256;

/// How long before the token's end another is asked for.
const TOKEN_LEAD: Duration = Duration::from_secs(60);

/// Bound of the first delay after a subscribe that may succeed later; doubles up to the cap.
const SUBSCRIBE_RETRY: Duration = Duration::from_millis(500);
const SUBSCRIBE_RETRY_CAP: Duration = Duration::from_secs(30);

// What a server says is believed within these, so that no time overflows.
const MAX_PING_MS: u64 = 3_600_000;
const MAX_EXPIRES_MS: u64 = 365 * 24 * 3_600_000;
