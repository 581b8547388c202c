//! What the hub says of itself: one JSON object, as `docs/OPERATIONS.md` describes it.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tidegate_transport::clock;
use tokio::time::timeout;

use super::driver::Driver;
use super::machine::ConnectionId;

/// Its regions, with what every core that is connected says of itself.
pub(super) async fn gather(driver: &Rc<Driver>) -> Bytes {
    let (mut regions, asked) = views(driver);
    let answers = asked.into_iter().map(|(region, node, connection)| {
        let uplink = driver.uplink(connection);
        let answer = async move {
            let at = clock::now();
            let answer = timeout(ASK_WAIT, uplink?.ask(Bytes::from_static(STATUS))).await.ok()??;
            let answer: Value = serde_json::from_slice(&answer).ok()?;
            Some((answer, clock::now().saturating_duration_since(at)))
        };
        (region, node, tokio::task::spawn_local(answer))
    });
    // All of them are asked before any is waited for.
    for (region, node, answer) in answers.collect::<Vec<_>>() {
        let Ok(Some((answer, after))) = answer.await else { continue };
        if let Some(cores) = regions.get_mut(&region).and_then(|region| region.get_mut("cores")) {
            cores[&node] = answer;
        }
        let links = regions.get_mut(&region).and_then(|region| region["links"].as_array_mut());
        let link = links.and_then(|links| links.iter_mut().find(|link| link["node"] == *node));
        if let Some(link) = link {
            link["answered_in_ms"] = json!(after.as_secs_f64() * 1000.0);
        }
    }
    let ready = driver.machine.borrow().is_in_reach(clock::now());
    Bytes::from(json!({ "ready": ready, "regions": regions }).to_string())
}

/// A core that is connected: its region, its name, and over what.
type Reached = (String, String, ConnectionId);

fn views(driver: &Driver) -> (Map<String, Value>, Vec<Reached>) {
    let now = clock::now();
    let mut asked = Vec::new();
    let mut regions = Map::new();
    for links in driver.machine.borrow().regions() {
        let name = links.name().as_str().to_owned();
        // Before a core has said how many there are, there is nothing to tell of them.
        let views = if links.is_known() { links.partitions(now) } else { Vec::new() };
        let partitions: Vec<Value> = (0u16..)
            .zip(&views)
            .map(|(partition, view)| {
                json!({
                    "partition": partition,
                    "owner": view.owner.as_ref().map(|owner| owner.as_str()),
                    "term": view.term,
                    "linked": view.open_for.is_some(),
                    "linked_ms": view.open_for.map(millis),
                    "channels": view.channels,
                })
            })
            .collect();
        let mut connections = Vec::new();
        for core in links.cores(now) {
            let served =
                views.iter().filter(|view| view.connection.is_some() && view.connection == core.connection);
            let condition = core.connection.and_then(|connection| driver.uplink(connection)?.condition());
            connections.push(json!({
                "rtt_ms": condition.map(|condition| condition.round_trip.as_secs_f64() * 1000.0),
                "queued_bytes": condition.map(|condition| condition.queued),
                "lost_packets": condition.map(|condition| condition.lost_packets),
                "address": &*core.address,
                "node": core.node.as_ref().map(|node| node.as_str()),
                "state": core.state,
                "connected_ms": core.connected_for.map(millis),
                "partitions": served.count(),
            }));
            if let (Some(node), Some(connection)) = (core.node, core.connection) {
                asked.push((name.clone(), node.as_str().to_owned(), connection));
            }
        }
        let region = json!({
            "ready": links.is_in_reach(now),
            "partitions": partitions,
            "links": connections,
            "cores": {},
        });
        regions.insert(name, region);
    }
    (regions, asked)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What a core answers with its status to.
const STATUS: &[u8] = b"status";
const ASK_WAIT: Duration = Duration::from_secs(2);
