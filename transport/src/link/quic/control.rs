//! Messages beside frames, on a stream.

use quinn::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use tidegate_protocol::link::wire::{Batch, Control, LinkDecoder, WireError};

/// Reads what is said beside frames.
#[derive(Debug)]
pub(super) struct ControlReader {
    pub(super) recv: RecvStream,
    pub(super) decoder: LinkDecoder,
}

/// Why nothing more is said.
#[derive(Debug)]
pub(super) enum ControlError {
    /// The connection is over.
    Lost(ConnectionError),
    /// The stream was reset with this code.
    Reset(u64),
    /// The stream ended.
    Ended,
    /// What came is no message.
    Malformed(WireError),
}

impl ControlReader {
    pub(super) fn new(recv: RecvStream) -> Self {
        Self { recv, decoder: LinkDecoder::default() }
    }

    /// The next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Control, ControlError> {
        loop {
            if let Some(control) = self.decoder.next_control().map_err(ControlError::Malformed)? {
                return Ok(control);
            }
            // QUIC gives what it has: at most one packet's.
            match self.recv.read_chunk(CHUNK_BYTES, true).await {
                Ok(Some(chunk)) => self.decoder.push(&chunk.bytes),
                Ok(None) => return Err(ControlError::Ended),
                Err(ReadError::ConnectionLost(error)) => return Err(ControlError::Lost(error)),
                Err(ReadError::Reset(code)) => return Err(ControlError::Reset(code.into_inner())),
                Err(_) => return Err(ControlError::Ended),
            }
        }
    }
}

/// Writes one message, whole. Not cancel-safe.
pub(super) async fn write(send: &mut SendStream, control: &Control) -> Result<(), WriteError> {
    let mut batch = Batch::default();
    batch.put_control(control);
    send.write_all_chunks(&mut batch.take()).await
}

const CHUNK_BYTES: usize = 64 * 1024;
