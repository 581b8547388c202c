//! What a message of a partition's stream holds: who wrote it, and what stood before it.
//!
//! Each frame has the hash of the one before, so that a log that lost or swapped frames is noticed by whoever reads it.

use bytes::{BufMut as _, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};

/// What a frame says of itself and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Of the claim that wrote it.
    pub(super) term: u64,
    /// Identity of the log.
    pub(super) epoch: u64,
    /// Of a claim: of the last frame before it. Claims take a place in the stream and none in the log.
    pub(super) position: u64,
    /// Of the frame before; [`NO_HASH`] where the writer could not read it, or a log begins.
    pub(super) before: Hash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The partition's.
    Data,
    /// Our own: from here on older terms are fenced.
    Claim,
}

pub(super) type Hash = [u8; 16];

/// Says nothing of the frame before.
pub(super) const NO_HASH: Hash = [0; 16];

/// How many bytes a frame is larger than its payload.
pub(super) const OVERHEAD: usize = 44;

/// A frame as it is stored.
pub(super) fn encode(header: &Header, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(OVERHEAD + payload.len());
    frame.put_slice(MAGIC);
    frame.put_u8(VERSION);
    frame.put_u8(match header.kind {
        Kind::Data => 0,
        Kind::Claim => 1,
    });
    frame.put_u64(header.term);
    frame.put_u64(header.epoch);
    frame.put_u64(header.position);
    frame.put_slice(&header.before);
    frame.put_slice(payload);
    frame.freeze()
}

/// Its parts; the payload shares the frame's memory.
pub(super) fn decode(frame: &Bytes) -> Result<(Header, Bytes), FrameError> {
    let [b'T', b'G', version, kind, rest @ ..] = frame.as_ref() else { return Err(FrameError::Foreign) };
    if *version != VERSION {
        return Err(FrameError::Version(*version));
    }
    let kind = match kind {
        0 => Kind::Data,
        1 => Kind::Claim,
        _ => return Err(FrameError::Foreign),
    };
    let (term, rest) = rest.split_first_chunk().ok_or(FrameError::Foreign)?;
    let (epoch, rest) = rest.split_first_chunk().ok_or(FrameError::Foreign)?;
    let (position, rest) = rest.split_first_chunk().ok_or(FrameError::Foreign)?;
    let before = rest.first_chunk().ok_or(FrameError::Foreign)?;
    let [term, epoch, position] = [term, epoch, position].map(|number| u64::from_be_bytes(*number));
    Ok((Header { kind, term, epoch, position, before: *before }, frame.slice(OVERHEAD..)))
}

/// What the next frame says of this one.
pub(super) fn hash(frame: &[u8]) -> Hash {
    let digest = Sha256::digest(frame);
    let mut hash = NO_HASH;
    hash.copy_from_slice(&digest[..NO_HASH.len()]);
    hash
}

/// Why a message is not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("it is not a frame of ours")]
    Foreign,
    #[error("it is in format {0}, which this version of Tidegate cannot read: upgrade")]
    Version(u8),
}

const MAGIC: &[u8] = b"TG";
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for kind in [Kind::Data, Kind::Claim] {
            let header = Header { kind, term: 7, epoch: u64::MAX, position: 5, before: hash(b"before") };
            let frame = encode(&header, b"payload");
            assert_eq!(frame.len(), OVERHEAD + 7);
            assert_eq!(decode(&frame), Ok((header, Bytes::from_static(b"payload"))));
        }
    }

    #[test]
    fn whatever_is_no_frame_is_an_error() {
        let header = Header { kind: Kind::Data, term: 1, epoch: 2, position: 3, before: NO_HASH };
        let frame = encode(&header, b"");
        for end in 0..frame.len() {
            assert_eq!(decode(&frame.slice(..end)), Err(FrameError::Foreign), "{end}");
        }
        let mut newer = frame.to_vec();
        newer[2] = 2;
        assert_eq!(decode(&newer.into()), Err(FrameError::Version(2)));
        let mut foreign = frame.to_vec();
        foreign[3] = 9;
        assert_eq!(decode(&foreign.into()), Err(FrameError::Foreign));
    }

    #[test]
    fn hashes_tell_frames_apart() {
        assert_ne!(hash(b"a"), hash(b"b"));
        assert_ne!(hash(b""), NO_HASH);
    }
}
