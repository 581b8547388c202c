//! Questions to edges about drains that wait for their answers, which come by themselves, by cores: the same at whatever
//! node asks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::drain::{DrainFrame, DrainQuestion, DrainReport};
use tidegate_protocol::link::fleet::RelayError;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Why nobody knows what became of a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// It is not on its way.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// Nothing came back.
    #[error("the edge did not answer in time")]
    NoAnswer,
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// Too many wait already.
    #[error("too many questions to edges are under way")]
    Busy,
}

/// How an edge is with its drain; `None`: it has none, and had none.
pub type DrainAnswer = Result<Option<DrainReport>, CallError>;

/// What waits.
#[derive(Debug, Default)]
pub struct DrainCalls {
    /// Locked for an insertion or a removal.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    asked: BTreeMap<u64, (NodeId, oneshot::Sender<DrainAnswer>)>,
}

impl DrainCalls {
    /// Asks an edge, by `send`, and waits for what it says.
    ///
    /// # Errors
    /// [`CallError`]; after [`CallError::NoAnswer`] it may have done what it was asked for.
    pub async fn ask<S: Future<Output = Result<(), RelayError>>>(
        &self,
        node: &NodeId,
        question: DrainQuestion,
        send: impl FnOnce(Bytes) -> S,
    ) -> DrainAnswer {
        let (answer, answered) = oneshot::channel();
        let request = {
            let mut waiting = self.waiting();
            if waiting.asked.len() >= MAX_CALLS {
                return Err(CallError::Busy);
            }
            waiting.next += 1;
            let request = waiting.next;
            waiting.asked.insert(request, (node.clone(), answer));
            request
        };
        let _until = Asking { calls: self, request };
        send(DrainFrame::Ask { request, question }.encode()).await?;
        match timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            _ => Err(CallError::NoAnswer),
        }
    }

    /// An edge answers. What nobody asked it for is passed over.
    pub fn handle_answer(&self, from: &NodeId, frame: DrainFrame) {
        let (request, answer) = match frame {
            DrainFrame::Ask { .. } => return,
            DrainFrame::Report { request, report } => (request, Ok(report)),
            DrainFrame::Refuse { request, why } => (request, Err(CallError::Refused(why))),
        };
        let mut waiting = self.waiting();
        if waiting.asked.get(&request).is_some_and(|(node, _)| node == from)
            && let Some((_, asker)) = waiting.asked.remove(&request)
        {
            // Who asked may have gone.
            let _ = asker.send(answer);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a question.
struct Asking<'a> {
    calls: &'a DrainCalls,
    request: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.calls.waiting().asked.remove(&self.request);
    }
}

/// For an edge to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// More than a fleet has edges in one region, several times over.
const MAX_CALLS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_from_whom_it_was_asked_of() {
        let calls = DrainCalls::default();
        let (edge, other) = (NodeId::new("edge-1"), NodeId::new("edge-2"));
        let answer = calls
            .ask(&edge, DrainQuestion::Look, |payload| {
                let Ok(DrainFrame::Ask { request, .. }) = DrainFrame::decode(&payload) else {
                    panic!("a question")
                };
                let why = |why: &str| DrainFrame::Refuse { request, why: why.to_owned() };
                calls.handle_answer(&other, why("not asked"));
                calls.handle_answer(&edge, why("no"));
                calls.handle_answer(&edge, why("twice"));
                std::future::ready(Ok(()))
            })
            .await;
        assert_eq!(answer, Err(CallError::Refused("no".to_owned())));
        let lost = calls.ask(&edge, DrainQuestion::Look, |_| std::future::ready(Ok(()))).await;
        assert_eq!(lost, Err(CallError::NoAnswer));
        let gone = std::future::ready(Err(RelayError::NoSuchEdge));
        let gone = calls.ask(&edge, DrainQuestion::Look, |_| gone).await;
        assert_eq!(gone, Err(CallError::Relay(RelayError::NoSuchEdge)));
        assert!(calls.waiting().asked.is_empty());
    }
}
