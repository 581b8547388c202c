//! The few requests we make of the servers. Each ends after a time limit; none is repeated here.

use std::time::Duration;

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, HeaderMap, Request, RequestErrorKind, header};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::super::Unavailable;

/// The connection; reconnects by itself.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    pub(super) client: Client,
    pub(super) jetstream: Context,
}

/// A message as a stream has it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    pub(super) payload: Bytes,
    /// Says that nothing is there any more.
    pub(super) tombstone: bool,
}

/// Where a stream begins and ends. Empty: `first` is `last + 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// On what condition a message is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expected {
    /// The stream ends with this sequence.
    ///
    /// The only header of a log: a message id makes an R3 stream unavailable for ever (nats-server 2.15.1), and the
    /// last sequence of a subject is checked only when it is applied.
    Last(u64),
    /// The subject's last message has this sequence; 0: there is none.
    LastOfSubject(u64),
    /// None.
    Nothing,
}

/// Why a message was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PublishError {
    /// What was expected is not so. Not stored by this request; perhaps by an earlier one.
    Unexpected,
    /// Not stored, and will not be.
    Refused(String),
    /// Not stored: nobody listens there. No leader is elected, or there is no stream.
    Unheard(String),
    /// Nobody knows.
    Unknown(String),
}

impl Wire {
    /// Stores a message: its sequence.
    pub(super) async fn publish(
        &self,
        subject: &str,
        expected: Expected,
        headers: HeaderMap,
        payload: Bytes,
        patience: Duration,
    ) -> Result<u64, PublishError> {
        let mut headers = headers;
        match expected {
            Expected::Last(last) => headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, last.to_string()),
            Expected::LastOfSubject(last) => {
                headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last.to_string())
            }
            Expected::Nothing => {}
        }
        let mut request = Request::new().payload(payload).timeout(Some(patience));
        if !headers.is_empty() {
            request = request.headers(headers);
        }
        let sent = self.client.send_request(subject.to_owned(), request);
        // The library counts from when the request is queued: that it is queued has an end as well.
        let answer = match timeout(patience * 2, sent).await {
            Err(_) => return Err(PublishError::Unknown(TIMED_OUT.to_owned())),
            Ok(Err(error)) if error.kind() == RequestErrorKind::MaxPayloadExceeded => {
                return Err(PublishError::Refused(error.to_string()));
            }
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                return Err(PublishError::Unheard(error.to_string()));
            }
            Ok(Err(error)) => return Err(PublishError::Unknown(error.to_string())),
            Ok(Ok(answer)) => answer,
        };
        acknowledged(&answer.payload)
    }

    /// The message with this sequence, from the stream's leader: a replica may lag behind.
    pub(super) async fn read(&self, stream: &str, sequence: u64) -> Result<Option<Stored>, Unavailable> {
        let stream = self.stream(stream).await?;
        stored(timeout(READ, stream.get_raw_message(sequence)).await)
    }

    /// The last message of a subject, from the stream's leader.
    pub(super) async fn last_of(&self, stream: &str, subject: &str) -> Result<Option<Stored>, Unavailable> {
        let stream = self.stream(stream).await?;
        stored(timeout(READ, stream.get_last_raw_message_by_subject(subject)).await)
    }

    /// Where the stream begins and ends, from its leader.
    pub(super) async fn extent(&self, stream: &str) -> Result<Extent, Unavailable> {
        let info = timeout(READ, self.stream(stream).await?.get_info()).await.map_err(|_| timed_out())?;
        let state = info.map_err(unavailable)?.state;
        let empty = state.messages == 0;
        let first = if empty { state.last_sequence + 1 } else { state.first_sequence };
        Ok(Extent { first, last: state.last_sequence })
    }

    /// Whether the servers have no stream of that name.
    pub(super) async fn is_missing(&self, stream: &str) -> Result<bool, Unavailable> {
        let asked = timeout(READ, self.jetstream.get_stream(stream)).await.map_err(|_| timed_out())?;
        let Err(error) = asked else { return Ok(false) };
        match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Ok(true)
            }
            _ => Err(unavailable(error)),
        }
    }

    /// Whether a message would be stored under `subject`, without storing one there. Servers that replicate look at limits
    /// before what is expected, which is never so; one alone does it the other way round, and stores what is for `probe`.
    pub(super) async fn has_room(&self, subject: &str, probe: &str) -> bool {
        let never = Expected::Last(u64::MAX);
        let asked = self.publish(subject, never, HeaderMap::new(), Bytes::new(), PROBE).await;
        let nothing = || self.publish(probe, Expected::Nothing, HeaderMap::new(), Bytes::new(), PROBE);
        asked == Err(PublishError::Unexpected) && nothing().await.is_ok()
    }

    /// Messages from `from` on in order, from any replica: perhaps fewer than the leader has. The first may be later
    /// than `from`.
    pub(super) async fn page(&self, stream: &str, from: u64) -> Result<Vec<(u64, Bytes)>, Unavailable> {
        timeout(PAGE, self.read_page(stream, from)).await.map_err(|_| timed_out())?
    }

    async fn read_page(&self, stream: &str, from: u64) -> Result<Vec<(u64, Bytes)>, Unavailable> {
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await.map_err(unavailable)?;
        let request = BatchRequest { seq: from, batch: PAGE_MESSAGES, max_bytes: PAGE_BYTES };
        let request = serde_json::to_vec(&request).expect("numbers have JSON");
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        self.client.publish_with_reply(subject, inbox, request.into()).await.map_err(unavailable)?;
        let mut page = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.status.map(|status| status.as_u16()) {
                None => {
                    let sequence = answer.headers.as_ref().and_then(|all| all.get(header::NATS_SEQUENCE));
                    let sequence = sequence.and_then(|value| value.as_str().parse().ok());
                    let sequence = sequence.ok_or_else(|| {
                        Unavailable("a server answered a batched read without sequence numbers".to_owned())
                    })?;
                    page.push((sequence, answer.payload));
                }
                // The end of the batch; nothing at or behind `from`.
                Some(204 | 404) => return Ok(page),
                Some(status) => {
                    let what = answer.description.unwrap_or_default();
                    return Err(Unavailable(format!("reading {stream} was answered with {status} {what}")));
                }
            }
        }
        Err(Unavailable("the connection to NATS was closed".to_owned()))
    }

    pub(super) async fn stream(&self, name: &str) -> Result<Stream<()>, Unavailable> {
        self.jetstream.get_stream_no_info(name).await.map_err(unavailable)
    }
}

fn acknowledged(answer: &[u8]) -> Result<u64, PublishError> {
    let answer: Acknowledgement = serde_json::from_slice(answer)
        .map_err(|error| PublishError::Unknown(format!("an acknowledgement cannot be read: {error}")))?;
    let Some(error) = answer.error else { return Ok(answer.seq) };
    let code = ErrorCode(error.err_code);
    let said = format!("{} (JetStream error {})", error.description, error.err_code);
    Err(match code {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
            PublishError::Unexpected
        }
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => PublishError::Refused(format!(
            "NATS says: {said}: make room on its disks or raise the account's limits"
        )),
        _ => PublishError::Unknown(said),
    })
}

type Raw =
    Result<async_nats::jetstream::message::StreamMessage, async_nats::jetstream::stream::RawMessageError>;

fn stored(answer: Result<Raw, tokio::time::error::Elapsed>) -> Result<Option<Stored>, Unavailable> {
    match answer.map_err(|_| timed_out())? {
        Ok(message) => Ok(Some(Stored {
            sequence: message.sequence,
            tombstone: is_tombstone(&message.headers),
            payload: message.payload,
        })),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable(error)),
    }
}

/// Whether a message of the lease table says that its key is gone: deleted, or its time to live has ended.
pub(super) fn is_tombstone(headers: &HeaderMap) -> bool {
    headers.get(header::NATS_MARKER_REASON).is_some() || headers.get(OPERATION).is_some()
}

pub(super) fn unavailable(error: impl std::fmt::Display) -> Unavailable {
    Unavailable(error.to_string())
}

fn timed_out() -> Unavailable {
    Unavailable(TIMED_OUT.to_owned())
}

#[derive(Deserialize)]
struct Acknowledgement {
    #[serde(default)]
    seq: u64,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Serialize)]
struct BatchRequest {
    seq: u64,
    batch: usize,
    max_bytes: usize,
}

/// What the KV tools of NATS write where a key was deleted.
pub(super) const OPERATION: &str = "KV-Operation";
const TIMED_OUT: &str = "NATS did not answer in time";
/// A single answer. Elections take longer: callers try again.
const READ: Duration = Duration::from_secs(2);
/// A partition waits for it.
const PROBE: Duration = Duration::from_millis(250);
const PAGE: Duration = Duration::from_secs(5);
const PAGE_MESSAGES: usize = 256;
const PAGE_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements() {
        assert_eq!(acknowledged(br#"{"stream":"S","seq":7}"#), Ok(7));
        let wrong = br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 9"},"stream":"S","seq":0}"#;
        assert_eq!(acknowledged(wrong), Err(PublishError::Unexpected));
        let full = br#"{"error":{"code":503,"err_code":10023,"description":"insufficient resources"}}"#;
        assert!(matches!(acknowledged(full), Err(PublishError::Refused(_))));
        let electing = br#"{"error":{"code":503,"err_code":10008,"description":"temporarily unavailable"}}"#;
        assert!(matches!(acknowledged(electing), Err(PublishError::Unknown(_))));
        assert!(matches!(acknowledged(b""), Err(PublishError::Unknown(_))));
    }
}
