//! Frames that are none, that come at the wrong time, that ask for too much.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::raw::{Carrier, Raw};

use crate::support::{Bystanders, MIB};

const FRAME: usize = 128 << 10;

/// Bytes, and the code that they end a session with.
fn bad_frames(carrier: Carrier) -> Vec<(&'static str, Bytes, u32)> {
    let large = format!(r#"{{"id":2,"publish":{{"channel":"room:1","data":"{}"}}}}"#, "x".repeat(FRAME));
    if carrier.is_text() {
        let many = vec![r#"{"pong":{}}"#; 257].join(",");
        // On long poll what is sent is already within an array.
        let many = if carrier == Carrier::LongPoll { many } else { format!("[{many}]") };
        vec![
            ("cut off", Bytes::from_static(br#"{"id":2,"subscribe":{"chan"#), 4001),
            ("no JSON", Bytes::from_static(b"hello"), 4001),
            ("bad UTF-8", Bytes::from_static(b"{\"id\":2,\"subscribe\":{\"channel\":\"\xff\xfe\"}}"), 4001),
            ("an unknown body", Bytes::from_static(br#"{"id":2,"teleport":{}}"#), 4001),
            ("no body", Bytes::from_static(br#"{"id":2}"#), 4001),
            ("two bodies", Bytes::from_static(br#"{"pong":{},"done":{}}"#), 4001),
            ("a wrong type", Bytes::from_static(br#"{"id":"two","pong":{}}"#), 4001),
            (
                "bad base64",
                Bytes::from_static(br#"{"id":2,"publish":{"channel":"a","data_base64":"*"}}"#),
                4001,
            ),
            ("257 frames", Bytes::from(many), 4001),
            ("over the limit", Bytes::from(large), 4002),
        ]
    } else {
        let huge = carrier.encode(&serde_json::from_str(&large).expect("a frame"));
        // A WebSocket message has its own length; on a stream the announced one alone must do.
        let announced =
            if carrier == Carrier::WebSocketProto { huge } else { Bytes::from_static(b"\x81\x80\x80\x10") };
        vec![
            ("an endless length", Bytes::from_static(&[0xff; 6]), 4001),
            ("no protobuf", Bytes::from_static(b"\x05hello"), 4001),
            ("bad UTF-8", Bytes::from_static(b"\x06\x1a\x04\x0a\x02\xff\xfe"), 4001),
            ("an unknown body", Bytes::from_static(b"\x03\xd2\x05\x00"), 4001),
            ("no body", Bytes::from_static(b"\x02\x08\x02"), 4001),
            // publish { channel: "a", data: `{` }
            ("data that is no JSON", Bytes::from_static(b"\x08\x2a\x06\x0a\x01a\x12\x01{"), 4001),
            ("over the limit", announced, 4002),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_frame_ends_the_session_with_its_code() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let mut bystanders = Bystanders::begin(&gateway).await?;
    for carrier in Carrier::ALL {
        for (what, bytes, code) in bad_frames(carrier) {
            for greeted in [true, false] {
                let mut raw = if greeted {
                    Raw::connect(&gateway, carrier).await?
                } else {
                    Raw::dial(&gateway, carrier).await?
                };
                // The server may close before it has taken all of it.
                let _ = raw.send_bytes(bytes.clone()).await;
                let end = raw.end().await.with_context(|| format!("{carrier}: {what}"))?;
                ensure!(
                    end.transport == code && end.frame == code,
                    "{carrier}: {what} (after connect: {greeted}) is to end with {code}: {end:?}"
                );
                bystanders.publish(&gateway).await?;
            }
        }
    }
    bystanders.check(&gateway, 48 * MIB).await
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_at_the_wrong_time_or_place_end_the_session() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let mut bystanders = Bystanders::begin(&gateway).await?;
    for carrier in Carrier::ALL {
        let mut early = Raw::dial(&gateway, carrier).await?;
        early.send(&json!({ "id": 1, "subscribe": { "channel": "room:1" } })).await?;
        let end = early.end().await?;
        ensure!((end.frame, end.transport) == (4003, 4003), "{carrier}: before connect: {end:?}");

        let mut twice = Raw::connect(&gateway, carrier).await?;
        twice.send(&json!({ "id": 2, "connect": {} })).await?;
        let end = twice.end().await?;
        ensure!((end.frame, end.transport) == (4003, 4003), "{carrier}: a second connect: {end:?}");

        let mut over = Raw::connect(&gateway, carrier).await?;
        over.send(&json!({ "done": {} })).await?;
        let end = over.end().await?;
        ensure!((end.frame, end.transport) == (4000, 4000), "{carrier}: done: {end:?}");

        if carrier != Carrier::LongPoll {
            let mut aside = Raw::connect(&gateway, carrier).await?;
            let publish = json!({ "id": 2, "publish": { "channel": "room:1", "data": 1 } });
            aside.send_aside(carrier.encode(&publish)).await?;
            let code = if carrier.label() == "websocket" { 4007 } else { 4003 };
            let end = aside.end().await?;
            ensure!((end.frame, end.transport) == (code, code), "{carrier}: aside: {end:?}");
        }
        bystanders.publish(&gateway).await?;
    }
    let history = gateway.api(tidegate_interop_tests::http::get("/v1/channels/room:1/history")).await?;
    ensure!(history.json()["position"]["offset"] == 0, "something was published: {}", history.text());
    bystanders.check(&gateway, 48 * MIB).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_a_limit_are_refused_and_the_session_lives_on() -> Result<()> {
    let config = "namespaces_unknown = \"refuse\"\n[limits]\nsubscriptions = 8\n[namespaces.room]\n[namespaces.calm]\n\
                  [namespaces.typing]\nephemeral_only = true\npresence = \"off\"\n";
    let gateway = Gateway::dev(config).await?;
    let mut bystanders = Bystanders::begin(&gateway).await?;
    let payload = "x".repeat((64 << 10) - 1);
    let bytes = BASE64_STANDARD.encode(vec![7; (64 << 10) + 1]);
    let name = format!("room:{}", "n".repeat(251));
    let refused = [
        ("a large payload", json!({ "publish": { "channel": "room:1", "data": payload } }), 413),
        ("large bytes", json!({ "publish": { "channel": "room:1", "data_base64": bytes } }), 413),
        ("no payload", json!({ "publish": { "channel": "room:1" } }), 400),
        (
            "two payloads",
            json!({ "publish": { "channel": "room:1", "data": 1, "data_base64": "AA==" } }),
            400,
        ),
        ("a long key", json!({ "publish": { "channel": "room:1", "data": 1, "key": "k".repeat(129) } }), 413),
        ("a long name", json!({ "publish": { "channel": name, "data": 1 } }), 400),
        ("a long name to subscribe to", json!({ "subscribe": { "channel": name } }), 400),
        ("a name with a space", json!({ "subscribe": { "channel": "room: 1" } }), 400),
        ("no name", json!({ "subscribe": {} }), 400),
        (
            "a long epoch",
            json!({ "subscribe": { "channel": "room:1", "position": { "epoch": "e".repeat(65), "offset": 1 } } }),
            400,
        ),
        ("an unknown namespace", json!({ "subscribe": { "channel": "sea:1" } }), 404),
        ("publishing there", json!({ "publish": { "channel": "sea:1", "data": 1 } }), 404),
        ("durable where nothing is", json!({ "publish": { "channel": "typing:1", "data": 1 } }), 403),
        ("leaving what was not joined", json!({ "unsubscribe": { "channel": "room:1" } }), 404),
        ("presence where none is kept", json!({ "presence": { "channel": "typing:1" } }), 501),
        ("rpc", json!({ "rpc": { "method": "a", "data": 1 } }), 501),
        ("a bad token", json!({ "refresh": { "token": "not a token" } }), 401),
        ("a large token", json!({ "refresh": { "token": "t".repeat((8 << 10) + 1) } }), 413),
    ];
    for carrier in Carrier::ALL {
        let mut raw = Raw::connect(&gateway, carrier).await?;
        for (id, (what, request, code)) in (10..).zip(&refused) {
            let mut request = request.clone();
            request["id"] = id.into();
            let reply = raw.ask(&request).await.with_context(|| format!("{carrier}: {what}"))?;
            ensure!(
                reply["error"]["code"] == *code,
                "{carrier}: {what} is to be refused with {code}: {reply}"
            );
        }
        // Without an id a success says nothing; a failure is told.
        raw.send(&json!({ "subscribe": { "channel": "sea:2" } })).await?;
        let frame = raw.frame().await?;
        ensure!(frame["error"]["code"] == 404 && frame["id"].is_null(), "{carrier}: {frame}");
        flood(&mut raw).await?;
        let reply =
            raw.ask(&json!({ "id": 99, "publish": { "channel": "room:1", "data": "alive" } })).await?;
        ensure!(reply["published"]["position"].is_object(), "{carrier}: {reply}");
        bystanders.publish(&gateway).await?;
    }
    bystanders.check(&gateway, 48 * MIB).await
}

/// Subscriptions past the limit of 8.
async fn flood(raw: &mut Raw) -> Result<()> {
    let carrier = raw.carrier;
    for n in 0..300_u64 {
        raw.send(&json!({ "id": 1000 + n, "subscribe": { "channel": format!("room:flood-{n}") } })).await?;
        if n < 8 || n % 50 == 0 {
            let reply = raw.reply(1000 + n).await?;
            let code: &Value = &reply["error"]["code"];
            ensure!(
                if n < 8 { code.is_null() } else { *code == 429 },
                "{carrier}: subscription {n}: {reply}"
            );
        }
    }
    // The last refusal.
    let reply = raw.reply(1299).await?;
    ensure!(reply["error"]["code"] == 429 && reply["error"]["retry"] == true, "{carrier}: {reply}");
    let again = raw.ask(&json!({ "id": 2000, "subscribe": { "channel": "room:flood-1" } })).await?;
    ensure!(again["error"]["code"] == 409, "{carrier}: {again}");
    let left = raw.ask(&json!({ "id": 2001, "unsubscribe": { "channel": "room:flood-1" } })).await?;
    ensure!(left["unsubscribed"]["channel"] == "room:flood-1", "{carrier}: {left}");
    let joined = raw.ask(&json!({ "id": 2002, "subscribe": { "channel": "room:next" } })).await?;
    ensure!(joined["subscribed"]["channel"] == "room:next", "{carrier}: {joined}");
    Ok(())
}
