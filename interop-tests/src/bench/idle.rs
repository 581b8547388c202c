//! `bench idle`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tidegate_transport::clock;

use super::cli::IdleArgs;
use super::ledger::{Faults, Ledger, Stopwatch};
use super::load::{Crowd, poll_request, scan};
use super::machine::Machine;
use super::measure::{Connecting, Setup, Stand, Subject, settle};
use super::proc;
use super::publisher::{CHANNEL, Publisher};
use super::report::{Progress, Spread, Table, short, write_json};
use super::server::Gateway;
use super::shape::Transport;

/// Measures and prints.
pub(super) fn run(arguments: &IdleArgs) -> Result<ExitCode> {
    let connections = arguments.connections as usize;
    proc::raise_open_files(connections)?;
    let folder = tempfile::tempdir()?;
    let setup = Setup {
        tidegate: arguments.common.tidegate.clone(),
        folder: folder.path().to_owned(),
        per_socket: arguments.common.per_socket as usize,
    };
    let transports = Transport::chosen(&arguments.common.transport);
    let subjects = [Subject::Limit, Subject::Tidegate { workers: arguments.workers }];
    let machine = Machine::look(&setup.tidegate);
    let mut report = Report { machine, connections, per_socket: setup.per_socket, cases: Vec::new() };
    let mut progress = Progress::new(transports.len() * subjects.len() * arguments.rounds as usize);
    let mut sound = true;
    for &transport in &transports {
        for subject in subjects {
            let mut rounds = Vec::new();
            let mut failure = None;
            for round in 1..=arguments.rounds {
                let what = format!("{transport}, {}, round {round} of {}", name(subject), arguments.rounds);
                progress.begin(what.clone());
                match measure(&setup, subject, transport, connections, &mut |part| progress.part(part)) {
                    Ok(idle) => {
                        progress.end(&format!("{what}: {}", idle.line()));
                        rounds.push(idle);
                    }
                    Err(error) => {
                        sound = false;
                        let text = format!("{what}: FAILED: {error:#}");
                        progress.end(&text);
                        failure = Some(text);
                        break;
                    }
                }
            }
            report.cases.push(Case { transport, subject, rounds, failure });
        }
    }
    progress.finish();
    report.machine.load_after = proc::load_average();
    let file = write_json("idle", arguments.common.json.as_deref(), &report)?;
    report.print();
    println!("\nResult file: {}", file.display());
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    connections: usize,
    per_socket: usize,
    cases: Vec<Case>,
}

#[derive(Debug, Serialize)]
struct Case {
    transport: Transport,
    subject: Subject,
    rounds: Vec<Idle>,
    failure: Option<String>,
}

/// One server with connections that do nothing.
#[derive(Debug, Serialize)]
struct Idle {
    connecting: Connecting,
    /// Of the server without any connection.
    empty_rss_bytes: u64,
    /// Kernel objects of both ends, for each connection.
    slab_kib: f64,
    stages: Vec<Stage>,
}

/// RSS above that of the empty server, for each connection.
#[derive(Debug, Serialize)]
struct Stage {
    name: &'static str,
    kib: f64,
}

fn measure(
    setup: &Setup,
    subject: Subject,
    transport: Transport,
    connections: usize,
    progress: &mut dyn FnMut(f64),
) -> Result<Idle> {
    let crowd = Crowd { connections, channels: 1, watch: Stopwatch::start() };
    let mut stand = setup.stand(subject, transport, crowd)?;
    let mut ledger = Ledger::new(connections, 1)?;
    rest(&mut stand, &mut ledger)?;
    let empty_rss_bytes = proc::resident_bytes(stand.pid())?;
    let slab_before = proc::slab_bytes()?;
    let each = |bytes: u64| proc::to_float(bytes) / 1024.0 / proc::to_float(connections as u64);

    let connecting = stand.connect(connections, &mut |done| progress(done * 0.5))?;
    rest(&mut stand, &mut ledger)?;
    let slab_kib = each(proc::slab_bytes()?.saturating_sub(slab_before));
    let mut stages = Vec::new();
    let mut stage = |stand: &Stand, name| -> Result<()> {
        let rss = proc::resident_bytes(stand.pid())?;
        stages.push(Stage { name, kib: each(rss.saturating_sub(empty_rss_bytes)) });
        Ok(())
    };
    stage(&stand, FRESH)?;
    if subject != Subject::Limit {
        let mut small = Publisher::start(stand.outlet, SMALL, stand.watch)?;
        for _ in 0..SMALL_COUNT {
            // One after the other: a datagram each.
            small.publish(ledger.publish())?;
            settle(&mut stand, &mut ledger)?;
        }
        progress(0.6);
        rest(&mut stand, &mut ledger)?;
        stage(&stand, ACTIVE)?;
        let mut bulk = Publisher::start(stand.outlet, BULK, stand.watch)?;
        for _ in 0..BULK_COUNT {
            bulk.publish(ledger.publish())?;
        }
        settle(&mut stand, &mut ledger)?;
        progress(0.8);
        rest(&mut stand, &mut ledger)?;
        stage(&stand, BULKY)?;
    }
    if let (Subject::Tidegate { workers }, Transport::LongPoll) = (subject, transport) {
        stages.push(Stage { name: SESSIONS, kib: each(sessions_alone(setup, workers, connections)?) });
    }
    let faults = ledger.faults();
    ensure!(faults == Faults::default(), "publications were lost, repeated or reordered: {faults:?}");
    Ok(Idle { connecting, empty_rss_bytes, slab_kib, stages })
}

/// Lets the server come to rest, answering what it says.
fn rest(stand: &mut Stand, ledger: &mut Ledger) -> Result<()> {
    let begin = clock::now();
    while begin.elapsed() < REST {
        stand.load.pump(ledger, REST / 10)?;
    }
    Ok(())
}

/// What a fresh gateway holds for long-poll sessions between polls, without their connections: one connection made
/// them all, one after the other.
fn sessions_alone(setup: &Setup, workers: u16, sessions: usize) -> Result<u64> {
    let gateway = Gateway::start(&setup.tidegate, &setup.folder, workers)?;
    let mut stream = TcpStream::connect(gateway.plain)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut ask = |body: &str| -> Result<String> {
        stream.write_all(&poll_request(body))?;
        let mut answer = vec![0; 4096];
        let mut filled = 0;
        loop {
            let bytes = stream.read(&mut answer[filled..]).context("a poll was not answered")?;
            ensure!(bytes > 0, "the gateway closed the connection");
            filled += bytes;
            if let Some((status, body)) = scan::response(&answer[..filled])? {
                let body = String::from_utf8_lossy(&answer[body]).into_owned();
                ensure!(status == 200, "a poll was answered {status}: {body}");
                return Ok(body);
            }
        }
    };
    std::thread::sleep(REST);
    let before = proc::resident_bytes(gateway.pid())?;
    for _ in 0..sessions {
        let frames = format!(
            "{{\"id\":1,\"connect\":{{}}}},{{\"id\":2,\"subscribe\":{{\"channel\":\"{CHANNEL}0\"}}}}"
        );
        let mut answer = ask(&format!("{{\"frames\":[{frames}],\"wait_ms\":5000}}"))?;
        let session = scan::field(&answer, "session").context("no session")?.to_owned();
        while !answer.contains("\"subscribed\"") {
            let batch = scan::field(&answer, "batch").context("no batch")?.to_owned();
            answer = ask(&format!("{{\"session\":\"{session}\",\"ack\":{batch},\"wait_ms\":5000}}"))?;
        }
        // Acknowledges the last batch, as any client's next poll would.
        let batch = scan::field(&answer, "batch").context("no batch")?.to_owned();
        ask(&format!("{{\"session\":\"{session}\",\"ack\":{batch},\"wait_ms\":0}}"))?;
    }
    std::thread::sleep(REST);
    Ok(proc::resident_bytes(gateway.pid())?.saturating_sub(before))
}

impl Idle {
    fn line(&self) -> String {
        let stages: Vec<String> =
            self.stages.iter().map(|stage| format!("{} {} KiB", stage.name, short(stage.kib))).collect();
        format!("{}; {} CPU us a connect", stages.join(", "), short(self.connecting.cpu_us))
    }
}

impl Report {
    fn print(&self) {
        println!("\n{}\n", self.machine.summary());
        println!(
            "{} connections; KiB of RSS for each, above the empty server's; kernel: both ends.\n",
            self.connections
        );
        let mut table = Table::new(&[
            "transport",
            "server",
            "fresh",
            "after 40 small",
            "after 100 KiB",
            "sessions alone",
            "kernel KiB",
            "connects/s",
            "CPU us/connect",
        ]);
        for case in &self.cases {
            table.row(case.cells());
        }
        print!("{table}");
        for failure in self.cases.iter().filter_map(|case| case.failure.as_ref()) {
            println!("\n{failure}");
        }
    }
}

impl Case {
    fn cells(&self) -> Vec<String> {
        let stage = |place: usize| {
            let figures: Vec<f64> =
                self.rounds.iter().filter_map(|idle| Some(idle.stages.get(place)?.kib)).collect();
            if figures.is_empty() { String::new() } else { Spread::of(figures).to_string() }
        };
        let spread = |figure: fn(&Idle) -> f64| {
            if self.rounds.is_empty() {
                String::new()
            } else {
                Spread::of(self.rounds.iter().map(figure)).to_string()
            }
        };
        vec![
            self.transport.to_string(),
            name(self.subject),
            stage(0),
            stage(1),
            stage(2),
            stage(3),
            spread(|idle| idle.slab_kib),
            spread(|idle| idle.connecting.per_second),
            spread(|idle| idle.connecting.cpu_us),
        ]
    }
}

fn name(subject: Subject) -> String {
    match subject {
        Subject::Limit => "raw process".to_owned(),
        Subject::Tidegate { workers } => {
            format!("tidegate, {workers} worker{}", if workers == 1 { "" } else { "s" })
        }
    }
}

const FRESH: &str = "fresh";
const ACTIVE: &str = "after 40 small publications";
const BULKY: &str = "after 100 KiB more";
const SMALL: usize = 128;
/// More than the 32 datagrams after which a QUIC connection takes another block.
const SMALL_COUNT: usize = 40;
/// A payload may have 64 KiB.
const BULK: usize = 50 << 10;
const BULK_COUNT: usize = 2;
/// Long poll: what a session is between polls, without its connection.
const SESSIONS: &str = "sessions alone";
const ANSWER: Duration = Duration::from_secs(10);
const REST: Duration = Duration::from_secs(1);
