//! What the processes of a crowd say, a line each: fields with tabs in between.

use std::fmt;

use tidegate_client::{Epoch, Offset, Position};

/// Something happened to a client. Times are microseconds of Unix time: all are on one machine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    pub(super) client: u32,
    pub(super) at: u64,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    /// It has a connection.
    Connected,
    /// Its subscription with this number begins, or goes on: `true` without a gap.
    Subscribed { place: u32, recovered: bool, position: Position },
    /// It goes on behind a gap.
    Rebased { place: u32, position: Position },
    /// It got a publication; `None` where its payload is none of ours.
    Delivered { place: u32, position: Position, payload: Option<u64> },
    /// It was told that a user came (`+`) or went (`-`), or that it missed such news (`?`).
    Presence { text: String },
    /// It went over to another connection without a break.
    Moved,
    /// Its connection ended.
    Disconnected { code: u32, reason: String },
    /// It is out: what should not happen.
    Failed { text: String },
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, at, what } = self;
        let position = |position: &Position| format!("{}\t{}", position.epoch.as_str(), position.offset.0);
        match what {
            What::Connected => write!(f, "C\t{client}\t{at}"),
            What::Subscribed { place, recovered, position: of } => {
                write!(f, "S\t{client}\t{at}\t{place}\t{}\t{}", position(of), u8::from(*recovered))
            }
            What::Rebased { place, position: of } => {
                write!(f, "R\t{client}\t{at}\t{place}\t{}", position(of))
            }
            What::Delivered { place, position: of, payload } => {
                write!(f, "P\t{client}\t{at}\t{place}\t{}\t", position(of))?;
                payload.map_or(Ok(()), |payload| write!(f, "{payload}"))
            }
            What::Presence { text } => write!(f, "U\t{client}\t{at}\t{}", on_one_line(text)),
            What::Moved => write!(f, "M\t{client}\t{at}"),
            What::Disconnected { code, reason } => {
                write!(f, "D\t{client}\t{at}\t{code}\t{}", on_one_line(reason))
            }
            What::Failed { text } => write!(f, "F\t{client}\t{at}\t{}", on_one_line(text)),
        }
    }
}

impl Said {
    /// A line; `None` where it is none.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let kind = fields.next()?;
        let client = fields.next()?.parse().ok()?;
        let at = fields.next()?.parse().ok()?;
        let mut text = || fields.next().map(str::to_owned);
        let what = match kind {
            "C" => What::Connected,
            "S" => {
                let (place, position) = (text()?.parse().ok()?, position(&mut text)?);
                What::Subscribed { place, position, recovered: text()? == "1" }
            }
            "R" => What::Rebased { place: text()?.parse().ok()?, position: position(&mut text)? },
            "P" => What::Delivered {
                place: text()?.parse().ok()?,
                position: position(&mut text)?,
                payload: text()?.parse().ok(),
            },
            "U" => What::Presence { text: text()? },
            "M" => What::Moved,
            "D" => What::Disconnected { code: text()?.parse().ok()?, reason: text()? },
            "F" => What::Failed { text: text()? },
            _ => return None,
        };
        Some(Self { client, at, what })
    }
}

fn position(text: &mut impl FnMut() -> Option<String>) -> Option<Position> {
    let epoch = Epoch::new(&text()?);
    Some(Position::new(epoch, Offset(text()?.parse().ok()?)))
}

fn on_one_line(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read_as_it_was_meant() {
        let position = Position::new(Epoch::new("e-1"), Offset(7));
        for what in [
            What::Connected,
            What::Subscribed { place: 1, recovered: false, position: position.clone() },
            What::Rebased { place: 2, position: position.clone() },
            What::Delivered { place: 0, position: position.clone(), payload: Some(1 << 50) },
            What::Delivered { place: 0, position, payload: None },
            What::Presence { text: "+user-1".to_owned() },
            What::Moved,
            What::Disconnected { code: 4100, reason: "the server ends".to_owned() },
            What::Failed { text: "why".to_owned() },
        ] {
            let said = Said { client: 9, at: 12, what };
            assert_eq!(Said::parse(&said.to_string()), Some(said));
        }
        let said = Said { client: 9, at: 12, what: What::Failed { text: "a\tb\nc".to_owned() } };
        assert_eq!(said.to_string(), "F\t9\t12\ta b c");
        for line in ["", "P", "P\t1\t2\t3\te", "X\t1\t2", "D\t1\t2\tmany\tx"] {
            assert_eq!(Said::parse(line), None, "{line}");
        }
    }
}
