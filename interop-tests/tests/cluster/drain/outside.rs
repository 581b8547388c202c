//! Drains as clients without an SDK see them: when polls are answered, and what a place at the target is worth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tidegate_interop_tests::cluster::HOME;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{get, post, send};
use tidegate_interop_tests::raw::{Attempt, Carrier, Doorstep, Raw};
use tidegate_interop_tests::wait::{PATIENCE, until, within};
use tidegate_transport::clock;

use super::{connections, drain, drained, endpoint, slow, spec, start};

/// A session by long poll, request by request.
struct Poller {
    address: std::net::SocketAddr,
    tls: Arc<ClientConfig>,
    session: Option<String>,
    ack: u64,
    epoch: Value,
    /// Offsets of its publications, as they came.
    offsets: Vec<u64>,
}

/// What a poll brought, and how long it was held.
struct Held {
    frames: Vec<Value>,
    time: Duration,
}

impl Held {
    fn find(&self, name: &str) -> Option<&Value> {
        self.frames.iter().map(|frame| &frame[name]).find(|body| body.is_object())
    }
}

impl Poller {
    /// Connects; `connected` too.
    async fn connect(edge: &Gateway, connect: Value) -> Result<(Self, Value)> {
        let tls = edge.tls(&[b"http/1.1"]);
        let address = edge.addresses.tls;
        let mut poller =
            Self { address, tls, session: None, ack: 0, epoch: Value::Null, offsets: Vec::new() };
        let held = poller.poll(Duration::from_secs(10), json!([{ "id": 1, "connect": connect }])).await?;
        let connected = held.find("connected").with_context(|| format!("{:?}", held.frames))?;
        Ok((poller, connected.clone()))
    }

    async fn subscribe(&mut self, body: Value) -> Result<Value> {
        let mut frames = json!([{ "id": 2, "subscribe": body }]);
        loop {
            let held = self.poll(Duration::from_secs(10), frames.take()).await?;
            if let Some(subscribed) = held.find("subscribed") {
                self.epoch = subscribed["position"]["epoch"].clone();
                return Ok(subscribed.clone());
            }
            frames = json!([]);
        }
    }

    async fn poll(&mut self, wait: Duration, frames: Value) -> Result<Held> {
        let body = json!({
            "session": self.session, "ack": self.ack, "wait_ms": wait.as_millis() as u64, "frames": frames,
        });
        let asked = clock::now();
        let request = post("/v1/poll", body.to_string());
        let sent = send(self.address, Some(Arc::clone(&self.tls)), request);
        let answer = within(wait + PATIENCE, "the answer to a poll", sent).await??;
        let time = clock::now().duration_since(asked);
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        let answer = answer.json();
        self.session = answer["session"].as_str().map(str::to_owned);
        self.ack = answer["batch"].as_u64().context("a batch")?;
        let frames = answer["frames"].as_array().context("frames")?.clone();
        self.offsets.extend(frames.iter().filter_map(|frame| frame["publication"]["offset"].as_u64()));
        Ok(Held { frames, time })
    }

    /// Polls until the server asks to be left; how long the first poll was held, and what it says.
    async fn until_asked(&mut self) -> Result<(Duration, Value)> {
        let mut first = None;
        let deadline = clock::now() + PATIENCE;
        while clock::now() < deadline {
            let held = self.poll(HOLD, json!([])).await?;
            let first = *first.get_or_insert(held.time);
            if let Some(goaway) = held.find("goaway") {
                return Ok((first, goaway.clone()));
            }
        }
        bail!("nobody asks it to leave")
    }

    /// Resumes at `edge`, with its place there.
    async fn follow(
        mut self,
        edge: &Gateway,
        connected: &Value,
        goaway: &Value,
        channel: &str,
    ) -> Result<()> {
        ensure!(goaway["endpoint"] == endpoint(edge), "{goaway}");
        let connect = json!({ "resume": connected["resume"], "key": "0badcafe", "slot": goaway["slot"], "moves": true });
        let (mut there, connected) = Self::connect(edge, connect).await?;
        ensure!(connected["resumed"] == true, "{connected}");
        let position = json!({ "epoch": self.epoch, "offset": self.offsets.len() });
        let subscribed = there.subscribe(json!({ "channel": channel, "position": position })).await?;
        ensure!(subscribed["recovered"] == true, "{subscribed}");
        publish(edge, channel).await?;
        let all = self.offsets.len() as u64 + 1;
        // Both deliver until it says `done`.
        for poller in [&mut self, &mut there] {
            let deadline = clock::now() + PATIENCE;
            while poller.offsets.last() != Some(&all) && clock::now() < deadline {
                poller.poll(HOLD, json!([])).await?;
            }
        }
        ensure!(self.offsets == (1..=all).collect::<Vec<_>>() && there.offsets == [all]);
        self.poll(Duration::ZERO, json!([{ "done": {} }])).await?;
        Ok(())
    }
}

async fn publish(edge: &Gateway, channel: &str) -> Result<()> {
    let body = json!({ "channel": channel, "data": 1 }).to_string();
    let answer = edge.api(post("/v1/publish", body)).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_are_answered_when_their_hold_ends_and_then_asked_to_move() -> Result<()> {
    let cluster = start(spec(2)).await?;
    let [from, to] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    let (mut quiet, of_quiet) = Poller::connect(from, json!({ "moves": true })).await?;
    let (mut busy, of_busy) = Poller::connect(from, json!({ "moves": true })).await?;
    quiet.subscribe(json!({ "channel": "room:quiet" })).await?;
    busy.subscribe(json!({ "channel": "room:busy" })).await?;
    let order = async {
        drain(from, &[], "90s").await?;
        // Nobody else is there: places are granted as soon as anybody asks for one.
        until("clients are asked to move", || async {
            let progress = from.api(get("/v1/drain")).await?.json();
            ensure!(progress["drain"]["state"] == "moving", "{progress}");
            Ok(())
        })
        .await?;
        let published = clock::now();
        publish(to, "room:busy").await?;
        anyhow::Ok(published)
    };
    let watched = async {
        let held = busy.poll(HOLD, json!([])).await?;
        anyhow::Ok((held, clock::now()))
    };
    let (order, quiet_asked, watched) = tokio::join!(order, quiet.until_asked(), watched);
    let (published, (held, answered)): (Instant, _) = (order?, watched?);
    ensure!(busy.offsets == [1] && held.find("goaway").is_none(), "{:?}", held.frames);
    // Well before the end, and not held back for a place.
    ensure!(answered < published + HOLD / 2, "{:?}", answered.duration_since(published));
    let (held, goaway) = quiet_asked?;
    ensure!(held >= HOLD, "its hold was cut short: {held:?}");
    quiet.follow(to, &of_quiet, &goaway, "room:quiet").await?;
    let (_, goaway) = busy.until_asked().await?;
    busy.follow(to, &of_busy, &goaway, "room:busy").await?;
    let progress = drained(from).await?;
    ensure!(progress["closed"] == 0 && progress["forced"] == 0 && progress["moved"] == 2, "{progress}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_lets_a_native_client_in_where_newcomers_are_refused() -> Result<()> {
    let cluster = start(slow(vec![HOME; 2])).await?;
    let [from, to] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    let mut client = Raw::dial(from, Carrier::Quic).await?;
    client.send(&json!({ "id": 1, "connect": { "moves": true } })).await?;
    ensure!(client.frame().await?["connected"].is_object());
    drain(from, &[], "60s").await?;
    let goaway = next(&mut client, "goaway").await?;
    ensure!(goaway["endpoint"] == endpoint(to) && goaway["deadline_ms"].as_u64() > Some(1_000), "{goaway}");
    let ticket = goaway["slot"].as_str().context("a place")?;
    let door = Doorstep::new(to, std::net::Ipv4Addr::LOCALHOST)?;
    // More than come in within a few seconds.
    let crowd = try_join_all((0..60).map(|_| door.attempt(None))).await?;
    let refused = crowd.iter().filter(|attempt| matches!(attempt, Attempt::Refused(_))).count();
    ensure!(refused > 0, "the target is not full");
    let Attempt::LetIn(there) = door.attempt(Some(ticket)).await? else { bail!("refused with its place") };
    let newcomer = door.attempt(None).await?;
    ensure!(matches!(newcomer, Attempt::Refused(_)), "the target is not full any more: {newcomer:?}");
    // It is served where it is until it says that it is done.
    client.send(&json!({ "id": 2, "subscribe": { "channel": "room:1" } })).await?;
    next(&mut client, "subscribed").await?;
    client.send(&json!({ "done": {} })).await?;
    let progress = drained(from).await?;
    ensure!(progress["closed"] == 0 && progress["forced"] == 0 && progress["moved"] == 1, "{progress}");
    ensure!(connections(from).await? == 0.0);
    drop(there);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_half_way_to_an_edge_that_dies_is_sent_to_another() -> Result<()> {
    half_way(async |_, _| Ok(())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_half_way_to_an_edge_that_stops_serving_and_then_dies_is_sent_to_another() -> Result<()> {
    half_way(async |from, dies| {
        drain(dies, &[], "90s").await?;
        let dead = endpoint(dies);
        until("the lame duck is no target", || async {
            let report = from.api(get("/v1/drain")).await?.json();
            let targets = report["drain"]["targets"].as_array().context("targets")?;
            ensure!(targets.len() == 1 && targets[0] != dead, "{report}");
            Ok(())
        })
        .await
    })
    .await
}

/// A client is half way from an edge to another when that one dies; `before` that something happens to them.
async fn half_way(before: impl AsyncFnOnce(&Gateway, &Gateway) -> Result<()>) -> Result<()> {
    let mut cluster = start(spec(3)).await?;
    let from = cluster.edges.remove(0);
    let mut client = Raw::dial(&from, Carrier::WebSocket).await?;
    client.send(&json!({ "id": 1, "connect": { "moves": true } })).await?;
    let connected = client.frame().await?["connected"].clone();
    client.send(&json!({ "id": 2, "subscribe": { "channel": "room:1" } })).await?;
    next(&mut client, "subscribed").await?;
    drain(&from, &[], "90s").await?;
    let goaway = next(&mut client, "goaway").await?;
    let is_meant = |edge: &&mut Gateway| goaway["endpoint"] == endpoint(edge);
    let dies = cluster.edges.iter_mut().find(is_meant).context("one of the edges")?;
    let mut half = Raw::dial(dies, Carrier::WebSocket).await?;
    let resume =
        json!({ "resume": connected["resume"], "key": "0badcafe", "slot": goaway["slot"], "moves": true });
    half.send(&json!({ "id": 1, "connect": resume })).await?;
    let connected = next(&mut half, "connected").await?;
    ensure!(connected["resumed"] == true, "{connected}");
    // By then the old edge knows that the session went on elsewhere.
    publish(dies, "room:1").await?;
    next(&mut client, "publication").await?;
    before(&from, dies).await?;
    dies.kill().await?;
    let dead = endpoint(dies);
    let goaway = next(&mut client, "goaway").await?;
    ensure!(goaway["endpoint"] != dead && goaway["slot"].is_string(), "{goaway}");
    let stays = cluster.edges.iter().find(|edge| goaway["endpoint"] == endpoint(edge)).context("an edge")?;
    let mut there = Raw::dial(stays, Carrier::WebSocket).await?;
    let resume =
        json!({ "resume": connected["resume"], "key": "1badcafe", "slot": goaway["slot"], "moves": true });
    there.send(&json!({ "id": 1, "connect": resume })).await?;
    ensure!(next(&mut there, "connected").await?["resumed"] == true);
    publish(stays, "room:1").await?;
    ensure!(next(&mut client, "publication").await?["offset"] == 2, "it is served until it leaves");
    client.send(&json!({ "done": {} })).await?;
    let progress = drained(&from).await?;
    ensure!(progress["closed"] == 0 && progress["forced"] == 0 && progress["moved"] == 1, "{progress}");
    Ok(())
}

/// The next frame of that name.
async fn next(client: &mut Raw, name: &str) -> Result<Value> {
    loop {
        let frame = client.frame().await?;
        ensure!(frame["close"].is_null(), "waiting for {name}: {frame}");
        if frame[name].is_object() {
            return Ok(frame[name].clone());
        }
    }
}

/// How long polls are held: longer than a lame duck takes, and a place.
const HOLD: Duration = Duration::from_secs(6);
