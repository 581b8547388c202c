//! How a partition ends on its owner's own will: handed over to another node, nothing lost and nothing refused.

use tidegate_protocol::NodeId;
use tidegate_protocol::link::CoreFrame;
use tokio::time::timeout;
use tracing::info;

use super::{Command, Driver, End, Reach, refusal};
use crate::link::unavailable;

impl Driver {
    /// Everything that was taken off the queue is answered. What is still in it was not handled: edges over the network
    /// are told so by `Moved` and send it again, all others get an answer.
    pub(super) async fn hand_over(mut self, to: Option<NodeId>) -> End {
        let partition = self.partition.claim.partition();
        self.partition.queue.close();
        while let Some(command) = self.partition.queue.recv().await {
            match command {
                Command::Attach { link, reach, sender, cut, .. } => {
                    self.attach_link(link, reach, sender, cut)
                }
                Command::Detach { link } => {
                    self.links.remove(link);
                }
                Command::Request { frame, answer, .. } => {
                    if let Some(frame) = refusal(frame, &unavailable()) {
                        // Whoever asked may be gone.
                        let _ = answer.send(frame);
                    }
                }
                Command::Frame { link, frame, .. } => {
                    let local = self.links.get(link).is_some_and(|entry| entry.reach == Reach::Process);
                    if local && let Some(frame) = refusal(frame, &unavailable()) {
                        self.send(link, frame).await;
                    }
                }
            }
        }
        let moved = CoreFrame::Moved { partition: partition.0, to: to.clone() };
        for entry in self.links.take().into_values() {
            let told = match entry.reach {
                Reach::Network => entry.sender.try_send(moved.clone()).is_ok(),
                Reach::Process => {
                    let wait = self.partition.config.link_wait;
                    matches!(timeout(wait, entry.sender.send(moved.clone())).await, Ok(Ok(())))
                }
            };
            if !told {
                entry.cut.cancel();
            }
        }
        let next = to.as_ref().map(NodeId::as_str);
        info!(partition = partition.0, term = self.partition.claim.term(), next, "handed over");
        self.partition.metrics.count_handover();
        self.partition.engine.release(self.partition.claim, to).await;
        End::HandedOver
    }
}
