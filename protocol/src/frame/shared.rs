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
