//! The subscriber in the laboratory's client namespace: `sdk/rust`, or `sdk/js` in Chromium.

use std::future::Future;
use std::pin::Pin;
use std::process::Stdio;
use std::task::Poll;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tidegate_client::{Client, ClientEvent, Payload, Subscription, SubscriptionEvent};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};

use super::cell::{Carrier, Cell};
use super::measure::{Arrival, FLOODED, Shared, channel, unix_us};
use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::programs;
use crate::wait::{PATIENCE, within};

/// Where and whom to connect to.
#[derive(Debug, Clone)]
pub(super) struct Where {
    quic: String,
    websocket: String,
    webtransport: String,
    certificate_hash: String,
}

impl Where {
    pub(super) async fn of(gateway: &Gateway) -> Result<Self> {
        let facts = gateway.facts().await?;
        let hash = facts["certificate_hash"].as_str().context("no hash of the certificate")?.to_owned();
        Ok(Self {
            quic: gateway.url("quic"),
            websocket: gateway.url("wss"),
            webtransport: format!("https://{}/v1/connect", gateway.addresses.quic),
            certificate_hash: hash,
        })
    }
}

/// A subscriber to every channel of a cell.
pub(super) enum Receiver {
    /// In this process, on a thread inside the namespace.
    Sdk {
        arrivals: mpsc::Receiver<Result<Arrival>>,
        reconnects: Shared<u64>,
        /// Ends it when dropped.
        _task: Pin<Box<dyn Future<Output = Result<()>> + Send>>,
    },
    /// A process in the namespace.
    Browser { lines: Box<Lines<BufReader<ChildStdout>>>, reconnects: u64, _child: Box<Child> },
}

/// Connects, subscribes, and waits until every subscription has begun.
pub(super) async fn start(lab: &Lab, cell: &Cell, place: &Where) -> Result<Receiver> {
    let mut channels: Vec<String> = (0..u64::from(cell.channels)).map(channel).collect();
    if cell.flood > 0 {
        channels.push(FLOODED.to_owned());
    }
    match cell.carrier {
        Carrier::Quic => start_sdk(lab, place.quic.clone(), place, channels).await,
        Carrier::WebSocket => start_sdk(lab, place.websocket.clone(), place, channels).await,
        Carrier::WebTransport => start_browser(lab, place, channels).await,
    }
}

impl Receiver {
    /// The next publication of a measured channel.
    pub(super) async fn next(&mut self) -> Result<Arrival> {
        match self {
            Self::Sdk { arrivals, .. } => arrivals.recv().await.context("the client ended")?,
            Self::Browser { lines, reconnects, .. } => loop {
                let line = lines.next_line().await?.context("the browser ended")?;
                let event: Value = serde_json::from_str(&line).context("the browser's line")?;
                match event["event"].as_str() {
                    Some("publication") => {
                        let name = event["channel"].as_str().unwrap_or_default();
                        let offset = event["offset"].as_u64().context("no offset")?;
                        let arrived = event["arrived_us"].as_u64().context("no time")?;
                        if let Some(arrival) = Arrival::new(name, offset, &event["data"], arrived)? {
                            return Ok(arrival);
                        }
                    }
                    Some("disconnected") => *reconnects += 1,
                    Some("rebased") => bail!("publications were lost: {line}"),
                    Some("error") => bail!("the browser: {line}"),
                    _ => {}
                }
            },
        }
    }

    /// How often the connection was lost.
    pub(super) fn reconnects(&self) -> u64 {
        match self {
            Self::Sdk { reconnects, .. } => {
                *reconnects.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
            }
            Self::Browser { reconnects, .. } => *reconnects,
        }
    }
}

async fn start_sdk(lab: &Lab, url: String, place: &Where, channels: Vec<String>) -> Result<Receiver> {
    let (sender, arrivals) = mpsc::channel(ARRIVALS);
    let (subscribed, begun) = oneshot::channel();
    let reconnects = Shared::<u64>::default();
    let (hash, lost) = (place.certificate_hash.clone(), Shared::clone(&reconnects));
    let failed = sender.clone();
    let task = lab.client().task(move || async move {
        if let Err(error) = follow(url, hash, channels, &sender, subscribed, lost).await {
            // Nobody may be listening any more.
            let _ = failed.send(Err(error)).await;
        }
    })?;
    let mut receiver = Receiver::Sdk { arrivals, reconnects, _task: Box::pin(task) };
    if within(PATIENCE, "the subscriptions", begun).await?.is_err() {
        // The reason is behind the first arrival.
        receiver.next().await?;
        bail!("the client ended before it was subscribed");
    }
    Ok(receiver)
}

/// Inside the namespace: connects, subscribes, passes on what comes.
async fn follow(
    url: String,
    hash: String,
    channels: Vec<String>,
    arrivals: &mpsc::Sender<Result<Arrival>>,
    subscribed: oneshot::Sender<()>,
    lost: Shared<u64>,
) -> Result<()> {
    let client = Client::builder(url).with_certificate_hash(hash).connect().await?;
    let mut events = client.take_events().context("the client's events")?;
    let mut subscriptions = Vec::new();
    for channel in &channels {
        subscriptions.push(client.subscribe(channel).await?);
    }
    let mut waiting = subscriptions.len();
    let mut subscribed = Some(subscribed);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(ClientEvent::Disconnected { .. }) => {
                    *lost.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += 1;
                }
                Some(_) => {}
                None => bail!("the session ended"),
            },
            (index, event) = next(&mut subscriptions) => {
                let arrived = unix_us();
                match event.context("a subscription ended")? {
                    SubscriptionEvent::Publication(publication) => {
                        let Payload::Json(text) = publication.payload else { bail!("not what was published") };
                        let offset = publication.position.offset.0;
                        let name = subscriptions[index].channel();
                        if name != FLOODED
                            && let Some(arrival) = Arrival::new(name, offset, &serde_json::from_slice(&text)?, arrived)?
                        {
                            arrivals.send(Ok(arrival)).await?;
                        }
                    }
                    SubscriptionEvent::Subscribed { .. } if waiting > 0 => {
                        waiting -= 1;
                        if waiting == 0 && let Some(subscribed) = subscribed.take() {
                            // Nobody waits where the measurement was given up.
                            let _ = subscribed.send(());
                        }
                    }
                    SubscriptionEvent::Rebased { .. } if subscriptions[index].channel() != FLOODED => {
                        bail!("publications of {} were lost", subscriptions[index].channel());
                    }
                    SubscriptionEvent::Unsubscribed { error } => bail!("a subscription ended: {error:?}"),
                    _ => {}
                }
            }
        }
    }
}

/// The next event of any subscription, and which one's.
async fn next(subscriptions: &mut [Subscription]) -> (usize, Option<SubscriptionEvent>) {
    std::future::poll_fn(|cx| {
        for (index, subscription) in subscriptions.iter_mut().enumerate() {
            if let Poll::Ready(event) = subscription.poll_next(cx) {
                return Poll::Ready((index, event));
            }
        }
        Poll::Pending
    })
    .await
}

async fn start_browser(lab: &Lab, place: &Where, channels: Vec<String>) -> Result<Receiver> {
    let settings = json!({
        "webtransport": place.webtransport,
        "certificateHash": place.certificate_hash,
        "channels": channels,
        "silent": FLOODED,
        "sdk": programs::root().join("sdk/js/src"),
    });
    let mut command = Command::from(lab.client().command(programs::node()));
    let mut child = command
        .arg(programs::file("browser/loss.mjs"))
        .arg(settings.to_string())
        .env("TIDEGATE_CHROMIUM", programs::chromium()?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting Node.js")?;
    let stdout = child.stdout.take().context("stdout")?;
    let mut lines = BufReader::new(stdout).lines();
    within(PATIENCE * 2, "the page's subscriptions", async {
        loop {
            let line = lines.next_line().await?.context("the browser ended before it was subscribed")?;
            let event: Value = serde_json::from_str(&line).context("the browser's line")?;
            match event["event"].as_str() {
                Some("ready") => return Ok(()),
                Some("error") => bail!("the browser: {line}"),
                _ => {}
            }
        }
    })
    .await??;
    Ok(Receiver::Browser { lines: Box::new(lines), reconnects: 0, _child: Box::new(child) })
}

/// Arrivals that wait to be counted.
const ARRIVALS: usize = 65_536;
