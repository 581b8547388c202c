//! What a page in a real browser gets to see.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_protocol::hint::Hint;

use super::{CONFIG, fill};

/// Runs in the page. Tries again where it is dropped: answers have a budget.
const KNOCK: &str = r#"
    const facts = await (await fetch("/dev.json")).json();
    const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    const byWebSocket = () => new Promise((resolve) => {
        const socket = new WebSocket(facts.websocket, "tidegate.v1.json");
        const frames = [];
        socket.onopen = () => socket.send(JSON.stringify({ id: 1, connect: {} }));
        socket.onmessage = ({ data }) => frames.push(JSON.parse(data));
        socket.onclose = ({ code, reason }) => resolve({ code, reason, frames });
    });
    const byWebTransport = async () => {
        const hash = Uint8Array.from(atob(facts.certificate_hash), (character) => character.charCodeAt(0));
        for (let round = 0; ; round += 1) {
            const transport = new WebTransport(facts.webtransport, {
                serverCertificateHashes: [{ algorithm: "sha-256", value: hash.buffer }],
            });
            transport.closed.catch(() => {});
            try {
                await transport.ready;
            } catch (error) {
                if (round > 20) throw error;
                await pause(100);
                continue;
            }
            const { writable } = await transport.createBidirectionalStream();
            // Request 1, an empty `connect`, in Protobuf behind its length.
            await writable.getWriter().write(Uint8Array.from([4, 8, 1, 18, 0]));
            const { closeCode, reason } = await transport.closed;
            return { code: closeCode, reason };
        }
    };
    return { websocket: await byWebSocket(), webtransport: await byWebTransport() };
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_page_learns_when_to_come_back() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    let browser = Browser::launch().await?;
    browser.open("door", &format!("{}dev.json", gateway.page())).await?;
    fill(&gateway, 15).await?;
    let seen = browser.evaluate("door", KNOCK).await?;
    for transport in ["websocket", "webtransport"] {
        let hint = hint(&seen[transport]).with_context(|| format!("{transport}: {seen}"))?;
        ensure!(matches!(hint, Hint::Later { ticket: Some(_), .. }), "{transport}: {hint:?}");
    }
    Ok(())
}

fn hint(end: &Value) -> Result<Hint> {
    ensure!(end["code"] == 4101, "{end}");
    Hint::parse(end["reason"].as_str().context("a reason")?).context("a hint")
}
