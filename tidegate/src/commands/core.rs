//! `tidegate core`: owns channels, beside other cores of its region.

use std::process::ExitCode;

use clap::Args;

use super::ConfigArguments;
use crate::config::Mode;
use crate::run;

/// Run a core of a cluster: owns partitions of the channels of its region, for `tidegate edge`
///
/// Takes the same configuration as `serve`, and needs [core.nats] (servers of the region's NATS JetStream) and [cluster]:
/// the cluster's CA and a certificate with this node's name. SIGTERM and SIGINT hand its partitions over and end it, a second
/// one at once. Its API listener has health, metrics, status and drains; backends publish through an edge.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Core {
    #[command(flatten)]
    configuration: ConfigArguments,
}

const EXAMPLES: &str = "\
Examples:
  tidegate core --config /etc/tidegate/core.toml
  tidegate core --set core.nats.servers=nats://10.0.0.1:4222,nats://10.0.0.2:4222
  tidegate config check --core --config /etc/tidegate/core.toml";

pub(super) fn run(command: &Core) -> anyhow::Result<ExitCode> {
    let loaded = command.configuration.layers().load(Mode::Core)?;
    run::blocking(loaded, None)
}
