//! `tidegate publish`: through the backend API, as an app's backend would.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tidegate_protocol::ChannelName;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::api::{Api, ApiArguments};
use super::print;

/// Publish to a channel through the backend API
///
/// Prints the publication's position. DATA is JSON; what is not JSON is sent as a text.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Publish {
    /// Channel to publish to
    channel: ChannelName,
    /// What to publish
    #[arg(required_unless_present = "stdin", conflicts_with = "stdin")]
    data: Option<String>,
    /// Publish each line of stdin, one after the other
    #[arg(long)]
    stdin: bool,
    /// At most once: only to those who are subscribed now, never kept
    #[arg(long)]
    ephemeral: bool,
    /// Idempotency key: the same key again within minutes is the same publication
    #[arg(long, conflicts_with = "stdin")]
    key: Option<String>,
    #[command(flatten)]
    api: ApiArguments,
}

const EXAMPLES: &str = "\
Examples:
  tidegate publish room:1 '{\"text\":\"hello\"}'
  tidegate publish room:1 hello --key greeting-1
  seq 100 | tidegate publish room:1 --stdin
  TIDEGATE_API_KEY=.. tidegate publish room:1 hello --api http://127.0.0.1:9090";

pub(super) fn run(command: Publish) -> anyhow::Result<ExitCode> {
    super::block_on(publish(command))?;
    Ok(ExitCode::SUCCESS)
}

async fn publish(command: Publish) -> anyhow::Result<()> {
    let mut api = Api::connect(&command.api).await?;
    if let Some(data) = &command.data {
        print(&format!("{}\n", api.post("/v1/publish", &body(&command, data)).await?))?;
        return Ok(());
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.context("cannot read stdin")? {
        print(&format!("{}\n", api.post("/v1/publish", &body(&command, &line)).await?))?;
    }
    Ok(())
}

fn body(command: &Publish, data: &str) -> Value {
    let data: Value = serde_json::from_str(data).unwrap_or_else(|_| Value::String(data.to_owned()));
    let mut body = json!({ "channel": command.channel.as_str(), "data": data });
    if command.ephemeral {
        body["ephemeral"] = Value::Bool(true);
    }
    if let Some(key) = &command.key {
        body["key"] = Value::String(key.clone());
    }
    body
}
