//! Killed again and again while everybody publishes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tidegate_client::{Client, Epoch, Offset, Payload, Position};
use tidegate_interop_tests::checker::{Bounds, Load, Outcome, Reader, Recorder, Report};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{post, send};
use tidegate_interop_tests::wait::{self, PATIENCE};

use super::{OPEN, position};

/// Everything is kept, and stays: nobody may be told that anything was missed.
#[tokio::test(flavor = "multi_thread")]
async fn local_keeps_what_it_acknowledged_over_kills_under_load() -> Result<()> {
    let report = run(1, OPEN, &["core.partitions=3"], Bounds::default()).await?;
    ensure!(report.rebased == 0 && report.recovered >= ROUNDS * SUBSCRIPTIONS, "{report}");
    ensure!(report.deliveries >= report.acknowledged * SUBSCRIPTIONS / CHANNELS, "{report}");
    Ok(())
}

/// Logs are cut behind snapshots all the time: what history still holds is there as well.
#[tokio::test(flavor = "multi_thread")]
async fn local_keeps_the_newest_over_kills_where_logs_are_cut() -> Result<()> {
    const KEPT: u64 = 50;
    let config = OPEN.replace("history_count = 100000", &format!("history_count = {KEPT}"));
    let settings = ["core.partitions=3", "core.local.retain_bytes=512KiB", "core.snapshot_frames=20"];
    let report = run(2, &config, &settings, Bounds { kept: KEPT, ..Bounds::default() }).await?;
    ensure!(report.acknowledged > ROUNDS * 2 * FEWEST, "{report}");
    Ok(())
}

async fn run(seed: u64, config: &str, settings: &[&str], bounds: Bounds) -> Result<Report> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // A server that is gone is noticed by silence alone, by QUIC.
    let config = format!("[quic]\nidle_timeout = \"500ms\"\n{config}");
    let mut gateway = Gateway::serve_alone(&config, settings).await?;
    let recorder = Recorder::new();
    let channels: Vec<String> = (0..CHANNELS).map(|number| format!("room:{number}")).collect();
    let (mut clients, mut readers, mut writers) = (Vec::new(), Vec::<(String, Reader)>::new(), Vec::new());
    for (number, scheme) in (0u32..).zip(SCHEMES) {
        let builder = Client::builder(gateway.url(scheme)).with_ca_file(gateway.ca_file());
        let client =
            builder.with_backoff(Duration::from_millis(20), Duration::from_millis(60)).connect().await?;
        for channel in &channels {
            let beginning = Position::new(Epoch::default(), Offset(0));
            let reader = recorder.subscribe(scheme, &client, channel, Some(beginning)).await?;
            readers.push((channel.clone(), reader));
        }
        writers.push(recorder.publish(scheme, number, &client, load(&channels, 60.0)));
        clients.push(client);
    }
    let newest = Newest::default();
    let backend = Backend { api: gateway.addresses.api, newest: newest.clone() };
    writers.push(recorder.publish_by("backend", 9, load(&channels, 100.0), move |channel, payload, key| {
        backend.clone().publish(channel, payload, key)
    }));

    for round in 0..ROUNDS {
        let more = rng.random_range(FEWEST..3 * FEWEST);
        let at = recorder.report(&bounds).acknowledged + more;
        let so_many = || async {
            let now = recorder.report(&bounds).acknowledged;
            ensure!(now >= at, "{now} of {at}");
            Ok(())
        };
        wait::until("acknowledgements", so_many).await.with_context(|| format!("SEED={seed}"))?;
        gateway.kill().await?;
        let before = newest.take();
        gateway.start_again().await.with_context(|| format!("SEED={seed} round {round}"))?;
        // What is acknowledged now is behind what was: everybody is back when they have got so far.
        let after = newest.beyond(&before, CHANNELS as usize).await?;
        for (channel, reader) in &readers {
            let here = || format!("SEED={seed} round {round}: {channel}");
            ensure!(
                before.get(channel).is_none_or(|before| before.epoch == after[channel].epoch),
                "{}",
                here()
            );
            reader.reaches(&after[channel], PATIENCE).await.with_context(here)?;
        }
    }
    for writer in writers {
        writer.stop(PATIENCE).await?;
    }
    let readers: Vec<Reader> = readers.into_iter().map(|(_, reader)| reader).collect();
    let late = recorder.settle(&clients[0], &channels, &readers).await?;
    let report = recorder.report(&bounds).into_result().with_context(|| format!("SEED={seed}"))?;
    ensure!(late.is_empty(), "SEED={seed}: {late:?}");
    ensure!(report.epoch_changes == 0, "SEED={seed}: {report}");
    println!("SEED={seed}: {report}");
    Ok(report)
}

fn load(channels: &[String], rate: f64) -> Load {
    Load { channels: channels.to_vec(), rate, size: 400, in_flight: 20 }
}

/// What the backend was told last, by channel.
#[derive(Clone, Default)]
struct Newest(Arc<Mutex<BTreeMap<String, Position>>>);

impl Newest {
    fn note(&self, channel: &str, position: &Position) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = newest.entry(channel.to_owned()).or_default();
        if known.offset < position.offset {
            *known = position.clone();
        }
    }

    fn take(&self) -> BTreeMap<String, Position> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As soon as so many channels have gone on.
    async fn beyond(
        &self,
        before: &BTreeMap<String, Position>,
        channels: usize,
    ) -> Result<BTreeMap<String, Position>> {
        wait::until("further acknowledgements", || async {
            let now = self.take();
            let gone_on =
                now.iter().filter(|(channel, position)| before.get(*channel) != Some(*position)).count();
            ensure!(gone_on >= channels, "{gone_on} channels");
            Ok(now)
        })
        .await
    }
}

/// An app's own server: publishes by keys, and asks again until it is answered.
#[derive(Clone)]
struct Backend {
    api: SocketAddr,
    newest: Newest,
}

impl Backend {
    async fn publish(self, channel: String, payload: Payload, key: String) -> Outcome {
        let Payload::Json(data) = payload else { unreachable!("payloads of the checker are JSON") };
        let data: Value = serde_json::from_slice(&data).expect("JSON");
        let body = json!({ "channel": channel, "data": data, "key": key }).to_string();
        let answered = wait::until("an answer", || async {
            let answer = send(self.api, None, post("/v1/publish", body.clone())).await?;
            ensure!(answer.status != StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
            position(&answer)
        });
        match answered.await {
            Ok(position) => {
                self.newest.note(&channel, &position);
                Outcome::Acknowledged(position)
            }
            Err(_) => Outcome::Unknown,
        }
    }
}

const SCHEMES: [&str; 3] = ["quic", "wss", "https"];
const CHANNELS: u64 = 4;
const SUBSCRIPTIONS: u64 = SCHEMES.len() as u64 * CHANNELS;
const ROUNDS: u64 = 4;
/// Acknowledgements between two kills, at least.
const FEWEST: u64 = 60;
