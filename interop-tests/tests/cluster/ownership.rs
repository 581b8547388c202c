//! Cores come and go: who owns what follows, and no edge is taken for unready.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec};
use tidegate_interop_tests::http::{get, send};
use tidegate_interop_tests::wait::until;
use tidegate_transport::clock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_leaves_hands_over_everything_and_edges_stay_ready() -> Result<()> {
    let mut cluster = Cluster::start(ClusterSpec { cores: 3, ..ClusterSpec::default() }).await?;
    for n in 0..32 {
        cluster.edges[0].publish(&format!("room:{n}"), json!(n)).await?;
    }
    let before = cluster.owners().await?;
    let owned = before.iter().filter(|owner| owner.as_deref() == Some("core-2")).count();
    ensure!(owned > 0, "{before:?}");
    // Nodes that start together may claim the same.
    let fenced = [fences(&cluster, "core-1").await?, fences(&cluster, "core-3").await?];
    let watch = Watch::begin(cluster.edges.iter().map(|edge| edge.addresses.api).collect());

    // Also those by which nodes that start together settle.
    let handed_over = |log: String| log.matches("handed over").count();
    let earlier = handed_over(cluster.core("core-2")?.log());
    let began = clock::now();
    let ended = cluster.core("core-2")?.terminate().await?;
    let took = clock::now() - began;
    ensure!(ended.success(), "{ended:?}: {}", cluster.core("core-2")?.log());
    // `limits.shutdown`, and what is left of queues.
    ensure!(took < Duration::from_secs(12), "{took:?}");
    let log = cluster.core("core-2")?.log();
    ensure!(handed_over(log.clone()) - earlier == owned, "{owned} partitions: {log}");
    cluster.until_served().await?;
    ensure!(cluster.owners().await?.iter().all(|owner| owner.as_deref() != Some("core-2")), "it owns some");

    // Back again, it gets what it had, in order.
    cluster.core("core-2")?.start_again().await?;
    until("every partition is where it was", || async {
        let owners = cluster.owners().await?;
        ensure!(owners == before, "{owners:?}");
        Ok(())
    })
    .await?;
    cluster.until_served().await?;
    ensure!(fences(&cluster, "core-1").await? == fenced[0], "core-1 lost a partition");
    ensure!(fences(&cluster, "core-3").await? == fenced[1], "core-3 lost a partition");
    for n in 0..32 {
        let position = cluster.edges[1].publish(&format!("room:{n}"), json!(n)).await?;
        ensure!(position["offset"] == 2, "{position}");
    }
    ensure!(watch.end().await? == 0, "an edge was not ready");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_death_of_a_core_all_is_served_within_seconds() -> Result<()> {
    let mut cluster = Cluster::start(ClusterSpec { cores: 3, ..ClusterSpec::default() }).await?;
    for n in 0..32 {
        cluster.edges[0].publish(&format!("room:{n}"), json!(n)).await?;
    }
    let killed = clock::now();
    cluster.core("core-1")?.kill().await?;
    // All at once: what its other partitions wait for is waited for once. Edges hold it until there is an owner.
    let publishes: Vec<Value> = (0..32)
        .map(|n| json!({ "channel": format!("room:{n}"), "data": n, "key": format!("k{n}") }))
        .collect();
    let answers = cluster.edges[1].publish_batch(&publishes).await?;
    let took = clock::now() - killed;
    ensure!(answers.iter().all(|answer| answer["offset"] == 2), "{answers:?}");
    // The lease of 3 s, the claims, the links; and machines of tests are slow.
    ensure!(took < Duration::from_secs(5), "{took:?}");
    println!("served again {took:?} after the death");
    let status = cluster.status().await?;
    let region = &status["regions"][0];
    ensure!(region["ready"] == true && region["engine"] == "nats", "{status}");
    let version = region["engine_version"].as_str().context("of the servers")?;
    ensure!(version.starts_with("2."), "{version}");
    Ok(())
}

/// Partitions that a core had to stop at once.
async fn fences(cluster: &Cluster, name: &str) -> Result<u64> {
    let core = cluster.cores.iter().find(|core| core.name() == name).context("no such core")?;
    let fences = core.metrics().await?.get("tidegate_core_fences_total").copied();
    // A counter.
    Ok(fences.context("not counted")? as u64)
}

/// Asks edges again and again whether they are ready.
struct Watch {
    stop: CancellationToken,
    task: JoinHandle<Result<usize>>,
}

impl Watch {
    fn begin(edges: Vec<SocketAddr>) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = TaskTracker::new().spawn(async move {
            let mut unready = 0;
            while !stopped.is_cancelled() {
                for edge in &edges {
                    let answer = send(*edge, None, get("/readyz")).await?;
                    unready += usize::from(!answer.status.is_success());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(unready)
        });
        Self { stop, task }
    }

    /// How often one was not.
    async fn end(self) -> Result<usize> {
        self.stop.cancel();
        self.task.await?
    }
}
