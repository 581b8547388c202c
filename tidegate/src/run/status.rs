//! The answer to `GET /v1/status`: what cores and hub say of themselves, in one shape, as `docs/OPERATIONS.md` has it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::{Mode, Settings};

/// What a node is.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    node: String,
    region: String,
    role: &'static str,
}

impl Facts {
    pub(super) fn new(settings: &Settings, mode: Mode) -> Self {
        Self {
            node: settings.node_name(),
            region: settings.node.region.clone(),
            role: if mode == Mode::Dev { "serve" } else { mode.command() },
        }
    }
}

/// The whole answer. `said` is the core's own word, or the hub's with those of the cores that it reaches; `edges` are those of
/// the fleet, as this node knows them.
pub(super) fn describe(facts: &Facts, said: &Value, edges: Value, ready: bool) -> Value {
    let regions = match said["regions"].as_object() {
        Some(regions) => regions.iter().map(|(name, region)| by_hub(facts, name, region)).collect(),
        None => vec![by_core(facts, said)],
    };
    json!({
        "node": facts.node,
        "role": facts.role,
        "region": facts.region,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": ready,
        "edges": edges,
        "regions": regions,
    })
}

/// Names of the edges that a core says are linked to it.
pub(super) fn linked(core: &Value) -> Vec<String> {
    let mut names: Vec<String> =
        list(&core["links"]).iter().filter_map(|link| Some(link["node"].as_str()?.to_owned())).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A region as one core sees it: what it owns itself, and who owns the others.
fn by_core(facts: &Facts, core: &Value) -> Value {
    let mut nodes = nodes_of(core);
    let served = list(&core["partitions"]);
    if nodes.is_empty() {
        nodes.insert(facts.node.clone(), json!({ "id": facts.node, "partitions": served.len() }));
    }
    if let Some(own) = nodes.get_mut(&facts.node) {
        own["version"] = json!(env!("CARGO_PKG_VERSION"));
    }
    let mut partitions: BTreeMap<u64, Value> = BTreeMap::new();
    for (number, owner) in (0..).zip(list(&core["owners"])) {
        let mut entry = json!({ "partition": number, "owner": owner["owner"], "term": owner["term"] });
        add_next(&mut entry, owner, [core]);
        partitions.insert(number, entry);
    }
    for partition in served {
        let Some(number) = partition["partition"].as_u64() else { continue };
        let entry = partitions.entry(number).or_insert_with(|| json!({ "partition": number }));
        entry["owner"] = json!(facts.node);
        entry["term"] = partition["term"].clone();
        add_details(entry, partition);
    }
    let links: Vec<Value> = list(&core["links"]).iter().map(|link| link_to(&facts.node, link)).collect();
    let mut region = json!({
        "region": facts.region,
        "ready": core["ready"],
        "nodes": nodes.into_values().collect::<Vec<_>>(),
        "partitions": partitions.into_values().collect::<Vec<_>>(),
        "links": links,
    });
    add_engine(&mut region, &core["engine"]);
    region
}

/// A region as an edge sees it: its own links, and what the cores at their ends say.
fn by_hub(facts: &Facts, name: &str, region: &Value) -> Value {
    let nothing = Map::new();
    let cores = region["cores"].as_object().unwrap_or(&nothing);
    let mut nodes = BTreeMap::new();
    for core in cores.values() {
        nodes.extend(nodes_of(core));
    }
    for (id, core) in cores {
        let node = nodes.entry(id.clone()).or_insert_with(|| json!({ "id": id }));
        node["version"] = core["version"].clone();
        node["partitions"] = json!(list(&core["partitions"]).len());
    }
    // All cores of a region tell the same of its lease table, some a little earlier.
    let owners = cores.values().map(|core| list(&core["owners"])).find(|owners| !owners.is_empty());
    let partitions: Vec<Value> = (0..)
        .zip(list(&region["partitions"]))
        .map(|(number, partition): (usize, _)| {
            let mut entry = json!({
                "partition": partition["partition"],
                "owner": partition["owner"],
                "term": partition["term"],
                "linked": partition["linked"],
            });
            let owner = partition["owner"].as_str().and_then(|owner| cores.get(owner));
            let served = owner.map(|core| list(&core["partitions"])).unwrap_or_default();
            if let Some(served) = served.iter().find(|served| served["partition"] == partition["partition"]) {
                add_details(&mut entry, served);
            }
            if let Some(owner) = owners.and_then(|owners| owners.get(number)) {
                add_next(&mut entry, owner, cores.values());
            }
            entry
        })
        .collect();
    let mut links: Vec<Value> = list(&region["links"])
        .iter()
        .map(|link| {
            // What the core at its other end says of the same link.
            let core = link["node"].as_str().and_then(|core| cores.get(core));
            let seen = core.map(|core| list(&core["links"])).unwrap_or_default();
            let seen = seen.iter().find(|seen| seen["node"] == *facts.node).unwrap_or(&Value::Null);
            json!({
                "edge": facts.node,
                "core": link["node"],
                "address": link["address"],
                "up": !link["connected_ms"].is_null(),
                "state": link["state"],
                "partitions": link["partitions"],
                "rtt_ms": link["rtt_ms"],
                "answered_in_ms": link["answered_in_ms"],
                "to_core_bytes": link["queued_bytes"],
                "to_edge_bytes": seen["queued_bytes"],
                "lost_packets": link["lost_packets"],
            })
        })
        .collect();
    for (id, core) in cores {
        let others = list(&core["links"]).iter().filter(|link| link["node"] != *facts.node);
        links.extend(others.map(|link| link_to(id, link)));
    }
    let mut view = json!({
        "region": name,
        "ready": region["ready"],
        "nodes": nodes.into_values().collect::<Vec<_>>(),
        "partitions": partitions,
        "links": links,
    });
    let engine = cores.values().map(|core| &core["engine"]).find(|engine| engine.is_object());
    add_engine(&mut view, engine.unwrap_or(&Value::Null));
    view
}

/// Of the cluster, as a core knows it.
fn nodes_of(core: &Value) -> BTreeMap<String, Value> {
    let nodes = list(&core["nodes"]).iter().filter_map(|node| {
        let id = node["node"].as_str()?;
        let mut entry = json!({ "id": id });
        for field in ["address", "version", "started_ms", "partitions"] {
            entry[field] = node[field].clone();
        }
        if !list(&node["declines"]).is_empty() {
            entry["declines"] = node["declines"].clone();
        }
        Some((id.to_owned(), entry))
    });
    nodes.collect()
}

/// What only the owner knows.
fn add_details(entry: &mut Value, served: &Value) {
    // As clients see it in positions; a number would be too large for many readers of JSON.
    if let Some(epoch) = served["epoch"].as_u64() {
        entry["epoch"] = json!(format!("{epoch:x}"));
    }
    for field in
        ["tail", "lag", "queued", "channels", "interest", "append_p50_us", "append_p99_us", "refusing"]
    {
        if !served[field].is_null() {
            entry[field] = served[field].clone();
        }
    }
}

/// Who is to have the partition next, where somebody is, and how much of its log that node has still to read.
fn add_next<'a>(entry: &mut Value, owner: &Value, cores: impl IntoIterator<Item = &'a Value>) {
    let Some(next) = owner["next"].as_str() else { return };
    entry["next"] = json!(next);
    entry["next_ready"] = owner["next_ready"].clone();
    let Some(core) = cores.into_iter().find(|core| core["node"] == *next) else { return };
    let ahead = list(&core["ahead"]).iter().find(|ahead| ahead["partition"] == entry["partition"]);
    // The owner's own word on its tail, or the lease table's, which is a little older.
    let tail = entry["tail"].as_u64().or_else(|| owner["high_water"].as_u64());
    if let (Some(tail), Some(read)) = (tail, ahead.and_then(|ahead| ahead["read"].as_u64())) {
        entry["next_lag"] = json!(tail.saturating_sub(read));
    }
}

/// What keeps a region's logs, and what that can do.
fn add_engine(region: &mut Value, engine: &Value) {
    region["engine"] = engine["name"].clone();
    region["engine_version"] = engine["version"].clone();
    if engine.is_object() {
        let mut capabilities = Map::new();
        for field in ["durable", "replicated", "shared", "max_frame", "lease_ms"] {
            capabilities.insert(field.to_owned(), engine[field].clone());
        }
        region["capabilities"] = Value::Object(capabilities);
    }
}

/// An edge's link, as the core at its end tells.
fn link_to(core: &str, link: &Value) -> Value {
    json!({
        "edge": link["node"],
        "region": link["region"],
        "version": link["version"],
        "core": core,
        "address": link["address"],
        "up": true,
        "rtt_ms": link["rtt_ms"],
        "to_edge_bytes": link["queued_bytes"],
        "lost_packets": link["lost_packets"],
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(node: &str, role: &'static str) -> Facts {
        Facts { node: node.to_owned(), region: "eu".to_owned(), role }
    }

    fn core_says() -> Value {
        json!({
            "node": "core-1", "region": "eu", "version": "0.1.0", "ready": true,
            "engine": {"name": "nats", "version": "2.15.1", "durable": true, "replicated": true, "shared": true,
                "max_frame": 524288, "lease_ms": 3000},
            "partitions": [{
                "partition": 1, "term": 3, "epoch": 17, "tail": 40, "lag": 7, "channels": 5, "interest": 6,
                "append_p50_us": 700, "append_p99_us": null, "queued": 2, "refusing": false,
            }],
            "nodes": [
                {"node": "core-2", "address": "b:1", "version": "0.2.0", "started_ms": 5, "declines": [1], "partitions": 1},
                {"node": "core-1", "address": "a:1", "version": "0.1.0", "started_ms": 4, "declines": [], "partitions": 1},
            ],
            "owners": [
                {"owner": "core-2", "term": 9, "next": "core-1", "next_ready": false, "high_water": 30},
                {"owner": "core-1", "term": 3, "next": null, "next_ready": false, "high_water": 33},
            ],
            "declines": [], "ahead": [{"partition": 0, "read": 21}],
            "links": [{"node": "edge-2", "region": "us", "version": "0.1.0", "address": "c:1", "rtt_ms": 80.5,
                "queued_bytes": 12, "lost_packets": 3}],
        })
    }

    #[test]
    fn a_core_tells_of_its_own_partitions_and_who_has_the_others() {
        let status = describe(&facts("core-1", "core"), &core_says(), json!([]), true);
        let region = &status["regions"][0];
        assert_eq!((&status["role"], &region["engine"]), (&json!("core"), &json!("nats")));
        let own = &region["partitions"][1];
        assert_eq!((&own["owner"], &own["tail"], &own["lag"]), (&json!("core-1"), &json!(40), &json!(7)));
        assert_eq!((&own["queued"], &own["next"]), (&json!(2), &Value::Null));
        assert_eq!(own["epoch"], "11");
        let other = &region["partitions"][0];
        assert_eq!(
            (&other["owner"], &other["term"], &other["tail"]),
            (&json!("core-2"), &json!(9), &Value::Null)
        );
        // What it reads ahead, to have it next.
        assert_eq!((&other["next"], &other["next_lag"]), (&json!("core-1"), &json!(9)));
        assert_eq!(
            (&region["engine_version"], &region["capabilities"]["replicated"]),
            (&json!("2.15.1"), &json!(true))
        );
        assert_eq!(
            (&region["nodes"][1]["id"], &region["nodes"][1]["version"]),
            (&json!("core-2"), &json!("0.2.0"))
        );
        assert_eq!(
            (&region["nodes"][1]["declines"], &region["nodes"][0]["declines"]),
            (&json!([1]), &Value::Null)
        );
        assert_eq!(
            (&region["links"][0]["rtt_ms"], &region["links"][0]["to_edge_bytes"]),
            (&json!(80.5), &json!(12))
        );
        assert_eq!(
            (&region["links"][0]["edge"], &region["links"][0]["core"]),
            (&json!("edge-2"), &json!("core-1"))
        );
        assert_eq!(linked(&core_says()), ["edge-2"]);
    }

    #[test]
    fn an_edge_adds_what_the_cores_say_to_its_own_links() {
        let said = json!({"ready": true, "regions": {"eu": {
            "partitions": [
                {"partition": 0, "owner": "core-2", "term": 9, "linked": false, "channels": 1},
                {"partition": 1, "owner": "core-1", "term": 3, "linked": true, "channels": 1},
            ],
            "links": [
                {"address": "a:1", "node": "core-1", "connected_ms": 5, "partitions": 1, "answered_in_ms": 0.5,
                    "rtt_ms": 0.25, "queued_bytes": 7, "lost_packets": 0},
                {"address": "b:1", "node": null, "state": "dialling", "connected_ms": null, "partitions": 0},
            ],
            "cores": {"core-1": core_says()},
        }}});
        let status = describe(&facts("edge-1", "edge"), &said, json!([]), false);
        let region = &status["regions"][0];
        assert_eq!((&status["ready"], &region["region"]), (&json!(false), &json!("eu")));
        assert_eq!(
            (&region["partitions"][1]["tail"], &region["partitions"][1]["owner"]),
            (&json!(40), &json!("core-1"))
        );
        assert_eq!(region["partitions"][0]["tail"], Value::Null);
        let links: Vec<_> = list(&region["links"]).iter().map(|link| (&link["edge"], &link["up"])).collect();
        assert_eq!(
            links,
            [
                (&json!("edge-1"), &json!(true)),
                (&json!("edge-1"), &json!(false)),
                (&json!("edge-2"), &json!(true))
            ]
        );
        assert_eq!(region["nodes"][0]["version"], "0.1.0");
        assert_eq!((&region["engine"], &region["capabilities"]["lease_ms"]), (&json!("nats"), &json!(3000)));
        let link = &region["links"][0];
        assert_eq!((&link["rtt_ms"], &link["to_core_bytes"]), (&json!(0.25), &json!(7)));
        // The next owner's own word: 30 frames there are for certain, 21 are read.
        assert_eq!(region["partitions"][0]["next_lag"], 9);
    }

    #[test]
    fn a_region_that_does_not_answer_is_told_of_all_the_same() {
        let links = json!([{"address": "x:1", "node": null, "state": "dialling", "connected_ms": null}]);
        let said = json!({"ready": false, "regions": {"ap": {
            "ready": false, "partitions": [], "links": links, "cores": {},
        }}});
        let status = describe(&facts("edge-1", "edge"), &said, json!([]), false);
        let region = &status["regions"][0];
        assert_eq!((&region["region"], &region["ready"]), (&json!("ap"), &json!(false)));
        assert_eq!((&region["engine"], &region["capabilities"]), (&Value::Null, &Value::Null));
        assert_eq!(
            (&region["links"][0]["up"], &region["links"][0]["state"]),
            (&json!(false), &json!("dialling"))
        );
    }

    #[test]
    fn a_node_alone_is_its_own_region() {
        let said = json!({"partitions": [{"partition": 0, "term": 1, "epoch": 2, "tail": 0, "queued": 0}]});
        let status = describe(&facts("here", "serve"), &said, json!([]), true);
        let region = &status["regions"][0];
        assert_eq!(
            (&region["nodes"][0]["id"], &region["partitions"][0]["owner"]),
            (&json!("here"), &json!("here"))
        );
    }
}
