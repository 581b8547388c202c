//! Long poll: `POST /v1/poll`, one waiting request and, when there is something to send, a second one that takes its
//! place (PROTOCOL §6.4).
//!
//! A request that fails is repeated as it was: if its answer was lost, the server sends the same batch again and leaves
//! the frames alone. Where two requests cross with a batch in between, the server may have left the newer one's frames
//! alone too; they are then sent again, and the session's keys and ids make a second arrival harmless.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request as HttpRequest, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tidegate_protocol::frame::{ClientFrame, ServerBody, ServerFrame};
use tidegate_protocol::session::client::Carrier;
use tokio::sync::mpsc;

use crate::endpoint::Endpoint;

use super::{Connection, Dial, Dialer, Ends, Inbound, Lost, Transport};

pub(super) struct LongPoll;

impl Dial for LongPoll {
    async fn dial(dialer: &Dialer, endpoint: &Endpoint) -> Result<Connection, Lost> {
        let pool = Pool::new(dialer.clone(), endpoint.clone());
        // The first connection is made here: an address where nobody listens is no reason to begin a session.
        let first = pool.dial().await?;
        pool.give_back(first);
        let (handle, ends) = dialer.queues(Transport::LongPoll, false);
        let abort = ends.abort.clone();
        dialer.tracker.spawn(async move {
            abort.run_until_cancelled_owned(run(pool, ends)).await;
        });
        Ok(handle)
    }
}

#[derive(Debug, Serialize)]
struct PollRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    ack: u64,
    frames: Vec<ClientFrame>,
    wait_ms: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PollAnswer {
    session: Option<String>,
    batch: u64,
    frames: Vec<ServerFrame>,
    /// The status was an error: the frames say how the session ended.
    #[serde(skip)]
    is_end: bool,
}

impl PollAnswer {
    /// An answer without frames is no batch: it repeats what was acknowledged.
    fn batch_after(&self, ack: u64) -> bool {
        !self.frames.is_empty() && self.batch > ack
    }
}

/// A request on its way.
struct Outstanding {
    ack: u64,
    frames: Vec<ClientFrame>,
    /// While it was on its way, a batch after its `ack` arrived: an answer with that batch says nothing of its frames.
    crossed: bool,
    answer: Pin<Box<dyn Future<Output = Result<PollAnswer, Lost>> + Send>>,
    /// Its answer, until the request before it has its own.
    answered: Option<Result<PollAnswer, Lost>>,
}

impl Outstanding {
    /// By its answer the session is over.
    fn is_last(&self) -> bool {
        self.answered.as_ref().is_some_and(|answer| answer.as_ref().map_or(true, |answer| answer.is_end))
    }
}

/// The client's side of one long-poll session.
struct Poller {
    pool: Arc<Pool>,
    session: Option<String>,
    ack: u64,
    /// To go with the next request, oldest first.
    unsent: VecDeque<ClientFrame>,
}

impl Poller {
    fn request(&mut self) -> Outstanding {
        let count = self.unsent.len().min(MAX_FRAMES);
        let frames: Vec<ClientFrame> = self.unsent.drain(..count).collect();
        let body = PollRequest {
            session: self.session.clone(),
            ack: self.ack,
            frames: frames.clone(),
            wait_ms: WAIT.as_millis() as u64,
        };
        let pool = Arc::clone(&self.pool);
        // Without a session a repeat would begin a second one.
        let attempts = if self.session.is_some() { ATTEMPTS } else { 1 };
        Outstanding {
            ack: self.ack,
            frames,
            crossed: false,
            answer: Box::pin(async move { pool.post(&body, attempts).await }),
            answered: None,
        }
    }

    /// Takes an answer; returns what is new in it. A repeat of a batch is not.
    fn handle_answer(&mut self, of: Outstanding, answer: PollAnswer) -> Vec<ServerFrame> {
        if of.crossed && answer.batch_after(of.ack) {
            // Left alone, perhaps.
            self.unsend(of.frames);
        }
        if answer.is_end {
            return answer.frames;
        }
        if self.session.is_none() {
            self.session = answer.session.clone();
        }
        if answer.batch_after(self.ack) {
            self.ack = answer.batch;
            answer.frames
        } else {
            Vec::new()
        }
    }

    fn unsend(&mut self, frames: Vec<ClientFrame>) {
        for frame in frames.into_iter().rev() {
            self.unsent.push_front(frame);
        }
    }
}

async fn run(pool: Arc<Pool>, mut ends: Ends) {
    let mut poller = Poller { pool, session: None, ack: 0, unsent: VecDeque::new() };
    // The session begins with `connect`.
    let Some(connect) = ends.outbound.recv().await else { return };
    poller.unsent.push_back(connect.frame);
    take_waiting(&mut poller, &mut ends.outbound);
    let lost = poll(&mut poller, &mut ends.outbound, &ends.control).await;
    let _gone = ends.control.send(Inbound::Lost(lost)).await;
}

/// Polls until the session is lost.
async fn poll(
    poller: &mut Poller,
    outbound: &mut mpsc::Receiver<tidegate_protocol::session::client::Transmit>,
    control: &mpsc::Sender<Inbound>,
) -> Lost {
    // The server lets `older` go at once when `newer` comes.
    let mut older: Option<Outstanding> = None;
    let mut newer = poller.request();
    loop {
        let mut is_end = false;
        let frames = if let Some(of) = older.take_if(|older| older.answered.is_some()) {
            match settle(of) {
                // If the session is over, the newer one is told so as well.
                (of, Ok(answer)) if answer.is_end => {
                    newer.crossed = true;
                    poller.unsend(of.frames);
                    continue;
                }
                (of, Ok(answer)) => {
                    newer.crossed |= answer.batch_after(newer.ack);
                    poller.handle_answer(of, answer)
                }
                (of, Err(lost)) => {
                    // The newer one asks for the same; only what this one carried is in doubt.
                    tracing::debug!(reason = lost.reason, "a poll failed");
                    newer.crossed = true;
                    poller.unsend(of.frames);
                    continue;
                }
            }
        } else if older.is_none() && newer.answered.is_some() {
            take_waiting(poller, outbound);
            // The next one acknowledges this one: it is made after it.
            let mut frames = match settle(newer) {
                (of, Ok(answer)) => {
                    is_end = answer.is_end;
                    poller.handle_answer(of, answer)
                }
                (_, Err(lost)) => return lost,
            };
            if !is_end && frames.iter().any(|frame| matches!(frame.body, Some(ServerBody::Ping(_)))) {
                // Its answer goes with the next request: by itself it would cost a second connection each time.
                let told = Inbound::Frames(Carrier::Control, std::mem::take(&mut frames));
                if control.send(told).await.is_err() {
                    return Lost::new("closed");
                }
                match tokio::time::timeout(PONG_PATIENCE, outbound.recv()).await {
                    Ok(Some(transmit)) => poller.unsent.push_back(transmit.frame),
                    Ok(None) => return Lost::new("closed"),
                    Err(_) => {}
                }
                take_waiting(poller, outbound);
            }
            newer = poller.request();
            frames
        } else {
            // Two polls may arrive in either order, and the second of them be taken for a repeat whose frames do not
            // count. So only one that awaits no reply is overtaken: what is lost of it is ephemeral.
            let awaits_reply = newer.frames.iter().any(|frame| frame.id != 0);
            let may_send =
                older.is_none() && newer.answered.is_none() && !awaits_reply && poller.session.is_some();
            // Answers before what is to be sent: each makes room for it, and none comes unasked.
            tokio::select! { biased;
                () = settled(older.as_mut()) => {}
                () = settled(Some(&mut newer)) => {}
                // It may say why, unless it is held by another process than the one that answered the newer.
                () = tokio::time::sleep(LAST_WORD), if newer.is_last() => older = None,
                transmit = outbound.recv(), if may_send => {
                    let Some(transmit) = transmit else { return Lost::new("closed") };
                    poller.unsent.push_back(transmit.frame);
                    take_waiting(poller, outbound);
                    older = Some(std::mem::replace(&mut newer, poller.request()));
                }
            }
            continue;
        };
        let inbound =
            if frames.is_empty() { Inbound::Alive } else { Inbound::Frames(Carrier::Control, frames) };
        if control.send(inbound).await.is_err() {
            return Lost::new("closed");
        }
        if is_end || poller.session.is_none() {
            // The frames said why.
            return Lost::new("the server ended the session");
        }
    }
}

/// Waits for an answer that has not come yet. Cancel-safe.
async fn settled(outstanding: Option<&mut Outstanding>) {
    match outstanding {
        Some(outstanding) if outstanding.answered.is_none() => {
            outstanding.answered = Some(outstanding.answer.as_mut().await);
        }
        _ => std::future::pending().await,
    }
}

/// A request that was answered, with its answer.
fn settle(mut of: Outstanding) -> (Outstanding, Result<PollAnswer, Lost>) {
    let answer = of.answered.take().unwrap_or_else(|| Err(Lost::new("not answered")));
    (of, answer)
}

fn take_waiting(
    poller: &mut Poller,
    outbound: &mut mpsc::Receiver<tidegate_protocol::session::client::Transmit>,
) {
    while poller.unsent.len() < MAX_FRAMES
        && let Ok(transmit) = outbound.try_recv()
    {
        poller.unsent.push_back(transmit.frame);
    }
}

/// Kept-alive HTTP connections: two are in use at most.
struct Pool {
    dialer: Dialer,
    endpoint: Endpoint,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Pool {
    fn new(dialer: Dialer, endpoint: Endpoint) -> Arc<Self> {
        Arc::new(Self { dialer, endpoint, idle: Mutex::new(Vec::new()) })
    }

    /// Posts, and repeats what fails on the way.
    async fn post(&self, request: &PollRequest, attempts: u32) -> Result<PollAnswer, Lost> {
        let body =
            serde_json::to_vec(request).map(Bytes::from).map_err(|error| Lost::new(error.to_string()))?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let lost = match tokio::time::timeout(WAIT + ANSWER_GRACE, self.post_once(body.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failure::Final(lost))) => return Err(lost),
                Ok(Err(Failure::Again(lost))) => lost,
                Err(_) => Lost::new("a poll was not answered in time"),
            };
            if attempt >= attempts {
                return Err(lost);
            }
            // The first repeat at once: a kept connection that the server closed meanwhile is no trouble.
            tokio::time::sleep(REPEAT_DELAY * (attempt - 1)).await;
        }
    }

    async fn post_once(&self, body: Bytes) -> Result<PollAnswer, Failure> {
        let mut sender = match self.take_idle() {
            Some(sender) => sender,
            None => self.dial().await.map_err(Failure::Again)?,
        };
        let again = |error: hyper::Error| Failure::Again(Lost::new(error.to_string()));
        sender.ready().await.map_err(again)?;
        let request = HttpRequest::builder()
            .method(Method::POST)
            .uri(&self.endpoint.path)
            .header(HOST, self.endpoint.authority())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::Final(Lost::new(error.to_string())))?;
        let response = sender.send_request(request).await.map_err(again)?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map_err(|error| Failure::Again(Lost::new(error.to_string())))?
            .to_bytes();
        self.give_back(sender);
        match serde_json::from_slice::<PollAnswer>(&bytes) {
            Ok(answer) if status == StatusCode::OK => Ok(answer),
            // The session's end, told in a frame.
            Ok(answer) if !answer.frames.is_empty() => Ok(PollAnswer { is_end: true, ..answer }),
            Err(error) if status == StatusCode::OK => {
                Err(Failure::Final(Lost::new(format!("what the server sent cannot be decoded: {error}"))))
            }
            _ => Err(Failure::Final(Lost::from_status(status))),
        }
    }

    async fn dial(&self) -> Result<SendRequest<Full<Bytes>>, Lost> {
        let stream = self.dialer.stream(&self.endpoint).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(64 << 10)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Lost::new(error.to_string()))?;
        // Ends when its sender is dropped; what fails is told there.
        self.dialer.tracker.spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    fn give_back(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(sender);
        }
    }
}

enum Failure {
    /// The network's: the same request again may do.
    Again(Lost),
    /// The server's word.
    Final(Lost),
}

/// How long the server holds a poll; its own default.
const WAIT: Duration = Duration::from_secs(25);
/// Beyond that, until a poll counts as lost.
const ANSWER_GRACE: Duration = Duration::from_secs(10);
/// One request, and its repeats.
const ATTEMPTS: u32 = 4;
const REPEAT_DELAY: Duration = Duration::from_millis(500);
/// For the session to answer a ping, before the next request goes without it.
const PONG_PATIENCE: Duration = Duration::from_millis(50);
/// For the older of two requests, once the newer was told that the session is over.
const LAST_WORD: Duration = Duration::from_millis(500);
const MAX_IDLE: usize = 2;
/// Frames of one request.
const MAX_FRAMES: usize = 64;
/// A batch is 64 KiB, or one frame.
const MAX_BODY: usize = 2 << 20;
