//! The JavaScript client in a real browser: it changes transports while everybody talks.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::gateway::Gateway;

use crate::support::ROOMY;

/// Runs in the page. Two connections: one moves, the other stays by WebSocket and talks too.
const MOVES: &str = r#"
    const { Client } = await import("/sdk/index.js");
    const facts = await (await fetch("/dev.json")).json();
    const urls = { webtransport: facts.webtransport, websocket: facts.websocket, longpoll: facts.longpoll };
    const certificateHashes = [facts.certificate_hash];
    // The race is not what this is about: on a busy machine the first handshake takes its time.
    const ladder = { joinMinMs: 4_000, joinMaxMs: 4_000 };
    const client = new Client(urls, { certificateHashes, storage: null, ladder });
    const other = new Client(urls, { transports: ["websocket"], storage: null });
    const seen = { offsets: {}, recovered: 0, how: [], moves: [], disconnected: 0, sessions: [], errors: [] };
    client.on("moved", ({ from, to, resumed }) => seen.moves.push({ from, to, resumed }));
    client.on("disconnected", () => (seen.disconnected += 1));
    client.on("error", ({ message }) => seen.errors.push(message));
    const channels = ["room:1", "room:2", "room:3"];
    for (const [index, channel] of channels.entries()) {
        seen.offsets[channel] = [];
        client.subscribe(channel, {
            rank: index,
            onSubscribed: ({ how }) => seen.how.push(how),
            onPublication: ({ offset, recovered }) => {
                seen.offsets[channel].push(offset);
                seen.recovered += Number(recovered);
            },
        });
    }
    await Promise.all([client.connect(), other.connect()]);
    await Promise.all([...client.subscriptions.values()].map((each) => each.ready()));
    seen.first = client.transport;
    seen.sessions.push(client.session);
    const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    let isTalking = true;
    const talk = async (speaker) => {
        const positions = [];
        for (let count = 0; isTalking; count += 1) {
            positions.push(speaker.publish(channels[count % 3], { count, text: "x".repeat(200) }));
            await pause(3);
        }
        return Promise.all(positions);
    };
    const talking = [talk(client), talk(other)];
    for (const name of ["websocket", "longpoll", "webtransport", "longpoll", "websocket", "webtransport"]) {
        await pause(250);
        const used = await client.useTransport(name);
        if (used !== name) throw new Error(`${used} instead of ${name}: ${seen.errors.join()}`);
        seen.sessions.push(client.session);
    }
    await pause(250);
    isTalking = false;
    seen.published = (await Promise.all(talking)).flat().length;
    const count = () => channels.reduce((sum, channel) => sum + seen.offsets[channel].length, 0);
    // The last of them are on their way.
    for (let round = 0; round < 1_000 && count() < seen.published; round += 1) await pause(10);
    seen.rtt = await client.measureRtt();
    await Promise.all([client.close(), other.close()]);
    return seen;
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_moves_under_load_and_nothing_is_lost_or_comes_twice() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let browser = Browser::launch().await?;
    browser.open("moves", &format!("{}dev.json", gateway.page())).await?;
    let seen = browser.evaluate("moves", MOVES).await?;
    ensure!(seen["first"] == "webtransport", "it began by {}", seen["first"]);
    let mut received = 0;
    for channel in ["room:1", "room:2", "room:3"] {
        let offsets: Vec<_> = offsets(&seen["offsets"][channel])?;
        let dense: Vec<_> = (1..=offsets.len() as u64).collect();
        ensure!(offsets == dense, "{channel}: {offsets:?}");
        received += offsets.len() as u64;
    }
    let published = seen["published"].as_u64().context("a number")?;
    ensure!(published > 200, "there was no load: {published}");
    ensure!(received == published, "{received} of {published}");
    // The app saw no seam: nothing was missed, nobody was cut off.
    ensure!(seen["how"] == json!(["begun", "begun", "begun"]), "{}", seen["how"]);
    ensure!(seen["recovered"] == 0, "{} came as recovered", seen["recovered"]);
    ensure!(seen["disconnected"] == 0, "cut off {} times", seen["disconnected"]);
    let moves = seen["moves"].as_array().context("moves")?;
    let ways: Vec<_> = moves.iter().map(|each| each["to"].clone()).collect();
    let expected = ["websocket", "longpoll", "webtransport", "longpoll", "websocket", "webtransport"];
    ensure!(json!(ways) == json!(expected), "{ways:?}");
    // By its ticket each time: it is one session all along.
    ensure!(moves.iter().all(|each| each["resumed"] == true), "{moves:?}");
    let sessions = seen["sessions"].as_array().context("sessions")?;
    ensure!(sessions.iter().all(|each| Some(each) == sessions.first()), "{sessions:?}");
    ensure!(seen["rtt"].as_f64().is_some_and(|ms| ms > 0.0), "no round trip: {}", seen["rtt"]);
    ensure!(seen["errors"] == json!([]), "{}", seen["errors"]);
    Ok(())
}

/// A page that another page's writing told that WebTransport is broken begins by WebSocket, at once; and climbs back.
const CLIMBS: &str = r#"
    const { Client } = await import("/sdk/index.js");
    const facts = await (await fetch("/dev.json")).json();
    const urls = { webtransport: facts.webtransport, websocket: facts.websocket, longpoll: facts.longpoll };
    const certificateHashes = [facts.certificate_hash];
    const broken = { level: 1, brokenUntil: Date.now() + 60_000, workedAt: 0, slips: 0 };
    const known = { here: { usedAt: Date.now(), rttMs: 5, transports: { webtransport: broken } } };
    localStorage.setItem(`tidegate-ladder:${new URL(urls.webtransport).host}`, JSON.stringify(known));
    const client = new Client(urls, { certificateHashes, networkKey: () => "here", ladder: { climbMs: 400 } });
    const offsets = [];
    client.subscribe("room:climb", { onPublication: ({ offset }) => offsets.push(offset) });
    await client.connect();
    const first = client.transport;
    let isTalking = true;
    const talking = (async () => {
        for (let count = 0; isTalking; count += 1) await client.publish("room:climb", count);
    })();
    const moved = await new Promise((resolve) => client.on("moved", resolve));
    isTalking = false;
    await talking;
    const last = client.transport;
    await client.close();
    return { first, last, from: moved.from, offsets };
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_fell_back_climbs_to_web_transport_by_itself() -> Result<()> {
    let gateway = Gateway::dev(ROOMY).await?;
    let browser = Browser::launch().await?;
    browser.open("climbs", &format!("{}dev.json", gateway.page())).await?;
    let seen = browser.evaluate("climbs", CLIMBS).await?;
    let way = (&seen["first"], &seen["from"], &seen["last"]);
    ensure!(way == (&json!("websocket"), &json!("websocket"), &json!("webtransport")), "{way:?}");
    let offsets = offsets(&seen["offsets"])?;
    ensure!(offsets == (1..=offsets.len() as u64).collect::<Vec<_>>(), "{offsets:?}");
    Ok(())
}

fn offsets(list: &Value) -> Result<Vec<u64>> {
    let list = list.as_array().context("offsets")?;
    list.iter().map(|offset| offset.as_u64().context("an offset")).collect()
}
