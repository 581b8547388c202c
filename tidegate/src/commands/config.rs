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

/// Which command's view.
#[derive(Debug, Args)]
struct Views {
    /// As `tidegate dev` sees it
    #[arg(long)]
    dev: bool,
    /// As `tidegate edge` sees it; with --dev: as `tidegate edge --dev`
    #[arg(long)]
    edge: bool,
    /// As `tidegate core` sees it
    #[arg(long, conflicts_with_all = ["dev", "edge"])]
    core: bool,
}

impl Views {
    /// `serve`, unless another one was asked for.
    fn mode(&self) -> Mode {
        match self {
            Self { dev: true, edge: true, .. } => Mode::DevEdge,
            Self { dev: true, .. } => Mode::Dev,
            Self { edge: true, .. } => Mode::Edge,
            Self { core: true, .. } => Mode::Core,
            _ => Mode::Serve,
        }
    }
}

/// Print a configuration file with every key, its default and what it means
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tidegate config default > tidegate.toml")]
struct Default {
    #[command(flatten)]
    view: Views,
}

/// Look for mistakes: unknown keys, wrong values, files that cannot be used, settings that do not go together
///
/// Prints every problem with its file, line and column and exits with 1; prints OK and exits with 0 if there is none.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate config check\n  tidegate config check --config /etc/tidegate/tidegate.toml\n  tidegate config check --core --config core.toml"
)]
struct Check {
    #[command(flatten)]
    configuration: ConfigArguments,
    #[command(flatten)]
    view: Views,
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
    #[command(flatten)]
    view: Views,
}

pub(super) fn run(command: &Config) -> anyhow::Result<ExitCode> {
    match &command.action {
        Action::Default(action) => print(&config::default_file(action.view.mode()))?,
        Action::Check(action) => {
            let loaded = action.configuration.layers().load(action.view.mode())?;
            let problems = config::check(&loaded, clock::wall());
            if !problems.is_empty() {
                return Err(Problems(problems).into());
            }
            print(&format!("OK: {}\n", source(&loaded)))?;
        }
        Action::Explain(action) => {
            let loaded = action.configuration.layers().load(action.view.mode())?;
            let text = config::explain(&loaded, action.key.as_deref()).map_err(|problem| anyhow!(problem))?;
            print(&format!("# {}\n{text}\n", source(&loaded)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn source(loaded: &Loaded) -> String {
    loaded.file.as_ref().map_or_else(|| "no file, defaults".to_owned(), |path| path.display().to_string())
}
