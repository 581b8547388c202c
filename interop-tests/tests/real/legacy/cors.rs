//! Pages of other origins: who is on the list reads every answer, also refusals; who is not reads nothing.

use anyhow::{Result, ensure};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{answer, dial, get, post};
use tokio_util::task::TaskTracker;

use super::proxy::blank_pages;

const ENDPOINTS: [&str; 3] = ["/v1/poll", "/v1/channels/room:1/poll", "/v1/channels/room:1/events"];

#[tokio::test(flavor = "multi_thread")]
async fn answers_say_which_page_may_read_them() -> Result<()> {
    let gateway = Gateway::dev("[auth]\norigins = [\"https://app.example\"]\n").await?;
    let from = |origin: &'static str, mut request: Request<Full<bytes::Bytes>>| {
        request.headers_mut().insert("origin", http::HeaderValue::from_static(origin));
        request
    };
    for path in ENDPOINTS {
        let preflight = Request::builder().method(Method::OPTIONS).uri(path).body(Full::default())?;
        let answer = gateway.plain(from("https://app.example", preflight)).await?;
        ensure!(answer.status == StatusCode::NO_CONTENT, "{path}: {}", answer.status);
        for (name, value) in [
            ("access-control-allow-origin", "https://app.example"),
            ("access-control-allow-methods", "GET, POST, OPTIONS"),
            ("access-control-allow-headers", "authorization, content-type, last-event-id"),
            ("access-control-max-age", "7200"),
            ("access-control-expose-headers", "retry-after, alt-svc"),
            ("vary", "origin"),
        ] {
            ensure!(answer.headers.get(name).is_some_and(|is| is == value), "{path} {name}: {answer:?}");
        }
        ensure!(!answer.headers.contains_key("access-control-allow-credentials"));

        let preflight = Request::builder().method(Method::OPTIONS).uri(path).body(Full::default())?;
        let refused = gateway.plain(from("https://evil.example", preflight)).await?;
        ensure!(refused.status == StatusCode::FORBIDDEN, "{path}: {}", refused.status);
        ensure!(
            !refused.headers.keys().any(|name| name.as_str().starts_with("access-control")),
            "{refused:?}"
        );
        ensure!(refused.headers["vary"] == "origin");
    }
    // Errors are for the page to read as well.
    for request in [
        get("/v1/channels/room:1/poll?offset=x"),
        get("/v1/channels/room:1/events?offset=x"),
        get("/v1/poll"),
        post("/v1/poll", "rubbish"),
    ] {
        let answer = gateway.plain(from("https://app.example", request)).await?;
        ensure!(answer.status.is_client_error(), "{}", answer.status);
        ensure!(answer.headers["access-control-allow-origin"] == "https://app.example", "{answer:?}");
    }
    // Without an origin there is no page; a cache must not give that answer to one.
    let answer = gateway.plain(get("/v1/channels/room:1/poll")).await?;
    ensure!(
        answer.headers["vary"] == "origin" && !answer.headers.contains_key("access-control-allow-origin")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_told_to_come_back_is_told_when() -> Result<()> {
    let gateway = Gateway::dev("[limits]\nconnections = 4\n").await?;
    // The connection takes a place, and each session one.
    let stream = dial(gateway.addresses.plain, None).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    TaskTracker::new().spawn(connection);
    let mut open = async || {
        let mut request = post("/v1/poll", json!({ "frames": [{ "id": 1, "connect": {} }] }).to_string());
        request.headers_mut().insert("host", http::HeaderValue::from_static("localhost"));
        sender.ready().await?;
        answer(sender.send_request(request).await?).await
    };
    for _ in 0..3 {
        ensure!(open().await?.status == StatusCode::OK);
    }
    let answer = open().await?;
    ensure!(answer.status == StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    let seconds: u64 = answer.headers["retry-after"].to_str()?.parse()?;
    let body = answer.json();
    let after = body["frames"][0]["close"]["reconnect"]["after_ms"].as_u64();
    ensure!(
        after.is_some_and(|after| after.div_ceil(1000) == seconds && (1000..=5000).contains(&after)),
        "{body}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_lets_a_listed_page_use_every_endpoint_and_no_other_page() -> Result<()> {
    let (port, _pages) = blank_pages().await?;
    let gateway = Gateway::dev(&format!("[auth]\norigins = [\"http://localhost:{port}\"]\n")).await?;
    let browser = Browser::launch().await?;
    // One server, two names: two origins, and one of them is listed.
    browser.open("listed", &format!("http://localhost:{port}/")).await?;
    browser.open("other", &format!("http://127.0.0.1:{port}/")).await?;
    let base = format!("http://{}/v1", gateway.addresses.plain);
    // The header that is not on the safe list makes the browser ask first.
    let script = format!(
        "const told = {{}};
         const headers = {{ 'content-type': 'application/json' }};
         const text = async (name, call) => {{
           told[name] = await call().then((answer) => answer.status, () => 'blocked');
         }};
         await text('poll', () => fetch('{base}/poll', {{ method: 'POST', headers,
           body: JSON.stringify({{ frames: [{{ id: 1, connect: {{}} }}] }}) }}));
         await text('channel', () => fetch('{base}/channels/room:1/poll',
           {{ headers: {{ 'last-event-id': 'e:1' }} }}));
         await text('error', () => fetch('{base}/channels/room:1/poll?offset=x'));
         told.events = await new Promise((done) => {{
           const source = new EventSource('{base}/channels/room:1/events');
           source.addEventListener('position', () => {{ source.close(); done('open'); }});
           source.onerror = () => {{ source.close(); done('blocked'); }};
         }});
         return told;"
    );
    let listed = browser.evaluate("listed", &script).await?;
    ensure!(
        listed == json!({ "poll": 200, "channel": 200, "error": 400, "events": "open" }),
        "the listed page: {listed}"
    );
    let other = browser.evaluate("other", &script).await?;
    ensure!(
        other == json!({ "poll": "blocked", "channel": "blocked", "error": "blocked", "events": "blocked" }),
        "the other page: {other}"
    );
    Ok(())
}
