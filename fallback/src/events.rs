//! Sans-io: `GET /v1/channels/{channel}/events`, Server-Sent Events (WHATWG HTML §9.2): what is asked for, and how
//! events are spelled.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;
use tidegate_protocol::frame::CloseCode;
use tidegate_protocol::frame::shared::Framing;
use tidegate_protocol::frame::{self, Close, ErrorCode, ServerBody, ServerFrame};
use tidegate_protocol::{ChannelName, Epoch, Offset, Position};

use crate::channel_poll::{ChannelPoll, ChannelPollError};
use crate::http::to_json;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventsRequest {
    /// Events of which channel.
    pub channel: ChannelName,
    /// What the caller has; `None` to begin at the head. An empty epoch stands for the current one.
    pub position: Option<Position>,
}

/// Why a request for events cannot be understood: 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventsError {
    /// The address is malformed.
    #[error(transparent)]
    Address(#[from] ChannelPollError),
    /// `Last-Event-ID` is none of our ids.
    #[error("Last-Event-ID must be the id of an event of this channel: epoch:offset")]
    LastEventId,
}

impl EventsError {
    /// For the error response.
    pub fn error_code(&self) -> ErrorCode {
        ErrorCode::BadRequest
    }
}

impl EventsRequest {
    /// Reads the percent-encoded path segment, the query and `Last-Event-ID`. The header comes before the query: an
    /// `EventSource` that comes back asks for the address that it was made with, and says in the header what it has
    /// since.
    ///
    /// # Errors
    /// Where one of them is malformed.
    pub fn parse(channel: &str, query: Option<&str>, headers: &HeaderMap) -> Result<Self, EventsError> {
        let ChannelPoll { channel, position, .. } = ChannelPoll::parse(channel, query)?;
        let mut ids = headers.get_all(LAST_EVENT_ID).iter();
        let last = match (ids.next(), ids.next()) {
            (None, _) => None,
            (Some(id), None) if id.is_empty() => None,
            (Some(id), None) => Some(parse_id(id.as_bytes()).ok_or(EventsError::LastEventId)?),
            (Some(_), Some(_)) => return Err(EventsError::LastEventId),
        };
        Ok(Self { channel, position: last.or(position) })
    }
}

/// A position as an event's id spells it, `epoch:offset`. The epoch may be empty, for whichever is current.
pub fn parse_id(id: &[u8]) -> Option<Position> {
    let (epoch, offset) = std::str::from_utf8(id).ok()?.rsplit_once(':')?;
    let digits = !offset.is_empty() && offset.bytes().all(|byte| byte.is_ascii_digit());
    // An epoch with a line break could not come back in an id.
    if !digits || epoch.len() > Epoch::MAX_BYTES || epoch.chars().any(char::is_control) {
        return None;
    }
    Some(Position::new(Epoch::new(epoch), Offset(offset.parse().ok()?)))
}

/// Whether the caller is an `EventSource`, or says that it reads events as one does. Such a client takes every status
/// but 200 as final: what may pass must be told in a stream.
pub fn wants_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(http::header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|range| range.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(EVENT_STREAM))
}

/// The head of a stream: nothing on the way may keep it or hold it back.
pub fn stream_response<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx, and those who took it over.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// Events as bytes, one after the other.
#[derive(Debug, Default)]
pub struct EventWriter(BytesMut);

impl EventWriter {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When to come back after the stream ended.
    pub fn retry(&mut self, after: Duration) {
        self.text(format_args!("retry: {}\n", after.as_millis()));
    }

    /// Where the stream begins: what follows comes after `position`.
    pub fn position(&mut self, position: &Position, recovered: bool) {
        self.named("position", &PositionData { position: position.clone().into(), recovered });
        self.id(position);
    }

    /// Continuity was lost: nothing up to and including `position` comes.
    pub fn rebased(&mut self, position: &Position) {
        self.named("rebased", &PositionData { position: position.clone().into(), recovered: false });
        self.id(position);
    }

    /// A publication in [`Framing::Event`], at `position`.
    pub fn publication(&mut self, lines: &[u8], position: &Position) {
        self.0.put_slice(lines);
        self.id(position);
    }

    /// An ephemeral item in [`Framing::Event`]. Without an id: a position does not know it.
    pub fn ephemeral(&mut self, lines: &[u8]) {
        self.0.put_slice(lines);
        self.0.put_u8(b'\n');
    }

    /// Why the stream ends, and when to come back.
    pub fn close(&mut self, code: CloseCode, reason: &str, after: Duration) {
        self.closing(code.frame(reason), after);
    }

    /// The same with the frame that says so.
    pub fn closing(&mut self, close: Close, after: Duration) {
        self.retry(after);
        let frame = ServerFrame::new(0, ServerBody::Close(close));
        self.0.put_slice(&Framing::Event.encode(&frame));
        self.0.put_u8(b'\n');
    }

    /// A comment that keeps the way open.
    pub fn ping(&mut self) {
        self.0.put_slice(b": ping\n\n");
    }

    /// Gives them away.
    pub fn take(&mut self) -> Bytes {
        self.0.split().freeze()
    }

    fn named(&mut self, name: &str, data: &impl Serialize) {
        self.text(format_args!("event: {name}\ndata: "));
        self.0.put_slice(&to_json(data));
        self.0.put_u8(b'\n');
    }

    /// Ends an event. Epochs are made by the core, of letters and digits.
    fn id(&mut self, position: &Position) {
        self.text(format_args!("id: {}:{}\n\n", position.epoch, position.offset));
    }

    fn text(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("bytes grow");
    }
}

#[derive(Serialize)]
struct PositionData {
    position: frame::Position,
    recovered: bool,
}

/// The header by which an `EventSource` says what it has.
pub const LAST_EVENT_ID: &str = "last-event-id";
const EVENT_STREAM: &str = "text/event-stream";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidegate_protocol::frame::Publication;

    fn at(epoch: &str, offset: u64) -> Position {
        Position::new(Epoch::new(epoch), Offset(offset))
    }

    fn with_id(id: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(LAST_EVENT_ID, HeaderValue::from_static(id));
        headers
    }

    #[test]
    fn what_an_event_source_has_comes_before_what_its_address_says() {
        let parse = |query, headers: &HeaderMap| EventsRequest::parse("room%3A1", query, headers);
        let head = parse(None, &HeaderMap::new()).expect("valid");
        assert_eq!((head.channel.as_str(), head.position), ("room:1", None));
        let asked = parse(Some("epoch=a&offset=4&token=x"), &HeaderMap::new()).expect("valid");
        assert_eq!(asked.position, Some(at("a", 4)));
        let back = parse(Some("epoch=a&offset=4"), &with_id("b:9")).expect("valid");
        assert_eq!(back.position, Some(at("b", 9)));
        let empty = parse(Some("offset=4"), &with_id("")).expect("valid");
        assert_eq!(empty.position, Some(at("", 4)));

        let mut twice = with_id("b:9");
        twice.append(LAST_EVENT_ID, HeaderValue::from_static("b:10"));
        assert_eq!(parse(None, &twice), Err(EventsError::LastEventId));
        assert!(matches!(parse(Some("offset=x"), &with_id("b:9")), Err(EventsError::Address(_))));
    }

    #[test]
    fn ids_are_positions_and_nothing_else() {
        for (text, position) in [
            ("7f3a:45", at("7f3a", 45)),
            (":0", at("", 0)),
            ("a:b:18446744073709551615", at("a:b", u64::MAX)),
        ] {
            assert_eq!(parse_id(text.as_bytes()), Some(position), "{text}");
        }
        let long = format!("{}:1", "e".repeat(65));
        for text in [
            "",
            ":",
            "a",
            "45",
            "a:",
            "a:-1",
            "a:+1",
            "a: 1",
            "a:1.0",
            "a:18446744073709551616",
            "a\n:1",
            &long,
        ] {
            assert_eq!(parse_id(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse_id(b"\xff:1"), None);
    }

    #[test]
    fn who_reads_events_says_so() {
        let accepts = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::ACCEPT, HeaderValue::from_static(value));
            wants_events(&headers)
        };
        assert!(accepts("text/event-stream"));
        assert!(accepts("application/json, Text/Event-Stream;q=0.9"));
        assert!(!accepts("*/*"));
        assert!(!accepts("text/event-streams"));
        assert!(!wants_events(&HeaderMap::new()));
    }

    #[test]
    fn events_are_spelled_as_the_standard_reads_them() {
        let mut writer = EventWriter::default();
        writer.retry(Duration::from_millis(2500));
        writer.position(&at("e", 4), true);
        let publication = Publication {
            channel: "news".to_owned(),
            offset: 5,
            data: Some(Bytes::from_static(b"[1,\r\n2]")),
            ..Publication::default()
        };
        let frame = ServerFrame::new(0, ServerBody::Publication(publication));
        writer.publication(&Framing::Event.encode(&frame), &at("e", 5));
        writer.rebased(&at("f", 0));
        writer.ping();
        writer.close(CloseCode::Shutdown, "bye", Duration::from_secs(1));
        let expected = "retry: 2500\n\
            event: position\ndata: {\"position\":{\"epoch\":\"e\",\"offset\":4},\"recovered\":true}\nid: e:4\n\n\
            data: {\"channel\":\"news\",\"offset\":5,\"data\":[1,  2],\"time_ms\":0}\nid: e:5\n\n\
            event: rebased\ndata: {\"position\":{\"epoch\":\"f\",\"offset\":0},\"recovered\":false}\nid: f:0\n\n\
            : ping\n\n\
            retry: 1000\n\
            event: close\ndata: {\"code\":4100,\"reason\":\"bye\",\"reconnect\":{\"policy\":\"backoff\"}}\n\n";
        assert_eq!(writer.len(), expected.len());
        assert_eq!(String::from_utf8_lossy(&writer.take()), expected);
        assert!(writer.is_empty());
    }

    proptest! {
        #[test]
        fn ids_survive_and_arbitrary_ones_never_panic(
            epoch in "[a-z0-9:.-]{0,64}",
            offset: u64,
            rubbish in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let position = at(&epoch, offset);
            let mut writer = EventWriter::default();
            writer.publication(b"", &position);
            let text = writer.take();
            let id = text.strip_prefix(b"id: ").and_then(|id| id.strip_suffix(b"\n\n")).expect("an id");
            prop_assert_eq!(parse_id(id), Some(position));
            if let Some(position) = parse_id(&rubbish) {
                prop_assert!(position.epoch.as_str().len() <= Epoch::MAX_BYTES);
            }
        }
    }
}
