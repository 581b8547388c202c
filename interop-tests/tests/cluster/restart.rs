//! An edge keeps sessions, and nothing of channels: what clients see of its end is a pause.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::clients::{Collector, Event, Payload, curl};
use tidegate_interop_tests::gateway::Gateway;

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
