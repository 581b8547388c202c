//! What several themes need.

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::clients::{Collector, Payload, Subscriber, from_heads, native, wire};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::raw::Carrier;

/// Nothing is lost to history's bounds.
pub(crate) const ROOMY: &str = "[namespaces.default]\nhistory_count = 10000\nhistory_bytes = \"64MiB\"\n";

/// What number `n` of a test's publications holds: JSON, and every third one bytes.
pub(crate) fn payload(n: usize) -> Payload {
    match n % 3 {
        0 => Payload::Binary((0..n % 97).map(|index| ((n + index) & 0xff) as u8).collect()),
        1 => Payload::Json(json!({ "n": n, "text": "größer als ASCII ✓", "list": [1, null, true] })),
        _ => Payload::Json(json!(n)),
    }
}

/// A publication as the backend API takes it.
pub(crate) fn publication(channel: &str, payload: &Payload) -> Value {
    match payload {
        Payload::Json(value) => json!({ "channel": channel, "data": value }),
        Payload::Binary(bytes) => json!({ "channel": channel, "data_base64": BASE64_STANDARD.encode(bytes) }),
    }
}

/// Subscribers over each of the four transports, who must not notice what others do.
pub(crate) struct Bystanders {
    collectors: Vec<Collector<Box<dyn Subscriber>>>,
    published: usize,
    rss: u64,
}

impl Bystanders {
    pub(crate) async fn begin(gateway: &Gateway) -> Result<Self> {
        let wishes = from_heads(&["calm:1"]);
        let mut clients: Vec<Box<dyn Subscriber>> = Vec::new();
        for scheme in ["quic", "webtransport", "wss", "https"] {
            clients.push(Box::new(native(gateway, scheme, None, &wishes).await?));
        }
        clients.push(Box::new(wire(gateway, Carrier::WebTransport, &wishes).await?));
        let mut collectors = Vec::new();
        for client in clients {
            collectors.push(Collector::begin(client, &wishes).await?);
        }
        Ok(Self { collectors, published: 0, rss: gateway.rss()? })
    }

    /// Something happens on their channel.
    pub(crate) async fn publish(&mut self, gateway: &Gateway) -> Result<()> {
        self.published += 1;
        gateway.publish("calm:1", json!({ "n": self.published })).await.map(drop)
    }

    /// They have seen all of it, in time, and nothing else; and memory has grown by less than `growth` bytes.
    pub(crate) async fn check(mut self, gateway: &Gateway, growth: u64) -> Result<()> {
        self.publish(gateway).await?;
        for collector in &mut self.collectors {
            collector.collect(self.published).await?;
            ensure!(collector.rebased.is_empty(), "{} was rebased", collector.name());
        }
        let grown = gateway.rss()?.saturating_sub(self.rss);
        ensure!(grown < growth, "memory grew by {} KiB", grown >> 10);
        Ok(())
    }
}

pub(crate) const MIB: u64 = 1 << 20;

/// A subscriber of the channel by each transport, of browsers and of native clients.
pub(crate) async fn everyone(
    gateway: &Gateway,
    browser: &Browser,
    channel: &str,
) -> Result<Vec<Collector<Box<dyn Subscriber>>>> {
    let wishes = from_heads(&[channel]);
    let mut clients: Vec<Box<dyn Subscriber>> = Vec::new();
    for transport in ["webtransport", "websocket", "longpoll"] {
        clients.push(Box::new(browser.subscribe(gateway, transport, &wishes).await?));
    }
    for scheme in ["quic", "webtransport", "wss", "https"] {
        clients.push(Box::new(native(gateway, scheme, None, &wishes).await?));
    }
    let mut collectors = Vec::new();
    for client in clients {
        collectors.push(Collector::begin(client, &wishes).await?);
    }
    Ok(collectors)
}
