//! Tidegate: a QUIC/WebTransport-first edge gateway for realtime apps. One program: the gateway and its tools.

mod commands;
mod config;
mod demo;
mod run;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match commands::run(commands::Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // The alternate form has the whole chain of causes on one line.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
