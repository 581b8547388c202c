//! What is asked of `/v1/drain`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use tidegate_protocol::endpoint::endpoint_of;
use tidegate_protocol::link::drain::{MAX_PLACE_BYTES, MAX_PLACES};

/// Whose clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Which {
    /// Those of the node that is asked.
    Here,
    Nodes(Vec<String>),
    Region(String),
    /// Those of everybody who is drained.
    All,
}

/// What `POST` takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) which: Which,
    /// Nodes, regions, or `https://host[:port]`.
    pub(super) to: Vec<String>,
    pub(super) within: Duration,
    /// Only says what it would do.
    pub(super) dry_run: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Body {
    #[serde(deserialize_with = "one_or_several")]
    node: Vec<String>,
    region: Option<String>,
    #[serde(deserialize_with = "one_or_several")]
    to: Vec<String>,
    /// Such as `30s`.
    within: Option<String>,
    dry_run: bool,
}

/// Reads a body.
pub(super) fn parse(body: &[u8]) -> Result<Order, String> {
    let Body { node, region, to, within, dry_run } =
        serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let which = match (node.is_empty(), region) {
        (true, None) => Which::Here,
        (false, None) => Which::Nodes(node),
        (true, Some(region)) => Which::Region(region),
        (false, Some(_)) => return Err("`node` or `region`, not both".to_owned()),
    };
    if to.len() > MAX_PLACES {
        return Err(format!("`to` can have {MAX_PLACES} at most"));
    }
    for place in &to {
        let is_address = place.contains(['/', ':']);
        if place.is_empty() || place.len() > MAX_PLACE_BYTES {
            return Err(format!("`to`: names have 1 to {MAX_PLACE_BYTES} bytes"));
        }
        if is_address && place.strip_prefix("https://").and_then(endpoint_of).is_none() {
            return Err(format!(
                "`to`: `{place}` is neither a node, nor a region, nor of the form https://host or https://host:port"
            ));
        }
    }
    let within = match within {
        None => DEFAULT_WITHIN,
        Some(text) => humantime::parse_duration(&text).map_err(|error| format!("`within`: {error}"))?,
    };
    if !(MIN_WITHIN..=MAX_WITHIN).contains(&within) {
        return Err("`within` is from 1s to 24h".to_owned());
    }
    Ok(Order { which, to, within, dry_run })
}

/// Reads a query: `node=..` as often as there are some, `region=..`, `all=true`, or nothing.
pub(super) fn which(query: &str) -> Result<Which, String> {
    let (mut nodes, mut region, mut all) = (Vec::new(), None, false);
    for (name, value) in url_pairs(query) {
        match name {
            "node" => nodes.push(value),
            "region" if region.is_none() => region = Some(value),
            "all" => all = value == "true",
            _ => return Err(format!("`{name}` is nothing that can be asked for: node, region, all")),
        }
    }
    if nodes.len() > MAX_NODES {
        return Err(format!("{MAX_NODES} nodes at most"));
    }
    match (nodes.is_empty(), region, all) {
        (true, None, false) => Ok(Which::Here),
        (false, None, false) => Ok(Which::Nodes(nodes)),
        (true, Some(region), false) => Ok(Which::Region(region)),
        (true, None, true) => Ok(Which::All),
        _ => Err("one of `node`, `region` and `all`".to_owned()),
    }
}

/// Names of nodes and regions need no escapes.
fn url_pairs(query: &str) -> impl Iterator<Item = (&str, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name, value.to_owned())
    })
}

fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Option::<Names>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Names::One(name)) => vec![name],
        Some(Names::Several(names)) => names,
    })
}

const MAX_NODES: usize = 64;
const DEFAULT_WITHIN: Duration = Duration::from_secs(300);
const MIN_WITHIN: Duration = Duration::from_secs(1);
const MAX_WITHIN: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read() {
        let order = parse(br#"{"to":["https://edge-2:4433"],"within":"30s"}"#).expect("well formed");
        let to = vec!["https://edge-2:4433".to_owned()];
        let within = Duration::from_secs(30);
        assert_eq!(order, Order { which: Which::Here, to, within, dry_run: false });
        let order = parse(br#"{"node":"edge-1","to":"us","dry_run":true}"#).expect("well formed");
        assert_eq!((order.which, order.to), (Which::Nodes(vec!["edge-1".to_owned()]), vec!["us".to_owned()]));
        assert!(order.dry_run);
        assert_eq!(parse(br#"{"region":"eu"}"#).expect("well formed").which, Which::Region("eu".to_owned()));
        assert_eq!(parse(b"{}").expect("all defaults").to, Vec::<String>::new());
        for (bad, what) in [
            (r#"{"to":["http://edge-2"]}"#, "https://host"),
            (r#"{"to":["https://edge-2/v1"]}"#, "https://host"),
            (r#"{"to":[""]}"#, "1 to"),
            (r#"{"node":"a","region":"b"}"#, "not both"),
            (r#"{"within":"0s"}"#, "1s"),
            (r#"{"within":"soon"}"#, "within"),
            (r#"{"from":[]}"#, "from"),
            ("", "EOF"),
        ] {
            let problem = parse(bad.as_bytes()).expect_err(bad);
            assert!(problem.contains(what), "{bad}: {problem}");
        }
    }

    #[test]
    fn queries_say_whose() {
        assert_eq!(which(""), Ok(Which::Here));
        assert_eq!(which("node=a&node=b"), Ok(Which::Nodes(vec!["a".to_owned(), "b".to_owned()])));
        assert_eq!(which("region=eu"), Ok(Which::Region("eu".to_owned())));
        assert_eq!(which("all=true"), Ok(Which::All));
        for bad in ["node=a&all=true", "node=a&region=b", "nodes=a", "region=a&region=b"] {
            assert!(which(bad).is_err(), "{bad}");
        }
    }
}
