//! `serve` with the engine `local`: killed under load, without room on its disk, and with files that are not what it wrote.

mod crash;
mod damage;
mod disk;
mod full;

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use serde_json::{Value, json};
use tidegate_client::{Epoch, Offset, Position};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{Answer, get, post};

/// Everybody may do everything, and nothing is lost to bounds.
const OPEN: &str = "[auth]\nanonymous = true\n[namespaces.default]\npublish = \"anyone\"\nsubscribe = \"anyone\"\n\
                    history_count = 100000\nhistory_bytes = \"256MiB\"\nhistory_age = \"1h\"\n";

/// Publishes `{"n": n}`, with so many bytes beside it.
async fn publish(gateway: &Gateway, channel: &str, n: u64, size: usize) -> Result<Answer> {
    let data = json!({ "n": n, "filling": "x".repeat(size) });
    gateway.api(post("/v1/publish", json!({ "channel": channel, "data": data }).to_string())).await
}

/// The position in an answer that tells one.
fn position(answer: &Answer) -> Result<Position> {
    ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
    let position = &answer.json()["position"];
    let epoch = position["epoch"].as_str().with_context(|| answer.text())?;
    Ok(Position::new(Epoch::new(epoch), Offset(position["offset"].as_u64().context("no offset")?)))
}

/// The head of a channel, and the numbers of all that it holds: dense from offset 1. Answers hold the newest that fit one.
async fn history(gateway: &Gateway, channel: &str) -> Result<(Position, Vec<u64>)> {
    let mut answer = gateway.api(get(&format!("/v1/channels/{channel}/history"))).await?;
    let head = position(&answer)?;
    let (mut numbers, mut next) = (Vec::new(), head.offset.0);
    while next > 0 {
        let page = answer.json();
        let publications = page["publications"].as_array().context("no publications")?;
        ensure!(!publications.is_empty(), "{next} of {head:?} is not there");
        for publication in publications.iter().rev() {
            let (offset, number) = (&publication["offset"], &publication["data"]["n"]);
            ensure!(offset.as_u64() == Some(next), "{offset} where {next} is to be");
            numbers.push(number.as_u64().with_context(|| format!("no number: {publication}"))?);
            next -= 1;
        }
        if next > 0 {
            let before = next + 1;
            answer = gateway.api(get(&format!("/v1/channels/{channel}/history?before={before}"))).await?;
        }
    }
    numbers.reverse();
    Ok((head, numbers))
}

/// What an answer says that refuses.
fn refusal(answer: &Answer) -> Value {
    answer.json()["error"].clone()
}
