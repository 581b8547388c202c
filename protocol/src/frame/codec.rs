//! Sans-io: bytes to frames and back; every length is checked before it is believed.
//!
//! *Delimited*: a base-128 varint length (as in Protobuf), then that many bytes of Protobuf. Used on QUIC and
//! WebTransport streams, and inside binary WebSocket messages, which hold one or more delimited frames.
//! *Text*: one JSON frame, or an array of them.

use std::fmt;
use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use serde::de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{ClientBody, ClientFrame, CloseCode, ServerFrame};

/// A frame of either direction.
pub trait Frame: Message + Default + Serialize + DeserializeOwned {
    /// False for a frame of a later protocol.
    fn is_known(&self) -> bool;

    /// What Protobuf alone does not say: a payload that claims to be JSON is JSON. From here on everybody may spell
    /// it as such.
    fn check_payload(&self) -> Result<(), DecodeError>;
}

impl Frame for ClientFrame {
    fn is_known(&self) -> bool {
        self.body.is_some()
    }

    fn check_payload(&self) -> Result<(), DecodeError> {
        let data = match &self.body {
            Some(ClientBody::Publish(publish)) => &publish.data,
            Some(ClientBody::Rpc(rpc)) => &rpc.data,
            _ => return Ok(()),
        };
        if let Some(data) = data {
            serde_json::from_slice::<&RawValue>(data)?;
        }
        Ok(())
    }
}

impl Frame for ServerFrame {
    /// A client passes over what it does not know.
    fn is_known(&self) -> bool {
        true
    }

    /// A server sends only what came in through this check.
    fn check_payload(&self) -> Result<(), DecodeError> {
        Ok(())
    }
}

/// Why bytes are no frame. Each ends the connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Over the limit.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// As announced or received.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A length that is no varint of at most 5 bytes.
    #[error("the length before a frame is malformed")]
    BadLength,
    /// A message ended inside a frame.
    #[error("the message ends inside a frame")]
    Truncated,
    /// Not Protobuf of our schema.
    #[error("malformed protobuf: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// Not JSON of our schema.
    #[error("malformed JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// No body that this version knows.
    #[error("a frame without a known body")]
    UnknownFrame,
    /// Too many frames in one message.
    #[error("a message of over {limit} frames")]
    TooMany {
        /// What is allowed.
        limit: usize,
    },
}

impl DecodeError {
    /// What the connection ends with.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::TooLarge { .. } => CloseCode::FrameTooLarge,
            _ => CloseCode::BadFrame,
        }
    }
}

/// The most frames in one message: a frame in memory is much larger than its shortest encoding.
pub const MAX_FRAMES_PER_MESSAGE: usize = 256;

/// Of a frame's `id`.
const ID_TAG: u32 = 1;

/// Encodes a frame as JSON text.
pub fn encode_text<F: Frame>(frame: &F) -> Bytes {
    // Payloads were checked to be JSON when they came in; keys are text. Nothing else can fail.
    Bytes::from(serde_json::to_vec(frame).expect("frames serialize: payloads hold checked JSON"))
}

/// Encodes a frame as Protobuf behind its length.
pub fn encode_delimited<F: Frame>(frame: &F) -> Bytes {
    Bytes::from(frame.encode_length_delimited_to_vec())
}

/// Delimited frames that have no `id`, with this one instead.
pub fn with_id(frames: &[u8], id: u64) -> Bytes {
    let tagged = 1 + prost::encoding::encoded_len_varint(id);
    let mut out = BytesMut::with_capacity(frames.len() + tagged + 1);
    let mut rest = frames;
    while !rest.is_empty() {
        let length =
            prost::decode_length_delimiter(&mut rest).map_or(rest.len(), |length| length.min(rest.len()));
        let (frame, after) = rest.split_at(length);
        prost::encoding::encode_varint((length + tagged) as u64, &mut out);
        prost::encoding::uint64::encode(ID_TAG, &id, &mut out);
        out.extend_from_slice(frame);
        rest = after;
    }
    out.freeze()
}

/// Decodes a text message: a JSON frame or an array of them, at most `limit` bytes.
pub fn decode_text<F: Frame>(text: &[u8], limit: usize) -> Result<Vec<F>, DecodeError> {
    check_size(text.len(), limit)?;
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    let frames: Vec<F> = if first == Some(&b'[') {
        let Frames(frames) = serde_json::from_slice(text)?;
        frames.ok_or(DecodeError::TooMany { limit: MAX_FRAMES_PER_MESSAGE })?
    } else {
        vec![serde_json::from_slice(text)?]
    };
    if frames.iter().all(Frame::is_known) { Ok(frames) } else { Err(DecodeError::UnknownFrame) }
}

/// Decodes a binary message: delimited frames, back to back, none cut off, at most `limit` bytes each and
/// [`MAX_FRAMES_PER_MESSAGE`] of them.
pub fn decode_message<F: Frame>(message: Bytes, limit: usize) -> Result<Vec<F>, DecodeError> {
    let mut decoder = Decoder::new(limit);
    decoder.buffer = BytesMut::from(message);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next()? {
        if frames.len() == MAX_FRAMES_PER_MESSAGE {
            return Err(DecodeError::TooMany { limit: MAX_FRAMES_PER_MESSAGE });
        }
        frames.push(frame);
    }
    if decoder.buffer.is_empty() { Ok(frames) } else { Err(DecodeError::Truncated) }
}

/// Decodes a stream of delimited frames, however it is cut into chunks.
///
/// Holds at most one frame's bytes beyond what was pushed last; an announced length over the limit fails before
/// anything is held for it.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limit: usize,
}

impl Decoder {
    /// Frames of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// Takes the next chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// True where no frame has begun.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next whole frame.
    #[expect(clippy::should_implement_trait, reason = "the caller names the schema, and errors are no items")]
    pub fn next<F: Frame>(&mut self) -> Result<Option<F>, DecodeError> {
        let Some(frame) = self.next_message::<F>()? else { return Ok(None) };
        frame.check_payload()?;
        if frame.is_known() { Ok(Some(frame)) } else { Err(DecodeError::UnknownFrame) }
    }

    /// The next whole message of any schema, such as a [`super::StreamHeader`].
    pub fn next_message<M: Message + Default>(&mut self) -> Result<Option<M>, DecodeError> {
        let Some((length, prefix)) = read_length(&self.buffer)? else {
            self.release();
            return Ok(None);
        };
        check_size(length, self.limit)?;
        if self.buffer.len() < prefix + length {
            return Ok(None);
        }
        // From a slice, so that payloads are copied out: one that history keeps must not hold on to the whole buffer.
        let message = M::decode(&self.buffer[prefix..prefix + length])?;
        self.buffer.advance(prefix + length);
        Ok(Some(message))
    }

    /// An idle connection holds no buffer.
    fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}

/// The length and how many bytes it took; `None` where it is not whole yet.
fn read_length(buffer: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut length: u64 = 0;
    for (index, byte) in buffer.iter().take(5).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let length = usize::try_from(length).map_err(|_| DecodeError::BadLength)?;
            return Ok(Some((length, index + 1)));
        }
    }
    if buffer.len() < 5 { Ok(None) } else { Err(DecodeError::BadLength) }
}

/// An array of frames; `None` where it is too long. What is beyond the bound is never built.
struct Frames<F>(Option<Vec<F>>);

impl<'de, F: Frame> Deserialize<'de> for Frames<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FramesVisitor<F>(PhantomData<F>);

        impl<'de, F: Frame> Visitor<'de> for FramesVisitor<F> {
            type Value = Frames<F>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of frames")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Frames<F>, A::Error> {
                let mut frames = Vec::new();
                while frames.len() < MAX_FRAMES_PER_MESSAGE {
                    match array.next_element()? {
                        Some(frame) => frames.push(frame),
                        None => return Ok(Frames(Some(frames))),
                    }
                }
                let mut too_many = false;
                while array.next_element::<IgnoredAny>()?.is_some() {
                    too_many = true;
                }
                Ok(Frames((!too_many).then_some(frames)))
            }
        }

        deserializer.deserialize_seq(FramesVisitor(PhantomData))
    }
}

fn check_size(bytes: usize, limit: usize) -> Result<(), DecodeError> {
    if bytes > limit { Err(DecodeError::TooLarge { bytes, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
