//! The demo page in a real browser.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::programs;
use tidegate_interop_tests::wait::until;

fn testid(id: &str) -> String {
    format!("[data-testid=\"{id}\"]")
}

/// Until the page is connected by a transport.
async fn connected(browser: &Browser, page: &str, transport: &str) -> Result<()> {
    browser.act(page, "wait", &format!("{}[data-state=\"connected\"]", testid("state")), "").await?;
    browser
        .act(page, "wait", &format!("{}[data-transport=\"{transport}\"]", testid("transport")), "")
        .await
        .with_context(|| format!("{page} by {transport}"))?;
    Ok(())
}

async fn say(browser: &Browser, page: &str, text: &str) -> Result<()> {
    browser.act(page, "fill", &testid("text"), text).await?;
    browser.act(page, "click", &testid("send"), "").await?;
    Ok(())
}

async fn text(browser: &Browser, page: &str, id: &str) -> Result<String> {
    let text = browser.act(page, "text", &testid(id), "").await?;
    Ok(text.as_str().context("a text")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_chat_over_every_transport_and_a_lost_network_leaves_no_gap() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let browser = Browser::launch().await?;
    let pages = ["webtransport", "websocket", "longpoll"];
    for transport in pages {
        browser.open(transport, &format!("{}?transport={transport}", gateway.page())).await?;
        connected(&browser, transport, transport).await?;
    }
    for speaker in pages {
        let line = format!("Hello by {speaker}");
        say(&browser, speaker, &line).await?;
        for page in pages {
            browser
                .act(page, "wait", &testid("message"), &line)
                .await
                .with_context(|| format!("on {page}"))?;
        }
    }
    gateway.publish("room:lobby", json!({ "name": "backend", "text": "Hello from the backend" })).await?;
    for page in pages {
        browser.act(page, "wait", &testid("message"), "Hello from the backend").await?;
        ensure!(text(&browser, page, "offset").await? == "4", "{page} stands at another offset");
    }

    until("everybody is seen", || async {
        for page in pages {
            let here = text(&browser, page, "here").await?;
            ensure!(here == "3", "{page} sees {here}");
        }
        Ok(())
    })
    .await?;

    // Typing shows elsewhere, by datagram.
    browser.act("websocket", "fill", &testid("name"), "Ada").await?;
    browser.act("websocket", "type", &testid("text"), "hm").await?;
    browser.act("webtransport", "wait", &testid("typing"), "Ada is typing").await?;
    browser.act("websocket", "fill", &testid("text"), "").await?;

    // One page through all three.
    for transport in ["longpoll", "websocket", "webtransport"] {
        browser.act("webtransport", "check", &testid(&format!("transport-{transport}")), "").await?;
        connected(&browser, "webtransport", transport).await?;
        let line = format!("Switched to {transport}");
        say(&browser, "webtransport", &line).await?;
        browser.act("longpoll", "wait", &testid("message"), &line).await?;
        browser.act("webtransport", "wait", &testid("message"), &line).await?;
    }

    // Cut off while others go on: what was missed comes when it is back.
    browser.act("webtransport", "click", &testid("drop"), "").await?;
    browser.act("webtransport", "wait", &testid("message"), "Welcome back!").await?;
    until("the tally", || async {
        let recovered = text(&browser, "webtransport", "recovered").await?;
        ensure!(recovered == "5", "recovered {recovered}");
        Ok(())
    })
    .await?;
    connected(&browser, "webtransport", "webtransport").await?;
    for (id, expected) in [("missed", "5"), ("lost", "0"), ("twice", "0")] {
        let seen = text(&browser, "webtransport", id).await?;
        ensure!(seen == expected, "{id}: {seen} instead of {expected}");
    }
    until("a round trip", || async {
        let rtt = text(&browser, "webtransport", "rtt").await?;
        ensure!(rtt.parse::<f64>().is_ok(), "{rtt}");
        Ok(())
    })
    .await?;
    let picture = programs::root().join("target/demo.png");
    std::fs::create_dir_all(programs::root().join("target"))?;
    browser.act("webtransport", "screenshot", "", picture.to_str().context("a path")?).await?;
    for page in pages {
        let problems = browser.act(page, "problems", "", "").await?;
        ensure!(problems == json!([]), "the console of {page}: {problems}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_from_elsewhere_is_not_let_in() -> Result<()> {
    let gateway = Gateway::dev("[auth]\norigins = [\"https://app.example\"]\n").await?;
    let elsewhere = Gateway::dev("").await?;
    let browser = Browser::launch().await?;
    browser.open("evil", &format!("{}dev.json", elsewhere.page())).await?;
    // The page's own policy would stop it before the gateway does: it is asked by its origin alone.
    let facts = gateway.facts().await?;
    let (url, hash) = (&facts["webtransport"], &facts["certificate_hash"]);
    let outcome = browser
        .evaluate(
            "evil",
            &format!(
                "const value = Uint8Array.from(atob({hash}), (each) => each.charCodeAt(0));
                 const session = new WebTransport({url}, {{ serverCertificateHashes: [{{ algorithm: 'sha-256', value }}] }});
                 session.closed.catch(() => {{}});
                 return session.ready.then(() => 'in', (error) => error.message);"
            ),
        )
        .await?;
    ensure!(outcome != "in", "a page of another origin is in");
    ensure!(
        gateway.metric("tidegate_edge_connects_total{transport=\"webtransport\"}").await? == 0.0,
        "a session"
    );
    Ok(())
}
