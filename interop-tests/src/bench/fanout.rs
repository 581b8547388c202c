//! `bench fanout`.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::cli::FanoutArgs;
use super::ledger::Faults;
use super::machine::Machine;
use super::measure::{Sample, Setup, Subject};
use super::proc;
use super::report::{Progress, Spread, Table, short, write_json};
use super::shape::{Pace, Shape, Transport};

/// Measures and prints.
pub(super) fn run(arguments: &FanoutArgs) -> Result<ExitCode> {
    let plan = plan(arguments)?;
    let largest = plan.cases.iter().map(|(_, shape)| shape.subscribers).max().unwrap_or(0);
    proc::raise_open_files(largest)?;
    let folder = tempfile::tempdir()?;
    let setup = Setup {
        tidegate: arguments.common.tidegate.clone(),
        folder: folder.path().to_owned(),
        per_socket: arguments.common.per_socket as usize,
    };
    let machine = Machine::look(&setup.tidegate);
    let mut report =
        Report { machine, per_socket: setup.per_socket, seconds: plan.length.as_secs(), cases: Vec::new() };
    let subjects = plan.subjects();
    let mut progress = Progress::new(plan.cases.len() * plan.rounds * subjects.len());
    for (transport, shape) in &plan.cases {
        let mut results: Vec<Vec<Sample>> = vec![Vec::new(); subjects.len()];
        let mut failure = None;
        'rounds: for round in 1..=plan.rounds {
            for (subject, samples) in subjects.iter().zip(&mut results) {
                let what =
                    format!("{transport} {shape}, {}, round {round} of {}", name(*subject), plan.rounds);
                progress.begin(what.clone());
                let sample =
                    setup.fanout(*subject, *transport, shape, plan.length, &mut |part| progress.part(part));
                match sample {
                    Ok(sample) => {
                        progress.end(&format!("{what}: {}", line(&sample)));
                        samples.push(sample);
                    }
                    // The other cases can still be measured.
                    Err(error) => {
                        let text = format!("{what}: FAILED: {error:#}");
                        progress.end(&text);
                        failure = Some(text);
                        break 'rounds;
                    }
                }
            }
        }
        report.cases.push(Case::new(*transport, shape.clone(), &subjects, results, failure));
    }
    progress.finish();
    report.machine.load_after = proc::load_average();
    let file = write_json("fanout", arguments.common.json.as_deref(), &report)?;
    report.print();
    println!("\nResult file: {}", file.display());
    let sound = report.cases.iter().all(Case::is_sound);
    if !sound {
        eprintln!("error: a run failed, or publications were lost, repeated or reordered: see above");
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Plan {
    cases: Vec<(Transport, Shape)>,
    rounds: usize,
    length: Duration,
    workers: Vec<u16>,
}

impl Plan {
    fn subjects(&self) -> Vec<Subject> {
        let gateways = self.workers.iter().map(|&workers| Subject::Tidegate { workers });
        std::iter::once(Subject::Limit).chain(gateways).collect()
    }
}

fn plan(arguments: &FanoutArgs) -> Result<Plan> {
    let transports = Transport::chosen(&arguments.common.transport);
    let payload = arguments.payload as usize;
    let given = arguments.subscribers.map(|subscribers| {
        let pace = match (arguments.rate, arguments.burst) {
            (Some(rate), _) => Pace::Rate(rate.get()),
            (None, Some(burst)) => Pace::Burst(burst.get()),
            (None, None) => Pace::Window(arguments.window.map_or(4, NonZeroUsize::get)),
        };
        let channels = arguments.channels.map_or(1, NonZeroUsize::get);
        Shape { subscribers: subscribers.get(), channels, payload, pace }
    });
    if let Some(shape) = &given {
        let Shape { subscribers, channels, .. } = shape;
        ensure!(
            subscribers % channels == 0,
            "--subscribers {subscribers} cannot be shared out evenly to --channels {channels}"
        );
    }
    let shapes = |transport: Transport| match &given {
        Some(shape) => vec![shape.clone()],
        None if arguments.quick => {
            vec![Shape { subscribers: 200, channels: 1, payload, pace: Pace::Window(4) }]
        }
        None => transport.usual_shapes(payload),
    };
    let cases = transports
        .iter()
        .flat_map(|&transport| shapes(transport).into_iter().map(move |shape| (transport, shape)));
    let cases = cases.collect();
    Ok(if arguments.quick {
        Plan { cases, rounds: 1, length: Duration::from_secs(1), workers: vec![1] }
    } else {
        Plan {
            cases,
            rounds: arguments.rounds as usize,
            length: Duration::from_secs(arguments.seconds.into()),
            workers: arguments.workers.clone(),
        }
    })
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    per_socket: usize,
    seconds: u64,
    cases: Vec<Case>,
}

#[derive(Debug, Serialize)]
struct Case {
    transport: Transport,
    shape: Shape,
    failure: Option<String>,
    results: Vec<Outcome>,
}

/// One subject in one case.
#[derive(Debug, Serialize)]
struct Outcome {
    subject: Subject,
    figures: Option<Figures>,
    /// To the raw loop's in the same round.
    ratios: Option<Ratios>,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Figures {
    cpu_us: Spread,
    thousand_per_second: Spread,
    p50_ms: Spread,
    p99_ms: Spread,
    per_read: Spread,
    cores: Spread,
    rss_mib: Spread,
    connects_per_second: Spread,
    cpu_us_per_connect: Spread,
}

#[derive(Debug, Serialize)]
struct Ratios {
    cpu: Spread,
    per_second: Spread,
    p50: Spread,
    p99: Spread,
}

impl Case {
    fn new(
        transport: Transport,
        shape: Shape,
        subjects: &[Subject],
        samples: Vec<Vec<Sample>>,
        failure: Option<String>,
    ) -> Self {
        let limit = samples.first().cloned().unwrap_or_default();
        let outcome = |(&subject, samples): (&Subject, Vec<Sample>)| {
            let whole = !samples.is_empty();
            let figures = whole.then(|| Figures::of(&samples));
            let ratios = (whole && subject != Subject::Limit).then(|| Ratios::of(&samples, &limit));
            Outcome { subject, figures, ratios, samples }
        };
        let results = subjects.iter().zip(samples).map(outcome).collect();
        Self { transport, shape, failure, results }
    }

    fn is_sound(&self) -> bool {
        let mut samples = self.results.iter().flat_map(|outcome| &outcome.samples);
        self.failure.is_none() && samples.all(|sample| sample.faults == Faults::default())
    }
}

impl Figures {
    fn of(samples: &[Sample]) -> Self {
        let spread = |figure: fn(&Sample) -> f64| Spread::of(samples.iter().map(figure));
        Self {
            cpu_us: spread(|sample| sample.cpu_us),
            thousand_per_second: spread(|sample| sample.per_second / 1e3),
            p50_ms: spread(|sample| sample.p50_ms),
            p99_ms: spread(|sample| sample.p99_ms),
            per_read: spread(|sample| sample.per_read),
            cores: spread(|sample| sample.cores),
            rss_mib: spread(|sample| proc::to_float(sample.rss_bytes) / 1_048_576.0),
            connects_per_second: spread(|sample| sample.connecting.per_second),
            cpu_us_per_connect: spread(|sample| sample.connecting.cpu_us),
        }
    }
}

impl Ratios {
    fn of(samples: &[Sample], limit: &[Sample]) -> Self {
        let spread = |figure: fn(&Sample) -> f64| {
            Spread::of(samples.iter().zip(limit).map(|(sample, limit)| figure(sample) / figure(limit)))
        };
        Self {
            cpu: spread(|sample| sample.cpu_us),
            per_second: spread(|sample| sample.per_second),
            p50: spread(|sample| sample.p50_ms),
            p99: spread(|sample| sample.p99_ms),
        }
    }
}

impl Report {
    fn print(&self) {
        println!("\n{}\n", self.machine.summary());
        println!("Medians of the rounds, range in brackets; x: ratio to the raw loop in the same round.\n");
        let mut table = Table::new(&[
            "transport",
            "shape",
            "server",
            "CPU us/delivery",
            "x",
            "k/s",
            "x",
            "p50 ms",
            "x",
            "p99 ms",
            "x",
            "a read",
            "cores",
            "RSS MiB",
            "connects/s",
            "CPU us/connect",
            "faults",
        ]);
        for case in &self.cases {
            for outcome in &case.results {
                table.row(cells(case, outcome));
            }
        }
        print!("{table}");
        for failure in self.cases.iter().filter_map(|case| case.failure.as_ref()) {
            println!("\n{failure}");
        }
    }
}

fn cells(case: &Case, outcome: &Outcome) -> Vec<String> {
    let mut cells = vec![case.transport.to_string(), case.shape.to_string(), name(outcome.subject)];
    let Some(figures) = &outcome.figures else {
        cells.push("failed".to_owned());
        cells.resize(17, String::new());
        return cells;
    };
    let ratio = |figure: fn(&Ratios) -> &Spread| {
        outcome.ratios.as_ref().map_or(String::new(), |ratios| figure(ratios).to_string())
    };
    cells.extend([
        figures.cpu_us.to_string(),
        ratio(|ratios| &ratios.cpu),
        figures.thousand_per_second.to_string(),
        ratio(|ratios| &ratios.per_second),
        figures.p50_ms.to_string(),
        ratio(|ratios| &ratios.p50),
        figures.p99_ms.to_string(),
        ratio(|ratios| &ratios.p99),
        short(figures.per_read.median),
        short(figures.cores.median),
        short(figures.rss_mib.median),
        short(figures.connects_per_second.median),
        short(figures.cpu_us_per_connect.median),
        faults(&outcome.samples),
    ]);
    cells
}

fn faults(samples: &[Sample]) -> String {
    let sum = |figure: fn(&Faults) -> u64| samples.iter().map(|sample| figure(&sample.faults)).sum::<u64>();
    let faults = [
        (sum(|faults| faults.lost), "lost"),
        (sum(|faults| faults.repeated), "repeated"),
        (sum(|faults| faults.reordered), "reordered"),
        (sum(|faults| faults.unknown), "unknown"),
    ];
    let texts: Vec<String> = faults
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if texts.is_empty() { "0".to_owned() } else { format!("FAILED: {}", texts.join(", ")) }
}

fn line(sample: &Sample) -> String {
    format!(
        "{} CPU us a delivery, {} k/s, p50 {} ms, p99 {} ms, faults {}",
        short(sample.cpu_us),
        short(sample.per_second / 1e3),
        short(sample.p50_ms),
        short(sample.p99_ms),
        faults(std::slice::from_ref(sample))
    )
}

fn name(subject: Subject) -> String {
    match subject {
        Subject::Limit => "raw loop".to_owned(),
        Subject::Tidegate { workers } => {
            format!("tidegate, {workers} worker{}", if workers == 1 { "" } else { "s" })
        }
    }
}
