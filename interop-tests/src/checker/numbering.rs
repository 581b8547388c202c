//! What was seen at each position of one epoch of a channel.

use std::collections::BTreeMap;

/// Payloads by offset. Dense where something was seen, in pieces.
#[derive(Debug, Default)]
pub(super) struct Numbering {
    pieces: BTreeMap<u64, Box<[u64; PIECE as usize]>>,
    highest: u64,
}

impl Numbering {
    /// The payload at `offset`.
    pub(super) fn get(&self, offset: u64) -> Option<u64> {
        let piece = self.pieces.get(&(offset / PIECE))?;
        Some(piece[(offset % PIECE) as usize]).filter(|payload| *payload != NOTHING)
    }

    /// Puts a payload where none is.
    pub(super) fn put(&mut self, offset: u64, payload: u64) {
        let piece = self.pieces.entry(offset / PIECE).or_insert_with(|| Box::new([NOTHING; PIECE as usize]));
        piece[(offset % PIECE) as usize] = payload;
        self.highest = self.highest.max(offset);
    }

    /// The highest offset at which something was seen, 0 for none.
    pub(super) fn highest(&self) -> u64 {
        self.highest
    }

    /// Everything from `first` on, in order.
    pub(super) fn from(&self, first: u64) -> impl Iterator<Item = (u64, u64)> {
        self.pieces.range(first / PIECE..).flat_map(move |(number, piece)| {
            let offsets = number * PIECE..;
            offsets
                .zip(piece.iter().copied())
                .filter(move |(offset, payload)| *offset >= first && *payload != NOTHING)
        })
    }
}

/// Offsets of a piece.
const PIECE: u64 = 256;
/// Stands for no payload; nobody publishes it.
const NOTHING: u64 = u64::MAX;
