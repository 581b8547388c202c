//! Logs: to stderr, as text or JSON.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};

/// From now on events are logged. `TIDEGATE_LOG` comes before the configuration.
pub(super) fn start(log: &Log) -> anyhow::Result<()> {
    let rules = std::env::var("TIDEGATE_LOG").ok().filter(|rules| !rules.is_empty());
    let filter: Targets = match &rules {
        Some(rules) => rules.parse().with_context(|| {
            format!(
                "TIDEGATE_LOG cannot be {rules:?}: write a level, or rules such as info,tidegate_edge=debug"
            )
        })?,
        None => format!("{QUIET},{}", log.level).parse().context("log.level")?,
    };
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let layer = tracing_subscriber::fmt::layer().with_ansi(coloured).with_writer(std::io::stderr);
    let layer = match log.format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().context("cannot start logging")
}

/// What the store's library tells of every file that it opens.
const QUIET: &str = "fjall=warn,lsm_tree=warn";
