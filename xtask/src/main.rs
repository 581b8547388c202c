//! Tidegate's developer commands: `cargo xtask <command>`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

mod advisories;
mod bench;
mod check;
mod cluster;
mod fuzz;
mod prerequisites;
mod process;
mod sim;
mod step;
mod test;
mod tidy;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Tidegate's developer commands", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fast, before every commit: fmt, clippy, tidy, unit and simulated tests, doc tests
    Check,
    /// Everything, as CI runs it; installs what it needs and says so
    Test(test::Args),
    /// The project's own rules about its tree: sizes, layers, sans-io modules, links, forbidden words
    Tidy,
    /// Cargo.lock against known security floors and yanked versions
    Advisories,
    /// Run a benchmark in release mode: fanout, idle, drain, kill, restart, attack and others
    Bench(bench::Args),
    /// Run a whole cluster on this machine: cores, edges and NATS servers as processes, until Ctrl-C
    Cluster(cluster::Args),
    /// Run the simulated tests, with one seed or with the tests' own; or show a storm or a drain
    Sim(sim::Args),
    /// Fuzz one parser or each in turn; needs a nightly compiler and cargo-fuzz
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    match cli.command {
        Command::Check => check::run(&workspace),
        Command::Test(args) => test::run(&workspace, &args),
        Command::Tidy => tidy::run(&workspace).map(|()| ExitCode::SUCCESS),
        Command::Advisories => advisories::run(&workspace).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => bench::run(&workspace, &args),
        Command::Cluster(args) => cluster::run(&workspace, &args),
        Command::Sim(args) => sim::run(&workspace, &args),
        Command::Fuzz(args) => fuzz::run(&workspace, &args).map(|()| ExitCode::SUCCESS),
    }
}

/// The names of all commands, for `tidy`'s look at README.
fn command_names() -> Vec<String> {
    use clap::CommandFactory as _;
    Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_after_the_dashes_go_to_the_test_runner() {
        let cli =
            Cli::try_parse_from(["xtask", "test", "--", "-E", "test(browser)"]).expect("valid arguments");
        let Command::Test(args) = cli.command else { panic!("not the test command") };
        assert_eq!(args.nextest, ["-E", "test(browser)"]);
    }

    #[test]
    fn a_benchmark_gets_its_own_flags() {
        for (flags, own) in
            [(["bench", "idle", "--connections"], "idle"), (["bench", "fanout", "--help"], "fanout")]
        {
            let cli = Cli::try_parse_from(std::iter::once("xtask").chain(flags)).expect("valid arguments");
            let Command::Bench(args) = cli.command else { panic!("not the bench command") };
            assert_eq!(args.benchmark, [own, flags[2]]);
        }
        let cli = Cli::try_parse_from(["xtask", "sim", "storm", "--clients", "5", "--help"]);
        let Command::Sim(args) = cli.expect("valid arguments").command else { panic!("not the sim command") };
        let Some(sim::Scenario::Storm(flags)) = args.scenario else { panic!("not the storm") };
        assert_eq!(flags.flags, ["--clients", "5", "--help"]);
        let cli = Cli::try_parse_from(["xtask", "sim", "--seed", "7", "--", "-E", "test(drain)"]);
        let Command::Sim(args) = cli.expect("valid arguments").command else { panic!("not the sim command") };
        assert!(args.scenario.is_none() && args.seed == Some(7) && args.nextest.len() == 2);
        for not_enough in [&["xtask", "bench"][..], &["xtask", "bench", "--help"]] {
            assert!(Cli::try_parse_from(not_enough).is_err(), "these print our own usage");
        }
    }
}
