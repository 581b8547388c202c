//! `bench restart`: an edge is taken over by a new process again and again, under publications and connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::ClientConfig;
use serde::Serialize;
use tidegate_transport::clock;
use tidegate_transport::quic::{DialConfig, QuicDialer};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::cli::RestartArgs;
use super::crowd::{Backend, Books, Guests, Judged, Stage, Transport, Window, judge};
use super::proc;
use super::report::{Quantiles, Table, short};
use super::trial::{self, Verdict};
use crate::checker::Recorder;
use crate::http::dial;
use crate::wait::{PATIENCE, within};

/// Runs and prints. 1 where a connection failed, or a publication was refused, lost or doubled.
pub(super) fn run(arguments: &RestartArgs) -> Result<ExitCode> {
    trial::run("restart", arguments.crowd.json.as_deref(), measure(arguments), |figures| {
        print(arguments, figures)
    })
}

#[derive(Debug, Default, Serialize)]
struct Figures {
    clients: u32,
    tcp_connects: usize,
    quic_connects: usize,
    /// Datagrams that came to a socket that they were not for.
    strays: f64,
    /// By group, milliseconds: of each client and window the longest time between two publications, without and with a
    /// restart.
    gaps: BTreeMap<String, [Quantiles; 2]>,
    usual: Window,
    restarts: Vec<Restart>,
    judged: Judged,
}

#[derive(Debug, Serialize)]
struct Restart {
    /// From the start of the new process until it serves, and until the one before has ended.
    taken_ms: f64,
    ended_ms: f64,
    window: Window,
}

async fn measure(arguments: &RestartArgs) -> Result<Figures> {
    let mut settings =
        vec!["node.handover=\"handover\"".to_owned(), format!("admission.rate={}", arguments.admission)];
    settings.extend(arguments.crowd.set.iter().cloned());
    let mut stage = Stage::start(1, arguments.crowd.workers, &settings).await?;
    let mut edge = stage.edges.pop().context("an edge")?;
    let books = Books::new(Recorder::new());
    let transports: Vec<Transport> = arguments.crowd.transports().collect();
    // What supports migration as often as all others together.
    let shares =
        |transport: &Transport| if *transport == Transport::Quic { transports.len().max(2) - 1 } else { 1 };
    let all: usize = transports.iter().map(shares).sum();
    let clients = transports
        .iter()
        .map(|transport| {
            Ok((*transport, arguments.connections * u32::try_from(shares(transport))? / u32::try_from(all)?))
        })
        .collect::<Result<_>>()?;
    let guests = Guests {
        to: &edge,
        clients,
        pages: 0,
        channels: arguments.channels,
        follows: 1,
        per_second: arguments.crowd.connects,
        watched_at: None,
    };
    let (mut crowd, pages, clients) = guests.come(&books).await?;
    let backend = Backend::begin(&books, edge.addresses.api, arguments.channels, arguments.rate);
    let stop = CancellationToken::new();
    let mut visitors = JoinSet::new();
    visitors.spawn(by_tcp(edge.addresses.tls, edge.tls(&[b"http/1.1"]), stop.clone()));
    visitors.spawn(by_quic(edge.addresses.quic, edge.tls(&[b"tidegate/1"]), stop.clone()));

    let mut figures = Figures { clients, ..Figures::default() };
    sleep(WARM_UP).await;
    books.turn(WARM_UP);
    sleep(USUAL).await;
    figures.usual = books.turn(USUAL);
    let mut failures = Vec::new();
    for number in 1..=arguments.restarts {
        let begun = clock::now();
        let mut leaving = edge.take_over().await?;
        let taken_ms = ms(begun.elapsed());
        if !leaving.ended().await?.success() {
            failures.push(format!("process {number} did not end in order"));
        }
        let ended_ms = ms(begun.elapsed());
        sleep(ROUND).await;
        let window = books.turn(begun.elapsed());
        figures.strays += edge.metric("tidegate_edge_quic_worker_strays_total").await?;
        eprintln!(
            "restart {number}: {taken_ms:.0} ms until the new process served, {ended_ms:.0} until the one before had ended; {} \
             moves, {} disconnects",
            window.moved, window.disconnected
        );
        figures.restarts.push(Restart { taken_ms, ended_ms, window });
        crowd.check(None)?;
    }
    stop.cancel();
    let published = backend.end().await?;
    while let Some(visitor) = visitors.join_next().await {
        let (transport, connects, failed) = visitor?;
        failures.extend(failed);
        match transport {
            Transport::Quic => figures.quic_connects = connects,
            _ => figures.tcp_connects = connects,
        }
    }
    figures.judged = judge(&books, &edge, &published.heads).await?;
    figures.judged.cases.extend(published.failures.into_iter().chain(failures));
    crowd.end(pages).await?;
    let status = edge.terminate().await?;
    ensure!(status.success(), "the last process ended with {status}");
    for (group, usual) in &figures.usual.gaps {
        let with = figures.restarts.iter().flat_map(|restart| restart.window.gaps[group].iter().copied());
        figures.gaps.insert(group.clone(), [Quantiles::of(usual.iter().copied()), Quantiles::of(with)]);
    }
    Ok(figures)
}

type Visits = (Transport, usize, Vec<String>);

async fn by_tcp(address: SocketAddr, tls: Arc<ClientConfig>, stop: CancellationToken) -> Visits {
    let (mut connects, mut failures) = (0, Vec::new());
    while stop.run_until_cancelled(sleep(VISIT)).await.is_some() {
        match within(PATIENCE, "a TLS handshake", dial(address, Some(Arc::clone(&tls)))).await {
            Ok(Ok(_)) => connects += 1,
            Ok(Err(error)) | Err(error) => failures.push(format!("TCP: {error:#}")),
        }
    }
    (Transport::WebSocket, connects, failures)
}

async fn by_quic(address: SocketAddr, tls: Arc<ClientConfig>, stop: CancellationToken) -> Visits {
    let (mut connects, mut failures) = (0, Vec::new());
    let dialer = match QuicDialer::new(Arc::unwrap_or_clone(tls), DialConfig::default()) {
        Ok(dialer) => dialer,
        Err(error) => return (Transport::Quic, 0, vec![error.to_string()]),
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
    (Transport::Quic, connects, failures)
}

fn print(arguments: &RestartArgs, figures: &Figures) -> bool {
    let taken = Quantiles::of(figures.restarts.iter().map(|restart| restart.taken_ms));
    let seconds: f64 = figures.usual.seconds;
    println!(
        "{} restarts with {} clients on {} channels, {} publications/s, {:.0} deliveries/s before the first: {} published, {} \
         delivered; {} connects by TCP and {} by QUIC beside them. From start to serving p50 {} ms, max {} ms.\n",
        arguments.restarts,
        figures.clients,
        arguments.channels,
        arguments.rate,
        proc::to_float(figures.usual.deliveries) / seconds,
        figures.judged.published,
        figures.judged.deliveries,
        figures.tcp_connects,
        figures.quic_connects,
        short(taken.p50),
        short(taken.max),
    );
    println!("Longest time between two publications of a client, milliseconds:\n");
    let mut table = Table::new(&["clients", "no restart p50", "p99", "max", "restart p50", "p99", "max"]);
    for (group, [usual, restarted]) in &figures.gaps {
        let mut cells = vec![group.clone()];
        cells.extend([usual, restarted].iter().flat_map(|of| [of.p50, of.p99, of.max]).map(short));
        table.row(cells);
    }
    println!("{table}");
    let mut verdict = Verdict::new();
    let disconnects = figures.restarts.iter().map(|restart| restart.window.disconnected).sum::<u64>();
    verdict.none([("disconnects", disconnects)]);
    verdict.none(figures.judged.counts());
    verdict.row("stray datagrams", "0".to_owned(), figures.strays.to_string(), figures.strays == 0.0);
    let examples = figures.restarts.iter().flat_map(|restart| &restart.window.examples);
    verdict.print(figures.judged.cases.iter().chain(examples))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// Under load before anything is measured, and then without a restart.
const WARM_UP: Duration = Duration::from_secs(3);
const USUAL: Duration = Duration::from_secs(6);
/// Between two visitors of a kind.
const VISIT: Duration = Duration::from_millis(50);
/// After the end of each process.
const ROUND: Duration = Duration::from_secs(2);
