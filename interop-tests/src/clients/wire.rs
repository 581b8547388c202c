//! A raw client that subscribes and listens: also over WebTransport without a browser, and by Protobuf over WebSocket.

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Event, Inbox, Payload, Wish};
use crate::gateway::Gateway;
use crate::raw::{Carrier, Raw, Received};

/// Connects and subscribes. It orders nothing: over QUIC and WebTransport it is for live publications.
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
    TaskTracker::new().spawn(stop.clone().run_until_cancelled_owned(listen(raw, sender)));
    Ok(Inbox::new(format!("wire {carrier}"), events, stop.drop_guard()))
}

async fn listen(mut raw: Raw, sender: mpsc::Sender<Result<Event>>) {
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
        for event in events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
        if ended {
            return;
        }
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
