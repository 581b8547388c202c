//! Sans-io: assigns offsets; the only writer of them.

use std::io::Write;

use tidegate_protocol::{Epoch, Offset, Position};

/// The numbering of one channel: dense from 1, since its birth.
///
/// The epoch is `(partition epoch, birth)`, where birth is a log position from which on nothing was published in the channel
/// when its numbering began: the table's genesis. A channel that published and was forgotten is reborn behind its own
/// frames, so with another birth; an epoch never sees an offset twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequencer {
    birth: u64,
    last: Offset,
}

impl Sequencer {
    /// A numbering that begins; its next offset is 1.
    pub(crate) fn new(birth: u64) -> Self {
        Self { birth, last: Offset(0) }
    }

    /// A numbering that goes on behind `last`.
    pub(crate) fn resume(birth: u64, last: Offset) -> Self {
        Self { birth, last }
    }

    /// Assigns the next offset.
    pub(crate) fn assign(&mut self) -> Offset {
        self.last = self.last.next();
        self.last
    }

    /// The last offset assigned, 0 for none.
    pub(crate) fn head(&self) -> Offset {
        self.last
    }

    /// The log position that the numbering began at: of the channel there is nothing from it up to its first number.
    pub(crate) fn birth(&self) -> u64 {
        self.birth
    }

    /// `offset` in this numbering.
    pub(crate) fn position(&self, partition_epoch: u64, offset: Offset) -> Position {
        Position::new(epoch(partition_epoch, self.birth), offset)
    }
}

/// `<partition epoch>-<birth>`, both hexadecimal: at most 33 bytes. Made when it is needed: a channel at rest holds
/// no text.
fn epoch(partition_epoch: u64, birth: u64) -> Epoch {
    let mut text = [0u8; 33];
    let mut rest = &mut text[..];
    write!(rest, "{partition_epoch:x}-{birth:x}").expect("two u64 and a dash fit 33 bytes");
    let unused = rest.len();
    let used = text.len() - unused;
    Epoch::new(std::str::from_utf8(&text[..used]).expect("hexadecimal digits are UTF-8"))
}

/// The birth that an epoch names, if it is one of this partition epoch.
pub(crate) fn birth_in(epoch: &Epoch, partition_epoch: u64) -> Option<u64> {
    let (partition, birth) = epoch.as_str().split_once('-')?;
    let number = |text: &str| {
        // As it is written: `from_str_radix` takes a sign.
        let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    (number(partition)? == partition_epoch).then(|| number(birth)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn epochs_are_short_text() {
        assert_eq!(epoch(0xabc, 17).as_str(), "abc-11");
        let longest = epoch(u64::MAX, u64::MAX);
        assert_eq!(longest.as_str().len(), 33);
        assert!(longest.as_str().len() <= Epoch::MAX_BYTES);
    }

    proptest! {
        #[test]
        fn offsets_are_dense_across_resumes(start in 0u64..1_000_000, runs in prop::collection::vec(1usize..50, 1..10)) {
            let mut sequencer = Sequencer::resume(3, Offset(start));
            let mut expected = start;
            for run in runs {
                for _ in 0..run {
                    expected += 1;
                    prop_assert_eq!(sequencer.assign(), Offset(expected));
                }
                sequencer = Sequencer::resume(sequencer.birth(), sequencer.head());
            }
            prop_assert_eq!(sequencer.head(), Offset(expected));
        }

        #[test]
        fn different_births_are_different_epochs(a: (u64, u64), b: (u64, u64)) {
            prop_assert_eq!(a == b, epoch(a.0, a.1) == epoch(b.0, b.1));
            prop_assert_eq!(birth_in(&epoch(a.0, a.1), a.0), Some(a.1));
            prop_assert_eq!(birth_in(&epoch(a.0, a.1), b.0).is_some(), a.0 == b.0);
        }
    }
}
