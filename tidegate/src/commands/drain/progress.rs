//! How far drains are, as the command shows it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

/// One node's drain, as it said last.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) node: String,
    pub(super) state: State,
    pub(super) total: u64,
    pub(super) moved: u64,
    pub(super) closed: u64,
    pub(super) forced: u64,
    pub(super) left: u64,
    pub(super) in_flight: u64,
    pub(super) remaining: u64,
    pub(super) rate: f64,
    pub(super) eta: Option<Duration>,
    pub(super) elapsed: Duration,
    pub(super) behind: bool,
    unannounced: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    LameDuck,
    Moving,
    Paused,
    Done,
    Aborted,
    /// Its process is gone, and had not said that it was done.
    Lost,
}

/// All that are waited for.
#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: BTreeMap<String, Row>,
    /// How often in a row nobody knew the node.
    missing: BTreeMap<String, u32>,
}

impl Rows {
    /// What an answer says; `expected` are to be in it.
    pub(super) fn handle_answer(&mut self, answer: &Value, expected: &[String]) {
        for drain in answer["drains"].as_array().into_iter().flatten() {
            if let Some(row) = Row::of(drain) {
                self.missing.remove(&row.node);
                self.rows.insert(row.node.clone(), row);
            }
        }
        let answered = |node: &String| {
            let drains = answer["drains"].as_array().into_iter().flatten();
            drains.into_iter().any(|drain| drain["node"] == **node)
        };
        for node in expected.iter().filter(|node| !answered(node)) {
            let missing = self.missing.entry(node.clone()).or_default();
            *missing += 1;
            if *missing >= LOST_AFTER
                && let Some(row) = self.rows.get_mut(node)
                && !row.is_over()
            {
                // Who ends once nobody is left may be gone before it was asked again.
                row.state = if row.remaining == 0 { State::Done } else { State::Lost };
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    pub(super) fn is_over(&self) -> bool {
        !self.rows.is_empty() && self.rows.values().all(Row::is_over)
    }

    /// All together.
    pub(super) fn total(&self) -> Row {
        let sum = |count: fn(&Row) -> u64| self.rows.values().map(count).sum();
        let states: Vec<State> = self.rows.values().map(|row| row.state).collect();
        let first = |state| states.contains(&state).then_some(state);
        let state = [State::Moving, State::LameDuck, State::Paused, State::Lost, State::Aborted]
            .into_iter()
            .find_map(first)
            .unwrap_or(State::Done);
        Row {
            node: "all".to_owned(),
            state,
            total: sum(|row| row.total),
            moved: sum(|row| row.moved),
            closed: sum(|row| row.closed),
            forced: sum(|row| row.forced),
            left: sum(|row| row.left),
            in_flight: sum(|row| row.in_flight),
            remaining: sum(|row| row.remaining),
            rate: self.rows.values().map(|row| row.rate).sum(),
            eta: self.rows.values().filter_map(|row| row.eta).max(),
            elapsed: self.rows.values().map(|row| row.elapsed).max().unwrap_or_default(),
            behind: self.rows.values().any(|row| row.behind),
            unannounced: Vec::new(),
        }
    }

    /// What the command says last.
    pub(super) fn summary(&self) -> String {
        let mut text = String::new();
        for row in self.rows.values() {
            text.push_str(&row.summary());
        }
        if self.rows.len() > 1 {
            text.push_str(&self.total().summary());
        }
        let drained: Vec<&str> =
            self.rows.values().filter(|row| row.state == State::Done).map(|row| row.node.as_str()).collect();
        if !drained.is_empty() {
            let flags: Vec<String> = drained.iter().map(|node| format!("--node {node}")).collect();
            text.push_str(&format!(
                "Drained: {}. No client is let in there before it is started again, or `tidegate drain abort {}`.\n",
                drained.join(", "),
                flags.join(" ")
            ));
        }
        text
    }

    /// What the process ends with.
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        let total = self.total();
        match total.state {
            State::Aborted => ABORTED,
            State::Lost => FORCED,
            _ if total.forced > 0 => FORCED,
            _ => 0,
        }
    }

    /// For `--json`, at the end.
    pub(super) fn json(&self) -> Value {
        let total = self.total();
        json!({
            "over": self.is_over(),
            "exit_code": self.code(),
            "nodes": self.rows.keys().collect::<Vec<_>>(),
            "total": total.total,
            "moved": total.moved,
            "closed": total.closed,
            "forced": total.forced,
            "left": total.left,
            "remaining": total.remaining,
            "elapsed_ms": u64::try_from(total.elapsed.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

impl Row {
    fn of(drain: &Value) -> Option<Self> {
        let list = drain["unannounced"].as_array().map(Vec::as_slice).unwrap_or_default();
        Some(Self {
            node: drain["node"].as_str()?.to_owned(),
            state: match drain["state"].as_str()? {
                "lame_duck" => State::LameDuck,
                "paused" => State::Paused,
                "done" => State::Done,
                "aborted" => State::Aborted,
                _ => State::Moving,
            },
            total: count(drain, "total"),
            moved: count(drain, "moved"),
            closed: count(drain, "closed"),
            forced: count(drain, "forced"),
            left: count(drain, "left"),
            in_flight: count(drain, "in_flight"),
            remaining: count(drain, "remaining"),
            rate: drain["rate"].as_f64().unwrap_or_default(),
            eta: drain["eta_ms"].as_u64().map(Duration::from_millis),
            elapsed: Duration::from_millis(count(drain, "elapsed_ms")),
            behind: drain["behind"] == true,
            unannounced: list.iter().filter_map(|place| Some(place.as_str()?.to_owned())).collect(),
        })
    }

    /// How many are gone.
    pub(super) fn gone(&self) -> u64 {
        self.total.saturating_sub(self.remaining)
    }

    /// Beside the bar.
    pub(super) fn details(&self) -> String {
        let mut parts = vec![format!("{} moved", self.moved)];
        for (count, what) in
            [(self.closed, "closed"), (self.forced, "closed by force"), (self.left, "left by themselves")]
        {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        match self.state {
            State::LameDuck => parts.push("telling others that it goes away".to_owned()),
            State::Paused => parts.push("paused".to_owned()),
            State::Done => parts.push("done".to_owned()),
            State::Aborted => parts.push(format!("called off, {} stay", self.remaining)),
            State::Lost => parts.push("the node is gone".to_owned()),
            State::Moving => {
                parts.push(format!("{} on their way", self.in_flight));
                parts.push(format!("{:.0}/s", self.rate));
                if let Some(eta) = self.eta {
                    parts.push(format!("{} left", seconds(eta)));
                }
            }
        }
        if self.behind {
            parts.push("BEHIND: at this pace the rest is closed at the deadline".to_owned());
        }
        if !self.unannounced.is_empty() {
            parts.push(format!("clients do not know {}", self.unannounced.join(", ")));
        }
        parts.join(", ")
    }

    /// Without a terminal.
    pub(super) fn line(&self) -> String {
        format!("{}: {} of {} gone: {}\n", self.node, self.gone(), self.total, self.details())
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Aborted | State::Lost)
    }

    fn summary(&self) -> String {
        let end = match self.state {
            State::Aborted => format!("called off, {} stay", self.remaining),
            State::Lost => format!("the node was gone before it was done; {} were there", self.remaining),
            _ => "done".to_owned(),
        };
        format!(
            "{}: {end} after {}: of {} connections {} moved, {} could only be closed, {} were closed by force, {} left by themselves\n",
            self.node,
            seconds(self.elapsed),
            self.total,
            self.moved,
            self.closed,
            self.forced,
            self.left,
        )
    }
}

pub(super) fn count(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_default()
}

/// Whole seconds, rounded up.
pub(super) fn seconds(time: Duration) -> String {
    let whole = time.as_secs() + u64::from(time.subsec_millis() > 0);
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

/// Answers without a node, before it is taken for gone: it may be too busy to answer one.
const LOST_AFTER: u32 = 5;
const FORCED: u8 = 3;
const ABORTED: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(drains: &[Value]) -> Value {
        json!({ "drains": drains })
    }

    fn drain(node: &str, state: &str, forced: u64, remaining: u64) -> Value {
        json!({
            "node": node, "state": state, "total": 100, "moved": 100 - forced - remaining, "closed": 0, "forced": forced,
            "left": 0, "in_flight": 3, "remaining": remaining, "rate": 40.0, "eta_ms": 1500, "elapsed_ms": 2500,
            "behind": false, "unannounced": [],
        })
    }

    fn rows(drains: &[Value]) -> Rows {
        let mut rows = Rows::default();
        rows.handle_answer(&answer(drains), &[]);
        rows
    }

    #[test]
    fn rows_say_what_there_is_to_say() {
        let moving = rows(&[drain("a", "moving", 0, 60)]);
        assert!(!moving.is_over());
        let line = moving.iter().next().expect("one").line();
        assert_eq!(line, "a: 40 of 100 gone: 40 moved, 3 on their way, 40/s, 2s left\n");
        let behind = rows(&[json!({"node": "a", "state": "moving", "behind": true})]);
        assert!(behind.iter().next().expect("one").line().contains("BEHIND"));
    }

    #[test]
    fn the_end_says_how_it_went() {
        for (drains, code) in [
            (vec![drain("a", "done", 0, 0)], 0),
            (vec![drain("a", "done", 2, 0), drain("b", "done", 0, 0)], FORCED),
            (vec![drain("a", "aborted", 0, 50), drain("b", "done", 0, 0)], ABORTED),
        ] {
            let rows = rows(&drains);
            assert!(rows.is_over());
            assert_eq!(rows.code(), code, "{drains:?}");
        }
        let summary = rows(&[drain("a", "done", 2, 0), drain("b", "aborted", 0, 7)]).summary();
        assert!(summary.contains("a: done after 3s: of 100 connections 98 moved"), "{summary}");
        assert!(summary.contains("b: called off, 7 stay") && summary.contains("--node a`"), "{summary}");
    }

    #[test]
    fn a_node_that_is_gone_is_not_waited_for() {
        let expected = ["a".to_owned(), "b".to_owned()];
        let mut rows = rows(&[drain("a", "moving", 0, 0), drain("b", "moving", 0, 9)]);
        for _ in 0..LOST_AFTER - 1 {
            rows.handle_answer(&answer(&[]), &expected);
        }
        assert!(!rows.is_over());
        rows.handle_answer(&answer(&[]), &expected);
        let states: Vec<State> = rows.iter().map(|row| row.state).collect();
        assert_eq!(states, [State::Done, State::Lost]);
        assert_eq!(rows.code(), FORCED);
    }
}
