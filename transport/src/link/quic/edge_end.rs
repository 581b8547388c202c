//! The edge's end of a connection: opens partitions, follows the directory, asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quinn::SendStream;
use tidegate_protocol::link::wire::{Batch, Control};
use tidegate_protocol::link::{Directory, Welcome};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::super::EdgeLink;
use super::control::{self, ControlError, ControlReader};
use super::{Condition, MAX_QUESTION_BYTES, MAX_WAITING, Shared, code, stream, why};

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
    questions: mpsc::Sender<Control>,
    answers: Arc<Answers>,
    next_question: AtomicU64,
    /// Questions that may be under way.
    turns: Semaphore,
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
        let (questions, questions_out) = mpsc::channel(MAX_WAITING);
        let (directory_in, directory) = watch::channel(Arc::default());
        let answers = Arc::new(Mutex::new(Some(BTreeMap::new())));
        shared.tasks.spawn(ask(send, questions_out));
        shared.tasks.spawn(listen(connection.clone(), reader, directory_in, Arc::clone(&answers)));
        let inner = Inner {
            connection,
            welcome,
            directory,
            questions,
            answers,
            next_question: AtomicU64::new(1),
            turns: Semaphore::new(MAX_WAITING),
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
        let inner = &self.inner;
        let _turn = inner.turns.acquire().await.map_err(|_| AskError::Closed)?;
        let id = inner.next_question.fetch_add(1, Ordering::Relaxed);
        let (answer_in, answer) = oneshot::channel();
        match &mut *inner.answers.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(answers) => answers.insert(id, answer_in),
            None => return Err(AskError::Closed),
        };
        let _waiting = Waiting { answers: &inner.answers, id };
        inner.questions.send(Control::Ask { id, what }).await.map_err(|_| AskError::Closed)?;
        answer.await.map_err(|_| AskError::Closed)?.ok_or(AskError::Unanswered)
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

/// Writes questions.
async fn ask(mut send: SendStream, mut questions: mpsc::Receiver<Control>) {
    while let Some(question) = questions.recv().await {
        if control::write(&mut send, &question).await.is_err() {
            return;
        }
    }
}

/// Reads directories and answers.
async fn listen(
    connection: quinn::Connection,
    mut reader: ControlReader,
    directory: watch::Sender<Arc<Directory>>,
    answers: Arc<Answers>,
) {
    loop {
        match reader.next().await {
            Ok(Control::Directory(news)) => {
                directory.send_replace(news);
            }
            Ok(Control::Answer { id, answer }) => {
                let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
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
    *answers.lock().unwrap_or_else(PoisonError::into_inner) = None;
}
