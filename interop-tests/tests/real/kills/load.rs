//! The backend, which publishes on all channels all the time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tidegate_interop_tests::gateway::Gateway;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{CHANNELS, channel};

/// A publish that was answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) channel: usize,
    pub(super) n: u64,
    pub(super) offset: u64,
}

/// A backend at work.
pub(super) struct Load {
    stop: CancellationToken,
    done: oneshot::Receiver<Result<Vec<Stored>>>,
}

impl Load {
    pub(super) fn begin(gateway: &Arc<Gateway>, rng: &mut ChaCha8Rng) -> Self {
        let (stop, (sender, done)) = (CancellationToken::new(), oneshot::channel());
        let (gateway, rng, stopped) = (Arc::clone(gateway), ChaCha8Rng::from_rng(rng), stop.clone());
        TaskTracker::new().spawn(async move {
            // A test that failed no longer listens.
            let _gone = sender.send(publish(&gateway, rng, &stopped).await);
        });
        Self { stop, done }
    }

    /// Ends it. What it published, and where it is stored.
    pub(super) async fn end(self) -> Result<Vec<Stored>> {
        self.stop.cancel();
        self.done.await.context("the backend is gone")?
    }
}

async fn publish(gateway: &Gateway, mut rng: ChaCha8Rng, stop: &CancellationToken) -> Result<Vec<Stored>> {
    let mut stored = Vec::new();
    // So much load, and no more.
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    while !stop.is_cancelled() {
        pace.tick().await;
        let first = stored.len() as u64;
        let batch: Vec<(usize, u64)> =
            (0..BATCH).map(|index| (rng.random_range(0..CHANNELS), first + index)).collect();
        let publications: Vec<Value> = batch
            .iter()
            .map(|(number, n)| {
                let filling = "x".repeat(rng.random_range(0..300));
                json!({ "channel": channel(*number), "data": { "n": n, "filling": filling } })
            })
            .collect();
        let positions = gateway.publish_batch(&publications).await.context("the backend publishes")?;
        for ((number, n), position) in batch.into_iter().zip(positions) {
            let offset = position["offset"].as_u64().context("offset")?;
            stored.push(Stored { channel: number, n, offset });
        }
    }
    Ok(stored)
}

const BATCH: u64 = 10;
