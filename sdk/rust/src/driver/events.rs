//! What the session says, and what the app hears of it.

use tidegate_fallback::ladder::AttemptId;
use tidegate_protocol::frame::{CloseCode, Join, Leave, ReconnectPolicy};
use tidegate_protocol::hint::Hint;
use tidegate_protocol::session::client::{Event, RequestId, TokenNeed};
use tidegate_protocol::{ConnectionId, Offset, Position};
use tidegate_transport::clock;

use crate::ClientError;
use crate::client::{ClientEvent, History, Publication, State, SubscriptionEvent};

use super::{Driver, Waiting, answer};

impl Driver {
    pub(super) fn handle_event(&mut self, event: Event) {
        let now = clock::now();
        match event {
            Event::Dial => {
                self.dial_error = None;
                self.destination.want(self.session.target().host.clone());
                self.state.send_replace(State::Connecting);
                self.ladder.dial(now);
            }
            Event::Suspect { connection } => self.handle_suspect(now, attempt(connection)),
            Event::Goaway { endpoint, .. } => self.go_away(now, endpoint),
            Event::GoawayIgnored { endpoint, .. } => {
                tracing::warn!(endpoint, "the server wants to send the session where it has no right to");
                self.tell(ClientEvent::GoawayIgnored { endpoint });
            }
            Event::Heard { connection } => self.ladder.handle_heard(now, attempt(connection)),
            Event::RoundTrip { connection, round_trip } => {
                self.ladder.handle_round_trip(now, attempt(connection), round_trip);
            }
            Event::Moved { connection } => self.handle_moved(attempt(connection)),
            Event::MoveFailed { connection, code, reason } => {
                tracing::debug!(code, reason, "not moved");
                self.ladder.handle_lost(now, attempt(connection), code != CloseCode::ConnectionLost.number());
                self.connections.remove(attempt(connection));
                self.refuse_move(&reason);
            }
            Event::Release { connection } => self.release(now, attempt(connection)),
            Event::Connected { connection, session, resumed, user, node, region } => {
                self.session_id.send_replace(Some(session));
                self.last_close = None;
                if self.connected.is_some() {
                    // `Moved` follows, or came before.
                    return;
                }
                self.connected = Some(attempt(connection));
                let Some(transport) = self.connections.transport(attempt(connection)) else { return };
                self.ladder.handle_connected(now, attempt(connection));
                self.destination.settle();
                self.state.send_replace(State::Connected { transport });
                if let Some(first) = self.first.take() {
                    answer(first, Ok(()));
                }
                let early = resumed && self.accepted_early == Some(attempt(connection));
                self.tell(ClientEvent::Connected { transport, resumed, early, user, node, region });
            }
            Event::Subscribed { channel, position, recovered, was_recovering, server } => {
                if server && !self.subscriptions.contains_key(&channel) {
                    self.hand_over(&channel);
                }
                let event = if was_recovering && !recovered {
                    SubscriptionEvent::Rebased { position }
                } else {
                    SubscriptionEvent::Subscribed { position, recovered }
                };
                self.deliver(channel, event);
            }
            Event::Publication { channel, position, publication } => {
                let publication = Publication::new(position, publication);
                self.deliver(channel, SubscriptionEvent::Publication(publication));
            }
            Event::Ephemeral { channel, ephemeral } => {
                self.deliver_at_most_once(&channel, SubscriptionEvent::Ephemeral(ephemeral.into()));
            }
            Event::Join { channel, join: Join { user, time_ms, .. } } => {
                self.deliver_presence(&channel, SubscriptionEvent::Join { user, time_ms });
            }
            Event::Leave { channel, leave: Leave { user, time_ms, .. } } => {
                self.deliver_presence(&channel, SubscriptionEvent::Leave { user, time_ms });
            }
            Event::PresenceGap { channel } => {
                self.deliver_presence(&channel, SubscriptionEvent::PresenceGap);
            }
            Event::Unsubscribed { channel, error } => {
                let error = error.map(ClientError::from);
                self.deliver(channel.clone(), SubscriptionEvent::Unsubscribed { error });
                self.subscriptions.remove(&channel);
            }
            Event::Published { request, result } => {
                if let Some(Waiting::Publish(reply)) = self.waiting.remove(&request) {
                    answer(reply, result.map_err(ClientError::from));
                }
            }
            Event::History { request, result } => {
                if let Some(Waiting::History(reply)) = self.waiting.remove(&request) {
                    answer(reply, result.map(history).map_err(ClientError::from));
                }
            }
            Event::Presence { request, result } => {
                if let Some(Waiting::Presence(reply)) = self.waiting.remove(&request) {
                    answer(reply, result.map(Into::into).map_err(ClientError::from));
                }
            }
            Event::Refreshed { request, result } => {
                self.handle_refreshed(request, result.map_err(ClientError::from))
            }
            Event::Error(error) => {
                self.tell(ClientEvent::Refused { code: error.code, message: error.message });
            }
            Event::Closed { code, reason, .. } => self.handle_closed(code, reason),
            Event::Reconnect { delay } => self.tell(ClientEvent::Reconnecting { delay }),
            Event::NeedToken(need) => match &self.provider {
                Some(provider) => self.fetching = Some(provider()),
                // The app may still call `refresh` before it expires; once refused, there is nothing to wait for.
                None if need == TokenNeed::Expiring => {}
                None => self.session.close(clock::now()),
            },
            Event::Ended { code, reason } => self.handle_ended(code, reason),
        }
    }

    fn handle_moved(&mut self, attempt: AttemptId) {
        let Some(transport) = self.connections.transport(attempt) else { return };
        self.ladder.handle_connected(clock::now(), attempt);
        if let Some(endpoint) = self.destination.arrived(attempt) {
            tracing::debug!(endpoint = &*endpoint, "left the server that asked for it");
        }
        if self.connected.is_some_and(|before| before != attempt) {
            self.connected = Some(attempt);
            self.state.send_replace(State::Connected { transport });
            self.tell(ClientEvent::Moved { transport });
        }
        if let Some(reply) = self.moving.take() {
            answer(reply, Ok(()));
        }
    }

    fn handle_refreshed(&mut self, request: RequestId, result: Result<(), ClientError>) {
        match (self.waiting.remove(&request), result) {
            (Some(Waiting::Refresh(reply)), result) => answer(reply, result),
            (Some(Waiting::Provider), Err(ClientError::Refused { code, message, .. })) => {
                self.session.token_unavailable(clock::now());
                self.tell(ClientEvent::Refused { code, message });
            }
            _ => {}
        }
    }

    fn handle_closed(&mut self, code: u32, reason: String) {
        let now = clock::now();
        self.connected = None;
        self.early = None;
        for attempt in self.connections.used() {
            self.connections.remove(attempt);
            self.ladder.handle_lost(now, attempt, code != CloseCode::ConnectionLost.number());
        }
        // Whatever is still dialled is not what it wants next.
        self.ladder.stop();
        self.refuse_move("the connection was lost");
        self.state.send_replace(State::Connecting);
        tracing::debug!(code, reason, "the connection ended");
        // Who has a place has no failure to tell of.
        let comes_back = CloseCode::policy_of(code) == ReconnectPolicy::Backoff;
        let has_place = comes_back && (self.session.slot(now).is_some() || Hint::parse(&reason).is_some());
        if let Some(first) = self.first.take_if(|_| !has_place) {
            let error = self.dial_error.take().map(ClientError::from);
            answer(first, Err(error.unwrap_or_else(|| ClientError::Closed { code, reason: reason.clone() })));
            self.session.close(now);
        }
        self.last_close = Some((code, reason.clone()));
        self.tell(ClientEvent::Disconnected { code, reason });
    }

    fn handle_ended(&mut self, code: u32, reason: String) {
        self.ended = true;
        self.ladder.stop();
        // Where the end only says that no token was to be had, why is in what came before.
        let (code, reason) = self.last_close.take().unwrap_or((code, reason));
        self.state.send_replace(State::Closed { code, reason: reason.clone() });
        if let Some(first) = self.first.take() {
            answer(first, Err(ClientError::Closed { code, reason: reason.clone() }));
        }
        self.tell(ClientEvent::Closed { code, reason });
    }
}

fn attempt(connection: ConnectionId) -> AttemptId {
    AttemptId(connection.0)
}

fn history(history: tidegate_protocol::session::client::History) -> History {
    let epoch = history.position.epoch.clone();
    let publications = history.publications.into_iter().map(|publication| {
        let position = Position::new(epoch.clone(), Offset(publication.offset));
        Publication::new(position, publication)
    });
    History { publications: publications.collect(), position: history.position, recovered: history.recovered }
}
