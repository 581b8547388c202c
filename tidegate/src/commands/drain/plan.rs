//! What a dry run shows.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::progress::{count, seconds};

/// As text.
pub(super) fn render(plan: &Value) -> String {
    let mut text = String::new();
    let list = |name: &str| plan[name].as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["node"].as_str().unwrap_or("?").to_owned();
    for drain in list("drains") {
        let targets: Vec<&str> = drain["targets"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let to =
            if targets.is_empty() { "nobody who could take them".to_owned() } else { targets.join(", ") };
        let _ = writeln!(text, "{}: {} sessions, to {to}", name(&drain), count(&drain, "sessions"));
    }
    for target in list("targets") {
        let who = name(&target);
        let _ = match target["slack"].as_u64() {
            Some(slack) => writeln!(
                text,
                "  {who} ({}) gets {}, has {}, and can take {slack}/s more than come now",
                target["region"].as_str().unwrap_or("?"),
                count(&target, "gets"),
                count(&target, "sessions"),
            ),
            None => writeln!(
                text,
                "  {who} gets {}; it is not of this fleet, and says nothing of its load",
                count(&target, "gets")
            ),
        };
    }
    let within = seconds(Duration::from_millis(count(plan, "within_ms")));
    let _ = match (plan["takes_ms"].as_u64(), plan["fits"] == true) {
        (Some(takes), fits) => writeln!(
            text,
            "{} at up to {:.0}/s take {} of {within}{}",
            count(plan, "sessions"),
            plan["rate"].as_f64().unwrap_or_default(),
            seconds(Duration::from_millis(takes)),
            if fits { "" } else { ": too long, the rest would be closed" },
        ),
        (None, true) => writeln!(text, "{} are spread over half of {within}", count(plan, "sessions")),
        (None, false) => writeln!(text, "nobody can take them: they would be closed within {within}"),
    };
    text.push_str("Nothing was done.\n");
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_says_who_goes_where_and_how_long_that_takes() {
        let plan = json!({
            "drains": [{"node": "edge-1", "region": "eu", "sessions": 4000, "targets": ["edge-2", "edge-3"]}],
            "targets": [
                {"node": "edge-2", "region": "eu", "sessions": 10, "slack": 100, "gets": 1000},
                {"node": "edge-3", "region": "eu", "sessions": 0, "slack": 300, "gets": 3000},
            ],
            "sessions": 4000, "rate": 320.0, "takes_ms": 12_500, "within_ms": 300_000, "fits": true,
        });
        let text = render(&plan);
        assert_eq!(
            text,
            "edge-1: 4000 sessions, to edge-2, edge-3\n  \
             edge-2 (eu) gets 1000, has 10, and can take 100/s more than come now\n  \
             edge-3 (eu) gets 3000, has 0, and can take 300/s more than come now\n\
             4000 at up to 320/s take 13s of 5m\nNothing was done.\n"
        );
        let nobody = json!({ "drains": [{"node": "a", "sessions": 2, "targets": []}], "within_ms": 1000, "fits": false });
        assert!(render(&nobody).contains("nobody can take them"), "{}", render(&nobody));
    }
}
