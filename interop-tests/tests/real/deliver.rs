//! Every kind of client gets every publication of its channels, in order, none twice.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::clients::{
    Collector, Event, Payload, Subscriber, curl, from_heads, native, node_ws, python_web_socket,
    python_web_transport, wire,
};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::post;
use tidegate_interop_tests::raw::Carrier;

use crate::support::{ROOMY, payload, publication};

const CHANNELS: usize = 20;
const PUBLICATIONS: usize = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_publications_reach_every_kind_of_client_in_order_and_once() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let browser = Browser::launch().await?;
    let names: Vec<String> = (0..CHANNELS).map(|index| format!("room:{index}")).collect();
    let wishes = from_heads(&names);

    let mut clients: Vec<Box<dyn Subscriber>> = Vec::new();
    for transport in ["webtransport", "websocket", "longpoll"] {
        clients.push(Box::new(browser.subscribe(&gateway, transport, &wishes).await?));
    }
    for scheme in ["quic", "webtransport", "wss", "ws", "https", "http"] {
        clients.push(Box::new(native(&gateway, scheme, None, &wishes).await?));
    }
    for carrier in [Carrier::WebTransport, Carrier::WebSocketProto, Carrier::WebSocketH2] {
        clients.push(Box::new(wire(&gateway, carrier, &wishes).await?));
    }
    clients.push(Box::new(python_web_socket(&gateway, &wishes).await?));
    clients.push(Box::new(node_ws(&gateway, &wishes).await?));
    clients.push(Box::new(python_web_transport(&gateway, &wishes).await?));
    clients.push(Box::new(curl(&gateway, &wishes)));
    let mut collectors = Vec::new();
    for client in clients {
        collectors.push(Collector::begin(client, &wishes).await?);
    }

    let published: Vec<_> = (0..PUBLICATIONS).map(|n| (names[n % CHANNELS].clone(), payload(n))).collect();
    // Nine of ten in batches, the others one by one.
    for (index, chunk) in published.chunks(90).enumerate() {
        let bodies: Vec<_> = chunk.iter().map(|(channel, payload)| publication(channel, payload)).collect();
        if index % 10 == 0 {
            for body in bodies {
                let answer = gateway.api(post("/v1/publish", body.to_string())).await?;
                ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
            }
        } else {
            gateway.publish_batch(&bodies).await?;
        }
    }

    for collector in &mut collectors {
        collector.collect(PUBLICATIONS).await?;
        for (index, name) in names.iter().enumerate() {
            let received: Vec<_> = collector.received[name].iter().map(|(_, payload)| payload).collect();
            let expected: Vec<_> =
                published.iter().skip(index).step_by(CHANNELS).map(|(_, payload)| payload).collect();
            ensure!(received == expected, "{}: {name} has other payloads", collector.name());
        }
        ensure!(collector.rebased.is_empty(), "{}: rebased {:?}", collector.name(), collector.rebased);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_publishes_by_datagram_and_everybody_gets_it() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let browser = Browser::launch().await?;
    let wishes = from_heads(&["room:typing"]);
    let page = Collector::begin(browser.subscribe(&gateway, "webtransport", &wishes).await?, &wishes).await?;
    let mut others: Vec<Box<dyn Subscriber>> =
        vec![Box::new(browser.subscribe(&gateway, "longpoll", &wishes).await?)];
    for scheme in ["quic", "webtransport", "wss", "https"] {
        others.push(Box::new(native(&gateway, scheme, None, &wishes).await?));
    }
    others.push(Box::new(wire(&gateway, Carrier::WebTransport, &wishes).await?));
    others.push(Box::new(python_web_transport(&gateway, &wishes).await?));
    let mut collectors = Vec::new();
    for client in others {
        collectors.push(Collector::begin(client, &wishes).await?);
    }

    let before = gateway.metric("tidegate_edge_datagrams_received_total").await?;
    let name = page.name().trim_start_matches("Chromium ").to_owned();
    for (sent, data) in [(1.0, "{ typing: 'ada' }"), (2.0, "new Uint8Array([0, 255, 7])")] {
        let body = format!("return client.publishEphemeral('room:typing', {data})");
        let went_out = browser.evaluate(&Browser::page(&name, 0), &body).await?;
        ensure!(went_out == true, "the page did not send {data}");
        gateway.until_metric("tidegate_edge_datagrams_received_total", |now| now >= before + sent).await?;
    }
    for collector in &mut collectors {
        while collector.ephemeral.len() < 2 {
            let event = collector.next().await?;
            ensure!(matches!(event, Event::Ephemeral { .. }), "{}: {event:?}", collector.name());
        }
        let mut items: Vec<_> = collector.ephemeral.iter().map(|(_, payload)| payload.clone()).collect();
        // Datagrams have no order.
        items.sort_by_key(|payload| matches!(payload, Payload::Binary(_)));
        let expected = [Payload::Json(json!({ "typing": "ada" })), Payload::Binary(vec![0, 255, 7])];
        ensure!(items == expected, "{}: {items:?}", collector.name());
    }
    let history =
        gateway.api(tidegate_interop_tests::http::get("/v1/channels/room:typing/history")).await?.json();
    let kept = history["publications"].as_array().context("publications")?;
    ensure!(kept.is_empty(), "what is ephemeral was kept: {history}");
    Ok(())
}
