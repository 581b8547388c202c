//! A disk without room: publishes are refused in words, nothing else ends, and it goes on by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use tidegate_client::{Client, Epoch, Offset, Payload, Position, Subscription, SubscriptionEvent};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::get;
use tidegate_interop_tests::wait::{PATIENCE, until, within};

use super::disk::SmallDisk;
use super::{OPEN, history, position, publish, refusal};

#[tokio::test]
async fn local_stops_at_its_reserve_and_goes_on_with_room() -> Result<()> {
    run(2 << 20).await
}

/// Without a reserve to speak of it is the write itself that fails, in its middle.
#[tokio::test]
async fn local_bears_a_write_that_finds_no_room() -> Result<()> {
    run(1).await
}

async fn run(reserve: u64) -> Result<()> {
    let disk = SmallDisk::mount(DISK)?;
    let reserve_setting = format!("core.local.reserve_bytes={reserve}");
    let settings = ["core.partitions=2", &disk.setting(), &reserve_setting];
    let mut gateway = Gateway::serve_alone(OPEN, &settings).await?;
    let client = Client::builder(gateway.url("ws")).connect().await?;
    let mut subscriber = Subscriber::join(&client).await?;
    let mut kept = Kept::default();
    for _ in 0..20 {
        let refused = kept.publish(&gateway).await?;
        ensure!(refused.is_ok(), "there is room: {refused:?}");
    }

    disk.leave(reserve + ROOM)?;
    let refused = loop {
        match kept.publish(&gateway).await? {
            Ok(()) => ensure!(kept.numbers.len() < 5_000, "more than there is room for"),
            Err(refused) => break refused,
        }
    };
    let text = refused["message"].as_str().context("no words")?;
    let store = disk.store().display().to_string();
    ensure!(refused["code"] == 503 && refused["retry"] == true, "{refused}");
    ensure!(text.contains(&store) && text.contains("make room on the disk"), "{text}");
    let log = gateway.log();
    let parts = ["ERROR", &store, "make room on the disk"];
    ensure!(log.lines().any(|line| parts.iter().all(|part| line.contains(part))), "{log}");
    is_ready(&gateway, false).await?;
    ensure!(gateway.metric("tidegate_core_log_frames_refused_total").await? >= 1.0);

    // What is there is read and delivered on, also when nothing at all is left.
    kept.check(&gateway).await?;
    subscriber.until(&kept).await?;
    disk.leave(0)?;
    for _ in 0..3 {
        let again = kept.publish(&gateway).await?;
        ensure!(again.is_err(), "taken without room");
        until("what is there", || kept.check(&gateway)).await?;
    }
    client.publish_ephemeral(CHANNEL, Payload::Json("\"lost or seen\"".into())).await?;
    subscriber.until_ephemeral().await?;
    let mut newcomer = Subscriber::join(&Client::builder(gateway.url("ws")).connect().await?).await?;
    newcomer.until(&kept).await?;

    // It goes on by itself, also where nobody asks for it.
    disk.relieve()?;
    is_ready(&gateway, true).await?;
    kept.publish_at_last(&gateway).await?;
    subscriber.until(&kept).await?;
    newcomer.until(&kept).await?;

    // Killed where there is no room, it starts there too, and goes on likewise.
    disk.leave(0)?;
    ensure!(kept.publish(&gateway).await?.is_err(), "taken without room");
    gateway.kill().await?;
    gateway.start_again().await?;
    kept.check(&gateway).await?;
    ensure!(kept.publish(&gateway).await?.is_err(), "taken without room");
    disk.relieve()?;
    kept.publish_at_last(&gateway).await?;
    subscriber.until(&kept).await?;
    gateway.crash().await?;
    kept.check(&gateway).await?;
    kept.publish_at_last(&gateway).await?;
    subscriber.until(&kept).await
}

async fn is_ready(gateway: &Gateway, wanted: bool) -> Result<()> {
    until(format!("readiness {wanted}"), || async {
        let status = gateway.api(get("/readyz")).await?.status;
        let status_wanted = if wanted { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        ensure!(status == status_wanted, "{status}");
        Ok(())
    })
    .await
}

/// What was acknowledged.
#[derive(Default)]
struct Kept {
    next: u64,
    numbers: Vec<u64>,
    head: Option<Position>,
}

impl Kept {
    /// The next one; its error where it is refused.
    async fn publish(&mut self, gateway: &Gateway) -> Result<Result<(), serde_json::Value>> {
        self.next += 1;
        let answer = publish(gateway, CHANNEL, self.next, 4_000).await?;
        if answer.status != StatusCode::OK {
            return Ok(Err(refusal(&answer)));
        }
        let position = position(&answer)?;
        let before = self.head.replace(position.clone());
        ensure!(before.is_none_or(|before| before.epoch == position.epoch), "another epoch: {position:?}");
        self.numbers.push(self.next);
        ensure!(position.offset.0 == self.numbers.len() as u64, "{position:?} of {}", self.numbers.len());
        Ok(Ok(()))
    }

    /// As a client does that is told to come again.
    async fn publish_at_last(&mut self, gateway: &Gateway) -> Result<()> {
        let mut tries = tokio::time::interval(Duration::from_millis(100));
        let taken = async {
            while self.publish(gateway).await?.is_err() {
                tries.tick().await;
            }
            anyhow::Ok(())
        };
        within(PATIENCE, "room", taken).await?
    }

    /// History has these, and nothing that was refused.
    async fn check(&self, gateway: &Gateway) -> Result<()> {
        let (head, numbers) = history(gateway, CHANNEL).await?;
        ensure!(Some(&head) == self.head.as_ref(), "{head:?}, not {:?}", self.head);
        ensure!(numbers == self.numbers, "{numbers:?} is not what was acknowledged: {:?}", self.numbers);
        Ok(())
    }
}

/// Who must get everything once.
struct Subscriber {
    subscription: Subscription,
    offset: u64,
}

impl Subscriber {
    async fn join(client: &Client) -> Result<Self> {
        let beginning = Position::new(Epoch::default(), Offset(0));
        Ok(Self { subscription: client.subscribe_from(CHANNEL, beginning).await?, offset: 0 })
    }

    async fn until(&mut self, kept: &Kept) -> Result<()> {
        let wanted = kept.numbers.len() as u64;
        let all = async {
            while self.offset < wanted {
                self.next().await?;
            }
            anyhow::Ok(())
        };
        within(PATIENCE, format!("{wanted} publications"), all).await?
    }

    async fn until_ephemeral(&mut self) -> Result<()> {
        within(PATIENCE, "an ephemeral item", async {
            while !self.next().await? {}
            anyhow::Ok(())
        })
        .await?
    }

    /// True for an ephemeral item.
    async fn next(&mut self) -> Result<bool> {
        match self.subscription.next().await.context("the subscription ended")? {
            SubscriptionEvent::Publication(publication) => {
                self.offset += 1;
                ensure!(publication.position.offset.0 == self.offset, "{publication:?} at {}", self.offset);
                Ok(false)
            }
            SubscriptionEvent::Subscribed { .. } => Ok(false),
            SubscriptionEvent::Ephemeral(_) => Ok(true),
            other => anyhow::bail!("{other:?}"),
        }
    }
}

const CHANNEL: &str = "room:1";
const DISK: u64 = 24 << 20;
/// Until it is full.
const ROOM: u64 = 300 << 10;
