//! The Rust SDK, over each of its transports.

use anyhow::{Result, anyhow};
use tidegate_client::{
    Builder, Client, ClientEvent, Epoch, Offset, Payload as Sent, Position, Subscription, SubscriptionEvent,
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{Event, Payload, Subscriber, Wish};
use crate::gateway::Gateway;

/// A client of the SDK.
#[derive(Debug)]
pub struct Native {
    name: String,
    /// To publish with, and to ask.
    pub client: Client,
    events: mpsc::Receiver<Result<Event>>,
    _stop: DropGuard,
}

impl Subscriber for Native {
    fn name(&self) -> &str {
        &self.name
    }

    fn events(&mut self) -> &mut mpsc::Receiver<Result<Event>> {
        &mut self.events
    }
}

/// Connects to `scheme://` of the gateway, and subscribes. Subscriptions that the server begins are taken up too.
///
/// # Errors
/// When it cannot connect, or a channel is refused.
pub async fn native(
    gateway: &Gateway,
    scheme: &str,
    token: Option<String>,
    wishes: &[Wish],
) -> Result<Native> {
    let builder = Client::builder(gateway.url(scheme)).with_ca_file(gateway.ca_file());
    native_of(scheme, token.into_iter().fold(builder, Builder::with_token), wishes).await
}

async fn native_of(name: &str, builder: Builder, wishes: &[Wish]) -> Result<Native> {
    let client = builder.connect().await?;
    let (sender, events) = mpsc::channel(4096);
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    if let Some(mut session) = client.take_events() {
        let (sender, stop, lanes) = (sender.clone(), stop.clone(), tasks.clone());
        let follow = async move {
            while let Some(event) = session.next().await {
                let event = match event {
                    ClientEvent::Subscribed(subscription) => {
                        lanes.spawn(
                            stop.clone().run_until_cancelled_owned(follow(subscription, sender.clone())),
                        );
                        continue;
                    }
                    ClientEvent::Disconnected { code, reason } => Ok(Event::Closed { code, reason }),
                    ClientEvent::Refused { code, message } => Err(anyhow!("refused with {code}: {message}")),
                    _ => continue,
                };
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        };
        tasks.spawn(follow);
    }
    for (channel, position) in wishes {
        let subscription = match position {
            None => client.subscribe(channel).await?,
            Some((epoch, offset)) => {
                let position = Position::new(Epoch::new(epoch), Offset(*offset));
                client.subscribe_from(channel, position).await?
            }
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(follow(subscription, sender.clone())));
    }
    Ok(Native { name: format!("native {name}"), client, events, _stop: stop.drop_guard() })
}

async fn follow(mut subscription: Subscription, sender: mpsc::Sender<Result<Event>>) {
    let channel = subscription.channel().to_owned();
    while let Some(event) = subscription.next().await {
        let channel = channel.clone();
        let event = match event {
            SubscriptionEvent::Subscribed { position, recovered } => {
                Ok(subscribed(channel, &position, recovered))
            }
            SubscriptionEvent::Rebased { position } => Ok(subscribed(channel, &position, false)),
            SubscriptionEvent::Publication(publication) => payload(publication.payload).map(|payload| {
                Event::Publication { channel, offset: publication.position.offset.0, payload }
            }),
            SubscriptionEvent::Ephemeral(ephemeral) => {
                payload(ephemeral.payload).map(|payload| Event::Ephemeral { channel, payload })
            }
            SubscriptionEvent::Unsubscribed { error } => Err(anyhow!("{channel} ended: {error:?}")),
            _ => continue,
        };
        if sender.send(event).await.is_err() {
            return;
        }
    }
}

fn subscribed(channel: String, position: &Position, recovered: bool) -> Event {
    Event::Subscribed {
        channel,
        epoch: position.epoch.as_str().to_owned(),
        offset: position.offset.0,
        recovered,
    }
}

fn payload(payload: Sent) -> Result<Payload> {
    Ok(match payload {
        Sent::Json(text) => Payload::Json(serde_json::from_slice(&text)?),
        Sent::Binary(bytes) => Payload::Binary(bytes.to_vec()),
    })
}
