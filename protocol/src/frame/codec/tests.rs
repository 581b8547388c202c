//! Hostile and unlucky input: cuts, lengths, mutations, nesting. The fuzz targets begin where this ends.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::frame::tests::{client_frame, server_frame};
use crate::frame::{
    ClientBody, Close, Empty, Publish, Reconnect, ReconnectPolicy, Rpc, ServerBody, StreamHeader,
};

proptest! {
    #[test]
    fn cuts_do_not_matter(frames in vec(server_frame(), 1..6), cuts in vec(any::<Index>(), 0..24)) {
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| encode_delimited(frame).to_vec()).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut decoder = Decoder::new(LIMIT);
        let mut decoded = Vec::new();
        for pair in cuts.windows(2) {
            decoder.push(&bytes[pair[0]..pair[1]]);
            while let Some(frame) = decoder.next::<ServerFrame>().expect("our own bytes") {
                decoded.push(frame);
            }
        }
        prop_assert_eq!(decoded, frames);
        prop_assert!(decoder.is_empty());
        prop_assert_eq!(decoder.buffer.capacity(), 0, "an idle decoder holds a buffer");
    }

    #[test]
    fn no_bytes_panic_a_decoder(chunks in vec(vec(any::<u8>(), 0..24), 0..8)) {
        let mut decoder = Decoder::new(LIMIT);
        'stream: for chunk in &chunks {
            decoder.push(chunk);
            loop {
                match decoder.next::<ClientFrame>() {
                    Ok(Some(frame)) => prop_assert!(frame.body.is_some()),
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
    }

    #[test]
    fn what_is_taken_from_any_bytes_is_a_frame(bytes in vec(any::<u8>(), 0..64)) {
        check_text::<ClientFrame>(&bytes)?;
        check_text::<ServerFrame>(&bytes)?;
        check_message::<ClientFrame>(&bytes)?;
        check_message::<ServerFrame>(&bytes)?;
        check_spelling(&bytes)?;
    }

    #[test]
    fn what_is_taken_from_mutated_frames_is_a_frame(
        client in client_frame(),
        server in server_frame(),
        mutations in vec((any::<Index>(), any::<Mutation>()), 1..5),
    ) {
        check_text::<ClientFrame>(&mutate(&encode_text(&client), &mutations))?;
        check_text::<ServerFrame>(&mutate(&encode_text(&server), &mutations))?;
        check_message::<ClientFrame>(&mutate(&encode_delimited(&client), &mutations))?;
        check_message::<ServerFrame>(&mutate(&encode_delimited(&server), &mutations))?;
        check_spelling(&mutate(&encode_delimited(&client), &mutations))?;
    }

    #[test]
    fn a_frame_cut_short_is_no_frame(frame in client_frame(), at in any::<Index>()) {
        let text = encode_text(&frame);
        prop_assert!(decode_text::<ClientFrame>(&text[..at.index(text.len())], LIMIT).is_err());
        let message = encode_delimited(&frame);
        let at = at.index(message.len());
        let decoded = decode_message::<ClientFrame>(message.slice(..at), LIMIT);
        // Nothing at all is a message without frames.
        prop_assert_eq!(decoded.map(|frames| frames.len()).ok(), (at == 0).then_some(0));
    }

    #[test]
    fn garbage_after_a_frame_is_refused(frame in client_frame(), garbage in "[^ \t\r\n]{1,8}") {
        let text = [&encode_text(&frame)[..], garbage.as_bytes()].concat();
        prop_assert!(decode_text::<ClientFrame>(&text, LIMIT).is_err());
    }

    #[test]
    fn frames_at_the_limit_pass_and_beyond_it_do_not(frame in client_frame()) {
        let text = encode_text(&frame);
        prop_assert!(decode_text::<ClientFrame>(&text, text.len()).is_ok());
        prop_assert!(is_too_large(decode_text::<ClientFrame>(&text, text.len() - 1)));
        let bytes = frame.encoded_len();
        let message = encode_delimited(&frame);
        prop_assert!(decode_message::<ClientFrame>(message.clone(), bytes).is_ok());
        prop_assert!(is_too_large(decode_message::<ClientFrame>(message, bytes - 1)));
    }

    #[test]
    fn bad_utf8_in_text_is_refused(frame in client_frame(), at in any::<Index>(), byte in 0x80..=0xffu8) {
        // Any such byte between two ASCII characters, or inside a longer one, is malformed.
        let mut text = encode_text(&frame).to_vec();
        let at = at.index(text.len() + 1);
        text.insert(at, byte);
        prop_assume!(std::str::from_utf8(&text).is_err());
        prop_assert!(decode_text::<ClientFrame>(&text, LIMIT).is_err());
    }
}

#[test]
fn an_announced_length_is_checked_before_anything_is_held_for_it() {
    for length in [LIMIT as u64 + 1, 1 << 31, u64::from(u32::MAX), (1 << 35) - 1] {
        let mut prefix = Vec::new();
        prost::encode_length_delimiter(usize::try_from(length).expect("64 bits"), &mut prefix)
            .expect("grows");
        let mut decoder = Decoder::new(LIMIT);
        decoder.push(&prefix);
        assert!(is_too_large(decoder.next::<ClientFrame>()), "{length}");
        assert!(decoder.buffer.capacity() < 256, "{length}: {} bytes held", decoder.buffer.capacity());
    }
}

#[test]
fn an_allowed_length_is_not_reserved_either() {
    let mut decoder = Decoder::new(LIMIT);
    decoder.push(&[0x80, 0x80, 0x08, 0x08]);
    assert!(matches!(decoder.next::<ClientFrame>(), Ok(None)));
    assert!(!decoder.is_empty());
    assert!(decoder.buffer.capacity() < 256, "{} bytes held for 4", decoder.buffer.capacity());
}

#[test]
fn lengths_are_varints_of_at_most_five_bytes() {
    for (bytes, expected) in [
        (&[][..], None),
        (&[0x80], None),
        (&[0xff; 4], None),
        (&[0x00], Some((0, 1))),
        (&[0x7f, 9, 9, 9, 9, 9], Some((127, 1))),
        (&[0x80, 0x01], Some((128, 2))),
        (&[0x80, 0x00], Some((0, 2))),
        (&[0xff, 0xff, 0xff, 0xff, 0x0f], Some((u32::MAX as usize, 5))),
    ] {
        assert_eq!(read_length(bytes).expect("well formed"), expected, "{bytes:?}");
    }
    assert!(matches!(read_length(&[0x80; 5]), Err(DecodeError::BadLength)));
    assert!(matches!(read_length(&[0xff; 9]), Err(DecodeError::BadLength)));
}

#[test]
fn messages_of_too_many_frames_are_refused() {
    let pong = ClientFrame::new(0, ClientBody::Pong(Empty {}));
    let text = |count: usize| format!("[{}]", vec![r#"{"pong":{}}"#; count].join(","));
    let message = |count: usize| Bytes::from(encode_delimited(&pong).repeat(count));
    for (count, fits) in
        [(0, true), (MAX_FRAMES_PER_MESSAGE, true), (MAX_FRAMES_PER_MESSAGE + 1, false), (9_000, false)]
    {
        let from_text = decode_text::<ClientFrame>(text(count).as_bytes(), LIMIT);
        let from_message = decode_message::<ClientFrame>(message(count), LIMIT);
        for frames in [from_text, from_message] {
            match frames {
                Ok(frames) => assert!(fits && frames.len() == count, "{count}"),
                Err(DecodeError::TooMany { limit }) => assert!(!fits && limit == MAX_FRAMES_PER_MESSAGE),
                Err(other) => panic!("{count}: {other}"),
            }
        }
    }
    // Malformed text is that first, however long the array is.
    let cut = &text(300)[..3_000];
    assert!(matches!(decode_text::<ClientFrame>(cut.as_bytes(), LIMIT), Err(DecodeError::Json(_))));
}

#[test]
fn deep_nesting_overflows_no_stack() {
    let depth = 50_000;
    let nested = "[".repeat(depth) + &"]".repeat(depth);
    let objects = r#"{"a":"#.repeat(20_000) + "1" + &"}".repeat(20_000);
    for inner in [&nested, &objects] {
        assert!(decode_text::<ClientFrame>(inner.as_bytes(), 1 << 20).is_err());
        let unknown_field = format!(r#"{{"connect":{{"later":{inner}}}}}"#);
        assert!(decode_text::<ClientFrame>(unknown_field.as_bytes(), 1 << 20).is_ok());
        let unknown_frame = format!(r#"{{"later":{inner}}}"#);
        assert!(decode_text::<ServerFrame>(unknown_frame.as_bytes(), 1 << 20).is_ok());
        let payload = format!(r#"{{"publish":{{"channel":"a","data":{inner}}}}}"#);
        let frames = decode_text::<ClientFrame>(payload.as_bytes(), 1 << 20).expect("payloads are opaque");
        assert_eq!(encode_text(&frames[0]), payload);
        let elsewhere = format!(r#"{{"subscribe":{{"channel":{inner}}}}}"#);
        assert!(decode_text::<ClientFrame>(elsewhere.as_bytes(), 1 << 20).is_err());
    }
    // Groups of an unknown field, 10,000 deep.
    let groups = [0xc3, 0x0c].repeat(10_000);
    assert!(ClientFrame::decode(&*groups).is_err());
    assert!(StreamHeader::decode(&*groups).is_err());
}

#[test]
fn repeated_members_are_refused() {
    for text in [
        r#"{"id":1,"id":1,"pong":{}}"#,
        r#"{"pong":{},"id":0,"id":0}"#,
        r#"{"pong":{},"pong":{}}"#,
        r#"{"connect":{"token":"a","token":"b"}}"#,
        r#"{"connect":{"token":"a","tok\u0065n":"b"}}"#,
        r#"{"publish":{"channel":"a","data":1,"data":2}}"#,
        r#"{"subscribe":{"channel":"a","position":{"offset":1,"offset":2}}}"#,
    ] {
        assert!(decode_text::<ClientFrame>(text.as_bytes(), LIMIT).is_err(), "{text}");
    }
}

#[test]
fn an_unknown_policy_counts_as_backoff_in_both_encodings() {
    let close = Close {
        code: 4150,
        reason: String::new(),
        reconnect: Some(Reconnect { policy: 77, after_ms: None, slot: None }),
    };
    let frame = ServerFrame::new(0, ServerBody::Close(close));
    let policy_of = |frame: &ServerFrame| match &frame.body {
        Some(ServerBody::Close(close)) => close.reconnect.as_ref().map(Reconnect::policy),
        _ => None,
    };
    let from_message =
        decode_message::<ServerFrame>(encode_delimited(&frame), LIMIT).expect("valid").remove(0);
    assert_eq!(policy_of(&from_message), Some(ReconnectPolicy::Backoff));
    let from_text = decode_text::<ServerFrame>(&encode_text(&frame), LIMIT).expect("valid").remove(0);
    assert_eq!(policy_of(&from_text), Some(ReconnectPolicy::Backoff));
}

#[test]
fn a_payload_that_claims_to_be_json_is_checked_in_protobuf_too() {
    let publish = |data: &[u8]| {
        let data = Some(Bytes::copy_from_slice(data));
        let publish = Publish { channel: "a".to_owned(), data, ..Publish::default() };
        decode_message::<ClientFrame>(
            encode_delimited(&ClientFrame::new(1, ClientBody::Publish(publish))),
            LIMIT,
        )
    };
    let rpc = |data: &[u8]| {
        let data = Some(Bytes::copy_from_slice(data));
        let rpc = Rpc { method: "a".to_owned(), data, data_base64: None };
        decode_message::<ClientFrame>(encode_delimited(&ClientFrame::new(1, ClientBody::Rpc(rpc))), LIMIT)
    };
    for bad in [&b""[..], b" ", b"hello", b"{", b"1 2", b"{}x", b"\"\xff\"", b"nul", b"'a'", b"[1,]"] {
        for frames in [publish(bad), rpc(bad)] {
            assert!(matches!(frames, Err(DecodeError::Json(_))), "{bad:?}");
        }
    }
    for good in [&b"null"[..], b" {\"a\": 1} ", b"\"\xc3\xa9\"", b"-1e9"] {
        for frames in [publish(good), rpc(good)] {
            // Encoding as text must not fail on what was taken.
            encode_text(&frames.expect("valid")[0]);
        }
    }
}

#[test]
fn a_payload_does_not_hold_on_to_the_buffer_that_it_came_in() {
    let publish = Publish { data: Some(Bytes::from_static(b"1")), ..Publish::default() };
    let frame = ClientFrame::new(1, ClientBody::Publish(publish));
    let mut decoder = Decoder::new(LIMIT);
    decoder.push(&encode_delimited(&frame).repeat(2));
    let first = decoder.next::<ClientFrame>().expect("valid").expect("whole");
    let Some(ClientBody::Publish(Publish { data: Some(data), .. })) = first.body else {
        panic!("another body")
    };
    assert!(data.is_unique() && !decoder.is_empty());
}

#[test]
fn frames_are_given_an_id_without_being_decoded() {
    // Around the lengths at which the length itself takes another byte.
    for size in [0, 1, 90, 100, 103, 104, 105, 106, 107, 110, 500] {
        let publication = |offset: u64| crate::frame::Publication {
            channel: "room:1".to_owned(),
            offset,
            data_base64: Some(Bytes::from(vec![7; size])),
            ..crate::frame::Publication::default()
        };
        let frame = |id, offset| ServerFrame::new(id, ServerBody::Publication(publication(offset)));
        let joined = [encode_delimited(&frame(0, 1)), encode_delimited(&frame(0, 2))].concat();
        for id in [1, 127, 128, u64::from(u32::MAX)] {
            let decoded: Vec<ServerFrame> =
                decode_message(with_id(&joined, id), LIMIT).expect("our own frames");
            assert_eq!(decoded, [frame(id, 1), frame(id, 2)], "{size} {id}");
        }
    }
}

#[test]
fn a_header_comes_before_the_frames_of_a_stream() {
    let header = StreamHeader { channel: "room:1".to_owned(), catch_up: true, epoch: "7f3a".to_owned() };
    let ping = ServerFrame::new(0, ServerBody::Ping(crate::frame::Ping::default()));
    let mut decoder = Decoder::new(LIMIT);
    let mut found = None;
    let mut frames = Vec::new();
    for byte in [header.encode_length_delimited_to_vec(), encode_delimited(&ping).to_vec()].concat() {
        decoder.push(&[byte]);
        match found {
            None => found = decoder.next_message::<StreamHeader>().expect("valid"),
            Some(_) => frames.extend(decoder.next::<ServerFrame>().expect("valid")),
        }
    }
    assert_eq!(found, Some(header));
    assert_eq!(frames, [ping]);
    assert!(decoder.is_empty());
}

const LIMIT: usize = 128 * 1024;

#[derive(Debug, Clone)]
enum Mutation {
    Set(u8),
    Insert(u8),
    Remove,
    Cut,
    Double,
}

impl Arbitrary for Mutation {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        prop_oneof![
            any::<u8>().prop_map(Self::Set),
            any::<u8>().prop_map(Self::Insert),
            Just(Self::Remove),
            Just(Self::Cut),
            Just(Self::Double),
        ]
        .boxed()
    }
}

fn mutate(bytes: &[u8], mutations: &[(Index, Mutation)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, mutation) in mutations {
        let at = at.index(bytes.len() + 1);
        match mutation {
            Mutation::Insert(byte) => bytes.insert(at, *byte),
            Mutation::Cut => bytes.truncate(at),
            Mutation::Double => bytes.extend_from_within(at..),
            Mutation::Set(byte) => bytes.iter_mut().skip(at).take(1).for_each(|found| *found = *byte),
            Mutation::Remove => {
                bytes.splice(at..(at + 1).min(bytes.len()), []);
            }
        }
    }
    bytes
}

fn check_text<F: Frame + PartialEq + fmt::Debug>(text: &[u8]) -> Result<(), TestCaseError> {
    for frame in decode_text::<F>(text, LIMIT).unwrap_or_default() {
        prop_assert!(frame.is_known());
        let again = decode_text::<F>(&encode_text(&frame), usize::MAX).expect("our own text");
        prop_assert_eq!(&again[..], &[frame]);
    }
    Ok(())
}

fn check_message<F: Frame + PartialEq + fmt::Debug>(message: &[u8]) -> Result<(), TestCaseError> {
    for frame in decode_message::<F>(Bytes::copy_from_slice(message), LIMIT).unwrap_or_default() {
        prop_assert!(frame.is_known());
        let again = decode_message::<F>(encode_delimited(&frame), usize::MAX).expect("our own bytes");
        prop_assert_eq!(&again[..], &[frame]);
    }
    Ok(())
}

/// What a client sends in Protobuf can be spelt as text: others get it so.
fn check_spelling(message: &[u8]) -> Result<(), TestCaseError> {
    for frame in decode_message::<ClientFrame>(Bytes::copy_from_slice(message), LIMIT).unwrap_or_default() {
        prop_assert!(decode_text::<ClientFrame>(&encode_text(&frame), usize::MAX).is_ok());
    }
    Ok(())
}

fn is_too_large<T>(result: Result<T, DecodeError>) -> bool {
    result.is_err_and(|error| {
        error.close_code() == CloseCode::FrameTooLarge && matches!(error, DecodeError::TooLarge { .. })
    })
}
