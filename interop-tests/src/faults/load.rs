//! Publishers that do not give up: each publication has a key, and is published again with it until the answer is certain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use tidegate_client::{Client, ClientError, Epoch, Offset, Payload, Position};
use tidegate_transport::clock;
use tokio::time::{sleep, timeout};

use crate::checker::Outcome;
use crate::http::{post, send};

/// Attempts that were refused, or got no answer. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals(Arc<AtomicU64>);

impl Refusals {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// How one attempt went.
enum Answer {
    Certain(Outcome),
    Again,
}

/// By the backend API that listens there.
pub(super) async fn by_api(
    api: SocketAddr,
    channel: String,
    payload: Payload,
    key: String,
    refusals: Refusals,
) -> Outcome {
    let Payload::Json(data) = payload else { return Outcome::Refused };
    let body = body(&channel, &data, &key);
    until_certain(|| {
        let (body, refusals) = (body.clone(), refusals.clone());
        async move {
            match timeout(ATTEMPT, ask(api, body)).await {
                Ok(Ok((StatusCode::OK, Some(position)))) => {
                    return Answer::Certain(Outcome::Acknowledged(position));
                }
                Ok(Ok((status, _)))
                    if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS =>
                {
                    refusals.add();
                    return Answer::Certain(Outcome::Refused);
                }
                Ok(Ok(_) | Err(_)) | Err(_) => refusals.add(),
            }
            Answer::Again
        }
    })
    .await
}

/// By a client of the SDK.
pub(super) async fn by_client(
    client: Client,
    channel: String,
    payload: Payload,
    key: String,
    refusals: Refusals,
) -> Outcome {
    until_certain(|| {
        let (client, refusals) = (client.clone(), refusals.clone());
        let (channel, payload, key) = (channel.clone(), payload.clone(), key.clone());
        async move {
            match client.publish_with_key(&channel, payload, key).await {
                Ok(position) => return Answer::Certain(Outcome::Acknowledged(position)),
                Err(ClientError::Invalid(why)) if why.contains("too many requests") => refusals.add(),
                Err(
                    ClientError::Refused { retry: false, .. }
                    | ClientError::Invalid(_)
                    | ClientError::Channel(_),
                ) => {
                    refusals.add();
                    return Answer::Certain(Outcome::Refused);
                }
                Err(ClientError::Ended | ClientError::Closed { .. }) => {
                    return Answer::Certain(Outcome::Unknown);
                }
                Err(_) => refusals.add(),
            }
            Answer::Again
        }
    })
    .await
}

async fn until_certain<F: Future<Output = Answer>>(mut attempt: impl FnMut() -> F) -> Outcome {
    let deadline = clock::now() + PATIENCE;
    while clock::now() < deadline {
        if let Answer::Certain(outcome) = attempt().await {
            return outcome;
        }
        sleep(PAUSE).await;
    }
    Outcome::Unknown
}

async fn ask(api: SocketAddr, body: Bytes) -> Result<(StatusCode, Option<Position>)> {
    let answer = send(api, None, post("/v1/publish", body)).await?;
    if answer.status != StatusCode::OK {
        return Ok((answer.status, None));
    }
    let position = &answer.json()["position"];
    let epoch = position["epoch"].as_str().context("no epoch")?;
    let offset = position["offset"].as_u64().context("no offset")?;
    Ok((answer.status, Some(Position::new(Epoch::new(epoch), Offset(offset)))))
}

/// The payload as it is: its bytes are looked at where it arrives.
fn body(channel: &str, data: &[u8], key: &str) -> Bytes {
    let mut body = format!(r#"{{"channel":{},"key":{},"data":"#, json!(channel), json!(key)).into_bytes();
    body.extend_from_slice(data);
    body.push(b'}');
    body.into()
}

/// Until an outcome is given up as unknown: longer than everything together may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// Above what an edge waits for an owner.
const ATTEMPT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(100);
