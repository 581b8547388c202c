//! What operators can ask for, at any node, and what can happen meanwhile.

use std::collections::BTreeSet;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use tidegate_interop_tests::cluster::HOME;
use tidegate_interop_tests::gateway::{Gateway, run};
use tidegate_interop_tests::http::{get, send};
use tidegate_interop_tests::raw::{Carrier, Raw};
use tidegate_interop_tests::wait::until;

use super::{
    EACH, Load, connections, crowd, crowd_of, drain, drained, endpoint, gone, have_all, ordered, slow, spec,
    start,
};

/// `DELETE`, or `POST` to something below.
async fn change(edge: &Gateway, method: Method, rest: &str) -> Result<Value> {
    let request = Request::builder().method(method).uri(format!("/v1/drain{rest}")).body(Full::default())?;
    let answer = edge.api(request).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(answer.json())
}

/// What a node says of itself.
async fn look(edge: &Gateway) -> Result<Value> {
    Ok(edge.api(get("/v1/drain")).await?.json()["drain"].clone())
}

async fn until_moved(edge: &Gateway, at_least: u64) -> Result<()> {
    until("some have moved", || async {
        let progress = look(edge).await?;
        ensure!(progress["moved"].as_u64() >= Some(at_least), "{progress}");
        Ok(())
    })
    .await
}

/// Runs `tidegate` against the API of a node.
async fn tidegate(edge: &Gateway, arguments: &[&str]) -> Result<(Output, String)> {
    let api = format!("http://{}", edge.addresses.api);
    let output = run(&[arguments, &["--api", &api]].concat()).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output, text))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_goes_by_one_order_to_a_core_and_comes_back_when_it_is_called_off() -> Result<()> {
    let cluster = start(slow(vec![HOME, HOME, "us"])).await?;
    let [first, second, away] = &cluster.edges[..] else { anyhow::bail!("three edges") };
    let (mut ours, mut others) = (crowd(first).await?, crowd(second).await?);
    let load = Load::of(&mut ours, away);
    let core = cluster.cores.first().context("a core")?;
    let refused = send(core.api, None, tidegate_interop_tests::http::post("/v1/drain", "{}")).await?;
    ensure!(refused.status == 400 && refused.text().contains("core"), "{}", refused.text());
    let begun = ordered(core.api, &json!({ "region": HOME, "within": "60s" })).await?;
    let drains = begun["drains"].as_array().context("drains")?;
    let named: Vec<&Value> = drains.iter().map(|drain| &drain["node"]).collect();
    ensure!(named == [&json!("edge-1"), &json!("edge-2")], "{begun}");
    let numbers: BTreeSet<u64> = drains.iter().filter_map(|drain| drain["drain"].as_u64()).collect();
    ensure!(numbers.len() == 1 && begun["drain"] == Value::Null, "{begun}");
    until_moved(first, 2).await?;
    until_moved(second, 2).await?;
    // Any node knows of both.
    let seen = away.api(get("/v1/drain")).await?.json();
    ensure!(seen["drains"].as_array().is_some_and(|drains| drains.len() == 2), "{seen}");
    let stopped = change(away, Method::DELETE, &format!("?region={HOME}")).await?;
    ensure!(stopped["failed"] == json!([]), "{stopped}");
    let mut remaining = 0;
    for edge in [first, second] {
        let progress = until("it serves as before", || async {
            let progress = look(edge).await?;
            ensure!(progress["state"] == "aborted" && progress["forced"] == 0, "{progress}");
            ensure!(edge.api(get("/readyz")).await?.status == 200);
            Ok(progress)
        })
        .await?;
        remaining += progress["remaining"].as_u64().context("remaining")?;
    }
    // One of the two may have been done: which comes first at the target is not settled.
    ensure!(remaining > 0, "everybody had gone before it was called off");
    let there = connections(first).await? + connections(second).await?;
    ensure!(there > 0.0, "everybody had gone before it was called off");
    let published = load.end().await?;
    have_all(&mut ours, published).await?;
    have_all(&mut others, published).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_paused_asks_nobody_and_goes_on_where_it_was() -> Result<()> {
    let cluster = start(slow(vec![HOME; 2])).await?;
    let [from, to] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    let mut crowd = crowd(from).await?;
    let load = Load::of(&mut crowd, to);
    ordered(to.addresses.api, &json!({ "node": "edge-1", "within": "60s" })).await?;
    until_moved(from, 1).await?;
    change(to, Method::POST, "/pause?all=true").await?;
    let paused = until("those who were asked are gone", || async {
        let progress = look(from).await?;
        ensure!(progress["state"] == "paused" && progress["in_flight"] == 0, "{progress}");
        Ok(progress)
    })
    .await?;
    ensure!(paused["remaining"].as_u64() > Some(0) && paused["rate"] == 0.0, "{paused}");
    // An order for the same node while it is paused is another deadline, and nothing more.
    let again = ordered(from.addresses.api, &json!({ "within": "90s" })).await?;
    ensure!(again["drain"]["drain"].as_u64() >= paused["drain"].as_u64(), "{again}");
    until("the newer order holds", || async {
        let progress = look(from).await?;
        ensure!(progress["within_ms"] == 90_000 && progress["state"] == "paused", "{progress}");
        Ok(())
    })
    .await?;
    change(from, Method::POST, "/resume").await?;
    let progress = drained(from).await?;
    ensure!(gone(&progress)? == crowd.len() && progress["forced"] == 0, "{progress}");
    let published = load.end().await?;
    have_all(&mut crowd, published).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_dies_meanwhile_is_left_out() -> Result<()> {
    let mut cluster = start(slow(vec![HOME; 3])).await?;
    let mut dies = cluster.edges.remove(1);
    let [from, stays] = &cluster.edges[..] else { anyhow::bail!("two more edges") };
    // By TCP they notice at once that it is gone.
    let mut crowd = crowd_of(from, &["wss", "https"], EACH).await?;
    let load = Load::of(&mut crowd, stays);
    drain(from, &[], "90s").await?;
    until("somebody is at the edge that dies", || async {
        let there = connections(&dies).await?;
        ensure!(there >= 1.0, "{there}");
        Ok(())
    })
    .await?;
    dies.kill().await?;
    // Also those who were half-way there.
    until("all of them are at the edge that stays", || async {
        let (left, there) = (connections(from).await?, connections(stays).await?);
        ensure!(left == 0.0 && there == crowd.len() as f64, "{left} left, {there} there");
        Ok(())
    })
    .await?;
    let progress = look(from).await?;
    ensure!(progress["targets"] == json!([endpoint(stays)]), "{progress}");
    let published = load.end().await?;
    for collector in &mut crowd {
        // Those who were there lost that connection.
        while collector.count() < published {
            collector.next().await?;
        }
        ensure!(collector.count() == published && collector.rebased.is_empty(), "{}", collector.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said_and_changes_nothing() -> Result<()> {
    let cluster = start(spec(2)).await?;
    let [first, second] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    let client = Raw::connect(first, Carrier::WebSocket).await?;
    for (order, status, what) in [
        (json!({ "node": "edge-7" }), 404, "edge-1"),
        (json!({ "region": "moon" }), 404, "moon"),
        (json!({ "region": HOME }), 409, "another region"),
        (json!({ "node": "edge-1", "to": ["edge-1"] }), 409, "`to`"),
        (json!({ "node": "edge-1", "to": ["http://edge-2"] }), 400, "https://"),
        (json!({ "node": "edge-1", "within": "1ms" }), 400, "1s to 24h"),
    ] {
        let answer = second.api(tidegate_interop_tests::http::post("/v1/drain", order.to_string())).await?;
        ensure!(answer.status == status && answer.text().contains(what), "{order}: {}", answer.text());
    }
    // A dry run says who would go where.
    let plan = ordered(second.addresses.api, &json!({ "node": "edge-1", "dry_run": true })).await?;
    let targets = plan["targets"].as_array().context("targets")?;
    ensure!(targets.len() == 1 && targets[0]["node"] == "edge-2" && plan["fits"] == true, "{plan}");
    let (output, text) = tidegate(second, &["drain", "--node", "edge-1", "--dry-run"]).await?;
    ensure!(
        output.status.success() && text.contains("edge-2") && text.contains("Nothing was done"),
        "{text}"
    );
    for edge in [first, second] {
        ensure!(look(edge).await? == Value::Null && edge.api(get("/readyz")).await?.status == 200);
    }
    drop(client);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_it_to_the_end_and_says_how_it_went() -> Result<()> {
    let cluster = start(slow(vec![HOME; 2])).await?;
    let [from, to] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    let mut crowd = crowd(from).await?;
    let load = Load::of(&mut crowd, to);
    let (output, text) = tidegate(to, &["drain", "status"]).await?;
    ensure!(output.status.success() && text == "no edge is drained\n", "{text}");
    let (output, text) = tidegate(to, &["drain"]).await?;
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && text.is_empty() && problem.contains("--node"), "{problem}");

    // Called off while it is watched.
    let watched = tidegate(to, &["drain", "--node", "edge-1", "--within", "60s"]);
    let called_off = async {
        until_moved(from, 2).await?;
        let (output, text) = tidegate(from, &["drain", "abort"]).await?;
        ensure!(output.status.success() && text == "called off: edge-1\n", "{text}");
        anyhow::Ok(())
    };
    let (watched, called_off) = tokio::join!(watched, called_off);
    called_off?;
    let (output, text) = watched?;
    ensure!(output.status.code() == Some(4) && text.contains("called off"), "{}: {text}", output.status);

    // To the end. Those who went stay away, so there are fewer.
    let (output, text) = tidegate(to, &["drain", "--node", "edge-1", "--within", "60s"]).await?;
    ensure!(output.status.code() == Some(0), "{}: {text}", output.status);
    let last = text.lines().rev().nth(1).context("a summary")?;
    ensure!(last.starts_with("edge-1: done after") && last.contains(" 0 were closed by force"), "{text}");
    ensure!(text.contains("Drained: edge-1."), "{text}");
    let (output, text) = tidegate(to, &["drain", "status", "--once"]).await?;
    ensure!(output.status.success() && text.contains("edge-1: ") && text.contains("done"), "{text}");
    ensure!(connections(from).await? == 0.0);
    let published = load.end().await?;
    have_all(&mut crowd, published).await?;

    // Who cannot move is closed when the time is over, at the latest: that is said, too.
    change(from, Method::DELETE, "").await?;
    let old = Raw::connect(from, Carrier::WebSocket).await?;
    let (output, text) = tidegate(to, &["drain", "--node", "edge-1", "--within", "3s", "--json"]).await?;
    let end: Value = serde_json::from_str(text.lines().last().context("a line")?)?;
    ensure!(end["closed"].as_u64() == Some(1) && end["over"] == true, "{end}");
    ensure!(output.status.code() == Some(0), "{}: {end}", output.status);
    drop(old);
    Ok(())
}
