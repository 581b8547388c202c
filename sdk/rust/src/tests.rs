//! The client against tiny servers that live in the tests, one per transport.

mod ladder;
mod longpoll;
mod outage;
mod quic;
mod websocket;

use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::frame::{
    self, ClientBody, ClientFrame, Connected, Published, ServerBody, ServerFrame, Subscribed, Unsubscribed,
};
use tidegate_protocol::plan::ReconnectPlan;

use crate::{ClientEvent, Events, Payload, Position, Publication, Subscription, SubscriptionEvent};

/// What a server of one channel answers.
#[derive(Debug, Default)]
struct Gateway {
    log: Vec<Bytes>,
    keys: Vec<(String, u64)>,
    /// In the order in which they came.
    seen: Vec<ClientFrame>,
    /// Told in `connected`.
    plan: Option<ReconnectPlan>,
}

impl Gateway {
    /// The answer on the control lane, and what goes out live.
    fn handle(&mut self, frame: ClientFrame) -> (Option<ServerFrame>, Option<ServerFrame>) {
        self.seen.push(frame.clone());
        let id = frame.id;
        let (answer, live) = match frame.body.expect("a body") {
            ClientBody::Connect(_) => {
                let connected = Connected {
                    session: "0".repeat(32),
                    ping_ms: 25_000,
                    node: "tiny".to_owned(),
                    plan: self.plan.clone(),
                    ..Connected::default()
                };
                (ServerBody::Connected(connected), None)
            }
            ClientBody::Subscribe(subscribe) => {
                let from = subscribe.position.as_ref().map(|position| position.offset);
                let publications = from
                    .into_iter()
                    .flat_map(|from| from + 1..=self.head())
                    .map(|offset| self.publication(offset));
                let subscribed = Subscribed {
                    channel: subscribe.channel,
                    position: Some(self.position(self.head())),
                    recovered: from.is_some(),
                    publications: publications.collect(),
                    conflated: false,
                };
                (ServerBody::Subscribed(subscribed), None)
            }
            ClientBody::Unsubscribe(unsubscribe) => {
                (ServerBody::Unsubscribed(Unsubscribed { channel: unsubscribe.channel, error: None }), None)
            }
            ClientBody::Publish(publish) if publish.ephemeral => {
                let ephemeral = frame::Ephemeral {
                    channel: publish.channel,
                    data_base64: publish.data_base64,
                    ..frame::Ephemeral::default()
                };
                return (None, Some(ServerFrame::new(0, ServerBody::Ephemeral(ephemeral))));
            }
            ClientBody::Publish(publish) => {
                let key = publish.key.expect("durable publishes have keys");
                let known = self.keys.iter().find(|(known, _)| *known == key).map(|(_, offset)| *offset);
                let live = match known {
                    Some(_) => None,
                    None => Some(self.append(publish.data_base64.expect("bytes"))),
                };
                let offset = known.unwrap_or_else(|| self.head());
                self.keys.push((key, offset));
                let position = Some(self.position(offset));
                (ServerBody::Published(Published { channel: publish.channel, position }), live)
            }
            ClientBody::Ping(_) => (ServerBody::Pong(frame::Empty {}), None),
            ClientBody::Pong(_) => return (None, None),
            ClientBody::Done(_) => (ServerBody::Close(frame::CloseCode::Done.frame("bye")), None),
            other => panic!("unexpected {other:?}"),
        };
        (Some(ServerFrame::new(id, answer)), live)
    }

    fn append(&mut self, data: Bytes) -> ServerFrame {
        self.log.push(data);
        ServerFrame::new(0, ServerBody::Publication(self.publication(self.head())))
    }

    fn head(&self) -> u64 {
        self.log.len() as u64
    }

    fn position(&self, offset: u64) -> frame::Position {
        frame::Position { epoch: "e".to_owned(), offset }
    }

    fn publication(&self, offset: u64) -> frame::Publication {
        frame::Publication {
            channel: "room".to_owned(),
            offset,
            data_base64: Some(self.log[offset as usize - 1].clone()),
            ..frame::Publication::default()
        }
    }
}

fn bytes(text: &str) -> Payload {
    Payload::Binary(Bytes::from(text.to_owned()))
}

/// Fails instead of waiting for ever.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it does not come")
}

async fn next(subscription: &mut Subscription) -> SubscriptionEvent {
    soon(subscription.next()).await.expect("an event")
}

/// The next publication's offset and text.
async fn next_publication(subscription: &mut Subscription) -> (u64, String) {
    loop {
        match next(subscription).await {
            SubscriptionEvent::Publication(Publication {
                position: Position { offset, .. },
                payload,
                ..
            }) => {
                let Payload::Binary(data) = payload else { panic!("{payload:?}") };
                return (offset.0, String::from_utf8(data.to_vec()).expect("text"));
            }
            SubscriptionEvent::Subscribed { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

async fn disconnected(events: &mut Events) -> (u32, String) {
    loop {
        match soon(events.next()).await.expect("an event") {
            ClientEvent::Disconnected { code, reason } => return (code, reason),
            ClientEvent::Closed { .. } => panic!("closed"),
            _ => {}
        }
    }
}
