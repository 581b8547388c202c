//! Fills a history from clients of the SDK: a task for each subscription, and publishers at a steady rate.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tidegate_client::{
    Client, ClientError, Epoch, Offset, Payload, Position, Subscription, SubscriptionEvent,
};
use tidegate_transport::clock;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::history::{Attempt, Begun, History, Outcome, View};
use super::report::{Bounds, Report};
use crate::wait::{self, PATIENCE, within};

/// A history that tasks write to. Clones share it.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

struct Shared {
    start: Instant,
    history: Mutex<History>,
    observer: Option<Observer>,
}

/// Told of each delivery: when, to whom, and when what was delivered had been published first.
pub type Observer = Arc<dyn Fn(u64, View, u64) + Send + Sync>;

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("start", &self.start).finish_non_exhaustive()
    }
}

/// A subscription that is taken down.
#[derive(Debug)]
pub struct Reader {
    view: View,
    recorder: Recorder,
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
}

/// Where a subscription stands.
#[derive(Debug, Clone, Default)]
struct Standing {
    position: Position,
    /// The server ended it.
    refused: Option<String>,
}

/// What a publisher does.
#[derive(Debug, Clone)]
pub struct Load {
    /// The channels, one after the other.
    pub channels: Vec<String>,
    /// Publishes a second.
    pub rate: f64,
    /// Bytes of a payload, about.
    pub size: usize,
    /// Publishes that may wait for their answers; at the bound the rate is not kept.
    pub in_flight: usize,
}

/// A publisher.
#[derive(Debug)]
pub struct Writer {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// Of a run that begins.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// The same, which tells `observer` what is delivered.
    pub fn observed(observer: Observer) -> Self {
        Self::with(Some(observer))
    }

    fn with(observer: Option<Observer>) -> Self {
        let shared = Shared { start: clock::now(), history: Mutex::default(), observer };
        Self { shared: Arc::new(shared), tasks: TaskTracker::new() }
    }

    /// Subscribes behind `asked`, or at the head, and takes down what comes, until the reader is dropped.
    ///
    /// # Errors
    /// When the client cannot subscribe.
    pub async fn subscribe(
        &self,
        subscriber: &str,
        client: &Client,
        channel: &str,
        asked: Option<Position>,
    ) -> Result<Reader> {
        let view = self.history().view(subscriber, channel, asked.as_ref());
        let subscription = match asked.clone() {
            Some(position) => client.subscribe_from(channel, position).await?,
            None => client.subscribe(channel).await?,
        };
        let (standing, watched) = watch::channel(Standing::default());
        let stop = CancellationToken::new();
        let reader = Reader { view, recorder: self.clone(), standing: watched, stop: stop.clone() };
        let following = self.clone().follow(view, asked, subscription, standing);
        self.tasks.spawn(stop.run_until_cancelled_owned(following));
        Ok(reader)
    }

    /// Publishes at the load's rate, each publication by a key of its own, until the writer is stopped. `number` tells
    /// the publishers of a run apart: their payloads are others.
    pub fn publish(&self, publisher: &str, number: u32, client: &Client, load: Load) -> Writer {
        let client = client.clone();
        self.publish_by(publisher, number, load, move |channel, payload, key| {
            let client = client.clone();
            async move { outcome(client.publish_with_key(&channel, payload, key).await) }
        })
    }

    /// The same, by whatever way `publish` takes: channel, payload and key.
    pub fn publish_by<F, Fut>(&self, publisher: &str, number: u32, load: Load, publish: F) -> Writer
    where
        F: Fn(String, Payload, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let writer = Writer { stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let (stop, tasks, recorder) = (writer.stop.clone(), writer.tasks.clone(), self.clone());
        let publisher = publisher.to_owned();
        writer.tasks.spawn(async move {
            let places = Arc::new(Semaphore::new(load.in_flight));
            let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / load.rate));
            for count in 0u64.. {
                let next = async {
                    ticks.tick().await;
                    Arc::clone(&places).acquire_owned().await
                };
                let Some(Ok(place)) = stop.run_until_cancelled(next).await else { return };
                let id = u64::from(number) << PUBLISHER_SHIFT | count;
                let channel = load.channels[count as usize % load.channels.len()].clone();
                let payload = payload(id, load.size);
                let attempt = recorder.invoke(&publisher, &channel, true, id);
                let publishing = publish(channel, payload, format!("checker-{id}"));
                let recorder = recorder.clone();
                tasks.spawn(async move {
                    recorder.answer(attempt, publishing.await);
                    drop(place);
                });
            }
        });
        writer.tasks.close();
        writer
    }

    /// A publish is about to be sent, by whatever way; [`Recorder::answer`] tells how it ended.
    pub fn invoke(&self, client: &str, channel: &str, is_keyed: bool, payload: u64) -> Attempt {
        // The time first: it must not be later than the sending.
        let now = self.now();
        self.history().invoke(now, client, channel, is_keyed, payload)
    }

    /// How an attempt ended.
    pub fn answer(&self, attempt: Attempt, outcome: Outcome) {
        let now = self.now();
        self.history().answer(now, attempt, outcome);
    }

    /// Takes down what history holds of a channel: to be called when nothing is published any more.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self, client: &Client, channel: &str) -> Result<Position> {
        let beginning = Position::new(Epoch::default(), Offset(0));
        let read = client.history(channel, Some(beginning), 0).await?;
        let items: Option<Vec<(u64, u64)>> = read
            .publications
            .iter()
            .map(|one| Some((one.position.offset.0, payload_id(&one.payload)?)))
            .collect();
        let items = items.context("history holds what no publisher of the run published")?;
        let bytes: usize = read.publications.iter().map(|one| one.payload.len() + channel.len()).sum();
        let is_cut = !read.recovered && bytes >= REPLY_BYTES / 2;
        let now = self.now();
        self.history().read(now, channel, &read.position, is_cut, items);
        Ok(read.position)
    }

    /// Waits until every one of these has got to the head of its channel, or says who has not. Then reads history. Nothing
    /// is to be published meanwhile.
    ///
    /// # Errors
    /// When history cannot be read. That somebody does not get there is for the report to say.
    pub async fn settle(
        &self,
        client: &Client,
        channels: &[String],
        readers: &[Reader],
    ) -> Result<Vec<String>> {
        let mut late = Vec::new();
        for channel in channels {
            let head =
                wait::until(format!("the history of {channel}"), || self.read(client, channel)).await?;
            for reader in readers {
                let (name, subscriber) = reader.names();
                if name == *channel && reader.reaches(&head, PATIENCE).await.is_err() {
                    late.push(format!("{subscriber} on {channel} is at {:?}", reader.position()));
                }
            }
        }
        Ok(late)
    }

    /// Judges the run so far.
    pub fn report(&self, bounds: &Bounds) -> Report {
        self.history().report(bounds)
    }

    /// The history itself.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.shared.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds since the run began.
    pub fn now(&self) -> u64 {
        let passed = clock::now().saturating_duration_since(self.shared.start);
        u64::try_from(passed.as_micros()).unwrap_or(u64::MAX)
    }

    async fn follow(
        self,
        view: View,
        mut asked: Option<Position>,
        mut subscription: Subscription,
        standing: watch::Sender<Standing>,
    ) {
        while let Some(event) = subscription.next().await {
            let now = self.now();
            let mut history = self.history();
            let position = match event {
                SubscriptionEvent::Subscribed { position, recovered } => {
                    let how = if recovered { Begun::Recovered } else { Begun::AtHead };
                    history.subscribed(now, view, how, &position);
                    // What was missed is still to come.
                    match (recovered, asked.take()) {
                        (true, Some(asked)) => Position::new(position.epoch, asked.offset),
                        (true, None) => continue,
                        (false, _) => position,
                    }
                }
                SubscriptionEvent::Rebased { position } => {
                    asked = None;
                    history.subscribed(now, view, Begun::Rebased, &position);
                    position
                }
                SubscriptionEvent::Publication(publication) => {
                    // What is no payload of ours was published by nobody.
                    let payload = payload_id(&publication.payload).unwrap_or(FOREIGN);
                    history.delivered(now, view, &publication.position, payload);
                    if let Some((observer, invoked)) =
                        self.shared.observer.as_ref().zip(history.invoked(payload))
                    {
                        observer(now, view, invoked);
                    }
                    publication.position
                }
                SubscriptionEvent::Unsubscribed { error } => {
                    history.ended(view);
                    standing.send_modify(|standing| standing.refused = Some(format!("{error:?}")));
                    return;
                }
                _ => continue,
            };
            drop(history);
            standing.send_modify(|standing| standing.position = position);
        }
    }
}

impl Reader {
    /// What it sees, in the history.
    pub fn view(&self) -> View {
        self.view
    }

    /// The last publication that it got, or where it began.
    pub fn position(&self) -> Position {
        self.standing.borrow().position.clone()
    }

    /// Waits until it has got so far, in the same epoch.
    ///
    /// # Errors
    /// When it does not within that time, or the server ended the subscription.
    pub async fn reaches(&self, position: &Position, patience: Duration) -> Result<()> {
        let mut standing = self.standing.clone();
        let is_there = |now: &Standing| {
            let has = &now.position;
            now.refused.is_some() || (has.epoch == position.epoch && has.offset >= position.offset)
        };
        let reached = async { standing.wait_for(is_there).await.map(|standing| standing.clone()) };
        let reached = within(patience, format!("{position:?}"), reached).await??;
        match reached.refused {
            Some(why) => anyhow::bail!("the server ended the subscription: {why}"),
            None => Ok(()),
        }
    }

    /// The channel, and the subscriber.
    fn names(&self) -> (String, String) {
        let history = self.recorder.history();
        let (channel, subscriber) = history.names_of(self.view);
        (channel.to_owned(), subscriber.to_owned())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Before the subscription is left: what does not come after that is nobody's fault.
        self.recorder.history().ended(self.view);
        self.stop.cancel();
    }
}

impl Writer {
    /// Publishes nothing more, and waits for the answers.
    ///
    /// # Errors
    /// When they do not come in time.
    pub async fn stop(self, patience: Duration) -> Result<()> {
        self.stop.cancel();
        within(patience, "the answers to all publishes", self.tasks.wait()).await
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A payload that bears its id, below 2^53, and is about so large.
pub fn payload(id: u64, size: usize) -> Payload {
    let mut text = format!("{PREFIX}{id}");
    let filling = size.saturating_sub(text.len() + r#","x":""}"#.len());
    if filling > 0 {
        text.push_str(r#","x":""#);
        text.extend(std::iter::repeat_n('.', filling));
        text.push('"');
    }
    text.push('}');
    Payload::Json(text.into())
}

/// The id that a payload of [`payload`] bears.
pub fn payload_id(payload: &Payload) -> Option<u64> {
    let Payload::Json(text) = payload else { return None };
    let rest = std::str::from_utf8(text).ok()?.strip_prefix(PREFIX)?;
    let end = rest.find(|one: char| !one.is_ascii_digit())?;
    rest[..end].parse().ok()
}

/// What is certain of an SDK's publish: a refusal that may not go better later, and an answer.
fn outcome(result: Result<Position, ClientError>) -> Outcome {
    match result {
        Ok(position) => Outcome::Acknowledged(position),
        Err(
            ClientError::Refused { retry: false, .. } | ClientError::Invalid(_) | ClientError::Channel(_),
        ) => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    }
}

/// A reply is cut to the newest that fit (PROTOCOL §4.6).
const REPLY_BYTES: usize = 256 << 10;
/// How every payload begins: carried through unchanged (PROTOCOL §2.2).
const PREFIX: &str = r#"{"id":"#;
/// Payload ids of one publisher: up to a trillion.
const PUBLISHER_SHIFT: u32 = 40;
/// Stands for a payload of somebody else's.
const FOREIGN: u64 = u64::MAX - 1;
