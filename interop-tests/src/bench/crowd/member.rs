//! A process of a crowd: clients of `sdk/rust`, which say on stdout what happens to them.

use std::fmt::Write as _;
use std::io::{BufRead as _, Read as _, Write as _};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tidegate_client::{Client, ClientEvent, Events, SubscribeOptions, Subscription, SubscriptionEvent};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use super::line::{Said, What};
use super::order::{Order, channel_name, token};
use crate::bench::proc;
use crate::bench::unix_us;
use crate::checker::payload_id;

/// The process.
pub(super) fn run() -> Result<ExitCode> {
    proc::raise_open_files(0)?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("stdin")?;
    let order: Order = serde_json::from_str(&line).context("an order")?;
    let (teller, stop) = (Teller::default(), CancellationToken::new());
    let (writer, stopped) = (teller.clone(), stop.clone());
    let writing = std::thread::spawn(move || writer.write(&stopped));
    let ended = stop.clone();
    std::thread::spawn(move || {
        // Whoever gave the order is gone when it ends.
        let _end = std::io::stdin().lock().read_to_end(&mut Vec::new());
        ended.cancel();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(stop.run_until_cancelled(crowd(order, &teller)));
    // Clients are not closed in order: nobody waits for them.
    writing.join().map_err(|_| anyhow::anyhow!("the writer has failed"))?;
    Ok(ExitCode::SUCCESS)
}

async fn crowd(order: Order, teller: &Teller) {
    let order = Arc::new(order);
    let mut clients = JoinSet::new();
    let mut ticks = interval(Duration::from_secs(1) / order.per_second.max(1));
    for number in order.first..order.first + order.clients {
        ticks.tick().await;
        let (order, voice) = (Arc::clone(&order), Voice { client: number, teller: teller.clone() });
        clients.spawn(async move {
            if let Err(error) = client(&order, &voice).await {
                voice.say(What::Failed { text: format!("{error:#}") });
            }
        });
    }
    while clients.join_next().await.is_some() {}
    // Those that failed have said so; the process ends with its stdin.
    std::future::pending().await
}

/// One client, without an end.
async fn client(order: &Order, voice: &Voice) -> Result<()> {
    let client = connect(order, voice).await?;
    let events = client.take_events().context("events")?;
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_client(events, voice.clone()));
    for place in 0..order.follows {
        let channel = channel_name(order.channel(voice.client, place));
        let options = SubscribeOptions { presence: order.watches, ..SubscribeOptions::default() };
        let subscription = client.subscribe_with(&channel, options).await?;
        tasks.spawn(follow(subscription, place, voice.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    bail!("its session ended")
}

/// Connects; a server that has no place now may have one soon.
async fn connect(order: &Order, voice: &Voice) -> Result<Client> {
    let token = token(voice.client)?;
    for _ in 1..ATTEMPTS {
        if let Ok(client) = builder(order, &token).connect().await {
            return Ok(client);
        }
        sleep(BETWEEN_ATTEMPTS).await;
    }
    Ok(builder(order, &token).connect().await?)
}

fn builder(order: &Order, token: &str) -> tidegate_client::Builder {
    Client::builder(&order.url).with_certificate_hash(&order.certificate_hash).with_token(token)
}

async fn follow_client(mut events: Events, voice: Voice) -> Result<()> {
    while let Some(event) = events.next().await {
        let what = match event {
            ClientEvent::Connected { .. } => What::Connected,
            ClientEvent::Moved { .. } => What::Moved,
            ClientEvent::Disconnected { code, reason } => What::Disconnected { code, reason },
            ClientEvent::GoawayIgnored { endpoint } => {
                What::Failed { text: format!("it did not go to {endpoint}") }
            }
            ClientEvent::Closed { code, reason } => bail!("closed with {code}: {reason}"),
            _ => continue,
        };
        voice.say(what);
    }
    Ok(())
}

async fn follow(mut subscription: Subscription, place: u32, voice: Voice) -> Result<()> {
    while let Some(event) = subscription.next().await {
        let what = match event {
            SubscriptionEvent::Publication(publication) => What::Delivered {
                place,
                payload: payload_id(&publication.payload),
                position: publication.position,
            },
            SubscriptionEvent::Subscribed { position, recovered } => {
                What::Subscribed { place, recovered, position }
            }
            SubscriptionEvent::Rebased { position } => What::Rebased { place, position },
            SubscriptionEvent::Join { user, .. } => What::Presence { text: format!("+{user}") },
            SubscriptionEvent::Leave { user, .. } => What::Presence { text: format!("-{user}") },
            SubscriptionEvent::PresenceGap => What::Presence { text: "?".to_owned() },
            SubscriptionEvent::Unsubscribed { error } => bail!("a subscription ended: {error:?}"),
            _ => continue,
        };
        voice.say(what);
    }
    Ok(())
}

/// Speaks for one client.
#[derive(Debug, Clone)]
struct Voice {
    client: u32,
    teller: Teller,
}

impl Voice {
    fn say(&self, what: What) {
        let said = Said { client: self.client, at: unix_us(), what };
        let mut waiting = self.teller.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _written = writeln!(waiting, "{said}");
    }
}

/// Lines that wait to be written, by a thread: a reader that is slow must not stop the clients.
#[derive(Debug, Clone, Default)]
struct Teller(Arc<Mutex<String>>);

impl Teller {
    fn write(&self, stop: &CancellationToken) {
        let mut stdout = std::io::stdout();
        while !stop.is_cancelled() {
            let lines = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
            if lines.len() > MAX_WAITING || stdout.write_all(lines.as_bytes()).is_err() {
                // Nobody reads, or not fast enough: what would be measured is that.
                eprintln!("error: {} bytes of what clients see were not read", lines.len());
                std::process::exit(1);
            }
            std::thread::sleep(BETWEEN_WRITES);
        }
    }
}

/// Until a client has its first connection.
const ATTEMPTS: u32 = 30;
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
const BETWEEN_WRITES: Duration = Duration::from_millis(10);
/// Bytes.
const MAX_WAITING: usize = 64 << 20;
