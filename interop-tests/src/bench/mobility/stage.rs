//! Where a scenario plays: a laboratory with the gateway and an even stream of publications at one end, the scenario's own
//! code, with `sdk/rust`, at the other.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tidegate_client::{
    Builder, Client, ClientEvent, Events, Payload, Subscription, SubscriptionEvent, Transport,
};
use tidegate_transport::clock;
use tidegate_transport::netem::Profile;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval_at};

use crate::bench::unix_us;
use crate::gateway::Gateway;
use crate::lab::{Control, Lab, LabConfig};
use crate::wait::within;

/// What a scenario is handed.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Changes the link.
    pub control: Control,
    quic: String,
    websocket: String,
    /// What the gateway says of itself: a script's addresses.
    pub(super) urls: Value,
    pub(super) certificate_hash: String,
    restarts: mpsc::Sender<(Restart, oneshot::Sender<()>)>,
}

/// How the gateway ends before it starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Told to.
    InOrder,
    /// Killed: its clients hear nothing.
    Crash,
}

impl Stage {
    /// Ends the gateway and starts it again at the same addresses; without the publications of before.
    pub(super) async fn restart(&self, how: Restart) -> Result<()> {
        let (done, restarted) = oneshot::channel();
        self.restarts.send((how, done)).await?;
        restarted.await.context("the gateway did not come back")
    }

    /// A client that knows the server by these transports, in this order.
    pub(super) fn client(&self, transports: &[Transport]) -> Builder {
        let mut urls = transports.iter().map(|transport| match transport {
            Transport::Quic => &self.quic,
            _ => &self.websocket,
        });
        let first = urls.next().unwrap_or(&self.quic);
        urls.fold(Client::builder(first), |builder, url| builder.with_url(url))
            .with_certificate_hash(&self.certificate_hash)
    }
}

/// Sets the stage and plays a scenario in the client's namespace.
///
/// # Errors
/// Where there is no laboratory, or the scenario fails.
pub fn play<F, T>(
    profile: Profile,
    seed: u64,
    scenario: impl FnOnce(Stage) -> F + Send + 'static,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
    T: Send + 'static,
{
    let lab = Lab::start(LabConfig { mtu: 1_400, ..LabConfig::symmetric(seed, profile) })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (ready, stage) = oneshot::channel();
        let (stop, stopping) = watch::channel(false);
        let (host, control) = (lab.server().address().into(), lab.control().clone());
        let server = lab.server().task(move || async move {
            let mut gateway = Gateway::dev_on(host, CONFIG).await?;
            let facts = gateway.facts().await?;
            let hash = facts["certificate_hash"].as_str().context("no hash of the certificate")?;
            let (restarts, asked) = mpsc::channel(1);
            let stage = Stage {
                control,
                urls: json!({
                    "webtransport": format!("https://{}/v1/connect", gateway.addresses.quic),
                    "websocket": format!("wss://{}/v1/connect", gateway.addresses.tls),
                    "longpoll": format!("https://{}/v1/poll", gateway.addresses.tls),
                }),
                restarts,
                quic: gateway.url("quic"),
                websocket: gateway.url("wss"),
                certificate_hash: hash.to_owned(),
            };
            ready.send(stage).map_err(|_| anyhow!("the scenario ended early"))?;
            publish(&mut gateway, asked, stopping).await
        })?;
        let client = async {
            let stage = stage.await.context("the gateway did not start")?;
            let played = lab.client().task(move || scenario(stage))?.await;
            stop.send_replace(true);
            played?
        };
        match tokio::join!(server, client) {
            (Ok(Ok(())), outcome) => outcome,
            (Ok(Err(error)) | Err(error), Ok(_)) => Err(error.context("the server's end")),
            (Ok(Err(server)) | Err(server), Err(client)) => Err(client.context(format!("{server:#}"))),
        }
    })
}

async fn publish(
    gateway: &mut Gateway,
    mut restarts: mpsc::Receiver<(Restart, oneshot::Sender<()>)>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let mut ticks = interval_at(clock::now().into(), INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let publishing = async {
        for number in 1_u64.. {
            if let Ok((how, done)) = restarts.try_recv() {
                match how {
                    Restart::InOrder => gateway.restart().await?,
                    Restart::Crash => gateway.crash().await?,
                }
                ticks.reset();
                // A scenario that is over asks no more.
                let _ = done.send(());
            }
            ticks.tick().await;
            gateway.publish(CHANNEL, json!({ "n": number, "sent_us": unix_us() })).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        result = publishing => result,
        // A sender that is gone ends it as well.
        _ = stop.wait_for(|stop| *stop) => Ok(()),
    }
}

/// A client that takes the stream, and what it saw.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) client: Client,
    events: Events,
    subscription: Subscription,
    last: Option<u64>,
    /// In order.
    pub(super) deliveries: Vec<Delivery>,
    /// Connections that ended.
    pub(super) losses: u32,
}

/// One publication, received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) sent_us: u64,
    pub(super) arrived_us: u64,
}

impl Delivery {
    pub(super) fn latency(self) -> Duration {
        Duration::from_micros(self.arrived_us.saturating_sub(self.sent_us))
    }
}

impl Follower {
    /// Connects, and waits for the first publication.
    pub(super) async fn start(builder: Builder) -> Result<Self> {
        let client = builder.connect().await?;
        let events = client.take_events().context("the client's events")?;
        let subscription = client.subscribe(CHANNEL).await?;
        let mut follower =
            Self { client, events, subscription, last: None, deliveries: Vec::new(), losses: 0 };
        follower.until("the first publication", |follower| !follower.deliveries.is_empty()).await?;
        Ok(follower)
    }

    /// Follows the stream until something holds; it is asked after each delivery and event.
    pub(super) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        within(PATIENCE, what, async {
            while !holds(self) {
                self.step().await?;
            }
            Ok(())
        })
        .await?
    }

    /// Follows it for so long.
    pub(super) async fn run(&mut self, time: Duration) -> Result<()> {
        let end = unix_us() + u64::try_from(time.as_micros())?;
        // A publication every 50 ms ends the wait soon enough, unless none comes.
        self.until("the stream", |follower| {
            follower.deliveries.last().is_some_and(|delivery| delivery.arrived_us >= end)
        })
        .await
    }

    /// By what it is connected.
    pub(super) fn transport(&self) -> Option<Transport> {
        self.client.transport()
    }

    /// The publications that were sent in a span of time.
    pub(super) fn sent_between(&self, from_us: u64, to_us: u64) -> impl Iterator<Item = Delivery> + '_ {
        self.deliveries.iter().copied().filter(move |delivery| (from_us..to_us).contains(&delivery.sent_us))
    }

    /// The longest time between two deliveries that ended after `from_us`.
    pub(super) fn longest_gap(&self, from_us: u64) -> Duration {
        let gaps = self.deliveries.windows(2).filter(|pair| pair[1].arrived_us >= from_us);
        let longest = gaps.map(|pair| pair[1].arrived_us - pair[0].arrived_us).max();
        Duration::from_micros(longest.unwrap_or_default())
    }

    async fn step(&mut self) -> Result<()> {
        tokio::select! {
            event = self.events.next() => match event.context("the session ended")? {
                ClientEvent::Disconnected { .. } => self.losses += 1,
                ClientEvent::Closed { code, reason } => bail!("the session ended: {code} {reason}"),
                _ => {}
            },
            event = self.subscription.next() => match event.context("the subscription ended")? {
                SubscriptionEvent::Publication(publication) => self.take(publication)?,
                SubscriptionEvent::Rebased { .. } => bail!("publications were lost"),
                SubscriptionEvent::Unsubscribed { error } => bail!("the subscription ended: {error:?}"),
                _ => {}
            },
        }
        Ok(())
    }

    fn take(&mut self, publication: tidegate_client::Publication) -> Result<()> {
        let arrived_us = unix_us();
        let offset = publication.position.offset.0;
        ensure!(
            self.last.is_none_or(|last| offset == last + 1),
            "offset {offset} came after {:?}",
            self.last
        );
        self.last = Some(offset);
        let Payload::Json(text) = publication.payload else { bail!("not what was published") };
        let data: Value = serde_json::from_slice(&text)?;
        let sent_us = data["sent_us"].as_u64().context("not what was published")?;
        self.deliveries.push(Delivery { sent_us, arrived_us });
        Ok(())
    }
}

/// Between two publications.
pub(super) const INTERVAL: Duration = Duration::from_millis(50);
pub(super) const CHANNEL: &str = "mobility:1";
const PATIENCE: Duration = Duration::from_secs(90);
const CONFIG: &str = "auth.origins = [\"*\"]\nnamespaces.default.history_count = 10000\n";
