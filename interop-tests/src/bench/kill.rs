//! `bench kill`: an edge with thousands of clients is killed; all are to be back at another one within the time that they
//! were told before, without a gap, and that one is not to take on more a second than it can.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use tidegate_transport::clock;
use tokio::time::sleep;

use super::cli::KillArgs;
use super::crowd::{Backend, Books, Guests, Judged, Stage, judge};
use super::report::{Quantiles, Table, short};
use super::trial::{self, Verdict};
use super::unix_us;
use crate::checker::Recorder;
use crate::gateway::Gateway;
use crate::raw::{Carrier, Raw};

/// Runs and prints. 1 where clients came back late, missed something, or came too fast.
pub(super) fn run(arguments: &KillArgs) -> Result<ExitCode> {
    trial::run("kill", arguments.crowd.json.as_deref(), measure(arguments), |figures| {
        print(arguments, figures)
    })
}

#[derive(Debug, Serialize)]
struct Figures {
    clients: u32,
    /// What clients were told before, seconds.
    window: f64,
    /// By group: from the kill until a client knew, and until it was back, seconds.
    noticed: BTreeMap<String, Quantiles>,
    back: BTreeMap<String, Quantiles>,
    all_back: Quantiles,
    /// When the last of 99 % was back; `None` where so many never were.
    back_99: Option<f64>,
    missing: usize,
    /// Each second: back by then, and sessions that the other edge opened in it.
    timeline: Vec<[u64; 2]>,
    /// The most that it opened within any second.
    busiest: f64,
    judged: Judged,
}

async fn measure(arguments: &KillArgs) -> Result<Figures> {
    let mut settings = vec![format!("admission.rate={}", arguments.admission)];
    settings.extend(arguments.crowd.set.iter().cloned());
    let mut stage = Stage::start(2, arguments.crowd.workers, &settings).await?;
    let [victim, other] = &mut stage.edges[..] else { bail!("two edges") };
    let books = Books::new(Recorder::new());
    let transports = arguments.crowd.transports();
    let each = arguments.connections.div_ceil(u32::try_from(transports.clone().count())?);
    let guests = Guests {
        to: victim,
        clients: transports.map(|transport| (transport, each)).collect(),
        pages: 0,
        channels: arguments.channels,
        follows: arguments.follow,
        per_second: arguments.crowd.connects,
        watched_at: None,
    };
    let (mut crowd, pages, clients) = guests.come(&books).await?;
    let backend = Backend::begin(&books, other.addresses.api, arguments.channels, arguments.rate);
    // Plans go by pings.
    sleep(arguments.settle).await;
    let window = window(victim).await?;
    ensure!(!window.is_zero(), "clients have no plan yet: --settle longer than {:?}", arguments.settle);
    eprintln!("killing an edge with {clients} clients, which were told a window of {window:?}");

    books.turn(arguments.settle);
    books.mark();
    let mut opened = vec![(0.0, sessions(other).await?)];
    let (begun, killed) = (clock::now(), unix_us());
    victim.kill().await?;
    let patience = window + GRACE + PATIENCE;
    loop {
        sleep(BETWEEN_SAMPLES).await;
        // The time first: what is counted is at least as old.
        let at = begun.elapsed().as_secs_f64();
        opened.push((at, sessions(other).await?));
        let is_back = books.standings().iter().all(|(_, standing)| standing.back.is_some());
        if is_back || begun.elapsed() > patience {
            break;
        }
    }
    crowd.check(None)?;
    let standings = books.standings();
    // What was published meanwhile is to come.
    sleep(AFTERWARDS).await;
    let published = backend.end().await?;
    let mut judged = judge(&books, other, &published.heads).await?;
    judged.cases.extend(published.failures);
    crowd.end(pages).await?;

    let since = |at: u64| at.saturating_sub(killed) as f64 / 1e6;
    let mut noticed: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut back: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (group, standing) in &standings {
        noticed.entry(group.clone()).or_default().extend(standing.lost.map(since));
        back.entry(group.clone()).or_default().extend(standing.back.map(since));
    }
    let mut times: Vec<f64> = back.values().flatten().copied().collect();
    times.sort_by(f64::total_cmp);
    let of = |times: BTreeMap<String, Vec<f64>>| {
        times.into_iter().map(|(group, times)| (group, Quantiles::of(times))).collect()
    };
    Ok(Figures {
        clients,
        window: window.as_secs_f64(),
        noticed: of(noticed),
        all_back: Quantiles::of(times.iter().copied()),
        back_99: times.get((standings.len() * 99).div_ceil(100) - 1).copied(),
        missing: standings.len() - times.len(),
        timeline: timeline(&times, &opened),
        busiest: busiest(&opened),
        back: of(back),
        judged,
    })
}

/// What clients of this edge are told of its end.
async fn window(edge: &Gateway) -> Result<Duration> {
    let (_raw, connected) =
        Raw::connect_as(edge, Carrier::WebSocket, &crate::raw::Greeting::default(), None).await?;
    let plan = &connected["plan"];
    let window = plan["node_ms"].as_u64().with_context(|| format!("no plan: {connected}"))?;
    Ok(Duration::from_millis(window))
}

/// Sessions that an edge has opened so far.
async fn sessions(edge: &Gateway) -> Result<f64> {
    let metrics = edge.metrics().await?;
    let of_sessions = metrics.iter().filter(|(name, _)| name.starts_with("tidegate_edge_connects_total"));
    Ok(of_sessions.map(|(_, count)| count).sum())
}

/// By second.
fn timeline(back: &[f64], opened: &[(f64, f64)]) -> Vec<[u64; 2]> {
    let end = opened.last().map_or(0.0, |(at, _)| *at);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "seconds and counts of a run"
    )]
    let row = |second: u32| {
        let until = f64::from(second + 1);
        let count = |by: f64| opened.iter().rev().find(|(at, _)| *at <= by).map_or(0.0, |(_, count)| *count);
        let is_back = back.partition_point(|time| *time <= until) as u64;
        [is_back, (count(until) - count(f64::from(second))) as u64]
    };
    (0..).take_while(|second| f64::from(*second) < end).map(row).collect()
}

/// The most within a second, of samples of what was counted.
fn busiest(opened: &[(f64, f64)]) -> f64 {
    let within = |(at, count): &(f64, f64)| {
        let first = opened.iter().find(|(before, _)| at - before <= 1.0);
        count - first.map_or(*count, |(_, first)| *first)
    };
    opened.iter().map(within).fold(0.0, f64::max)
}

fn print(arguments: &KillArgs, figures: &Figures) -> bool {
    println!(
        "{} clients on {} channels, each on {}, {} publications/s in all; {} published, {} delivered. They were told a window \
         of {} s.\n",
        figures.clients,
        arguments.channels,
        arguments.follow,
        arguments.rate,
        figures.judged.published,
        figures.judged.deliveries,
        short(figures.window),
    );
    println!("Seconds after the kill:\n");
    let mut table =
        Table::new(&["clients", "knew of it p50", "p99", "max", "back", "back p50", "p99", "max"]);
    for (group, back) in &figures.back {
        let noticed = figures.noticed[group];
        let mut cells = vec![group.clone()];
        cells.extend([noticed.p50, noticed.p99, noticed.max].map(short));
        cells.push(back.count.to_string());
        cells.extend([back.p50, back.p99, back.max].map(short));
        table.row(cells);
    }
    println!("{table}");
    let mut timeline = Table::new(&["second", "back", "opened in it", ""]);
    for (second, [back, opened]) in figures.timeline.iter().enumerate() {
        let length = (opened * BAR / u64::from(arguments.admission).max(1)).min(2 * BAR);
        let bar = "#".repeat(usize::try_from(length).unwrap_or_default());
        timeline.row(vec![(second + 1).to_string(), back.to_string(), opened.to_string(), bar]);
    }
    println!("{timeline}");
    let mut verdict = Verdict::new();
    let target = figures.window + GRACE.as_secs_f64();
    let back_99 = figures.back_99.unwrap_or(f64::INFINITY);
    verdict.row("99 % are back, s", format!("<= {}", short(target)), short(back_99), back_99 <= target);
    verdict.none([("never back", figures.missing as u64)]);
    let most = 1.05 * f64::from(arguments.admission);
    verdict.row(
        "opened within a second, at most",
        format!("<= {}", short(most)),
        short(figures.busiest),
        figures.busiest <= most,
    );
    verdict.none(figures.judged.counts());
    verdict.print(&figures.judged.cases)
}

/// Beyond the window.
const GRACE: Duration = Duration::from_secs(2);
/// Beyond that, to see when the rest comes.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_SAMPLES: Duration = Duration::from_millis(50);
/// Under load, when everybody is back.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// Of a second in which as many sessions were opened as admission allows.
const BAR: u64 = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_second_may_begin_anywhere() {
        let opened = [(0.0, 10.0), (0.5, 20.0), (0.9, 50.0), (1.4, 60.0), (1.6, 60.0), (3.0, 70.0)];
        assert!((busiest(&opened) - 40.0).abs() < 1e-9, "{}", busiest(&opened));
        assert!(busiest(&opened[..1]).abs() < 1e-9);
        assert_eq!(timeline(&[0.2, 0.7, 2.5], &opened), [[2, 40], [2, 10], [3, 10]]);
    }
}
