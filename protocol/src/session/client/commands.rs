//! Sans-io: what the app asks of a client's session.

use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::value::RawValue;

use crate::frame::{
    self, ClientBody, ClientFrame, CloseCode, HistoryRequest, Payload, PresenceRequest, Publish,
};
use crate::{ChannelName, Position};

use super::connections::{Connection, Side, Stage};
use super::event::{CommandError, Event, RequestId};
use super::requests::Request;
use super::subscription::{Phase, SubscribeOptions, Subscription};
use super::{Session, State};

impl Session {
    /// Asks for the first connection; nothing where it was asked for before.
    pub fn connect(&mut self, token: Option<String>) {
        if matches!(self.state, State::Idle) {
            self.token = token;
            self.dial(None);
        }
    }

    /// Joins a channel, after `position` or from its head.
    pub fn subscribe(
        &mut self,
        now: Instant,
        channel: ChannelName,
        position: Option<Position>,
        options: SubscribeOptions,
    ) -> Result<(), CommandError> {
        self.check_alive()?;
        let bounds = self.hold_bounds();
        if let Some(subscription) = self.subscriptions.get_mut(channel.as_str()) {
            if subscription.left {
                // Asked for when the server knows of the leaving.
                subscription.begin_anew(position, options);
                return Ok(());
            }
            if !subscription.server {
                return Err(CommandError::AlreadySubscribed);
            }
            self.adopt(&channel, position, options);
            return Ok(());
        }
        if self.subscriptions.len() >= self.config.max_subscriptions {
            return Err(CommandError::TooManySubscriptions);
        }
        let mut subscription = Subscription::new(channel.clone(), position, options, bounds);
        if self.next.is_some() {
            subscription.begin_move();
        }
        self.subscriptions.insert(channel, subscription);
        self.ask_waiting(now, Side::Current);
        self.ask_waiting(now, Side::Next);
        Ok(())
    }

    /// Leaves a channel: none of its publications comes any more; `Unsubscribed` follows.
    pub fn unsubscribe(&mut self, channel: &ChannelName) -> Result<(), CommandError> {
        self.check_alive()?;
        let subscription = self.subscriptions.get_mut(channel).ok_or(CommandError::NotSubscribed)?;
        subscription.left = true;
        self.leave(channel);
        self.remove_left();
        Ok(())
    }

    /// Publishes durably; `Published` follows. Without a `key` it gets a random one, so that it can be repeated after a
    /// lost connection and still be stored once.
    pub fn publish(
        &mut self,
        channel: &ChannelName,
        payload: Payload,
        key: Option<String>,
    ) -> Result<RequestId, CommandError> {
        self.check_room()?;
        self.check_payload(&payload)?;
        let key = match key {
            Some(key) if key.is_empty() || key.len() > MAX_KEY_BYTES => return Err(CommandError::BadKey),
            Some(key) => key,
            None => format!("{:016x}{:016x}", self.rng.next_u64(), self.rng.next_u64()),
        };
        Ok(self.request(Request::Publish(publish_frame(channel, payload, Some(key), false))))
    }

    /// Publishes at most once: dropped without a connection, and the oldest where too many wait.
    pub fn publish_ephemeral(&mut self, channel: &ChannelName, payload: Payload) -> Result<(), CommandError> {
        self.check_alive()?;
        self.check_payload(&payload)?;
        if self.is_open() {
            if self.ephemeral.len() >= self.config.max_ephemeral {
                self.ephemeral.pop_front();
            }
            let publish = publish_frame(channel, payload, None, true);
            self.ephemeral.push_back(ClientFrame::new(0, ClientBody::Publish(publish)));
        }
        Ok(())
    }

    /// Asks what is retained after `since`, at most `limit` (0: as many as fit); `History` follows.
    pub fn history(
        &mut self,
        channel: &ChannelName,
        since: Option<Position>,
        limit: u32,
    ) -> Result<RequestId, CommandError> {
        self.check_room()?;
        let since = since.map(frame::Position::from);
        Ok(self.request(Request::History(HistoryRequest {
            channel: channel.as_str().to_owned(),
            since,
            limit,
        })))
    }

    /// Asks who is on a channel; `Presence` follows.
    pub fn presence(&mut self, channel: &ChannelName) -> Result<RequestId, CommandError> {
        self.check_room()?;
        Ok(self.request(Request::Presence(PresenceRequest { channel: channel.as_str().to_owned() })))
    }

    /// Gives a new token; `Refreshed` follows. Without an open connection it serves the next one.
    pub fn refresh(&mut self, now: Instant, token: String) -> Result<RequestId, CommandError> {
        self.check_room()?;
        if self.is_open() {
            return Ok(self.request(Request::Refresh(token)));
        }
        self.token = Some(token);
        // A ticket stands for the token of before.
        self.tickets.clear();
        let request = RequestId(self.requests.new_id());
        self.events.push_back(Event::Refreshed { request, result: Ok(()) });
        if let State::Tokenless { not_before, .. } = self.state {
            self.wait_until(now, not_before, not_before);
        }
        Ok(request)
    }

    /// There is no token to be had now: asks again in a while.
    pub fn token_unavailable(&mut self, now: Instant) {
        match &mut self.state {
            State::Tokenless { ask_again, .. } => *ask_again = Some(now + TOKEN_RETRY),
            State::Up => {
                if let Some(Stage::Open { token_due, .. }) = self.current.as_mut().map(|one| &mut one.stage) {
                    *token_due = Some(now + TOKEN_RETRY);
                }
            }
            _ => {}
        }
    }

    /// Ends the session in order; `Ended` follows. What waits for an answer fails.
    pub fn close(&mut self, now: Instant) {
        match self.state {
            State::Closing { .. } | State::Ended => return,
            _ => {}
        }
        if let Some(next) = self.next.take() {
            // The server must not keep what it may have begun there.
            if next.is_begun() {
                self.leaving.push_back(next.id);
            } else {
                self.release(next.id);
            }
            self.move_until = None;
        }
        if self.current.as_ref().is_some_and(Connection::is_begun) {
            self.state = State::Closing { until: now + self.config.close_timeout, done_sent: false };
            self.fail_requests();
        } else {
            self.end(CloseCode::Done.number(), "closed by the app".to_owned());
        }
    }

    /// The app asks for a subscription that the server began.
    fn adopt(&mut self, channel: &ChannelName, position: Option<Position>, options: SubscribeOptions) {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return };
        subscription.server = false;
        let live = subscription.line.phase == Phase::Live;
        if position.is_none() && options == SubscribeOptions::default() {
            if let (true, Some(position)) = (live, subscription.position.clone()) {
                self.events.push_back(Event::Subscribed {
                    channel: channel.clone(),
                    position,
                    recovered: false,
                    was_recovering: false,
                    server: false,
                });
            }
            return;
        }
        let position = position.or_else(|| subscription.position.clone());
        subscription.begin_anew(position, options);
        self.leave(channel);
    }

    /// Says on every connection that has it that the channel is left; it may be asked for again behind that.
    fn leave(&mut self, channel: &ChannelName) {
        for side in [Side::Current, Side::Next] {
            let subscription = self.subscriptions.get_mut(channel);
            let Some(line) = subscription.and_then(|subscription| subscription.line_mut(side)) else {
                continue;
            };
            line.clear();
            match line.phase {
                Phase::Resyncing { request } => line.phase = Phase::Leaving { request },
                Phase::Asked { .. } | Phase::Live => {
                    let request = self.ask(side, Request::Unsubscribe(channel.clone()));
                    let subscription = self.subscriptions.get_mut(channel);
                    if let (Some(request), Some(line)) =
                        (request, subscription.and_then(|subscription| subscription.line_mut(side)))
                    {
                        line.phase = Phase::Leaving { request };
                    }
                }
                Phase::Waiting { .. } | Phase::Leaving { .. } | Phase::Ended => {}
            }
        }
    }

    fn request(&mut self, request: Request) -> RequestId {
        let id = self.requests.add(request);
        let side = self.app_side();
        if self.is_usable(side)
            && let Some(connection) = self.connection_mut(side)
        {
            connection.lane.push(id);
        }
        RequestId(id)
    }

    /// `connected` came on some connection.
    fn is_open(&self) -> bool {
        matches!(self.state, State::Up) && self.connection(self.app_side()).is_some_and(Connection::is_open)
    }

    fn check_alive(&self) -> Result<(), CommandError> {
        match self.state {
            State::Closing { .. } | State::Ended => Err(CommandError::Ended),
            _ => Ok(()),
        }
    }

    fn check_room(&self) -> Result<(), CommandError> {
        self.check_alive()?;
        if self.has_room() { Ok(()) } else { Err(CommandError::TooManyRequests) }
    }

    fn check_payload(&self, payload: &Payload) -> Result<(), CommandError> {
        let (bytes, limit) = (payload.len(), self.config.max_payload);
        if bytes > limit {
            return Err(CommandError::TooLarge { bytes, limit });
        }
        match payload {
            // As the text encoding will check it: what it cannot write must not come so far.
            Payload::Json(json) if serde_json::from_slice::<&RawValue>(json).is_err() => {
                Err(CommandError::BadJson)
            }
            _ => Ok(()),
        }
    }
}

fn publish_frame(channel: &ChannelName, payload: Payload, key: Option<String>, ephemeral: bool) -> Publish {
    let (data, data_base64) = payload.into_fields();
    Publish { channel: channel.as_str().to_owned(), data, data_base64, key, ephemeral }
}

const MAX_KEY_BYTES: usize = 128;

/// From a failure to get a token to the next try.
const TOKEN_RETRY: Duration = Duration::from_secs(5);
