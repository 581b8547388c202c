//! An edge is drained: its clients go to another one, and neither they nor those who watch them notice.

mod ends;
mod orders;
mod outside;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use serde_json::{Value, json};
use tidegate_client::{Client, ClientEvent, Payload};
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::clients::{Collector, Native, from_heads, native};
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec, HOME};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{get, post, send};
use tidegate_interop_tests::raw::{Carrier, Raw};
use tidegate_interop_tests::wait::{PATIENCE, until, within};
use tokio::task::JoinSet;

use super::real::presence::{CONFIG, Person, listed};
use super::watch::Watch;

const ROOM: &str = "room:1";
const EACH: usize = 6;
/// In the largest of these tests.
const MANY: usize = 60;

pub(super) fn spec(edges: usize) -> ClusterSpec {
    ClusterSpec {
        nats: 0,
        engine: "memory",
        cores: 1,
        partitions: 4,
        edges: vec![HOME; edges],
        config: CONFIG
            .replace("presence_users = 4", "presence_users = 1000")
            .replace("[namespaces.default]\n", "[namespaces.default]\nhistory_count = 10000\n"),
        ..ClusterSpec::default()
    }
}

/// Starts it; returns when every edge knows of all.
async fn start(spec: ClusterSpec) -> Result<Cluster> {
    let cluster = Cluster::start(spec).await?;
    for edge in &cluster.edges {
        until("every edge knows of all", || async {
            let status = edge.status_json().await?;
            ensure!(status["edges"].as_array().map(Vec::len) == Some(cluster.edges.len()), "{status}");
            Ok(())
        })
        .await?;
    }
    Ok(cluster)
}

fn endpoint(edge: &Gateway) -> String {
    format!("https://{}", edge.addresses.tls)
}

/// The same, so slow to let clients in that something can happen meanwhile.
fn slow(edges: Vec<&'static str>) -> ClusterSpec {
    let spec = spec(0);
    ClusterSpec { edges, config: format!("{}[admission]\nrate = 12\n", spec.config), ..spec }
}

/// Begins a drain; what it answers.
async fn drain(edge: &Gateway, to: &[String], within: &str) -> Result<Value> {
    ordered(edge.addresses.api, &json!({ "to": to, "within": within })).await
}

/// The same at any node, whatever the order.
async fn ordered(api: SocketAddr, order: &Value) -> Result<Value> {
    let answer = send(api, None, post("/v1/drain", order.to_string())).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(answer.json())
}

async fn drained(edge: &Gateway) -> Result<Value> {
    until("the edge is empty", || async {
        let progress = edge.api(get("/v1/drain")).await?.json();
        ensure!(progress["drain"]["done"] == true && progress["drain"]["remaining"] == 0, "{progress}");
        Ok(progress["drain"].clone())
    })
    .await
}

/// How many went by themselves. What the client says may come before what the core says of its resume.
fn gone(progress: &Value) -> Result<usize> {
    let count = |name: &str| progress[name].as_u64().context("a count");
    Ok(usize::try_from(count("moved")? + count("left")?)?)
}

/// All connections of an edge.
async fn connections(edge: &Gateway) -> Result<f64> {
    let metrics = edge.metrics().await?;
    let of_connections = metrics.iter().filter(|(name, _)| name.starts_with("tidegate_edge_connections{"));
    Ok(of_connections.map(|(_, count)| count).sum())
}

/// Clients of the SDK on every transport, each of a user of its own.
async fn crowd(edge: &Gateway) -> Result<Vec<Collector<Native>>> {
    crowd_of(edge, &["quic", "webtransport", "wss", "https"], EACH).await
}

async fn crowd_of(edge: &Gateway, schemes: &[&str], each: usize) -> Result<Vec<Collector<Native>>> {
    let wishes = from_heads(&[ROOM]);
    let mut crowd = Vec::new();
    for scheme in schemes {
        for n in 0..each {
            let token = edge.token(&["--user", &format!("{scheme}-{n}")]).await?;
            crowd.push(Collector::begin(native(edge, scheme, Some(token), &wishes).await?, &wishes).await?);
        }
    }
    Ok(crowd)
}

/// Everybody publishes, and so does the backend of `edge`, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    tasks: JoinSet<Result<()>>,
}

impl Load {
    /// By some of each transport, so that not everything is load.
    fn of(crowd: &mut [Collector<Native>], edge: &Gateway) -> Self {
        let some = crowd.len().div_ceil(PUBLISHERS);
        let publishers = crowd.iter_mut().step_by(some).map(|each| each.subscriber().client.clone());
        let pause = PAUSE * u32::try_from(some).unwrap_or(1);
        Self::begin(publishers.collect(), edge.addresses.api, pause)
    }

    fn begin(publishers: Vec<Client>, api: SocketAddr, pause: Duration) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for (index, client) in publishers.into_iter().enumerate() {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let payload = Payload::Json(Bytes::from(index.to_string()));
                    client.publish(ROOM, payload).await.with_context(|| format!("publisher {index}"))?;
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                }
                Ok(())
            });
        }
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        tasks.spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let body = json!({ "channel": ROOM, "data": "from the backend" }).to_string();
                let request: http::Request<Full<Bytes>> = post("/v1/publish", body);
                let answer = send(api, None, request).await?;
                ensure!(answer.status == 200, "{}", answer.text());
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(pause).await;
            }
            Ok(())
        });
        Self { stop, acknowledged, tasks }
    }

    /// How many were acknowledged.
    async fn end(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(self.acknowledged.load(Ordering::Relaxed))
    }
}

/// Each has everything, in order, without having begun anew.
async fn have_all(crowd: &mut [Collector<Native>], published: usize) -> Result<()> {
    for collector in crowd {
        collector.collect(published).await?;
        ensure!(collector.rebased.is_empty(), "{} was rebased", collector.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_on_every_transport_move_to_another_edge_and_nobody_notices() -> Result<()> {
    let cluster = start(spec(2)).await?;
    let [from, to] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    let mut watcher = Person::join(to, Carrier::WebSocket, Some("kim"), ROOM, true).await?;
    watcher.hears(&["+kim"]).await?;
    let mut crowd = crowd_of(from, &["quic", "wss", "https"], MANY).await?;
    let count = crowd.len();
    let watch = Watch::begin(watcher, count).await?;
    let before = listed(to, ROOM).await?;
    let load = Load::of(&mut crowd, to);
    let progress = drain(from, &[endpoint(to)], "60s").await?;
    ensure!(progress["draining"] == true && progress["drain"]["unannounced"] == json!([]), "{progress}");
    ensure!(from.api(get("/readyz")).await?.status == 503, "it is not to get new clients");
    let progress = drained(from).await?;
    let published = load.end().await?;
    ensure!(gone(&progress)? == count && progress["closed"] == 0 && progress["forced"] == 0, "{progress}");
    ensure!(published > PUBLISHERS, "there was no load: {published}");
    have_all(&mut crowd, published).await?;
    ensure!(connections(from).await? == 0.0);
    until("all of them at the other edge", || async {
        let there = connections(to).await?;
        ensure!(there == count as f64 + 1.0, "{there}");
        Ok(())
    })
    .await?;
    until("everybody counts once again", || async {
        let listed = listed(to, ROOM).await?;
        ensure!(listed == before, "{listed}");
        Ok(())
    })
    .await?;
    watch.end(to, ROOM).await?;
    let stopped = from.api(http::Request::delete("/v1/drain").body(Full::default())?).await?.json();
    ensure!(stopped["draining"] == false && from.api(get("/readyz")).await?.status == 200, "{stopped}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_drains_at_once_lead_everybody_to_the_third_edge() -> Result<()> {
    let cluster = start(spec(3)).await?;
    let [first, second, third] = &cluster.edges[..] else { anyhow::bail!("three edges") };
    let mut crowd = crowd(first).await?;
    let load = Load::of(&mut crowd, third);
    drain(second, &[], "20s").await?;
    drain(first, &[], "20s").await?;
    drained(first).await?;
    until("all of them at the third edge", || async {
        let there = connections(third).await?;
        let left = connections(first).await? + connections(second).await?;
        ensure!(there == crowd.len() as f64 && left == 0.0, "{there} there, {left} left");
        Ok(())
    })
    .await?;
    let published = load.end().await?;
    have_all(&mut crowd, published).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_go_nowhere_that_they_were_not_told_of_and_old_ones_are_closed() -> Result<()> {
    let cluster = start(spec(1)).await?;
    let edge = &cluster.edges[0];
    // Somebody listens there, and would see them come.
    let trap = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let forged = format!("https://{}", trap.local_addr()?);
    let mut clients = Vec::new();
    for scheme in ["wss", "https"] {
        let client = Client::builder(edge.url(scheme)).with_ca_file(edge.ca_file()).connect().await?;
        let events = client.take_events().context("events")?;
        clients.push((client, events));
    }
    let mut old = Raw::connect(edge, Carrier::WebSocket).await?;
    let progress = drain(edge, std::slice::from_ref(&forged), "10s").await?;
    ensure!(progress["drain"]["unannounced"] == json!([forged]), "{progress}");
    for (client, events) in &mut clients {
        let ignored = async {
            while let Some(event) = events.next().await {
                if let ClientEvent::GoawayIgnored { endpoint } = event {
                    return Some(endpoint);
                }
                if let ClientEvent::Leaving { .. } | ClientEvent::Moved { .. } = event {
                    return None;
                }
            }
            None
        };
        ensure!(within(PATIENCE, "the event", ignored).await? == Some(forged.clone()));
        client.publish(ROOM, Payload::Json(Bytes::from_static(b"1"))).await?;
    }
    // This one follows nothing, and is closed when its time is over.
    let frame = old.frame().await?;
    ensure!(frame["goaway"]["endpoint"] == forged && frame["goaway"]["deadline_ms"] == 0, "{frame}");
    let end = old.end().await?;
    ensure!(end.frame == 4100, "{end:?}");
    let came = tokio::time::timeout(Duration::ZERO, trap.accept()).await;
    ensure!(came.is_err(), "somebody came to the forged place");
    edge.api(http::Request::delete("/v1/drain").body(Full::default())?).await?;
    Ok(())
}

/// Runs in a page: a client by each transport, which publish until they have moved.
const MOVES: &str = r#"
    const { Client } = await import("/sdk/index.js");
    const clients = ["webtransport", "websocket", "longpoll"].map((name) => {
        const client = new Client(URL_OF_EDGE, { transports: [name], certificateHashes: [HASH], storage: null });
        const seen = { name, offsets: [], how: [], moves: [], disconnected: [], errors: [] };
        client.on("moved", ({ from, to, node, resumed }) => seen.moves.push({ from, to, node, resumed }));
        client.on("disconnected", ({ reason }) => seen.disconnected.push(reason));
        client.on("error", ({ message }) => seen.errors.push(message));
        client.subscribe("room:1", {
            onSubscribed: ({ how }) => seen.how.push(how),
            onPublication: ({ offset }) => seen.offsets.push(offset),
        });
        return { client, seen };
    });
    await Promise.all(clients.map(({ client }) => client.connect()));
    await Promise.all(clients.map(({ client }) => client.subscriptions.get("room:1").ready()));
    globalThis.clients = clients;
    globalThis.isTalking = true;
    const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    globalThis.talking = clients.map(async ({ client }) => {
        let count = 0;
        for (; globalThis.isTalking; count += 1) {
            await client.publish("room:1", { count });
            await pause(5);
        }
        return count;
    });
    return clients.map(({ client }) => client.transport);
"#;

const REPORT: &str = r#"
    globalThis.isTalking = false;
    const published = (await Promise.all(globalThis.talking)).reduce((sum, count) => sum + count, 0);
    const all = globalThis.clients.map(({ seen }) => seen);
    // The last of them are on their way.
    for (let round = 0; round < 1_000 && all.some(({ offsets }) => offsets.length < published); round += 1) {
        await new Promise((resolve) => setTimeout(resolve, 10));
    }
    return { published, all };
"#;

#[tokio::test(flavor = "multi_thread")]
async fn browsers_move_to_another_edge_by_each_transport() -> Result<()> {
    let cluster = start(spec(2)).await?;
    let [from, to] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    let (browser, page) = Browser::inside().await?;
    browser.open("moves", &page).await?;
    let hash = from.facts().await?["certificate_hash"].clone();
    let script = MOVES.replace("URL_OF_EDGE", &json!(endpoint(from)).to_string());
    let used = browser.evaluate("moves", &script.replace("HASH", &hash.to_string())).await?;
    ensure!(used == json!(["webtransport", "websocket", "longpoll"]), "{used}");
    drain(from, &[endpoint(to)], "20s").await?;
    let progress = drained(from).await?;
    let report = browser.evaluate("moves", REPORT).await?;
    ensure!(gone(&progress)? == 3 && progress["closed"] == 0, "{progress}: {report}");
    let published = report["published"].as_u64().context("a number")?;
    ensure!(published > 20, "there was no load: {published}");
    for seen in report["all"].as_array().context("all")? {
        let offsets: Vec<u64> = serde_json::from_value(seen["offsets"].clone())?;
        ensure!(offsets == (1..=published).collect::<Vec<_>>(), "of {published}: {seen}");
        let name = &seen["name"];
        let moves = json!([{ "from": name, "to": name, "node": "edge-2", "resumed": true }]);
        ensure!(seen["moves"] == moves && seen["how"] == json!(["begun"]), "{seen}");
        ensure!(seen["disconnected"] == json!([]) && seen["errors"] == json!([]), "{seen}");
    }
    Ok(())
}

/// At once.
const PUBLISHERS: usize = 18;
/// Between the publications of each; of more clients than publishers, as much longer.
const PAUSE: Duration = Duration::from_millis(20);
