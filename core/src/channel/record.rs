//! Sans-io: how a partition's log frames are laid out.
//!
//! A frame is a version byte, then Protobuf: `message LogFrame { repeated LogRecord records = 1; }`. Records are
//! written straight from what the partition holds, without a struct of owned strings between.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tidegate_protocol::frame::Payload;
use tidegate_protocol::{ChannelName, ChannelNameError, Offset};

use super::history::Record;

/// One durable publication, as it is logged.
#[derive(Debug)]
pub(crate) struct Logged<'a> {
    /// Where.
    pub(crate) channel: &'a ChannelName,
    /// The birth of the channel's numbering.
    pub(crate) birth: u64,
    /// Its number.
    pub(crate) offset: Offset,
    /// What, who, when.
    pub(crate) record: &'a Record,
    /// Its idempotency key.
    pub(crate) key: Option<&'a str>,
}

/// What a log frame gave back.
#[derive(Debug, PartialEq)]
pub(crate) struct Replayed {
    /// Where.
    pub(crate) channel: ChannelName,
    /// The birth of the channel's numbering.
    pub(crate) birth: u64,
    /// Its number.
    pub(crate) offset: Offset,
    /// What, who, when.
    pub(crate) record: Record,
    /// Its idempotency key.
    pub(crate) key: Option<String>,
}

/// Why bytes of the log are no frame of ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogFrameError {
    /// Written by a later version, or not by us.
    #[error("a log frame of version {0:?}, this program reads version 1")]
    Version(Option<u8>),
    /// Not Protobuf of our schema.
    #[error("a malformed log frame: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A record without a valid channel name.
    #[error("a log record: {0}")]
    Channel(#[from] ChannelNameError),
    /// A record without a payload or a number.
    #[error("a log record without payload or offset")]
    Incomplete,
}

/// Appends `logged` to the frame in `buffer`; an empty buffer begins one.
pub(crate) fn write(buffer: &mut BytesMut, logged: &Logged<'_>) {
    if buffer.is_empty() {
        buffer.put_u8(VERSION);
    }
    let (json, payload) = match &logged.record.payload {
        Payload::Json(json) => (true, json),
        Payload::Binary(bytes) => (false, bytes),
    };
    let texts = [
        (TAG_CHANNEL, Some(logged.channel.as_str().as_bytes())),
        (TAG_JSON, json.then_some(&payload[..])),
        (TAG_BINARY, (!json).then_some(&payload[..])),
        (TAG_USER, logged.record.user.as_deref().map(str::as_bytes)),
        (TAG_KEY, logged.key.map(str::as_bytes)),
    ];
    let numbers =
        [(TAG_BIRTH, logged.birth), (TAG_OFFSET, logged.offset.0), (TAG_TIME, logged.record.time_ms)];
    let length: usize = texts
        .iter()
        .filter_map(|(_, text)| *text)
        .map(|text| 1 + encoded_len_varint(text.len() as u64) + text.len())
        .chain(numbers.iter().map(|(_, number)| 1 + encoded_len_varint(*number)))
        .sum();

    buffer.reserve(length + 1 + 10);
    buffer.put_u8(TAG_RECORDS << 3 | LENGTH_DELIMITED);
    encode_varint(length as u64, buffer);
    for (tag, number) in numbers {
        buffer.put_u8(tag << 3 | VARINT);
        encode_varint(number, buffer);
    }
    for (tag, text) in texts {
        let Some(text) = text else { continue };
        buffer.put_u8(tag << 3 | LENGTH_DELIMITED);
        encode_varint(text.len() as u64, buffer);
        buffer.put_slice(text);
    }
}

/// The records of a frame, in order.
pub(crate) fn read(frame: &Bytes) -> Result<Vec<Replayed>, LogFrameError> {
    if frame.first() != Some(&VERSION) {
        return Err(LogFrameError::Version(frame.first().copied()));
    }
    LogFrame::decode(frame.slice(1..))?.records.into_iter().map(Replayed::try_from).collect()
}

/// When the frame was written, milliseconds of Unix time.
pub(crate) fn time_ms(frame: &Bytes) -> Result<u64, LogFrameError> {
    Ok(read(frame)?.first().ok_or(LogFrameError::Incomplete)?.record.time_ms)
}

impl TryFrom<LogRecord> for Replayed {
    type Error = LogFrameError;

    fn try_from(logged: LogRecord) -> Result<Self, LogFrameError> {
        let payload = Payload::from_fields(logged.json, logged.binary).ok_or(LogFrameError::Incomplete)?;
        if logged.offset == 0 {
            return Err(LogFrameError::Incomplete);
        }
        Ok(Self {
            channel: ChannelName::new(&logged.channel)?,
            birth: logged.birth,
            offset: Offset(logged.offset),
            record: Record::new(&payload, logged.user.map(Arc::from), logged.time_ms),
            key: logged.key,
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct LogFrame {
    #[prost(message, repeated, tag = "1")]
    records: Vec<LogRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct LogRecord {
    #[prost(string, tag = "1")]
    channel: String,
    #[prost(uint64, tag = "2")]
    birth: u64,
    #[prost(uint64, tag = "3")]
    offset: u64,
    #[prost(uint64, tag = "4")]
    time_ms: u64,
    #[prost(bytes = "bytes", optional, tag = "5")]
    json: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "6")]
    binary: Option<Bytes>,
    #[prost(string, optional, tag = "7")]
    user: Option<String>,
    #[prost(string, optional, tag = "8")]
    key: Option<String>,
}

const VERSION: u8 = 1;
const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;
const TAG_RECORDS: u8 = 1;
const TAG_CHANNEL: u8 = 1;
const TAG_BIRTH: u8 = 2;
const TAG_OFFSET: u8 = 3;
const TAG_TIME: u8 = 4;
const TAG_JSON: u8 = 5;
const TAG_BINARY: u8 = 6;
const TAG_USER: u8 = 7;
const TAG_KEY: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn replayed() -> impl Strategy<Value = Replayed> {
        let payload =
            (any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(json, bytes)| {
                let bytes = Bytes::from(bytes);
                if json { Payload::Json(bytes) } else { Payload::Binary(bytes) }
            });
        (
            "[a-z:]{1,20}",
            any::<u64>(),
            1..u64::MAX,
            payload,
            prop::option::of("[a-z]{0,10}"),
            any::<u64>(),
            prop::option::of("[a-z]{0,200}"),
        )
            .prop_map(|(channel, birth, offset, payload, user, time_ms, key)| Replayed {
                channel: ChannelName::new(&channel).expect("valid"),
                birth,
                offset: Offset(offset),
                record: Record::new(&payload, user.map(Arc::from), time_ms),
                key,
            })
    }

    proptest! {
        #[test]
        fn frames_survive_and_are_protobuf(records in prop::collection::vec(replayed(), 1..6)) {
            let mut buffer = BytesMut::new();
            for r in &records {
                let Replayed { channel, birth, offset, record, key } = r;
                let logged = Logged { channel, birth: *birth, offset: *offset, record, key: key.as_deref() };
                write(&mut buffer, &logged);
            }
            let frame = buffer.freeze();
            prop_assert_eq!(&read(&frame).expect("our own frame"), &records);
            // Another reader of the schema sees the same, and nothing besides.
            let decoded = LogFrame::decode(frame.slice(1..)).expect("protobuf");
            prop_assert_eq!(LogFrame::decode(&decoded.encode_to_vec()[..]).expect("protobuf"), decoded);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut framed = vec![VERSION];
            framed.extend(&bytes);
            let _ = read(&Bytes::from(framed));
            prop_assert_eq!(read(&Bytes::from(bytes.clone())).is_ok() && bytes[0] != VERSION, false);
        }
    }

    #[test]
    fn other_versions_and_incomplete_records_are_refused() {
        assert!(matches!(read(&Bytes::new()), Err(LogFrameError::Version(None))));
        assert!(matches!(read(&Bytes::from_static(&[2])), Err(LogFrameError::Version(Some(2)))));
        let frame = |record: LogRecord| {
            let mut bytes = vec![VERSION];
            bytes.extend(LogFrame { records: vec![record] }.encode_to_vec());
            Bytes::from(bytes)
        };
        let whole = LogRecord {
            channel: "a".into(),
            offset: 1,
            json: Some(Bytes::from_static(b"1")),
            ..Default::default()
        };
        assert!(read(&frame(whole.clone())).is_ok());
        let unnumbered = LogRecord { offset: 0, ..whole.clone() };
        assert!(matches!(read(&frame(unnumbered)), Err(LogFrameError::Incomplete)));
        let empty = LogRecord { json: None, ..whole.clone() };
        assert!(matches!(read(&frame(empty)), Err(LogFrameError::Incomplete)));
        let nameless = LogRecord { channel: String::new(), ..whole };
        assert!(matches!(read(&frame(nameless)), Err(LogFrameError::Channel(_))));
    }
}
