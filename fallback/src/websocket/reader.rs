//! Sans-io: a client's bytes to WebSocket messages (RFC 6455 §5). Every length is checked before it is believed, and
//! nothing is held while nothing is under way.

use bytes::{Buf, Bytes, BytesMut};
use tidegate_protocol::frame::CloseCode;

/// Something whole that the client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A data message, its fragments put together. Text is valid UTF-8.
    Message(Bytes),
    /// A ping, to be answered with the same bytes (at most 125).
    Ping(Bytes),
    /// The client's close frame; nothing counts after it.
    Close {
        /// Its code.
        code: Option<u16>,
    },
}

/// Why the client's bytes cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadError {
    /// RFC 6455 forbids it.
    #[error("bad WebSocket frame: {0}")]
    BadFrame(&'static str),
    /// A message over the limit.
    #[error("a message of over {limit} bytes")]
    TooLarge {
        /// What is allowed.
        limit: usize,
    },
    /// Text on a binary subprotocol or the other way round.
    #[error("{0}")]
    WrongKind(&'static str),
}

impl ReadError {
    pub(super) fn close_code(&self) -> CloseCode {
        match self {
            Self::BadFrame(_) => CloseCode::BadFrame,
            Self::TooLarge { .. } => CloseCode::FrameTooLarge,
            Self::WrongKind(_) => CloseCode::Unsupported,
        }
    }
}

/// The kind of data messages that a connection takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Binary,
}

/// Cuts bytes into messages.
pub(super) struct Reader {
    kind: Kind,
    limit: usize,
    /// Received, not yet cut.
    buffer: BytesMut,
    /// What came of a fragmented message, unmasked; `None` between messages.
    fragments: Option<BytesMut>,
}

impl Reader {
    /// Takes messages of one kind, of at most `limit` bytes.
    pub(super) fn new(kind: Kind, limit: usize) -> Self {
        Self { kind, limit, buffer: BytesMut::new(), fragments: None }
    }

    /// Takes what was read.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole thing. After an error nothing more can be told from these bytes.
    pub(super) fn next(&mut self) -> Result<Option<Incoming>, ReadError> {
        while let Some(header) = Header::parse(&self.buffer)? {
            self.check(&header)?;
            // Within the limit, as `check` found.
            let length = header.payload as usize;
            if self.buffer.len() < header.bytes + length {
                return Ok(None);
            }
            self.buffer.advance(header.bytes);
            let mut payload = self.buffer.split_to(length);
            unmask(&mut payload, header.mask);
            if let Some(incoming) = self.accept(&header, payload)? {
                return Ok(Some(incoming));
            }
        }
        if self.buffer.is_empty() {
            // An idle connection holds no buffer.
            self.buffer = BytesMut::new();
        }
        Ok(None)
    }

    /// Bytes held.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.buffer.capacity() + self.fragments.as_ref().map_or(0, BytesMut::capacity)
    }

    /// Everything that a header alone can tell, before its payload is waited for.
    fn check(&self, header: &Header) -> Result<(), ReadError> {
        match header.opcode {
            CLOSE | PING | PONG => {
                if !header.fin {
                    return Err(ReadError::BadFrame("a fragmented control frame"));
                }
                if header.payload > 125 {
                    return Err(ReadError::BadFrame("a control frame of over 125 bytes"));
                }
                return Ok(());
            }
            CONTINUATION if self.fragments.is_none() => {
                return Err(ReadError::BadFrame("a continuation of nothing"));
            }
            CONTINUATION => {}
            TEXT | BINARY if self.fragments.is_some() => {
                return Err(ReadError::BadFrame("a new message inside a fragmented one"));
            }
            TEXT if self.kind == Kind::Binary => {
                return Err(ReadError::WrongKind("tidegate.v1.proto takes binary messages, not text"));
            }
            BINARY if self.kind == Kind::Text => {
                return Err(ReadError::WrongKind("tidegate.v1.json takes text messages, not binary"));
            }
            TEXT | BINARY => {}
            _ => return Err(ReadError::BadFrame("a reserved opcode")),
        }
        let held = self.fragments.as_ref().map_or(0, BytesMut::len) as u64;
        if held.saturating_add(header.payload) > self.limit as u64 {
            return Err(ReadError::TooLarge { limit: self.limit });
        }
        Ok(())
    }

    fn accept(&mut self, header: &Header, payload: BytesMut) -> Result<Option<Incoming>, ReadError> {
        match header.opcode {
            PING => return Ok(Some(Incoming::Ping(payload.freeze()))),
            PONG => return Ok(None),
            CLOSE => return close(&payload).map(Some),
            _ => {}
        }
        let message = match self.fragments.take() {
            Some(mut fragments) => {
                fragments.extend_from_slice(&payload);
                fragments
            }
            None => payload,
        };
        if !header.fin {
            self.fragments = Some(message);
            return Ok(None);
        }
        if self.kind == Kind::Text && std::str::from_utf8(&message).is_err() {
            return Err(ReadError::BadFrame("text that is not UTF-8"));
        }
        Ok(Some(Incoming::Message(message.freeze())))
    }
}

/// The start of a client's frame.
#[derive(Debug, Clone, Copy)]
struct Header {
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
    payload: u64,
    /// Its own length.
    bytes: usize,
}

impl Header {
    /// `None` where it is not whole yet.
    fn parse(buffer: &[u8]) -> Result<Option<Self>, ReadError> {
        let &[first, second, ref rest @ ..] = buffer else { return Ok(None) };
        if first & RESERVED_BITS != 0 {
            return Err(ReadError::BadFrame("reserved bits are set"));
        }
        if second & MASKED == 0 {
            return Err(ReadError::BadFrame("a client's frame must be masked"));
        }
        let (payload, length_bytes) = match second & !MASKED {
            126 => match rest.first_chunk() {
                Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 2),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 8),
                None => return Ok(None),
            },
            length => (u64::from(length), 0),
        };
        let shortest = match payload {
            0..=125 => 0,
            126..=0xffff => 2,
            _ => 8,
        };
        if length_bytes != shortest {
            return Err(ReadError::BadFrame("a length that is not in its shortest form"));
        }
        let Some(mask) = rest[length_bytes..].first_chunk() else { return Ok(None) };
        Ok(Some(Self {
            fin: first & FIN != 0,
            opcode: first & OPCODE_BITS,
            mask: *mask,
            payload,
            bytes: 2 + length_bytes + 4,
        }))
    }
}

/// A close frame's payload: nothing, or a code and UTF-8 (RFC 6455 §5.5.1, §7.4).
fn close(payload: &[u8]) -> Result<Incoming, ReadError> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        if payload.is_empty() {
            return Ok(Incoming::Close { code: None });
        }
        return Err(ReadError::BadFrame("a close frame of one byte"));
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(ReadError::BadFrame("a close code that must not be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(ReadError::BadFrame("a close reason that is not UTF-8"));
    }
    Ok(Incoming::Close { code: Some(code) })
}

/// RFC 6455 §5.3, eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

const FIN: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const OPCODE_BITS: u8 = 0x0f;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A client's frame, masked.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x11, 0xa2, 0x33, 0xc4];
        let mut bytes = vec![first];
        match payload.len() {
            length @ 0..=125 => bytes.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(0x80 | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]));
        bytes
    }

    fn read(kind: Kind, bytes: &[u8]) -> Result<Vec<Incoming>, ReadError> {
        let mut reader = Reader::new(kind, 1000);
        reader.push(bytes);
        let mut all = Vec::new();
        while let Some(incoming) = reader.next()? {
            all.push(incoming);
        }
        Ok(all)
    }

    #[test]
    fn bad_frames_are_refused_by_their_header() {
        let text = |bytes: &[u8]| read(Kind::Text, bytes).expect_err("refused").close_code();
        assert_eq!(text(&[0x81, 0x02, b'{', b'}']), CloseCode::BadFrame, "unmasked");
        for first in [0xc1, 0xa1, 0x91, 0x83, 0x8b, 0x8f] {
            assert_eq!(text(&frame(first, b"{}")), CloseCode::BadFrame, "reserved: {first:x}");
        }
        assert_eq!(text(&frame(0x09, b"")), CloseCode::BadFrame, "fragmented ping");
        assert_eq!(text(&frame(0x89, &[0; 126])), CloseCode::BadFrame, "long ping");
        assert_eq!(text(&frame(0x80, b"x")), CloseCode::BadFrame, "continuation of nothing");
        let nested = [frame(0x01, b"{"), frame(0x81, b"}")].concat();
        assert_eq!(text(&nested), CloseCode::BadFrame, "message in message");
        assert_eq!(text(&[0x81, 0xfe, 0, 5, 0, 0, 0, 0]), CloseCode::BadFrame, "two bytes for 5");
        assert_eq!(
            text(&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]),
            CloseCode::BadFrame,
            "eight for 256"
        );
        assert_eq!(text(&frame(0x81, &[0xff, 0xfe])), CloseCode::BadFrame, "bad UTF-8");
        assert_eq!(text(&frame(0x82, b"x")), CloseCode::Unsupported);
        assert_eq!(
            read(Kind::Binary, &frame(0x81, b"x")).expect_err("refused").close_code(),
            CloseCode::Unsupported
        );

        assert_eq!(text(&frame(0x81, &[b' '; 1001])), CloseCode::FrameTooLarge);
        // An absurd length is refused with nothing behind it, and nothing held for it.
        let absurd = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(text(&absurd), CloseCode::FrameTooLarge);
        let fragments = [frame(0x01, &[b' '; 600]), frame(0x80, &[b' '; 600])].concat();
        assert_eq!(text(&fragments), CloseCode::FrameTooLarge, "by fragments");
    }

    #[test]
    fn close_frames_are_checked() {
        let close = |payload: &[u8]| read(Kind::Text, &frame(0x88, payload));
        assert_eq!(close(b""), Ok(vec![Incoming::Close { code: None }]));
        assert_eq!(close(&[0x03, 0xe8, b'o', b'k']), Ok(vec![Incoming::Close { code: Some(1000) }]));
        assert_eq!(close(&[0x0f, 0xa0]), Ok(vec![Incoming::Close { code: Some(4000) }]));
        assert!(close(&[0x03]).is_err());
        assert!(close(&[0x03, 0xe8, 0xff]).is_err());
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            assert!(close(&code.to_be_bytes()).is_err(), "{code}");
        }
    }

    #[test]
    fn nothing_is_held_between_messages() {
        let mut reader = Reader::new(Kind::Binary, 200_000);
        reader.push(&frame(0x02, &[7; 70_000]));
        assert_eq!(reader.next(), Ok(None));
        assert!(reader.capacity() >= 70_000);
        reader.push(&frame(0x80, &[7; 70_000]));
        assert_eq!(reader.next(), Ok(Some(Incoming::Message(vec![7; 140_000].into()))));
        assert_eq!(reader.next(), Ok(None));
        assert_eq!(reader.capacity(), 0);
    }

    proptest! {
        #[test]
        fn messages_survive_any_fragmentation_and_any_cut(
            messages in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..4), 1..5),
            cuts in prop::collection::vec(1usize..64, 1..20),
            ping in any::<bool>(),
        ) {
            let mut wire = Vec::new();
            for fragments in &messages {
                for (index, fragment) in fragments.iter().enumerate() {
                    let opcode = if index == 0 { BINARY } else { CONTINUATION };
                    let fin = if index + 1 == fragments.len() { FIN } else { 0 };
                    wire.extend(frame(fin | opcode, fragment));
                    if ping {
                        wire.extend(frame(FIN | PING, b"?"));
                    }
                }
            }
            let mut reader = Reader::new(Kind::Binary, 1000);
            let (mut got, mut pings) = (Vec::new(), 0);
            let mut rest = wire.as_slice();
            for cut in cuts.iter().cycle() {
                let (chunk, tail) = rest.split_at(rest.len().min(*cut));
                reader.push(chunk);
                while let Some(incoming) = reader.next().expect("valid") {
                    match incoming {
                        Incoming::Message(message) => got.push(message.to_vec()),
                        Incoming::Ping(payload) => { prop_assert_eq!(&payload[..], b"?"); pings += 1 }
                        Incoming::Close { .. } => prop_assert!(false, "no close was sent"),
                    }
                }
                rest = tail;
                if rest.is_empty() { break; }
            }
            let sent: Vec<Vec<u8>> = messages.iter().map(|fragments| fragments.concat()).collect();
            prop_assert_eq!(got, sent);
            prop_assert_eq!(pings, if ping { messages.iter().map(Vec::len).sum() } else { 0 });
            prop_assert_eq!(reader.capacity(), 0);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_hold_little(bytes in prop::collection::vec(any::<u8>(), 0..2000), text in any::<bool>()) {
            let mut reader = Reader::new(if text { Kind::Text } else { Kind::Binary }, 500);
            for chunk in bytes.chunks(37) {
                reader.push(chunk);
                loop {
                    match reader.next() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(reader.buffer.len() <= 500 + 14 + 37);
            }
        }
    }
}
