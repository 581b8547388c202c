//! Storms and drains, simulated: a virtual clock, a million clients, and at both ends the machines that production runs
//! (`tidegate_protocol::reconnect`, `tidegate_edge::policy`).
//!
//! What is modelled: delay, loss, the CPU of each node as one queue, clients that never come back, plans that are out of
//! date. What is not: several regions that fail one after the other, the channel tier behind the edges.

mod agenda;
mod chart;
mod cli;
mod client;
mod door;
pub mod drain;
mod network;
pub mod outage;
mod report;

use std::process::ExitCode;

use clap::Parser as _;

/// The whole program: reads the command line, simulates, prints.
pub fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
