//! `tidegate edge`: what clients connect to, with links to the cores of all regions.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::ConfigArguments;
use crate::config::Mode;
use crate::run;

/// Run an edge of a cluster: clients and the backend API here, channels on `tidegate core`
///
/// Takes the same configuration as `serve`, and needs [cluster]: the cluster's CA, a certificate with this node's name,
/// and the cores of each region. SIGTERM and SIGINT end it in order, a second one at once. SIGHUP reads certificates and
/// keys again; they are also read when they change.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Edge {
    #[command(flatten)]
    configuration: ConfigArguments,
    /// As open as `tidegate dev`, with its listeners, throw-away certificates and demo page; [cluster] as ever
    #[arg(long)]
    dev: bool,
    /// With --dev: where the development CA and its certificate are kept [default: ~/.cache/tidegate/dev]
    #[arg(long, value_name = "FOLDER", requires = "dev")]
    certs_dir: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  tidegate edge --config /etc/tidegate/edge.toml
  tidegate edge --set cluster.regions.eu.cores=core-1.internal:4455,core-2.internal:4455
  tidegate config check --edge --config /etc/tidegate/edge.toml";

pub(super) fn run(command: Edge) -> anyhow::Result<ExitCode> {
    let mode = if command.dev { Mode::DevEdge } else { Mode::Edge };
    let loaded = command.configuration.layers().load(mode)?;
    run::blocking(loaded, command.certs_dir)
}
