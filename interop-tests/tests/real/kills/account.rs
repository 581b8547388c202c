//! What a client got and published, held against what is stored.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use http::StatusCode;
use serde_json::Value;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::get;

use super::load::Stored;
use super::{CHANNELS, channel};

/// One client's.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// By channel, what came, in the order in which it came: offset and number.
    pub(super) received: Vec<Vec<(u64, u64)>>,
    /// Its own publishes that were acknowledged: with the position that it was told.
    pub(super) acknowledged: Vec<Stored>,
    /// What should not happen.
    pub(super) problems: Vec<String>,
    /// For people.
    pub(super) summary: String,
}

/// The offsets of the channels' heads, when nobody publishes any more.
pub(super) async fn heads(gateway: &Gateway) -> Result<Vec<u64>> {
    let mut heads = Vec::new();
    for number in 0..CHANNELS {
        heads.push(history(gateway, number).await?.len() as u64);
    }
    Ok(heads)
}

/// Each publish is stored once, where its answer said; and the client has what is stored, each once and in order.
pub(super) async fn check(gateway: &Gateway, backend: &[Stored], account: &Account) -> Result<()> {
    ensure!(account.problems.is_empty(), "{:?}", account.problems);
    let mut expected: Vec<BTreeMap<u64, u64>> = vec![BTreeMap::new(); CHANNELS];
    for Stored { channel: number, n, offset } in backend.iter().chain(&account.acknowledged).copied() {
        if let Some(other) = expected[number].insert(offset, n) {
            bail!("{}: {other} and {n} were both told offset {offset}", channel(number));
        }
    }
    for (number, expected) in expected.into_iter().enumerate() {
        let name = channel(number);
        let stored = history(gateway, number).await?;
        let expected: Vec<_> = expected.into_iter().collect();
        same(&stored, &expected).with_context(|| format!("{name}: what is stored, and what was answered"))?;
        let received = account.received.get(number).context("a channel of the client")?;
        same(received, &stored).with_context(|| format!("{name}: what came, and what is stored"))?;
    }
    Ok(())
}

fn same(left: &[(u64, u64)], right: &[(u64, u64)]) -> Result<()> {
    if let Some(at) = left.iter().zip(right).position(|(left, right)| left != right) {
        let around = at.saturating_sub(2)..at + 3;
        let near = |list: &[(u64, u64)]| list[around.start..around.end.min(list.len())].to_vec();
        bail!("at {at}: {:?}, and {:?}", near(left), near(right));
    }
    ensure!(left.len() == right.len(), "{} and {} publications", left.len(), right.len());
    Ok(())
}

/// All of a channel's publications: offset and number, dense from 1.
async fn history(gateway: &Gateway, number: usize) -> Result<Vec<(u64, u64)>> {
    let name = channel(number);
    let answer = gateway.api(get(&format!("/v1/channels/{name}/history"))).await?;
    ensure!(answer.status == StatusCode::OK, "{name}: {} {}", answer.status, answer.text());
    let answer = answer.json();
    let publications = answer["publications"].as_array().context("publications")?;
    let stored = publications.iter().map(pair).collect::<Result<Vec<_>>>()?;
    let head = answer["position"]["offset"].as_u64().context("a head")?;
    let is_dense = stored.iter().map(|(offset, _)| *offset).eq(1..=head);
    ensure!(is_dense, "{name}: {} publications up to {head}", stored.len());
    Ok(stored)
}

fn pair(publication: &Value) -> Result<(u64, u64)> {
    let offset = publication["offset"].as_u64().context("offset")?;
    Ok((offset, publication["data"]["n"].as_u64().context("a number")?))
}
