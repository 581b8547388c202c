//! Long poll where one answer in twenty is lost: each publication arrives once, in order.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_client::{Client, SubscriptionEvent};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{post, send};
use tidegate_interop_tests::programs;
use tidegate_interop_tests::wait::{PATIENCE, within};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::proxy::Lossy;
use crate::support::ROOMY;

/// Publishes, a few at a time so that they spread over many answers, and reads `offsets` until all have come.
async fn each_comes_once(gateway: &Gateway, proxy: &Lossy, offsets: &mut mpsc::Receiver<u64>) -> Result<()> {
    for expected in 1..=PUBLICATIONS {
        if expected % GROUP == 1 {
            for n in expected..expected + GROUP {
                gateway.publish("room:1", json!({ "n": n })).await?;
            }
        }
        let waited = within(PATIENCE, format!("offset {expected}"), offsets.recv()).await;
        let offset = waited.with_context(|| format!("{:?}", proxy.counts()))?;
        ensure!(offset == Some(expected), "{offset:?} instead of {expected}: {:?}", proxy.counts());
    }
    let counts = proxy.counts();
    ensure!(counts.lost >= 5, "too few were lost to prove anything: {counts:?}");
    ensure!(offsets.try_recv().is_err(), "more came than was published");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_client_loses_nothing_where_answers_are_lost() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let proxy = Lossy::to(gateway.addresses.plain, LOSS, 1).await?;
    let client = Client::builder(format!("http://{}", proxy.address)).connect().await?;
    let mut subscription = client.subscribe("room:1").await?;
    let begun = within(PATIENCE, "the subscription", subscription.next()).await?;
    ensure!(matches!(begun, Some(SubscriptionEvent::Subscribed { .. })), "{begun:?}");
    let (sender, mut offsets) = mpsc::channel(CHANNEL);
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        while let Some(event) = subscription.next().await {
            if let SubscriptionEvent::Publication(publication) = event
                && sender.send(publication.position.offset.0).await.is_err()
            {
                return;
            }
        }
    });
    each_comes_once(&gateway, &proxy, &mut offsets).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_client_loses_nothing_where_answers_are_lost() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let proxy = Lossy::to(gateway.addresses.plain, LOSS, 2).await?;
    let script = format!(
        "import {{ Client }} from {sdk:?};
         const client = new Client({{ longpoll: 'http://{address}/v1/poll' }}, {{ transports: ['longpoll'] }});
         const room = client.subscribe('room:1', {{
           onSubscribed: () => console.log('subscribed'),
           onPublication: ({{ offset }}) => console.log(String(offset)),
         }});
         await client.connect();",
        sdk = programs::root().join("sdk/js/src/index.js"),
        address = proxy.address,
    );
    let mut child = Command::new(programs::node())
        .args(["--input-type=module", "--eval", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting Node.js")?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let first = within(PATIENCE, "the subscription", lines.next_line()).await??;
    ensure!(first.as_deref() == Some("subscribed"), "{first:?}");
    let (sender, mut offsets) = mpsc::channel(CHANNEL);
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(offset) = line.parse() else { continue };
            if sender.send(offset).await.is_err() {
                return;
            }
        }
    });
    each_comes_once(&gateway, &proxy, &mut offsets).await
}

/// By the protocol alone: a request without an answer is sent again as it was (PROTOCOL §6.4).
#[tokio::test(flavor = "multi_thread")]
async fn batches_are_sent_again_until_they_are_acknowledged() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let proxy = Lossy::to(gateway.addresses.plain, LOSS, 3).await?;
    // The first answer names the session: a client that loses it begins another.
    let begin =
        json!({ "frames": [{ "id": 1, "connect": {} }, { "id": 2, "subscribe": { "channel": "room:1" } }] });
    let address = proxy.address;
    let mut answer = exchange(address, &begin).await;
    let (sender, mut offsets) = mpsc::channel(CHANNEL);
    let (subscribed, is_subscribed) = tokio::sync::oneshot::channel();
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        let mut subscribed = Some(subscribed);
        let mut ack = 0;
        loop {
            let batch = answer["batch"].as_u64().unwrap_or_default();
            // One that comes again was lost to nobody: it is the answer to this very request.
            assert!(batch == ack || batch == ack + 1, "batch {batch} after {ack}");
            for frame in answer["frames"].as_array().into_iter().flatten().filter(|_| batch > ack) {
                if frame["subscribed"].is_object() {
                    let _ = subscribed.take().map(|subscribed| subscribed.send(()));
                }
                if let Some(offset) = frame["publication"]["offset"].as_u64()
                    && sender.send(offset).await.is_err()
                {
                    return;
                }
            }
            ack = batch;
            let session = answer["session"].clone();
            answer = exchange(address, &json!({ "session": session, "ack": ack, "wait_ms": 5000 })).await;
        }
    });
    within(PATIENCE, "the subscription", is_subscribed).await??;
    each_comes_once(&gateway, &proxy, &mut offsets).await
}

async fn exchange(address: std::net::SocketAddr, request: &Value) -> Value {
    loop {
        if let Ok(answer) = send(address, None, post("/v1/poll", request.to_string())).await {
            return answer.json();
        }
    }
}

const PUBLICATIONS: u64 = 1000;
const GROUP: u64 = 5;
const LOSS: f64 = 0.05;
const CHANNEL: usize = 4096;
