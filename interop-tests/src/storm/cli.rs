//! The command line of the simulator.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

use super::chart::{Line, Panel, draw};
use super::drain::{self, DrainConfig};
use super::outage::{self, Second, StormConfig, StormOutcome, Strategy};
use super::report;

/// Storms and drains of a fleet on a virtual clock
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim", after_help = EXAMPLES)]
pub(super) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Storm(StormArgs),
    Drain(DrainArgs),
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask sim storm --clients 1000000 --seeds 20
  cargo xtask sim storm --strategy planned --window 0.5 --costly
  cargo xtask sim storm --clients 200000 --seed 7 --svg storm.svg
  cargo xtask sim drain --clients 200000 --seeds 20 --svg drain.svg";

/// A region is gone at once; all of its clients come back to the others
#[derive(Debug, Args)]
struct StormArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// What all others together can take, clients per second [default: clients / 125]
    #[arg(long)]
    rate: Option<f64>,
    /// How clients come back [default: each in turn]
    #[arg(long, value_enum, value_delimiter = ',')]
    strategy: Vec<Strategy>,
    /// Windows that clients are told, over those that they should be
    #[arg(long, default_value_t = 1.0)]
    window: f64,
    /// A refusal costs a handshake, as behind a browser
    #[arg(long)]
    costly: bool,
    /// Share of clients that never come back, and that do not come to a slot
    #[arg(long, default_value_t = 0.05)]
    no_show: f64,
    /// Seconds to wait for the rest, over those that are needed at the least
    #[arg(long, default_value_t = 5.0)]
    limit: f64,
}

/// A node is drained into others, whose slack falls to an eighth and rises again meanwhile
#[derive(Debug, Args)]
struct DrainArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Milliseconds from the targets to the drained node, and as many back
    #[arg(long, default_value_t = 200)]
    feedback: u64,
    /// Share of long polls
    #[arg(long, default_value_t = 0.1)]
    polls: f64,
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// How many
    #[arg(long, default_value_t = 1_000_000)]
    clients: u32,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Share of packets that are lost
    #[arg(long, default_value_t = 0.02)]
    loss: f64,
    /// Draw the first seed into this file
    #[arg(long)]
    svg: Option<PathBuf>,
}

impl Cli {
    pub(super) fn run(self) -> Result<()> {
        match self.command {
            Command::Storm(args) => storm(&args),
            Command::Drain(args) => drain(&args),
        }
    }
}

fn storm(args: &StormArgs) -> Result<()> {
    let strategies = if args.strategy.is_empty() { Strategy::ALL.to_vec() } else { args.strategy.clone() };
    let mut rows = Vec::new();
    for strategy in strategies {
        let mut config = StormConfig::new(args.common.clients, args.common.seed);
        config.strategy = strategy;
        config.rate = args.rate.unwrap_or(config.rate);
        config.window = args.window;
        config.costly = args.costly;
        config.no_show = args.no_show;
        config.loss = args.common.loss;
        config.limit = Duration::from_secs_f64(config.ideal() * args.limit);
        let mut outcomes = Vec::new();
        for seed in args.common.seed..args.common.seed + args.common.seeds {
            let outcome = outage::run(&StormConfig { seed, ..config.clone() });
            eprintln!("{}, seed {seed}: 99.9 % back after {:?} s", strategy.name(), outcome.t999);
            outcomes.push(outcome);
        }
        if let Some(first) = outcomes.first() {
            println!("{}, seed {}:\n", strategy.name(), args.common.seed);
            println!("{}", report::storm_timeline(&config, first));
        }
        for outcome in outcomes.iter_mut().skip(1) {
            outcome.seconds = Vec::new();
        }
        rows.push((strategy.name().to_owned(), config, outcomes));
    }
    let Some((_, config, _)) = rows.first() else { return Ok(()) };
    println!(
        "{} clients, R = {:.0}/s, ideal N/R = {:.1} s, {} % loss, {} % no-shows, window × {}, {} refusals, seeds {} to {}; median (range):\n",
        config.clients,
        config.rate,
        config.ideal(),
        config.loss * 100.0,
        config.no_show * 100.0,
        config.window,
        if config.costly { "costly" } else { "cheap" },
        args.common.seed,
        args.common.seed + args.common.seeds - 1
    );
    println!("{}", report::storm_summary(&rows));
    match &args.common.svg {
        Some(path) => write(path, &storm_chart(&rows)),
        None => Ok(()),
    }
}

fn drain(args: &DrainArgs) -> Result<()> {
    let mut config = DrainConfig::new(args.common.clients, args.common.seed);
    config.loss = args.common.loss;
    config.feedback = Duration::from_millis(args.feedback);
    config.polls = args.polls;
    let outcomes: Vec<_> = (args.common.seed..args.common.seed + args.common.seeds)
        .map(|seed| drain::run(&DrainConfig { seed, ..config.clone() }))
        .collect();
    let Some(first) = outcomes.first() else { return Ok(()) };
    println!("{}", report::drain_timeline(first));
    println!(
        "slack {:?}, feedback {} ms each way, {} % loss, {} % long polls, seeds {} to {}; median (range):\n",
        config.slack,
        args.feedback,
        config.loss * 100.0,
        config.polls * 100.0,
        args.common.seed,
        args.common.seed + args.common.seeds - 1
    );
    println!("{}", report::drain_summary(&config, &outcomes));
    match &args.common.svg {
        Some(path) => write(path, &drain_chart(&config, first)),
        None => Ok(()),
    }
}

fn storm_chart(rows: &[(String, StormConfig, Vec<StormOutcome>)]) -> String {
    let Some((_, config, _)) = rows.first() else { return String::new() };
    let seconds = (config.ideal() * 1.6).ceil();
    let line = |of: &dyn Fn(&StormConfig, &StormOutcome) -> Vec<f64>| {
        rows.iter()
            .filter_map(|(name, config, outcomes)| Some((name, config, outcomes.first()?)))
            .map(|(name, config, outcome)| Line {
                name: name.clone(),
                points: (0..seconds as usize)
                    .map(|second| second as f64 + 1.0)
                    .zip(of(config, outcome))
                    .collect(),
            })
            .collect::<Vec<_>>()
    };
    let per_second = |of: fn(&Second) -> f64| {
        line(&move |config, outcome| outcome.seconds.iter().map(|second| of(second) / config.rate).collect())
    };
    let back = line(&|_, outcome| {
        let mut back = 0.0;
        let share = |second: &Second| {
            back += f64::from(second.back);
            back / f64::from(outcome.wanting.max(1)) * 100.0
        };
        outcome.seconds.iter().map(share).collect()
    });
    let panels = [
        Panel {
            title: "Clients that are back".to_owned(),
            unit: "%".to_owned(),
            lines: back,
            level: None,
            top: 100.0,
        },
        Panel {
            title: "Dials per second, over what the fleet can take (cut at 4)".to_owned(),
            unit: "R".to_owned(),
            lines: per_second(|second| second.dials.into()),
            level: Some((1.0, "R".to_owned())),
            top: 4.0,
        },
        Panel {
            title: "Let in per second, over what the fleet can take".to_owned(),
            unit: "R".to_owned(),
            lines: per_second(|second| second.admitted.into()),
            level: Some((1.0, "R".to_owned())),
            top: 1.2,
        },
    ];
    let subtitle = format!(
        "R = {:.0}/s, N/R = {:.0} s; {} % of packets lost, {} % never come back, {} refusals; seed {}",
        config.rate,
        config.ideal(),
        config.loss * 100.0,
        config.no_show * 100.0,
        if config.costly { "costly" } else { "cheap" },
        config.seed
    );
    draw(&format!("{} clients lose their region at once", config.clients), &subtitle, seconds, &panels)
}

fn drain_chart(config: &DrainConfig, outcome: &drain::DrainOutcome) -> String {
    let seconds = outcome.took.min(outcome.seconds.len() as f64).ceil();
    let line = |name: &str, of: fn(&drain::Second) -> f64| Line {
        name: name.to_owned(),
        points: (0..).map(f64::from).zip(outcome.seconds.iter().map(of)).collect(),
    };
    let highest = config.slack.iter().map(|(_, slack)| *slack).fold(0.0, f64::max);
    let panels = [
        Panel {
            title: "Clients per second".to_owned(),
            unit: "/s".to_owned(),
            lines: vec![
                line("moved", |second| second.moved.into()),
                line("targets' slack", |second| second.slack),
                line("places granted", |second| second.granted.into()),
            ],
            level: None,
            top: highest * 1.1,
        },
        Panel {
            title: "Still on the old node".to_owned(),
            unit: String::new(),
            lines: vec![line("left", |second| second.left.into())],
            level: None,
            top: f64::from(config.clients),
        },
    ];
    let subtitle = format!(
        "took {:.1} s, ideal {:.1} s; {} migrating clients refused; feedback {} ms each way; seed {}",
        outcome.took,
        outcome.ideal,
        outcome.refused,
        config.feedback.as_millis(),
        config.seed
    );
    draw(&format!("A node of {} clients is drained", config.clients), &subtitle, seconds, &panels)
}

fn write(path: &Path, svg: &str) -> Result<()> {
    fs::write(path, svg).with_context(|| format!("writing {}", path.display()))?;
    eprintln!("{} written", path.display());
    Ok(())
}
