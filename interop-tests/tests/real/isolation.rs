//! Channels of one connection among themselves: one that floods, ranks.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::post;
use tidegate_interop_tests::raw::{Carrier, Greeting, Pace, Raw, Received};
use tidegate_interop_tests::slow_link::SlowLink;
use tidegate_transport::clock;

/// A link of 20 Mbit/s and 50 ms.
const DELAY: Duration = Duration::from_millis(25);
const RATE: u64 = 2_500_000;
const LINK_QUEUE: usize = 256 << 10;
const CHANNELS: usize = 64;

const CONFIG: &str = "[limits]\nping = \"5m\"\n\
    [namespaces.calm]\nhistory_count = 10\n\
    [namespaces.flood]\nhistory_count = 64\nhistory_bytes = \"1MiB\"\n\
    [namespaces.latest]\nconflate = true\n\
    [namespaces.live]\nhistory_count = 1\n";

#[tokio::test(flavor = "multi_thread")]
async fn one_flooded_channel_leaves_the_others_on_time() -> Result<()> {
    // Durable, conflated, ephemeral by datagram.
    let floods = [("flood:1", 8 << 10, false), ("latest:1", 8 << 10, false), ("live:1", 1000, true)];
    for carrier in [Carrier::Quic, Carrier::WebTransport] {
        for (channel, size, ephemeral) in floods {
            compare(carrier, Flood { channel, size, ephemeral }).await?;
        }
    }
    Ok(())
}

/// The 99th percentile of the others stays near one and a half of what it is without the flood. A machine that is busy
/// with something else may need several attempts to show it.
async fn compare(carrier: Carrier, flood: Flood) -> Result<()> {
    let mut told = Vec::new();
    for _ in 0..ATTEMPTS {
        let calm = run(carrier, None).await.with_context(|| format!("{carrier}, calm"))?;
        let flooded = run(carrier, Some(flood)).await.with_context(|| format!("{carrier}, {flood:?}"))?;
        let [before, during] = [&calm, &flooded].map(|latencies| percentile(latencies, 99));
        let medians = [&calm, &flooded].map(|latencies| percentile(latencies, 50));
        told.push(format!("p50 {medians:?}, p99 {before:?} -> {during:?}"));
        if during <= before.mul_f64(1.5) + UNOPTIMISED {
            println!("{carrier}, {flood:?}: {told:?}");
            return Ok(());
        }
    }
    anyhow::bail!("{carrier}, {flood:?}: {told:?}")
}

const ATTEMPTS: usize = 4;
/// On top, measured on a busy machine without optimisation; where it comes from was not looked into.
const UNOPTIMISED: Duration = Duration::from_millis(20);
const ROUNDS: usize = 4;

/// A channel that is published to faster than the link is.
#[derive(Debug, Clone, Copy)]
struct Flood {
    channel: &'static str,
    /// Bytes of a payload.
    size: usize,
    ephemeral: bool,
}

/// Latencies of publications on the 63 other channels.
async fn run(carrier: Carrier, flood: Option<Flood>) -> Result<Vec<Duration>> {
    let mut gateway = Gateway::dev(CONFIG).await?;
    let link = SlowLink::start(gateway.addresses.quic, DELAY, RATE, LINK_QUEUE).await?;
    gateway.addresses.quic = link.address;
    let mut raw = Raw::connect(&gateway, carrier).await?;
    let channels: Vec<_> = (1..CHANNELS).map(|n| format!("calm:{n}")).collect();
    for (id, channel) in
        (2u64..).zip(channels.iter().map(String::as_str).chain(["flood:1", "latest:1", "live:1"]))
    {
        let reply = raw.ask(&json!({ "id": id, "subscribe": { "channel": channel } })).await?;
        ensure!(reply["subscribed"].is_object(), "{reply}");
    }
    let begun = clock::now();
    let wanted = ROUNDS * channels.len();
    let publishing = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(12));
        for round in 0..ROUNDS {
            for channel in &channels {
                ticks.tick().await;
                let sent = begun.elapsed().as_micros() as u64;
                gateway.publish(channel, json!({ "round": round, "sent": sent })).await?;
            }
        }
        anyhow::Ok(())
    };
    let flooding = async {
        let Some(Flood { channel, size, ephemeral }) = flood else { return anyhow::Ok(()) };
        // Three times what the link carries.
        let data = "z".repeat(size);
        let count = 3 * RATE as usize / 50 / size;
        let bodies: Vec<_> =
            (0..count).map(|_| json!({ "channel": channel, "data": data, "ephemeral": ephemeral })).collect();
        let body = json!({ "publications": bodies }).to_string();
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            let answer = gateway.api(post("/v1/publish", body.clone())).await?;
            ensure!(answer.status == 200, "{}", answer.text());
        }
    };
    let mut latencies = Vec::new();
    let receiving = async {
        let mut flooded = 0;
        while latencies.len() < wanted {
            let Received::Frame(frame) = raw.recv().await? else { anyhow::bail!("closed") };
            let publication = &frame["publication"];
            if let Some(sent) = publication["data"]["sent"].as_u64() {
                latencies.push(begun.elapsed().saturating_sub(Duration::from_micros(sent)));
            } else if publication.is_object() || frame["ephemeral"].is_object() {
                flooded += 1;
            }
        }
        ensure!(flood.is_none() || flooded > 50, "only {flooded} items of the flood came");
        anyhow::Ok(())
    };
    tokio::select! {
        received = async { tokio::try_join!(publishing, receiving) } => { received?; }
        flooded = async { flooding.await?; std::future::pending::<Result<()>>().await } => flooded?,
    }
    Ok(latencies)
}

fn percentile(latencies: &[Duration], percent: usize) -> Duration {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

#[tokio::test(flavor = "multi_thread")]
async fn higher_ranks_go_first_when_all_channels_flood() -> Result<()> {
    for carrier in [Carrier::Quic, Carrier::WebTransport, Carrier::WebSocket, Carrier::LongPoll] {
        let mut gateway = Gateway::dev(CONFIG).await?;
        let link = SlowLink::start(gateway.addresses.quic, DELAY, 250_000, 64 << 10).await?;
        gateway.addresses.quic = link.address;
        // Of the one-pipe carriers the pipe is slow while all of it is published.
        let pace = Pace::of("none");
        let greeting = Greeting { pace: Some(pace.clone()), ..Greeting::default() };
        let (mut raw, _) = Raw::connect_as(&gateway, carrier, &greeting, None).await?;
        for (id, channel, rank) in [(2u64, "flood:low", -3), (3, "flood:high", 5), (4, "flood:same", 5)] {
            let reply =
                raw.ask(&json!({ "id": id, "subscribe": { "channel": channel, "rank": rank } })).await?;
            ensure!(reply["subscribed"].is_object(), "{reply}");
        }
        for rank in [-129, 128] {
            let request = json!({ "id": 5, "subscribe": { "channel": "calm:1", "rank": rank } });
            let reply = raw.ask(&request).await?;
            ensure!(reply["error"]["code"] == 400, "{carrier}: rank {rank}: {reply}");
        }
        // Nobody reads while all of it is published; the low one first.
        pace.set(1000);
        let data = "z".repeat(8 << 10);
        for channel in ["flood:low", "flood:high", "flood:same"] {
            let bodies: Vec<_> = (0..40).map(|_| json!({ "channel": channel, "data": data })).collect();
            gateway.publish_batch(&bodies).await?;
        }
        pace.lift();
        let mut order = Vec::new();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        while order.len() < 120 {
            let Received::Frame(frame) = raw.recv().await? else { anyhow::bail!("{carrier}: closed") };
            if let Some(channel) = frame["publication"]["channel"].as_str() {
                *counts.entry(channel.to_owned()).or_default() += 1;
                order.push(channel.to_owned());
            }
        }
        ensure!(counts.values().all(|count| *count == 40), "{carrier}: {counts:?}");
        let mean = |channel: &str| {
            let places = order.iter().enumerate().filter(|(_, of)| *of == channel).map(|(place, _)| place);
            places.sum::<usize>() / 40
        };
        let (low, high, same) = (mean("flood:low"), mean("flood:high"), mean("flood:same"));
        println!("{carrier}: mean places low {low}, high {high}, same {same}");
        // What a window or a pipe had taken of the first was under way.
        ensure!(low > high + 15 && low > same + 15, "{carrier}: low {low}, high {high}, same {same}");
        ensure!(high.abs_diff(same) < 20, "{carrier}: high {high}, same {same}");
    }
    Ok(())
}
