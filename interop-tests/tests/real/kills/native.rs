//! The Rust client under attack.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tidegate_client::{
    Client, ClientEvent, Epoch, LadderConfig, Offset, Payload, Position, QuicOptions, Subscription,
    SubscriptionEvent, Transport,
};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::wait::{PATIENCE, within};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::account::Account;
use super::attack::Middle;
use super::load::Stored;
use super::{CHANNELS, FIRST_OWN, PAUSE, PUBLISHERS, Subject, channel};

/// A client with everything that it got.
pub(super) struct Native {
    client: Client,
    shared: Arc<Shared>,
    delivered: watch::Receiver<u64>,
    publishers: TaskTracker,
    moves: TaskTracker,
}

#[derive(Default)]
struct Shared {
    account: Mutex<Account>,
    stop: AtomicBool,
    connected: AtomicU64,
    resumed: AtomicU64,
    early: AtomicU64,
    moved: AtomicU64,
    suspect: AtomicU64,
    disconnected: AtomicU64,
}

impl Native {
    pub(super) async fn begin(gateway: &Gateway, middle: &Middle) -> Result<Self> {
        let client = Client::builder(format!("quic://{}", middle.address(Transport::Quic)))
            .with_url(format!("wss://{}", middle.address(Transport::WebSocket)))
            .with_url(format!("https://{}", middle.address(Transport::LongPoll)))
            .with_ca_file(gateway.ca_file())
            .with_network_key("here")
            .with_ladder(impatient())
            .with_quic(QuicOptions {
                keep_alive: Duration::from_millis(100),
                idle_timeout: Duration::from_millis(300),
                initial_rtt: Some(Duration::from_millis(25)),
                ..QuicOptions::default()
            })
            .with_backoff(Duration::from_millis(20), Duration::from_millis(60))
            .connect()
            .await?;
        let shared = Arc::<Shared>::default();
        shared.account().received = vec![Vec::new(); CHANNELS];
        let (counter, delivered) = watch::channel(0);
        let counter = Arc::new(counter);
        let tasks = TaskTracker::new();
        let mut events = client.take_events().context("events")?;
        let told = Arc::clone(&shared);
        tasks.spawn(async move {
            while let Some(event) = events.next().await {
                told.take(event);
            }
        });
        for number in 0..CHANNELS {
            let beginning = Position::new(Epoch::new(""), Offset(0));
            let subscription = client.subscribe_from(&channel(number), beginning).await?;
            tasks.spawn(read(number, subscription, Arc::clone(&shared), Arc::clone(&counter)));
        }
        let publishers = TaskTracker::new();
        for publisher in 0..PUBLISHERS {
            publishers.spawn(publish(publisher, client.clone(), Arc::clone(&shared)));
        }
        publishers.close();
        Ok(Self { client, shared, delivered, publishers, moves: TaskTracker::new() })
    }
}

impl Subject for Native {
    async fn deliver(&mut self, more: u64) -> Result<Option<Transport>> {
        let wanted = *self.delivered.borrow() + more;
        let coming = self.delivered.wait_for(|delivered| *delivered >= wanted);
        within(PATIENCE, format!("{more} publications"), async { coming.await.map(drop) })
            .await
            .with_context(|| format!("{:?} {}", self.client.state(), self.shared.summary()))??;
        Ok(self.client.transport())
    }

    async fn begin_move(&mut self, to: Transport) -> Result<()> {
        let client = self.client.clone();
        // Whether it comes there is another matter.
        self.moves.spawn(async move { drop(client.move_to(to).await) });
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        within(PATIENCE, "the answers to all publishes", self.publishers.wait()).await
    }

    async fn finish(mut self, heads: &[u64]) -> Result<Account> {
        let all = heads.iter().sum::<u64>();
        let coming = self.delivered.wait_for(|delivered| *delivered >= all);
        // What is missing is told by the comparison.
        let _late = within(PATIENCE, "the rest", async { coming.await.map(drop) }).await;
        let summary = self.shared.summary();
        // What comes of the end is not looked at any more.
        let account = std::mem::take(&mut *self.shared.account());
        self.client.close().await;
        Ok(Account { summary, ..account })
    }
}

impl Shared {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: ClientEvent) {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match event {
            ClientEvent::Connected { resumed, early, .. } => {
                count(&self.connected);
                self.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
                self.early.fetch_add(u64::from(early), Ordering::Relaxed);
            }
            ClientEvent::Moved { .. } => drop(count(&self.moved)),
            ClientEvent::Suspect { .. } => drop(count(&self.suspect)),
            ClientEvent::Disconnected { code, reason } => {
                count(&self.disconnected);
                // Anything else is the server's doing, who has no reason.
                if !(4100..4200).contains(&code) {
                    self.account().problems.push(format!("disconnected: {code} {reason}"));
                }
            }
            ClientEvent::Refused { code, message } => {
                self.account().problems.push(format!("refused: {code} {message}"));
            }
            _ => {}
        }
    }

    fn summary(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let account = self.account();
        format!(
            "{} acknowledged; connected {} times, {} resumed, {} early; moved {}, disconnected {}, suspect {}; {:?}",
            account.acknowledged.len(),
            of(&self.connected),
            of(&self.resumed),
            of(&self.early),
            of(&self.moved),
            of(&self.disconnected),
            of(&self.suspect),
            account.problems
        )
    }
}

async fn read(
    number: usize,
    mut subscription: Subscription,
    shared: Arc<Shared>,
    delivered: Arc<watch::Sender<u64>>,
) {
    while let Some(event) = subscription.next().await {
        match event {
            SubscriptionEvent::Publication(publication) => {
                let offset = publication.position.offset.0;
                let n = number_of(&publication.payload);
                shared.account().received[number].push((offset, n.unwrap_or(u64::MAX)));
                delivered.send_modify(|delivered| *delivered += 1);
            }
            SubscriptionEvent::Subscribed { recovered: true, .. } => {}
            // The last event of a client that is closed.
            SubscriptionEvent::Unsubscribed { .. } if shared.stop.load(Ordering::Relaxed) => {}
            other => shared.account().problems.push(format!("{}: {other:?}", channel(number))),
        }
    }
}

fn number_of(payload: &Payload) -> Option<u64> {
    let Payload::Json(text) = payload else { return None };
    serde_json::from_slice::<serde_json::Value>(text).ok()?["n"].as_u64()
}

async fn publish(publisher: usize, client: Client, shared: Arc<Shared>) {
    for count in 0.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let n = FIRST_OWN + count * PUBLISHERS as u64 + publisher as u64;
        let number = (n % CHANNELS as u64) as usize;
        let data = format!(r#"{{"n":{n},"filling":"{}"}}"#, "x".repeat((n * 7 % 400) as usize));
        match client.publish(&channel(number), Payload::Json(data.into())).await {
            Ok(position) => {
                let stored = Stored { channel: number, n, offset: position.offset.0 };
                shared.account().acknowledged.push(stored);
            }
            Err(error) => shared.account().problems.push(format!("publish {n}: {error}")),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Connections that never live for long are what this is about: nobody is to be blamed, and nobody to be spared.
fn impatient() -> LadderConfig {
    LadderConfig {
        dial_timeout: Duration::from_secs(3),
        broken_base: Duration::from_millis(20),
        broken_cap: Duration::from_millis(50),
        climb_base: Duration::from_secs(2),
        climb_cap: Duration::from_secs(4),
        trial_time: Duration::from_millis(500),
        suspect_retry: Duration::from_millis(200),
        ..LadderConfig::default()
    }
}
