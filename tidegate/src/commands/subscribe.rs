//! `tidegate subscribe`.

use clap::Args;
use std::process::ExitCode;

/// Print what is published on channels
#[derive(Debug, Args)]
pub(crate) struct Subscribe {
    /// Channels
    #[arg(required = true)]
    channels: Vec<String>,
}

pub(super) fn run(command: Subscribe) -> anyhow::Result<ExitCode> {
    anyhow::bail!("{:?}", command.channels)
}
