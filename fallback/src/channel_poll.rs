//! Sans-io: `GET /v1/channels/{channel}/poll`, a subscriber without a session.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tidegate_protocol::frame::{ErrorCode, Publication};
use tidegate_protocol::link::Recovery;
use tidegate_protocol::{ChannelName, ChannelNameError, Epoch, Offset, Position, frame};

use crate::http::{BadQuery, decode_path_segment, query_pairs, to_json};
use crate::longpoll::{DEFAULT_WAIT, wait};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelPoll {
    /// Of which channel.
    pub channel: ChannelName,
    /// What the caller has; `None` to begin at the head. An empty epoch stands for the current one.
    pub position: Option<Position>,
    /// How long to wait for a publication where there is none yet.
    pub wait: Duration,
}

/// Why the address is no channel poll: 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelPollError {
    /// Escapes that decode to no text.
    #[error(transparent)]
    Encoding(#[from] BadQuery),
    /// No channel can have that name.
    #[error(transparent)]
    Channel(#[from] ChannelNameError),
    /// `offset` or `wait_ms` is no whole number.
    #[error("{0} must be a whole number")]
    NotANumber(&'static str),
    /// Over 64 bytes.
    #[error("an epoch has at most 64 bytes")]
    LongEpoch,
    /// A parameter was given more than once.
    #[error("{0} was given more than once")]
    Repeated(&'static str),
}

impl ChannelPollError {
    /// For the error response.
    pub fn error_code(&self) -> ErrorCode {
        ErrorCode::BadRequest
    }
}

impl ChannelPoll {
    /// Reads the percent-encoded path segment and the query; other parameters are passed over.
    ///
    /// # Errors
    /// Where one of them is malformed.
    pub fn parse(channel: &str, query: Option<&str>) -> Result<Self, ChannelPollError> {
        let channel = ChannelName::new(&decode_path_segment(channel)?)?;
        let [mut epoch, mut offset, mut wait_ms] = [const { None }; 3];
        for pair in query_pairs(query) {
            let (name, value) = pair?;
            let (slot, name) = match name.as_ref() {
                "epoch" => (&mut epoch, "epoch"),
                "offset" => (&mut offset, "offset"),
                "wait_ms" => (&mut wait_ms, "wait_ms"),
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(ChannelPollError::Repeated(name));
            }
        }
        let epoch = epoch.as_deref().unwrap_or_default();
        if epoch.len() > Epoch::MAX_BYTES {
            return Err(ChannelPollError::LongEpoch);
        }
        let offset = number("offset", offset.as_deref())?;
        let wait_ms = number("wait_ms", wait_ms.as_deref())?;
        let position = offset.map(|offset| Position::new(Epoch::new(epoch), Offset(offset)));
        let default = if position.is_some() { DEFAULT_WAIT } else { Duration::ZERO };
        Ok(Self { channel, position, wait: wait(wait_ms).unwrap_or(default) })
    }
}

fn number(name: &'static str, text: Option<&str>) -> Result<Option<u64>, ChannelPollError> {
    match text {
        // `parse` alone would take a plus sign.
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().map(Some).map_err(|_| ChannelPollError::NotANumber(name))
        }
        Some(_) => Err(ChannelPollError::NotANumber(name)),
        None => Ok(None),
    }
}

/// The most bytes of publications in one answer, unless the first alone is larger.
pub const ANSWER_BYTES: usize = 256 * 1024;

/// The answer's body. Where not everything fits, `position` is that of the last publication in it, so that the next
/// poll goes on there.
pub fn answer(recovery: &Recovery) -> Bytes {
    answer_with(&recovery.position, recovery.recovered, &recovery.publications)
}

/// The answer's body for publications that came while the poll waited: dense, the last one at `position`.
pub fn answer_with<'a>(
    position: &Position,
    recovered: bool,
    publications: impl IntoIterator<Item = &'a Publication>,
) -> Bytes {
    let mut position = frame::Position::from(position.clone());
    let (mut encoded, mut last, mut cut) = (Vec::new(), None, false);
    for publication in publications {
        let start = encoded.len();
        if last.is_some() {
            encoded.push(b',');
        }
        encoded.extend_from_slice(&to_json(publication));
        if last.is_some() && encoded.len() > ANSWER_BYTES {
            encoded.truncate(start);
            cut = true;
            break;
        }
        last = Some(publication.offset);
    }
    if let (true, Some(last)) = (cut, last) {
        position.offset = last;
    }
    let head = to_json(&Head { position, recovered });
    // Without its closing brace: the publications go in as they are.
    let mut body = Vec::with_capacity(head.len() + encoded.len() + 20);
    body.extend_from_slice(&head[..head.len() - 1]);
    body.extend_from_slice(b",\"publications\":[");
    body.append(&mut encoded);
    body.extend_from_slice(b"]}");
    Bytes::from(body)
}

#[derive(Serialize)]
struct Head {
    position: frame::Position,
    recovered: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn addresses_are_read_with_their_defaults() {
        let head = ChannelPoll::parse("room%3A1", None).expect("valid");
        assert_eq!((head.channel.as_str(), head.position, head.wait), ("room:1", None, Duration::ZERO));

        let query = "epoch=ab%2Bc&offset=41&wait_ms=500&token=x";
        let poll = ChannelPoll::parse("news", Some(query)).expect("valid");
        assert_eq!(poll.position, Some(Position::new(Epoch::new("ab+c"), Offset(41))));
        assert_eq!(poll.wait, Duration::from_millis(500));

        let any = ChannelPoll::parse("news", Some("offset=0")).expect("valid");
        assert!(any.position.is_some_and(|position| position.epoch.is_any()));
        assert_eq!(any.wait, DEFAULT_WAIT);
        let long = ChannelPoll::parse("news", Some("offset=0&wait_ms=18446744073709551615")).expect("valid");
        assert_eq!(long.wait, Duration::from_secs(60));
    }

    #[test]
    fn malformed_addresses_are_refused() {
        let parse =
            |channel: &str, query: &str| ChannelPoll::parse(channel, Some(query)).expect_err("refused");
        assert!(matches!(parse("", ""), ChannelPollError::Channel(_)));
        assert!(matches!(parse("a%20b", ""), ChannelPollError::Channel(_)));
        assert!(matches!(parse(&"x".repeat(256), ""), ChannelPollError::Channel(_)));
        assert_eq!(parse("a%2", ""), ChannelPollError::Encoding(BadQuery));
        assert_eq!(parse("a%ff", ""), ChannelPollError::Encoding(BadQuery));
        for offset in ["", "-1", "%2B1", "1.5", "x", "18446744073709551616"] {
            let error = parse("a", &format!("offset={offset}"));
            assert_eq!(error, ChannelPollError::NotANumber("offset"), "{offset}");
        }
        assert_eq!(parse("a", "wait_ms=soon"), ChannelPollError::NotANumber("wait_ms"));
        assert_eq!(parse("a", "offset=1&offset=2"), ChannelPollError::Repeated("offset"));
        assert_eq!(parse("a", &format!("epoch={}", "e".repeat(65))), ChannelPollError::LongEpoch);
    }

    fn publication(offset: u64, length: usize) -> Publication {
        Publication {
            channel: "news".to_owned(),
            offset,
            data: Some(Bytes::from(format!("\"{}\"", "x".repeat(length)))),
            ..Publication::default()
        }
    }

    #[test]
    fn answers_hold_what_fits_and_say_where_to_go_on() {
        let position = Position::new(Epoch::new("e"), Offset(4));
        let recovery = |publications| Recovery { position: position.clone(), recovered: true, publications };
        let read = |body: Bytes| serde_json::from_slice::<Value>(&body).expect("JSON");

        let empty = answer(&recovery(vec![]));
        let expected = br#"{"position":{"epoch":"e","offset":4},"recovered":true,"publications":[]}"#;
        assert_eq!(&empty[..], &expected[..]);

        let few = read(answer(&recovery((1..=4).map(|offset| publication(offset, 3)).collect())));
        assert_eq!(few["publications"].as_array().map(Vec::len), Some(4));
        assert_eq!(few["publications"][3]["data"], "xxx");
        assert_eq!(few["position"]["offset"], 4);

        let many = read(answer(&recovery((1..=4).map(|offset| publication(offset, 100_000)).collect())));
        assert_eq!(many["publications"].as_array().map(Vec::len), Some(2));
        assert_eq!(many["position"]["offset"], 2);

        let large = read(answer(&recovery((3..=4).map(|offset| publication(offset, 300_000)).collect())));
        assert_eq!(large["publications"].as_array().map(Vec::len), Some(1));
        assert_eq!(large["position"]["offset"], 3);
    }

    proptest! {
        #[test]
        fn arbitrary_addresses_never_panic(channel in ".{0,300}", query in "[a-z_=&%0-9+]{0,60}") {
            if let Ok(poll) = ChannelPoll::parse(&channel, Some(&query)) {
                prop_assert!(poll.wait <= Duration::from_secs(60));
            }
        }
    }
}
