//! `cargo xtask sim`: the simulated tests, replayed from a seed.

use std::process::ExitCode;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{prerequisites, process};

/// Flags of `cargo xtask sim`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The seed that a failure printed as SEED=..
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// For the test runner: `-- -E 'test(drain)'`
    #[arg(last = true)]
    pub(crate) nextest: Vec<String>,
}

/// Runs the simulated tests; `TIDEGATE_SEED` carries the seed to them.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
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
