//! Sans-io: how frames of links are laid out between processes. Private to one fleet: its nodes agree on a version
//! ([`super::LINK_VERSIONS`]) when they meet.
//!
//! Every message is Protobuf behind its length. Publications carry the very bytes that clients get
//! ([`Framing::Delimited`](crate::frame::shared::Framing)), made once for all links and not made again behind them. Replies
//! with long lists are cut into several messages in a row, so that a message has a bound and a history has not.

mod control;
mod core;
mod edge;
mod fleet;
mod schema;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::frame::codec::{DecodeError, Decoder};
use crate::frame::{ErrorCode, Payload};
use crate::{ChannelName, ChannelNameError, Epoch, NodeId, Offset, Position, SessionId};

use super::LinkError;

pub use control::Control;

/// A frame of either direction, as the other process gets it.
pub trait LinkFrame: Sized + Send + std::fmt::Debug + 'static {
    /// Appends its bytes.
    fn encode(&self, batch: &mut Batch);

    /// The next whole one among what was pushed.
    fn decode(decoder: &mut LinkDecoder) -> Result<Option<Self>, WireError>;
}

/// Bytes of several frames, to be written in one go. Large publications are shared with other links, the rest is joined.
#[derive(Debug, Default)]
pub struct Batch {
    chunks: Vec<Bytes>,
    tail: BytesMut,
    bytes: usize,
}

impl Batch {
    /// Appends a frame.
    pub fn put(&mut self, frame: &impl LinkFrame) {
        frame.encode(self);
    }

    /// Appends what is said beside frames.
    pub fn put_control(&mut self, control: &Control) {
        self.put_message(&control.to_wire());
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Takes them out.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.close_tail();
        self.bytes = 0;
        std::mem::take(&mut self.chunks)
    }

    fn put_message(&mut self, message: &impl Message) {
        let before = self.tail.len();
        message.encode_length_delimited(&mut self.tail).expect("the buffer grows");
        self.bytes += self.tail.len() - before;
    }

    /// A message with a single field of bytes: those of a frame that is shared.
    fn put_shared(&mut self, tag: u8, shared: &Bytes) {
        let before = self.tail.len();
        let field = 1 + prost::length_delimiter_len(shared.len()) + shared.len();
        prost::encode_length_delimiter(field, &mut self.tail).expect("the buffer grows");
        self.tail.put_u8(tag << 3 | LENGTH_DELIMITED);
        prost::encode_length_delimiter(shared.len(), &mut self.tail).expect("the buffer grows");
        self.bytes += self.tail.len() - before + shared.len();
        if shared.len() < SHARED_FROM {
            self.tail.put_slice(shared);
        } else {
            self.close_tail();
            self.chunks.push(shared.clone());
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(self.tail.split().freeze());
        }
    }
}

/// Decodes one direction of a stream, however it is cut into chunks. Holds what was pushed and not taken yet, and the list
/// of one reply, up to [`MAX_REPLY_BYTES`].
#[derive(Debug)]
pub struct LinkDecoder {
    messages: Decoder,
    /// Parts of a list whose reply has not come yet.
    parts: Vec<Bytes>,
    part_bytes: usize,
}

impl Default for LinkDecoder {
    fn default() -> Self {
        Self::new(MAX_MESSAGE_BYTES)
    }
}

impl LinkDecoder {
    /// Messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { messages: Decoder::new(limit), parts: Vec::new(), part_bytes: 0 }
    }

    /// Takes the next chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        self.messages.push(chunk);
    }

    /// The next whole frame.
    #[expect(
        clippy::should_implement_trait,
        reason = "the caller names the direction, and errors are no items"
    )]
    pub fn next<F: LinkFrame>(&mut self) -> Result<Option<F>, WireError> {
        F::decode(self)
    }

    /// The next whole message beside frames.
    pub fn next_control(&mut self) -> Result<Option<Control>, WireError> {
        let Some(message) = self.messages.next_message()? else { return Ok(None) };
        Control::from_wire(message).map(Some)
    }

    /// True where no message has begun.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.parts.is_empty()
    }

    fn keep_part(&mut self, part: Bytes) -> Result<(), WireError> {
        self.part_bytes += part.len();
        if self.part_bytes > MAX_REPLY_BYTES || self.parts.len() >= MAX_PARTS || part.is_empty() {
            return Err(WireError::Field("the list of a reply is too long"));
        }
        self.parts.push(part);
        Ok(())
    }

    /// The list of the reply that just came, whose last part came with it.
    fn take_parts(&mut self, last: Bytes) -> Vec<Bytes> {
        self.part_bytes = 0;
        let mut parts = std::mem::take(&mut self.parts);
        parts.push(last);
        parts
    }
}

/// Why bytes are no frame of a link. Ends the stream that they came on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Not a message, or one that is too long.
    #[error(transparent)]
    Message(#[from] DecodeError),
    /// No body that this version knows.
    #[error("a message without a known body")]
    Unknown,
    /// A message that is not allowed here.
    #[error("unexpected message")]
    Unexpected,
    /// Not the name of a channel.
    #[error(transparent)]
    Channel(#[from] ChannelNameError),
    /// Another field holds what it cannot hold.
    #[error("malformed field: {0}")]
    Field(&'static str),
}

fn channel(name: &str) -> Result<ChannelName, WireError> {
    Ok(ChannelName::new(name)?)
}

fn node(name: &str) -> Result<NodeId, WireError> {
    if name.is_empty() || name.len() > MAX_NODE_BYTES || name.chars().any(char::is_control) {
        return Err(WireError::Field("the name of a node"));
    }
    Ok(NodeId::new(name))
}

fn session(bytes: &[u8]) -> Result<SessionId, WireError> {
    let bytes = bytes.try_into().map_err(|_| WireError::Field("a session id"))?;
    Ok(SessionId::from_bytes(bytes))
}

fn position(wire: &schema::Position) -> Result<Position, WireError> {
    if wire.epoch.len() > Epoch::MAX_BYTES {
        return Err(WireError::Field("an epoch"));
    }
    Ok(Position::new(Epoch::new(&wire.epoch), Offset(wire.offset)))
}

fn optional_position(wire: Option<schema::Position>) -> Result<Option<Position>, WireError> {
    wire.as_ref().map(position).transpose()
}

/// A payload that claims to be JSON is JSON: edges spell it as such, and could not tell a client otherwise.
fn payload(data: Option<Bytes>, data_base64: Option<Bytes>) -> Result<Payload, WireError> {
    let payload = Payload::from_fields(data, data_base64).ok_or(WireError::Field("a payload"))?;
    if let Payload::Json(json) = &payload {
        serde_json::from_slice::<&serde_json::value::RawValue>(json)
            .map_err(|_| WireError::Field("a payload that is no JSON"))?;
    }
    Ok(payload)
}

fn error(wire: schema::Failed) -> LinkError {
    // A later version's code: all that is known is that it failed.
    let code = ErrorCode::from_number(wire.code).unwrap_or(ErrorCode::Internal);
    LinkError { code, message: wire.message }
}

fn failed(error: &LinkError) -> schema::Failed {
    schema::Failed { code: error.code.number(), message: error.message.clone() }
}

/// The longest message. Above the longest payload, whatever else is configured, and far above what is sent in one go.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The longest list of one reply. What would be longer is answered like a history that does not reach back so far.
pub const MAX_REPLY_BYTES: usize = 64 << 20;

/// What the name of a node or region may have.
const MAX_NODE_BYTES: usize = 255;
/// Parts of one list: it is cut where they have [`PART_BYTES`], so that others get their turn.
const MAX_PARTS: usize = 4 * MAX_REPLY_BYTES / PART_BYTES;
const PART_BYTES: usize = 256 << 10;
/// Shorter ones are cheaper to copy than to keep apart.
const SHARED_FROM: usize = 1024;
/// Wire type of Protobuf.
const LENGTH_DELIMITED: u8 = 2;

#[cfg(test)]
mod tests;
