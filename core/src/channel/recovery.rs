//! Sans-io: can a subscriber at a position be given all that it missed?

use tidegate_protocol::{Offset, Position};

/// What a channel's history says of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All that comes after this offset is retained.
    Recovered {
        /// The last one that the subscriber has.
        after: Offset,
    },
    /// Another epoch, an offset beyond the head, or more was missed than is retained.
    Gap,
}

/// Judges `asked` for a channel at `head` that retains the newest `retained` publications.
///
/// A position of the empty epoch means the current one. On a `conflate` channel only the newest publication counts:
/// having it (or being able to send it) is being recovered.
pub(crate) fn judge(head: &Position, retained: u64, conflate: bool, asked: &Position) -> Outcome {
    let same_epoch = asked.epoch.is_any() || asked.epoch == head.epoch;
    if !same_epoch || asked.offset > head.offset {
        return Outcome::Gap;
    }
    let missed = head.offset.0 - asked.offset.0;
    let needed = if conflate { missed.min(1) } else { missed };
    if needed <= retained { Outcome::Recovered { after: asked.offset } } else { Outcome::Gap }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidegate_protocol::Epoch;

    fn at(epoch: &str, offset: u64) -> Position {
        Position::new(Epoch::new(epoch), Offset(offset))
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_of_what_is_retained(
            head in 0u64..30,
            kept in 0u64..30,
            asked in 0u64..40,
            epoch in prop::sample::select(vec!["", "a", "b"]),
            conflate: bool,
        ) {
            let retained: Vec<u64> = (1..=head).rev().take(kept as usize).collect();
            let missed: Vec<u64> = (asked + 1..=head).collect();
            let all_there = if conflate {
                missed.last().is_none_or(|newest| retained.contains(newest))
            } else {
                missed.iter().all(|offset| retained.contains(offset))
            };
            let expected = epoch != "b" && asked <= head && all_there;
            let outcome = judge(&at("a", head), retained.len() as u64, conflate, &at(epoch, asked));
            prop_assert_eq!(outcome == Outcome::Recovered { after: Offset(asked) }, expected);
            prop_assert_eq!(outcome == Outcome::Gap, !expected);
        }
    }
}
