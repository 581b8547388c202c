//! Sans-io: how a log frame lies in the store: with what proves that it is whole, in its place, and behind the frame
//! that it was written behind.
//!
//! ```text
//! version u8 | time_ms u64 | total u64 | previous u128 | link u128 | body        big-endian
//! ```
//!
//! `total` is the sum of all bodies up to and with this one. `link` is the XXH3 of partition, position, all fields
//! before it and the body; `previous` is the `link` of the frame before.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

/// Where the log stands behind a frame; the default is before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// The frame's position.
    pub(super) position: u64,
    /// Its link.
    pub(super) link: u128,
    /// Bytes of all bodies so far.
    pub(super) total: u64,
    /// When it was written, milliseconds of Unix time.
    pub(super) time_ms: u64,
}

/// What is stored for `body` behind `before`, and where the log then stands.
pub(super) fn seal(partition: u16, before: &Mark, time_ms: u64, body: &[u8]) -> (Mark, Vec<u8>) {
    let position = before.position + 1;
    let total = before.total + body.len() as u64;
    let mut stored = Vec::with_capacity(HEADER + body.len());
    stored.push(VERSION);
    stored.extend_from_slice(&time_ms.to_be_bytes());
    stored.extend_from_slice(&total.to_be_bytes());
    stored.extend_from_slice(&before.link.to_be_bytes());
    let link = link(partition, position, &stored, body);
    stored.extend_from_slice(&link.to_be_bytes());
    stored.extend_from_slice(body);
    (Mark { position, link, total, time_ms }, stored)
}

/// A frame that is whole and in its place.
#[derive(Debug)]
pub(super) struct Opened {
    /// Where the log stands behind it.
    pub(super) mark: Mark,
    /// The link of the frame that it was written behind.
    pub(super) previous: u128,
    /// The frame.
    pub(super) body: Bytes,
}

/// Reads what [`seal`] wrote; `None` where it is anything else.
pub(super) fn open(partition: u16, position: u64, stored: &[u8]) -> Option<Opened> {
    let (header, body) = stored.split_at_checked(HEADER)?;
    let (fields, written) = header.split_at(HEADER - 16);
    let link = link(partition, position, fields, body);
    if fields.first() != Some(&VERSION) || written != link.to_be_bytes() {
        return None;
    }
    let time_ms = u64::from_be_bytes(fields[1..9].try_into().ok()?);
    let total = u64::from_be_bytes(fields[9..17].try_into().ok()?);
    let previous = u128::from_be_bytes(fields[17..33].try_into().ok()?);
    let mark = Mark { position, link, total, time_ms };
    Some(Opened { mark, previous, body: Bytes::copy_from_slice(body) })
}

fn link(partition: u16, position: u64, fields: &[u8], body: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&partition.to_be_bytes());
    hash.update(&position.to_be_bytes());
    hash.update(fields);
    hash.update(body);
    hash.digest128()
}

const VERSION: u8 = 1;
const HEADER: usize = 1 + 8 + 8 + 16 + 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let (first, _) = seal(3, &Mark::default(), 1_000, b"one");
        let (second, stored) = seal(3, &first, 2_000, b"three");
        let opened = open(3, 2, &stored).expect("whole");
        assert_eq!((opened.mark, opened.previous, &opened.body[..]), (second, first.link, &b"three"[..]));
        assert_eq!((second.total, second.position, second.time_ms), (8, 2, 2_000));
    }

    #[test]
    fn no_changed_bit_is_overlooked_nor_another_place() {
        let (_, stored) = seal(3, &Mark::default(), 1_000, b"body");
        assert!(open(3, 2, &stored).is_none());
        assert!(open(2, 1, &stored).is_none());
        assert!(open(3, 1, &stored[..stored.len() - 1]).is_none());
        assert!(open(3, 1, &[]).is_none());
        for bit in 0..stored.len() * 8 {
            let mut changed = stored.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(3, 1, &changed).is_none(), "bit {bit}");
        }
    }
}
