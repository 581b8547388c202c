//! Sans-io: what a refusal says where there is room for a short text alone, in a transport's own close (PROTOCOL §9.3).
//!
//! ```text
//! ra=1500;t=4QJ0…    come back in 1.5 s, and show the ticket
//! ra=1500            come back then
//! elsewhere          this region is full for longer than it makes sense to wait
//! ```

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;

use crate::reconnect::{Cause, Reconnect};

/// What a refusal says. Whoever shows a ticket has its place, so [`fmt::Debug`] hides it, as logs must.
#[derive(Clone, PartialEq, Eq)]
pub enum Hint {
    /// Come back.
    Later {
        /// From now. As it is written, whole milliseconds; as it is read, [`Reconnect::MAX_SLOT`] at most.
        after: Duration,
        /// To be shown then: what connection ids and `slot` carry, as text.
        ticket: Option<Arc<str>>,
    },
    /// Not to this region.
    Elsewhere,
}

impl Hint {
    /// The longest ticket that is believed, in bytes.
    pub const MAX_TICKET: usize = 64;

    /// Reads a reason. `None` where it says nothing of the kind: then it is for people. What it does not know it passes
    /// over; a ticket that cannot be one is none. No input makes it panic.
    pub fn parse(reason: &str) -> Option<Self> {
        if reason == ELSEWHERE {
            return Some(Self::Elsewhere);
        }
        let (mut after, mut ticket) = (None, None);
        for part in reason.split(';') {
            match part.split_once('=') {
                Some(("ra", millis)) => after = Some(parse_millis(millis)?),
                Some(("t", text)) => ticket = Some(text).filter(|text| is_ticket(text)),
                _ => {}
            }
        }
        let after = match (after, ticket) {
            (Some(millis), _) => Duration::from_millis(millis).min(Reconnect::MAX_SLOT),
            (None, Some(_)) => Duration::ZERO,
            (None, None) => return None,
        };
        Some(Self::Later { after, ticket: ticket.map(Arc::from) })
    }

    /// The same from bytes: nothing where they are no UTF-8.
    pub fn parse_bytes(reason: &[u8]) -> Option<Self> {
        std::str::from_utf8(reason).ok().and_then(Self::parse)
    }

    /// A reason for logs and people: what it says of a ticket is hidden, whether or not the rest makes sense. What is left
    /// reads as before.
    pub fn without_ticket(reason: &str) -> Cow<'_, str> {
        let is_ticket = |part: &&str| part.trim_start().starts_with("t=");
        if !reason.split(';').any(|part| is_ticket(&part)) {
            return Cow::Borrowed(reason);
        }
        let shown = |part| if is_ticket(&part) { "t=(hidden)" } else { part };
        Cow::Owned(reason.split(';').map(shown).collect::<Vec<_>>().join(";"))
    }

    /// A ticket's bytes, where it has as many as one has: what native QUIC shows.
    pub fn ticket_bytes(ticket: &str) -> Option<[u8; 20]> {
        URL_SAFE_NO_PAD.decode(ticket).ok()?.try_into().ok()
    }

    /// Why the client has no connection then.
    pub fn cause(self) -> Cause {
        match self {
            Self::Later { after, ticket } => Cause::Deferred { after, ticket },
            Self::Elsewhere => Cause::SentElsewhere,
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later { after, ticket } => {
                write!(f, "ra={}", after.as_millis())?;
                match ticket {
                    Some(ticket) => write!(f, ";t={ticket}"),
                    None => Ok(()),
                }
            }
            Self::Elsewhere => f.write_str(ELSEWHERE),
        }
    }
}

impl fmt::Debug for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later { after, ticket } => {
                let ticket = ticket.as_ref().map(Hidden);
                f.debug_struct("Later").field("after", after).field("ticket", &ticket).finish()
            }
            Self::Elsewhere => f.write_str("Elsewhere"),
        }
    }
}

/// A ticket that no log may hold.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hidden<T>(pub(crate) T);

impl<T> fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Digits alone; more than fit are as good as the most that do.
fn parse_millis(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn is_ticket(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.len() <= Hint::MAX_TICKET && text.bytes().all(known)
}

const ELSEWHERE: &str = "elsewhere";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn later(millis: u64, ticket: Option<&str>) -> Hint {
        Hint::Later { after: Duration::from_millis(millis), ticket: ticket.map(Arc::from) }
    }

    #[test]
    fn what_is_said_is_read_and_nothing_else_is() {
        for (text, hint) in [
            ("ra=1500;t=4QJ0-_x", Some(later(1_500, Some("4QJ0-_x")))),
            ("t=4QJ0;ra=7", Some(later(7, Some("4QJ0")))),
            ("ra=1500", Some(later(1_500, None))),
            ("t=4QJ0", Some(later(0, Some("4QJ0")))),
            ("ra=1500;later=field;t=x", Some(later(1_500, Some("x")))),
            ("ra=99999999999999999999999", Some(later(120_000, None))),
            ("ra=1;t=no ticket", Some(later(1, None))),
            ("elsewhere", Some(Hint::Elsewhere)),
            ("", None),
            ("ra=", None),
            ("ra=-1", None),
            ("ra=1.5;t=x", None),
            ("t=", None),
            ("the server is full", None),
        ] {
            assert_eq!(Hint::parse(text), hint, "{text:?}");
        }
        let long = "x".repeat(Hint::MAX_TICKET + 1);
        assert_eq!(Hint::parse(&format!("t={long}")), None);
        assert_eq!(Hint::parse_bytes(b"ra=1;t=\xff"), None);
    }

    #[test]
    fn tickets_are_in_no_log() {
        let hint = later(7, Some("4QJ0"));
        assert_eq!(format!("{hint:?}"), "Later { after: 7ms, ticket: Some((hidden)) }");
        assert_eq!(format!("{:?}", later(7, None)), "Later { after: 7ms, ticket: None }");
        assert!(!format!("{:?}", hint.cause()).contains("4QJ0"));
        for (reason, shown) in [
            ("ra=1500;t=4QJ0-_x", "ra=1500;t=(hidden)"),
            ("t=4QJ0;ra=7", "t=(hidden);ra=7"),
            ("ra=x; t=no ticket;t=4QJ0", "ra=x;t=(hidden);t=(hidden)"),
            ("ra=1500", "ra=1500"),
            ("the server is full; at=4", "the server is full; at=4"),
        ] {
            assert_eq!(Hint::without_ticket(reason), shown);
        }
    }

    #[test]
    fn it_fits_what_a_close_has_room_for() {
        let ticket = "x".repeat(27);
        assert!(later(120_000, Some(&ticket)).to_string().len() <= 120);
    }

    proptest! {
        #[test]
        fn it_comes_back_as_it_was(millis in 0_u64..=120_000, ticket in proptest::option::of("[A-Za-z0-9_-]{1,64}")) {
            let hint = later(millis, ticket.as_deref());
            prop_assert_eq!(Hint::parse(&hint.to_string()), Some(hint));
        }

        #[test]
        fn no_reason_is_too_strange(text in "(ra=[0-9a-z]{0,30}|t=.{0,80}|.{0,20})(;(ra=[0-9]{0,25}|t=.{0,80}|.{0,9})){0,4}") {
            if let Some(Hint::Later { after, ticket }) = Hint::parse(&text) {
                prop_assert!(after <= Reconnect::MAX_SLOT);
                prop_assert!(ticket.is_none_or(|ticket| ticket.len() <= Hint::MAX_TICKET));
            }
        }
    }
}
