//! `tidegate config`: the default file, mistakes in a file, what holds and why.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use tidegate_transport::clock;

use super::{ConfigArguments, print};
use crate::config::{self, Loaded, Mode, Problems};

/// Print the default configuration, check one, or explain what holds
#[derive(Debug, Args)]
pub(crate) struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Default(Default),
    Check(Check),
    Explain(Explain),
}

/// Print a configuration file with every key, its default and what it means
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tidegate config default > tidegate.toml")]
struct Default {
    /// With the defaults of `tidegate dev`
    #[arg(long)]
    dev: bool,
}

/// Look for mistakes: unknown keys, wrong values, files that cannot be used, settings that do not go together
///
/// Prints every problem with its file, line and column and exits with 1; prints OK and exits with 0 if there is none.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate config check\n  tidegate config check --config /etc/tidegate/tidegate.toml"
)]
struct Check {
    #[command(flatten)]
    configuration: ConfigArguments,
    /// As `tidegate dev` would see it
    #[arg(long)]
    dev: bool,
}

/// Print each effective value, where it came from, and what it means
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate config explain\n  tidegate config explain listen\n  tidegate config explain limits.payload"
)]
struct Explain {
    /// One key, or a section [default: all]
    key: Option<String>,
    #[command(flatten)]
    configuration: ConfigArguments,
    /// As `tidegate dev` would see it
    #[arg(long)]
    dev: bool,
}

pub(super) fn run(command: &Config) -> anyhow::Result<ExitCode> {
    match &command.action {
        Action::Default(action) => print(&config::default_file(mode(action.dev)))?,
        Action::Check(action) => {
            let loaded = action.configuration.layers().load(mode(action.dev))?;
            let problems = config::check(&loaded, clock::wall());
            if !problems.is_empty() {
                return Err(Problems(problems).into());
            }
            print(&format!("OK: {}\n", source(&loaded)))?;
        }
        Action::Explain(action) => {
            let loaded = action.configuration.layers().load(mode(action.dev))?;
            let text = config::explain(&loaded, action.key.as_deref()).map_err(|problem| anyhow!(problem))?;
            print(&format!("# {}\n{text}\n", source(&loaded)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn mode(dev: bool) -> Mode {
    if dev { Mode::Dev } else { Mode::Serve }
}

fn source(loaded: &Loaded) -> String {
    loaded.file.as_ref().map_or_else(|| "no file, defaults".to_owned(), |path| path.display().to_string())
}
