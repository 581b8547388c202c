//! Benchmarks: the gateway as a process of its own, one load generator (this process), and beside it, in the same
//! run and with the same load generator, a raw loop over as many sockets: the machine's limit.
//!
//! Figures are reported, never asserted; a lost, repeated or reordered publication makes a run fail.

mod attack;
mod channels;
mod cli;
mod crowd;
mod drain;
mod fanout;
mod faults;
mod idle;
mod kill;
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
mod trial;

use std::process::ExitCode;

use clap::Parser as _;
use tidegate_transport::clock;

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
        Command::Drain(arguments) => drain::run(&arguments),
        Command::Kill(arguments) => kill::run(&arguments),
        Command::Attack(arguments) => attack::run(&arguments),
        Command::Crowd => crowd::run(),
        Command::Channels(arguments) => channels::run(&arguments),
        Command::Publish(arguments) => publish::run(&arguments),
        Command::Limit(arguments) => limit::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Microseconds of Unix time: what several processes of one machine tell the time by.
fn unix_us() -> u64 {
    let since = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
