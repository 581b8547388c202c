//! `bench restart`: an edge is taken over by a new process again and again, under publications and connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use rustls::ClientConfig;
use serde::Serialize;
use serde_json::json;
use tidegate_transport::clock;
use tidegate_transport::quic::{DialConfig, QuicDialer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::cli::RestartArgs;
use super::machine::Machine;
use super::proc;
use super::report::{Table, short, write_json};
use crate::clients::{Collector, Event, from_heads, native};
use crate::cluster::{Cluster, ClusterSpec, HOME};
use crate::gateway::Gateway;
use crate::http::{dial, post, send};
use crate::programs;
use crate::wait::{PATIENCE, within};

/// Runs and prints. 1 where a connection failed, or a publication was refused, lost or doubled.
pub(super) fn run(arguments: &RestartArgs) -> Result<ExitCode> {
    let mut machine = Machine::look(&programs::tidegate()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(arguments))?;
    machine.load_after = proc::load_average();
    println!("\n{}\n", machine.summary());
    print(arguments, &figures);
    let is_good = figures.failures.is_empty();
    let report = Report { machine, figures };
    let file = write_json("restart", arguments.json.as_deref(), &report)?;
    println!("Result file: {}", file.display());
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    figures: Figures,
}

#[derive(Debug, Default, Serialize)]
struct Figures {
    published: usize,
    deliveries: usize,
    tcp_connects: usize,
    quic_connects: usize,
    /// Datagrams that came to a socket that they were not for.
    strays: f64,
    failures: Vec<String>,
    /// By transport: the longest gap between two publications of a client, without and with a restart, milliseconds.
    gaps: BTreeMap<&'static str, [Vec<f64>; 2]>,
    /// From the start of the new process until it serves, milliseconds.
    taken_ms: Vec<f64>,
}

/// What a client has seen: for each round the longest gap, and how many publications in all.
type Seen = Result<(&'static str, Vec<Duration>, usize)>;

async fn measure(arguments: &RestartArgs) -> Result<Figures> {
    let channels = arguments.channels as usize;
    let config = format!(
        "[node]\nhandover = \"handover\"\nworkers = {}\n[namespaces.default]\nhistory_count = 100000\n\
         history_bytes = \"64MiB\"\n",
        arguments.workers
    );
    let spec = ClusterSpec {
        nats: 0,
        engine: "memory",
        cores: 1,
        edges: vec![HOME],
        config,
        ..ClusterSpec::default()
    };
    let mut cluster = Cluster::start(spec).await?;
    let mut edge = cluster.edges.pop().context("an edge")?;
    let round = Arc::new(AtomicUsize::new(0));
    let (published, totals) = watch::channel(None::<Vec<usize>>);

    println!("Connecting {} clients ..", arguments.connections);
    let mut clients: JoinSet<Seen> = JoinSet::new();
    for number in 0..arguments.connections as usize {
        let scheme = SCHEMES[number % SCHEMES.len()];
        let channel = (number / SCHEMES.len()) % channels;
        let wishes = from_heads(&[name(channel)]);
        let client = native(&edge, scheme, None, &wishes).await?;
        let collector = Collector::begin(client, &wishes).await?;
        let rounds = arguments.restarts as usize + 1;
        clients.spawn(follow(collector, scheme, channel, rounds, Arc::clone(&round), totals.clone()));
    }

    let stop = CancellationToken::new();
    let publishing = publish(edge.addresses.api, channels, arguments.rate, stop.clone());
    let mut publishing = JoinSet::from_iter([publishing]);
    let mut visitors = JoinSet::new();
    visitors.spawn(by_tcp(edge.addresses.tls, edge.tls(&[b"http/1.1"]), stop.clone()));
    visitors.spawn(by_quic(edge.addresses.quic, edge.tls(&[b"tidegate/1"]), stop.clone()));

    // The first round has no restart.
    sleep(ROUND).await;
    let mut figures = Figures::default();
    for number in 1..=arguments.restarts as usize {
        round.store(number, Ordering::Relaxed);
        let begun = clock::now();
        let mut leaving = edge.take_over().await?;
        figures.taken_ms.push(ms(clock::now() - begun));
        if !leaving.ended().await?.success() {
            figures.failures.push(format!("process {number} did not end in order"));
        }
        sleep(ROUND).await;
        figures.strays += edge.metric("tidegate_edge_quic_worker_strays_total").await?;
        println!("restart {number}: {:.0} ms until the new process served", figures.taken_ms[number - 1]);
    }
    stop.cancel();
    let (totals, refused) = publishing.join_next().await.context("a publisher")??;
    figures.published = totals.iter().sum();
    figures.failures.extend(refused);
    published.send_replace(Some(totals));
    while let Some(visitor) = visitors.join_next().await {
        let (transport, connects, failures) = visitor?;
        figures.failures.extend(failures);
        match transport {
            "tcp" => figures.tcp_connects = connects,
            _ => figures.quic_connects = connects,
        }
    }
    collect(&mut clients, &mut figures).await?;
    finish(edge).await?;
    Ok(figures)
}

async fn collect(clients: &mut JoinSet<Seen>, figures: &mut Figures) -> Result<()> {
    while let Some(seen) = clients.join_next().await {
        match seen? {
            Ok((transport, gaps, count)) => {
                figures.deliveries += count;
                let [without, with] = figures.gaps.entry(transport).or_default();
                without.push(ms(gaps[0]));
                with.extend(gaps[1..].iter().copied().map(ms));
            }
            Err(error) => figures.failures.push(format!("{error:#}")),
        }
    }
    Ok(())
}

async fn finish(mut edge: Gateway) -> Result<()> {
    let status = edge.terminate().await?;
    ensure!(status.success(), "the last process ended with {status}");
    Ok(())
}

/// One client, to the last publication of its channel.
async fn follow(
    mut collector: Collector<crate::clients::Native>,
    transport: &'static str,
    channel: usize,
    rounds: usize,
    round: Arc<AtomicUsize>,
    mut totals: watch::Receiver<Option<Vec<usize>>>,
) -> Seen {
    let mut gaps = vec![Duration::ZERO; rounds];
    let mut last = None;
    loop {
        let total = totals.borrow_and_update().as_ref().map(|totals| totals[channel]);
        if total.is_some_and(|total| collector.count() >= total) {
            ensure!(total == Some(collector.count()), "{}: more than was published", collector.name());
            return Ok((transport, gaps, collector.count()));
        }
        let event = tokio::select! {
            event = collector.next() => event?,
            Ok(()) = totals.changed() => continue,
        };
        match event {
            Event::Publication { .. } => {
                let now = clock::now();
                if let Some(last) = last.replace(now) {
                    let gap = &mut gaps[round.load(Ordering::Relaxed)];
                    *gap = (*gap).max(now - last);
                }
            }
            Event::Subscribed { recovered, .. } => ensure!(recovered, "{} began anew", collector.name()),
            _ => {}
        }
    }
}

/// In batches, each channel in turn; how many there were on each, and what went wrong.
async fn publish(
    api: SocketAddr,
    channels: usize,
    rate: u32,
    stop: CancellationToken,
) -> (Vec<usize>, Vec<String>) {
    let (mut totals, mut failures) = (vec![0; channels], Vec::new());
    let batch = (f64::from(rate) * BATCH.as_secs_f64()).ceil().max(1.0) as usize;
    let mut next = 0;
    let mut ticks = tokio::time::interval(BATCH);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let chosen: Vec<usize> = (next..next + batch).map(|number| number % channels).collect();
        next += batch;
        let publications: Vec<_> =
            chosen.iter().map(|channel| json!({ "channel": name(*channel), "data": DATA })).collect();
        let body = json!({ "publications": publications }).to_string();
        match send(api, None, post("/v1/publish", body)).await {
            Ok(answer) if answer.status == StatusCode::OK => {
                let answer = answer.json();
                let results = answer["results"].as_array().cloned().unwrap_or_default();
                for (channel, result) in chosen.iter().zip(results) {
                    if result["position"].is_object() {
                        totals[*channel] += 1;
                    } else {
                        failures.push(format!("a publication was refused: {result}"));
                    }
                }
            }
            Ok(answer) => failures.push(format!("publishing: {}", answer.status)),
            Err(error) => failures.push(format!("publishing: {error:#}")),
        }
    }
    (totals, failures)
}

type Visits = (&'static str, usize, Vec<String>);

async fn by_tcp(address: SocketAddr, tls: Arc<ClientConfig>, stop: CancellationToken) -> Visits {
    let (mut connects, mut failures) = (0, Vec::new());
    while stop.run_until_cancelled(sleep(VISIT)).await.is_some() {
        match within(PATIENCE, "a TLS handshake", dial(address, Some(Arc::clone(&tls)))).await {
            Ok(Ok(_)) => connects += 1,
            Ok(Err(error)) | Err(error) => failures.push(format!("TCP: {error:#}")),
        }
    }
    ("tcp", connects, failures)
}

async fn by_quic(address: SocketAddr, tls: Arc<ClientConfig>, stop: CancellationToken) -> Visits {
    let (mut connects, mut failures) = (0, Vec::new());
    let dialer = match QuicDialer::new(Arc::unwrap_or_clone(tls), DialConfig::default()) {
        Ok(dialer) => dialer,
        Err(error) => return ("quic", 0, vec![error.to_string()]),
    };
    while stop.run_until_cancelled(sleep(VISIT)).await.is_some() {
        let connecting = async {
            let mut client = dialer.dial(address, "localhost", false).await?;
            client.established().await
        };
        match timeout(PATIENCE, connecting).await {
            Ok(Ok(_)) => connects += 1,
            Ok(Err(error)) => failures.push(format!("QUIC: {error}")),
            Err(_) => failures.push(format!("QUIC: no handshake within {PATIENCE:?}")),
        }
    }
    ("quic", connects, failures)
}

fn print(arguments: &RestartArgs, figures: &Figures) {
    println!(
        "{} restarts with {} clients on {} channels: {} published, {} delivered; {} connects by TCP and {} by QUIC beside \
         them; {} stray datagrams; {} failures. From start to serving p50 {} ms, max {} ms.\n",
        arguments.restarts,
        arguments.connections,
        arguments.channels,
        figures.published,
        figures.deliveries,
        figures.tcp_connects,
        figures.quic_connects,
        figures.strays,
        figures.failures.len(),
        short(quantile(&figures.taken_ms, 0.5)),
        short(quantile(&figures.taken_ms, 1.0)),
    );
    println!("Longest gap between two publications of a client in a round, milliseconds:\n");
    let mut table =
        Table::new(&["transport", "no restart p50", "p99", "restart p50", "restart p99", "restart max"]);
    for (transport, [without, with]) in &figures.gaps {
        let figure = |gaps: &[f64], share| short(quantile(gaps, share));
        table.row(vec![
            (*transport).to_owned(),
            figure(without, 0.5),
            figure(without, 0.99),
            figure(with, 0.5),
            figure(with, 0.99),
            figure(with, 1.0),
        ]);
    }
    println!("{table}");
    for failure in figures.failures.iter().take(SHOWN) {
        println!("    {failure}");
    }
}

fn quantile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

fn name(channel: usize) -> String {
    format!("room:{channel}")
}

/// What clients come by, in turn: QUIC as often as the others together.
const SCHEMES: [&str; 4] = ["quic", "wss", "quic", "https"];
const DATA: &str =
    "a publication of about a hundred bytes, as they are in applications that tell who is where";
/// Between two batches of publications.
const BATCH: Duration = Duration::from_millis(10);
/// Between two visitors of a kind.
const VISIT: Duration = Duration::from_millis(20);
/// Without a restart, and after each.
const ROUND: Duration = Duration::from_secs(3);
/// Failures that are printed; the file has all.
const SHOWN: usize = 20;
