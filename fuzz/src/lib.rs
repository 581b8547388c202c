//! What each fuzz target does with its input: one plain function per parser of bytes that a peer sends.
//!
//! `fuzz_targets/*.rs` hand these to libFuzzer; `interop-tests/tests/fuzz` replays `corpus/` through them on a
//! stable compiler. A body panics where the parser, or what it promises, is broken: what was taken must be the same
//! again after encoding and decoding, and hold to the limits.

#![forbid(unsafe_code)]

mod http;
mod links;
mod packets;
mod tickets;
mod tokens;

use std::fmt::Debug;
use std::path::PathBuf;

use bytes::Bytes;
use prost::Message;
use tidegate_certs::CertificateHash;
use tidegate_protocol::endpoint::endpoint_of;
use tidegate_protocol::frame::codec::{
    Decoder, Frame, MAX_FRAMES_PER_MESSAGE, decode_message, decode_text, encode_delimited, encode_text,
};
use tidegate_protocol::frame::{ClientFrame, ServerFrame, StreamHeader};
use tidegate_protocol::{ChannelName, SessionId};

pub use http::{
    channel_poll, event_id, history_query, origin, poll_request, publish_body, query, websocket_reader,
};
pub use links::{drain_frame, lease_frame, link_decoder};
pub use packets::{connection_id, tls_ticket};
pub use tickets::{refusal_hint, resume_ticket, slot_ticket, ticket_content};
pub use tokens::{token, token_claims};

/// Does something with any bytes; panics where a promise is broken.
pub type Body = fn(&[u8]);

/// Every target by its name, which is that of its file and of its corpus.
pub const TARGETS: &[(&str, Body)] = &[
    ("certificate_hash", certificate_hash),
    ("channel_name", channel_name),
    ("channel_poll", channel_poll),
    ("client_decoder", client_decoder),
    ("client_message", client_message),
    ("client_text", client_text),
    ("connection_id", connection_id),
    ("drain_frame", drain_frame),
    ("endpoint", endpoint),
    ("event_id", event_id),
    ("history_query", history_query),
    ("lease_frame", lease_frame),
    ("link_decoder", link_decoder),
    ("log_frame", log_frame),
    ("origin", origin),
    ("poll_request", poll_request),
    ("publish_body", publish_body),
    ("query", query),
    ("refusal_hint", refusal_hint),
    ("resume_ticket", resume_ticket),
    ("server_message", server_message),
    ("server_text", server_text),
    ("session_id", session_id),
    ("slot_ticket", slot_ticket),
    ("stream_header", stream_header),
    ("ticket_content", ticket_content),
    ("tls_ticket", tls_ticket),
    ("token", token),
    ("token_claims", token_claims),
    ("websocket_reader", websocket_reader),
];

/// Where a server sends a client.
pub fn endpoint(input: &[u8]) {
    let Some(endpoint) = std::str::from_utf8(input).ok().and_then(endpoint_of) else { return };
    assert_eq!(endpoint_of(&endpoint).as_deref(), Some(&*endpoint), "one spelling");
    assert!(
        !endpoint.contains(|c: char| c.is_whitespace() || "/?#@\\%".contains(c)),
        "nothing but host and port"
    );
}

/// The folder that holds `corpus/` and `fuzz_targets/`.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// JSON from a client: WebSocket text, the frames of a long poll.
pub fn client_text(input: &[u8]) {
    text::<ClientFrame>(input);
}

/// JSON from a server.
pub fn server_text(input: &[u8]) {
    text::<ServerFrame>(input);
}

/// Delimited frames from a client: binary WebSocket messages, datagrams.
pub fn client_message(input: &[u8]) {
    message::<ClientFrame>(input);
    // Others get it as text.
    for frame in decode_message::<ClientFrame>(Bytes::copy_from_slice(input), LIMIT).unwrap_or_default() {
        assert!(decode_text::<ClientFrame>(&encode_text(&frame), usize::MAX).is_ok());
    }
}

/// Delimited frames from a server.
pub fn server_message(input: &[u8]) {
    message::<ServerFrame>(input);
}

/// The control stream of a client in chunks: the first byte says how many cuts there are, as many bytes after it
/// how long each chunk is, the rest is the stream.
pub fn client_decoder(input: &[u8]) {
    let Some((&count, rest)) = input.split_first() else { return };
    let Some((cuts, stream)) = rest.split_at_checked(usize::from(count)) else { return };
    let mut chunks = Vec::new();
    let mut left = stream;
    for cut in cuts {
        let (chunk, rest) = left.split_at(left.len().min(usize::from(*cut)));
        chunks.push(chunk);
        left = rest;
    }
    chunks.push(left);
    assert_eq!(decode_stream(&chunks), decode_stream(&[stream]), "cuts change what is decoded");
}

/// The first message on a stream that the server opened.
pub fn stream_header(input: &[u8]) {
    let Ok(header) = StreamHeader::decode(input) else { return };
    assert_eq!(StreamHeader::decode(&*header.encode_to_vec()), Ok(header));
}

/// The name of a channel, from frames and URLs.
pub fn channel_name(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(name) = ChannelName::new(text) else { return };
    assert_eq!(name.as_str(), text);
    assert!((1..=ChannelName::MAX_BYTES).contains(&text.len()));
    assert!(!text.contains(|c: char| c.is_whitespace() || c.is_control()));
    let namespace = name.namespace();
    assert!(!namespace.contains(':'));
    assert!(namespace.is_empty() || text.strip_prefix(namespace).is_some_and(|rest| rest.starts_with(':')));
}

/// The session of a long poll.
pub fn session_id(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(id) = text.parse::<SessionId>() else { return };
    assert_eq!(id.to_string(), text.to_ascii_lowercase());
    assert!(!format!("{id:?}").contains(&id.to_string()), "a log shows the whole secret");
}

/// A frame of a partition's log, as an engine gives it back.
pub fn log_frame(input: &[u8]) {
    tidegate_core::fuzz_log_frame(input);
}

/// The hash of a certificate that a client is told to trust.
pub fn certificate_hash(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(hash) = text.parse::<CertificateHash>() else { return };
    assert_eq!(hash.to_string().parse(), Ok(hash));
}

fn text<F: Frame + PartialEq + Debug>(input: &[u8]) {
    let Ok(frames) = decode_text::<F>(input, LIMIT) else { return };
    assert!(input.len() <= LIMIT && frames.len() <= MAX_FRAMES_PER_MESSAGE);
    for frame in frames {
        assert!(frame.is_known());
        let again = decode_text::<F>(&encode_text(&frame), usize::MAX).expect("what was encoded decodes");
        assert_eq!(again, [frame]);
    }
}

fn message<F: Frame + PartialEq + Debug>(input: &[u8]) {
    let Ok(frames) = decode_message::<F>(Bytes::copy_from_slice(input), LIMIT) else { return };
    assert!(frames.len() <= MAX_FRAMES_PER_MESSAGE);
    for frame in frames {
        assert!(frame.is_known());
        let again =
            decode_message::<F>(encode_delimited(&frame), usize::MAX).expect("what was encoded decodes");
        assert_eq!(again, [frame]);
    }
}

/// The frames up to the first error, and whether there was one.
fn decode_stream(chunks: &[&[u8]]) -> (Vec<ClientFrame>, bool) {
    let mut decoder = Decoder::new(LIMIT);
    let mut frames = Vec::new();
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

/// Small, so that a fuzzer finds its way past it.
const LIMIT: usize = 4096;
