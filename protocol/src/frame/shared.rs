//! Sans-io: a publication that is encoded once per framing, however many connections it goes to.

use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{encode_delimited, encode_text};
use super::{ServerBody, ServerFrame};

/// How frames are laid out on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Framing {
    /// Length and Protobuf: QUIC and WebTransport streams; datagrams.
    Delimited,
    /// JSON: long poll and Server-Sent Events.
    Text,
    /// A binary WebSocket message of one delimited frame.
    WebSocketBinary,
    /// A text WebSocket message of one JSON frame.
    WebSocketText,
}

impl Framing {
    /// Every framing.
    pub const ALL: [Self; 4] = [Self::Delimited, Self::Text, Self::WebSocketBinary, Self::WebSocketText];

    /// Encodes one frame.
    pub fn encode(self, frame: &ServerFrame) -> Bytes {
        match self {
            Self::Delimited => encode_delimited(frame),
            Self::Text => encode_text(frame),
            Self::WebSocketBinary => websocket_message(OPCODE_BINARY, &encode_delimited(frame)),
            Self::WebSocketText => websocket_message(OPCODE_TEXT, &encode_text(frame)),
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Delimited => 0,
            Self::Text => 1,
            Self::WebSocketBinary => 2,
            Self::WebSocketText => 3,
        }
    }
}

/// A frame and its encodings, each made when it is first asked for and shared from then on.
#[derive(Debug)]
pub struct SharedFrame {
    frame: ServerFrame,
    encodings: [OnceLock<Bytes>; 4],
}

impl SharedFrame {
    /// Wraps a publication, an ephemeral item, or anything else that is the same for all.
    pub fn new(body: ServerBody) -> Self {
        Self { frame: ServerFrame::new(0, body), encodings: Default::default() }
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
        assert_eq!(made, [false, true, false, false]);
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
