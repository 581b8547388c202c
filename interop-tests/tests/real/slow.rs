//! A client that reads 1 kB/s from a channel of 1 MB/s.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::post;
use tidegate_interop_tests::raw::{Carrier, Greeting, Pace, Raw, Received};
use tidegate_transport::clock;

use crate::support::MIB;

const SESSION_QUEUE: usize = 256 << 10;

const CONFIG: &str = "[limits]\nsubscription_queue = \"128KiB\"\nsession_queue = \"256KiB\"\nping = \"5m\"\n\
    ephemeral_age = \"200ms\"\n\
    [namespaces.deep]\nhistory_count = 10000\nhistory_bytes = \"32MiB\"\n\
    [namespaces.shallow]\nhistory_count = 16\n\
    [namespaces.latest]\nconflate = true\nhistory_count = 16\n\
    [namespaces.calm]\nhistory_count = 100\n\
    [namespaces.live]\nhistory_count = 1\n";

/// Of the flood: so many in a tick, 1 MB/s.
const ITEM: usize = 10_000;
const BATCH: usize = 10;
const TICK: Duration = Duration::from_millis(100);
const TICKS: usize = 50;

/// What may lie between a publication on another channel and a client with one pipe: its receive buffer, what the kernel
/// and TLS hold, one offer; on long poll a batch on its way and another.
const AHEAD_IN_PIPE: usize = 144 << 10;
/// How late another channel may be where it has a stream of its own, on a busy machine.
const LATE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_channel_is_parked_and_caught_up_and_the_others_are_on_time() -> Result<()> {
    for carrier in Carrier::FOUR {
        for channel in ["deep:1", "shallow:1"] {
            let slow = Slow::begin(carrier, channel, false).await?;
            let end = slow.flood().await.with_context(|| format!("{carrier}, {channel}"))?;
            ensure!(end.told == (channel == "shallow:1"), "{carrier}, {channel}: {end:?}");
            ensure!(end.metrics["tidegate_edge_parked_subscriptions_total"] >= 1.0, "{carrier}: {end:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflated_channel_ends_with_the_newest() -> Result<()> {
    for carrier in Carrier::FOUR {
        let slow = Slow::begin(carrier, "latest:1", false).await?;
        let end = slow.flood().await.with_context(|| format!("{carrier}"))?;
        ensure!(end.metrics["tidegate_edge_conflated_publications_total"] > 200.0, "{carrier}: {end:?}");
        ensure!(end.metrics["tidegate_edge_parked_subscriptions_total"] == 0.0, "{carrier}: {end:?}");
        ensure!(end.items < TICKS * BATCH / 2, "{carrier}: {end:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ephemeral_items_only_new_ones_come() -> Result<()> {
    for carrier in Carrier::FOUR {
        let slow = Slow::begin(carrier, "live:1", true).await?;
        let end = slow.flood().await.with_context(|| format!("{carrier}"))?;
        let dropped: f64 = ["replaced", "expired", "no_room", "parked"]
            .iter()
            .map(|reason| {
                let name = format!("tidegate_edge_ephemeral_dropped_total{{reason=\"{reason}\"}}");
                end.metrics.get(&name).copied().unwrap_or(0.0)
            })
            .sum();
        ensure!(dropped > 200.0, "{carrier}: {dropped} dropped, {end:?}");
        ensure!(end.items < TICKS * BATCH / 2, "{carrier}: {end:?}");
    }
    Ok(())
}

/// A client that is subscribed to a channel that will flood, and to a calm one.
struct Slow {
    gateway: Gateway,
    raw: Raw,
    pace: Pace,
    channel: String,
    ephemeral: bool,
    seen: Seen,
}

/// What came.
#[derive(Debug, Default)]
struct Seen {
    /// Numbers of the flood's items.
    items: Vec<u64>,
    /// Offsets, since the client was told last.
    offsets: Vec<u64>,
    told: Option<u64>,
    /// How late each of the calm channel's came.
    late: Vec<Duration>,
    /// Bytes of the flood since the last of the calm channel's.
    ahead: usize,
    last_calm: bool,
}

/// How it ended.
#[derive(Debug)]
struct End {
    items: usize,
    told: bool,
    metrics: BTreeMap<String, f64>,
}

impl Slow {
    async fn begin(carrier: Carrier, channel: &str, ephemeral: bool) -> Result<Self> {
        let gateway = Gateway::dev(CONFIG).await?;
        let pace = Pace::of(channel);
        let greeting = Greeting { pace: Some(pace.clone()), ..Greeting::default() };
        let (mut raw, _) = Raw::connect_as(&gateway, carrier, &greeting, None).await?;
        for (id, channel) in [(2, channel), (3, "calm:1")] {
            let reply = raw.ask(&json!({ "id": id, "subscribe": { "channel": channel } })).await?;
            ensure!(reply["subscribed"].is_object(), "{reply}");
        }
        let channel = channel.to_owned();
        Ok(Self { gateway, raw, pace, channel, ephemeral, seen: Seen::default() })
    }

    async fn flood(self) -> Result<End> {
        let Self { gateway, mut raw, pace, channel, ephemeral, mut seen } = self;
        let carrier = raw.carrier;
        let has_streams = matches!(carrier, Carrier::Quic | Carrier::WebTransport);
        let begun = clock::now();
        let calm = |last: bool| json!({ "at": begun.elapsed().as_micros() as u64, "last": last });
        pace.set(1000);
        let rss = gateway.rss()?;
        let mut queued: f64 = 0.0;
        let flooding = async {
            let data = "z".repeat(ITEM);
            let mut ticks = tokio::time::interval(TICK);
            for tick in 0..TICKS {
                ticks.tick().await;
                let bodies: Vec<_> = (0..BATCH)
                    .map(|n| {
                        let data = json!([tick * BATCH + n, data]);
                        json!({ "channel": channel, "data": data, "ephemeral": ephemeral })
                    })
                    .collect();
                let answer =
                    gateway.api(post("/v1/publish", json!({ "publications": bodies }).to_string())).await?;
                ensure!(answer.status == 200, "{}", answer.text());
                if tick % 10 == 9 {
                    gateway.publish("calm:1", calm(false)).await?;
                    queued = queued.max(gateway.metric("tidegate_edge_queue_bytes").await?);
                }
            }
            anyhow::Ok(())
        };
        let reading = async {
            loop {
                // Nothing comes for long where the pipe is slow.
                if let Ok(received) = raw.recv().await {
                    seen.take(received, begun.elapsed(), &channel)?;
                }
            }
        };
        tokio::select! {
            flooded = flooding => flooded?,
            read = reading => return read,
        }
        ensure!(queued <= SESSION_QUEUE as f64, "{queued} bytes waited");
        let grown = gateway.rss()?.saturating_sub(rss);
        // History, and what the allocator keeps of it.
        ensure!(grown < 48 * MIB, "memory grew by {} KiB", grown >> 10);
        if has_streams {
            ensure!(seen.late.len() >= TICKS / 10 - 1, "of the calm channel came {:?}", seen.late);
            ensure!(seen.late.iter().all(|late| *late < LATE), "the calm channel was late: {:?}", seen.late);
        }

        // It reads all of it now; first the calm channel's last.
        gateway.publish("calm:1", calm(true)).await?;
        let newest = if ephemeral {
            None
        } else {
            gateway.publish(&channel, json!([TICKS * BATCH, "newest"])).await?["offset"].as_u64()
        };
        seen.ahead = 0;
        pace.lift();
        while !seen.last_calm
            || newest.is_some_and(|newest| !seen.has_all(newest, channel.starts_with("latest")))
        {
            let received = raw.recv().await.with_context(|| format!("after {seen:?}"))?;
            seen.take(received, begun.elapsed(), &channel)?;
        }
        println!(
            "{carrier} {channel}: {} items, {queued} bytes waited, memory +{} KiB, {} bytes ahead, late {:?}, told {:?}",
            seen.items.len(),
            grown >> 10,
            seen.ahead,
            seen.late,
            seen.told
        );
        ensure!(seen.ahead <= AHEAD_IN_PIPE, "{} bytes came before the calm channel's", seen.ahead);
        let count = seen.items.len();
        ensure!(has_streams || seen.items.is_sorted(), "out of order: {:?}", seen.items);
        let distinct: BTreeSet<_> = seen.items.iter().collect();
        ensure!(distinct.len() == count, "some came twice: {:?}", seen.items);
        Ok(End { items: count, told: seen.told.is_some(), metrics: gateway.metrics().await? })
    }
}

impl Seen {
    fn take(&mut self, received: Received, at: Duration, flood: &str) -> Result<()> {
        let Received::Frame(frame) = received else { anyhow::bail!("closed: {received:?}") };
        if frame["subscribed"]["recovered"] == false {
            let told = frame["subscribed"]["position"]["offset"].as_u64().context("an offset")?;
            self.offsets.retain(|offset| *offset > told);
            self.told = Some(told);
            return Ok(());
        }
        let item = if frame["ephemeral"].is_object() { &frame["ephemeral"] } else { &frame["publication"] };
        if item["channel"] == "calm:1" {
            let sent = item["data"]["at"].as_u64().context("a time")?;
            self.late.push(at.saturating_sub(Duration::from_micros(sent)));
            self.last_calm |= item["data"]["last"] == true;
        } else if item["channel"] == flood {
            self.items.push(item["data"][0].as_u64().context("a number")?);
            self.offsets.extend(item["offset"].as_u64());
            if !self.last_calm {
                self.ahead += size(item);
            }
        }
        Ok(())
    }

    /// Whether everything up to the newest publication came, from where the client was told of a gap; of a conflated
    /// channel the newest alone.
    fn has_all(&self, newest: u64, conflated: bool) -> bool {
        if conflated {
            return self.offsets.contains(&newest);
        }
        (self.told.unwrap_or(0) + 1..=newest).all(|offset| self.offsets.contains(&offset))
    }
}

fn size(item: &Value) -> usize {
    item["data"][1].as_str().map_or(0, str::len)
}
