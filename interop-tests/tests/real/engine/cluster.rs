//! Three servers, and what is left of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use tidegate_core::engine::{ClusterEvent, Engine as _, NatsConfig, NatsEngine, NodeRecord};
use tidegate_interop_tests::nats::NatsCluster;
use tidegate_protocol::NodeId;
use tidegate_transport::clock;
use tokio::time::timeout;

use super::{PARTITION, append, frame, read};

/// The leader of the log dies between appends and comes back; the next one dies too.
#[tokio::test]
async fn nats_loses_nothing_when_a_leader_dies() -> Result<()> {
    let mut cluster = NatsCluster::start().await?;
    let engine = NatsEngine::connect(config(&cluster), 1).await?;
    let mut membership = engine.join(record("a")).await?;
    let mut watch = engine.watch().await?;
    let mut claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
    let mut written = 0;
    for _ in 0..2 {
        for _ in 0..200 {
            written += 1;
            append(&engine, &mut claim, frame(written)).await?;
        }
        let leader = leader(&cluster).await?;
        let killed = clock::now();
        cluster.named(&leader)?.kill().await?;
        for _ in 0..50 {
            written += 1;
            append(&engine, &mut claim, frame(written)).await?;
        }
        within_an_election(killed)?;
        cluster.named(&leader)?.restart().await?;
    }
    ensure!(claim.tail().0 == written, "{claim:?}");
    let expected: Vec<_> = (1..=written).map(frame).collect();
    ensure!(read(&engine, 1).await == expected, "another log than was acknowledged");
    let other = NatsEngine::connect(config(&cluster), 1).await?;
    ensure!(read(&other, 1).await == expected, "another node reads another log");

    // The lease may have ended meanwhile, and is told about either way; a watch that broke says so.
    if membership.renew().await.is_err() {
        membership = engine.join(record("a")).await?;
    }
    while let Ok(Some(event)) = timeout(Duration::from_millis(500), watch.next()).await {
        ensure!(!matches!(event, ClusterEvent::Node { record: None, id } if id.as_str() != "a"));
    }
    let mut watch = other.watch().await?;
    loop {
        match timeout(PATIENCE, watch.next()).await?.context("a new watch holds")? {
            ClusterEvent::Node { id, record } if id.as_str() == "a" && record.is_some() => break,
            ClusterEvent::Synced => anyhow::bail!("a live node was not told"),
            _ => {}
        }
    }
    membership.leave().await;
    Ok(())
}

/// The leader of the log stops without closing its connections, and wakes when another leads: what it still had is not
/// stored twice, and what it had not is not missing.
#[tokio::test]
async fn nats_goes_on_without_a_leader_that_fell_silent() -> Result<()> {
    let mut cluster = NatsCluster::start().await?;
    let engine = NatsEngine::connect(config(&cluster), 1).await?;
    let mut claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
    append(&engine, &mut claim, frame(1)).await?;
    let leader = leader(&cluster).await?;
    cluster.named(&leader)?.pause().await?;
    let since = clock::now();
    for n in 2..=20 {
        append(&engine, &mut claim, frame(n)).await?;
    }
    within_an_election(since)?;
    cluster.named(&leader)?.resume()?;
    for n in 21..=40 {
        append(&engine, &mut claim, frame(n)).await?;
    }
    let expected: Vec<_> = (1..=40).map(frame).collect();
    ensure!(read(&engine, 1).await == expected, "another log than was acknowledged");
    Ok(())
}

fn within_an_election(since: Instant) -> Result<()> {
    let took = clock::now().duration_since(since);
    ensure!(took < PATIENCE, "no leader for {took:?}");
    Ok(())
}

/// Which server leads the log.
async fn leader(cluster: &NatsCluster) -> Result<String> {
    let jetstream = jetstream::new(async_nats::connect(cluster.urls()).await?);
    let stream = jetstream.get_stream("tidegate-test-log-0").await?;
    let info = stream.cached_info().cluster.as_ref().context("it is replicated")?;
    info.leader.clone().context("it has a leader")
}

fn config(cluster: &NatsCluster) -> NatsConfig {
    NatsConfig {
        servers: cluster.urls(),
        region: "test".to_owned(),
        replicas: 3,
        connect_timeout: PATIENCE,
        ..NatsConfig::default()
    }
}

fn record(name: &str) -> NodeRecord {
    NodeRecord {
        id: NodeId::new(name),
        address: "[::1]:1".to_owned(),
        version: "1".to_owned(),
        started_ms: 1,
        declines: Vec::new(),
    }
}

/// Elections take 4 to 9 s.
const PATIENCE: Duration = Duration::from_secs(25);
