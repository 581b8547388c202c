//! Frames that are certainly in a log, and what follows from them.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::frame::{self, FrameError, Hash, Header, Kind, NO_HASH};

/// A frame in its place: what the next one must agree with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) sequence: u64,
    pub(super) header: Header,
    pub(super) hash: Hash,
}

impl Link {
    pub(super) fn of(sequence: u64, bytes: &Bytes) -> Result<Self, FrameError> {
        let (header, _) = frame::decode(bytes)?;
        Ok(Self { sequence, header, hash: frame::hash(bytes) })
    }

    /// Whether a frame of the same epoch can stand behind this one. Without a hash it says nothing of this one: its
    /// writer could not read it.
    pub(super) fn is_followed_by(&self, next: &Header) -> Result<(), &'static str> {
        if next.before != NO_HASH && next.before != self.hash {
            return Err("does not follow the one before it");
        }
        if next.term < self.header.term {
            return Err("is of an older term than the one before it");
        }
        let position = self.header.position + u64::from(next.kind == Kind::Data);
        if next.before != NO_HASH && next.position != position {
            return Err("has another position than its place");
        }
        Ok(())
    }

    /// The first position of a log that begins with it.
    pub(super) fn first(&self) -> u64 {
        self.header.position + u64::from(self.header.kind == Kind::Claim)
    }
}

/// What this process wrote or read lately.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The newest last.
    written: VecDeque<Link>,
    /// Of our claims by term: by how much positions lag behind sequences.
    lags: VecDeque<(u64, u64)>,
    /// Where the last page ended that was read.
    pub(super) read: Option<Link>,
    /// An attempt to store a frame as this sequence was not answered: it may still arrive, whatever is said of others.
    pub(super) unanswered: Option<u64>,
    /// A frame that does not follow the one before.
    pub(super) diverged: Option<u64>,
}

impl Known {
    pub(super) fn wrote(&mut self, link: Link) {
        self.written.retain(|known| known.sequence != link.sequence);
        self.written.push_back(link);
        if self.written.len() > REMEMBERED {
            self.written.pop_front();
        }
    }

    pub(super) fn claimed(&mut self, term: u64, lag: u64) {
        self.lags.push_back((term, lag));
        if self.lags.len() > REMEMBERED {
            self.lags.pop_front();
        }
    }

    pub(super) fn lag(&self, term: u64) -> Option<u64> {
        self.lags.iter().find(|(known, _)| *known == term).map(|(_, lag)| *lag)
    }

    pub(super) fn hash(&self, sequence: u64) -> Option<Hash> {
        self.written.iter().chain(&self.read).find(|link| link.sequence == sequence).map(|link| link.hash)
    }

    /// What was written under which claim stays known: it is not about what is there.
    pub(super) fn forget_frames(&mut self) {
        self.written.clear();
        self.read = None;
    }

    /// The log reaches at least to this sequence.
    pub(super) fn highest(&self) -> u64 {
        self.written.iter().chain(&self.read).map(|link| link.sequence).max().unwrap_or(0)
    }

    /// Why a log that ends with the sequence `last` is not the one we know.
    pub(super) fn broken(&self, last: u64) -> Option<String> {
        if let Some(at) = self.diverged {
            return Some(format!("frame {at} does not follow the one before it"));
        }
        let highest = self.highest();
        (highest > last).then(|| format!("message {highest} was acknowledged, and the stream ends at {last}"))
    }
}

/// The tail, and what lost acknowledgements go back to.
const REMEMBERED: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, term: u64, position: u64, before: Hash) -> Bytes {
        frame::encode(&Header { kind, term, epoch: 9, position, before }, b"payload")
    }

    #[test]
    fn a_frame_follows_what_it_was_written_behind_and_nothing_else() {
        let claim = Link::of(1, &frame(Kind::Claim, 3, 0, NO_HASH)).expect("ours");
        let header = |kind, term, position, before| Header { kind, term, epoch: 9, position, before };
        let follows = |header| claim.is_followed_by(&header);
        assert_eq!(follows(header(Kind::Data, 3, 1, claim.hash)), Ok(()));
        assert_eq!(follows(header(Kind::Claim, 4, 0, claim.hash)), Ok(()));
        assert_eq!(follows(header(Kind::Claim, 4, 7, NO_HASH)), Ok(()));
        assert!(follows(header(Kind::Data, 3, 2, claim.hash)).is_err(), "a position is missing");
        assert!(follows(header(Kind::Claim, 4, 1, claim.hash)).is_err(), "claims have none of their own");
        assert!(follows(header(Kind::Data, 2, 1, claim.hash)).is_err(), "a zombie's");
        assert!(follows(header(Kind::Data, 3, 1, frame::hash(b"another"))).is_err());
    }

    #[test]
    fn a_log_that_ends_before_what_was_acknowledged_is_broken() {
        let mut known = Known::default();
        assert_eq!(known.broken(0), None);
        for sequence in 1..=20 {
            known.wrote(Link::of(sequence, &frame(Kind::Data, 1, sequence, NO_HASH)).expect("ours"));
        }
        assert_eq!(known.broken(20), None);
        assert!(known.broken(19).is_some());
        assert_eq!(known.written.len(), REMEMBERED);
        known.diverged = Some(7);
        assert!(known.broken(20).is_some());
    }
}
