//! One measurement: a laboratory, the gateway and its publisher at one end, a subscriber at the other.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use tidegate_transport::clock;
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval_at};

use super::cell::Cell;
use super::receive::{self, Receiver, Where};
use super::samples::Samples;
use super::work::Work;
use crate::gateway::Gateway;
use crate::lab::{Lab, LabConfig};
use crate::wait::within;

/// Measures one cell. Blocks its thread until it is done.
pub(super) fn measure(cell: &Cell, work: &Work) -> Result<Samples> {
    let profile = cell.profile(work.rate);
    let lab = Lab::start(LabConfig { mtu: MTU, ..LabConfig::symmetric(cell.seed, profile) })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (ready, place) = oneshot::channel();
        let (go, going) = oneshot::channel();
        let (stop, stopping) = watch::channel(false);
        let host = lab.server().address().into();
        let (of_server, of_publisher) = (work.clone(), cell.clone());
        let server = lab.server().task(move || async move {
            let gateway = Gateway::dev_on(host, CONFIG).await?;
            let there = Where::of(&gateway).await?;
            ready.send(there).map_err(|_| anyhow!("the measurement ended early"))?;
            going.await.context("the subscriber failed")?;
            publish(&gateway, &of_publisher, &of_server, stopping).await
        })?;
        let client = async {
            let place = place.await.context("the gateway did not start")?;
            let mut receiver = receive::start(&lab, cell, &place).await?;
            go.send(()).map_err(|()| anyhow!("the publisher is gone"))?;
            let samples = receiver.samples(cell, work).await;
            stop.send_replace(true);
            let down = lab.control().counters().down;
            samples.map(|mut samples| {
                (samples.packets, samples.late) = (down.delivered, down.late);
                samples
            })
        };
        match tokio::join!(server, client) {
            (Ok(Ok(())), outcome) => outcome,
            (Ok(Err(error)) | Err(error), Ok(_)) => Err(error.context("the publisher")),
            // Each may have failed for the other's failure.
            (Ok(Err(server)) | Err(server), Err(client)) => Err(client.context(format!("{server:#}"))),
        }
    })
}

/// Publishes at an even pace, round robin over the channels; then waits until it is told to end.
async fn publish(gateway: &Gateway, cell: &Cell, work: &Work, mut stop: watch::Receiver<bool>) -> Result<()> {
    let flood = async {
        if cell.flood == 0 {
            std::future::pending::<()>().await;
        }
        let every = Duration::from_secs_f64(FLOOD_BYTES as f64 / cell.flood as f64);
        let data = "x".repeat(FLOOD_BYTES);
        let mut ticks = interval_at(clock::now().into(), every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            if let Err(error) = gateway.publish(FLOODED, json!(data)).await {
                return Err::<(), _>(error.context("flooding"));
            }
        }
    };
    let measured = async {
        let mut ticks = interval_at(clock::now().into(), work.interval());
        // Late ones follow at once: the load is the same whatever the machine does meanwhile.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let filler = "x".repeat(work.payload);
        for number in 0..work.publications() {
            ticks.tick().await;
            let channel = channel(number % u64::from(cell.channels));
            let data = json!({ "n": number, "sent_us": unix_us(), "filler": filler });
            gateway.publish(&channel, data).await?;
        }
        anyhow::Ok(())
    };
    let all = async {
        tokio::select! {
            result = measured => result,
            result = flood => result,
        }
    };
    all.await?;
    // The gateway lives until the last publication has arrived. A sender that is gone ends the wait as well.
    let _ended = stop.wait_for(|stop| *stop).await;
    Ok(())
}

impl Receiver {
    /// Waits until everything has come, or nothing more does.
    async fn samples(&mut self, cell: &Cell, work: &Work) -> Result<Samples> {
        let mut samples = Samples::new(cell.channels, work);
        let all = work.length() + PATIENCE;
        let outcome = within(all, "the last publication", async {
            while !samples.is_complete() {
                let arrival = self.next().await?;
                samples.add(&arrival)?;
            }
            anyhow::Ok(())
        })
        .await;
        match outcome {
            Ok(result) => result?,
            // What is missing is counted, not an error of the measurement.
            Err(_) => ensure!(samples.received() > 0, "nothing arrived within {all:?}"),
        }
        samples.transport_changes = self.reconnects();
        Ok(samples)
    }
}

/// One publication, received.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) channel: u64,
    pub(super) offset: u64,
    pub(super) number: u64,
    pub(super) latency: Duration,
}

impl Arrival {
    /// From the payload and the time of its arrival, microseconds of Unix time.
    pub(super) fn new(channel: &str, offset: u64, data: &Value, arrived_us: u64) -> Result<Option<Self>> {
        let Some(index) = channel.strip_prefix(CHANNEL) else { return Ok(None) };
        let field = |name: &str| data[name].as_u64().with_context(|| format!("no {name} in {data}"));
        let latency = Duration::from_micros(arrived_us.saturating_sub(field("sent_us")?));
        Ok(Some(Self { channel: index.parse()?, offset, number: field("n")?, latency }))
    }
}

/// The name of a measured channel.
pub(super) fn channel(index: u64) -> String {
    format!("{CHANNEL}{index}")
}

/// Microseconds of Unix time: both ends are on one machine, and a browser knows no other clock of ours.
pub(super) fn unix_us() -> u64 {
    let since = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Held by everybody who logs nothing.
pub(super) type Shared<T> = Arc<std::sync::Mutex<T>>;

const CHANNEL: &str = "loss:";
/// Its publications are not measured.
pub(super) const FLOODED: &str = "flood:0";
/// Of one publication of the flood.
const FLOOD_BYTES: usize = 8_000;
/// After the last publication.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the devices: what mobile networks have.
const MTU: u16 = 1_400;
const CONFIG: &str = "auth.origins = [\"*\"]\nnamespaces.default.history_count = 10000\n";
