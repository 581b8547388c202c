//! The edge's end of a connection: opens partitions, follows the directory and the fleet, asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quinn::SendStream;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::fleet::{EdgeState, FleetEntry, MAX_RELAY_BYTES, RelayError, Relayed};
use tidegate_protocol::link::wire::{Batch, Control};
use tidegate_protocol::link::{Directory, FLEET_VERSION, Welcome};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc, oneshot, watch};

use super::super::EdgeLink;
use super::control::{self, ControlError, ControlReader};
use super::{BUSY, Condition, MAX_QUESTION_BYTES, MAX_WAITING, Shared, code, stream, why};

/// The edge's end of a connection. Clones are the same end; dropping the last one closes the connection at once, with the
/// links of its partitions.
#[derive(Debug, Clone)]
pub struct EdgeEnd {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: quinn::Connection,
    welcome: Welcome,
    directory: watch::Receiver<Arc<Directory>>,
    fleet: watch::Receiver<Arc<Vec<FleetEntry>>>,
    relayed: AsyncMutex<mpsc::Receiver<Relayed>>,
    /// What is said to the core.
    words: mpsc::Sender<Control>,
    answers: Arc<Answers>,
    next_question: AtomicU64,
    /// Questions that may be under way.
    turns: Semaphore,
    /// Payloads for other edges that may be.
    relays: Semaphore,
    shared: Shared,
}

/// Who waits for which answer; `None` once none will come.
type Answers = Mutex<Option<BTreeMap<u64, oneshot::Sender<Option<Bytes>>>>>;

impl EdgeEnd {
    pub(super) fn new(
        shared: Shared,
        connection: quinn::Connection,
        welcome: Welcome,
        send: SendStream,
        reader: ControlReader,
    ) -> Self {
        let (words, words_out) = mpsc::channel(MAX_WAITING);
        let (directory_in, directory) = watch::channel(Arc::default());
        let (fleet_in, fleet) = watch::channel(Arc::default());
        let (relayed_in, relayed) = mpsc::channel(MAX_RELAYED);
        let answers = Arc::new(Mutex::new(Some(BTreeMap::new())));
        shared.tasks.spawn(say(send, words_out));
        let ears = Ears {
            directory: directory_in,
            fleet: fleet_in,
            relayed: relayed_in,
            answers: Arc::clone(&answers),
        };
        shared.tasks.spawn(listen(connection.clone(), reader, ears));
        let inner = Inner {
            connection,
            welcome,
            directory,
            fleet,
            relayed: AsyncMutex::new(relayed),
            words,
            answers,
            next_question: AtomicU64::new(1),
            turns: Semaphore::new(MAX_WAITING),
            relays: Semaphore::new(MAX_WAITING),
            shared,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Who is there.
    pub fn welcome(&self) -> &Welcome {
        &self.inner.welcome
    }

    /// Where it is.
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.connection.remote_address()
    }

    /// How it does now.
    pub fn condition(&self) -> Condition {
        self.inner.shared.condition(&self.inner.connection)
    }

    /// Asks for a partition's link. Waits as long as the core does, which may hold the request back while it takes the
    /// partition over: the caller bounds it. Dropping the future takes the request back.
    ///
    /// # Errors
    /// When the core does not serve it, or the connection ends.
    pub async fn open(&self, partition: u16) -> Result<Opened, OpenError> {
        let (mut send, recv) = self.inner.connection.open_bi().await.map_err(|_| OpenError::Closed)?;
        let mut reader = ControlReader::new(recv);
        // An error is that of the answer.
        let _written = control::write(&mut send, &Control::Open { partition }).await;
        match reader.next().await {
            Ok(Control::Opened { term, epoch }) => {
                let ControlReader { recv, decoder } = reader;
                let link = stream::link(&self.inner.shared, send, recv, Batch::default(), decoder);
                Ok(Opened { term, epoch, link })
            }
            Err(ControlError::Reset(reset)) if reset == code::NOT_OWNER.into_inner() => {
                Err(OpenError::NotOwner)
            }
            Err(ControlError::Lost(_)) => Err(OpenError::Closed),
            _ => {
                let _over = send.reset(code::PROTOCOL);
                let _over = reader.recv.stop(code::PROTOCOL);
                Err(OpenError::Protocol)
            }
        }
    }

    /// Who owns what, as this core knows it: what it said so far, and what it will say.
    pub fn directory(&self) -> DirectoryWatch {
        DirectoryWatch { directory: self.inner.directory.clone() }
    }

    /// Asks the core something, at most [`MAX_QUESTION_BYTES`]. The caller bounds the time. Of many at once, some wait for
    /// their turn.
    ///
    /// # Errors
    /// When it is too long, there is no answer, or the connection ends.
    pub async fn ask(&self, what: Bytes) -> Result<Bytes, AskError> {
        if what.len() > MAX_QUESTION_BYTES {
            return Err(AskError::Unanswered);
        }
        let _turn = self.inner.turns.acquire().await.map_err(|_| AskError::Closed)?;
        self.answer_to(|id| Control::Ask { id, what }).await?.ok_or(AskError::Unanswered)
    }

    /// Tells the core how this edge is: its own name alone. A core of the release before is told nothing.
    pub async fn announce(&self, state: EdgeState) {
        if self.takes_fleet() {
            // An error: the connection is over.
            let _over = self.inner.words.send(Control::Announce(state)).await;
        }
    }

    /// What this core knows of all edges: what it said so far, and what it will say.
    pub fn fleet(&self) -> FleetWatch {
        FleetWatch { fleet: self.inner.fleet.clone() }
    }

    /// Has the core pass `payload` on to another edge, which gets it once at most. The caller bounds the time.
    ///
    /// # Errors
    /// [`RelayError`] says whether it may have arrived all the same.
    pub async fn relay(&self, to: NodeId, payload: Bytes) -> Result<(), RelayError> {
        if payload.len() > MAX_RELAY_BYTES {
            return Err(RelayError::TooLong);
        }
        if !self.takes_fleet() {
            return Err(RelayError::NoSuchEdge);
        }
        let _turn = self.inner.relays.try_acquire().map_err(|_| RelayError::Busy)?;
        match self.answer_to(|id| Control::Relay { id, to, payload }).await {
            Ok(Some(answer)) if answer == BUSY => Err(RelayError::Busy),
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(RelayError::NoSuchEdge),
            Err(_) => Err(RelayError::Unknown),
        }
    }

    /// What another edge sent here over this core; `None` once the connection is over. Of what nobody takes, the newest is
    /// dropped. Cancel-safe.
    pub async fn next_relayed(&self) -> Option<Relayed> {
        self.inner.relayed.lock().await.recv().await
    }

    /// Waits for the end of the connection; why, for people.
    pub async fn closed(&self) -> String {
        why(&self.inner.connection.closed().await)
    }

    /// Waits until all that was sent on links whose senders were dropped has arrived, or the connection is over. Links
    /// that are still held keep it waiting: the caller bounds it.
    pub async fn flushed(&self) {
        self.inner.shared.flushed().await;
    }

    /// Ends the connection and its links at once. The other end sees it at once.
    pub fn close(&self, reason: &str) {
        self.inner.connection.close(code::CLOSED, reason.as_bytes());
    }
}

impl EdgeEnd {
    fn takes_fleet(&self) -> bool {
        self.inner.welcome.version >= FLEET_VERSION
    }

    async fn answer_to(&self, question: impl FnOnce(u64) -> Control) -> Result<Option<Bytes>, AskError> {
        let inner = &self.inner;
        let id = inner.next_question.fetch_add(1, Ordering::Relaxed);
        let (answer_in, answer) = oneshot::channel();
        match &mut *inner.answers.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(answers) => answers.insert(id, answer_in),
            None => return Err(AskError::Closed),
        };
        let _waiting = Waiting { answers: &inner.answers, id };
        inner.words.send(question(id)).await.map_err(|_| AskError::Closed)?;
        answer.await.map_err(|_| AskError::Closed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.connection.close(code::CLOSED, b"");
    }
}

/// A partition's link, and what the core said first on it.
#[derive(Debug)]
pub struct Opened {
    /// Of the owner.
    pub term: u64,
    /// Identity of the partition's log.
    pub epoch: u64,
    /// For frames.
    pub link: EdgeLink,
}

/// Follows a core's directory.
#[derive(Debug, Clone)]
pub struct DirectoryWatch {
    directory: watch::Receiver<Arc<Directory>>,
}

impl DirectoryWatch {
    /// The newest; empty before the first.
    pub fn current(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.borrow())
    }

    /// Waits for one that this has not returned yet; `None` once the connection is over. The first call returns at once
    /// where there is one already. Cancel-safe.
    pub async fn changed(&mut self) -> Option<Arc<Directory>> {
        self.directory.changed().await.ok()?;
        Some(Arc::clone(&self.directory.borrow_and_update()))
    }
}

/// Follows what a core knows of all edges.
#[derive(Debug, Clone)]
pub struct FleetWatch {
    fleet: watch::Receiver<Arc<Vec<FleetEntry>>>,
}

impl FleetWatch {
    /// Waits for a list that this has not returned yet; `None` once the connection is over. Cancel-safe.
    pub async fn changed(&mut self) -> Option<Arc<Vec<FleetEntry>>> {
        self.fleet.changed().await.ok()?;
        Some(Arc::clone(&self.fleet.borrow_and_update()))
    }
}

/// Why a partition's link did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The core does not serve that partition (any more).
    #[error("the core does not own that partition")]
    NotOwner,
    /// The connection is over.
    #[error("the connection is over")]
    Closed,
    /// It said something that is no answer.
    #[error("the core's answer makes no sense")]
    Protocol,
}

/// Why a question was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// There is no answer, it is too long, or the question was.
    #[error("the core has no answer")]
    Unanswered,
    /// The connection is over.
    #[error("the connection is over")]
    Closed,
}

/// Forgets a question whose asker has gone.
struct Waiting<'a> {
    answers: &'a Answers,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(answers) = &mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner) {
            answers.remove(&self.id);
        }
    }
}

/// Writes what is said to the core.
async fn say(mut send: SendStream, mut words: mpsc::Receiver<Control>) {
    while let Some(word) = words.recv().await {
        if control::write(&mut send, &word).await.is_err() {
            return;
        }
    }
}

/// Where what the core says goes.
struct Ears {
    directory: watch::Sender<Arc<Directory>>,
    fleet: watch::Sender<Arc<Vec<FleetEntry>>>,
    relayed: mpsc::Sender<Relayed>,
    answers: Arc<Answers>,
}

/// Reads directories, answers, and what there is of other edges.
async fn listen(connection: quinn::Connection, mut reader: ControlReader, ears: Ears) {
    loop {
        match reader.next().await {
            Ok(Control::Directory(news)) => {
                ears.directory.send_replace(news);
            }
            Ok(Control::Fleet(news)) => {
                ears.fleet.send_replace(news);
            }
            Ok(Control::Relayed(relayed)) => {
                // Full: nobody takes what came before. It is sent once at most, and whoever needs it asks again.
                let _lost = ears.relayed.try_send(relayed);
            }
            Ok(Control::Answer { id, answer }) => {
                let mut answers = ears.answers.lock().unwrap_or_else(PoisonError::into_inner);
                // Nobody: the asker has gone.
                if let Some(asker) = answers.as_mut().and_then(|answers| answers.remove(&id)) {
                    let _gone = asker.send(answer);
                }
            }
            Err(ControlError::Lost(_)) => break,
            // Without control there is no connection.
            _ => {
                connection.close(code::PROTOCOL, b"not allowed on the control stream");
                break;
            }
        }
    }
    *ears.answers.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Payloads of other edges that nobody took yet.
const MAX_RELAYED: usize = 256;
