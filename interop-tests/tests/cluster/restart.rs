//! An edge keeps sessions, and nothing of channels: what clients see of its end is a pause.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use http::StatusCode;
use serde_json::json;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::clients::{Collector, Event, Payload, curl};
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec, HOME};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{get, post, send};
use tokio::sync::Semaphore;

use crate::support::everyone;

const CHANNEL: &str = "room:away";

#[tokio::test(flavor = "multi_thread")]
async fn after_an_edge_restarts_everyone_comes_back_and_has_missed_nothing() -> Result<()> {
    let mut gateway = Gateway::dev("").await?;
    let browser = Browser::launch().await?;
    let mut collectors = everyone(&gateway, &browser, CHANNEL).await?;
    let before = gateway.publish(CHANNEL, json!("before")).await?;
    for collector in &mut collectors {
        collector.collect(1).await?;
    }

    for offset in 2..=3 {
        gateway.restart().await?;
        let position = gateway.publish(CHANNEL, json!(offset)).await?;
        let epoch = &before["epoch"];
        ensure!(position["epoch"] == *epoch && position["offset"] == offset, "{before}, then {position}");
        for collector in &mut collectors {
            let newest =
                |event: &Event| matches!(event, Event::Publication { offset: at, .. } if *at == offset);
            collector.until(newest).await?;
            ensure!(collector.rebased.is_empty(), "{} was rebased", collector.name());
        }
    }
    for collector in &mut collectors {
        let expected = [json!("before"), json!(2), json!(3)].map(Payload::Json);
        let received = collector.received[CHANNEL].iter().map(|(_, payload)| payload);
        ensure!(received.eq(&expected), "{}: {:?}", collector.name(), collector.received);
    }

    let old = Some((before["epoch"].as_str().context("an epoch")?.to_owned(), 1));
    let wishes = [(CHANNEL.to_owned(), old)];
    let mut collector = Collector::begin(curl(&gateway, &wishes), &wishes).await?;
    collector.collect(2).await?;
    ensure!(collector.rebased.is_empty(), "curl was rebased");
    Ok(())
}

/// Backends that publish through an edge while it ends: whatever was stored was acknowledged, and nothing was refused.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_ends_answers_every_backend_that_it_took_something_from() -> Result<()> {
    let spec = ClusterSpec { cores: 1, edges: vec![HOME, HOME], ..ClusterSpec::default() };
    let mut cluster = Cluster::start(spec).await?;
    let api = cluster.edges[0].addresses.api;
    let begun = Arc::new(Semaphore::new(0));
    let backends = (0..8).map(|n| {
        let begun = Arc::clone(&begun);
        async move {
            let body = json!({ "channel": format!("room:{n}"), "data": n }).to_string();
            let mut acknowledged = 0_u64;
            // Until nobody listens there.
            while let Ok(answer) = send(api, None, post("/v1/publish", body.clone())).await {
                ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
                acknowledged += 1;
                begun.add_permits(1);
            }
            Ok(acknowledged)
        }
    });
    let edge = &mut cluster.edges[0];
    let end = async {
        let _ = begun.acquire_many(100).await?;
        edge.terminate().await
    };
    let (acknowledged, end) = tokio::join!(try_join_all(backends), end);
    ensure!(end?.success(), "{}", cluster.edges[0].log());
    for (n, acknowledged) in acknowledged?.into_iter().enumerate() {
        let history = cluster.edges[1].api(get(&format!("/v1/channels/room:{n}/history"))).await?.json();
        ensure!(history["position"]["offset"] == acknowledged, "{acknowledged}, and {history}");
    }
    Ok(())
}
