//! The fleet view: edges see each other come, work and go, whatever becomes of the cores between them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tidegate_interop_tests::clients::native;
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec};
use tidegate_interop_tests::gateway::{Gateway, run};
use tidegate_interop_tests::wait::until;
use tidegate_transport::clock;

#[tokio::test(flavor = "multi_thread")]
async fn edges_see_each_other_come_and_go() -> Result<()> {
    let config = "[admission]\nrate = 321\n";
    let spec =
        ClusterSpec { edges: vec!["eu", "us", "us"], config: config.to_owned(), ..ClusterSpec::default() };
    let mut cluster = Cluster::start(spec).await?;
    let all = ["edge-1", "edge-2", "edge-3"];
    for edge in &cluster.edges {
        let took = until_known(edge, &all).await?;
        ensure!(took < Duration::from_secs(2), "{took:?}");
    }
    let [first, second, _] = &mut cluster.edges[..] else { unreachable!("three were started") };
    let seen = edges(first).await?;
    let other = &seen["edge-2"];
    ensure!(other["region"] == "us" && other["state"] == "serving" && other["rate"] == 321, "{other}");
    let urls = other["endpoints"].as_array().context("a list")?;
    ensure!(urls.iter().any(|url| *url == second.url("quic").as_str()), "{other}");

    // Clients of one edge are seen at the others, and what it can take beyond them.
    let client = native(second, "quic", None, &[]).await?;
    until("one session is seen", || async {
        let seen = edges(first).await?;
        ensure!(seen["edge-2"]["sessions"] == 1 && seen["edge-1"]["sessions"] == 0, "{seen:?}");
        let slack = seen["edge-2"]["slack"].as_u64().context("slack")?;
        ensure!(slack <= 321, "{seen:?}");
        Ok(())
    })
    .await?;
    drop(client);
    // Cores tell the same, with what they count.
    let core = &cluster.cores[0];
    let told = core.status_json().await?;
    ensure!(by_name(&told).keys().map(String::as_str).eq(all), "{told}");
    let metrics = core.metrics().await?;
    ensure!(metrics.get("tidegate_core_edges") == Some(&3.0), "{metrics:?}");
    ensure!(first.metric("tidegate_edge_fleet_edges").await? == 3.0);
    let oldest = first.metric("tidegate_edge_fleet_oldest_seconds").await?;
    ensure!((0.0..5.0).contains(&oldest), "{oldest}");
    let shown = run(&["status", "--api", &format!("http://{}", first.addresses.api)]).await?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.contains("EDGE") && shown.contains("SLACK") && shown.contains("edge-3"), "{shown}");

    // One dies: its last word is forgotten in time. One ends: at once.
    let killed = clock::now();
    second.kill().await?;
    until_known(first, &["edge-1", "edge-3"]).await?;
    let took = clock::now() - killed;
    ensure!(took < Duration::from_secs(6), "killed, and known for {took:?}");
    let [first, second, third] = &mut cluster.edges[..] else { unreachable!("three were started") };
    let ended = clock::now();
    ensure!(third.terminate().await?.success(), "{}", third.log());
    until_known(first, &["edge-1"]).await?;
    let took = clock::now() - ended;
    ensure!(took < Duration::from_secs(3), "ended, and known for {took:?}");
    // Back again under its name: a new process, believed at once.
    second.start_again().await?;
    let took = until_known(first, &["edge-1", "edge-2"]).await?;
    ensure!(took < Duration::from_secs(2), "{took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_view_outlives_a_core_and_comes_back_with_all_of_them() -> Result<()> {
    let mut cluster = Cluster::start(ClusterSpec::default()).await?;
    let both = ["edge-1", "edge-2"];
    until_known(&cluster.edges[0], &both).await?;
    // With one core less everybody is heard through the other one, for longer than words are believed.
    cluster.core("core-1")?.kill().await?;
    let killed = clock::now();
    until("some time passes", || async {
        let seen = edges(&cluster.edges[0]).await?;
        ensure!(seen.len() == 2, "{seen:?}");
        ensure!(clock::now() - killed > Duration::from_secs(8), "not yet");
        Ok(())
    })
    .await?;
    cluster.core("core-1")?.start_again().await?;
    // Without any, each knows itself alone after a while.
    cluster.core("core-1")?.kill().await?;
    cluster.core("core-2")?.kill().await?;
    until_known(&cluster.edges[0], &["edge-1"]).await?;
    cluster.core("core-2")?.start_again().await?;
    for edge in &cluster.edges {
        until_known(edge, &both).await?;
    }
    Ok(())
}

/// Waits until an edge knows exactly these, by name; how long that took.
async fn until_known(edge: &Gateway, names: &[&str]) -> Result<Duration> {
    let began = clock::now();
    until(format!("{names:?} are known"), || async {
        let seen = edges(edge).await?;
        ensure!(seen.keys().map(String::as_str).eq(names.iter().copied()), "{seen:?}");
        Ok(())
    })
    .await?;
    Ok(clock::now() - began)
}

async fn edges(edge: &Gateway) -> Result<BTreeMap<String, Value>> {
    Ok(by_name(&edge.status_json().await?))
}

fn by_name(status: &Value) -> BTreeMap<String, Value> {
    let edges = status["edges"].as_array().into_iter().flatten();
    edges.filter_map(|edge| Some((edge["node"].as_str()?.to_owned(), edge.clone()))).collect()
}
