//! Sans-io: what the backend API was asked for.

use bytes::Bytes;
use http::HeaderMap;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate_protocol::frame::{self, ErrorCode, Payload};
use tidegate_protocol::link::{HistoryRange, Publish};
use tidegate_protocol::{ChannelName, Epoch, Offset, Position};

use super::BackendConfig;
use super::answer::ApiError;

/// The body of a publish request.
#[derive(Debug)]
pub(super) enum Publishes {
    /// `{"channel", "data" | "data_base64", "key"?, "ephemeral"?}`.
    One(Box<Publish>),
    /// `{"publications": [..]}`: each one, or why it is none.
    Batch(Vec<Result<Publish, ApiError>>),
}

/// The path and query of a history request.
#[derive(Debug, PartialEq)]
pub(super) struct HistoryQuery {
    pub(super) channel: ChannelName,
    pub(super) range: HistoryRange,
}

/// Parses the body and the `Idempotency-Key` header. In a batch the header stands for keys `<header>#<index>` of the
/// publications that have none of their own: the same batch sent again is stored once.
pub(super) fn parse_publishes(
    config: &BackendConfig,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Publishes, ApiError> {
    let header_key = match headers.get("idempotency-key") {
        None => None,
        Some(value) => Some(
            value
                .to_str()
                .map_err(|_| ApiError::bad_request("Idempotency-Key must be visible ASCII characters"))?,
        ),
    };
    let shape: Shape<'_> = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format_args!("the body is no valid JSON object: {error}")))?;
    let Some(publications) = shape.publications else {
        let one = parse_publish(config, body, header_key.map(str::to_owned))?;
        return Ok(Publishes::One(Box::new(one)));
    };
    if shape.channel.is_some() {
        return Err(ApiError::bad_request("give channel or publications, not both"));
    }
    if publications.len() > config.max_batch {
        let message =
            format!("{} publications are over the limit of {}", publications.len(), config.max_batch);
        return Err(ApiError::new(ErrorCode::TooLarge, message));
    }
    let parse = |(index, raw): (usize, &RawValue)| {
        let default_key = header_key.map(|key| format!("{key}#{index}"));
        parse_publish(config, raw.get().as_bytes(), default_key)
    };
    Ok(Publishes::Batch(publications.into_iter().enumerate().map(parse).collect()))
}

/// Parses `channel` as it stands in the path, and the query `epoch=&offset=&before=&limit=`. Other parameters are ignored.
pub(super) fn parse_history(channel: &str, query: &str) -> Result<HistoryQuery, ApiError> {
    let channel = decode_channel(channel)?;
    let (mut epoch, mut offset, mut before, mut limit) = (None, None, None, 0);
    for (name, value) in query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))) {
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| ApiError::bad_request(format_args!("{name}: not UTF-8 once percent-decoded")))?;
        match name {
            "epoch" if value.len() > Epoch::MAX_BYTES => {
                let message = format_args!("epoch: at most {} bytes", Epoch::MAX_BYTES);
                return Err(ApiError::bad_request(message));
            }
            "epoch" => epoch = Some(Epoch::new(&value)),
            "offset" => offset = Some(Offset(parse_number(name, &value)?)),
            "before" => before = Some(Offset(parse_number(name, &value)?)),
            "limit" => limit = parse_number(name, &value)?,
            _ => {}
        }
    }
    let since = match (epoch, offset) {
        (epoch, Some(offset)) => Some(Position::new(epoch.unwrap_or_default(), offset)),
        (Some(_), None) => return Err(ApiError::bad_request("epoch needs offset")),
        (None, None) => None,
    };
    Ok(HistoryQuery { channel, range: HistoryRange { since, before, limit } })
}

/// Parses `channel` as it stands in the path.
pub(super) fn decode_channel(channel: &str) -> Result<ChannelName, ApiError> {
    let channel = percent_decode_str(channel)
        .decode_utf8()
        .map_err(|_| ApiError::bad_request("channel: not UTF-8 once percent-decoded"))?;
    parse_channel(&channel)
}

/// What decides between the two forms. Unparsed, so that payloads stay as they are.
#[derive(Deserialize)]
struct Shape<'a> {
    #[serde(borrow)]
    channel: Option<&'a RawValue>,
    #[serde(borrow)]
    publications: Option<Vec<&'a RawValue>>,
}

fn parse_publish(
    config: &BackendConfig,
    text: &[u8],
    default_key: Option<String>,
) -> Result<Publish, ApiError> {
    let publish: frame::Publish = serde_json::from_slice(text).map_err(ApiError::bad_request)?;
    let channel = parse_channel(&publish.channel)?;
    let payload = Payload::from_fields(publish.data, publish.data_base64)
        .ok_or_else(|| ApiError::bad_request("exactly one of data and data_base64 is required"))?;
    let key = publish.key.or(default_key);
    match key.as_deref().map(str::len) {
        Some(0) => return Err(ApiError::bad_request("key: an idempotency key cannot be empty")),
        Some(bytes) if bytes > config.max_key => {
            let message = format!("key: {bytes} bytes are over the limit of {}", config.max_key);
            return Err(ApiError::new(ErrorCode::TooLarge, message));
        }
        _ => {}
    }
    Ok(Publish { channel, payload, key, user: None, ephemeral: publish.ephemeral })
}

fn parse_channel(name: &str) -> Result<ChannelName, ApiError> {
    ChannelName::new(name).map_err(|error| ApiError::bad_request(format_args!("channel: {error}")))
}

fn parse_number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, ApiError> {
    value.parse().map_err(|_| ApiError::bad_request(format_args!("{name}: {value:?} is no number")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn history_queries_are_read() {
        let read = parse_history("room%3A1", "epoch=a-1&offset=4&before=9&limit=10&x=y").expect("valid");
        assert_eq!(read.channel.as_str(), "room:1");
        let since = Some(Position::new(Epoch::new("a-1"), Offset(4)));
        assert_eq!(read.range, HistoryRange { since, before: Some(Offset(9)), limit: 10 });
        let any = parse_history("a", "offset=0").expect("valid").range.since.expect("a position");
        assert!(any.epoch.is_any());
        assert_eq!(parse_history("a", "").expect("valid").range, HistoryRange::default());
        for (channel, query, problem) in [
            ("a", "offset=x", "offset"),
            ("a", "limit=-1", "limit"),
            ("a", "before=", "before"),
            ("a", "epoch=e", "epoch needs offset"),
            ("%ff", "", "channel"),
            ("", "", "channel"),
        ] {
            let error = parse_history(channel, query).expect_err(problem);
            assert!(error.reply.message.contains(problem), "{:?}", error.reply);
        }
        assert!(parse_history("a", &format!("offset=1&epoch={}", "e".repeat(65))).is_err());
    }

    proptest! {
        #[test]
        fn any_input_is_read_or_refused(body: Vec<u8>, text in "[{}\\[\\]\",:a-z0-9%&=]{0,60}") {
            let config = BackendConfig::default();
            let _ = parse_publishes(&config, &HeaderMap::new(), &Bytes::from(body));
            let _ = parse_history(&text, &text);
            let parsed = parse_publishes(&config, &HeaderMap::new(), &Bytes::from(text.clone()));
            prop_assert!(parsed.is_err(), "{text}");
        }
    }
}
