//! `bench drain`: thousands of clients are moved from one edge to another and back, again and again, under publications;
//! none may miss any, get any twice, wait noticeably longer than usual, or be seen to come or go.

mod report;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::Full;
use serde::Serialize;
use serde_json::{Value, json};
use tidegate_transport::clock;
use tokio::time::sleep;

use super::cli::DrainArgs;
use super::crowd::{Backend, Books, Guests, Judged, Stage, Window, judge};
use super::report::{Progress, Quantiles};
use super::trial;
use crate::checker::Recorder;
use crate::gateway::Gateway;
use crate::http::{get, post};
use crate::wait::{until, within};

/// Runs and prints. 1 where anything was lost, doubled, noticed, or took too long.
pub(super) fn run(arguments: &DrainArgs) -> Result<ExitCode> {
    trial::run("drain", arguments.crowd.json.as_deref(), measure(arguments), |figures| {
        report::print(arguments, figures)
    })
}

/// What was seen.
#[derive(Debug, Default, Serialize)]
struct Figures {
    clients: u32,
    /// By group, milliseconds: of each client and window the longest time between two publications of a channel, and from
    /// publishing to delivery; without drains and with.
    groups: Vec<GroupFigures>,
    undrained: Vec<Window>,
    drained: Vec<Leg>,
    judged: Judged,
}

#[derive(Debug, Serialize)]
struct GroupFigures {
    group: String,
    gaps: [Quantiles; 2],
    delays: [Quantiles; 2],
}

/// One drain.
#[derive(Debug, Serialize)]
struct Leg {
    from: &'static str,
    #[serde(flatten)]
    drained: Drained,
    window: Window,
}

/// How a drain ended.
#[derive(Debug, Clone, Default, Serialize)]
struct Drained {
    seconds: f64,
    moved: u64,
    left: u64,
    closed: u64,
}

async fn measure(arguments: &DrainArgs) -> Result<Figures> {
    // Two that are drained in turn, and one beside them from where it is watched.
    let mut settings = vec![format!("admission.rate={}", arguments.admission)];
    settings.extend(arguments.crowd.set.iter().cloned());
    let stage = Stage::start(3, arguments.crowd.workers, &settings).await?;
    let [first, second, aside] = &stage.edges[..] else { bail!("three edges") };
    let books = Books::new(Recorder::new());
    let guests = Guests {
        to: first,
        clients: arguments.crowd.transports().map(|transport| (transport, arguments.connections)).collect(),
        pages: arguments.pages,
        channels: arguments.channels,
        follows: arguments.follow,
        per_second: arguments.crowd.connects,
        watched_at: Some(aside),
    };
    let (mut crowd, mut pages, clients) = guests.come(&books).await?;
    let backend = Backend::begin(&books, aside.addresses.api, arguments.channels, arguments.rate);
    sleep(WARM_UP).await;
    books.turn(WARM_UP);

    let mut progress = Progress::new((arguments.undrained + 2 * arguments.rounds) as usize);
    let mut figures = Figures { clients, ..Figures::default() };
    for number in 1..=arguments.undrained {
        progress.begin(format!("undrained {number}"));
        let length = usual(arguments, clients) + SETTLE;
        sleep(length).await;
        let window = books.turn(length);
        progress.end(&format!("undrained {number}: {} deliveries", window.deliveries));
        figures.undrained.push(window);
        crowd.check(pages.as_mut())?;
    }
    for number in 1..=2 * arguments.rounds {
        let [from, to] = if number % 2 == 1 { [first, second] } else { [second, first] };
        let from_name = if number % 2 == 1 { "edge-1" } else { "edge-2" };
        progress.begin(format!("drain {number} of {from_name}"));
        let begun = clock::now();
        let drained = drain(from, to, arguments.within).await?;
        sleep(SETTLE).await;
        let window = books.turn(clock::now() - begun);
        progress.end(&line(number, &drained, &window));
        figures.drained.push(Leg { from: from_name, drained, window });
        crowd.check(pages.as_mut())?;
    }
    progress.finish();

    let published = backend.end().await?;
    figures.judged = judge(&books, aside, &published.heads).await?;
    figures.judged.cases.extend(published.failures);
    figures.groups = groups(&figures.undrained, &figures.drained);
    crowd.end(pages).await?;
    Ok(figures)
}

/// What a drain takes at best: four fifths of what the target can take, and no longer than half of its time.
fn usual(arguments: &DrainArgs, clients: u32) -> Duration {
    Duration::from_secs_f64(f64::from(clients) / (0.8 * f64::from(arguments.admission)))
        .min(arguments.within / 2)
}

/// Drains an edge to the end.
async fn drain(edge: &Gateway, to: &Gateway, time: Duration) -> Result<Drained> {
    until("the target serves, as the edge knows", || async {
        let status = edge.status_json().await?;
        let edges = status["edges"].as_array().context("no edges")?;
        let serves = edges.iter().filter(|known| known["state"] == "serving").count();
        ensure!(serves == edges.len() && serves > 1, "{status}");
        Ok(())
    })
    .await?;
    let begun = clock::now();
    let order = json!({ "to": [format!("https://{}", to.addresses.tls)], "within": format!("{}ms", time.as_millis()) });
    let answer = edge.api(post("/v1/drain", order.to_string())).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let draining = async {
        loop {
            let progress: Value = edge.api(get("/v1/drain")).await?.json();
            if progress["drain"]["done"] == true && progress["drain"]["remaining"] == 0 {
                return Ok::<_, anyhow::Error>(progress["drain"].clone());
            }
            sleep(BETWEEN_LOOKS).await;
        }
    };
    let progress = within(time + OVERTIME, "the end of a drain", draining).await??;
    let seconds = (clock::now() - begun).as_secs_f64();
    edge.api(http::Request::delete("/v1/drain").body(Full::default())?).await?;
    let count = |name: &str| progress[name].as_u64().with_context(|| format!("no {name}: {progress}"));
    let closed = count("closed")? + count("forced")?;
    Ok(Drained { seconds, moved: count("moved")?, left: count("left")?, closed })
}

fn line(number: u32, drained: &Drained, window: &Window) -> String {
    let Drained { seconds, moved, left, closed } = drained;
    format!(
        "drain {number}: {seconds:.1} s, {moved} moved, {left} left, {closed} closed; clients: {} moves, {} disconnects; {} \
         presence events",
        window.moved, window.disconnected, window.presence,
    )
}

fn groups(undrained: &[Window], drained: &[Leg]) -> Vec<GroupFigures> {
    let drained: Vec<&Window> = drained.iter().map(|leg| &leg.window).collect();
    let undrained: Vec<&Window> = undrained.iter().collect();
    let Some(first) = undrained.first() else { return Vec::new() };
    let of = |windows: &[&Window], pick: fn(&Window) -> &BTreeMap<String, Vec<f64>>, group: &str| {
        Quantiles::of(windows.iter().flat_map(|window| pick(window)[group].iter().copied()))
    };
    let both = |pick: fn(&Window) -> &BTreeMap<String, Vec<f64>>, group: &str| {
        [of(&undrained, pick, group), of(&drained, pick, group)]
    };
    first
        .gaps
        .keys()
        .map(|group| GroupFigures {
            group: group.clone(),
            gaps: both(|window| &window.gaps, group),
            delays: both(|window| &window.delays, group),
        })
        .collect()
}

/// Under load before anything is measured.
const WARM_UP: Duration = Duration::from_secs(5);
/// After a drain, for what is still on its way.
const SETTLE: Duration = Duration::from_secs(2);
/// Beyond what a drain was given.
const OVERTIME: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
