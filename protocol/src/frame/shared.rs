//! Sans-io: a publication that is encoded once per framing, however many connections it goes to.

use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

use super::codec::{DecodeError, encode_delimited, encode_text};
use super::{ServerBody, ServerFrame};

/// How frames are laid out on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Framing {
    /// Length and Protobuf: QUIC and WebTransport streams; datagrams.
    Delimited,
    /// JSON: long poll.
    Text,
    /// A binary WebSocket message of one delimited frame.
    WebSocketBinary,
    /// A text WebSocket message of one JSON frame.
    WebSocketText,
    /// The `event` and `data` lines of a Server-Sent Event, without its `id` and the empty line that ends it: the id
    /// holds the epoch, which a frame does not know.
    Event,
}

impl Framing {
    /// Every framing.
    pub const ALL: [Self; 5] =
        [Self::Delimited, Self::Text, Self::WebSocketBinary, Self::WebSocketText, Self::Event];

    /// Encodes one frame.
    pub fn encode(self, frame: &ServerFrame) -> Bytes {
        match self {
            Self::Delimited => encode_delimited(frame),
            Self::Text => encode_text(frame),
            Self::WebSocketBinary => websocket_message(OPCODE_BINARY, &encode_delimited(frame)),
            Self::WebSocketText => websocket_message(OPCODE_TEXT, &encode_text(frame)),
            Self::Event => event_lines(frame),
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Delimited => 0,
            Self::Text => 1,
            Self::WebSocketBinary => 2,
            Self::WebSocketText => 3,
            Self::Event => 4,
        }
    }
}

/// A frame and its encodings, each made when it is first asked for and shared from then on.
#[derive(Debug)]
pub struct SharedFrame {
    frame: ServerFrame,
    encodings: [OnceLock<Bytes>; Framing::ALL.len()],
}

impl SharedFrame {
    /// Wraps a publication, an ephemeral item, or anything else that is the same for all.
    pub fn new(body: ServerBody) -> Self {
        Self { frame: ServerFrame::new(0, body), encodings: Default::default() }
    }

    /// From the delimited encoding of one frame, which is kept as it is. Payloads share it.
    pub fn from_delimited(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut rest = bytes.clone();
        let length = prost::decode_length_delimiter(&mut rest)?;
        if length != rest.len() {
            return Err(DecodeError::BadLength);
        }
        let encodings: [OnceLock<Bytes>; Framing::ALL.len()] = Default::default();
        let frame = ServerFrame::decode(rest)?;
        encodings[Framing::Delimited.index()].get_or_init(|| bytes);
        Ok(Self { frame, encodings })
    }

    /// What it holds.
    pub fn frame(&self) -> &ServerFrame {
        &self.frame
    }

    /// Its bytes, encoded at most once.
    pub fn encoded(&self, framing: Framing) -> &Bytes {
        self.encodings[framing.index()].get_or_init(|| framing.encode(&self.frame))
    }
}

impl PartialEq for SharedFrame {
    /// Encodings follow from the frame.
    fn eq(&self, other: &Self) -> bool {
        self.frame == other.frame
    }
}

/// The body of a frame as an event: publications have the default type, so that `onmessage` gets them; other bodies have
/// a name. What has none is sent as a whole frame.
fn event_lines(frame: &ServerFrame) -> Bytes {
    let json = |body: serde_json::Result<Vec<u8>>| {
        body.expect("structs of text, numbers and checked JSON serialize")
    };
    let (name, data) = match &frame.body {
        Some(ServerBody::Publication(publication)) => (None, json(serde_json::to_vec(publication))),
        Some(ServerBody::Ephemeral(ephemeral)) => (Some("ephemeral"), json(serde_json::to_vec(ephemeral))),
        Some(ServerBody::Close(close)) => (Some("close"), json(serde_json::to_vec(close))),
        _ => (Some("frame"), encode_text(frame).to_vec()),
    };
    let mut lines = BytesMut::with_capacity(data.len() + 32);
    if let Some(name) = name {
        lines.put_slice(b"event: ");
        lines.put_slice(name.as_bytes());
        lines.put_u8(b'\n');
    }
    lines.put_slice(b"data: ");
    let start = lines.len();
    lines.put_slice(&data);
    // Payloads are carried as they came. Between the tokens of JSON a line break is as good as a space; inside its text
    // there is none. An event's line would end there.
    for byte in &mut lines[start..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    lines.put_u8(b'\n');
    lines.freeze()
}

/// A server's WebSocket message in one unmasked frame (RFC 6455 §5.2).
fn websocket_message(opcode: u8, payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(payload.len() + 10);
    message.put_u8(FIN | opcode);
    match payload.len() {
        length @ 0..=125 => message.put_u8(length as u8),
        length @ 126..=0xffff => {
            message.put_u8(126);
            message.put_u16(length as u16);
        }
        length => {
            message.put_u8(127);
            message.put_u64(length as u64);
        }
    }
    message.put_slice(payload);
    message.freeze()
}

const FIN: u8 = 0x80;
const OPCODE_TEXT: u8 = 0x1;
const OPCODE_BINARY: u8 = 0x2;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::frame::Publication;
    use crate::frame::codec::{decode_message, decode_text};
    use crate::frame::tests::server_frame;

    proptest! {
        #[test]
        fn every_framing_holds_the_frame(frame in server_frame()) {
            let shared = SharedFrame::new(frame.body.clone().expect("the strategy sets it"));
            let expected = ServerFrame { id: 0, ..frame };
            prop_assert_eq!(shared.frame(), &expected);
            for framing in Framing::ALL {
                let frames: Result<Vec<ServerFrame>, _> = match framing {
                    Framing::Delimited => decode_message(shared.encoded(framing).clone(), LIMIT),
                    Framing::Text => decode_text(shared.encoded(framing), LIMIT),
                    Framing::WebSocketBinary => {
                        let (opcode, payload) = parse_websocket(shared.encoded(framing));
                        prop_assert_eq!(opcode, 2);
                        decode_message(Bytes::copy_from_slice(payload), LIMIT)
                    }
                    Framing::WebSocketText => {
                        let (opcode, payload) = parse_websocket(shared.encoded(framing));
                        prop_assert_eq!(opcode, 1);
                        decode_text(payload, LIMIT)
                    }
                    Framing::Event => {
                        // Line breaks between the tokens of a payload became spaces.
                        let expected: Vec<u8> = encode_text(&expected)
                            .iter()
                            .map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte })
                            .collect();
                        prop_assert_eq!(parse_event(shared.encoded(framing)), expected);
                        continue;
                    }
                };
                prop_assert_eq!(&frames.expect("our own bytes")[..], std::slice::from_ref(&expected));
            }
        }
    }

    #[test]
    fn websocket_lengths_take_the_shortest_form() {
        for (length, header) in [(0, 2), (1, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (200_000, 10)]
        {
            let payload = vec![7; length];
            let message = websocket_message(OPCODE_BINARY, &payload);
            assert_eq!(message.len(), length + header, "{length}");
            assert_eq!(parse_websocket(&message), (OPCODE_BINARY, &payload[..]), "{length}");
        }
    }

    #[test]
    fn frames_around_the_bounds_of_websocket_lengths_survive() {
        for payload in (60..130).chain(65_400..65_540) {
            let shared = SharedFrame::new(publication(payload));
            let (_, binary) = parse_websocket(shared.encoded(Framing::WebSocketBinary));
            assert_eq!(binary, shared.encoded(Framing::Delimited), "{payload}");
            let (_, text) = parse_websocket(shared.encoded(Framing::WebSocketText));
            assert_eq!(text, shared.encoded(Framing::Text), "{payload}");
        }
    }

    #[test]
    fn each_framing_is_encoded_once_for_all_holders() {
        let shared = Arc::new(SharedFrame::new(publication(100)));
        for framing in Framing::ALL {
            let first = shared.encoded(framing).clone();
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || shared.encoded(framing).clone())
                })
                .collect();
            for thread in threads {
                let again = thread.join().expect("it does not panic");
                assert_eq!(again.as_ptr(), first.as_ptr(), "{framing:?}");
                assert_eq!(again.len(), first.len(), "{framing:?}");
            }
        }
    }

    #[test]
    fn what_nobody_asks_for_is_not_encoded() {
        let shared = SharedFrame::new(publication(100));
        shared.encoded(Framing::Text);
        let made: Vec<bool> = shared.encodings.iter().map(|encoding| encoding.get().is_some()).collect();
        assert_eq!(made, [false, true, false, false, false]);
    }

    /// An unmasked, unfragmented message in one frame without extensions, and nothing after it (RFC 6455 §5.2).
    fn parse_websocket(message: &[u8]) -> (u8, &[u8]) {
        assert_eq!(message[0] & 0xf0, 0x80, "FIN, no reserved bits");
        let (length, payload) = match message[1] {
            length @ 0..=125 => (u64::from(length), &message[2..]),
            126 => (u64::from(u16::from_be_bytes([message[2], message[3]])), &message[4..]),
            127 => (u64::from_be_bytes(message[2..10].try_into().expect("8 bytes")), &message[10..]),
            masked => panic!("a server does not mask: {masked:#x}"),
        };
        assert_eq!(payload.len() as u64, length);
        (message[0] & 0x0f, payload)
    }

    /// The frame again: its body by the event's name (WHATWG HTML §9.2.6).
    fn parse_event(lines: &[u8]) -> Vec<u8> {
        let text = std::str::from_utf8(lines).expect("UTF-8");
        assert!(!text.contains('\r') && text.ends_with('\n'), "{text:?}");
        let lines: Vec<&str> = text[..text.len() - 1].split('\n').collect();
        let (name, data) = match lines.as_slice() {
            [data] => ("publication", *data),
            [name, data] => (name.strip_prefix("event: ").expect("a name"), *data),
            other => panic!("{other:?}"),
        };
        let data = data.strip_prefix("data: ").expect("data");
        if name == "frame" { data.into() } else { format!("{{\"{name}\":{data}}}").into_bytes() }
    }

    #[test]
    fn line_breaks_of_a_payload_do_not_end_an_event() {
        let data = Bytes::from_static(b"{\r\n  \"text\":\n\r\"a\\nb\"\n}");
        let body = ServerBody::Publication(Publication {
            channel: "room:1".to_owned(),
            offset: 1,
            data: Some(data),
            ..Publication::default()
        });
        let event = SharedFrame::new(body).encoded(Framing::Event).clone();
        let value: serde_json::Value = serde_json::from_slice(&parse_event(&event)).expect("JSON");
        assert_eq!(value["publication"]["data"]["text"], "a\nb");
    }

    fn publication(bytes: usize) -> ServerBody {
        ServerBody::Publication(Publication {
            channel: "room:1".to_owned(),
            offset: 1,
            data_base64: Some(Bytes::from(vec![0xa5; bytes])),
            ..Publication::default()
        })
    }

    const LIMIT: usize = 1 << 20;
}
