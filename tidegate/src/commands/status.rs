//! `tidegate status`: edges, nodes, partitions and links of a cluster, as any node of it sees them.

mod table;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::api::{Api, ApiArguments};
use super::print;

/// Show edges, nodes, regions, partitions with their owners, and links
///
/// Asks the API listener of any node. An edge knows all regions that it has links to, a core its own.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Status {
    #[command(flatten)]
    api: ApiArguments,
    /// Print the answer as it is
    #[arg(long)]
    json: bool,
    /// Print again every two seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

const EXAMPLES: &str = "\
Examples:
  tidegate status
  tidegate status --api http://127.0.0.1:9091 --watch
  tidegate status --json | jq '.regions[].partitions[] | select(.owner == null)'";

pub(super) fn run(command: &Status) -> anyhow::Result<ExitCode> {
    super::block_on(status(command))?;
    Ok(ExitCode::SUCCESS)
}

async fn status(command: &Status) -> anyhow::Result<()> {
    if !command.watch {
        let answer = ask(command).await?;
        return print(&shown(command, &answer)?);
    }
    let clear = if std::io::stdout().is_terminal() && !command.json { CLEAR } else { "" };
    loop {
        // Whoever watches wants to see the node come back.
        let text = match ask(command).await {
            Ok(answer) => shown(command, &answer)?,
            Err(error) => format!("error: {error:#}\n"),
        };
        print(&format!("{clear}{text}"))?;
        tokio::time::sleep(PERIOD).await;
    }
}

/// A connection each time: over one that stays, a node that ends would wait for us.
async fn ask(command: &Status) -> anyhow::Result<String> {
    Api::connect(&command.api).await?.get("/v1/status").await
}

fn shown(command: &Status, answer: &str) -> anyhow::Result<String> {
    if command.json {
        return Ok(format!("{answer}\n"));
    }
    let status: Value = serde_json::from_str(answer).context("the node's answer is no JSON")?;
    Ok(table::render(&status, width()))
}

/// Of the terminal, where the shell tells.
fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns.unwrap_or(WIDTH).max(MIN_WIDTH)
}

const CLEAR: &str = "\x1b[H\x1b[2J";
const PERIOD: Duration = Duration::from_secs(2);
const WIDTH: usize = 120;
const MIN_WIDTH: usize = 40;
