//! The core's end of a connection: partitions that the edge asks for, the directory, the fleet, questions.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tidegate_protocol::link::fleet::{EdgeState, FleetEntry, Relayed};
use tidegate_protocol::link::wire::{Batch, Control, LinkDecoder};
use tidegate_protocol::link::{Directory, FLEET_VERSION, Hello};
use tidegate_protocol::{NodeId, Region};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

use super::super::CoreLink;
use super::control::{self, ControlError, ControlReader};
use super::{BUSY, Condition, MAX_ANSWER_BYTES, MAX_QUESTION_BYTES, MAX_WAITING, Shared, code, stream, why};

/// The core's end of a connection. All methods take `&self`, so that one task can `select!` over them. Dropping it closes
/// the connection at once, with the links of its partitions.
#[derive(Debug)]
pub struct CoreEnd {
    connection: quinn::Connection,
    hello: Hello,
    version: u16,
    requests: Mutex<mpsc::Receiver<PartitionRequest>>,
    words: Mutex<mpsc::Receiver<EdgeWord>>,
    questions: Mutex<mpsc::Receiver<Question>>,
    directory: watch::Sender<Option<Arc<Directory>>>,
    fleet: watch::Sender<Option<Arc<Vec<FleetEntry>>>>,
    relayed: mpsc::Sender<Control>,
    shared: Shared,
}

impl CoreEnd {
    pub(super) fn new(
        shared: Shared,
        connection: quinn::Connection,
        hello: Hello,
        (version, partitions): (u16, u16),
        send: SendStream,
        reader: ControlReader,
    ) -> Self {
        let (requests_in, requests) = mpsc::channel(MAX_WAITING);
        let (questions_in, questions) = mpsc::channel(MAX_WAITING);
        let (words_in, words) = mpsc::channel(MAX_WAITING);
        // As many as an edge asks and relays at once, so that no answer finds it full.
        let (answers_in, answers) = mpsc::channel(4 * MAX_WAITING);
        let (relayed, relayed_out) = mpsc::channel(MAX_RELAYED);
        let (directory, directories) = watch::channel(None);
        let (fleet, fleets) = watch::channel(None);
        let pace = shared.config.directory_pace;
        let news = News { directories, fleets, relayed: relayed_out, answers };
        shared.tasks.spawn(tell(send, news, pace));
        let ears = Ears {
            node: hello.node.clone(),
            region: hello.region.clone(),
            version,
            words: words_in,
            questions: questions_in,
            answers: answers_in,
        };
        shared.tasks.spawn(listen(connection.clone(), reader, ears));
        shared.tasks.spawn(accept(connection.clone(), partitions, requests_in, shared.clone()));
        let (requests, words, questions) = (Mutex::new(requests), Mutex::new(words), Mutex::new(questions));
        Self { connection, hello, version, requests, words, questions, directory, fleet, relayed, shared }
    }

    /// Who is there.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Where it is.
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// How it does now.
    pub fn condition(&self) -> Condition {
        self.shared.condition(&self.connection)
    }

    /// The next partition that the edge asks for; `None` once the connection is over. Cancel-safe.
    pub async fn accept(&self) -> Option<PartitionRequest> {
        self.requests.lock().await.recv().await
    }

    /// Tells the edge who owns what. Does not wait: the latest wins where several come within
    /// [`super::LinkConfig::directory_pace`].
    pub fn send_directory(&self, directory: Arc<Directory>) {
        self.directory.send_replace(Some(directory));
    }

    /// Whether it is told of other edges. The release before does not know of them.
    pub fn takes_fleet(&self) -> bool {
        self.version >= FLEET_VERSION
    }

    /// Tells the edge of all others. Does not wait: the latest wins where the edge is slow.
    pub fn send_fleet(&self, fleet: Arc<Vec<FleetEntry>>) {
        if self.takes_fleet() {
            self.fleet.send_replace(Some(fleet));
        }
    }

    /// Passes on what came from another edge. False where too much waits already: it is gone.
    pub fn try_relay(&self, relayed: Relayed) -> bool {
        self.takes_fleet() && self.relayed.try_send(Control::Relayed(relayed)).is_ok()
    }

    /// What the edge says of itself, or has for others; `None` once the connection is over. Taken before
    /// [`CoreEnd::next_question`], it is in the order in which the edge spoke. Cancel-safe.
    pub async fn next_word(&self) -> Option<EdgeWord> {
        self.words.lock().await.recv().await
    }

    /// The next question of the edge; `None` once the connection is over. Cancel-safe.
    pub async fn next_question(&self) -> Option<Question> {
        self.questions.lock().await.recv().await
    }

    /// Waits until all that was sent on links whose senders were dropped has arrived, or the connection is over. Links
    /// that are still held keep it waiting: the caller bounds it. Before [`CoreEnd::close`], so that nothing (a `Moved`)
    /// is lost.
    pub async fn flushed(&self) {
        self.shared.flushed().await;
    }

    /// Waits for the end of the connection; why, for people.
    pub async fn closed(&self) -> String {
        why(&self.connection.closed().await)
    }

    /// Ends the connection and its links at once. The other end sees it at once.
    pub fn close(&self, reason: &str) {
        self.connection.close(code::CLOSED, reason.as_bytes());
    }
}

impl Drop for CoreEnd {
    fn drop(&mut self) {
        self.close("");
    }
}

/// An edge asks for a partition's link. Dropping it refuses.
#[derive(Debug)]
pub struct PartitionRequest {
    partition: u16,
    /// `None` once answered.
    stream: Option<Asked>,
    shared: Shared,
}

#[derive(Debug)]
struct Asked {
    send: SendStream,
    recv: RecvStream,
    decoder: LinkDecoder,
}

impl PartitionRequest {
    /// Which one. Below [`super::Greeting::partitions`].
    pub fn partition(&self) -> u16 {
        self.partition
    }

    /// Serves it: the link's first word to the edge is `term` and `epoch`. (An edge that is gone meanwhile shows as a
    /// link that is closed.)
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn accept(mut self, term: u64, epoch: u64) -> CoreLink {
        let Asked { send, recv, decoder } = self.stream.take().expect("answered once: by value");
        let mut first = Batch::default();
        first.put_control(&Control::Opened { term, epoch });
        stream::link(&self.shared, send, recv, first, decoder)
    }

    /// This node does not serve it.
    pub fn refuse(self) {}

    /// Waits until the edge gives up on it. Cancel-safe.
    pub async fn abandoned(&self) {
        if let Some(asked) = &self.stream {
            let _stopped = asked.send.stopped().await;
        }
    }
}

impl Drop for PartitionRequest {
    fn drop(&mut self) {
        if let Some(mut asked) = self.stream.take() {
            // Errors: it is over already.
            let _over = asked.send.reset(code::NOT_OWNER);
            let _over = asked.recv.stop(code::NOT_OWNER);
        }
    }
}

/// What an edge says without asking.
#[derive(Debug)]
pub enum EdgeWord {
    /// How it is. Name and region are those of its hello: others end the connection.
    Announce(EdgeState),
    /// It has something for another edge.
    Relay(RelayRequest),
}

/// Something that an edge has for another one. Dropping it says that there is no such edge.
#[derive(Debug)]
pub struct RelayRequest {
    to: NodeId,
    payload: Bytes,
    reply: Reply,
}

impl RelayRequest {
    /// For whom.
    pub fn to(&self) -> &NodeId {
        &self.to
    }

    /// What.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// It is on its way there.
    pub fn passed(mut self) {
        self.reply.answer = Some(Bytes::new());
    }

    /// There was no room for it.
    pub fn busy(mut self) {
        self.reply.answer = Some(Bytes::from_static(BUSY));
    }
}

/// Something that an edge wants to know. Dropping it leaves it unanswered, which the asker is told.
#[derive(Debug)]
pub struct Question {
    what: Bytes,
    reply: Reply,
}

impl Question {
    /// What it asks, at most [`MAX_QUESTION_BYTES`].
    pub fn what(&self) -> &Bytes {
        &self.what
    }

    /// Answers, with at most [`MAX_ANSWER_BYTES`]; more counts as no answer.
    pub fn answer(mut self, answer: Bytes) {
        self.reply.answer = Some(answer).filter(|answer| answer.len() <= MAX_ANSWER_BYTES);
    }
}

/// Sent when it is dropped.
#[derive(Debug)]
struct Reply {
    id: u64,
    answer: Option<Bytes>,
    answers: mpsc::Sender<Control>,
}

impl Drop for Reply {
    fn drop(&mut self) {
        let answer = Control::Answer { id: self.id, answer: self.answer.take() };
        // Full only where an edge asks more at once than it may: the rest of its questions stays open.
        let _lost = self.answers.try_send(answer);
    }
}

/// What is said to the edge.
struct News {
    directories: watch::Receiver<Option<Arc<Directory>>>,
    fleets: watch::Receiver<Option<Arc<Vec<FleetEntry>>>>,
    relayed: mpsc::Receiver<Control>,
    answers: mpsc::Receiver<Control>,
}

/// Writes directories, not too often, answers, and what there is of other edges.
async fn tell(mut send: SendStream, news: News, pace: std::time::Duration) {
    let News { mut directories, mut fleets, mut relayed, mut answers } = news;
    let mut rest = std::pin::pin!(tokio::time::sleep(std::time::Duration::ZERO));
    loop {
        // Not biased: each has its turn.
        let control = tokio::select! {
            // The end is the `CoreEnd`'s.
            changed = directories.changed(), if rest.is_elapsed() => {
                if changed.is_err() {
                    return;
                }
                let directory = directories.borrow_and_update().clone();
                rest.set(tokio::time::sleep(pace));
                let Some(directory) = directory else { continue };
                Control::Directory(directory)
            }
            () = &mut rest, if !rest.is_elapsed() => continue,
            changed = fleets.changed() => {
                if changed.is_err() {
                    return;
                }
                let Some(fleet) = fleets.borrow_and_update().clone() else { continue };
                Control::Fleet(fleet)
            }
            Some(relayed) = relayed.recv() => relayed,
            Some(answer) = answers.recv() => answer,
            else => return,
        };
        if control::write(&mut send, &control).await.is_err() {
            return;
        }
    }
}

/// Who is at the other end, and where what it says goes.
struct Ears {
    node: NodeId,
    region: Region,
    version: u16,
    words: mpsc::Sender<EdgeWord>,
    questions: mpsc::Sender<Question>,
    answers: mpsc::Sender<Control>,
}

/// Reads questions, and what the edge says of itself.
async fn listen(connection: quinn::Connection, mut reader: ControlReader, ears: Ears) {
    let reply = |id| Reply { id, answer: None, answers: ears.answers.clone() };
    loop {
        let is_taken = match reader.next().await {
            Ok(Control::Ask { id, what }) if what.len() <= MAX_QUESTION_BYTES => {
                ears.questions.send(Question { what, reply: reply(id) }).await.is_ok()
            }
            // Its certificate is for its name alone.
            Ok(Control::Announce(state)) if (&state.node, &state.region) != (&ears.node, &ears.region) => {
                return connection.close(code::PROTOCOL, b"an announcement of another node");
            }
            Ok(Control::Announce(state)) if ears.version >= FLEET_VERSION => {
                ears.words.send(EdgeWord::Announce(state)).await.is_ok()
            }
            Ok(Control::Relay { id, to, payload }) if ears.version >= FLEET_VERSION => {
                let request = RelayRequest { to, payload, reply: reply(id) };
                ears.words.send(EdgeWord::Relay(request)).await.is_ok()
            }
            Err(ControlError::Lost(_)) => return,
            // Without control there is no connection.
            _ => return connection.close(code::PROTOCOL, b"not allowed on the control stream"),
        };
        if !is_taken {
            return;
        }
    }
}

/// Takes streams, and reads what they are for.
async fn accept(
    connection: quinn::Connection,
    partitions: u16,
    requests: mpsc::Sender<PartitionRequest>,
    shared: Shared,
) {
    // As many as streams may be open: QUIC counts.
    let mut opening = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let Ok((send, recv)) = stream else { return };
                let limit = shared.config.handshake_timeout;
                let request = read_request(send, recv, partitions, shared.clone());
                opening.spawn(async move { tokio::time::timeout(limit, request).await.ok().flatten() });
            }
            Some(request) = opening.join_next() => {
                let Ok(Some(request)) = request else { continue };
                if requests.send(request).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn read_request(
    mut send: SendStream,
    recv: RecvStream,
    partitions: u16,
    shared: Shared,
) -> Option<PartitionRequest> {
    let mut reader = ControlReader::new(recv);
    match reader.next().await {
        Ok(Control::Open { partition }) if partition < partitions => {
            let ControlReader { recv, decoder } = reader;
            let stream = Some(Asked { send, recv, decoder });
            Some(PartitionRequest { partition, stream, shared })
        }
        _ => {
            let _over = send.reset(code::PROTOCOL);
            let _over = reader.recv.stop(code::PROTOCOL);
            None
        }
    }
}

/// What other edges sent, on its way to this one.
const MAX_RELAYED: usize = 256;
