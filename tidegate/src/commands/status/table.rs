//! The status of a cluster as text: sorted, aligned, no line longer than the terminal.

use std::fmt::Write as _;

use serde_json::Value;

/// All of it. What a node did not say is shown as `-`.
pub(super) fn render(status: &Value, width: usize) -> String {
    let mut out = String::new();
    let ready = if status["ready"] == Value::Bool(false) { "not ready" } else { "ready" };
    let head = format!(
        "{}: {} in region {}, version {}, {ready}",
        text(&status["node"]),
        text(&status["role"]),
        text(&status["region"]),
        text(&status["version"])
    );
    line(&mut out, &head, width);
    table(&mut out, EDGES, &sorted(&status["edges"], &["region", "node"]), width);
    for region in sorted(&status["regions"], &["region"]) {
        let engine = match &region["engine"] {
            Value::String(engine) => format!(", engine {}", engine_of(engine, region)),
            _ => String::new(),
        };
        let reach = if region["ready"] == Value::Bool(false) { " (NOT IN REACH)" } else { "" };
        let owned = list(&region["partitions"]).iter().filter(|partition| partition["owner"].is_string());
        let summary = format!(
            "Region {}{reach}{engine}: {} of {} partitions have an owner",
            text(&region["region"]),
            owned.count(),
            list(&region["partitions"]).len()
        );
        out.push('\n');
        line(&mut out, &summary, width);
        table(&mut out, NODES, &sorted(&region["nodes"], &["id"]), width);
        table(&mut out, PARTITIONS, &sorted(&region["partitions"], &["partition"]), width);
        table(&mut out, LINKS, &sorted(&region["links"], &["edge", "core"]), width);
    }
    out
}

/// Name, version, and what it promises.
fn engine_of(name: &str, region: &Value) -> String {
    let version = region["engine_version"].as_str().map(|version| format!(" {}", printable(version)));
    let promises = [("durable", "durable"), ("replicated", "replicated")];
    let promises = promises.iter().filter(|(field, _)| region["capabilities"][*field] == Value::Bool(true));
    let promises: Vec<&str> = promises.map(|(_, text)| *text).collect();
    let promises = if promises.is_empty() { String::new() } else { format!(" ({})", promises.join(", ")) };
    format!("{}{}{promises}", printable(name), version.unwrap_or_default())
}

/// A column: its title, the field it shows, how.
type Column = (&'static str, &'static str, Form);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Number,
    /// Milliseconds, with one decimal.
    Milliseconds,
    /// True or false.
    UpDown,
}

const EDGES: &[Column] = &[
    ("EDGE", "node", Form::Text),
    ("REGION", "region", Form::Text),
    ("SESSIONS", "sessions", Form::Number),
    ("RATE", "rate", Form::Number),
    ("SLACK", "slack", Form::Number),
    ("STATE", "state", Form::Text),
    ("DRAIN", "drain", Form::Number),
    ("AGE ms", "age_ms", Form::Number),
];

const NODES: &[Column] = &[
    ("NODE", "id", Form::Text),
    ("ADDRESS", "address", Form::Text),
    ("VERSION", "version", Form::Text),
    ("PARTITIONS", "partitions", Form::Number),
    ("DECLINES", "declines", Form::Text),
];

const PARTITIONS: &[Column] = &[
    ("PARTITION", "partition", Form::Number),
    ("OWNER", "owner", Form::Text),
    ("LINK", "linked", Form::UpDown),
    ("TERM", "term", Form::Number),
    ("EPOCH", "epoch", Form::Text),
    ("TAIL", "tail", Form::Number),
    ("LAG", "lag", Form::Number),
    ("QUEUED", "queued", Form::Number),
    ("NEXT", "next", Form::Text),
    ("NEXT LAG", "next_lag", Form::Number),
    ("CHANNELS", "channels", Form::Number),
    ("p99 us", "append_p99_us", Form::Number),
];

const LINKS: &[Column] = &[
    ("LINK OF", "edge", Form::Text),
    ("TO", "core", Form::Text),
    ("ADDRESS", "address", Form::Text),
    ("STATE", "up", Form::UpDown),
    ("RTT ms", "rtt_ms", Form::Milliseconds),
    ("TO CORE B", "to_core_bytes", Form::Number),
    ("TO EDGE B", "to_edge_bytes", Form::Number),
    ("PARTITIONS", "partitions", Form::Number),
];

fn table(out: &mut String, columns: &[Column], rows: &[&Value], width: usize) {
    if rows.is_empty() {
        return;
    }
    // What no row has (an edge does not know every tail) takes no room.
    let columns: Vec<&Column> =
        columns.iter().filter(|(_, field, _)| rows.iter().any(|row| !row[*field].is_null())).collect();
    let mut cells: Vec<Vec<String>> = vec![columns.iter().map(|(title, ..)| (*title).to_owned()).collect()];
    for row in rows {
        cells.push(columns.iter().map(|(_, field, form)| cell(&row[*field], *form)).collect());
    }
    let longest = |index: usize| cells.iter().map(|row| row[index].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns.len()).map(longest).collect();
    out.push('\n');
    for row in &cells {
        let mut text = String::from(INDENT);
        for (index, ((cell, width), (_, _, form))) in row.iter().zip(&widths).zip(&columns).enumerate() {
            let gap = if index == 0 { "" } else { "  " };
            let _ = match form {
                Form::Number | Form::Milliseconds => write!(text, "{gap}{cell:>width$}"),
                Form::Text | Form::UpDown => write!(text, "{gap}{cell:<width$}"),
            };
        }
        line(out, &text, width);
    }
}

fn cell(value: &Value, form: Form) -> String {
    match (form, value) {
        (Form::Milliseconds, Value::Number(number)) => {
            number.as_f64().map_or_else(|| NOTHING.to_owned(), |number| format!("{number:.1}"))
        }
        (Form::UpDown, Value::Bool(true)) => "up".to_owned(),
        (Form::UpDown, Value::Bool(false)) => "DOWN".to_owned(),
        _ => cut(&text(value), MAX_CELL),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

/// Names come from other machines: nothing of them may steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn sorted<'a>(value: &'a Value, by: &[&str]) -> Vec<&'a Value> {
    let mut rows: Vec<&Value> = list(value).iter().collect();
    rows.sort_by_cached_key(|row| {
        by.iter().map(|field| (row[*field].as_u64(), text(&row[*field]))).collect::<Vec<_>>()
    });
    rows
}

fn line(out: &mut String, text: &str, width: usize) {
    out.push_str(&cut(text.trim_end(), width));
    out.push('\n');
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

const INDENT: &str = "  ";
const NOTHING: &str = "-";
const MAX_CELL: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"{
        "node": "edge-us-1", "role": "edge", "region": "us", "version": "0.1.0", "ready": true,
        "edges": [
            {"node": "edge-us-1", "region": "us", "sessions": 120, "rate": 1000, "slack": 960, "state": "serving",
             "drain": null, "age_ms": 12, "endpoints": ["quic://e:1"]},
            {"node": "edge-eu-1", "region": "eu", "sessions": 7, "rate": 500, "slack": 0, "state": "draining",
             "drain": 3, "age_ms": 1250, "endpoints": []}
        ],
        "regions": [{
            "region": "eu", "engine": "nats",
            "nodes": [
                {"id": "core-2", "address": "10.0.0.2:4455", "version": "0.1.0", "partitions": 1},
                {"id": "core-1", "address": "10.0.0.1:4455", "version": null, "partitions": 1}
            ],
            "partitions": [
                {"partition": 10, "owner": null, "term": 4},
                {"partition": 2, "owner": "core-1", "term": 3, "epoch": "11", "tail": 120411, "lag": 7, "channels": 1204},
                {"partition": 0, "owner": "core-2", "term": 12, "epoch": "ab", "tail": 9, "lag": 0, "channels": 3}
            ],
            "links": [
                {"edge": "edge-us-1", "core": "core-2", "address": "10.0.0.2:4455", "up": false, "rtt_ms": null, "partitions": 0},
                {"edge": "edge-us-1", "core": "core-1", "address": "10.0.0.1:4455", "up": true, "rtt_ms": 81.25, "partitions": 1}
            ]
        }]
    }"#;

    #[test]
    fn a_status_is_a_sorted_and_aligned_table() {
        let status = serde_json::from_str(SAMPLE).expect("valid");
        let expected = "\
edge-us-1: edge in region us, version 0.1.0, ready

  EDGE       REGION  SESSIONS  RATE  SLACK  STATE     DRAIN  AGE ms
  edge-eu-1  eu             7   500      0  draining      3    1250
  edge-us-1  us           120  1000    960  serving       -      12

Region eu, engine nats: 2 of 3 partitions have an owner

  NODE    ADDRESS        VERSION  PARTITIONS
  core-1  10.0.0.1:4455  -                 1
  core-2  10.0.0.2:4455  0.1.0             1

  PARTITION  OWNER   TERM  EPOCH    TAIL  LAG  CHANNELS
          0  core-2    12  ab          9    0         3
          2  core-1     3  11     120411    7      1204
         10  -          4  -           -    -         -

  LINK OF    TO      ADDRESS        STATE  RTT ms  PARTITIONS
  edge-us-1  core-1  10.0.0.1:4455  up       81.2           1
  edge-us-1  core-2  10.0.0.2:4455  DOWN        -           0
";
        assert_eq!(render(&status, 120), expected);
    }

    #[test]
    fn engines_hand_overs_and_queues_are_shown_where_there_are_any() {
        let status: Value = serde_json::from_str(
            r#"{"node": "edge-1", "role": "edge", "region": "us", "version": "0.1.0", "ready": false, "regions": [
                {"region": "ap", "ready": false, "engine": null, "partitions": [],
                 "links": [{"edge": "edge-1", "core": null, "address": "c:1", "up": false}]},
                {"region": "eu", "ready": true, "engine": "nats", "engine_version": "2.15.1",
                 "capabilities": {"durable": true, "replicated": true},
                 "nodes": [{"id": "core-1", "partitions": 1, "declines": [3]}],
                 "partitions": [{"partition": 0, "owner": "core-1", "linked": true, "term": 3, "tail": 40, "lag": 7,
                                 "queued": 2, "next": "core-2", "next_lag": 9}],
                 "links": [{"edge": "edge-1", "core": "core-1", "up": true, "rtt_ms": 0.25, "to_core_bytes": 7,
                            "to_edge_bytes": 12}]}]}"#,
        )
        .expect("valid");
        let expected = "\
edge-1: edge in region us, version 0.1.0, not ready

Region ap (NOT IN REACH): 0 of 0 partitions have an owner

  LINK OF  ADDRESS  STATE
  edge-1   c:1      DOWN

Region eu, engine nats 2.15.1 (durable, replicated): 1 of 1 partitions have an owner

  NODE    PARTITIONS  DECLINES
  core-1           1  [3]

  PARTITION  OWNER   LINK  TERM  TAIL  LAG  QUEUED  NEXT    NEXT LAG
          0  core-1  up       3    40    7       2  core-2         9

  LINK OF  TO      STATE  RTT ms  TO CORE B  TO EDGE B
  edge-1   core-1  up        0.2          7         12
";
        assert_eq!(render(&status, 120), expected);
    }

    #[test]
    fn no_line_is_longer_than_the_terminal() {
        let status = serde_json::from_str(SAMPLE).expect("valid");
        let shown = render(&status, 40);
        assert!(shown.lines().all(|line| line.chars().count() <= 40), "{shown}");
        assert!(shown.contains('…'));
    }

    #[test]
    fn what_a_node_did_not_say_takes_no_room_and_control_characters_are_harmless() {
        let status: Value = serde_json::from_str(
            r#"{"node":"a\u001b[2J","regions":[{"region":"eu","partitions":[{"partition":0,"owner":"x"}]}]}"#,
        )
        .expect("valid");
        let shown = render(&status, 120);
        assert!(!shown.contains('\u{1b}') && shown.starts_with("a?[2J: - in region -"), "{shown}");
        assert!(
            shown.contains("PARTITION  OWNER\n") && !shown.contains("TAIL") && !shown.contains("NODE"),
            "{shown}"
        );
    }
}
