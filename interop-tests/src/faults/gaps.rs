//! How long each subscription waited.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::watch;

use crate::checker::{Observer, View};
use crate::wait::within;

/// Fed by a recorder with what is delivered. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Gaps {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    seen: Mutex<Seen>,
    /// Subscriptions that have got nothing yet of what was published since.
    waiting: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Microseconds of the recorder's clock.
    since: u64,
    views: BTreeMap<View, Waits>,
}

/// Of one subscription, in microseconds, since what is measured began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waits {
    last: u64,
    /// Until something was delivered that was published after that.
    pub(super) resumed: Option<u64>,
    /// Between two deliveries.
    pub(super) longest: u64,
    /// From the first attempt to publish to the delivery.
    pub(super) slowest: u64,
}

impl Gaps {
    pub(super) fn new() -> Self {
        Self { shared: Arc::new(Shared { seen: Mutex::default(), waiting: watch::Sender::new(0) }) }
    }

    /// For the recorder.
    pub(super) fn observer(&self) -> Observer {
        let this = self.clone();
        Arc::new(move |now, view, invoked| this.delivered(now, view, invoked))
    }

    /// From `now` on, all of these are to get something that is published then.
    pub(super) fn begin(&self, now: u64, views: impl IntoIterator<Item = View>) {
        let views: BTreeMap<View, Waits> =
            views.into_iter().map(|view| (view, Waits { last: now, ..Waits::default() })).collect();
        let count = views.len();
        *self.seen() = Seen { since: now, views };
        self.shared.waiting.send_replace(count);
    }

    /// Waits until all have.
    pub(super) async fn all_resumed(&self, patience: Duration) -> Result<()> {
        let mut waiting = self.shared.waiting.subscribe();
        let resumed = waiting.wait_for(|count| *count == 0);
        let resumed = within(patience, "delivery to everybody", resumed).await.map(drop);
        resumed.with_context(|| format!("{} subscriptions wait still", *self.shared.waiting.borrow()))
    }

    /// Of each subscription.
    pub(super) fn waits(&self) -> BTreeMap<View, Waits> {
        self.seen().views.clone()
    }

    fn delivered(&self, now: u64, view: View, invoked: u64) {
        let mut seen = self.seen();
        let since = seen.since;
        let Some(waits) = seen.views.get_mut(&view) else { return };
        waits.longest = waits.longest.max(now.saturating_sub(waits.last));
        waits.last = now;
        if invoked < since {
            return;
        }
        waits.slowest = waits.slowest.max(now.saturating_sub(invoked));
        if waits.resumed.is_none() {
            waits.resumed = Some(now - since);
            self.shared.waiting.send_modify(|count| *count = count.saturating_sub(1));
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
