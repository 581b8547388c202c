//! `cargo xtask sim`: the simulated tests, replayed from a seed; storms and drains of whole fleets.

use std::process::ExitCode;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{prerequisites, process};

/// Flags of `cargo xtask sim`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) scenario: Option<Scenario>,
    /// The seed that a failure printed as SEED=..
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// For the test runner: `-- -E 'test(drain)'`
    #[arg(last = true)]
    pub(crate) nextest: Vec<String>,
}

/// What the simulator shows, in release mode; without one, the simulated tests run.
#[derive(clap::Subcommand)]
pub(crate) enum Scenario {
    /// A region is gone at once, and all of its clients come back: ours beside what others do
    #[command(disable_help_flag = true)]
    Storm(Flags),
    /// A node is drained into others whose slack falls and rises
    #[command(disable_help_flag = true)]
    Drain(Flags),
}

/// What the simulator itself takes.
#[derive(clap::Args)]
pub(crate) struct Flags {
    /// `--clients N --seed N --seeds K --svg FILE`; `--help` shows them all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) flags: Vec<String>,
}

/// Runs the simulated tests, or the simulator.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    match &args.scenario {
        None => tests(workspace, args),
        Some(Scenario::Storm(flags)) => simulator(workspace, "storm", flags),
        Some(Scenario::Drain(flags)) => simulator(workspace, "drain", flags),
    }
}

/// `TIDEGATE_SEED` carries the seed to the tests.
fn tests(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    prerequisites::nextest(workspace)?;
    let mut nextest = workspace.cargo();
    nextest
        .args(["nextest", "run", "--package", "tidegate-interop-tests", "--test", "sim"])
        .args(&args.nextest);
    if let Some(seed) = args.seed {
        nextest.env("TIDEGATE_SEED", seed.to_string());
    }
    process::exit_code(&mut nextest)
}

fn simulator(workspace: &Workspace, scenario: &str, flags: &Flags) -> Result<ExitCode> {
    let mut simulator = workspace.cargo();
    simulator
        .args(["run", "--release", "--package", "tidegate-interop-tests", "--bin", "sim", "--", scenario])
        .args(&flags.flags);
    process::exit_code(&mut simulator)
}
