//! What the app asks.

use std::time::Instant;

use tidegate_protocol::session::client;
use tokio::sync::mpsc;

use crate::client::{Command, Reply, SubscribeOptions};
use crate::{ClientError, Transport};

use super::queues::Queue;
use super::{Driver, Waiting, answer};

impl Driver {
    pub(super) fn handle_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Subscribe { channel, options, reply } => {
                if self.subscriptions.get(&channel).is_some_and(|queue| queue.sender.is_closed()) {
                    self.leave(&channel);
                    // The old one's end must not be taken for the new one's.
                    self.drain();
                }
                let SubscribeOptions { position, rank, presence } = options;
                let options = client::SubscribeOptions { rank, presence };
                let result = self.session.subscribe(now, channel.clone(), position, options).map(|()| {
                    let (queue, events) = mpsc::channel(self.queue);
                    self.subscriptions.insert(channel.clone(), Queue::new(queue, false));
                    events
                });
                if reply.send(result.map_err(ClientError::from)).is_err() {
                    self.leave(&channel);
                }
            }
            Command::Leave => self.leave_all_dropped(),
            Command::Publish { channel, payload, key, reply } => {
                let request = self.session.publish(&channel, payload, key);
                match request {
                    Ok(request) => drop(self.waiting.insert(request, Waiting::Publish(reply))),
                    Err(error) => answer(reply, Err(error.into())),
                }
            }
            Command::PublishEphemeral { channel, payload, reply } => {
                answer(reply, self.session.publish_ephemeral(&channel, payload).map_err(ClientError::from));
            }
            Command::History { channel, since, limit, reply } => {
                match self.session.history(&channel, since, limit) {
                    Ok(request) => drop(self.waiting.insert(request, Waiting::History(reply))),
                    Err(error) => answer(reply, Err(error.into())),
                }
            }
            Command::Presence { channel, reply } => match self.session.presence(&channel) {
                Ok(request) => drop(self.waiting.insert(request, Waiting::Presence(reply))),
                Err(error) => answer(reply, Err(error.into())),
            },
            Command::Refresh { token, reply } => match self.session.refresh(now, token) {
                Ok(request) => drop(self.waiting.insert(request, Waiting::Refresh(reply))),
                Err(error) => answer(reply, Err(error.into())),
            },
            Command::MoveTo { transport, reply } => self.move_to(now, transport, reply),
            Command::NetworkChanged { key } => self.handle_network_changed(now, key),
            Command::Memory { reply } => answer(reply, Ok(self.ladder.memory().clone())),
            Command::Close => self.session.close(now),
        }
    }

    fn move_to(&mut self, now: Instant, transport: Transport, reply: Reply<()>) {
        self.refuse_move("another move was asked for");
        let here = self
            .connections
            .used()
            .into_iter()
            .any(|attempt| self.connections.transport(attempt) == Some(transport));
        if self.ladder.move_to(now, transport.kind()) {
            self.moving = Some(reply);
        } else {
            let reason = if here {
                "it is there, or on its way"
            } else {
                "there is no such rung, or no connection to move"
            };
            answer(reply, Err(ClientError::NotMoved(reason.to_owned())));
        }
    }

    pub(super) fn handle_token(&mut self, now: Instant, token: Result<String, String>) {
        self.fetching = None;
        let taken =
            token.map_err(ClientError::Token).and_then(|token| Ok(self.session.refresh(now, token)?));
        match taken {
            Ok(request) => {
                self.waiting.insert(request, Waiting::Provider);
            }
            Err(error) => {
                tracing::debug!(%error, "no token");
                self.session.token_unavailable(now);
            }
        }
    }
}
