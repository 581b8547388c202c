//! What the rest of the process may do with the sessions of an edge: see which there are, ask them to move, and hear of
//! their ends. It reaches the workers by their queues of commands; nothing here is on the way of a publication.

use std::sync::Arc;

use tidegate_protocol::frame::{CloseCode, Goaway};
use tidegate_protocol::placement::partition_of;
use tidegate_protocol::{ChannelName, NodeId, Region};
use tidegate_transport::TransportKind;
use tokio::sync::{mpsc, oneshot};

use crate::worker::{Command, Shared};

/// Names a connection that serves a session, or a stream of events, as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    pub(crate) worker: u8,
    /// A stream of events, which has no session.
    pub(crate) is_stream: bool,
    pub(crate) index: u32,
    /// Tells it from others that had the index before.
    pub(crate) serial: u32,
}

/// A connection that serves a session, as far as moving it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its name.
    pub key: SessionKey,
    /// By what it is connected; [`TransportKind::Sse`] for a stream of events, which can only be ended.
    pub transport: TransportKind,
    /// The client does what `goaway` asks; others only come back after the close.
    pub moves: bool,
    /// Something waits for it, or for an answer: others lose less by moving now.
    pub busy: bool,
    /// It ends soon, unasked: the session is over, or was resumed on another connection.
    pub leaving: bool,
    /// Which part of the channel tier the first of its channels is in, of [`PARTS`]; `None` where it has none.
    pub part: Option<u16>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndKind {
    /// The session had been resumed on another connection.
    Moved,
    /// The client was done: for good, or before word of its resume elsewhere had come.
    Done,
    /// In another way.
    Closed(CloseCode),
}

/// A connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionEnd {
    /// Which one.
    pub key: SessionKey,
    /// How.
    pub kind: EndKind,
}

/// What a watcher hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionNews {
    /// A connection ended.
    End(SessionEnd),
    /// A poll of this session is answered: at once where there is something for it, else a moment later, with what comes until
    /// then. At most once in that moment.
    PollEnd(SessionKey),
}

/// The sessions of all workers of an edge. Clones are the same.
#[derive(Debug, Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

/// The part of the channel tier that a channel is in: of one partition, where their number is a power of two up to [`PARTS`].
pub(crate) fn part_of(channel: &ChannelName) -> u16 {
    partition_of(channel, PARTS)
}

/// See [`SessionInfo::part`].
pub const PARTS: u16 = 1024;

impl Sessions {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// All that are served now, or on their way out, worker by worker. Those that have not said `connect` are not among them yet.
    pub async fn list(&self) -> Vec<SessionInfo> {
        let mut all = Vec::new();
        for worker in &self.shared.workers {
            let (response, listed) = oneshot::channel();
            // A worker that has ended has no sessions.
            if worker.send(Command::List { response }).await.is_ok() {
                all.extend(listed.await.unwrap_or_default());
            }
        }
        all
    }

    /// Asks each to move, ends streams of events; how many of them were there to be asked.
    pub async fn goaway(&self, asked: Vec<(SessionKey, Goaway)>) -> usize {
        let mut of_worker = vec![Vec::new(); self.shared.workers.len()];
        for (key, goaway) in asked {
            if let Some(of_worker) = of_worker.get_mut(usize::from(key.worker)) {
                of_worker.push((key, goaway));
            }
        }
        let mut reached = 0;
        for (worker, asked) in self.shared.workers.iter().zip(of_worker) {
            if asked.is_empty() {
                continue;
            }
            let (response, count) = oneshot::channel();
            if worker.send(Command::Goaway { asked, response }).await.is_ok() {
                reached += count.await.unwrap_or_default();
            }
        }
        reached
    }

    /// From now on every end is told, and that of polls that could bring a `goaway`, until the receiver is dropped or another one
    /// watches. At most `bound` wait to be read; further ends of connections are counted (`tidegate_edge_ends_untold`), and
    /// [`Sessions::list`] says who is left.
    pub async fn watch(&self, bound: usize) -> mpsc::Receiver<SessionNews> {
        let (news, receiver) = mpsc::channel(bound);
        for worker in &self.shared.workers {
            // A worker that has ended has told all.
            let _ = worker.send(Command::Watch { news: news.clone() }).await;
        }
        receiver
    }

    /// The node, and where it stands.
    pub(crate) fn place(&self) -> (NodeId, Region) {
        (self.shared.config.node.clone(), self.shared.config.region.clone())
    }

    /// Hosts, with ports, that clients of this edge are told of, at the latest when they are asked to move.
    pub fn alternatives(&self) -> Vec<String> {
        self.shared.plans.current().alternatives.iter().map(|alternative| alternative.host.clone()).collect()
    }
}
