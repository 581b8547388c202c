//! `tidegate serve`: edge and core in one process, for production on one machine.

use std::process::ExitCode;

use clap::Args;

use super::ConfigArguments;
use crate::config::Mode;
use crate::run;

/// Run the gateway in production: edge and core in one process
///
/// Needs a TLS certificate and a key for tokens; see `tidegate config default`. SIGTERM and SIGINT end it in order, a
/// second one at once. SIGHUP reads certificates and key sets again; they are also read when they change.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Serve {
    #[command(flatten)]
    configuration: ConfigArguments,
}

const EXAMPLES: &str = "\
Examples:
  tidegate serve --config /etc/tidegate/tidegate.toml
  TIDEGATE_LISTEN__QUIC=0.0.0.0:443 tidegate serve
  tidegate serve --set node.region=eu --workers 4";

pub(super) fn run(command: &Serve) -> anyhow::Result<ExitCode> {
    let loaded = command.configuration.layers().load(Mode::Serve)?;
    run::blocking(loaded, None)
}
