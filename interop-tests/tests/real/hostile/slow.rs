//! Clients that do not finish, do not speak, do not read.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_interop_tests::clients::{Collector, from_heads, native};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::dial;
use tidegate_interop_tests::raw::{Carrier, Raw, Received, first_flight};
use tidegate_interop_tests::wait::{PATIENCE, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use crate::support::{Bystanders, MIB};

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_finish_a_handshake_is_cut_off() -> Result<()> {
    let gateway = Gateway::dev("[limits]\nhandshake = \"2s\"\n").await?;
    let mut bystanders = Bystanders::begin(&gateway).await?;
    let mut waiting = Vec::new();
    // Nothing at all, half of a ClientHello, half of a request.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh";
    let request = b"GET /v1/connect HTTP/1.1\r\nhost: a\r\nupgra";
    for _ in 0..50 {
        let (tls, plain) = (gateway.addresses.tls, gateway.addresses.plain);
        for (address, bytes) in [(tls, &b""[..]), (tls, hello), (plain, b""), (plain, request)] {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(bytes).await?;
            waiting.push(stream);
        }
    }
    let flight = first_flight(&gateway)?;
    let mut flights = Vec::new();
    for _ in 0..50 {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.send_to(&flight, gateway.addresses.quic).await?;
        flights.push(socket);
    }
    bystanders.publish(&gateway).await?;
    let mut encrypted = dial(gateway.addresses.tls, Some(gateway.tls(&[b"http/1.1"]))).await?;
    encrypted.write_all(b"GET /v1/conn").await?;
    for stream in &mut waiting {
        closed(stream).await?;
    }
    closed(&mut encrypted).await?;

    // A header that comes byte by byte is not read for longer than a whole one may take.
    let mut stream = dial(gateway.addresses.plain, None).await?;
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let trickle = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        for byte in b"GET /v1/connect HTTP/1.1\r\nx-slow: ".iter().chain([b'x'; 10_000].iter()) {
            ticks.tick().await;
            if write.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    };
    let ended = async {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = read.read_to_end(&mut rest).await;
    };
    within(Duration::from_secs(15), "the end of a trickle", async {
        tokio::select! { () = trickle => {}, () = ended => {} }
    })
    .await?;
    bystanders.check(&gateway, 48 * MIB).await
}

async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<()> {
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = within(Duration::from_secs(15), "the end of a handshake", stream.read_to_end(&mut rest)).await?;
    Ok(())
}

const SILENCE: &str = "[limits]\nconnect = \"1500ms\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_told_4102() -> Result<()> {
    let gateway = Gateway::dev(SILENCE).await?;
    let mut bystanders = Bystanders::begin(&gateway).await?;
    // Long poll's first request is its first frame.
    for carrier in [Carrier::WebSocket, Carrier::WebSocketProto, Carrier::WebSocketH2] {
        let mut raw = Raw::dial(&gateway, carrier).await?;
        let end = raw.end().await?;
        ensure!((end.frame, end.transport) == (4102, 4102), "{carrier}: {end:?}");
        bystanders.publish(&gateway).await?;
    }
    // Half of a frame is none.
    for carrier in [Carrier::Quic, Carrier::WebTransport] {
        let mut raw = Raw::dial(&gateway, carrier).await?;
        raw.send_bytes(vec![9, 8].into()).await?;
        let end = raw.end().await?;
        ensure!((end.frame, end.transport) == (4102, 4102), "{carrier}: half a frame: {end:?}");
        bystanders.publish(&gateway).await?;
    }
    bystanders.check(&gateway, 48 * MIB).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_no_control_stream_is_closed_with_4102() -> Result<()> {
    let gateway = Gateway::dev(SILENCE).await?;
    // There is no lane for a close frame: the transport's own close tells.
    let mut quic = Raw::dial(&gateway, Carrier::Quic).await?;
    let mut web_transport = Raw::dial(&gateway, Carrier::WebTransport).await?;
    let ends = [quic.end().await?, web_transport.end().await?];
    ensure!(ends.iter().all(|end| end.transport == 4102), "{ends:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_pings_is_told_4103() -> Result<()> {
    let gateway = Gateway::dev("[limits]\nping = \"2s\"\npong = \"1s\"\n").await?;
    let mut bystanders = Bystanders::begin(&gateway).await?;
    let mut silent = Vec::new();
    for carrier in Carrier::ALL {
        if carrier != Carrier::LongPoll {
            silent.push(Raw::connect(&gateway, carrier).await?);
        }
    }
    for raw in &mut silent {
        let end = raw.end().await?;
        ensure!((end.frame, end.transport) == (4103, 4103), "{}: {end:?}", raw.carrier);
        ensure!(end.frames.iter().any(|frame| frame["ping"].is_object()), "{}: never pinged", raw.carrier);
        bystanders.publish(&gateway).await?;
    }
    gateway.until_metric("tidegate_edge_heartbeat_failures_total", |count| count == 5.0).await?;
    bystanders.check(&gateway, 48 * MIB).await
}

const ITEMS: usize = 1_200;
const ITEM: usize = 32 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_costs_little_and_gets_everything_later_or_is_told() -> Result<()> {
    let config = format!(
        "[limits]\nsubscription_queue = \"256KiB\"\nsession_queue = \"512KiB\"\nping = \"5m\"\n\
         [namespaces.deep]\nhistory_count = 10000\nhistory_bytes = \"{}MiB\"\n\
         [namespaces.shallow]\nhistory_count = 16\n",
        2 * ITEMS * ITEM / (1 << 20)
    );
    let gateway = Gateway::dev(&config).await?;
    let bystanders = Bystanders::begin(&gateway).await?;
    let wishes = from_heads(&["deep:1"]);
    let mut reader = Collector::begin(native(&gateway, "wss", None, &wishes).await?, &wishes).await?;
    let mut sleepers = Vec::new();
    for carrier in Carrier::ALL {
        for channel in ["deep:1", "shallow:1"] {
            let mut raw = Raw::connect(&gateway, carrier).await?;
            let reply = raw.ask(&json!({ "id": 2, "subscribe": { "channel": channel } })).await?;
            ensure!(reply["subscribed"].is_object(), "{carrier}: {reply}");
            sleepers.push((raw, channel));
        }
    }
    let before = gateway.rss()?;
    // More than sockets, windows and queues together hold.
    let data = "z".repeat(ITEM);
    for first in (0..ITEMS).step_by(20) {
        let bodies: Vec<_> = (first..first + 20)
            .flat_map(|n| {
                ["deep:1", "shallow:1"].map(|channel| json!({ "channel": channel, "data": [n, data] }))
            })
            .collect();
        gateway.publish_batch(&bodies).await?;
        // One who reads is not held up by those who do not.
        reader.collect(first + 20).await.context("a reader beside clients that do not read")?;
    }
    let history = (ITEMS * ITEM) as u64;
    let grown = gateway.rss()?.saturating_sub(before);
    ensure!(grown < history + 96 * MIB, "memory grew by {} MiB for {} sleepers", grown / MIB, sleepers.len());
    ensure!(reader.rebased.is_empty(), "the reader was rebased");

    for (raw, channel) in &mut sleepers {
        let what = format!("{} on {channel}", raw.carrier);
        let told = awake(raw, &gateway, channel).await.context(what.clone())?;
        ensure!(told || *channel == "deep:1", "{what}: nothing was told, though history holds 16 alone");
        ensure!(!told || *channel == "shallow:1", "{what}: was rebased, though history holds everything");
    }
    bystanders.check(&gateway, history + 128 * MIB).await
}

/// Reads until the newest publication, which it makes itself; whether it was told that something is missing.
async fn awake(raw: &mut Raw, gateway: &Gateway, channel: &str) -> Result<bool> {
    let newest = gateway.publish(channel, json!("newest")).await?["offset"].as_u64().context("an offset")?;
    let mut seen = BTreeSet::new();
    let mut told = None;
    let take = |publication: &Value, seen: &mut BTreeSet<u64>| {
        let offset = publication["offset"].as_u64().context("an offset")?;
        ensure!(seen.insert(offset), "offset {offset} came twice");
        anyhow::Ok(())
    };
    // Those that were on their way before the gap are complete, and so are those after it.
    while !seen.contains(&newest) || (told.is_none() && seen.len() as u64 != newest) {
        let received = within(PATIENCE, format!("more after {:?}", seen.last()), raw.recv()).await??;
        match received {
            Received::Frame(frame) if frame["publication"].is_object() => {
                take(&frame["publication"], &mut seen)?
            }
            Received::Frame(frame) if frame["subscribed"].is_object() => {
                let subscribed = &frame["subscribed"];
                ensure!(frame["id"].is_null() && subscribed["recovered"] == false, "{frame}");
                told = subscribed["position"]["offset"].as_u64();
                // It may be told more than once while the channel goes on.
                seen.retain(|offset| told.is_some_and(|told| *offset > told));
                if told == Some(newest) {
                    return Ok(true);
                }
            }
            Received::Frame(_) => {}
            Received::Closed { code, reason } => anyhow::bail!("closed with {code}: {reason}"),
        }
    }
    if let Some(told) = told {
        let after: Vec<_> = seen.range(told + 1..).copied().collect();
        ensure!(
            after == (told + 1..=newest).collect::<Vec<_>>(),
            "after {told} came {after:?}, not all up to {newest}"
        );
    }
    Ok(told.is_some())
}
