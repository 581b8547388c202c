//! Draining a node: the driver of the pace, and what others in the process see of it.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tidegate_protocol::endpoint::endpoint_of;
use tidegate_transport::clock;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::info;

use crate::policy::pace::{Event, Pace};
use crate::sessions::Sessions;

pub use crate::policy::pace::{DrainOrder, Progress};

/// Drains an edge, and stops doing so. Clones are the same.
#[derive(Debug, Clone)]
pub struct DrainControl {
    sessions: Sessions,
    /// The node's end.
    end: CancellationToken,
    running: Arc<Mutex<Option<Running>>>,
}

/// One drain: over when this is dropped.
#[derive(Debug)]
struct Running {
    order: DrainOrder,
    progress: watch::Receiver<Progress>,
    _stop: DropGuard,
}

/// What there is to say of a drain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrainStatus {
    /// Where sessions are sent.
    pub to: Vec<String>,
    /// Those of `to` that clients of this node were not told of in `connected`: none but clients that know them by
    /// themselves go there.
    pub unannounced: Vec<String>,
    /// How far it is.
    #[serde(flatten)]
    pub progress: Progress,
}

impl DrainControl {
    pub(crate) fn new(sessions: Sessions, end: CancellationToken) -> Self {
        Self { sessions, end, running: Arc::default() }
    }

    /// The sessions that it drains.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Begins; an order before it is over. Goes on until it is stopped or the node ends: who comes meanwhile is sent on.
    ///
    /// Must be called in a tokio runtime.
    #[expect(clippy::disallowed_methods, reason = "ends with the node, and holds up nobody's end")]
    pub fn begin(&self, order: DrainOrder) {
        let stop = self.end.child_token();
        let (sender, progress) = watch::channel(Progress::default());
        info!(to = ?order.to, within = ?order.within, "draining");
        tokio::spawn(stop.clone().run_until_cancelled_owned(run(
            self.sessions.clone(),
            order.clone(),
            sender,
        )));
        let running = Running { order, progress, _stop: stop.drop_guard() };
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
    }

    /// Asks nobody more. Who was asked goes, or is closed at its deadline. False where there was no drain.
    pub fn stop(&self) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// How far it is; `None` where the node is not drained.
    pub fn status(&self) -> Option<DrainStatus> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = running.as_ref()?;
        let alternatives = self.sessions.alternatives();
        let is_announced = |to: &str| {
            let host = to.trim_start_matches("https://").trim_end_matches('/');
            alternatives.iter().any(|known| endpoint_of(known) == endpoint_of(host))
        };
        let to = running.order.to.clone();
        let unannounced = to.iter().filter(|to| !is_announced(to)).cloned().collect();
        Some(DrainStatus { to, unannounced, progress: running.progress.borrow().clone() })
    }
}

async fn run(sessions: Sessions, order: DrainOrder, progress: watch::Sender<Progress>) {
    let mut ends = sessions.watch(ENDS).await;
    let mut pace = Pace::new(clock::now(), order);
    loop {
        pace.handle_timeout(clock::now());
        let mut asked = Vec::new();
        while let Some(event) = pace.poll_event() {
            match event {
                Event::List => {
                    let all = sessions.list().await;
                    // Of those that are missing, most have been told of.
                    while let Ok(end) = ends.try_recv() {
                        pace.handle_end(end);
                    }
                    pace.handle_sessions(clock::now(), all);
                }
                Event::Goaway(key, goaway) => asked.push((key, goaway)),
            }
        }
        // Who is gone meanwhile is missing in the next list.
        sessions.goaway(asked).await;
        progress.send_if_modified(|known| {
            let differs = known != pace.progress();
            known.clone_from(pace.progress());
            differs
        });
        tokio::select! {
            // Both are cancel-safe, and ends are handled faster than they come: a tick is late by one of them at most.
            biased;
            Some(end) = ends.recv() => pace.handle_end(end),
            () = tokio::time::sleep_until(pace.poll_timeout().into()) => {}
        }
    }
}

/// Ends that wait to be counted; beyond them, the next list says who is gone.
const ENDS: usize = 4096;
