//! What comes over HTTP: bodies, addresses, headers, and the bytes of a WebSocket.

use std::time::Duration;

use tidegate_fallback::channel_poll::ChannelPoll;
use tidegate_fallback::events::{EventWriter, parse_id};
use tidegate_fallback::http::{OriginPolicy, decode_path_segment, query_pairs};
use tidegate_fallback::longpoll::{MAX_WAIT, PollRequest};
use tidegate_fallback::websocket;
use tidegate_protocol::Epoch;

use crate::LIMIT;

/// The body of `POST /v1/poll`.
pub fn poll_request(input: &[u8]) {
    let Ok(request) = PollRequest::parse(input, LIMIT) else { return };
    assert!(request.wait <= MAX_WAIT);
    assert!(request.session.is_some() || !request.frames.is_empty(), "a session begins with connect");
    assert!(request.session.is_some() || request.ack == 0);
}

/// The address of `GET /v1/channels/{channel}/poll`: the segment, a line end, the query.
pub fn channel_poll(input: &[u8]) {
    let Some((channel, query)) = address(input) else { return };
    let Ok(poll) = ChannelPoll::parse(channel, query) else { return };
    assert_eq!(decode_path_segment(channel).as_deref(), Ok(poll.channel.as_str()));
    assert!(poll.wait <= Duration::from_secs(60));
    assert!(poll.position.is_none_or(|position| position.epoch.as_str().len() <= Epoch::MAX_BYTES));
}

/// The id of an event, as it comes back in `Last-Event-ID`: it is the id that is written for its position.
pub fn event_id(input: &[u8]) {
    let Some(position) = parse_id(input) else { return };
    assert!(position.epoch.as_str().len() <= Epoch::MAX_BYTES);
    let mut writer = EventWriter::default();
    writer.publication(b"", &position);
    let written = writer.take();
    let id = written.strip_prefix(b"id: ").and_then(|id| id.strip_suffix(b"\n\n")).expect("an id");
    assert!(!id.contains(&b'\n') && !id.contains(&b'\r') && !id.contains(&0));
    assert_eq!(parse_id(id), Some(position));
}

/// The address of the backend's history request, laid out as for [`channel_poll`].
pub fn history_query(input: &[u8]) {
    let Some((channel, query)) = address(input) else { return };
    tidegate_core::publish::fuzz_history(channel, query.unwrap_or_default());
}

/// The body of the backend's publish request.
pub fn publish_body(input: &[u8]) {
    tidegate_core::publish::fuzz_publishes(input);
}

/// An `Origin` header, and an entry of the list: what is on the list is let in.
pub fn origin(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let strict = OriginPolicy::new(&["https://app.example", "http://localhost:*"]).expect("a policy");
    if strict.allows(text) {
        let folded = text.to_ascii_lowercase();
        let port = folded.strip_prefix("http://localhost");
        assert!(
            folded == "https://app.example"
                || folded.strip_prefix("https://app.example:").is_some_and(|port| port.parse() == Ok(443))
                || port.is_some_and(|port| port.is_empty() || port[1..].parse::<u16>().is_ok()),
            "{text}"
        );
    }
    if let Ok(policy) = OriginPolicy::new(&[text]) {
        let example = match text {
            "*" => "https://any.example".to_owned(),
            _ => text.strip_suffix(":*").map_or_else(|| text.to_owned(), |host| format!("{host}:3000")),
        };
        assert!(policy.allows(&example), "{text}");
    }
}

/// The query of any address.
pub fn query(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut pairs = 0;
    for (name, value) in query_pairs(Some(text)).flatten() {
        pairs += 1;
        assert!(name.len() + value.len() <= text.len());
    }
    assert!(pairs <= text.split('&').count());
}

/// The bytes of a WebSocket; the first one's lowest bit says of which kind.
pub fn websocket_reader(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    // A frame has two bytes at least, and a client masks it: six.
    assert!(websocket::fuzz_reader(bytes, kind & 1 == 1, LIMIT) <= bytes.len() / 6);
}

fn address(input: &[u8]) -> Option<(&str, Option<&str>)> {
    let text = std::str::from_utf8(input).ok()?;
    Some(match text.split_once('\n') {
        Some((segment, query)) => (segment, Some(query)),
        None => (text, None),
    })
}
