//! What was in memory alone is gone with the process, and everybody is told so.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::clients::{Collector, Event, curl};
use tidegate_interop_tests::gateway::Gateway;

use crate::support::everyone;

const CHANNEL: &str = "room:away";

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_everyone_comes_back_and_is_told_that_the_epoch_changed() -> Result<()> {
    let mut gateway = Gateway::dev("").await?;
    let browser = Browser::launch().await?;
    let mut collectors = everyone(&gateway, &browser, CHANNEL).await?;
    let before = gateway.publish(CHANNEL, json!("before")).await?;
    for collector in &mut collectors {
        collector.collect(1).await?;
    }

    tokio::time::timeout(Duration::from_secs(20), gateway.restart()).await.context("a restart")??;
    let after = gateway.publish(CHANNEL, json!("during")).await?;
    ensure!(after["epoch"] != before["epoch"], "the epoch is the same: {after}");
    for collector in &mut collectors {
        let event = collector.until(|event| matches!(event, Event::Subscribed { .. })).await?;
        let Event::Subscribed { epoch, offset, recovered, .. } = event else { unreachable!("just matched") };
        ensure!(
            !recovered && after["epoch"] == epoch && after["offset"] == offset,
            "{}: {epoch} {offset}",
            collector.name()
        );
        ensure!(collector.rebased == [CHANNEL], "{} was not told", collector.name());
    }
    let old = Some((before["epoch"].as_str().context("an epoch")?.to_owned(), 1));
    let wishes = [(CHANNEL.to_owned(), old)];
    let collector = Collector::begin(curl(&gateway, &wishes), &wishes).await?;
    ensure!(collector.rebased == [CHANNEL], "curl was not told");
    gateway.publish(CHANNEL, json!("after")).await?;
    for collector in &mut collectors {
        collector.collect(2).await?;
    }
    Ok(())
}
