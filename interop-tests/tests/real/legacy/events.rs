//! Server-Sent Events: `curl`, a reader of our own, and `EventSource` in Chromium.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{dial, get};
use tidegate_interop_tests::middle::Wire;
use tidegate_interop_tests::wait::{PATIENCE, until, within};
use tokio_util::task::TaskTracker;

use super::proxy::blank_pages;
use crate::support::ROOMY;

/// One event, as a browser would dispatch it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) data: Value,
}

/// A stream that is read slowly or not at all: only when asked.
pub(super) struct Stream {
    pub(super) head: http::response::Parts,
    body: Incoming,
    text: String,
    id: String,
    pub(super) retry_ms: Option<u64>,
}

impl Stream {
    pub(super) async fn open(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Self> {
        let exchange = async {
            let stream = dial(address, None).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            TaskTracker::new().spawn(connection);
            let mut request = request;
            let host = http::HeaderValue::from_str(&address.to_string())?;
            request.headers_mut().insert(http::header::HOST, host);
            anyhow::Ok(sender.send_request(request).await?)
        };
        let response: Response<Incoming> = within(PATIENCE, "the head of a stream", exchange).await??;
        let (head, body) = response.into_parts();
        Ok(Self { head, body, text: String::new(), id: String::new(), retry_ms: None })
    }

    /// The next event; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(event) = self.dispatch(&event)? {
                    return Ok(Some(event));
                }
                continue;
            }
            match within(PATIENCE, "an event", self.body.frame()).await? {
                Some(frame) => {
                    let data = frame?.into_data().unwrap_or_default();
                    self.text.push_str(std::str::from_utf8(&data)?);
                }
                None => return Ok(None),
            }
        }
    }

    async fn event(&mut self) -> Result<Event> {
        self.next().await?.context("the stream ended")
    }

    fn dispatch(&mut self, text: &str) -> Result<Option<Event>> {
        let mut name = "message".to_owned();
        let mut data = None;
        for line in text.lines() {
            match line.split_once(": ").context("a field")? {
                ("event", value) => name = value.to_owned(),
                ("id", value) => value.clone_into(&mut self.id),
                ("data", value) => data = Some(serde_json::from_str(value)?),
                ("retry", value) => self.retry_ms = Some(value.parse()?),
                ("", "ping") => {}
                (field, _) => anyhow::bail!("unknown field {field}"),
            }
        }
        Ok(data.map(|data| Event { name, id: self.id.clone(), data }))
    }
}

pub(super) fn events(channel: &str) -> String {
    format!("/v1/channels/{channel}/events")
}

fn resume(channel: &str, id: &str) -> Request<Full<Bytes>> {
    let mut request = get(&events(channel));
    request.headers_mut().insert("last-event-id", http::HeaderValue::from_str(id).expect("an id"));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_where_it_begins_and_goes_on_where_it_broke_off() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let plain = gateway.addresses.plain;
    let mut stream = Stream::open(plain, get(&events("room:1"))).await?;
    ensure!(stream.head.status == StatusCode::OK);
    for (name, value) in
        [("content-type", "text/event-stream"), ("cache-control", "no-store"), ("x-accel-buffering", "no")]
    {
        ensure!(stream.head.headers[name] == value, "{:?}", stream.head.headers);
    }
    let begin = stream.event().await?;
    ensure!(begin.name == "position" && begin.data["recovered"] == false, "{begin:?}");
    ensure!(stream.retry_ms.is_some_and(|retry| (1000..=5000).contains(&retry)), "{:?}", stream.retry_ms);
    let mut ids = Vec::new();
    for n in 1..=3 {
        let position = gateway.publish("room:1", json!({ "n": n })).await?;
        let event = stream.event().await?;
        ensure!(event.name == "message" && event.data["data"]["n"] == n, "{event:?}");
        ensure!(event.id == format!("{}:{}", position["epoch"].as_str().unwrap_or_default(), n), "{event:?}");
        ids.push(event.id);
    }
    drop(stream);
    gateway.publish("room:1", json!({ "n": 4 })).await?;

    let mut back = Stream::open(plain, resume("room:1", &ids[1])).await?;
    let begin = back.event().await?;
    ensure!(begin.name == "position" && begin.id == ids[1] && begin.data["recovered"] == true, "{begin:?}");
    for n in 3..=4 {
        let event = back.event().await?;
        ensure!(event.data["offset"] == n, "{event:?}");
    }

    // Out of reach: told, never silence.
    let mut lost = Stream::open(plain, resume("room:1", "another-epoch:2")).await?;
    let begin = lost.event().await?;
    ensure!(begin.name == "position" && begin.data["recovered"] == false, "{begin:?}");
    ensure!(begin.data["position"]["offset"] == 4, "{begin:?}");
    // By the address as well, and without an epoch.
    let mut all = Stream::open(plain, get(&format!("{}?offset=0", events("room:1")))).await?;
    for (expected, name) in (0..=4).zip(["position", "message", "message", "message", "message"]) {
        let event = all.event().await?;
        ensure!(event.name == name && event.id.ends_with(&format!(":{expected}")), "{event:?}");
    }
    let malformed = Stream::open(plain, resume("room:1", "nonsense")).await?;
    ensure!(malformed.head.status == StatusCode::BAD_REQUEST, "{}", malformed.head.status);
    let open = gateway.metric("tidegate_edge_connects_total{transport=\"sse\"}").await?;
    ensure!(open == 4.0, "{open} streams");
    drop((back, lost, all));
    gateway.until_metric("tidegate_edge_connections{transport=\"sse\"}", |open| open == 0.0).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_catches_up_from_history_without_a_gap() -> Result<()> {
    let limits = "[limits]\nframe = \"64KiB\"\npayload = \"32KiB\"\nsubscription_queue = \"64KiB\"\n";
    let gateway = Gateway::dev(&format!("{ROOMY}{limits}")).await?;
    let mut stream = Stream::open(gateway.addresses.plain, get(&events("room:1"))).await?;
    stream.event().await?;
    // More than sockets and the queue hold together.
    let filler = "x".repeat(20_000);
    let publications: Vec<_> =
        (1..=1000).map(|n| json!({ "channel": "room:1", "data": { "n": n, "filler": filler } })).collect();
    for batch in publications.chunks(100) {
        gateway.publish_batch(batch).await?;
    }
    gateway.until_metric("tidegate_edge_parked_subscriptions_total", |parked| parked >= 1.0).await?;
    let waiting = gateway.metric("tidegate_edge_queue_bytes").await?;
    ensure!(waiting <= 80_000.0, "{waiting} bytes wait");
    for n in 1..=1000 {
        let event = stream.event().await?;
        ensure!(event.name == "message" && event.data["data"]["n"] == n, "{} instead of {n}", event.id);
    }
    gateway.until_metric("tidegate_edge_queue_bytes", |waiting| waiting == 0.0).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_a_channel_gets_no_stream() -> Result<()> {
    let secret = "a secret that only these tests use";
    let gateway = Gateway::dev(&format!(
        "[auth]\nanonymous = false\nkeys = [{{ secret = {secret:?} }}]\n\
         [namespaces.default]\nsubscribe = \"granted\"\n"
    ))
    .await?;
    let plain = gateway.addresses.plain;
    let status = async |path: String| anyhow::Ok(Stream::open(plain, get(&path)).await?.head.status);
    ensure!(status(events("room:1")).await? == StatusCode::UNAUTHORIZED);
    let token = gateway.token(&["--user", "1", "--subscribe", "room:*"]).await?;
    ensure!(status(format!("{}?token={token}", events("other:1"))).await? == StatusCode::FORBIDDEN);
    ensure!(status(format!("{}?token={token}", events("room:1"))).await? == StatusCode::OK);
    ensure!(status(format!("{}?token={token}x", events("room:1"))).await? == StatusCode::UNAUTHORIZED);

    let brief = gateway.token(&["--user", "1", "--subscribe", "room:*", "--expires", "3s"]).await?;
    let mut stream = Stream::open(plain, get(&format!("{}?token={brief}", events("room:1")))).await?;
    stream.event().await?;
    let end = stream.event().await?;
    ensure!(end.name == "close" && end.data["code"] == 4005, "{end:?}");
    ensure!(stream.next().await?.is_none(), "it goes on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_streams_with_a_word() -> Result<()> {
    let mut gateway = Gateway::dev(ROOMY).await?;
    let mut stream = Stream::open(gateway.addresses.plain, get(&events("room:1"))).await?;
    stream.event().await?;
    let (ended, status) = tokio::join!(stream.event(), gateway.terminate());
    let ended = ended?;
    ensure!(ended.name == "close" && ended.data["code"] == 4100, "{ended:?}");
    ensure!(stream.retry_ms.is_some(), "it does not say when to come back");
    ensure!(stream.next().await?.is_none(), "it goes on");
    ensure!(status?.success(), "{}", gateway.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn event_source_in_chromium_resumes_by_itself() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let wire = Wire::to(gateway.addresses.plain).await?;
    let (port, _pages) = blank_pages().await?;
    let browser = Browser::launch().await?;
    browser.open("page", &format!("http://localhost:{port}/")).await?;
    let source = format!(
        "globalThis.offsets = [];
         globalThis.begun = [];
         globalThis.source = new EventSource('http://{}{}');
         source.onmessage = (event) => offsets.push(JSON.parse(event.data).offset);
         source.addEventListener('position', (event) => begun.push(JSON.parse(event.data).recovered));",
        wire.address,
        events("room:1")
    );
    browser.evaluate("page", &source).await?;
    let begun = async |times: usize| {
        until(format!("stream {times}"), || async {
            let begun = browser.evaluate("page", "return begun;").await?;
            ensure!(begun.as_array().is_some_and(|begun| begun.len() >= times), "{begun}");
            Ok(begun)
        })
        .await
    };
    begun(1).await?;
    let mut published = 0;
    for round in 1..=CUTS {
        for n in 0..20 {
            gateway.publish("room:1", json!({ "round": round, "n": n })).await?;
            published += 1;
            if n == 10 {
                wire.cut();
            }
        }
        begun(round + 1).await?;
    }
    let offsets = until("every offset", || async {
        let offsets = browser.evaluate("page", "return offsets;").await?;
        ensure!(offsets.as_array().is_some_and(|offsets| offsets.len() >= published), "{offsets}");
        Ok(offsets)
    })
    .await?;
    ensure!(offsets == json!((1..=published).collect::<Vec<_>>()), "{offsets}");
    let begun = begun(CUTS + 1).await?;
    let expected: Vec<bool> = (0..=CUTS).map(|stream| stream > 0).collect();
    ensure!(begun == json!(expected), "{begun}");
    let heads: Vec<_> = wire.heads().into_iter().filter(|head| head.starts_with("get /v1/")).collect();
    ensure!(heads.len() == CUTS + 1, "{heads:?}");
    let sent = heads.iter().filter(|head| head.contains("last-event-id: ")).count();
    ensure!(sent == CUTS, "Last-Event-ID came {sent} times: {heads:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn event_source_outlives_a_server_that_is_full_or_away() -> Result<()> {
    let mut gateway = Gateway::dev(ROOMY).await?;
    let (port, _pages) = blank_pages().await?;
    let browser = Browser::launch().await?;
    browser.open("page", &format!("http://localhost:{port}/")).await?;
    let source = format!(
        "globalThis.names = [];
         globalThis.source = new EventSource('http://{}{}');
         for (const name of ['position', 'close']) source.addEventListener(name, () => names.push(name));",
        gateway.addresses.plain,
        events("room:1")
    );
    browser.evaluate("page", &source).await?;
    let names = async |expected: Value| {
        until(expected.to_string(), || async {
            let names = browser.evaluate("page", "return names;").await?;
            ensure!(names == expected, "{names}");
            Ok(())
        })
        .await
    };
    names(json!(["position"])).await?;
    gateway.restart().await?;
    names(json!(["position", "close", "position"])).await?;
    Ok(())
}

const CUTS: usize = 4;
