//! Sans-io: what the app asks of a client's session.

use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::value::RawValue;

use crate::frame::{self, ClientBody, ClientFrame, CloseCode, HistoryRequest, Payload, Publish};
use crate::{ChannelName, Position};

use super::event::{CommandError, Event, RequestId};
use super::requests::Request;
use super::subscription::{Phase, Subscription};
use super::{Session, State};

impl Session {
    /// Asks for the first connection; nothing where it was asked for before.
    pub fn connect(&mut self, token: Option<String>) {
        if matches!(self.state, State::Idle) {
            self.token = token;
            self.dial();
        }
    }

    /// Joins a channel, after `position` or from its head.
    pub fn subscribe(
        &mut self,
        now: Instant,
        channel: ChannelName,
        position: Option<Position>,
    ) -> Result<(), CommandError> {
        self.check_alive()?;
        let bounds = self.hold_bounds();
        if let Some(subscription) = self.subscriptions.get_mut(channel.as_str()) {
            if let Phase::Leaving { request, again: false } = subscription.phase {
                *subscription = Subscription::new(channel, position, bounds);
                subscription.phase = Phase::Leaving { request, again: true };
                return Ok(());
            }
            if !subscription.server {
                return Err(CommandError::AlreadySubscribed);
            }
            return self.adopt(&channel, position);
        }
        if self.subscriptions.len() >= self.config.max_subscriptions {
            return Err(CommandError::TooManySubscriptions);
        }
        self.subscriptions.insert(channel.clone(), Subscription::new(channel, position, bounds));
        self.ask_waiting(now);
        Ok(())
    }

    /// Leaves a channel: none of its publications comes any more; `Unsubscribed` follows.
    pub fn unsubscribe(&mut self, channel: &ChannelName) -> Result<(), CommandError> {
        self.check_alive()?;
        let subscription = self.subscriptions.get_mut(channel).ok_or(CommandError::NotSubscribed)?;
        match &mut subscription.phase {
            Phase::Leaving { again, .. } => *again = false,
            Phase::Waiting { .. } => {
                self.subscriptions.remove(channel);
                self.events.push_back(Event::Unsubscribed { channel: channel.clone(), error: None });
            }
            Phase::Resyncing { request } => {
                subscription.phase = Phase::Leaving { request: *request, again: false }
            }
            Phase::Asked { .. } | Phase::Live => {
                let request = self.requests.add(Request::Unsubscribe(channel.clone()), true);
                subscription.clear_held();
                subscription.phase = Phase::Leaving { request, again: false };
            }
        }
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
        if matches!(self.state, State::Open { .. }) {
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

    /// Gives a new token; `Refreshed` follows. Without an open connection it serves the next one.
    pub fn refresh(&mut self, now: Instant, token: String) -> Result<RequestId, CommandError> {
        self.check_room()?;
        if matches!(self.state, State::Open { .. }) {
            return Ok(self.request(Request::Refresh(token)));
        }
        self.token = Some(token);
        let request = RequestId(self.requests.new_id());
        self.events.push_back(Event::Refreshed { request, result: Ok(()) });
        if let State::Tokenless { not_before, .. } = self.state {
            self.wait(now, not_before.saturating_duration_since(now));
        }
        Ok(request)
    }

    /// There is no token to be had now: asks again in a while.
    pub fn token_unavailable(&mut self, now: Instant) {
        match &mut self.state {
            State::Open { token_due, .. } => *token_due = Some(now + TOKEN_RETRY),
            State::Tokenless { ask_again, .. } => *ask_again = Some(now + TOKEN_RETRY),
            _ => {}
        }
    }

    /// Ends the session in order; `Ended` follows. What waits for an answer fails.
    pub fn close(&mut self, now: Instant) {
        match self.state {
            State::Closing { .. } | State::Ended => {}
            State::Open { .. } | State::Opening { connect: None, .. } => {
                self.state = State::Closing { until: now + self.config.close_timeout, done_sent: false };
                self.fail_requests();
            }
            _ => self.end(CloseCode::Done.number(), "closed by the app".to_owned()),
        }
    }

    /// The app asks for a subscription that the server began.
    fn adopt(&mut self, channel: &ChannelName, position: Option<Position>) -> Result<(), CommandError> {
        let subscription = self.subscriptions.get_mut(channel).ok_or(CommandError::NotSubscribed)?;
        subscription.server = false;
        match (position, subscription.phase, subscription.position.clone()) {
            (None, Phase::Live, Some(position)) => self.events.push_back(Event::Subscribed {
                channel: channel.clone(),
                position,
                recovered: false,
                was_recovering: false,
                server: false,
            }),
            (None, ..) => {}
            (Some(position), phase, _) => {
                subscription.position = Some(position);
                subscription.clear_held();
                if matches!(phase, Phase::Live | Phase::Asked { .. }) {
                    let request = self.requests.add(Request::Unsubscribe(channel.clone()), true);
                    subscription.phase = Phase::Leaving { request, again: true };
                } else if let Phase::Resyncing { request } = phase {
                    subscription.phase = Phase::Leaving { request, again: true };
                }
            }
        }
        Ok(())
    }

    fn request(&mut self, request: Request) -> RequestId {
        let send = self.is_usable();
        RequestId(self.requests.add(request, send))
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
