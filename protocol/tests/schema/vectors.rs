//! `protocol/vectors/*.json`: what every SDK must encode and decode. The files are written from the code by
//! `UPDATE_VECTORS=1 cargo nextest run -p tidegate-protocol vector`; a difference is a change of the wire.

use std::fmt::Write as _;
use std::path::PathBuf;

use prost::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate_protocol::Epoch;
use tidegate_protocol::frame::codec::{
    DecodeError, Decoder, Frame, decode_message, decode_text, encode_delimited,
};
use tidegate_protocol::frame::{
    ClientFrame, CloseCode, ErrorCode, ReconnectPolicy, ServerFrame, StreamHeader,
};

use crate::samples;

#[test]
fn vector_files_are_what_the_code_says() {
    let files = [
        ("client.json", round_trips("client", samples::client())),
        ("server.json", round_trips("server", samples::server())),
        ("stream.json", round_trips("stream_header", samples::stream_headers())),
        ("tolerated.json", lines(TOLERATED.iter().map(|case| case.to_json()))),
        ("delimited.json", lines(delimited().into_iter())),
        ("invalid.json", lines(INVALID.iter().map(|case| case.to_json()))),
        ("close_codes.json", codes()),
        ("epoch_marks.json", marks()),
    ];
    for (name, expected) in files {
        let path = path(name);
        if std::env::var_os("UPDATE_VECTORS").is_some() {
            std::fs::write(&path, &expected).expect("the vectors folder is writable");
        }
        let found = std::fs::read_to_string(&path).expect("the vector file is there");
        assert!(
            found == expected,
            "{name} differs from the code; run with UPDATE_VECTORS=1 and look at the diff"
        );
    }
}

#[test]
fn vector_frames_decode_and_encode_both_ways() {
    run_round_trips::<ClientFrame>("client.json", "client");
    run_round_trips::<ServerFrame>("server.json", "server");
    run_round_trips::<StreamHeader>("stream.json", "stream_header");
}

#[test]
fn vector_frames_of_a_later_protocol_are_tolerated() {
    for case in read::<Tolerated>("tolerated.json") {
        let decoded = match (&*case.frame, case.text, case.protobuf_hex) {
            ("client", Some(text), None) => first_text::<ClientFrame>(&text),
            ("client", None, Some(hex)) => first_message::<ClientFrame>(&hex),
            ("server", Some(text), None) => first_text::<ServerFrame>(&text),
            ("server", None, Some(hex)) => first_message::<ServerFrame>(&hex),
            ("stream_header", None, Some(hex)) => {
                json(&StreamHeader::decode(&*unhex(&hex)).expect("tolerated"))
            }
            other => panic!("{}: {other:?}", case.name),
        };
        let expected = case.json.map_or_else(|| "{}".to_owned(), |json| json.get().to_owned());
        assert_eq!(decoded, expected, "{}", case.name);
    }
}

#[test]
fn vector_streams_decode_however_they_are_cut() {
    for case in read::<Delimited>("delimited.json") {
        let bytes = unhex(&case.delimited_hex);
        for cut in 1..=bytes.len() {
            let mut decoder = Decoder::new(case.limit.unwrap_or(LIMIT));
            let mut frames = Vec::new();
            let mut error = None;
            for chunk in bytes.chunks(cut) {
                decoder.push(chunk);
                loop {
                    match decoder.next::<ServerFrame>() {
                        Ok(Some(frame)) => frames.push(json(&frame)),
                        Ok(None) => break,
                        Err(failure) => {
                            error = Some(failure.close_code().name().to_owned());
                            break;
                        }
                    }
                }
                if error.is_some() {
                    break;
                }
            }
            let expected: Vec<&str> = case.frames.iter().map(|frame| frame.get()).collect();
            assert_eq!(frames, expected, "{} cut every {cut} bytes", case.name);
            assert_eq!(error, case.error, "{} cut every {cut} bytes", case.name);
        }
    }
}

#[test]
fn vector_bytes_that_are_no_frame_are_refused() {
    for case in read::<Invalid>("invalid.json") {
        let limit = case.limit.unwrap_or(LIMIT);
        let error = match (&*case.frame, &case.text, &case.protobuf_hex) {
            ("client", Some(text), None) => decode_text::<ClientFrame>(text.as_bytes(), limit).err(),
            ("server", Some(text), None) => decode_text::<ServerFrame>(text.as_bytes(), limit).err(),
            ("client", None, Some(hex)) => decode_message::<ClientFrame>(delimit(&unhex(hex)), limit).err(),
            ("server", None, Some(hex)) => decode_message::<ServerFrame>(delimit(&unhex(hex)), limit).err(),
            ("stream_header", None, Some(hex)) => {
                StreamHeader::decode(&*unhex(hex)).err().map(DecodeError::from)
            }
            other => panic!("{}: {other:?}", case.name),
        };
        let error = error.unwrap_or_else(|| panic!("{} was taken for a frame", case.name));
        assert_eq!(error.close_code().name(), case.error, "{}: {error}", case.name);
    }
}

/// Bytes of the frame limit (PROTOCOL §10).
const LIMIT: usize = 128 * 1024;

#[derive(Deserialize)]
struct RoundTrip {
    name: String,
    frame: String,
    json: Box<RawValue>,
    protobuf_hex: String,
}

#[derive(Deserialize)]
struct Tolerated {
    name: String,
    frame: String,
    text: Option<String>,
    protobuf_hex: Option<String>,
    json: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Delimited {
    name: String,
    delimited_hex: String,
    limit: Option<usize>,
    #[serde(default)]
    frames: Vec<Box<RawValue>>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Invalid {
    name: String,
    frame: String,
    text: Option<String>,
    protobuf_hex: Option<String>,
    limit: Option<usize>,
    error: String,
}

/// One hand-written case: a name, whose frame, the input, and what comes of it.
struct Case {
    name: &'static str,
    frame: &'static str,
    input: Input,
    outcome: Outcome,
}

enum Input {
    Text(&'static str),
    Protobuf(&'static str),
}

enum Outcome {
    /// The JSON of what is left when unknown parts are passed over.
    Frame(&'static str),
    /// The whole frame is passed over.
    Ignored,
    BadFrame,
    TooLarge {
        limit: usize,
    },
}

impl Case {
    const fn new(name: &'static str, frame: &'static str, input: Input, outcome: Outcome) -> Self {
        Self { name, frame, input, outcome }
    }

    fn to_json(&self) -> String {
        let input = match self.input {
            Input::Text(text) => format!("\"text\":{}", json(&text)),
            Input::Protobuf(hex) => format!("\"protobuf_hex\":\"{}\"", hex.replace(' ', "")),
        };
        let outcome = match self.outcome {
            Outcome::Frame(json) => format!("\"json\":{json}"),
            Outcome::Ignored => "\"json\":null".to_owned(),
            Outcome::BadFrame => "\"error\":\"bad_frame\"".to_owned(),
            Outcome::TooLarge { limit } => format!("\"limit\":{limit},\"error\":\"frame_too_large\""),
        };
        format!(r#"{{"name":"{}","frame":"{}",{input},{outcome}}}"#, self.name, self.frame)
    }
}

const TOLERATED: &[Case] = &[
    Case::new(
        "unknown_server_frame",
        "server",
        Input::Text(r#"{"teleport":{"target":"edge-2"}}"#),
        Outcome::Ignored,
    ),
    Case::new(
        "unknown_server_frame_of_another_shape",
        "server",
        Input::Text(r#"{"teleport":[1,[2]]}"#),
        Outcome::Ignored,
    ),
    // Field 200, length-delimited, 3 bytes.
    Case::new("unknown_server_frame_protobuf", "server", Input::Protobuf("c20c 03 616263"), Outcome::Ignored),
    Case::new(
        "unknown_fields_in_a_known_server_frame",
        "server",
        Input::Text(r#"{"published":{"channel":"a","shard":7,"later":{"x":[null]}}}"#),
        Outcome::Frame(r#"{"published":{"channel":"a"}}"#),
    ),
    Case::new(
        "unknown_member_beside_a_known_server_frame",
        "server",
        Input::Text(r#"{"published":{"channel":"a"},"trace":"00-1"}"#),
        Outcome::Frame(r#"{"published":{"channel":"a"}}"#),
    ),
    // published { channel: "a", field 200: 7 }.
    Case::new(
        "unknown_fields_in_a_known_server_frame_protobuf",
        "server",
        Input::Protobuf("2a06 0a0161 c00c07"),
        Outcome::Frame(r#"{"published":{"channel":"a"}}"#),
    ),
    Case::new(
        "unknown_reconnect_policy",
        "server",
        Input::Text(r#"{"close":{"code":4199,"reason":"","reconnect":{"policy":"elsewhere"}}}"#),
        Outcome::Frame(r#"{"close":{"code":4199,"reason":"","reconnect":{"policy":"backoff"}}}"#),
    ),
    Case::new(
        "unknown_fields_in_a_known_client_frame",
        "client",
        Input::Text(r#"{"id":1,"connect":{"client":"app/1.2","features":["x"]}}"#),
        Outcome::Frame(r#"{"id":1,"connect":{}}"#),
    ),
    Case::new(
        "body_before_id",
        "client",
        Input::Text(r#" { "unsubscribe" : { "channel" : "a" } , "id" : 3 } "#),
        Outcome::Frame(r#"{"id":3,"unsubscribe":{"channel":"a"}}"#),
    ),
    Case::new(
        "null_for_an_absent_optional",
        "client",
        Input::Text(r#"{"id":2,"subscribe":{"channel":"a","position":null}}"#),
        Outcome::Frame(r#"{"id":2,"subscribe":{"channel":"a"}}"#),
    ),
    // The length of the last field as the varint 81 00.
    Case::new(
        "length_in_more_bytes_than_needed",
        "client",
        Input::Protobuf("22 04 0a 8100 61"),
        Outcome::Frame(r#"{"unsubscribe":{"channel":"a"}}"#),
    ),
    // catch_up before channel, and field 9.
    Case::new(
        "fields_in_another_order",
        "stream_header",
        Input::Protobuf("4801 1001 0a0161"),
        Outcome::Frame(r#"{"channel":"a","catch_up":true,"epoch":""}"#),
    ),
];

const INVALID: &[Case] = &[
    Case::new("empty_text", "client", Input::Text(""), Outcome::BadFrame),
    Case::new("blank_text", "client", Input::Text(" \n"), Outcome::BadFrame),
    Case::new("no_json", "client", Input::Text("hello"), Outcome::BadFrame),
    Case::new("json_cut_off", "client", Input::Text(r#"{"id":1,"connect":{"#), Outcome::BadFrame),
    Case::new("json_and_more", "client", Input::Text(r#"{"pong":{}} {"pong":{}}"#), Outcome::BadFrame),
    Case::new("json_and_garbage", "client", Input::Text(r#"{"pong":{}}x"#), Outcome::BadFrame),
    Case::new("number_for_a_frame", "client", Input::Text("1"), Outcome::BadFrame),
    Case::new("null_for_a_frame", "client", Input::Text("null"), Outcome::BadFrame),
    Case::new("array_of_numbers", "client", Input::Text("[1]"), Outcome::BadFrame),
    Case::new("array_in_an_array", "client", Input::Text(r#"[[{"pong":{}}]]"#), Outcome::BadFrame),
    Case::new("array_cut_off", "client", Input::Text(r#"[{"pong":{}},"#), Outcome::BadFrame),
    Case::new("no_body", "client", Input::Text(r#"{"id":1}"#), Outcome::BadFrame),
    Case::new("no_body_in_an_array", "client", Input::Text(r#"[{"pong":{}},{}]"#), Outcome::BadFrame),
    Case::new("unknown_body", "client", Input::Text(r#"{"id":1,"teleport":{}}"#), Outcome::BadFrame),
    Case::new(
        "server_body_from_a_client",
        "client",
        Input::Text(r#"{"published":{"channel":"a"}}"#),
        Outcome::BadFrame,
    ),
    Case::new("two_bodies", "client", Input::Text(r#"{"pong":{},"done":{}}"#), Outcome::BadFrame),
    Case::new("the_same_body_twice", "client", Input::Text(r#"{"pong":{},"pong":{}}"#), Outcome::BadFrame),
    Case::new("id_twice", "client", Input::Text(r#"{"id":1,"id":2,"pong":{}}"#), Outcome::BadFrame),
    Case::new(
        "field_twice",
        "client",
        Input::Text(r#"{"unsubscribe":{"channel":"a","channel":"b"}}"#),
        Outcome::BadFrame,
    ),
    Case::new("negative_id", "client", Input::Text(r#"{"id":-1,"pong":{}}"#), Outcome::BadFrame),
    Case::new("fractional_id", "client", Input::Text(r#"{"id":1.5,"pong":{}}"#), Outcome::BadFrame),
    Case::new("text_id", "client", Input::Text(r#"{"id":"1","pong":{}}"#), Outcome::BadFrame),
    Case::new("null_id", "client", Input::Text(r#"{"id":null,"pong":{}}"#), Outcome::BadFrame),
    Case::new(
        "id_of_65_bits",
        "client",
        Input::Text(r#"{"id":18446744073709551616,"pong":{}}"#),
        Outcome::BadFrame,
    ),
    Case::new("null_body", "client", Input::Text(r#"{"id":1,"connect":null}"#), Outcome::BadFrame),
    Case::new("text_body", "client", Input::Text(r#"{"id":1,"connect":"token"}"#), Outcome::BadFrame),
    Case::new("array_body", "client", Input::Text(r#"{"id":1,"connect":["token"]}"#), Outcome::BadFrame),
    Case::new("number_for_text", "client", Input::Text(r#"{"subscribe":{"channel":1}}"#), Outcome::BadFrame),
    Case::new("null_for_text", "client", Input::Text(r#"{"subscribe":{"channel":null}}"#), Outcome::BadFrame),
    Case::new(
        "array_position",
        "client",
        Input::Text(r#"{"subscribe":{"channel":"a","position":["e",1]}}"#),
        Outcome::BadFrame,
    ),
    Case::new(
        "text_offset",
        "client",
        Input::Text(r#"{"subscribe":{"channel":"a","position":{"epoch":"e","offset":"1"}}}"#),
        Outcome::BadFrame,
    ),
    Case::new(
        "limit_of_33_bits",
        "client",
        Input::Text(r#"{"history":{"channel":"a","limit":4294967296}}"#),
        Outcome::BadFrame,
    ),
    Case::new(
        "base64_without_padding",
        "client",
        Input::Text(r#"{"publish":{"channel":"a","data_base64":"AA"}}"#),
        Outcome::BadFrame,
    ),
    Case::new(
        "base64_of_the_url_alphabet",
        "client",
        Input::Text(r#"{"publish":{"channel":"a","data_base64":"__8="}}"#),
        Outcome::BadFrame,
    ),
    Case::new(
        "null_base64",
        "client",
        Input::Text(r#"{"publish":{"channel":"a","data_base64":null}}"#),
        Outcome::BadFrame,
    ),
    Case::new(
        "payload_cut_off",
        "client",
        Input::Text(r#"{"publish":{"channel":"a","data":}}"#),
        Outcome::BadFrame,
    ),
    Case::new(
        "control_character_in_text",
        "client",
        Input::Text("{\"unsubscribe\":{\"channel\":\"a\u{1}\"}}"),
        Outcome::BadFrame,
    ),
    Case::new(
        "lone_surrogate",
        "client",
        Input::Text(r#"{"unsubscribe":{"channel":"\ud800"}}"#),
        Outcome::BadFrame,
    ),
    Case::new("byte_order_mark", "client", Input::Text("\u{feff}{\"pong\":{}}"), Outcome::BadFrame),
    Case::new(
        "text_over_the_limit",
        "client",
        Input::Text(r#"{"id":1,"unsubscribe":{"channel":"room:1"}}"#),
        Outcome::TooLarge { limit: 32 },
    ),
    Case::new("empty_message", "client", Input::Protobuf(""), Outcome::BadFrame),
    // id: 1 and no body.
    Case::new("protobuf_without_body", "client", Input::Protobuf("0801"), Outcome::BadFrame),
    // Field 200.
    Case::new("protobuf_unknown_body", "client", Input::Protobuf("0801 c20c00"), Outcome::BadFrame),
    Case::new("protobuf_cut_off", "client", Input::Protobuf("2203 0a01"), Outcome::BadFrame),
    Case::new("protobuf_cut_off_in_a_tag", "client", Input::Protobuf("5200 80"), Outcome::BadFrame),
    Case::new(
        "protobuf_varint_of_11_bytes",
        "client",
        Input::Protobuf("08 ffffffffffffffffffff01 5200"),
        Outcome::BadFrame,
    ),
    // id as 64 fixed bits.
    Case::new(
        "protobuf_wrong_wire_type",
        "client",
        Input::Protobuf("09 0100000000000000 5200"),
        Outcome::BadFrame,
    ),
    Case::new("protobuf_wire_type_7", "client", Input::Protobuf("0f 5200"), Outcome::BadFrame),
    Case::new("protobuf_field_0", "client", Input::Protobuf("0200 5200"), Outcome::BadFrame),
    Case::new("protobuf_end_of_no_group", "client", Input::Protobuf("c40c 5200"), Outcome::BadFrame),
    Case::new(
        "protobuf_inner_length_past_the_end",
        "client",
        Input::Protobuf("2202 0a7f"),
        Outcome::BadFrame,
    ),
    Case::new(
        "protobuf_inner_length_of_4_gib",
        "client",
        Input::Protobuf("2206 0a ffffffff0f"),
        Outcome::BadFrame,
    ),
    Case::new("protobuf_bad_utf8", "client", Input::Protobuf("2204 0a02 c328"), Outcome::BadFrame),
    Case::new("protobuf_surrogate_in_utf8", "client", Input::Protobuf("2205 0a03 eda080"), Outcome::BadFrame),
    // publish { channel: "a", data: "{" }.
    Case::new(
        "protobuf_payload_that_is_no_json",
        "client",
        Input::Protobuf("2a06 0a0161 12017b"),
        Outcome::BadFrame,
    ),
    Case::new(
        "protobuf_over_the_limit",
        "client",
        Input::Protobuf("22 08 0a06 726f6f6d3a31"),
        Outcome::TooLarge { limit: 9 },
    ),
    Case::new("server_no_json", "server", Input::Text("<html>"), Outcome::BadFrame),
    Case::new("server_empty_text", "server", Input::Text(""), Outcome::BadFrame),
    Case::new(
        "server_json_cut_off",
        "server",
        Input::Text(r#"[{"ping":{}},{"publication":{"channel":"a""#),
        Outcome::BadFrame,
    ),
    Case::new("server_json_and_garbage", "server", Input::Text(r#"{"ping":{}}x"#), Outcome::BadFrame),
    Case::new("server_number_for_a_frame", "server", Input::Text("1"), Outcome::BadFrame),
    Case::new(
        "server_two_bodies",
        "server",
        Input::Text(r#"{"ping":{},"error":{"code":1}}"#),
        Outcome::BadFrame,
    ),
    Case::new("server_protobuf_cut_off", "server", Input::Protobuf("4205 0a0161"), Outcome::BadFrame),
    Case::new("server_protobuf_bad_utf8", "server", Input::Protobuf("4204 0a02 c328"), Outcome::BadFrame),
    Case::new(
        "server_protobuf_inner_length_past_the_end",
        "server",
        Input::Protobuf("4202 0a7f"),
        Outcome::BadFrame,
    ),
    Case::new("header_cut_off", "stream_header", Input::Protobuf("0a05 61"), Outcome::BadFrame),
    Case::new("header_bad_utf8", "stream_header", Input::Protobuf("0a02 c328"), Outcome::BadFrame),
];

/// Streams of delimited server frames, as on QUIC, and in binary WebSocket messages.
fn delimited() -> Vec<String> {
    let frames: Vec<ServerFrame> = samples::server().into_iter().map(|(_, frame)| frame).collect();
    let two = [&frames[0], &frames[2]];
    let big = frames.iter().max_by_key(|frame| frame.encoded_len()).expect("there are samples");
    let ok = |name: &str, frames: &[&ServerFrame]| {
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| encode_delimited(*frame).to_vec()).collect();
        let frames: Vec<String> = frames.iter().map(|frame| json(*frame)).collect();
        format!(
            r#"{{"name":"{name}","frame":"server","delimited_hex":"{}","frames":[{}]}}"#,
            hex(&bytes),
            frames.join(",")
        )
    };
    let bad = |name: &str, hex: &str, extra: &str, error: &str| {
        format!(
            r#"{{"name":"{name}","frame":"server","delimited_hex":"{}","frames":[],{extra}"error":"{error}"}}"#,
            hex.replace(' ', "")
        )
    };
    vec![
        ok("one_frame", &two[..1]),
        ok("two_frames", &two),
        ok("length_of_two_bytes", &[big]),
        r#"{"name":"a_frame_that_is_not_whole_yet","frame":"server","delimited_hex":"05520000","frames":[]}"#
            .to_owned(),
        bad("length_of_4_gib", "ffffffff0f 00", "", "frame_too_large"),
        bad("length_of_35_bits", "ffffffff7f 00", "", "frame_too_large"),
        bad("length_of_6_bytes", "808080808001", "", "bad_frame"),
        bad("length_over_the_limit", "11 00", "\"limit\":16,", "frame_too_large"),
        bad("frame_that_is_no_protobuf", "02 0f00", "", "bad_frame"),
    ]
}

fn marks() -> String {
    let longest = "e".repeat(Epoch::MAX_BYTES);
    // The last one's hash is 0.
    lines(["7f3a", "7f3b", "0", "18c2e5f1-1", "18c2e5f1-10", "эпоха-🎏", &longest, "b0ccrhg"].iter().map(
        |epoch| {
            let text = serde_json::to_string(epoch).expect("text");
            format!(r#"{{"epoch":{text},"mark":{}}}"#, Epoch::new(epoch).mark())
        },
    ))
}

fn codes() -> String {
    let policy = |policy: ReconnectPolicy| policy.name();
    let close_codes = lines(CloseCode::ALL.iter().map(|code| {
        format!(
            r#"{{"number":{},"name":"{}","policy":"{}"}}"#,
            code.number(),
            code.name(),
            policy(code.policy())
        )
    }));
    // Numbers that no version has assigned: what the range alone says.
    let unknown = lines([4099, 4199, 4299, 1000, 1006, 4999].into_iter().map(|number| {
        format!(r#"{{"number":{number},"policy":"{}"}}"#, policy(CloseCode::policy_of(number)))
    }));
    let error_codes = lines(ErrorCode::ALL.iter().map(|code| {
        format!(
            r#"{{"code":{},"name":"{}","retry":{}}}"#,
            code.number(),
            snake(&format!("{code:?}")),
            code.retry()
        )
    }));
    format!(
        "{{\n\"close_codes\": {},\n\"unknown_close_codes\": {},\n\"error_codes\": {}\n}}\n",
        close_codes.trim_end(),
        unknown.trim_end(),
        error_codes.trim_end()
    )
}

/// One entry a line: easy to read in a diff, and payloads keep their exact text.
fn lines(entries: impl Iterator<Item = String>) -> String {
    format!("[\n{}\n]\n", entries.collect::<Vec<_>>().join(",\n"))
}

fn round_trips<M: Message + Serialize>(kind: &str, samples: Vec<(&str, M)>) -> String {
    lines(samples.iter().map(|(name, message)| {
        let hex = hex(&message.encode_to_vec());
        format!(r#"{{"name":"{name}","frame":"{kind}","json":{},"protobuf_hex":"{hex}"}}"#, json(message))
    }))
}

fn run_round_trips<M: Message + Default + Serialize + DeserializeOwned + PartialEq>(file: &str, kind: &str) {
    let cases = read::<RoundTrip>(file);
    assert!(!cases.is_empty());
    for case in cases {
        assert_eq!(case.frame, kind, "{}", case.name);
        let from_text: M = serde_json::from_str(case.json.get()).expect(&case.name);
        let bytes = unhex(&case.protobuf_hex);
        let from_bytes = M::decode(&*bytes).expect(&case.name);
        assert!(from_text == from_bytes, "{}: the two encodings hold different frames", case.name);
        assert_eq!(hex(&from_text.encode_to_vec()), case.protobuf_hex, "{}", case.name);
        assert_eq!(json(&from_bytes), case.json.get(), "{}", case.name);
    }
}

fn first_text<F: Frame>(text: &str) -> String {
    json(&decode_text::<F>(text.as_bytes(), LIMIT).expect("tolerated")[0])
}

fn first_message<F: Frame>(hex: &str) -> String {
    json(&decode_message::<F>(delimit(&unhex(hex)), LIMIT).expect("tolerated")[0])
}

fn delimit(message: &[u8]) -> bytes::Bytes {
    let mut delimited = Vec::new();
    prost::encode_length_delimiter(message.len(), &mut delimited).expect("vectors grow");
    delimited.extend_from_slice(message);
    delimited.into()
}

fn read<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(path(name)).expect("the vector file is there");
    serde_json::from_str(&text).expect(name)
}

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "vectors", name].iter().collect()
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("it holds checked JSON")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("text grows");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "half a byte in {text}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits"))
        .collect()
}

fn snake(camel: &str) -> String {
    let mut name = String::new();
    for (at, letter) in camel.char_indices() {
        if letter.is_uppercase() && at > 0 {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}
