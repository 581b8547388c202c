//! Links between our own nodes: the trait, the in-process one, and the one between processes ([`quic`]).
//!
//! A link is ordered and bounded. Its sender waits at the bound: nothing on a link is dropped.

mod calls;
pub mod quic;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, HistoryRange, LinkError, Members, Publish, Recovery};
use tidegate_protocol::{ChannelName, Position};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

pub use calls::{CallError, DrainAnswer, DrainCalls};

/// The other end is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link is closed")]
pub struct LinkClosed;

/// Why a frame was not taken at once.
#[derive(Debug)]
pub enum TrySendError<F> {
    /// At the bound: here it is back.
    Full(F),
    /// The other end is gone.
    Closed,
}

/// The sending half of a link. Shared by all that send on it.
pub trait LinkSender<F>: Send + Sync + std::fmt::Debug {
    /// Takes the frame at once, or gives it back.
    fn try_send(&self, frame: F) -> Result<(), TrySendError<F>>;

    /// Waits for room.
    fn send(&self, frame: F) -> Pin<Box<dyn Future<Output = Result<(), LinkClosed>> + Send + '_>>;
}

/// The receiving half of a link.
pub trait LinkReceiver<F>: Send + std::fmt::Debug {
    /// Appends up to `limit` frames that wait; ready with how many, 0 once the other end is gone.
    fn poll_recv_many(&mut self, cx: &mut Context<'_>, frames: &mut Vec<F>, limit: usize) -> Poll<usize>;
}

/// One end of a link.
#[derive(Debug)]
pub struct Link<Out, In> {
    /// Towards the other end.
    pub sender: Arc<dyn LinkSender<Out>>,
    /// From the other end.
    pub receiver: Box<dyn LinkReceiver<In>>,
}

/// The edge's end.
pub type EdgeLink = Link<EdgeFrame, CoreFrame>;

/// The core's end.
pub type CoreLink = Link<CoreFrame, EdgeFrame>;

/// What the backend API asks of the channel tier, wherever that runs: in this process, or behind links.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Publishes in order per channel, all at once; `None` for an ephemeral one. The outer error: none was taken.
    fn publish(&self, publishes: Vec<Publish>)
    -> BackendFuture<'_, Vec<Result<Option<Position>, LinkError>>>;

    /// The newest of `range` that fit one answer.
    fn history(&self, channel: ChannelName, range: HistoryRange) -> BackendFuture<'_, Recovery>;

    /// Who is on a channel.
    fn members(&self, channel: ChannelName) -> BackendFuture<'_, Members>;

    /// Nodes, partitions and links, as `docs/OPERATIONS.md` describes them: one JSON object.
    fn status(&self) -> BackendFuture<'_, Bytes>;

    /// False while part of the channel tier is out of reach.
    fn is_ready(&self) -> bool;
}

/// What [`Backend`]'s methods return.
pub type BackendFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, LinkError>> + Send + 'a>>;

/// What became of publishes, in their order: of those whose answer is not there by `deadline`, or never will be, nobody knows.
/// The inner error: it was not handed on.
pub async fn published(
    pending: Vec<Result<oneshot::Receiver<CoreFrame>, LinkError>>,
    deadline: Instant,
) -> Vec<Result<Option<Position>, LinkError>> {
    let mut results = Vec::with_capacity(pending.len());
    for answer in pending {
        results.push(match answer {
            Ok(answer) => match timeout_at(deadline.into(), answer).await {
                Ok(Ok(CoreFrame::Published { result, .. })) => result,
                _ => Err(LinkError::outcome_unknown()),
            },
            Err(error) => Err(error),
        });
    }
    results
}

/// A link inside one process, with at most `bound` frames waiting in each direction.
pub fn memory(bound: usize) -> (EdgeLink, CoreLink) {
    let (to_core, from_edge) = mpsc::channel(bound);
    let (to_edge, from_core) = mpsc::channel(bound);
    (
        Link { sender: Arc::new(MemorySender(to_core)), receiver: Box::new(MemoryReceiver(from_core)) },
        Link { sender: Arc::new(MemorySender(to_edge)), receiver: Box::new(MemoryReceiver(from_edge)) },
    )
}

#[derive(Debug)]
struct MemorySender<F>(mpsc::Sender<F>);

impl<F: std::fmt::Debug + Send + 'static> LinkSender<F> for MemorySender<F> {
    fn try_send(&self, frame: F) -> Result<(), TrySendError<F>> {
        self.0.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(frame) => TrySendError::Full(frame),
            mpsc::error::TrySendError::Closed(_) => TrySendError::Closed,
        })
    }

    fn send(&self, frame: F) -> Pin<Box<dyn Future<Output = Result<(), LinkClosed>> + Send + '_>> {
        Box::pin(async move { self.0.send(frame).await.map_err(|_| LinkClosed) })
    }
}

#[derive(Debug)]
struct MemoryReceiver<F>(mpsc::Receiver<F>);

impl<F: std::fmt::Debug + Send> LinkReceiver<F> for MemoryReceiver<F> {
    fn poll_recv_many(&mut self, cx: &mut Context<'_>, frames: &mut Vec<F>, limit: usize) -> Poll<usize> {
        self.0.poll_recv_many(cx, frames, limit)
    }
}
