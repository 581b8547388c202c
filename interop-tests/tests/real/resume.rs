//! Sessions that go on elsewhere with a ticket, and tickets that are not honoured.

mod early;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::post;
use tidegate_interop_tests::raw::{Carrier, Greeting, Raw, Received};
use tidegate_interop_tests::wait::until;

use crate::support::ROOMY;

const STRICT: &str = "auth.anonymous = false\n[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n\
                      [namespaces.default]\npublish = \"granted\"\nsubscribe = \"granted\"\n";

/// Frames as one write, one message or one poll.
fn flight(carrier: Carrier, frames: &[Value]) -> Bytes {
    let frames: Vec<_> = frames.iter().map(|frame| carrier.encode(frame)).collect();
    match carrier {
        Carrier::LongPoll => Bytes::from(frames.join(&b","[..])),
        Carrier::WebSocket | Carrier::WebSocketH2 => {
            Bytes::from([b"[", frames.join(&b","[..]).as_slice(), b"]"].concat())
        }
        _ => frames
            .into_iter()
            .fold(BytesMut::new(), |mut all, frame| {
                all.extend_from_slice(&frame);
                all
            })
            .freeze(),
    }
}

fn connect(ticket: &str, key: &str) -> Value {
    json!({ "id": 1, "connect": { "resume": ticket, "key": key } })
}

/// A connection that presents a ticket, and what it is told: `connected`, or the code of `close`.
async fn present(
    gateway: &Gateway,
    carrier: Carrier,
    ticket: &str,
    key: &str,
) -> Result<(Raw, Result<Value, u64>)> {
    let mut raw = Raw::dial(gateway, carrier).await?;
    raw.send(&connect(ticket, key)).await?;
    let told = match raw.recv().await? {
        Received::Frame(frame) => match frame["close"]["code"].as_u64() {
            Some(code) => Err(code),
            None if frame["connected"].is_object() => Ok(frame["connected"].clone()),
            None => bail!("{carrier}: {frame}"),
        },
        closed => bail!("{carrier}: without a word: {closed:?}"),
    };
    Ok((raw, told))
}

async fn resume(gateway: &Gateway, carrier: Carrier, ticket: &str, key: &str) -> Result<(Raw, Value)> {
    let (raw, told) = present(gateway, carrier, ticket, key).await?;
    let connected = told.map_err(|code| anyhow::anyhow!("{carrier}: refused with {code}"))?;
    ensure!(connected["resumed"] == true, "{carrier}: {connected}");
    Ok((raw, connected))
}

/// Like [`resume`], but it must be refused: with what.
async fn refused(gateway: &Gateway, carrier: Carrier, ticket: &str, key: &str) -> Result<u64> {
    match present(gateway, carrier, ticket, key).await?.1 {
        Ok(connected) => bail!("{carrier}: honoured: {connected}"),
        Err(code) => Ok(code),
    }
}

async fn begin(gateway: &Gateway, carrier: Carrier) -> Result<(Raw, Value)> {
    let (raw, connected) = Raw::connect_as(gateway, carrier, &Greeting::default(), None).await?;
    ensure!(connected["resumed"].is_null() && connected["resume"].is_string(), "{carrier}: {connected}");
    Ok((raw, connected))
}

fn ticket(connected: &Value) -> Result<&str> {
    connected["resume"].as_str().with_context(|| format!("no ticket: {connected}"))
}

/// The next ticket that a ping brings.
async fn renewed(raw: &mut Raw) -> Result<String> {
    loop {
        match raw.recv().await? {
            Received::Frame(frame) if frame["ping"].is_object() => {
                raw.send(&json!({ "pong": {} })).await?;
                if let Some(ticket) = frame["ping"]["resume"].as_str() {
                    return Ok(ticket.to_owned());
                }
            }
            Received::Frame(_) => {}
            closed => bail!("{}: {closed:?}", raw.carrier),
        }
    }
}

/// A file with ticket keys, in a folder that must outlive the gateways.
fn key_file(folder: &TempDir, keys: &[&str]) -> Result<String> {
    let path = folder.path().join("ticket-keys");
    fs::write(&path, keys.join("\n"))?;
    Ok(format!("[resume]\nkeys = [{:?}]\n", path.to_str().context("a path")?))
}

const KEYS: [&str; 2] = [
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_from_transport_to_transport_and_misses_nothing() -> Result<()> {
    use Carrier::{LongPoll, Quic, WebSocket, WebSocketH2, WebSocketProto, WebTransport};
    let gateway = Gateway::dev(&format!("node.workers = 4\n{ROOMY}")).await?;
    let orders = [
        [Quic, WebSocket, LongPoll, Quic, WebTransport, LongPoll],
        [LongPoll, WebTransport, WebSocketProto, LongPoll, WebSocketH2, Quic],
        [WebSocketH2, LongPoll, LongPoll, WebTransport, WebTransport, WebSocket],
        [WebTransport, Quic, Quic, WebSocketProto, WebSocket, LongPoll],
    ];
    for (number, order) in orders.into_iter().enumerate() {
        let channel = format!("room:{number}");
        let (mut raw, first) = begin(&gateway, order[0]).await?;
        let mut connected = first.clone();
        let reply = raw.ask(&json!({ "id": 2, "subscribe": { "channel": channel } })).await?;
        let epoch = reply["subscribed"]["position"]["epoch"].clone();
        let mut seen = 0u64;
        for (step, carrier) in order.into_iter().enumerate().skip(1) {
            gateway.publish(&channel, json!(step)).await?;
            let frame = raw.frame().await?;
            seen += 1;
            ensure!(frame["publication"]["offset"] == seen, "{}: {frame}", raw.carrier);
            // Gone without a word.
            drop(raw);
            for n in 0..3 {
                gateway.publish(&channel, json!({ "step": step, "missed": n })).await?;
            }
            raw = Raw::dial(&gateway, carrier).await?;
            let position = json!({ "epoch": epoch, "offset": seen });
            let frames = [
                connect(ticket(&connected)?, &format!("key {step}")),
                json!({ "id": 2, "subscribe": { "channel": channel, "position": position } }),
            ];
            raw.send_bytes(flight(carrier, &frames)).await?;
            let frame = raw.reply(1).await?;
            let next = &frame["connected"];
            ensure!(next["resumed"] == true && next["session"] == first["session"], "{carrier}: {frame}");
            ensure!(ticket(next)? != ticket(&connected)?, "{carrier}: the old ticket");
            connected = next.clone();
            let subscribed = raw.reply(2).await?["subscribed"].clone();
            ensure!(subscribed["recovered"] == true, "{carrier}: {subscribed}");
            let missed: Vec<_> = subscribed["publications"].as_array().context("publications")?.clone();
            let offsets: Vec<_> = missed.iter().filter_map(|each| each["offset"].as_u64()).collect();
            ensure!(offsets == [seen + 1, seen + 2, seen + 3], "{carrier}: {offsets:?} after {seen}");
            seen += 3;
        }
    }
    let resumed = gateway.metric("tidegate_edge_resumes_total{result=\"honoured\"}").await?;
    ensure!(resumed as usize == orders.len() * (orders[0].len() - 1), "{resumed}");
    ensure!(gateway.metric("tidegate_edge_tickets_total").await? as usize >= orders.len() * orders[0].len());
    Ok(())
}

/// Says something by long poll, without TLS: sessions by the thousand.
async fn poll(gateway: &Gateway, body: Value) -> Result<Value> {
    Ok(gateway.plain(post("/v1/poll", body.to_string())).await?.json())
}

async fn poll_connect(gateway: &Gateway, connect: Value) -> Result<Value> {
    poll(gateway, json!({ "frames": [{ "id": 1, "connect": connect }] })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_spent_tickets_none_resumes_anything_and_each_theft_ends_the_session() -> Result<()> {
    const THEFTS: usize = 1_000;
    let gateway = Gateway::dev("").await?;
    for batch in (0..THEFTS).collect::<Vec<_>>().chunks(50) {
        let gateway = &gateway;
        try_join_all(batch.iter().map(|&number| async move {
            let fresh = poll_connect(gateway, json!({})).await?;
            let stolen = ticket(&fresh["frames"][0]["connected"])?;
            let live = poll_connect(gateway, json!({ "resume": stolen, "key": "its own" })).await?;
            let connected = &live["frames"][0]["connected"];
            ensure!(connected["resumed"] == true, "{live}");
            ensure!(live["session"] != connected["session"], "a secret of another connection: {live}");
            let key = if number % 3 == 0 { None } else { Some(format!("thief {number}")) };
            let code = if number % 50 == 0 {
                let carrier = Carrier::ALL[number / 50 % Carrier::ALL.len()];
                refused(gateway, carrier, stolen, key.as_deref().unwrap_or_default()).await?
            } else {
                let answer = poll_connect(gateway, json!({ "resume": stolen, "key": key })).await?;
                answer["frames"][0]["close"]["code"].as_u64().with_context(|| answer.to_string())?
            };
            ensure!(code == 4008, "{code}");
            for session in [&fresh["session"], &live["session"]] {
                let last = poll(gateway, json!({ "session": session, "ack": 1, "frames": [] })).await?;
                ensure!(last["frames"][0]["close"]["code"] == 4008, "{number}: {last}");
            }
            // Nor does what the live one was given before.
            let answer = poll_connect(gateway, json!({ "resume": ticket(connected)?, "key": "x" })).await?;
            ensure!(answer["frames"][0]["close"]["code"] == 4008, "{answer}");
            Ok(())
        }))
        .await?;
    }
    for (result, count) in [("honoured", THEFTS), ("theft", THEFTS), ("revoked", THEFTS), ("repeated", 0)] {
        let metric = gateway.metric(&format!("tidegate_edge_resumes_total{{result=\"{result}\"}}")).await?;
        ensure!(metric as usize == count, "{result}: {metric}");
    }
    ensure!(gateway.metric("tidegate_edge_resumes_unchecked_total").await? == 0.0);
    ensure!(gateway.metric("tidegate_core_resumed_sessions").await? as usize == THEFTS);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_ticket_of_ours_is_refused_and_harms_nobody() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let (mut owner, connected) = begin(&gateway, Carrier::WebSocket).await?;
    let genuine = ticket(&connected)?;
    let mut forged = BTreeSet::new();
    for at in 0..genuine.len() {
        // Any other character changes one to six bits.
        let other = if &genuine[at..=at] == "A" { "B" } else { "A" };
        forged.insert(format!("{}{other}{}", &genuine[..at], &genuine[at + 1..]));
        forged.insert(genuine[..at].to_owned());
    }
    for text in [" ", "=", "null", "..", "\u{0}", "ä", "eyJhbGciOiJub25lIn0.e30."] {
        forged.insert(text.to_owned());
        forged.insert(format!("{genuine}{text}"));
        forged.insert(format!("{text}{genuine}"));
    }
    forged.insert(format!("{genuine}{genuine}"));
    forged.insert("A".repeat(60_000));
    let forged: Vec<_> = forged.into_iter().collect();
    for batch in forged.chunks(40) {
        let gateway = &gateway;
        try_join_all(batch.iter().map(|text| async move {
            let answer = poll_connect(gateway, json!({ "resume": text, "key": "k" })).await?;
            let close = &answer["frames"][0]["close"];
            ensure!(close["code"] == 4008 || close["code"] == 4202, "{text}: {answer}");
            let policy = if close["code"] == 4008 { "fresh_token" } else { "now" };
            ensure!(close["reconnect"]["policy"] == policy, "{answer}");
            Ok(())
        }))
        .await?;
    }
    for carrier in Carrier::ALL {
        // The tag, the ciphertext, the id of the key, the version.
        for (at, code) in [(genuine.len() - 5, 4008), (genuine.len() / 2, 4008), (5, 4202), (0, 4202)] {
            let other = if &genuine[at..=at] == "A" { "B" } else { "A" };
            let text = format!("{}{other}{}", &genuine[..at], &genuine[at + 1..]);
            let told = refused(&gateway, carrier, &text, "k").await?;
            ensure!(told == code, "{carrier}: character {at}: {told}");
        }
        let told = refused(&gateway, carrier, &genuine[..genuine.len() / 2], "k").await?;
        ensure!(told == 4008, "{carrier}: {told}");
    }
    let reply = owner.ask(&json!({ "id": 2, "subscribe": { "channel": "room:1" } })).await?;
    ensure!(reply["subscribed"].is_object(), "{reply}");
    resume(&gateway, Carrier::Quic, genuine, "k").await?;
    let log = gateway.log();
    ensure!(
        !log.contains(genuine) && !log.contains(connected["session"].as_str().context("an id")?),
        "{log}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_grows_old_and_a_live_session_is_given_fresher_ones() -> Result<()> {
    let gateway = Gateway::dev("resume.lifetime = \"2s\"").await?;
    for carrier in Carrier::FOUR {
        let (mut raw, connected) = begin(&gateway, carrier).await?;
        let mut fresh = String::new();
        // Renewed each second: after the third the first is past its end.
        for _ in 0..3 {
            fresh = renewed(&mut raw).await.with_context(|| carrier.to_string())?;
        }
        let told = refused(&gateway, carrier, ticket(&connected)?, "k").await?;
        ensure!(told == 4201, "{carrier}: {told}");
        let (_, resumed) = resume(&gateway, carrier, &fresh, "k").await?;
        ensure!(resumed["session"] == connected["session"], "{carrier}: {resumed}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_wherever_its_key_is() -> Result<()> {
    let folder = TempDir::new()?;
    let config = key_file(&folder, &KEYS)?;
    let (ours, shared, other) = tokio::try_join!(
        Gateway::dev(&config),
        Gateway::dev(&config),
        Gateway::dev("node.name = \"other\"")
    )?;
    for carrier in Carrier::FOUR {
        let (_raw, connected) = begin(&ours, carrier).await?;
        let told = refused(&other, carrier, ticket(&connected)?, "k").await?;
        ensure!(told == 4202, "{carrier}: {told}");
        let (_raw, resumed) = resume(&shared, carrier, ticket(&connected)?, "k").await?;
        ensure!(resumed["session"] == connected["session"], "{carrier}: {resumed}");
        let (_raw, again) = resume(&ours, carrier, ticket(&resumed)?, "k2").await?;
        ensure!(again["session"] == connected["session"], "{carrier}: {again}");
        begin(&other, carrier).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_while_sessions_run() -> Result<()> {
    let folder = TempDir::new()?;
    let gateway = Gateway::dev(&key_file(&folder, &KEYS[..1])?).await?;
    let reload = async |keys: &[&str], times: usize| {
        key_file(&folder, keys)?;
        gateway.signal(Signal::SIGHUP)?;
        until("other keys", || async {
            let log = gateway.log();
            ensure!(log.matches("ticket keys read again").count() == times, "{log}");
            Ok(())
        })
        .await
    };
    let (_old, connected) = begin(&gateway, Carrier::Quic).await?;
    let sealed_by = |text: &str| text[..11].to_owned();
    reload(&[KEYS[1], KEYS[0]], 1).await?;
    let (_raw, resumed) = resume(&gateway, Carrier::WebSocket, ticket(&connected)?, "k").await?;
    ensure!(sealed_by(ticket(&resumed)?) != sealed_by(ticket(&connected)?), "sealed with the old key");
    let (_raw, before) = begin(&gateway, Carrier::Quic).await?;
    ensure!(sealed_by(ticket(&resumed)?) == sealed_by(ticket(&before)?));
    reload(&KEYS[..1], 2).await?;
    ensure!(refused(&gateway, Carrier::LongPoll, ticket(&before)?, "k").await? == 4202);
    // What cannot be read changes nothing, and the operator is told why.
    fs::write(folder.path().join("ticket-keys"), "half a key")?;
    gateway.signal(Signal::SIGHUP)?;
    until("a report", || async {
        let log = gateway.log();
        ensure!(log.contains("line 1 is no ticket key") && log.contains("the old ones stay"), "{log}");
        Ok(())
    })
    .await?;
    let (_raw, connected) = begin(&gateway, Carrier::Quic).await?;
    resume(&gateway, Carrier::LongPoll, ticket(&connected)?, "k").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_attempt_may_come_again_by_any_transport() -> Result<()> {
    let gateway = Gateway::dev("node.workers = 4\nresume.grace = \"1m\"").await?;
    for (index, first) in Carrier::FOUR.into_iter().enumerate() {
        for second in [Carrier::FOUR[(index + 1) % 4], first] {
            let (mut old, connected) = begin(&gateway, first).await?;
            let (mut lost, one) = resume(&gateway, first, ticket(&connected)?, "k").await?;
            let (mut raw, two) = resume(&gateway, second, ticket(&connected)?, "k").await?;
            ensure!(one["session"] == two["session"], "{first}, {second}: {two}");
            let end = lost.end().await?;
            ensure!((end.frame, end.transport) == (4009, 4009), "{first}, {second}: {end:?}");
            for (raw, id) in [(&mut raw, 2), (&mut old, 2)] {
                let reply = raw.ask(&json!({ "id": id, "subscribe": { "channel": "room:1" } })).await?;
                ensure!(reply["subscribed"].is_object(), "{first}, {second}: {reply}");
            }
            // What either was told is good for one further attempt.
            resume(&gateway, second, ticket(&one)?, "k2").await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_connections_deliver_until_the_older_one_is_done_or_the_grace_is_over() -> Result<()> {
    let gateway = Gateway::dev("node.workers = 4\nresume.grace = \"1s\"").await?;
    for (index, carrier) in Carrier::FOUR.into_iter().enumerate() {
        for said_done in [false, true] {
            let channel = format!("room:{index}{said_done}");
            let (mut old, connected) = begin(&gateway, carrier).await?;
            old.ask(&json!({ "id": 2, "subscribe": { "channel": channel } })).await?;
            let (mut new, _) =
                resume(&gateway, Carrier::FOUR[(index + 1) % 4], ticket(&connected)?, "k").await?;
            new.ask(&json!({ "id": 2, "subscribe": { "channel": channel } })).await?;
            gateway.publish(&channel, json!("both")).await?;
            for raw in [&mut old, &mut new] {
                let frame = raw.frame().await?;
                ensure!(frame["publication"]["data"] == "both", "{}: {frame}", raw.carrier);
            }
            if said_done {
                old.send(&json!({ "done": {} })).await?;
            }
            let end = old.end().await?;
            let code = if said_done { 4000 } else { 4009 };
            ensure!((end.frame, end.transport) == (code, code), "{carrier}: {end:?}");
            gateway.publish(&channel, json!("one")).await?;
            let frame = new.frame().await?;
            ensure!(frame["publication"]["data"] == "one", "{}: {frame}", new.carrier);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_theft_ends_both_connections_and_no_ticket_of_the_session_is_good_any_more() -> Result<()> {
    let gateway = Gateway::dev("node.workers = 4\nresume.lifetime = \"4s\"").await?;
    for (index, carrier) in Carrier::FOUR.into_iter().enumerate() {
        let (mut old, connected) = begin(&gateway, carrier).await?;
        let other = Carrier::FOUR[(index + 1) % 4];
        let (mut new, resumed) = resume(&gateway, other, ticket(&connected)?, "k").await?;
        let fresh = renewed(&mut new).await?;
        let (_bystander, spared) = begin(&gateway, carrier).await?;
        ensure!(refused(&gateway, carrier, ticket(&connected)?, "another").await? == 4008);
        for raw in [&mut old, &mut new] {
            let end = raw.end().await?;
            ensure!((end.frame, end.transport) == (4008, 4008), "{carrier}: {}: {end:?}", raw.carrier);
        }
        for text in [ticket(&resumed)?, &fresh, ticket(&connected)?] {
            let told = refused(&gateway, other, text, "k").await?;
            ensure!(told == 4008, "{carrier}: {told}");
        }
        resume(&gateway, other, ticket(&spared)?, "k").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_subscriptions_are_resumed_in_one_flight() -> Result<()> {
    const CHANNELS: u64 = 300;
    let gateway = Gateway::dev(ROOMY).await?;
    let bodies: Vec<_> = (0..CHANNELS)
        .flat_map(|n| [1, 2].map(|data| json!({ "channel": format!("room:{n}"), "data": data })))
        .collect();
    let positions = gateway.publish_batch(&bodies).await?;
    for carrier in Carrier::ALL {
        let (raw, connected) = begin(&gateway, carrier).await?;
        drop(raw);
        let mut frames = vec![connect(ticket(&connected)?, "k")];
        for n in 0..CHANNELS {
            let position = &positions[usize::try_from(2 * n)?];
            let subscribe = json!({ "channel": format!("room:{n}"), "position": position });
            frames.push(json!({ "id": n + 2, "subscribe": subscribe }));
        }
        let mut raw = Raw::dial(&gateway, carrier).await?;
        // A message, and a poll, hold 256 frames; nothing is awaited between two.
        for part in frames.chunks(256) {
            raw.send_bytes(flight(carrier, part)).await?;
        }
        let mut answered = BTreeSet::new();
        while answered.len() < frames.len() {
            let frame = raw.frame().await?;
            let id = frame["id"].as_u64().with_context(|| format!("{carrier}: {frame}"))?;
            ensure!(answered.insert(id), "{carrier}: twice: {frame}");
            if id == 1 {
                ensure!(answered.len() == 1 && frame["connected"]["resumed"] == true, "{carrier}: {frame}");
            } else {
                let subscribed = &frame["subscribed"];
                ensure!(subscribed["recovered"] == true, "{carrier}: {frame}");
                let offsets: Vec<_> = subscribed["publications"].as_array().into_iter().flatten().collect();
                ensure!(offsets.len() == 1 && offsets[0]["offset"] == 2, "{carrier}: {frame}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_stands_for_what_the_token_granted_until_the_token_ends() -> Result<()> {
    let gateway = Gateway::dev(STRICT).await?;
    let arguments = ["--user", "ann", "--subscribe", "room:*", "--subscription", "user:ann", "--expires"];
    let lasting = gateway.token(&[&arguments[..], &["1h"]].concat()).await?;
    let mut ending = Vec::new();
    for (index, carrier) in Carrier::FOUR.into_iter().enumerate() {
        let other = Carrier::FOUR[(index + 1) % 4];
        let brief = gateway.token(&[&arguments[..], &["6s"]].concat()).await?;
        let (_old, first) = Raw::connect_as(&gateway, carrier, &Greeting::default(), Some(&brief)).await?;
        // A refreshed token is in the ticket that comes with the next ping.
        let mut spare = None;
        if index % 2 == 0 {
            let (mut refreshing, _) =
                Raw::connect_as(&gateway, carrier, &Greeting::default(), Some(&brief)).await?;
            refreshing.send(&json!({ "id": 2, "refresh": { "token": lasting } })).await?;
            spare = Some(renewed(&mut refreshing).await?);
        }
        gateway.publish("user:ann", json!(index)).await?;
        // What the token lists is taken over in the same flight.
        let mut raw = Raw::dial(&gateway, other).await?;
        let position = &first["subscriptions"][0]["position"];
        let frames = [
            connect(ticket(&first)?, "k"),
            json!({ "id": 2, "subscribe": { "channel": "user:ann", "position": position } }),
            json!({ "id": 3, "subscribe": { "channel": "room:1" } }),
            json!({ "id": 4, "subscribe": { "channel": "user:bob" } }),
        ];
        raw.send_bytes(flight(other, &frames)).await?;
        let connected = raw.reply(1).await?["connected"].clone();
        ensure!(connected["user"] == "ann" && connected["resumed"] == true, "{other}: {connected}");
        ensure!(connected["expires_ms"].as_u64().is_some_and(|ms| ms <= 6_000), "{other}: {connected}");
        let mut replies = Vec::new();
        while replies.len() < 3 {
            let frame = raw.frame().await?;
            if frame["id"].is_u64() {
                replies.push(frame);
            }
        }
        replies.sort_by_key(|frame| frame["id"].as_u64());
        ensure!(replies[0]["subscribed"]["recovered"] == true, "{other}: {}", replies[0]);
        let missed = &replies[0]["subscribed"]["publications"];
        ensure!(missed[0]["data"] == index, "{other}: {}", replies[0]);
        ensure!(replies[1]["subscribed"].is_object(), "{other}: {}", replies[1]);
        ensure!(replies[2]["error"]["code"] == 403, "{other}: {}", replies[2]);
        if let Some(spare) = spare {
            let (_, connected) = resume(&gateway, other, &spare, "k").await?;
            ensure!(connected["expires_ms"].as_u64().is_some_and(|ms| ms > 60_000), "{other}: {connected}");
        }
        ending.push((raw, ticket(&connected)?.to_owned()));
    }
    for (mut raw, ticket) in ending {
        let end = raw.end().await?;
        ensure!((end.frame, end.transport) == (4005, 4005), "{}: {end:?}", raw.carrier);
        let told = refused(&gateway, raw.carrier, &ticket, "k").await?;
        ensure!(told == 4005, "{}: {told}", raw.carrier);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_may_issue_no_tickets() -> Result<()> {
    let (without, with) = tokio::try_join!(Gateway::dev("resume.enabled = false"), Gateway::dev(""))?;
    for carrier in Carrier::FOUR {
        let (_raw, connected) = Raw::connect_as(&without, carrier, &Greeting::default(), None).await?;
        ensure!(connected["resume"].is_null(), "{carrier}: {connected}");
        let (_raw, connected) = begin(&with, carrier).await?;
        let told = refused(&without, carrier, ticket(&connected)?, "k").await?;
        ensure!(told == 4202, "{carrier}: {told}");
        let long = "k".repeat(129);
        ensure!(refused(&with, carrier, ticket(&connected)?, &long).await? == 4008, "{carrier}");
        resume(&with, carrier, ticket(&connected)?, &long[1..]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_more_can_be_remembered_a_client_is_sent_to_its_token() -> Result<()> {
    let gateway = Gateway::dev("[core]\npartitions = 1\nmax_resumed = 2\n").await?;
    let mut live = Vec::new();
    for _ in 0..2 {
        let (raw, connected) = begin(&gateway, Carrier::WebSocket).await?;
        drop(raw);
        live.push(resume(&gateway, Carrier::WebSocket, ticket(&connected)?, "k").await?);
    }
    let (_third, connected) = begin(&gateway, Carrier::Quic).await?;
    ensure!(refused(&gateway, Carrier::Quic, ticket(&connected)?, "k").await? == 4201);
    ensure!(gateway.metric("tidegate_edge_resumes_total{result=\"full\"}").await? == 1.0);
    for (_, connected) in &live {
        resume(&gateway, Carrier::LongPoll, ticket(connected)?, "k2").await?;
    }
    tokio::time::timeout(Duration::from_secs(20), begin(&gateway, Carrier::Quic)).await??;
    Ok(())
}
