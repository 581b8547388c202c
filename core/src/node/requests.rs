//! What the backend API asks of a node: publishes, history, who is there.

use bytes::Bytes;
use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, HistoryRange, LinkError, Members, Publish, Recovery};
use tidegate_protocol::{ChannelName, Position};
use tidegate_transport::clock;
use tidegate_transport::link::{Backend, BackendFuture, published};
use tokio::sync::{TryAcquireError, mpsc, oneshot};
use tokio::time::{timeout, timeout_at};

use super::CoreNode;
use crate::link::unavailable;
use crate::partition::Command;
use crate::placement::partition_of;

impl CoreNode {
    /// Publishes for the backend; `None` for an ephemeral one.
    pub async fn publish(&self, publish: Publish) -> Result<Option<Position>, LinkError> {
        let mut results = self.publish_batch(vec![publish]).await?;
        results.pop().unwrap_or_else(|| Err(unavailable()))
    }

    /// Publishes for the backend, in order per channel, all at once. The outer error means that none was taken.
    pub async fn publish_batch(
        &self,
        publishes: Vec<Publish>,
    ) -> Result<Vec<Result<Option<Position>, LinkError>>, LinkError> {
        let _permits = self.admit(publishes.len())?;
        let deadline = clock::now() + self.inner.config.backend_wait;
        let mut pending = Vec::with_capacity(publishes.len());
        for publish in publishes {
            let sent = match self.queue(&publish.channel) {
                Ok(queue) => {
                    let frame = EdgeFrame::Publish { request: 0, publish };
                    let sent = timeout_at(deadline.into(), request(&queue, frame)).await;
                    sent.unwrap_or_else(|_| Err(unavailable()))
                }
                Err(error) => Err(error),
            };
            pending.push(sent);
        }
        Ok(published(pending, deadline).await)
    }

    /// Reads history for the backend: the newest of `range` that fit one answer.
    pub async fn history(&self, channel: ChannelName, range: HistoryRange) -> Result<Recovery, LinkError> {
        let queue = self.queue(&channel)?;
        match self.ask(queue, EdgeFrame::History { request: 0, channel, range }).await? {
            CoreFrame::Recovered { result, .. } => result,
            _ => Err(unavailable()),
        }
    }

    /// Says who is on a channel, for the backend.
    pub async fn members(&self, channel: ChannelName) -> Result<Members, LinkError> {
        let queue = self.queue(&channel)?;
        match self.ask(queue, EdgeFrame::Members { request: 0, channel }).await? {
            CoreFrame::Members { result, .. } => result,
            _ => Err(unavailable()),
        }
    }

    async fn ask(&self, queue: mpsc::Sender<Command>, frame: EdgeFrame) -> Result<CoreFrame, LinkError> {
        let _permit = self.admit(1)?;
        let answer = async { request(&queue, frame).await?.await.map_err(|_| unavailable()) };
        timeout(self.inner.config.backend_wait, answer).await.unwrap_or_else(|_| Err(unavailable()))
    }

    fn queue(&self, channel: &ChannelName) -> Result<mpsc::Sender<Command>, LinkError> {
        let slots = &self.inner.slots;
        slots.queue(partition_of(channel, slots.len())).ok_or_else(|| match self.inner.cluster {
            None => unavailable(),
            Some(_) => {
                let message = "this core node does not own the channel: ask an edge, which knows who does";
                LinkError { code: ErrorCode::Unavailable, message: message.to_owned() }
            }
        })
    }

    fn admit(&self, requests: usize) -> Result<tokio::sync::SemaphorePermit<'_>, LinkError> {
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        self.inner.backend.try_acquire_many(requests).map_err(|error| {
            let message = match error {
                TryAcquireError::NoPermits => "too many backend requests are in flight: try again",
                TryAcquireError::Closed => "the node is going away",
            };
            LinkError { code: ErrorCode::Unavailable, message: message.to_owned() }
        })
    }
}

impl Backend for CoreNode {
    fn publish(
        &self,
        publishes: Vec<Publish>,
    ) -> BackendFuture<'_, Vec<Result<Option<Position>, LinkError>>> {
        Box::pin(self.publish_batch(publishes))
    }

    fn history(&self, channel: ChannelName, range: HistoryRange) -> BackendFuture<'_, Recovery> {
        Box::pin(Self::history(self, channel, range))
    }

    fn members(&self, channel: ChannelName) -> BackendFuture<'_, Members> {
        Box::pin(Self::members(self, channel))
    }

    fn status(&self) -> BackendFuture<'_, Bytes> {
        let status = super::status::of(&self.inner);
        Box::pin(std::future::ready(Ok(status)))
    }

    fn is_ready(&self) -> bool {
        self.is_serving()
    }
}

async fn request(
    queue: &mpsc::Sender<Command>,
    frame: EdgeFrame,
) -> Result<oneshot::Receiver<CoreFrame>, LinkError> {
    let (sender, answer) = oneshot::channel();
    let command = Command::Request { frame, answer: sender, at: clock::now() };
    queue.send(command).await.map_err(|_| unavailable())?;
    Ok(answer)
}
