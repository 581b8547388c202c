//! Sans-io: what a snapshot says of channels: how far each was numbered. What was published is in the log.
//!
//! A piece is a version byte, then Protobuf: `message Piece { repeated Entry channels = 1; optional uint64 genesis = 2; }`.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tidegate_protocol::{ChannelName, Offset};

use super::record::LogFrameError;
use super::sequencer::Sequencer;

/// Where a snapshot that is being written stands: channels are written from the last to the first, so that removing one
/// by a swap with the last never hides a channel from it. Those that begin meanwhile are not in it; the log is.
#[derive(Debug)]
pub(crate) struct SnapshotCursor {
    /// How many are left; `None` once the last piece is out.
    pub(super) left: Option<usize>,
}

/// What a piece gave back.
#[derive(Debug, PartialEq)]
pub(super) struct Restored {
    pub(super) channels: Vec<(ChannelName, Sequencer, u64)>,
    /// In the last piece.
    pub(super) genesis: Option<u64>,
}

/// A piece that is being written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    piece: Piece,
    bytes: usize,
}

impl Writer {
    pub(super) fn push(&mut self, name: &str, sequencer: &Sequencer, touched_ms: u64) {
        let entry =
            Entry { name: name.to_owned(), birth: sequencer.birth(), head: sequencer.head().0, touched_ms };
        self.bytes += entry.encoded_len() + ENTRY_OVERHEAD;
        self.piece.channels.push(entry);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// `genesis` in the last piece.
    pub(super) fn finish(mut self, genesis: Option<u64>) -> Bytes {
        self.piece.genesis = genesis;
        let mut bytes = BytesMut::with_capacity(1 + self.piece.encoded_len());
        bytes.put_u8(VERSION);
        self.piece.encode(&mut bytes).expect("the buffer grows");
        bytes.freeze()
    }
}

pub(super) fn read(piece: &Bytes) -> Result<Restored, LogFrameError> {
    if piece.first() != Some(&VERSION) {
        return Err(LogFrameError::Version(piece.first().copied()));
    }
    let Piece { channels, genesis } = Piece::decode(piece.slice(1..))?;
    let restored = channels.into_iter().map(|entry| {
        let sequencer = Sequencer::resume(entry.birth, Offset(entry.head));
        Ok((ChannelName::new(&entry.name)?, sequencer, entry.touched_ms))
    });
    Ok(Restored { channels: restored.collect::<Result<_, LogFrameError>>()?, genesis })
}

/// The largest entry, and what a piece adds to its entries, bytes.
pub(super) const LARGEST_ENTRY: usize = ChannelName::MAX_BYTES + 64;

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(message, repeated, tag = "1")]
    channels: Vec<Entry>,
    #[prost(uint64, optional, tag = "2")]
    genesis: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    birth: u64,
    #[prost(uint64, tag = "3")]
    head: u64,
    #[prost(uint64, tag = "4")]
    touched_ms: u64,
}

const VERSION: u8 = 1;
/// Tag and length.
const ENTRY_OVERHEAD: usize = 4;
