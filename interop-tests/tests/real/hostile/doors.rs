//! Who is not let in: by token, origin, subprotocol, or the shape of a request.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use serde_json::json;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{Answer, dial, get, post, send};
use tidegate_interop_tests::raw::{Carrier, Greeting, Raw, Refused};
use tidegate_interop_tests::wait::{PATIENCE, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Bystanders, MIB};

const SECRET: &str = "auth.anonymous = false\n[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n";

/// How the door was closed.
async fn refusal(gateway: &Gateway, carrier: Carrier, greeting: &Greeting) -> Result<StatusCode> {
    if carrier == Carrier::LongPoll {
        let mut request = post("/v1/poll", r#"{"frames":[{"id":1,"connect":{}}]}"#);
        add(&mut request, greeting)?;
        return Ok(send(gateway.addresses.tls, Some(gateway.tls(&[b"http/1.1"])), request).await?.status);
    }
    match Raw::dial_as(gateway, carrier, greeting).await {
        Ok(_) => anyhow::bail!("{carrier}: was let in with {greeting:?}"),
        Err(error) => Ok(error.downcast::<Refused>().with_context(|| carrier.to_string())?.status),
    }
}

fn add(request: &mut Request<Full<bytes::Bytes>>, greeting: &Greeting) -> Result<()> {
    if let Some(token) = &greeting.bearer {
        request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {token}").parse()?);
    }
    if let Some(origin) = &greeting.origin {
        request.headers_mut().insert(header::ORIGIN, origin.parse()?);
    }
    if let Some(token) = &greeting.query {
        *request.uri_mut() = format!("{}?token={token}", request.uri()).parse()?;
    }
    Ok(())
}

/// Everything that HTTP opens.
const HTTP: [Carrier; 4] =
    [Carrier::WebTransport, Carrier::WebSocket, Carrier::WebSocketH2, Carrier::LongPoll];

async fn sessions(gateway: &Gateway) -> Result<f64> {
    let metrics = gateway.metrics().await?;
    Ok(metrics
        .iter()
        .filter(|(name, _)| name.starts_with("tidegate_edge_connects_total"))
        .map(|(_, value)| value)
        .sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_gets_401_before_anything_is_allocated() -> Result<()> {
    let gateway = Gateway::dev(SECRET).await?;
    let good = gateway.token(&["--user", "ann", "--subscribe", "*"]).await?;
    let forged = format!("{}x", &good[..good.len() - 2]);
    let old = gateway.token(&["--user", "ann", "--expires", "0s"]).await?;
    for token in [forged.as_str(), old.as_str(), "nonsense"] {
        for carrier in HTTP {
            let header = Greeting { bearer: Some(token.to_owned()), ..Greeting::default() };
            let query = Greeting { query: Some(token.to_owned()), ..Greeting::default() };
            for greeting in [header, query] {
                let status = refusal(&gateway, carrier, &greeting).await?;
                ensure!(status == StatusCode::UNAUTHORIZED, "{carrier}: {status} for {greeting:?}");
            }
        }
        let path = format!("/v1/channels/room:1/poll?token={token}");
        let answer = gateway.plain(get(&path)).await?;
        ensure!(
            answer.status == StatusCode::UNAUTHORIZED && answer.json()["error"]["code"] == 401,
            "{}",
            answer.text()
        );
    }
    ensure!(sessions(&gateway).await? == 0.0, "a session was opened");
    // In `connect` it is told by a close frame, and so is that there was none at all.
    for token in [Some(forged.as_str()), Some(old.as_str()), Some("nonsense"), None] {
        for carrier in Carrier::ALL {
            let mut raw = Raw::dial(&gateway, carrier).await?;
            let connect = token.map_or_else(|| json!({}), |token| json!({ "token": token }));
            raw.send(&json!({ "id": 1, "connect": connect })).await?;
            let end = raw.end().await?;
            ensure!((end.frame, end.transport) == (4004, 4004), "{carrier}: {token:?}: {end:?}");
            let policy = &end.frames[0]["close"]["reconnect"]["policy"];
            ensure!(policy == "fresh_token", "{carrier}: {policy}");
        }
    }
    ensure!(sessions(&gateway).await? == 0.0, "a session was opened");
    for carrier in Carrier::ALL {
        Raw::connect_as(&gateway, carrier, &Greeting::default(), Some(&good)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_gets_403() -> Result<()> {
    let gateway = Gateway::dev("[auth]\norigins = [\"https://app.example\"]\n").await?;
    let bystanders = Bystanders::begin(&gateway).await?;
    for origin in ["https://evil.example", "https://app.example.evil.example", "http://app.example", "null"] {
        let greeting = Greeting { origin: Some(origin.to_owned()), ..Greeting::default() };
        for carrier in HTTP {
            let status = refusal(&gateway, carrier, &greeting).await?;
            ensure!(status == StatusCode::FORBIDDEN, "{carrier}: {status} for {origin}");
        }
        let mut request = get("/v1/channels/room:1/poll");
        add(&mut request, &greeting)?;
        let answer = gateway.plain(request).await?;
        ensure!(answer.status == StatusCode::FORBIDDEN, "{}", answer.text());
    }
    let greeting = Greeting { origin: Some("https://app.example".to_owned()), ..Greeting::default() };
    for carrier in HTTP {
        Raw::connect_as(&gateway, carrier, &greeting, None).await?;
    }
    bystanders.check(&gateway, 48 * MIB).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_out_of_shape_get_their_status() -> Result<()> {
    let gateway = Gateway::dev("[limits]\nhandshake = \"2s\"\n").await?;
    let mut bystanders = Bystanders::begin(&gateway).await?;
    for carrier in [Carrier::WebSocket, Carrier::WebSocketH2] {
        let unknown = Greeting { subprotocols: Some("mqtt, chat".to_owned()), ..Greeting::default() };
        let status = refusal(&gateway, carrier, &unknown).await?;
        ensure!(status == StatusCode::BAD_REQUEST, "{carrier}: {status} for unknown subprotocols");
    }
    bystanders.publish(&gateway).await?;

    // A header over 16 KiB.
    let large = ("x-large".to_owned(), "x".repeat(20 << 10));
    for carrier in HTTP {
        let greeting = Greeting { header: Some(large.clone()), ..Greeting::default() };
        match carrier {
            Carrier::LongPoll => {
                let mut request = post("/v1/poll", r#"{"frames":[{"id":1,"connect":{}}]}"#);
                request.headers_mut().insert("x-large", HeaderValue::from_str(&large.1)?);
                let answer = gateway.plain(request).await?;
                ensure!(
                    answer.status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "{carrier}: {}",
                    answer.status
                );
            }
            Carrier::WebSocket | Carrier::WebSocketH2 => {
                let status = refusal(&gateway, carrier, &greeting).await?;
                ensure!(status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "{carrier}: {status}");
            }
            _ => {
                let dialled = Raw::dial_as(&gateway, carrier, &greeting).await;
                ensure!(dialled.is_err(), "{carrier}: a header of 20 KiB was taken");
            }
        }
        bystanders.publish(&gateway).await?;
    }

    let status = |answer: &Answer, status: u16| {
        let (seen, text) = (answer.status.as_u16(), answer.text());
        if seen == status { Ok(()) } else { Err(anyhow::anyhow!("{seen} instead of {status}: {text}")) }
    };
    let code = |answer: &Answer| answer.json()["frames"][0]["close"]["code"].as_u64();
    let poll = |body: String| gateway.plain(post("/v1/poll", body));
    let answer = poll("x".repeat((256 << 10) + 1)).await?;
    status(&answer, 413)?;
    ensure!(code(&answer) == Some(4002), "{}", answer.text());
    for malformed in ["", "{", "[]", r#"{"frames":3}"#, r#"{"session":7,"frames":[]}"#] {
        let answer = poll(malformed.to_owned()).await?;
        status(&answer, 400).with_context(|| malformed.to_owned())?;
        ensure!(code(&answer) == Some(4001), "{malformed}: {}", answer.text());
    }
    let answer = poll(r#"{"session":"00112233445566778899aabbccddee00","frames":[]}"#.to_owned()).await?;
    status(&answer, 404)?;
    ensure!(answer.json()["frames"][0]["close"]["reconnect"]["policy"] == "now", "{}", answer.text());
    ensure!(code(&answer) == Some(4200), "{}", answer.text());
    let opened = poll(r#"{"frames":[{"id":1,"connect":{}}]}"#.to_owned()).await?.json();
    let session = opened["session"].as_str().context("a session")?;
    let answer = poll(format!(r#"{{"session":"{session}","ack":7,"frames":[]}}"#)).await?;
    status(&answer, 400)?;
    ensure!(code(&answer) == Some(4003), "{}", answer.text());
    for (request, expected) in [
        (get("/v1/poll"), 405),
        (post("/v1/channels/room:1/poll", ""), 405),
        (get("/v1/nothing"), 404),
        (get("/v1/connect"), 426),
        (get("/v1/channels/%20/poll"), 400),
        (get(&format!("/v1/channels/room:{}/poll", "n".repeat(251))), 400),
        (get("/v1/channels/room:1/poll?offset=many"), 400),
        (get("/v1/channels/%FF/poll"), 400),
    ] {
        let what = format!("{} {}", request.method(), request.uri());
        status(&gateway.plain(request).await?, expected).context(what)?;
    }
    bystanders.publish(&gateway).await?;

    // A body that is announced and never comes.
    let mut stream = dial(gateway.addresses.plain, None).await?;
    stream.write_all(b"POST /v1/poll HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{\"frames\"").await?;
    let mut answer = Vec::new();
    within(Duration::from_secs(15), "an answer to half a body", stream.read_to_end(&mut answer)).await??;
    ensure!(answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    // Many that are announced too large are refused without being read.
    for _ in 0..20 {
        let mut stream = dial(gateway.addresses.plain, None).await?;
        stream.write_all(b"POST /v1/poll HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000000\r\n\r\n").await?;
        let mut start = [0; 12];
        within(PATIENCE, "an answer to a huge body", stream.read_exact(&mut start)).await??;
        ensure!(start.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&start));
    }
    bystanders.check(&gateway, 48 * MIB).await
}
