//! Benchmarks: the gateway as a process of its own, one load generator (this process), and beside it, in the same
//! run and with the same load generator, a raw loop over as many sockets: the machine's limit.
//!
//! Figures are reported, never asserted; a lost, repeated or reordered publication makes a run fail.

mod channels;
mod cli;
mod fanout;
mod faults;
mod idle;
mod ledger;
mod limit;
mod load;
mod loss;
mod machine;
mod measure;
pub mod mobility;
mod proc;
mod publish;
mod publisher;
pub(crate) mod report;
mod restart;
mod server;
mod shape;

use std::process::ExitCode;

use clap::Parser as _;

use self::cli::{Cli, Command};

/// The whole program: reads the command line, measures, prints.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Fanout(arguments) => fanout::run(&arguments),
        Command::Idle(arguments) => idle::run(&arguments),
        Command::Loss(arguments) => loss::run(&arguments),
        Command::Mobility(arguments) => mobility::run(&arguments),
        Command::Faults(arguments) => faults::run(&arguments),
        Command::Restart(arguments) => restart::run(&arguments),
        Command::Channels(arguments) => channels::run(&arguments),
        Command::Publish(arguments) => publish::run(&arguments),
        Command::Limit(arguments) => limit::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
