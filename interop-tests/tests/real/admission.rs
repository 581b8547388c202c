//! Who comes in where more come than a node takes: by every transport, and with what each of them is told.

mod page;
mod resident;
mod unproved;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use http::StatusCode;
use serde_json::{Value, json};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::get;
use tidegate_interop_tests::raw::{Attempt, Carrier, Doorstep, Raw, Received};
use tidegate_protocol::hint::Hint;
use tidegate_transport::clock;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until};

/// Clients per second: few, so that a test has soon used them up.
const RATE: usize = 20;
const CONFIG: &str = "[admission]\nrate = 20\n";
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// When to come back, and what to show.
#[derive(Debug, Clone)]
struct Slot {
    after: Duration,
    ticket: String,
}

impl Slot {
    fn of(hint: Hint) -> Result<Self> {
        match hint {
            Hint::Later { after, ticket: Some(ticket) } => Ok(Self { after, ticket: ticket.to_string() }),
            other => bail!("no slot: {other:?}"),
        }
    }

    /// What a `close` frame says.
    fn of_close(frame: &Value) -> Result<Self> {
        let close = &frame["close"];
        ensure!(close["code"] == 4101, "{frame}");
        let reconnect = &close["reconnect"];
        ensure!(reconnect["policy"] == "backoff", "{frame}");
        let after = reconnect["after_ms"].as_u64().with_context(|| format!("no time: {frame}"))?;
        let ticket = reconnect["slot"].as_str().with_context(|| format!("no slot: {frame}"))?;
        let slot = Self { after: Duration::from_millis(after), ticket: ticket.to_owned() };
        ensure!(close["reason"] == slot.text(), "{frame}");
        Ok(slot)
    }

    fn text(&self) -> String {
        format!("ra={};t={}", self.after.as_millis(), self.ticket)
    }
}

/// As many as take all places of the next `seconds`, and none of whom comes back.
async fn fill(gateway: &Gateway, seconds: usize) -> Result<Vec<Slot>> {
    let crowd = Doorstep::new(gateway, HERE)?;
    // A second's worth is let in.
    let attempts = try_join_all((0..(seconds + 2) * RATE).map(|_| crowd.attempt(None))).await?;
    attempts
        .into_iter()
        .filter_map(|attempt| match attempt {
            Attempt::LetIn(_) => None,
            Attempt::Refused(hint) => Some(Slot::of(hint)),
        })
        .collect()
}

/// What somebody is told who shows this and is refused.
async fn refused(door: &Doorstep, ticket: Option<&str>) -> Result<Slot> {
    match door.attempt(ticket).await? {
        Attempt::Refused(hint) => Slot::of(hint),
        Attempt::LetIn(_) => bail!("let in"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gets_a_slot_of_its_own_and_is_let_in_then_whoever_else_comes() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    let began = clock::now();
    let slots = fill(&gateway, 2).await?;
    let let_in = 4 * RATE - slots.len();
    // Meanwhile the places of a moment more came up.
    let most = 1.05 * RATE as f64 * (1.0 + began.elapsed().as_secs_f64());
    ensure!(let_in >= RATE && let_in as f64 <= most + 1.0, "{let_in} let in, at most {most}");
    let tickets: BTreeSet<_> = slots.iter().map(|slot| &slot.ticket).collect();
    ensure!(tickets.len() == slots.len(), "one for each");
    ensure!(slots.iter().all(|slot| slot.after >= Duration::from_millis(450)), "{slots:?}");

    let door = Doorstep::new(&gateway, HERE)?;
    let door_ref = &door;
    let holders = try_join_all(slots.iter().map(|slot| async move {
        sleep(slot.after).await;
        let asked = clock::now();
        let attempt = door_ref.attempt(Some(&slot.ticket)).await?;
        ensure!(matches!(attempt, Attempt::LetIn(_)), "{slot:?}: {attempt:?}");
        anyhow::Ok(asked.elapsed())
    }));
    // Three times as many as there are places.
    let newcomers = join_all((0..3 * slots.len()).map(|number| {
        let door = &door;
        async move {
            sleep(Duration::from_millis(number as u64 * 15)).await;
            door.attempt(None).await
        }
    }));
    let (holders, newcomers) = tokio::join!(holders, newcomers);
    let longest = holders?.into_iter().max().context("there are holders")?;
    ensure!(longest < Duration::from_millis(1_500), "at once, but for its piece of time: {longest:?}");
    let refused = newcomers.iter().filter(|attempt| matches!(attempt, Ok(Attempt::Refused(_)))).count();
    ensure!(refused > slots.len(), "newcomers wait: {refused}");
    let metrics = gateway.metrics().await?;
    let count = |decision: &str| {
        metrics.get(&format!("tidegate_edge_admission_decisions_total{{decision=\"{decision}\"}}")).copied()
    };
    ensure!(count("defer") >= Some(slots.len() as f64) && count("admit") >= Some(slots.len() as f64));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_once_and_where_it_was_given() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    fill(&gateway, 4).await?;
    let (here, there) =
        (Doorstep::new(&gateway, HERE)?, Doorstep::new(&gateway, Ipv4Addr::new(127, 0, 0, 2))?);
    let slot = refused(&here, None).await?;
    let due = clock::now() + slot.after;
    // Behind it as well.
    fill(&gateway, 8).await?;
    // Too early: the same again, and no newcomer's.
    let again = refused(&here, Some(&slot.ticket)).await?;
    ensure!(again.ticket == slot.ticket && again.after <= slot.after, "{again:?}, not {slot:?}");
    ensure!(refused(&there, Some(&slot.ticket)).await?.ticket != slot.ticket, "at another address");
    for byte in 0..20 {
        let forged = forge(&slot.ticket, byte)?;
        let told = refused(&here, Some(&forged)).await?;
        ensure!(told.ticket != forged && told.ticket != slot.ticket, "byte {byte}: {told:?}");
    }
    // Another node's, which has keys of its own.
    let other = Gateway::dev(CONFIG).await?;
    let foreign = fill(&other, 1).await?.pop().context("a slot")?;
    ensure!(refused(&here, Some(&foreign.ticket)).await?.ticket != foreign.ticket);

    sleep_until(due.into()).await;
    ensure!(matches!(here.attempt(Some(&slot.ticket)).await?, Attempt::LetIn(_)));
    ensure!(refused(&here, Some(&slot.ticket)).await?.ticket != slot.ticket, "once");
    Ok(())
}

/// With one bit of a byte changed.
fn forge(ticket: &str, byte: usize) -> Result<String> {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as TEXT;
    let mut bytes = TEXT.decode(ticket)?;
    bytes[byte] ^= 0x10;
    Ok(TEXT.encode(bytes))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_carrier_says_when_and_takes_what_it_said() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    for carrier in Carrier::ALL {
        fill(&gateway, 4).await?;
        let slot = deferred(&gateway, carrier).await?;
        sleep(slot.after).await;
        let mut raw = dial(&gateway, carrier).await?;
        raw.send(&json!({"id": 1, "connect": {"slot": slot.ticket}})).await?;
        let frame = raw.frame().await.with_context(|| format!("{carrier} at its slot"))?;
        ensure!(!frame["connected"].is_null(), "{carrier}: {frame}");
        // Nothing is left of those who were refused.
        gateway.until_metric("tidegate_edge_admission_handshakes", |count| count < 1.0).await?;
    }
    Ok(())
}

/// As a client does that is dropped without a word: again, a moment later. Answers by these transports have a budget.
async fn dial(gateway: &Gateway, carrier: Carrier) -> Result<Raw> {
    let mut last = None;
    for _ in 0..50 {
        match Raw::dial(gateway, carrier).await {
            Ok(raw) => return Ok(raw),
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("{carrier}: never answered: {last:?}")
}

/// What a newcomer is told.
async fn deferred(gateway: &Gateway, carrier: Carrier) -> Result<Slot> {
    for _ in 0..50 {
        let mut raw = dial(gateway, carrier).await?;
        let asked = raw.send(&json!({"id": 1, "connect": {}})).await;
        if asked.is_err() {
            // A long poll's connection is dropped only now.
            sleep(Duration::from_millis(50)).await;
            continue;
        }
        let Received::Frame(frame) = raw.recv().await? else { bail!("{carrier}: closed without a frame") };
        let slot = Slot::of_close(&frame).with_context(|| format!("{carrier}"))?;
        match raw.recv().await? {
            Received::Closed { code, reason } => {
                ensure!((code, &reason) == (4101, &slot.text()), "{carrier}: {code} {reason}");
            }
            other => bail!("{carrier}: {other:?}"),
        }
        return Ok(slot);
    }
    bail!("{carrier}: never answered")
}

/// The first line of an answer that may never end.
async fn status(gateway: &Gateway, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(gateway.addresses.plain).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    Ok(line)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_a_session_are_told_too() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    for path in ["/v1/channels/room:1/poll", "/v1/channels/room:1/events"] {
        fill(&gateway, 4).await?;
        let mut request = get(path);
        request.headers_mut().insert(http::header::ORIGIN, gateway.page().trim_end_matches('/').parse()?);
        let answer = gateway.plain(request).await?;
        ensure!(
            answer.status == StatusCode::SERVICE_UNAVAILABLE,
            "{path}: {} {}",
            answer.status,
            answer.text()
        );
        let body = answer.json();
        let (after, slot) = (&body["retry_after_ms"], &body["slot"]);
        let after = after.as_u64().with_context(|| format!("{path}: {body}"))?;
        let slot = slot.as_str().with_context(|| format!("{path}: {body}"))?;
        ensure!(body["error"]["code"] == 503 && body["error"]["retry"] == true, "{body}");
        ensure!(answer.headers["retry-after"] == after.div_ceil(1000).to_string().as_str());
        ensure!(answer.headers["access-control-expose-headers"].to_str()?.contains("retry-after"));
        sleep(Duration::from_millis(after)).await;
        let status = status(&gateway, &format!("{path}?slot={slot}&wait_ms=0")).await?;
        ensure!(status.contains(" 200 "), "{path}: {status}");
    }
    // What only understands events is told by one.
    fill(&gateway, 4).await?;
    let mut request = get("/v1/channels/room:1/events");
    request.headers_mut().insert(http::header::ACCEPT, "text/event-stream".parse()?);
    let text = gateway.plain(request).await?.text();
    ensure!(
        text.contains("retry: ") && text.contains("\"code\":4101") && text.contains("\"slot\":"),
        "{text}"
    );
    Ok(())
}
