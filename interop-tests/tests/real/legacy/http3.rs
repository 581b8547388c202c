//! HTTP/3 with a client that is not ours: aioquic.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{get, send};
use tidegate_interop_tests::programs;
use tidegate_interop_tests::wait::{PATIENCE, within};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::ROOMY;

/// One HTTP/3 connection.
struct Http3 {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Http3 {
    async fn connect(gateway: &Gateway) -> Result<Self> {
        let mut child = Command::new(programs::python()?)
            .arg(programs::file("python/h3_client.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting Python")?;
        let stdin = child.stdin.take().context("stdin")?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let mut client = Self { _child: child, stdin, lines };
        let address = gateway.addresses.http3;
        client.say(&json!({ "host": address.ip(), "port": address.port(), "ca": gateway.ca_file() })).await?;
        Ok(client)
    }

    async fn say(&mut self, order: &Value) -> Result<()> {
        self.stdin.write_all(format!("{order}\n").as_bytes()).await.context("the client ended")
    }

    /// The next thing that came: the head of an answer, a part of it, or its end.
    async fn hear(&mut self) -> Result<Value> {
        let line = within(PATIENCE, "a line of the HTTP/3 client", self.lines.next_line()).await??;
        Ok(serde_json::from_str(&line.context("the HTTP/3 client ended")?)?)
    }

    /// Asks, and reads the whole answer: status, headers, body.
    async fn ask(&mut self, order: Value) -> Result<(u64, Value, String)> {
        self.say(&order).await?;
        let (mut status, mut headers, mut body) = (0, Value::Null, String::new());
        loop {
            let heard = self.hear().await?;
            if let Some(told) = heard["status"].as_u64() {
                (status, headers) = (told, heard["headers"].clone());
            }
            body.push_str(heard["data"].as_str().unwrap_or_default());
            ensure!(!heard["error"].is_string(), "{heard}");
            if heard["ended"] == true {
                return Ok((status, headers, body));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fallback_endpoint_is_served_over_http3_and_announced() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let port = gateway.addresses.http3.port();
    let tls = send(gateway.addresses.tls, Some(gateway.tls(&[b"http/1.1"])), get("/v1/channels/room:1/poll"))
        .await?;
    ensure!(tls.headers["alt-svc"] == format!("h3=\":{port}\"; ma=86400").as_str(), "{:?}", tls.headers);
    let plain = gateway.plain(get("/v1/channels/room:1/poll")).await?;
    ensure!(!plain.headers.contains_key("alt-svc"), "without TLS nobody may be sent elsewhere");

    let mut client = Http3::connect(&gateway).await?;
    let channel_poll =
        |query: &str| json!({ "method": "GET", "path": format!("/v1/channels/room:1/poll{query}") });
    gateway.publish("room:1", json!({ "n": 1 })).await?;
    let (status, _, body) = client.ask(channel_poll("?offset=0")).await?;
    let body: Value = serde_json::from_str(&body)?;
    ensure!(status == 200 && body["publications"][0]["data"]["n"] == 1, "{body}");

    // A long-poll session over one connection, worker by worker wherever it arrives.
    let poll = |body: Value| json!({ "method": "POST", "path": "/v1/poll", "body": body.to_string() });
    let frames = json!([{ "id": 1, "connect": {} }, { "id": 2, "subscribe": { "channel": "room:1" } }]);
    let (status, _, body) = client.ask(poll(json!({ "frames": frames }))).await?;
    ensure!(status == 200, "{status}: {body}");
    let mut answer: Value = serde_json::from_str(&body)?;
    let session = answer["session"].clone();
    let mut seen = Vec::new();
    let mut subscribed = answer["frames"].to_string().contains("subscribed");
    while seen.len() < 3 {
        if subscribed && seen.len() < 3 {
            gateway.publish("room:1", json!({ "n": seen.len() + 2 })).await?;
        }
        let next = json!({ "session": session, "ack": answer["batch"], "wait_ms": 10_000 });
        let (status, _, body) = client.ask(poll(next)).await?;
        ensure!(status == 200, "{status}: {body}");
        answer = serde_json::from_str(&body)?;
        for frame in answer["frames"].as_array().into_iter().flatten() {
            subscribed |= frame["subscribed"].is_object();
            seen.extend(frame["publication"]["offset"].as_u64());
        }
    }
    ensure!(seen == [2, 3, 4], "{seen:?}");

    // What is refused is refused here too.
    let (status, headers, _) = client.ask(json!({ "method": "GET", "path": "/v1/poll" })).await?;
    ensure!(status == 405 && headers["allow"] == "POST", "{status} {headers}");
    let evil = json!({ "method": "GET", "path": "/v1/channels/room:1/poll", "headers": { "origin": "https://evil.example" } });
    ensure!(client.ask(evil).await?.0 == 403);
    let big = json!({ "method": "POST", "path": "/v1/poll", "body": "x".repeat(300_000) });
    // It may be answered before it was sent to its end; either way the next request is served.
    ensure!(client.ask(big).await?.0 == 413);
    ensure!(client.ask(channel_poll("?offset=0")).await?.0 == 200);

    // Events, while the stream is open.
    client.say(&json!({ "method": "GET", "path": "/v1/channels/room:1/events?offset=3" })).await?;
    let head = client.hear().await?;
    ensure!(head["status"] == 200 && head["headers"]["content-type"] == "text/event-stream", "{head}");
    let mut text = String::new();
    for n in [4, 5] {
        if n == 5 {
            gateway.publish("room:1", json!({ "n": 5 })).await?;
        }
        while !text.contains(&format!("\"offset\":{n},\"data\"")) {
            text.push_str(client.hear().await?["data"].as_str().context("it ended")?);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_section_without_end_is_cut_off() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let before = gateway.rss()?;
    let mut client = Http3::connect(&gateway).await?;
    // A HEADERS frame that says that it is 64 MiB long, and brings as much of it as it is let.
    client.say(&json!({ "flood": 64 << 20 })).await?;
    let heard = client.hear().await?;
    ensure!(heard["stopped"] == true, "{heard}");
    let grown = gateway.rss()?.saturating_sub(before);
    ensure!(grown < 16 << 20, "{} KiB", grown >> 10);
    Ok(())
}
