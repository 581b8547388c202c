//! Recorded clients of every transport, while the server dies and comes back, judged by the checker.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidegate_client::{Client, Epoch, Offset, Position};
use tidegate_interop_tests::checker::{Bounds, Load, Reader, Recorder};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::wait::{self, PATIENCE};

use crate::support::ROOMY;

const SCHEMES: [&str; 3] = ["quic", "wss", "https"];

/// What the `memory` engine promises: a channel's keys are lost with its epoch.
const BOUNDS: Bounds = Bounds { kept: 10_000, keys_outlive_epochs: false };

async fn client(gateway: &Gateway, scheme: &str) -> Result<Client> {
    let builder = Client::builder(gateway.url(scheme)).with_ca_file(gateway.ca_file());
    Ok(builder.with_backoff(Duration::from_millis(20), Duration::from_millis(60)).connect().await?)
}

/// Waits until so many publishes were acknowledged.
async fn acknowledged(recorder: &Recorder, count: u64) -> Result<()> {
    let so_many = || async {
        let now = recorder.report(&BOUNDS).acknowledged;
        ensure!(now >= count, "{now}");
        Ok(())
    };
    wait::until(format!("{count} acknowledgements"), so_many).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgets_everything_says_so_and_the_rest_is_exact() -> Result<()> {
    let mut gateway = Gateway::dev(ROOMY).await?;
    let recorder = Recorder::new();
    let channels: Vec<String> = (0..3).map(|number| format!("room:{number}")).collect();
    let mut clients = Vec::new();
    let mut readers: Vec<Reader> = Vec::new();
    let mut writers = Vec::new();
    for (number, scheme) in (0u32..).zip(SCHEMES) {
        let client = client(&gateway, scheme).await?;
        let beginning = Position::new(Epoch::default(), Offset(0));
        for (index, channel) in channels.iter().enumerate() {
            let asked = (index % 2 == 0).then(|| beginning.clone());
            readers.push(recorder.subscribe(scheme, &client, channel, asked).await?);
        }
        let load = Load { channels: channels.clone(), rate: 150.0, size: 100, in_flight: 20 };
        writers.push(recorder.publish(scheme, number, &client, load));
        clients.push(client);
    }
    acknowledged(&recorder, 300).await?;
    gateway.crash().await?;
    let before = recorder.report(&BOUNDS).acknowledged;
    acknowledged(&recorder, before + 300).await?;
    gateway.restart().await?;
    let before = recorder.report(&BOUNDS).acknowledged;
    acknowledged(&recorder, before + 300).await?;
    for writer in writers {
        writer.stop(PATIENCE).await?;
    }
    let late = recorder.settle(&clients[0], &channels, &readers).await?;
    let report = recorder.report(&BOUNDS).into_result()?;
    ensure!(late.is_empty(), "{late:?}");
    // Each channel began anew twice. A client that was slow to come back may have been told of both at once.
    ensure!(report.epoch_changes == 6 && report.rebased >= 9, "{report}");
    // Not three of each: who is away when a server forgets misses what comes until he is back.
    ensure!(report.deliveries > report.acknowledged, "{report}");
    ensure!(report.acknowledged_in_past_epochs > 300, "{report}");
    Ok(())
}
