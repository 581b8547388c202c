//! What other nodes send to this one: they ask for places, answer where they were asked for some, and pass on orders.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::drain::{DrainFrame, DrainQuestion, DrainReport};
use tidegate_protocol::link::fleet::{RelayError, Relayed};
use tidegate_protocol::link::lease::LeaseFrame;
use tidegate_protocol::link::wire::WireError;
use tidegate_transport::clock;
use tokio::task::JoinSet;
use tracing::debug;

use super::run::Command;
use super::{DrainControl, DrainError, Inner};
use crate::policy::admission::{DrainId, Lease, LeaseAsk};

/// Until it is dropped.
pub(super) async fn run(inner: &Arc<Inner>) {
    let mut replies = JoinSet::new();
    let mut revocations = inner.revocations.lock().await;
    loop {
        tokio::select! {
            // Cancel-safe, all of them; what comes is bounded by what cores pass on.
            biased;
            Some(_) = replies.join_next() => {}
            Some((node, lease)) = revocations.recv() => {
                reply(inner, &mut replies, node, LeaseFrame::Revoke { lease }.encode());
            }
            Relayed { from, payload } = inner.fleet.next_relayed() => {
                match LeaseFrame::decode(&payload) {
                    Ok(frame) => handle_lease_frame(inner, &mut replies, from, frame),
                    Err(WireError::Unknown) => handle_drain_frame(inner, &mut replies, from, &payload),
                    Err(error) => debug!(from = from.as_str(), %error, "a payload of another node"),
                }
            }
        }
    }
}

fn handle_lease_frame(inner: &Arc<Inner>, replies: &mut JoinSet<()>, from: NodeId, frame: LeaseFrame) {
    match frame {
        LeaseFrame::Ask { drain, want, urgent } => {
            if replies.len() >= REPLIES {
                return;
            }
            let ask = LeaseAsk { drain: DrainId(drain), want, urgent };
            if let Some(lease) = inner.door.handle_lease_ask(&from, ask) {
                grant(inner, replies, from, &lease);
            }
        }
        LeaseFrame::Return { lease, from: index } => {
            inner.door.handle_lease_returned(lease, index);
        }
        LeaseFrame::Grant { .. } | LeaseFrame::Revoke { .. } => {
            let mut unused = None;
            {
                let running = inner.running();
                // Who is told more than it takes asks again.
                let told = running.as_ref().map(|running| running.tell(Command::Lease(from.clone(), frame)));
                if told != Some(Ok(()))
                    && let LeaseFrame::Grant { lease, .. } = frame
                {
                    unused = Some(lease);
                }
            }
            if let Some(lease) = unused {
                reply(inner, replies, from, LeaseFrame::Return { lease, from: 0 }.encode());
            }
        }
    }
}

fn grant(inner: &Arc<Inner>, replies: &mut JoinSet<()>, to: NodeId, lease: &Lease) {
    let now = clock::now();
    {
        let mut granted = inner.granted();
        granted.retain(|_, (_, until)| *until > now);
        granted.insert(lease.number, (to.clone(), now + Lease::GRACE + MARGIN));
    }
    let Lease { drain, number, first_ms, spacing_us, count, .. } = *lease;
    let frame = LeaseFrame::Grant { drain: drain.0, lease: number, first_ms, spacing_us, count };
    let inner = Arc::clone(inner);
    replies.spawn(async move {
        match inner.fleet.relay(&to, frame.encode()).await {
            Err(error) if never_arrived(error) => inner.door.handle_lease_returned(number, 0),
            // Its clients may be on their way; places that nobody comes for end by themselves.
            Ok(()) | Err(_) => {}
        }
    });
}

/// Nobody has it.
fn never_arrived(error: RelayError) -> bool {
    matches!(error, RelayError::NoSuchEdge | RelayError::Busy | RelayError::TooLong)
}

fn handle_drain_frame(inner: &Arc<Inner>, replies: &mut JoinSet<()>, from: NodeId, payload: &Bytes) {
    match DrainFrame::decode(payload) {
        Ok(DrainFrame::Ask { request, question }) => {
            if replies.len() >= REPLIES {
                return;
            }
            let inner = Arc::clone(inner);
            replies.spawn(async move {
                let answer = match inner.answer(question).await {
                    Ok(report) => DrainFrame::Report { request, report },
                    Err(error) => DrainFrame::Refuse { request, why: error.to_string() },
                };
                // Who waits for it asks again where it is lost.
                let _ = inner.fleet.relay(&from, answer.encode()).await;
            });
        }
        Ok(frame) => inner.calls.handle_answer(&from, frame),
        Err(error) => debug!(from = from.as_str(), %error, "a payload of another node"),
    }
}

/// Who waits for it asks again where it is lost.
fn reply(inner: &Arc<Inner>, replies: &mut JoinSet<()>, to: NodeId, payload: Bytes) {
    if replies.len() < REPLIES {
        let fleet = inner.fleet.clone();
        replies.spawn(async move {
            let _ = fleet.relay(&to, payload).await;
        });
    }
}

impl Inner {
    /// Does what is asked; how the drain is then.
    pub(super) async fn answer(
        self: &Arc<Self>,
        question: DrainQuestion,
    ) -> Result<Option<DrainReport>, DrainError> {
        let control = DrainControl { inner: Arc::clone(self) };
        match question {
            DrainQuestion::Look => {}
            DrainQuestion::Order(order) => control.begin(order).await?,
            DrainQuestion::Pause => control.pause().await?,
            DrainQuestion::Resume => control.resume().await?,
            DrainQuestion::Abort => control.abort().await?,
        }
        Ok(control.report())
    }
}

/// On their way to others.
const REPLIES: usize = 1024;
/// Places are spread over a while.
const MARGIN: Duration = Duration::from_secs(2);
