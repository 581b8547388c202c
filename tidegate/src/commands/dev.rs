//! `tidegate dev`: everything in one process, for the first minutes and for development.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::ConfigArguments;
use crate::config::Mode;
use crate::run;

/// Run everything on this machine, with throw-away certificates and a demo page
///
/// Clients need no token, everyone may publish and subscribe, and the backend API needs no key: for development only.
/// Listens on loopback: UDP and TCP 4433, plain HTTP and the demo page on 8080, the backend API on 9090.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Dev {
    #[command(flatten)]
    configuration: ConfigArguments,
    /// Where the development CA and its certificate are kept [default: ~/.cache/tidegate/dev]
    #[arg(long, value_name = "FOLDER")]
    certs_dir: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  tidegate dev
  tidegate dev --plain 127.0.0.1:8081 --api 127.0.0.1:9091
  tidegate dev --set auth.anonymous=false --config tidegate.toml";

pub(super) fn run(command: Dev) -> anyhow::Result<ExitCode> {
    let loaded = command.configuration.layers().load(Mode::Dev)?;
    run::blocking(loaded, command.certs_dir)
}
