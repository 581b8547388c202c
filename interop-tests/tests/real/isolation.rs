//! Channels of one connection among themselves: one that floods, ranks.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::post;
use tidegate_interop_tests::raw::{Carrier, Greeting, Pace, Raw, Received};
use tidegate_interop_tests::slow_link::SlowLink;

/// A link of 4 Mbit/s and 50 ms: slower than what the client's stream window (256 KiB) would let through.
const DELAY: Duration = Duration::from_millis(25);
const RATE: u64 = 500_000;
const LINK_QUEUE: usize = 256 << 10;
const CHANNELS: usize = 64;

const CONFIG: &str = "[limits]\nping = \"5m\"\n\
    [namespaces.calm]\nhistory_count = 10\n\
    [namespaces.flood]\nhistory_count = 64\nhistory_bytes = \"1MiB\"\n\
    [namespaces.latest]\nconflate = true\n\
    [namespaces.live]\nhistory_count = 1\n";

/// How long the others take is measured by `bench loss`; here, what of the flood goes before them.
#[tokio::test(flavor = "multi_thread")]
async fn little_of_a_flood_goes_before_the_publications_of_other_channels() -> Result<()> {
    // Durable, conflated, ephemeral by datagram.
    let floods = [("flood:1", 8 << 10, false), ("latest:1", 8 << 10, false), ("live:1", 1000, true)];
    for carrier in [Carrier::Quic, Carrier::WebTransport] {
        for (channel, size, ephemeral) in floods {
            let flood = Flood { channel, size, ephemeral };
            let most = run(carrier, flood).await.with_context(|| format!("{carrier}, {flood:?}"))?;
            println!("{carrier}, {flood:?}: {} KiB at most", most >> 10);
            ensure!(most <= IN_FRONT, "{carrier}, {flood:?}: {most} B of the flood went before");
        }
    }
    Ok(())
}

/// A channel that is published to faster than the link is.
#[derive(Debug, Clone, Copy)]
struct Flood {
    channel: &'static str,
    /// Bytes of a payload.
    size: usize,
    ephemeral: bool,
}

/// Publishes rounds of one small publication on each of the 63 other channels while one is flooded. Returns the most
/// bytes of the flood that arrived between the moment a round was published and its last arrival.
async fn run(carrier: Carrier, flood: Flood) -> Result<usize> {
    let mut gateway = Gateway::dev(CONFIG).await?;
    let link = SlowLink::start(gateway.addresses.quic, DELAY, RATE, LINK_QUEUE).await?;
    gateway.addresses.quic = link.address;
    let mut raw = Raw::connect(&gateway, carrier).await?;
    let channels: Vec<_> = (1..CHANNELS).map(|n| format!("calm:{n}")).collect();
    for (id, channel) in (2u64..).zip(channels.iter().map(String::as_str).chain([flood.channel])) {
        let reply = raw.ask(&json!({ "id": id, "subscribe": { "channel": channel } })).await?;
        ensure!(reply["subscribed"].is_object(), "{reply}");
    }
    let flooding = async {
        let Flood { channel, size, ephemeral } = flood;
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
    let measuring = async {
        // The flood stands on every queue by then.
        let mut flooded = 0;
        while flooded < SETTLED {
            flooded += of_flood(&raw.recv().await?, flood)?;
        }
        let mut most = 0;
        for round in 0..ROUNDS {
            let bodies: Vec<_> =
                channels.iter().map(|channel| json!({ "channel": channel, "data": round })).collect();
            let mut publishing = pin!(gateway.publish_batch(&bodies));
            let (mut published, mut arrived, mut before) = (false, 0, 0);
            while !published || arrived < channels.len() {
                tokio::select! {
                    // Nothing that arrived before the answer counts.
                    biased;
                    result = &mut publishing, if !published => {
                        result?;
                        published = true;
                    }
                    received = raw.recv() => {
                        let received = received?;
                        let bytes = of_flood(&received, flood)?;
                        before += if published { bytes } else { 0 };
                        arrived += usize::from(is_calm(&received, round));
                    }
                }
            }
            most = most.max(before);
        }
        anyhow::Ok(most)
    };
    tokio::select! {
        most = measuring => most,
        flooded = async { flooding.await?; std::future::pending::<Result<usize>>().await } => flooded,
    }
}

/// Bytes of payload, where it belongs to the flood.
fn of_flood(received: &Received, flood: Flood) -> Result<usize> {
    let Received::Frame(frame) = received else { anyhow::bail!("closed: {received:?}") };
    let item = if flood.ephemeral { &frame["ephemeral"] } else { &frame["publication"] };
    Ok(if item["channel"] == flood.channel { flood.size } else { 0 })
}

fn is_calm(received: &Received, round: usize) -> bool {
    matches!(received, Received::Frame(frame) if frame["publication"]["data"] == round)
}

const ROUNDS: usize = 4;
/// Bytes of the flood that arrive before anything else is published.
const SETTLED: usize = 256 << 10;
/// QUIC's send window with its reserve (80 KiB), datagrams that wait (16 KiB), and as much again for what is under way
/// between server and test. With a send window of 1 MiB it is what the client's stream lets through, 230 KiB.
const IN_FRONT: usize = 160 << 10;

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
        for channels in [&["flood:low"][..], &["flood:high", "flood:same"]] {
            let one_of_each = channels.iter().map(|channel| json!({ "channel": channel, "data": data }));
            let bodies: Vec<_> = std::iter::repeat_n(one_of_each, 40).flatten().collect();
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
