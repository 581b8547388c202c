//! The app's own server: publishes through the backend API at a steady rate, each channel in turn.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tidegate_client::{Epoch, Offset, Payload, Position};
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::Books;
use super::order::channel_name;
use crate::checker::{Attempt, Outcome, Recorder, payload};
use crate::http::{post, send};
use crate::wait::{PATIENCE, within};

/// Publishes until it is stopped.
#[derive(Debug)]
pub(in crate::bench) struct Backend {
    stop: CancellationToken,
    task: JoinSet<Published>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(in crate::bench) struct Published {
    /// By channel: where the last of it is.
    pub(in crate::bench) heads: Vec<Position>,
    /// Publications that were not acknowledged.
    pub(in crate::bench) failures: Vec<String>,
}

impl Backend {
    /// Begins; `per_second` over all channels.
    pub(in crate::bench) fn begin(books: &Books, api: SocketAddr, channels: u32, per_second: u32) -> Self {
        let recorder = books.recorder().clone();
        let stop = CancellationToken::new();
        let task = JoinSet::from_iter([publish(recorder, api, channels, per_second, stop.clone())]);
        Self { stop, task }
    }

    /// Publishes nothing more, and waits for the answers.
    pub(in crate::bench) async fn end(mut self) -> Result<Published> {
        self.stop.cancel();
        within(PATIENCE, "the answers to publishes", self.task.join_next())
            .await?
            .context("a publisher")?
            .context("the publisher")
    }
}

async fn publish(
    recorder: Recorder,
    api: SocketAddr,
    channels: u32,
    per_second: u32,
    stop: CancellationToken,
) -> Published {
    let mut published =
        Published { heads: vec![Position::default(); channels as usize], failures: Vec::new() };
    let batch = per_second.div_ceil(BATCHES).max(1);
    let mut ticks = interval(Duration::from_secs(1) * batch / per_second.max(1));
    let mut asked = JoinSet::new();
    let mut next = 0u64;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let chosen: Vec<(u32, u64)> = (next..next + u64::from(batch))
            .map(|id| (u32::try_from(id % u64::from(channels)).unwrap_or_default(), id))
            .collect();
        next += u64::from(batch);
        asked.spawn(ask(recorder.clone(), api, chosen));
        while let Some(answered) = asked.try_join_next() {
            published.note(answered.map_err(Into::into).flatten());
        }
    }
    while let Some(answered) = asked.join_next().await {
        published.note(answered.map_err(Into::into).flatten());
    }
    published
}

/// One batch, of channels and payload ids.
async fn ask(recorder: Recorder, api: SocketAddr, chosen: Vec<(u32, u64)>) -> Result<Vec<(u32, Position)>> {
    let publications: Vec<Value> =
        chosen.iter().map(|(channel, id)| publication(*channel, *id)).collect::<Result<_>>()?;
    let body = json!({ "publications": publications }).to_string();
    let invoke =
        |(channel, id): &(u32, u64)| recorder.invoke("the backend", &channel_name(*channel), false, *id);
    let attempts: Vec<Attempt> = chosen.iter().map(invoke).collect();
    let answer = send(api, None, post("/v1/publish", Bytes::from(body))).await?;
    ensure!(answer.status == StatusCode::OK, "publishing: {}: {}", answer.status, answer.text());
    let answer = answer.json();
    let results = answer["results"].as_array().context("no results")?;
    let mut positions = Vec::new();
    for (((channel, _), attempt), result) in chosen.iter().zip(attempts).zip(results) {
        let position = &result["position"];
        let epoch = position["epoch"].as_str().with_context(|| format!("refused: {result}"))?;
        let offset = position["offset"].as_u64().context("no offset")?;
        let position = Position::new(Epoch::new(epoch), Offset(offset));
        recorder.answer(attempt, Outcome::Acknowledged(position.clone()));
        positions.push((*channel, position));
    }
    Ok(positions)
}

fn publication(channel: u32, id: u64) -> Result<Value> {
    let Payload::Json(text) = payload(id, PAYLOAD) else { anyhow::bail!("payloads are JSON") };
    Ok(json!({ "channel": channel_name(channel), "data": serde_json::from_slice::<Value>(&text)? }))
}

impl Published {
    fn note(&mut self, answered: Result<Vec<(u32, Position)>>) {
        match answered {
            Ok(positions) => {
                for (channel, position) in positions {
                    let head = &mut self.heads[channel as usize];
                    if head.epoch != position.epoch || head.offset < position.offset {
                        *head = position;
                    }
                }
            }
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }
}

/// Bytes of a payload, about.
const PAYLOAD: usize = 100;
/// Of publications, a second, at most.
const BATCHES: u32 = 50;
