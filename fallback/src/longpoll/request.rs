//! Sans-io: the body of `POST /v1/poll`, both ways.

use std::fmt;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tidegate_protocol::SessionId;
use tidegate_protocol::frame::codec::{DecodeError, MAX_FRAMES_PER_MESSAGE, decode_text, encode_text};
use tidegate_protocol::frame::{ClientBody, ClientFrame, Close, CloseCode, ServerBody, ServerFrame};

use super::mailbox::{AckError, Batch};
use crate::http::{json_response, retry_after};

/// How long a poll waits where it does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(25);
/// The longest that a poll waits, whatever it says.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// A poll.
#[derive(Clone, PartialEq)]
pub struct PollRequest {
    /// `None` opens a session; `frames` begins with `connect` then.
    pub session: Option<SessionId>,
    /// The last batch that the client has, 0 for none.
    pub ack: u64,
    /// What the client says.
    pub frames: Vec<ClientFrame>,
    /// How long the answer may wait for a frame.
    pub wait: Duration,
}

impl fmt::Debug for PollRequest {
    /// Without the frames: they hold tokens and payloads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollRequest")
            .field("session", &self.session)
            .field("ack", &self.ack)
            .field("frames", &self.frames.len())
            .field("wait", &self.wait)
            .finish()
    }
}

/// Why a poll is refused. The session, if there is one, lives on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PollError {
    /// The body is no JSON of our schema.
    #[error("malformed poll: {0}")]
    Body(#[from] serde_json::Error),
    /// A frame in it cannot be decoded.
    #[error(transparent)]
    Frame(#[from] DecodeError),
    /// A session begins otherwise than with `connect`.
    #[error("a poll without a session begins with connect, and acknowledges nothing")]
    NoConnect,
    /// The id is nobody's, not even by its form.
    #[error("no such session here")]
    UnknownSession,
    /// An `ack` that cannot be.
    #[error(transparent)]
    Ack(#[from] AckError),
    /// The session has not yet dealt with what came before.
    #[error("too many frames under way: wait for an answer")]
    TooMany,
    /// The body is over the caller's limit.
    #[error("a body of over {limit} bytes")]
    TooLarge {
        /// What is allowed.
        limit: usize,
    },
}

impl PollError {
    /// The code of the `close` frame in the answer.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Body(_) => CloseCode::BadFrame,
            Self::Frame(error) => error.close_code(),
            Self::NoConnect | Self::Ack(_) => CloseCode::OutOfOrder,
            Self::UnknownSession => CloseCode::UnknownSession,
            Self::TooMany => CloseCode::TooManyRequests,
            Self::TooLarge { .. } => CloseCode::FrameTooLarge,
        }
    }
}

impl PollRequest {
    /// Reads a body, whose length the caller has bounded; each frame in it has at most `frame_bytes`.
    ///
    /// # Errors
    /// Where it is malformed, a frame is too large or unknown, or a new session does not begin with `connect`.
    pub fn parse(body: &[u8], frame_bytes: usize) -> Result<Self, PollError> {
        let body: Body<'_> = serde_json::from_slice(body)?;
        let mut frames = Vec::new();
        for raw in body.frames.unwrap_or_default().0 {
            // A nested array would pass as several frames.
            if raw.get().starts_with('[') {
                return Err(DecodeError::UnknownFrame.into());
            }
            frames.append(&mut decode_text(raw.get().as_bytes(), frame_bytes)?);
        }
        let session = match body.session {
            Some(id) => Some(id.parse().map_err(|_| PollError::UnknownSession)?),
            None => None,
        };
        let ack = body.ack.unwrap_or(0);
        let connects = matches!(frames.first(), Some(ClientFrame { body: Some(ClientBody::Connect(_)), .. }));
        if session.is_none() && (!connects || ack != 0) {
            return Err(PollError::NoConnect);
        }
        Ok(Self { session, ack, frames, wait: wait(body.wait_ms).unwrap_or(DEFAULT_WAIT) })
    }
}

impl PollRequest {
    /// What the client shows to claim a place that is kept for it, where the poll opens a session.
    pub fn slot(&self) -> Option<&str> {
        match self.frames.first().map(|frame| &frame.body) {
            Some(Some(ClientBody::Connect(connect))) => connect.slot.as_deref(),
            _ => None,
        }
    }
}

/// The wait that a client asks for, within its bound.
pub(crate) fn wait(milliseconds: Option<u64>) -> Option<Duration> {
    Some(Duration::from_millis(milliseconds?).min(MAX_WAIT))
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    session: Option<std::borrow::Cow<'a, str>>,
    ack: Option<u64>,
    #[serde(borrow)]
    frames: Option<RawFrames<'a>>,
    wait_ms: Option<u64>,
}

/// Frames not decoded yet, so that each is measured first; no more than a message may hold.
#[derive(Default)]
struct RawFrames<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for RawFrames<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FramesVisitor;

        impl<'de> Visitor<'de> for FramesVisitor {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {MAX_FRAMES_PER_MESSAGE} frames")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut frames: A) -> Result<Self::Value, A::Error> {
                let mut raw = Vec::new();
                while let Some(frame) = frames.next_element()? {
                    if raw.len() == MAX_FRAMES_PER_MESSAGE {
                        return Err(serde::de::Error::invalid_length(raw.len() + 1, &self));
                    }
                    raw.push(frame);
                }
                Ok(raw)
            }
        }

        deserializer.deserialize_seq(FramesVisitor).map(RawFrames)
    }
}

/// The answer to a poll.
#[derive(Clone, PartialEq, Eq)]
pub struct PollResponse {
    /// 200, or by the close code.
    pub status: StatusCode,
    /// `{"session"?, "batch", "frames":[..]}`.
    pub body: Bytes,
    /// When to come back, where the server says so.
    pub retry_after: Option<Duration>,
}

impl PollResponse {
    /// No session, or none any more: a `close` frame, and the status that goes with it.
    pub fn refused(code: CloseCode, reason: &str) -> Self {
        let close = ServerFrame::new(0, ServerBody::Close(code.frame(reason)));
        Self { status: status_of(code), body: body(None, 0, &[encode_text(&close)]), retry_after: None }
    }

    /// Refused for the time being: come back after `after`.
    pub fn deferred(code: CloseCode, reason: &str, after: Duration) -> Self {
        let mut close = code.frame(reason);
        if let Some(reconnect) = &mut close.reconnect {
            reconnect.after_ms = Some(after.as_millis().try_into().unwrap_or_default());
        }
        Self::closing(close)
    }

    /// No session: the frame says why, and when to come back. A number that is no close code of ours counts as
    /// [`CloseCode::Internal`].
    pub fn closing(close: Close) -> Self {
        let code = CloseCode::from_number(close.code).unwrap_or(CloseCode::Internal);
        let after = close.reconnect.as_ref().and_then(|reconnect| reconnect.after_ms);
        let close = ServerFrame::new(0, ServerBody::Close(close));
        let body = body(None, 0, &[encode_text(&close)]);
        Self { status: status_of(code), body, retry_after: after.map(Duration::from_millis) }
    }

    /// A batch, or the lack of one.
    pub(super) fn batch(session: SessionId, batch: Batch<'_>) -> Self {
        Self {
            status: StatusCode::OK,
            body: body(Some(session), batch.number, batch.frames),
            retry_after: None,
        }
    }

    /// True where it brings something.
    pub fn has_frames(&self) -> bool {
        // A frame ends with a brace.
        !self.body.ends_with(b"[]}")
    }

    /// As an HTTP response that no cache keeps.
    pub fn into_http(self) -> Response<Bytes> {
        let mut response = json_response(self.status, self.body);
        if let Some(after) = self.retry_after {
            retry_after(response.headers_mut(), after);
        }
        response
    }
}

impl fmt::Debug for PollResponse {
    /// Without the body: it holds the session's secret and payloads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PollResponse({}, {} bytes)", self.status, self.body.len())
    }
}

impl From<PollError> for PollResponse {
    fn from(error: PollError) -> Self {
        Self::refused(error.close_code(), &error.to_string())
    }
}

/// The HTTP status of a poll that ends with `code`.
pub fn status_of(code: CloseCode) -> StatusCode {
    match code {
        CloseCode::Done => StatusCode::OK,
        CloseCode::BadFrame | CloseCode::OutOfOrder | CloseCode::Unsupported | CloseCode::ConnectTimeout => {
            StatusCode::BAD_REQUEST
        }
        CloseCode::Unauthorized | CloseCode::TokenExpired | CloseCode::BadResume => StatusCode::UNAUTHORIZED,
        CloseCode::BadOrigin => StatusCode::FORBIDDEN,
        CloseCode::UnknownSession => StatusCode::NOT_FOUND,
        CloseCode::FrameTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        CloseCode::TooManyRequests | CloseCode::SlowConsumer => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Puts frames together as they are: each is JSON already.
fn body(session: Option<SessionId>, batch: u64, frames: &[Bytes]) -> Bytes {
    let bytes: usize = frames.iter().map(|frame| frame.len() + 1).sum();
    let mut body = BytesMut::with_capacity(bytes + 96);
    body.put_u8(b'{');
    if let Some(session) = session {
        body.put_slice(format!("\"session\":\"{session}\",").as_bytes());
    }
    body.put_slice(format!("\"batch\":{batch},\"frames\":[").as_bytes());
    for (index, frame) in frames.iter().enumerate() {
        if index > 0 {
            body.put_u8(b',');
        }
        body.put_slice(frame);
    }
    body.put_slice(b"]}");
    body.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(body: &str) -> Result<PollRequest, PollError> {
        PollRequest::parse(body.as_bytes(), 200)
    }

    #[test]
    fn a_poll_is_read_with_its_defaults() {
        let first = parse(r#"{"frames":[{"id":1,"connect":{}}]}"#).expect("valid");
        assert_eq!((first.session, first.ack, first.frames.len(), first.wait), (None, 0, 1, DEFAULT_WAIT));

        let id = "0123456789abcdef0123456789fedcba";
        let later =
            parse(&format!(r#" {{"session":"{id}","ack":7,"wait_ms":3,"more":[1]}} "#)).expect("valid");
        assert_eq!(later.session.map(|session| session.to_string()).as_deref(), Some(id));
        assert_eq!((later.ack, later.frames.len(), later.wait), (7, 0, Duration::from_millis(3)));
        let long = parse(&format!(r#"{{"session":"{id}","wait_ms":99999999}}"#)).expect("valid");
        assert_eq!(long.wait, MAX_WAIT);
        assert!(!format!("{later:?}").contains(&id[16..]), "the id is a secret");
    }

    #[test]
    fn bad_polls_have_their_status_and_close_code() {
        let id = "0123456789abcdef0123456789abcdef";
        let many = format!(r#"{{"session":"{id}","frames":[{}]}}"#, vec![r#"{"pong":{}}"#; 257].join(","));
        let large =
            format!(r#"{{"session":"{id}","frames":[{{"refresh":{{"token":"{}"}}}}]}}"#, "x".repeat(200));
        for (body, status, code) in [
            ("", 400, CloseCode::BadFrame),
            ("[]", 400, CloseCode::BadFrame),
            ("{\"frames\":[{\"connect\":{}}]} x", 400, CloseCode::BadFrame),
            (r#"{"frames":{}}"#, 400, CloseCode::BadFrame),
            (r#"{"frames":[{"id":1}]}"#, 400, CloseCode::BadFrame),
            (r#"{"frames":[{"bogus":{}}]}"#, 400, CloseCode::BadFrame),
            (r#"{"frames":[[{"connect":{}}]]}"#, 400, CloseCode::BadFrame),
            (r#"{"frames":[{"connect":{},"pong":{}}]}"#, 400, CloseCode::BadFrame),
            (r#"{"frames":[{"connect":{}}],"ack":-1}"#, 400, CloseCode::BadFrame),
            (r#"{"frames":[{"connect":{}}],"wait_ms":"1"}"#, 400, CloseCode::BadFrame),
            (many.as_str(), 400, CloseCode::BadFrame),
            (large.as_str(), 413, CloseCode::FrameTooLarge),
            ("{}", 400, CloseCode::OutOfOrder),
            (r#"{"frames":[{"pong":{}},{"connect":{}}]}"#, 400, CloseCode::OutOfOrder),
            (r#"{"frames":[{"connect":{}}],"ack":1}"#, 400, CloseCode::OutOfOrder),
            (r#"{"session":"mine"}"#, 404, CloseCode::UnknownSession),
        ] {
            let error = parse(body).expect_err(body);
            assert_eq!(error.close_code(), code, "{body}: {error}");
            let response = PollResponse::from(error);
            assert_eq!(response.status, status, "{body}");
            let json: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
            assert_eq!(json["batch"], 0);
            assert_eq!(json["frames"][0]["close"]["code"], code.number());
        }
        let not_utf8 = [br#"{"frames":[{"connect":{"token":""#, &[0xff][..], br#""}}]}"#].concat();
        let error = PollRequest::parse(&not_utf8, 200).expect_err("refused");
        assert_eq!(error.close_code(), CloseCode::BadFrame);
        assert_eq!(PollResponse::from(PollError::TooLarge { limit: 1 }).status, 413);
        assert_eq!(PollResponse::from(PollError::TooMany).status, 429);
    }

    #[test]
    fn answers_join_encoded_frames() {
        let session: SessionId = "0123456789abcdef0123456789abcdef".parse().expect("an id");
        let frames = [Bytes::from_static(br#"{"ping":{}}"#), Bytes::from_static(br#"{"pong":{}}"#)];
        let response = PollResponse::batch(session, Batch { number: 3, frames: &frames });
        let expected =
            br#"{"session":"0123456789abcdef0123456789abcdef","batch":3,"frames":[{"ping":{}},{"pong":{}}]}"#;
        assert_eq!(&response.body[..], &expected[..]);
        assert_eq!(response.into_http().headers()["cache-control"], "no-store");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = PollRequest::parse(&body, 100) {
                prop_assert!(request.session.is_some() || !request.frames.is_empty());
            }
        }

        #[test]
        fn damaged_polls_never_panic(at in 0usize..160, byte in any::<u8>(), cut in 0usize..160) {
            let mut body = br#"{"session":"0123456789abcdef0123456789abcdef","ack":7,"frames":[{"id":1,"publish":{"channel":"a","data":{"x":[1,"\u00e9"]}}},{"pong":{}}],"wait_ms":30}"#.to_vec();
            let at = at % body.len();
            body[at] = byte;
            body.truncate(body.len().saturating_sub(cut));
            if let Ok(request) = PollRequest::parse(&body, 100) {
                prop_assert!(request.wait <= MAX_WAIT);
                prop_assert!(request.frames.len() <= 2);
            }
        }
    }
}
