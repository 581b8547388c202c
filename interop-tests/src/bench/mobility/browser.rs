//! The same for `sdk/js` in Chromium, which is inside as well: WebTransport, WebSocket, long poll.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_transport::clock;

use super::scenarios::Measured;
use super::stage::{CHANNEL, Restart, Stage};
use crate::bench::unix_us;
use crate::clients::browser::Browser;

/// Time to a connected client over WebSocket alone.
///
/// # Errors
/// Where it does not connect.
pub async fn websocket_alone(stage: Stage, rounds: u32) -> Result<Measured> {
    let browser = Inside::start(&stage).await?;
    let page = browser.page("alone").await?;
    let mut measured = Measured::default();
    for _ in 0..rounds {
        measured.times.push(page.connect(&json!({ "transports": ["websocket"] })).await?.time);
    }
    Ok(measured)
}

/// The same with WebTransport first on a network that lets no UDP through, by a client that was never here.
///
/// # Errors
/// Where it does not connect by WebSocket, or does not try WebTransport first.
pub async fn blocked(stage: Stage, rounds: u32) -> Result<Measured> {
    stage.control.block_udp(true);
    let browser = Inside::start(&stage).await?;
    let mut measured = Measured::default();
    for round in 0..rounds {
        // A page of its own each time: browsers make pages whose handshakes failed wait before the next.
        let page = browser.page(&format!("blocked {round}")).await?;
        let connected = page.connect(&json!({})).await?;
        ensure!(connected.transport == "websocket", "connected by {}", connected.transport);
        ensure!(connected.tried["webtransport"] == 1, "tried {}", connected.tried);
        measured.times.push(connected.time);
    }
    Ok(measured)
}

/// The same by clients of pages that come later: the origin's storage knows.
///
/// # Errors
/// Where one tries WebTransport at all, or does not connect.
pub async fn remembered(stage: Stage, rounds: u32) -> Result<Measured> {
    stage.control.block_udp(true);
    let browser = Inside::start(&stage).await?;
    let stored = json!({ "store": "browser" });
    let first = browser.page("first").await?.connect(&stored).await?;
    ensure!(first.transport == "websocket", "connected by {}", first.transport);
    let page = browser.page("second").await?;
    let mut measured = Measured::default();
    for _ in 0..rounds {
        let connected = page.connect(&stored).await?;
        ensure!(connected.transport == "websocket", "connected by {}", connected.transport);
        ensure!(connected.tried["webtransport"] == 0, "it waited for WebTransport: {}", connected.tried);
        measured.times.push(connected.time);
    }
    Ok(measured)
}

/// UDP goes dark after the connection was made: the longest time without a delivery until it goes on over WebSocket. Then
/// UDP comes back: the longest one until it is on WebTransport again.
///
/// # Errors
/// Where it does not move, is ever without a connection, or misses a publication.
pub async fn black_hole(stage: Stage, rounds: u32) -> Result<(Measured, Measured)> {
    let browser = Inside::start(&stage).await?;
    let (mut away, mut back) = (Measured::default(), Measured::default());
    for round in 0..rounds {
        let page = browser.page(&format!("black hole {round}")).await?;
        // The climb begins after a minute by default; what is measured is how it goes.
        page.follow(&json!({ "ladder": { "climbMs": 2_000, "climbCapMs": 4_000 } })).await?;
        page.until("WebTransport", "it.transport === 'webtransport' && it.deliveries.length > 40").await?;
        let dark = unix_us();
        stage.control.black_hole_udp();
        let moved = format!("it.transport === 'websocket' && it.since({dark}) > 20");
        page.until("the move to WebSocket", &moved).await?;
        away.times.push(page.longest_gap(dark).await?);
        let light = unix_us();
        stage.control.block_udp(false);
        let returned = format!("it.transport === 'webtransport' && it.since({light}) > 60");
        let state = page.until("the way back to WebTransport", &returned).await?;
        back.times.push(page.longest_gap(light).await?);
        ensure!(state["sessions"] == 1, "it was another session: {state}");
        back.losses += losses(&state)?;
        page.stop().await?;
    }
    Ok((away, back))
}

/// Nothing passes for a while, either way: how long after its end the stream is up to date again, by whatever transport.
/// From there it finds back to WebTransport.
///
/// # Errors
/// Where the session does not survive, misses a publication, or stays away from WebTransport.
pub async fn outage(stage: Stage, rounds: u32, length: Duration) -> Result<Measured> {
    let browser = Inside::start(&stage).await?;
    let mut measured = Measured::default();
    for round in 0..rounds {
        let page = browser.page(&format!("outage {round}")).await?;
        page.follow(&json!({ "ladder": { "climbMs": 2_000 } })).await?;
        page.until("the stream", "it.deliveries.length > 40").await?;
        stage.control.outage(length);
        let end = unix_us() + u64::try_from(length.as_micros())?;
        page.until("the end of the outage", &format!("it.firstSince({end}) !== null")).await?;
        let arrived = page.number(&format!("it.firstSince({end})")).await?;
        measured.times.push(Duration::from_micros(arrived.saturating_sub(end)));
        let returned = format!("it.transport === 'webtransport' && it.since({end}) > 60");
        let state = page.until("the way back to WebTransport", &returned).await?;
        measured.losses += losses(&state)?;
        ensure!(state["sessions"] == 1, "it was another session: {state}");
        page.stop().await?;
    }
    Ok(measured)
}

/// The server ends and comes back: the longest time without a delivery until it goes on by the transport that it was on.
///
/// # Errors
/// Where that is not WebTransport, or counts as broken from now on.
pub async fn restart(stage: Stage, rounds: u32, how: Restart) -> Result<Measured> {
    let browser = Inside::start(&stage).await?;
    let mut measured = Measured::default();
    for round in 0..rounds {
        let page = browser.page(&format!("restart {round}")).await?;
        page.follow(&json!({ "store": "browser" })).await?;
        page.until("the stream", "it.transport === 'webtransport' && it.deliveries.length > 20").await?;
        let ended = unix_us();
        stage.restart(how).await?;
        let again = format!("it.transport === 'webtransport' && it.rebased > 0 && it.since({ended}) > 20");
        let state = page.until("the server that came back", &again).await?;
        measured.times.push(page.longest_gap(ended).await?);
        measured.losses += losses(&state)?;
        // What was published before is gone with the server: it says so, and once.
        ensure!(state["rebased"] == 1, "the loss was told {} times: {state}", state["rebased"]);
        let broken = page.evaluate("return mobile.isBroken('browser', 'webtransport');").await?;
        ensure!(broken == false, "WebTransport is blamed: {state}");
        page.stop().await?;
    }
    Ok(measured)
}

/// Chromium in the namespace of the calling thread.
struct Inside {
    browser: Browser,
    url: String,
    settings: Value,
}

impl Inside {
    async fn start(stage: &Stage) -> Result<Self> {
        let (browser, url) = Browser::inside().await?;
        let settings = json!({ "urls": stage.urls, "hashes": [stage.certificate_hash], "channel": CHANNEL });
        Ok(Self { browser, url, settings })
    }

    async fn page(&self, name: &str) -> Result<Page> {
        self.browser.open(name, &self.url).await?;
        let page = Page { browser: self.browser.clone(), name: name.to_owned() };
        page.evaluate(&format!("const settings = {};\n{SCRIPT}", self.settings)).await?;
        Ok(page)
    }
}

/// `browser/mobile.js`, running.
struct Page {
    browser: Browser,
    name: String,
}

/// How a connection was made.
struct Connected {
    time: Duration,
    transport: String,
    /// How often each transport was tried until then.
    tried: Value,
}

impl Page {
    async fn evaluate(&self, body: &str) -> Result<Value> {
        self.browser.evaluate(&self.name, body).await
    }

    async fn connect(&self, options: &Value) -> Result<Connected> {
        let mut connected = self.evaluate(&format!("return mobile.connect({options});")).await?;
        let ms = connected["ms"].as_f64().context("a time")?;
        let transport = connected["transport"].as_str().context("a transport")?.to_owned();
        Ok(Connected {
            time: Duration::from_secs_f64(ms / 1000.0),
            transport,
            tried: connected["tried"].take(),
        })
    }

    /// Subscribes to the stream, and waits for its first publication.
    async fn follow(&self, options: &Value) -> Result<()> {
        let state = self.evaluate(&format!("return mobile.follow({options});")).await?;
        ensure!(state["isThere"] == true, "no publication came: {state}");
        Ok(())
    }

    /// Waits until something holds for `it`, the follower.
    async fn until(&self, what: &str, holds: &str) -> Result<Value> {
        let deadline = clock::now() + PATIENCE;
        loop {
            let state = self.evaluate(&format!("return mobile.follower.until((it) => {holds});")).await?;
            ensure!(state["problems"] == json!([]), "{what}: {state}");
            if state["isThere"] == true {
                return Ok(state);
            }
            ensure!(clock::now() < deadline, "{what}: not within {PATIENCE:?}: {state}");
        }
    }

    async fn number(&self, of: &str) -> Result<u64> {
        let number = self.evaluate(&format!("const it = mobile.follower;\nreturn {of};")).await?;
        number.as_u64().with_context(|| format!("{of} is {number}"))
    }

    async fn longest_gap(&self, from_us: u64) -> Result<Duration> {
        Ok(Duration::from_micros(self.number(&format!("it.longestGap({from_us})")).await?))
    }

    /// Ends the follower. Nothing may be wrong up to then.
    async fn stop(&self) -> Result<()> {
        let state = self.evaluate("return mobile.stop();").await?;
        ensure!(state["problems"] == json!([]), "{state}");
        Ok(())
    }
}

/// How often it was without a connection.
fn losses(state: &Value) -> Result<u32> {
    let disconnected = state["disconnected"].as_array().context("a list")?;
    Ok(u32::try_from(disconnected.len())?)
}

const PATIENCE: Duration = Duration::from_secs(90);
const SCRIPT: &str = include_str!("../../../browser/mobile.js");
