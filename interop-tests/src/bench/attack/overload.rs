//! An edge that gets many times what it takes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use serde::Serialize;
use serde_json::{Value, json};
use tidegate_protocol::hint::Hint;
use tidegate_transport::clock;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, interval_at, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;
use tungstenite::Message;
use tungstenite::client::IntoClientRequest as _;

use super::forged::{self, Forgeries};
use super::initials::{self, Amplification, Maker};
use super::{AttackArgs, WARM_UP};
use crate::gateway::Gateway;
use crate::wait::PATIENCE;

/// Figures a second, but for those that are not.
#[derive(Debug, Serialize)]
pub(super) struct Overload {
    pub(super) seconds: f64,
    pub(super) initials: f64,
    pub(super) silent_connects: f64,
    /// Clients that asked for the first time, and at the time that they were told.
    pub(super) asked: f64,
    pub(super) came_again: f64,
    pub(super) admitted: f64,
    pub(super) opened: f64,
    /// In each second: admitted, and opened.
    pub(super) by_second: Vec<[f64; 2]>,
    /// Of the edge, in all.
    pub(super) decisions: BTreeMap<String, f64>,
    pub(super) failures: Vec<String>,
}

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    came_again: AtomicU64,
    silent: AtomicU64,
}

pub(super) async fn run(
    edge: &Gateway,
    arguments: &AttackArgs,
) -> Result<(Overload, Amplification, [Forgeries; 2])> {
    let rate = arguments.admission;
    let initials = rate * arguments.factor;
    let length = Duration::from_secs(u64::from(arguments.seconds));
    // Beforehand: to make one costs more than to look at it.
    let mut maker = Maker::new(edge)?;
    let wanted = f64::from(initials) * (length + WARM_UP).as_secs_f64() * 1.1;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let flights = (0..wanted as usize).map(|_| maker.flight()).collect::<Result<Vec<_>>>()?;

    let stop = CancellationToken::new();
    let counts = Arc::new(Counts::default());
    let mut floods = JoinSet::new();
    floods.spawn(initials::flood(edge.addresses.quic, flights, initials, stop.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(silent_connects(edge.addresses.plain, rate, Arc::clone(&counts), stop.clone()));
    let clients = clients(edge, rate * 2, &counts, &stop);
    let measuring = async {
        // Whatever comes of it: the clients end with it.
        let _stop = stop.clone().drop_guard();
        sleep(WARM_UP).await;
        let asked = counts.read();
        let begun = clock::now();
        let mut samples = vec![Sample { at: 0.0, figures: edge.metrics().await? }];
        let mut ticks = interval_at(Instant::from_std(begun + SECOND), SECOND);
        for _ in 0..arguments.seconds {
            ticks.tick().await;
            samples.push(Sample { at: begun.elapsed().as_secs_f64(), figures: edge.metrics().await? });
        }
        let asked_after = counts.read();
        // While the door is full.
        let slots =
            [forged::slots(edge, arguments.forged).await?, forged::first_ids(edge, arguments.forged).await?];
        anyhow::Ok((samples, asked, asked_after, slots))
    };
    let (measured, failures) = tokio::join!(measuring, clients);
    let (samples, asked, asked_after, slots) = measured?;
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    let (initials, flooded) = floods.join_next().await.context("a flood")???;
    let ([first, ..], [.., last]) = (&samples[..], &samples[..]) else { bail!("no samples") };
    let seconds = last.at - first.at;
    let per_second = |figure: f64| figure / seconds;
    let by_second = samples.windows(2).map(|pair| {
        let seconds = pair[1].at - pair[0].at;
        [ADMITTED, OPENED].map(|name| (pair[1].of(name) - pair[0].of(name)) / seconds)
    });
    let decisions = last.figures.keys().filter_map(|name| {
        let decision = name.strip_prefix(DECISIONS)?.strip_suffix("\"}")?;
        Some((decision.to_owned(), last.of(name) - first.of(name)))
    });
    let overload = Overload {
        seconds,
        initials,
        silent_connects: per_second((asked_after[2] - asked[2]) as f64),
        asked: per_second((asked_after[0] - asked[0]) as f64),
        came_again: per_second((asked_after[1] - asked[1]) as f64),
        admitted: per_second(last.of(ADMITTED) - first.of(ADMITTED)),
        opened: per_second(last.of(OPENED) - first.of(OPENED)),
        by_second: by_second.collect(),
        decisions: decisions.collect(),
        failures,
    };
    Ok((overload, flooded, slots))
}

impl Counts {
    fn read(&self) -> [u64; 3] {
        [&self.asked, &self.came_again, &self.silent].map(|count| count.load(Ordering::Relaxed))
    }
}

/// What the edge says of itself, and when.
struct Sample {
    at: f64,
    figures: BTreeMap<String, f64>,
}

impl Sample {
    /// Of all whose names begin so.
    fn of(&self, prefix: &str) -> f64 {
        self.figures
            .range(prefix.to_owned()..)
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(_, n)| n)
            .sum()
    }
}

/// Connections that say nothing, a second each.
async fn silent_connects(to: SocketAddr, per_second: u32, counts: Arc<Counts>, stop: CancellationToken) {
    let mut ticks = interval(Duration::from_secs(1) / per_second.max(1));
    let mut open = JoinSet::new();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let counts = Arc::clone(&counts);
        open.spawn(async move {
            if let Ok(_held) = TcpStream::connect(to).await {
                counts.silent.fetch_add(1, Ordering::Relaxed);
                sleep(HOLD).await;
            }
        });
        while open.try_join_next().is_some() {}
    }
}

/// Clients that mean it: so many new ones a second, each of which comes again when it is told. What went wrong.
async fn clients(edge: &Gateway, per_second: u32, counts: &Counts, stop: &CancellationToken) -> Vec<String> {
    let mut ticks = interval(Duration::from_secs(1) / per_second.max(1));
    let mut failures = Vec::new();
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return failures,
            _ = ticks.tick() => open.push(client(edge, counts)),
            Some(ended) = open.next(), if !open.is_empty() => {
                if let Err(error) = ended {
                    failures.push(format!("{error:#}"));
                }
            }
        }
    }
}

async fn client(edge: &Gateway, counts: &Counts) -> Result<()> {
    counts.asked.fetch_add(1, Ordering::Relaxed);
    let mut slot = None;
    loop {
        match knock(edge, slot.as_deref()).await? {
            Answer::Connected(_held) => {
                sleep(HOLD).await;
                return Ok(());
            }
            Answer::Later(after, ticket) => {
                sleep(after).await;
                slot = ticket;
                counts.came_again.fetch_add(1, Ordering::Relaxed);
            }
            // What a full server may do; this one is gone.
            Answer::Nothing => return Ok(()),
        }
    }
}

/// What a client is told.
pub(super) enum Answer {
    Connected(Box<Socket>),
    Later(Duration, Option<String>),
    Nothing,
}

/// Asks by WebSocket, with this slot or without. Without TLS: this end's share of the processors is to be small.
pub(super) async fn knock(edge: &Gateway, slot: Option<&str>) -> Result<Answer> {
    let mut request = format!("ws://{}/v1/connect", edge.addresses.plain).into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("tidegate.v1.json"));
    let connect = slot.map_or_else(|| json!({}), |slot| json!({ "slot": slot }));
    let asking = async {
        let stream = TcpStream::connect(edge.addresses.plain).await?;
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        socket.send(Message::text(json!({ "id": 1, "connect": connect }).to_string())).await?;
        let said = socket.next().await.context("it closed")??;
        anyhow::Ok((socket, said))
    };
    // A full server may say nothing at all.
    let Ok(Ok((socket, Message::Text(said)))) = timeout(PATIENCE, asking).await else {
        return Ok(Answer::Nothing);
    };
    let frame: Value = serde_json::from_str(&said)?;
    if frame["connected"].is_object() {
        return Ok(Answer::Connected(Box::new(socket)));
    }
    if frame["close"]["reason"] == Hint::Elsewhere.to_string() {
        // All places of the next two minutes are promised, to who forges as well.
        return Ok(Answer::Nothing);
    }
    later(&frame).with_context(|| format!("what is {frame}?"))
}

type Socket = WebSocketStream<TcpStream>;

fn later(frame: &Value) -> Option<Answer> {
    let reconnect = &frame["close"]["reconnect"];
    let after = Duration::from_millis(reconnect["after_ms"].as_u64()?);
    Some(Answer::Later(after, reconnect["slot"].as_str().map(str::to_owned)))
}

const DECISIONS: &str = "tidegate_edge_admission_decisions_total{decision=\"";
const ADMITTED: &str = "tidegate_edge_admission_decisions_total{decision=\"admit\"}";
const OPENED: &str = "tidegate_edge_connects_total";
const SECOND: Duration = Duration::from_secs(1);
/// A client's stay.
const HOLD: Duration = Duration::from_secs(1);
