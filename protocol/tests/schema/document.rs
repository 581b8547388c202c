//! `docs/PROTOCOL.md` says what the code says: its tables are the code's, its examples decode.

use std::collections::BTreeSet;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_protocol::frame::codec::{MAX_FRAMES_PER_MESSAGE, decode_text};
use tidegate_protocol::frame::{
    ClientFrame, CloseCode, ErrorCode, ReconnectPolicy, ServerFrame, StreamHeader,
};
use tidegate_protocol::{ChannelName, Epoch};

use crate::samples;

#[test]
fn close_codes_of_the_document_are_the_codes() {
    let document = document();
    let written: Vec<_> = table(&document, "| code | name | reconnect | when |")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].trim_matches('`').to_owned(), row[2].clone()))
        .collect();
    let in_code: Vec<_> = CloseCode::ALL
        .iter()
        .map(|code| (code.number().to_string(), code.name().to_owned(), code.policy().name().to_owned()))
        .collect();
    assert_eq!(written, in_code);
}

#[test]
fn ranges_of_unknown_close_codes_are_the_codes() {
    let unassigned = |numbers: std::ops::RangeInclusive<u32>| {
        numbers.filter(|number| CloseCode::from_number(*number).is_none()).map(CloseCode::policy_of)
    };
    let mut covered = BTreeSet::new();
    for row in table(&document(), "| from | to | reconnect |") {
        let range = row[0].parse().expect("a number")..=row[1].parse().expect("a number");
        let policy = ReconnectPolicy::from_name(&row[2]).expect("a policy");
        assert!(unassigned(range.clone()).all(|found| found == policy), "{row:?}");
        assert!(unassigned(range.clone()).count() > 0, "{row:?}");
        covered.extend(range);
    }
    let others = (0..10_000).filter(|number| !covered.contains(number));
    assert!(others.into_iter().all(|number| CloseCode::policy_of(number) == ReconnectPolicy::Backoff));
}

#[test]
fn error_codes_of_the_document_are_the_codes() {
    let document = document();
    let written: Vec<_> = table(&document, "| code | retry | when |")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let in_code: Vec<_> =
        ErrorCode::ALL.iter().map(|code| (code.number().to_string(), code.retry().to_string())).collect();
    assert_eq!(written, in_code);
}

#[test]
fn fixed_limits_of_the_document_are_the_codes() {
    let rows = table(&document(), "| what | limit | beyond it |");
    let limit = |what: &str| {
        let row =
            rows.iter().find(|row| row[0].starts_with(what)).unwrap_or_else(|| panic!("no row for {what}"));
        let digits: String = row[1].chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().expect("a number first")
    };
    assert_eq!(limit("channel name"), ChannelName::MAX_BYTES);
    assert_eq!(limit("epoch"), Epoch::MAX_BYTES);
    assert_eq!(limit("frames in one message"), MAX_FRAMES_PER_MESSAGE);
    assert_eq!(limit("close reason"), CloseCode::Internal.frame(&"x".repeat(1_000)).reason.len());
}

#[test]
fn examples_of_the_document_decode_and_show_every_frame() {
    let document = document();
    let mut client = BTreeSet::new();
    let mut server = BTreeSet::new();
    for (kind, line) in examples(&document) {
        match kind {
            "client" => {
                client.insert(samples::name_of_client_body(&frame::<ClientFrame>(line).body.expect(line)));
            }
            "client array" => {
                let frames = decode_text::<ClientFrame>(line.as_bytes(), line.len()).expect(line);
                assert!(frames.len() > 1, "{line}");
            }
            "server" => {
                server.insert(samples::name_of_server_body(&frame::<ServerFrame>(line).body.expect(line)));
            }
            "stream_header" => {
                frame::<StreamHeader>(line);
            }
            "http" => check_http(line),
            other => panic!("a ```json block is tagged client, server, stream_header or http, not `{other}`"),
        }
    }
    let all_client: BTreeSet<_> = samples::client()
        .iter()
        .map(|(_, frame)| samples::name_of_client_body(frame.body.as_ref().expect("samples have one")))
        .collect();
    let all_server: BTreeSet<_> = samples::server()
        .iter()
        .map(|(_, frame)| samples::name_of_server_body(frame.body.as_ref().expect("samples have one")))
        .collect();
    assert_eq!(client, all_client);
    assert_eq!(server, all_server);
}

#[test]
fn sections_are_numbered_and_references_find_them() {
    let document = document();
    let numbers: Vec<&str> = document
        .lines()
        .filter(|line| line.starts_with("## ") || line.starts_with("### "))
        .map(|line| {
            line.trim_start_matches('#').trim().split(' ').next().unwrap_or_default().trim_end_matches('.')
        })
        .collect();
    let chapters: Vec<&str> = numbers.iter().copied().filter(|number| !number.contains('.')).collect();
    assert_eq!(chapters, ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]);
    for reference in document.split('§').skip(1) {
        let number: String = reference.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let number = number.trim_end_matches('.');
        // A bare § heads a column.
        assert!(number.is_empty() || numbers.contains(&number), "§{number} is not a section");
    }
}

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md");
    std::fs::read_to_string(path).expect("docs/PROTOCOL.md is there")
}

/// The cells of the one table with this header row.
fn table(document: &str, header: &str) -> Vec<Vec<String>> {
    assert_eq!(document.lines().filter(|line| *line == header).count(), 1, "tables with the header {header}");
    let rows: Vec<Vec<String>> = document
        .lines()
        .skip_while(|line| *line != header)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "{header} has no rows");
    rows
}

/// The lines of every block that begins with "```json", each with what follows `json` on that line.
fn examples(document: &str) -> Vec<(&str, &str)> {
    let mut kind = None;
    let mut examples = Vec::new();
    for line in document.lines() {
        match (line.strip_prefix("```"), kind) {
            (Some(info), None) => kind = Some(info),
            (Some(_), Some(_)) => kind = None,
            (None, Some(info)) => examples.extend(info.strip_prefix("json").map(|kind| (kind.trim(), line))),
            (None, None) => {}
        }
    }
    examples
}

/// Decodes the example and insists that it is spelt as the code spells it: no unknown, no superfluous field.
fn frame<M: DeserializeOwned + Serialize>(line: &str) -> M {
    let message: M = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert_eq!(serde_json::to_string(&message).expect("serializes"), line);
    message
}

/// Bodies of HTTP requests and answers: JSON, and the frames in them are frames.
fn check_http(line: &str) {
    let body: serde_json::Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let from_client = body.get("batch").is_none();
    for item in body.get("frames").and_then(|frames| frames.as_array()).into_iter().flatten() {
        let text = item.to_string();
        if from_client {
            assert!(decode_text::<ClientFrame>(text.as_bytes(), text.len()).is_ok(), "{text}");
        } else {
            let frames = decode_text::<ServerFrame>(text.as_bytes(), text.len()).expect(&text);
            assert!(frames[0].body.is_some(), "{text}");
        }
    }
}
