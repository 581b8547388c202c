//! `curl` in a loop on the plain channel poll: a subscriber without a library and without a session.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Event, Inbox, Payload, Wish};
use crate::gateway::Gateway;

/// One loop for each channel.
pub fn curl(gateway: &Gateway, wishes: &[Wish]) -> Inbox {
    let (sender, events) = mpsc::channel(4096);
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    for (channel, position) in wishes {
        let url = format!("http://{}/v1/channels/{channel}/poll", gateway.addresses.plain);
        let looping = poll(url, channel.clone(), position.clone(), sender.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            let (error, sender) = looping.await;
            // The test has ended where nobody takes it.
            let _ = sender.send(Err(error)).await;
        }));
    }
    Inbox::new("curl", events, stop.drop_guard())
}

async fn poll(
    url: String,
    channel: String,
    mut position: Option<(String, u64)>,
    sender: mpsc::Sender<Result<Event>>,
) -> (anyhow::Error, mpsc::Sender<Result<Event>>) {
    let mut asked_before = false;
    loop {
        let query = match &position {
            None => String::new(),
            Some((epoch, offset)) => format!("?epoch={epoch}&offset={offset}&wait_ms=20000"),
        };
        let events = match get(&format!("{url}{query}")).await.and_then(|answer| read(&channel, &answer)) {
            Ok((next, events)) => {
                position = Some(next);
                events
            }
            Err(error) => return (error, sender),
        };
        for event in events {
            // A first answer, and one that does not go on from the last, say where the subscription stands.
            let news = matches!(event, Event::Subscribed { recovered, .. } if asked_before && recovered);
            if !news && sender.send(Ok(event)).await.is_err() {
                return (anyhow::anyhow!("the test has ended"), sender);
            }
        }
        asked_before = true;
    }
}

async fn get(url: &str) -> Result<Value> {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--max-time", "30", url])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.context("curl is missing: install it")?;
    ensure!(output.status.success(), "curl {url}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

type Position = (String, u64);

fn read(channel: &str, answer: &Value) -> Result<(Position, Vec<Event>)> {
    let epoch = answer["position"]["epoch"].as_str().with_context(|| answer.to_string())?.to_owned();
    let offset = answer["position"]["offset"].as_u64().context("an offset")?;
    let recovered = answer["recovered"].as_bool().context("recovered")?;
    let mut events =
        vec![Event::Subscribed { channel: channel.to_owned(), epoch: epoch.clone(), offset, recovered }];
    for publication in answer["publications"].as_array().context("publications")? {
        events.push(Event::Publication {
            channel: channel.to_owned(),
            offset: publication["offset"].as_u64().context("an offset")?,
            payload: Payload::of(publication)?,
        });
    }
    Ok(((epoch, offset), events))
}
