//! A raw client that subscribes and listens: also over WebTransport without a browser, and by Protobuf over WebSocket.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Event, Inbox, Payload, Wish};
use crate::gateway::Gateway;
use crate::raw::{Carrier, Raw, Received};

/// Connects and subscribes. Streams may overtake each other (PROTOCOL §4.2): publications are put in order by offset.
///
/// # Errors
/// When it is not let in.
pub async fn wire(gateway: &Gateway, carrier: Carrier, wishes: &[Wish]) -> Result<Inbox> {
    let mut raw = Raw::connect(gateway, carrier).await?;
    for (id, (channel, position)) in (2..).zip(wishes) {
        let mut subscribe = json!({ "channel": channel });
        if let Some((epoch, offset)) = position {
            subscribe["position"] = json!({ "epoch": epoch, "offset": offset });
        }
        raw.send(&json!({ "id": id, "subscribe": subscribe })).await?;
    }
    let (sender, events) = mpsc::channel(4096);
    let stop = CancellationToken::new();
    let order = Order::new(wishes);
    TaskTracker::new().spawn(stop.clone().run_until_cancelled_owned(listen(raw, order, sender)));
    Ok(Inbox::new(format!("wire {carrier}"), events, stop.drop_guard()))
}

async fn listen(mut raw: Raw, mut order: Order, sender: mpsc::Sender<Result<Event>>) {
    loop {
        let received = match raw.recv().await {
            Ok(received) => received,
            Err(error) => {
                // The test has ended where nobody takes it.
                let _ = sender.send(Err(error)).await;
                return;
            }
        };
        let (events, ended) = match received {
            Received::Closed { code, reason } => (vec![Ok(Event::Closed { code, reason })], true),
            Received::Frame(frame) if frame["ping"].is_object() => {
                let pong = raw.send(&json!({ "pong": {} })).await;
                (pong.err().map(Err).into_iter().collect(), false)
            }
            Received::Frame(frame) => (read(&frame), false),
        };
        for event in events.into_iter().flat_map(|event| order.push(event)) {
            if sender.send(event).await.is_err() {
                return;
            }
        }
        if ended {
            return;
        }
    }
}

/// Holds back what came too early. What comes twice or never is passed on as it is, for the test to judge.
struct Order {
    /// The last offset passed on, by channel that has begun.
    last: BTreeMap<String, u64>,
    /// The offset that was asked with.
    asked: BTreeMap<String, u64>,
    held: BTreeMap<String, BTreeMap<u64, Event>>,
}

impl Order {
    fn new(wishes: &[Wish]) -> Self {
        let asked =
            wishes.iter().filter_map(|(channel, position)| Some((channel.clone(), position.as_ref()?.1)));
        Self { last: BTreeMap::new(), asked: asked.collect(), held: BTreeMap::new() }
    }

    fn push(&mut self, event: Result<Event>) -> Vec<Result<Event>> {
        let (channel, mut out) = match event {
            Ok(Event::Publication { channel, offset, payload }) => {
                if self.last.get(&channel).is_some_and(|last| offset <= *last) {
                    return vec![Ok(Event::Publication { channel, offset, payload })];
                }
                let early = Event::Publication { channel: channel.clone(), offset, payload };
                if let Some(twice) = self.held.entry(channel.clone()).or_default().insert(offset, early) {
                    return vec![Ok(twice)];
                }
                (channel, Vec::new())
            }
            Ok(Event::Subscribed { channel, epoch, offset, recovered }) => {
                let from =
                    if recovered { self.asked.get(&channel).copied().unwrap_or(offset) } else { offset };
                self.last.insert(channel.clone(), from);
                (channel.clone(), vec![Ok(Event::Subscribed { channel, epoch, offset, recovered })])
            }
            other => return vec![other],
        };
        if let (Some(last), Some(held)) = (self.last.get_mut(&channel), self.held.get_mut(&channel)) {
            while let Some(next) = held.remove(&(*last + 1)) {
                *last += 1;
                out.push(Ok(next));
            }
        }
        out
    }
}

fn read(frame: &Value) -> Vec<Result<Event>> {
    if let Some(error) = frame.get("error") {
        return vec![Err(anyhow!("{error}"))];
    }
    if let Some(publication) = frame.get("publication") {
        return vec![self::publication(publication)];
    }
    if let Some(item) = frame.get("ephemeral") {
        let channel = item["channel"].as_str().unwrap_or_default().to_owned();
        return vec![Payload::of(item).map(|payload| Event::Ephemeral { channel, payload })];
    }
    let Some(subscribed) = frame.get("subscribed") else { return Vec::new() };
    let begun = Event::Subscribed {
        channel: subscribed["channel"].as_str().unwrap_or_default().to_owned(),
        epoch: subscribed["position"]["epoch"].as_str().unwrap_or_default().to_owned(),
        offset: subscribed["position"]["offset"].as_u64().unwrap_or_default(),
        recovered: subscribed["recovered"].as_bool().unwrap_or_default(),
    };
    let missed = subscribed["publications"].as_array().into_iter().flatten().map(publication);
    std::iter::once(Ok(begun)).chain(missed).collect()
}

fn publication(publication: &Value) -> Result<Event> {
    Ok(Event::Publication {
        channel: publication["channel"].as_str().unwrap_or_default().to_owned(),
        offset: publication["offset"].as_u64().unwrap_or_default(),
        payload: Payload::of(publication)?,
    })
}
