//! Watches a connection's path: what flowed and stopped is probed, and told where nothing comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_transport::clock;
use tidegate_transport::quic::{PathEvent, PathWatch, PtoEstimate};
use tokio::sync::{Notify, mpsc};

use super::{Inbound, Path, PathNews};

/// Runs as long as the connection. `received` is notified when something came.
pub(super) async fn watch(path: Path, received: Arc<Notify>, control: mpsc::Sender<Inbound>) {
    let Path { client, probe } = path;
    let mut watch = PathWatch::new();
    let mut pto = PtoEstimate::default();
    let mut told_at: Option<Instant> = None;
    // Datagrams that had come when the path became suspect; when it was probed on request.
    let mut suspect: Option<u64> = None;
    let mut asked: Option<(u64, Instant)> = None;
    loop {
        // Acknowledgements wake nobody: they are looked for while they count.
        let look = (suspect.is_some() || asked.is_some()).then(|| clock::now() + LOOK);
        let deadline = look.into_iter().chain(watch.poll_timeout()).min();
        let mut requested = false;
        tokio::select! { biased;
            () = probe.notified() => requested = true,
            () = received.notified() => {}
            () = sleep_until(deadline) => {}
        }
        let now = clock::now();
        let datagrams = client.received_datagrams();
        let rtt = client.rtt();
        let probe_timeout = pto.update(rtt);
        watch.handle_received(now, datagrams, probe_timeout);
        watch.handle_timeout(now);
        if requested {
            if suspect.is_some() {
                // It is asked for a last word: from a socket of its own, since quinn's back-off may be seconds long.
                drop(client.rebind());
            }
            client.probe();
            asked = Some((datagrams, now));
        }
        while let Some(event) = watch.poll_event() {
            match event {
                PathEvent::Probe => drop(client.probe()),
                PathEvent::Rebind => {
                    // Without a new socket the one before goes on, and the next event tries again.
                    drop(client.rebind());
                    client.probe();
                }
                PathEvent::Suspect => {
                    suspect = Some(datagrams);
                    if control.send(Inbound::Path(PathNews::Suspect)).await.is_err() {
                        return;
                    }
                }
            }
        }
        if suspect.is_some_and(|before| datagrams > before) {
            suspect = None;
            if control.send(Inbound::Path(PathNews::Heard)).await.is_err() {
                return;
            }
        }
        let answered = asked.is_some_and(|(before, _)| datagrams > before);
        if answered || asked.is_some_and(|(_, at)| now.saturating_duration_since(at) > FORGET) {
            asked = None;
        }
        if answered || (datagrams > 0 && told_at.is_none_or(|at| now.saturating_duration_since(at) >= TELL)) {
            told_at = Some(now);
            // News that the driver has no place for are old when it has.
            drop(control.try_send(Inbound::Path(PathNews::RoundTrip { rtt, pto: probe_timeout })));
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Between looks for something that wakes nobody.
const LOOK: Duration = Duration::from_millis(20);

/// A probe that was not answered by then is not waited for.
const FORGET: Duration = Duration::from_secs(5);

/// Between reports of the round trip.
const TELL: Duration = Duration::from_secs(1);
