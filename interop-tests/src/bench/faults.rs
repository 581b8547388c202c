//! `bench faults`: seeded rounds of faults, and every partition handed over, judged by the checker.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::cli::FaultsArgs;
use super::machine::Machine;
use super::proc;
use super::report::{Table, short, write_json};
use crate::faults::{FaultKind, HandOvers, Plan, Round, by_kind, hand_everything_over, run as run_plan};
use crate::programs;

/// Runs and prints. 1 where anything was lost, doubled, out of order, or stuck.
pub(super) fn run(arguments: &FaultsArgs) -> Result<ExitCode> {
    let mut machine = Machine::look(&programs::tidegate()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let plan = Plan {
        rounds: arguments.rounds,
        seed: arguments.seed,
        channels: arguments.channels as usize,
        rate: f64::from(arguments.rate),
        kinds: if arguments.only.is_empty() { FaultKind::ALL.to_vec() } else { arguments.only.clone() },
        ..Plan::default()
    };
    let rounds =
        if plan.rounds == 0 { Vec::new() } else { runtime.block_on(run_plan(&plan, print_round))? };
    let handovers = match arguments.handovers {
        0 => None,
        times => {
            println!("\nHanding everything over, {times} times ..");
            let rate = f64::from(plan.partitions) * 1_000.0 / f64::from(arguments.every_ms);
            Some(runtime.block_on(hand_everything_over(plan.partitions, rate, times as usize))?)
        }
    };
    machine.load_after = proc::load_average();
    println!("\n{}\n", machine.summary());
    if !rounds.is_empty() {
        print_kinds(&plan, &rounds);
    }
    if let Some(handovers) = &handovers {
        print_handovers(handovers);
    }
    let violations = rounds.iter().map(|round| round.violations.len()).sum::<usize>()
        + handovers.iter().map(|handovers| handovers.violations.len()).sum::<usize>();
    let refused = handovers.as_ref().is_some_and(|handovers| handovers.refusals > 0);
    println!("{violations} violations");
    let report =
        Report { seed: plan.seed, machine, channels: plan.channels, rate: plan.rate, rounds, handovers };
    let file = write_json("faults", arguments.json.as_deref(), &report)?;
    println!("Result file: {}", file.display());
    Ok(if violations == 0 && !refused { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    machine: Machine,
    channels: usize,
    rate: f64,
    rounds: Vec<Round>,
    handovers: Option<HandOvers>,
}

fn print_round(round: &Round) {
    let [p50, p99, max] = quantiles(&round.resumed_ms);
    println!(
        "round {:>2} seed {}  {:<44} resumed p50 {p50} p99 {p99} max {max} ms; {} published, {} acknowledged, {} tried \
         again, {} delivered; {:.1} s{}",
        round.number,
        round.seed,
        round.what,
        round.published,
        round.acknowledged,
        round.refusals,
        round.delivered,
        round.took.as_secs_f64(),
        if round.violations.is_empty() { "" } else { "  VIOLATIONS" },
    );
    for violation in &round.violations {
        println!("    {violation}");
    }
}

fn print_kinds(plan: &Plan, rounds: &[Round]) {
    println!(
        "{} channels with a subscriber on either edge, {} publishes/s, seed {}. Milliseconds from the fault until a \
         subscriber gets what was published after it (a cut link: after it was healed).\n",
        plan.channels, plan.rate, plan.seed
    );
    let mut violations: BTreeMap<FaultKind, usize> = BTreeMap::new();
    for round in rounds {
        *violations.entry(round.fault.kind).or_default() += round.violations.len();
    }
    let mut table = Table::new(&["fault", "rounds", "p50", "p99", "max", "target for p99", "", "violations"]);
    for (kind, (count, waits)) in by_kind(rounds) {
        let [p50, p99, max] = quantiles(&waits);
        let target = kind.target().map(|target| target.as_secs_f64() * 1_000.0);
        let verdict = target.map_or("", |target| met(Round::quantile(&waits, 0.99) < target));
        let target = target.map_or_else(String::new, short);
        let violations = violations.get(&kind).copied().unwrap_or_default().to_string();
        let name = format!("{kind:?}");
        table.row(vec![name, count.to_string(), p50, p99, max, target, verdict.to_owned(), violations]);
    }
    let sum = |of: fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>();
    println!("{table}");
    println!(
        "{} published, {} acknowledged, {} delivered\n",
        sum(|round| round.published),
        sum(|round| round.acknowledged),
        sum(|round| round.delivered)
    );
}

fn print_handovers(handovers: &HandOvers) {
    let [p50, p99, max] = quantiles(&handovers.gaps_ms);
    let [_, slowest, _] = quantiles(&handovers.slowest_ms);
    println!(
        "Planned hand-over: {} moves under {} publishes (one each {} ms and channel), {} refused. Gap in delivery p50 {p50} \
         p99 {p99} max {max} ms, target 200: {}. Slowest publication p99 {slowest} ms",
        handovers.moves.len(),
        handovers.published,
        short(handovers.every_ms),
        handovers.refusals,
        met(handovers.p99_ms() < HAND_OVER_MS && handovers.refusals == 0),
    );
    for violation in &handovers.violations {
        println!("    {violation}");
    }
}

fn quantiles(figures: &[f64]) -> [String; 3] {
    [0.5, 0.99, 1.0].map(|share| short(Round::quantile(figures, share)))
}

fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}

/// DESIGN: a planned hand-over is not noticed.
const HAND_OVER_MS: f64 = 200.0;
