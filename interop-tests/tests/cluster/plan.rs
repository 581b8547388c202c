//! An edge dies, and its clients come back to another one as its plan had told them: each at its own time. And connections
//! that have grown old are renewed, which nobody notices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tidegate_client::{Client, ClientEvent, Events, Payload, Subscription, SubscriptionEvent};
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::post;
use tidegate_interop_tests::raw::{Carrier, Greeting, Raw, Received};
use tidegate_interop_tests::wait::{PATIENCE, until, within};
use tidegate_transport::clock;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::drain::spec;
use super::real::presence::Person;
use super::watch::Watch;

const ROOM: &str = "room:1";
/// Clients per second that each edge takes, and how many there are on each transport.
const RATE: u32 = 40;
const EACH: usize = 34;

/// Two edges; clients hear of another plan within two seconds, and of a silent server within four.
fn quick(rate: u32) -> ClusterSpec {
    let spec = spec(2);
    let limits = format!("[admission]\nrate = {rate}\n[limits]\nping = \"2s\"\npong = \"1s\"\n");
    ClusterSpec { config: format!("{}{limits}", spec.config), ..spec }
}

fn endpoint(edge: &Gateway) -> String {
    format!("https://{}", edge.addresses.tls)
}

async fn publish(edge: &Gateway, data: &Value) -> Result<()> {
    let body = json!({ "channel": ROOM, "data": data }).to_string();
    let answer = edge.api(post("/v1/publish", body)).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(())
}

/// Waits until clients of this edge are told of so long a window, and everybody has been: a client that is pinged as all
/// others are hears of it, then once more.
async fn told_of(edge: &Gateway, window: u64) -> Result<Value> {
    let told = async {
        let (mut raw, connected) =
            Raw::connect_as(edge, Carrier::WebSocket, &Greeting::default(), None).await?;
        let mut plan = connected["plan"].clone();
        let mut pings = 0;
        while pings < 2 {
            let Received::Frame(frame) = raw.recv().await? else { bail!("closed") };
            ensure!(!frame["ping"].is_null(), "{frame}");
            raw.send(&json!({ "pong": {} })).await?;
            if !frame["ping"]["plan"].is_null() {
                ensure!(frame["ping"]["plan"]["rank"] == plan["rank"], "another rank: {frame}");
                plan = frame["ping"]["plan"].clone();
            }
            pings += usize::from(plan["node_ms"].as_u64().context("a window")? >= window);
        }
        anyhow::Ok(plan)
    };
    within(PATIENCE, "a window as long as is needed", told).await?
}

/// A client that lost its server, and has another.
struct Back {
    scheme: &'static str,
    node: String,
    resumed: bool,
    lost: Instant,
    back: Instant,
}

/// Follows a client until the last publication, each the next of the one before; the last one's offset.
async fn follow(
    scheme: &'static str,
    client: Client,
    mut events: Events,
    mut room: Subscription,
    backs: mpsc::Sender<Back>,
) -> Result<u64> {
    let (mut lost, mut last) = (None, None);
    loop {
        tokio::select! {
            event = events.next() => match event.context("the client ended")? {
                ClientEvent::Disconnected { .. } => lost = lost.or_else(|| Some(clock::now())),
                ClientEvent::Connected { node, resumed, .. } => {
                    if let Some(lost) = lost.take() {
                        let back = clock::now();
                        backs.send(Back { scheme, node, resumed, lost, back }).await?;
                    }
                }
                _ => {}
            },
            event = room.next() => match event.context("the subscription ended")? {
                SubscriptionEvent::Publication(publication) => {
                    let offset = publication.position.offset.0;
                    ensure!(last.is_none_or(|last| offset == last + 1), "{scheme}: {offset} after {last:?}");
                    last = Some(offset);
                    if publication.payload == Payload::Json(Bytes::from_static(b"\"end\"")) {
                        client.close().await;
                        return Ok(offset);
                    }
                }
                SubscriptionEvent::Rebased { .. } => bail!("{scheme}: rebased"),
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_edges_clients_come_back_as_planned() -> Result<()> {
    let mut cluster = Cluster::start(quick(RATE)).await?;
    let mut dying = cluster.edges.remove(0);
    let other = Arc::new(cluster.edges.remove(0));
    let (backs, mut back) = mpsc::channel(1024);
    let mut following = JoinSet::new();
    for n in 0..EACH {
        for scheme in ["quic", "wss", "https"] {
            let client = Client::builder(dying.url(scheme)).with_ca_file(dying.ca_file());
            let client = client.connect().await.with_context(|| format!("{scheme} {n}"))?;
            let events = client.take_events().context("events")?;
            let room = client.subscribe(ROOM).await?;
            following.spawn(follow(scheme, client, events, room, backs.clone()));
            // As many a second as are let in.
            tokio::time::sleep(Duration::from_secs(1) / RATE).await;
        }
    }
    drop(backs);
    let count = 3 * EACH;
    let window = (count as f64 / (0.95 * f64::from(RATE)) * 1000.0) as u64;
    let plan = told_of(&dying, window * 3 / 4).await?;
    let hosts: Vec<&str> = plan["alternatives"]
        .as_array()
        .context("alternatives")?
        .iter()
        .filter_map(|one| one["host"].as_str())
        .collect();
    let (own, there) = (dying.addresses.tls.to_string(), other.addresses.tls.to_string());
    ensure!(hosts == [own.as_str(), there.as_str()], "{plan}");
    ensure!(plan["alternatives"][0]["weight"] == 0 && plan["alternatives"][1]["weight"] != 0, "{plan}");

    let publishing = Arc::clone(&other);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut load = JoinSet::new();
    load.spawn(async move {
        let mut stopped = stopped;
        while stopped.try_recv().is_err() {
            publish(&publishing, &json!("meanwhile")).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        publish(&publishing, &json!("end")).await
    });
    dying.kill().await?;
    let killed = clock::now();
    let mut all = Vec::new();
    let gather = async {
        while all.len() < count {
            all.push(back.recv().await.context("all clients ended")?);
        }
        anyhow::Ok(())
    };
    within(PATIENCE, "all of them back", gather).await??;
    let _over = stop.send(());
    while let Some(ended) = within(PATIENCE, "the load", load.join_next()).await? {
        ended??;
    }
    while let Some(ended) = within(PATIENCE, "everything that was published", following.join_next()).await? {
        ended??;
    }

    let latest = all.iter().map(|back| back.back - killed).max().context("a client")?;
    let wait = |back: &Back| back.back - back.lost;
    let longest = all.iter().map(wait).max().context("a client")?;
    println!("{count} back after {latest:?}, {longest:?} after they had noticed; the window is {window} ms");
    for scheme in ["quic", "wss", "https"] {
        let mut waits: Vec<_> =
            all.iter().filter(|back| back.scheme == scheme).map(|back| wait(back).as_millis()).collect();
        waits.sort_unstable();
        println!("{scheme}: {waits:?} ms");
    }
    for back in &all {
        ensure!(back.node == "edge-2" && back.resumed, "{} is at {}", back.scheme, back.node);
    }
    // Those that notice at once, and so show how they are spread.
    let mut buckets: BTreeMap<u128, usize> = BTreeMap::new();
    let mut waits: Vec<Duration> = all.iter().filter(|back| back.scheme == "wss").map(wait).collect();
    for wait in &waits {
        *buckets.entry(wait.as_millis() / 100).or_default() += 1;
    }
    waits.sort();
    let spread = waits[waits.len() * 9 / 10] - waits[waits.len() / 10];
    let fullest = buckets.values().max().context("a bucket")?;
    println!("wss: spread over {spread:?}, {fullest} of {EACH} in the fullest 100 ms");
    ensure!(spread > Duration::from_millis(window / 2), "spread over {spread:?}: {buckets:?}");
    ensure!(*fullest <= EACH / 2, "{buckets:?}");
    Ok(())
}

/// Runs in a page: clients by each transport.
const BEGIN: &str = r#"
    const { Client } = await import("/sdk/index.js");
    const clients = [];
    for (const name of NAMES) {
        for (let n = 0; n < EACH; n += 1) {
            const client = new Client(URL_OF_EDGE, { transports: [name], certificateHashes: [HASH], storage: null });
            const seen = { name, offsets: [], how: [], moves: [], nodes: [], waits: [] };
            let lostAt = 0;
            client.on("moved", ({ node, resumed }) => seen.moves.push({ node, resumed }));
            client.on("disconnected", () => (lostAt ||= performance.now()));
            client.on("connected", ({ node }) => {
                seen.nodes.push(node);
                if (lostAt) seen.waits.push(performance.now() - lostAt);
                lostAt = 0;
            });
            client.subscribe("room:1", {
                onSubscribed: ({ how }) => seen.how.push(how),
                onPublication: ({ offset, data }) => { seen.offsets.push(offset); if (data === "end") seen.isDone = true; },
            });
            await client.connect();
            await client.subscriptions.get("room:1").ready();
            clients.push({ client, seen });
        }
    }
    globalThis.clients = clients;
    return clients.map(({ client }) => client.transport);
"#;

/// What they saw, once they have it all.
const END: &str = r#"
    const all = globalThis.clients.map(({ seen }) => seen);
    for (let round = 0; round < 2_500 && !all.every(({ isDone }) => isDone); round += 1) {
        await new Promise((resolve) => setTimeout(resolve, 10));
    }
    return all;
"#;

async fn begin(browser: &Browser, edge: &Gateway, each: usize) -> Result<()> {
    let hash = edge.facts().await?["certificate_hash"].clone();
    let names = json!(["webtransport", "websocket", "longpoll"]);
    let script = BEGIN.replace("URL_OF_EDGE", &json!(endpoint(edge)).to_string());
    let script = script.replace("NAMES", &names.to_string()).replace("EACH", &each.to_string());
    let used = browser.evaluate("plan", &script.replace("HASH", &hash.to_string())).await?;
    let mut all: Vec<&str> = used.as_array().context("all")?.iter().filter_map(Value::as_str).collect();
    all.dedup();
    ensure!(json!(all) == names, "{used}");
    Ok(())
}

fn offsets(seen: &Value) -> Result<Vec<u64>> {
    let offsets: Vec<u64> = serde_json::from_value(seen["offsets"].clone())?;
    let dense = offsets.windows(2).all(|pair| pair[1] == pair[0] + 1);
    ensure!(dense && seen["isDone"] == true, "{seen}");
    Ok(offsets)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_come_back_as_planned() -> Result<()> {
    const PAGES: usize = 8;
    const PAGES_RATE: u32 = 15;
    let mut cluster = Cluster::start(quick(PAGES_RATE)).await?;
    let mut dying = cluster.edges.remove(0);
    let other = cluster.edges.remove(0);
    let (browser, page) = Browser::inside().await?;
    browser.open("plan", &page).await?;
    begin(&browser, &dying, PAGES).await?;
    let window = (3.0 * PAGES as f64 / (0.95 * f64::from(PAGES_RATE)) * 1000.0) as u64;
    told_of(&dying, window * 3 / 4).await?;
    publish(&other, &json!("before")).await?;
    dying.kill().await?;
    for n in 0..20 {
        publish(&other, &json!(n)).await?;
    }
    until("all of them at the other edge", || async {
        let metrics = other.metrics().await?;
        let connects = metrics.iter().filter(|(name, _)| name.starts_with("tidegate_edge_connects_total"));
        let connects: f64 = connects.map(|(_, count)| count).sum();
        ensure!(connects >= 3.0 * PAGES as f64, "{connects}");
        Ok(())
    })
    .await?;
    publish(&other, &json!("end")).await?;
    let all = browser.evaluate("plan", END).await?;
    let mut waits = Vec::new();
    for seen in all.as_array().context("all")? {
        ensure!(offsets(seen)?.len() == 22, "{seen}");
        ensure!(seen["nodes"] == json!(["edge-1", "edge-2"]), "{seen}");
        ensure!(seen["how"] == json!(["begun", "recovered"]), "{seen}");
        waits.push(seen["waits"][0].as_f64().context("a wait")?);
    }
    waits.sort_by(f64::total_cmp);
    println!("pages: {waits:?}, the window is {window} ms");
    let (first, last) = (waits[0], waits[waits.len() - 1]);
    ensure!(last - first > window as f64 / 2.0, "from {first} to {last} ms");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn old_connections_are_renewed_and_nobody_notices() -> Result<()> {
    let spec = spec(2);
    let config = format!("{}[limits]\nrenewal = \"10s\"\n", spec.config);
    let cluster = Cluster::start(ClusterSpec { config, ..spec }).await?;
    let [edge, other] = &cluster.edges[..] else { bail!("two edges") };
    let mut watcher = Person::join(other, Carrier::WebSocket, Some("kim"), ROOM, true).await?;
    watcher.hears(&["+kim"]).await?;
    let stop = CancellationToken::new();
    let (backs, mut back) = mpsc::channel(64);
    let (mut following, mut publishing) = (JoinSet::new(), JoinSet::new());
    for n in 0..6 {
        for scheme in ["quic", "wss", "https"] {
            let token = edge.token(&["--user", &format!("{scheme}-{n}")]).await?;
            let client = Client::builder(edge.url(scheme)).with_ca_file(edge.ca_file()).with_token(token);
            let client = client.connect().await?;
            let events = client.take_events().context("events")?;
            let room = client.subscribe(ROOM).await?;
            following.spawn(follow(scheme, client.clone(), events, room, backs.clone()));
            let stopped = stop.clone();
            publishing.spawn(async move {
                let mut acknowledged = 0;
                while !stopped.is_cancelled() {
                    client.publish(ROOM, Payload::Json(Bytes::from_static(b"1"))).await?;
                    acknowledged += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                anyhow::Ok(acknowledged)
            });
        }
    }
    drop(backs);
    let count = following.len();
    let watch = Watch::begin(watcher, count).await?;
    let (browser, page) = Browser::inside().await?;
    browser.open("plan", &page).await?;
    until("every connection has been renewed", || async {
        let of = |edge| async move { renewals(edge).await };
        let (here, there) = (of(edge).await?, of(other).await?);
        ensure!(here >= count as f64 && here + there >= 1.5 * count as f64, "{here} here, {there} there");
        Ok(())
    })
    .await?;
    stop.cancel();
    let mut published = 0;
    while let Some(ended) = within(PATIENCE, "the answers to publishers", publishing.join_next()).await? {
        published += ended??;
    }
    ensure!(published > 200, "there was no load: {published}");
    watch.end(other, ROOM).await?;

    publish(other, &json!("end")).await?;
    while let Some(ended) = within(PATIENCE, "everything that was published", following.join_next()).await? {
        // Each was stored once, and delivered once.
        let last = ended??;
        ensure!(last == published + 1, "{last} of {published}");
    }
    ensure!(back.recv().await.is_none(), "somebody had no connection");

    // Pages have WebTransport too.
    begin(&browser, edge, 1).await?;
    for n in 0..10 {
        publish(other, &json!(n)).await?;
    }
    let moved = "return globalThis.clients.every(({ seen }) => seen.moves.length > 0);";
    until("every page has moved", || async {
        publish(other, &json!("meanwhile")).await?;
        ensure!(browser.evaluate("plan", moved).await? == true, "not yet");
        Ok(())
    })
    .await?;
    publish(other, &json!("end")).await?;
    for seen in browser.evaluate("plan", END).await?.as_array().context("all")? {
        offsets(seen)?;
        ensure!(seen["how"] == json!(["begun"]) && seen["waits"] == json!([]), "{seen}");
        let moves = seen["moves"].as_array().context("moves")?;
        ensure!(moves.iter().all(|one| one["resumed"] == true), "{seen}");
    }
    Ok(())
}

async fn renewals(edge: &Gateway) -> Result<f64> {
    Ok(edge.metrics().await?.get("tidegate_edge_renewals_total").copied().unwrap_or_default())
}
