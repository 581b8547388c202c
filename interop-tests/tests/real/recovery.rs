//! What was missed comes, exactly; where it cannot, that is told.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::clients::{
    Collector, Subscriber, Wish, curl, from_heads, native, node_ws, python_web_socket, python_web_transport,
    wire,
};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::raw::Carrier;

use crate::support::{ROOMY, payload, publication};

const CHANNEL: &str = "room:away";

/// One of every kind, beginning after a position.
async fn everyone(gateway: &Gateway, browser: &Browser, wishes: &[Wish]) -> Result<Vec<Box<dyn Subscriber>>> {
    let mut clients: Vec<Box<dyn Subscriber>> = Vec::new();
    for transport in ["webtransport", "websocket", "longpoll"] {
        clients.push(Box::new(browser.subscribe(gateway, transport, wishes).await?));
    }
    for scheme in ["quic", "wss", "https"] {
        clients.push(Box::new(native(gateway, scheme, None, wishes).await?));
    }
    for carrier in Carrier::ALL {
        clients.push(Box::new(wire(gateway, carrier, wishes).await?));
    }
    clients.push(Box::new(python_web_socket(gateway, wishes).await?));
    clients.push(Box::new(node_ws(gateway, wishes).await?));
    clients.push(Box::new(python_web_transport(gateway, wishes).await?));
    clients.push(Box::new(curl(gateway, wishes)));
    Ok(clients)
}

fn position(position: &serde_json::Value) -> Result<(String, u64)> {
    let epoch = position["epoch"].as_str().context("an epoch")?.to_owned();
    Ok((epoch, position["offset"].as_u64().context("an offset")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_gets_exactly_what_it_missed() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let browser = Browser::launch().await?;
    // Small ones fit in the answer; the large ones behind them must come by frames of their own.
    let mut all: Vec<_> = (0..40).map(payload).collect();
    let text = "x".repeat(6_000);
    all.extend(
        (0..40).map(|n| tidegate_interop_tests::clients::Payload::Json(json!({ "n": n, "text": text }))),
    );
    let bodies: Vec<_> = all.iter().map(|payload| publication(CHANNEL, payload)).collect();
    let positions = gateway.publish_batch(&bodies).await?;
    for seen in [3, 79] {
        let wishes = [(CHANNEL.to_owned(), Some(position(&positions[seen - 1])?))];
        for client in everyone(&gateway, &browser, &wishes).await? {
            let mut collector = Collector::begin(client, &wishes).await?;
            collector.collect(all.len() - seen).await.context("what was missed")?;
            let received: Vec<_> = collector.received[CHANNEL].iter().map(|(_, payload)| payload).collect();
            ensure!(
                received == all[seen..].iter().collect::<Vec<_>>(),
                "{}: other payloads",
                collector.name()
            );
            ensure!(collector.rebased.is_empty(), "{} was rebased", collector.name());
        }
    }
    // At the head nothing was missed, and what is new follows.
    let wishes = [(CHANNEL.to_owned(), Some(position(&positions[79])?))];
    let mut collectors = Vec::new();
    for client in everyone(&gateway, &browser, &wishes).await? {
        collectors.push(Collector::begin(client, &[]).await?);
    }
    for collector in &mut collectors {
        collector.at.insert(CHANNEL.to_owned(), position(&positions[79])?);
    }
    gateway.publish(CHANNEL, json!("new")).await?;
    for collector in &mut collectors {
        collector.collect(1).await?;
        ensure!(collector.rebased.is_empty(), "{} was rebased", collector.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn past_history_a_subscriber_is_told_and_begins_at_the_head() -> Result<()> {
    let gateway = Gateway::dev("[namespaces.default]\nhistory_count = 10\n").await?;
    let browser = Browser::launch().await?;
    let bodies: Vec<_> = (0..30).map(|n| json!({ "channel": CHANNEL, "data": n })).collect();
    let positions = gateway.publish_batch(&bodies).await?;
    let (epoch, _) = position(&positions[0])?;
    let unreachable = [(epoch.clone(), 5), ("another".to_owned(), 29), (epoch.clone(), 99)];
    for (published, from) in (30..).zip(unreachable) {
        let wishes = [(CHANNEL.to_owned(), Some(from.clone()))];
        let mut collectors = Vec::new();
        for client in everyone(&gateway, &browser, &wishes).await? {
            let collector = Collector::begin(client, &wishes).await?;
            ensure!(collector.rebased == [CHANNEL], "{} was not told at {from:?}", collector.name());
            ensure!(
                collector.at[CHANNEL] == (epoch.clone(), published),
                "{} stands at {:?}, the head is {published}",
                collector.name(),
                collector.at[CHANNEL]
            );
            collectors.push(collector);
        }
        gateway.publish(CHANNEL, json!("new")).await?;
        for collector in &mut collectors {
            collector.collect(1).await.with_context(|| format!("after {from:?}"))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_loses_its_network_fills_the_gap() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let browser = Browser::launch().await?;
    let wishes = from_heads(&[CHANNEL]);
    for (index, transport) in ["webtransport", "websocket", "longpoll"].into_iter().enumerate() {
        let client = browser.subscribe(&gateway, transport, &wishes).await?;
        let mut collector = Collector::begin(client, &wishes).await?;
        gateway.publish(CHANNEL, json!("before")).await?;
        collector.collect(1).await?;
        let page = Browser::page(transport, index);
        browser.evaluate(&page, "client.disconnect({ holdMs: 600 })").await?;
        let closed = collector.closed().await?;
        ensure!(closed == 4108, "{transport}: closed with {closed}");
        for n in 0..20 {
            gateway.publish(CHANNEL, json!({ "while": "away", "n": n })).await?;
        }
        collector.collect(21).await?;
        ensure!(collector.rebased.is_empty(), "{transport} was rebased");
        let used = browser
            .evaluate(&page, "const used = client.transport; await client.close(); return used")
            .await?;
        ensure!(used == transport, "it came back by {used}");
    }
    Ok(())
}
