//! Sans-io: what a client's session makes of the server's frames.

use std::time::{Duration, Instant};

use rand::RngExt;

use crate::ChannelName;
use crate::frame::{
    self, Close, CloseCode, Connected, ErrorCode, ErrorReply, Publication, ServerBody, Subscribed,
    Unsubscribed,
};

use super::event::{Event, History, RequestError, RequestId, SessionError};
use super::requests::Request;
use super::subscription::{Need, Phase, Subscription};
use super::{Session, State};

impl Session {
    pub(super) fn handle_connected(
        &mut self,
        now: Instant,
        connected: Connected,
    ) -> Result<(), SessionError> {
        let State::Opening { early, .. } = &mut self.state else {
            return Err(SessionError::AlreadyConnected);
        };
        let early = std::mem::take(early);
        self.state = State::Open {
            heard: now,
            silence: Duration::from_millis(connected.ping_ms.min(MAX_PING_MS)) * 2,
            token_due: connected.expires_ms.map(|ms| token_due(now, ms)),
        };
        self.backoff.handle_connected(now);
        self.ticket = connected.resume;
        self.events.push_back(Event::Connected {
            session: connected.session,
            user: connected.user,
            node: connected.node,
            region: connected.region,
        });
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
            let mut subscription = Subscription::new(name.clone(), None, self.hold_bounds());
            subscription.server = true;
            let need = subscription.handle_subscribed(now, subscribed, false, &mut self.events)?;
            self.subscriptions.insert(name.clone(), subscription);
            self.meet(&name, if missed_early { Need::Resync } else { need });
        }
        for publication in early {
            self.handle_publication(now, publication);
        }
        Ok(())
    }

    pub(super) fn handle_publication(&mut self, now: Instant, publication: Publication) {
        let Some(subscription) = self.subscriptions.get_mut(publication.channel.as_str()) else {
            if let State::Opening { early, .. } = &mut self.state
                && early.len() < MAX_EARLY
            {
                early.push(publication);
            }
            return;
        };
        let need = subscription.handle_publication(now, publication, &mut self.events);
        if need != Need::Nothing {
            let channel = subscription.channel().clone();
            self.meet(&channel, need);
        }
    }

    pub(super) fn handle_ephemeral(&mut self, ephemeral: frame::Ephemeral) {
        let subscription = self.subscriptions.get(ephemeral.channel.as_str());
        if let Some(subscription) = subscription.filter(|one| !matches!(one.phase, Phase::Leaving { .. })) {
            self.events.push_back(Event::Ephemeral { channel: subscription.channel().clone(), ephemeral });
        }
    }

    /// `subscribed` without an id: continuity of a live subscription was lost.
    pub(super) fn handle_rebased(
        &mut self,
        now: Instant,
        subscribed: Subscribed,
    ) -> Result<(), SessionError> {
        let Some(subscription) = self.subscriptions.get_mut(subscribed.channel.as_str()) else {
            return Ok(());
        };
        let need = subscription.handle_rebased(now, subscribed, &mut self.events)?;
        let channel = subscription.channel().clone();
        self.meet(&channel, need);
        Ok(())
    }

    /// `unsubscribed` without an id: the server ended it.
    pub(super) fn handle_unsubscribed(&mut self, unsubscribed: Unsubscribed) {
        let Some(subscription) = self.subscriptions.get(unsubscribed.channel.as_str()) else { return };
        if matches!(subscription.phase, Phase::Live | Phase::Resyncing { .. }) {
            let channel = subscription.channel().clone();
            self.remove_subscription(&channel, unsubscribed.error);
        }
    }

    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        id: u64,
        body: ServerBody,
    ) -> Result<(), SessionError> {
        // A second answer, to a request that was sent twice, says nothing new.
        let Some(request) = self.requests.answer(id) else { return Ok(()) };
        let request_id = RequestId(id);
        match (request, body) {
            (Request::Subscribe(channel, _), ServerBody::Subscribed(subscribed)) => {
                return self.handle_asked(now, id, &channel, subscribed);
            }
            (Request::Subscribe(channel, _), ServerBody::Error(error)) => {
                self.handle_not_subscribed(now, id, &channel, error);
            }
            // An error as well: then there was no such subscription.
            (Request::Unsubscribe(channel), ServerBody::Unsubscribed(_) | ServerBody::Error(_)) => {
                self.handle_left(now, id, &channel);
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
            (Request::Refresh(token), ServerBody::Refreshed(refreshed)) => {
                self.token = Some(token);
                if let State::Open { token_due: due, .. } = &mut self.state {
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

    pub(super) fn handle_asked(
        &mut self,
        now: Instant,
        id: u64,
        channel: &ChannelName,
        subscribed: Subscribed,
    ) -> Result<(), SessionError> {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return Ok(()) };
        if subscription.phase == (Phase::Asked { request: id }) {
            subscription.attempts = 0;
            let need = subscription.handle_subscribed(now, subscribed, true, &mut self.events)?;
            self.meet(channel, need);
        }
        Ok(())
    }

    pub(super) fn handle_not_subscribed(
        &mut self,
        now: Instant,
        id: u64,
        channel: &ChannelName,
        error: ErrorReply,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return };
        if subscription.phase != (Phase::Asked { request: id }) {
            return;
        }
        subscription.clear_held();
        subscription.attempts = subscription.attempts.saturating_add(1);
        if error.retry {
            let bound =
                SUBSCRIBE_RETRY.saturating_mul(1 << subscription.attempts.min(6)).min(SUBSCRIBE_RETRY_CAP);
            let delay = bound.mul_f64(self.rng.random_range(0.0..1.0));
            subscription.phase = Phase::Waiting { retry_at: Some(now + delay) };
        } else if error.code == ErrorCode::Conflict.number() && subscription.attempts == 1 {
            // The server has one that this side knows nothing of: begin anew, once.
            let request = self.requests.add(Request::Unsubscribe(channel.clone()), true);
            subscription.phase = Phase::Leaving { request, again: true };
        } else {
            self.remove_subscription(channel, Some(error));
        }
    }

    pub(super) fn handle_left(&mut self, now: Instant, id: u64, channel: &ChannelName) {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return };
        match subscription.phase {
            Phase::Leaving { request, again: false } if request == id => {
                self.remove_subscription(channel, None)
            }
            Phase::Leaving { request, .. } | Phase::Resyncing { request } if request == id => {
                subscription.reset();
                self.ask_waiting(now);
            }
            _ => {}
        }
    }

    pub(super) fn handle_close(&mut self, now: Instant, close: Close) {
        let reconnect = close.reconnect.unwrap_or_else(|| frame::Reconnect {
            policy: CloseCode::policy_of(close.code).into(),
            after_ms: None,
        });
        let after = Duration::from_millis(reconnect.after_ms.unwrap_or(0).min(MAX_AFTER_MS));
        self.end_connection(now, close.code, close.reason, reconnect.policy(), after);
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
const MAX_AFTER_MS: u64 = 600_000;
