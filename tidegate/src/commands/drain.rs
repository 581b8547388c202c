//! `tidegate drain`: moves the clients of an edge, or of a region, to others, and shows how far that is.

mod plan;
mod progress;
mod watch;

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::api::{Api, ApiArguments};
use super::print;
use watch::Watch;

/// Move the clients of an edge, or of a region, to other edges
///
/// Nobody is cut off: each client connects elsewhere first, at the pace that the targets allow. When nobody is left the edge
/// refuses clients until it is started again or the drain is aborted. Asks the API listener of any node.
///
/// Exit codes: 0 all moved; 3 some were closed at the deadline, or a node was gone before it was done; 4 aborted; 1 something
/// else went wrong; 130 by Ctrl-C, while the drain goes on.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Drain {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    order: Order,
}

#[derive(Debug, Args)]
struct Order {
    /// The edge; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "region")]
    node: Vec<String>,
    /// All edges of a region
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Where to: an edge, a region, or https://HOST[:PORT]; may be repeated [default: the other edges of the region; of a
    /// region, all other regions]
    #[arg(long, value_name = "PLACE")]
    to: Vec<String>,
    /// By when everybody is to be gone; who is not is closed then
    #[arg(long, value_name = "TIME", default_value = "5m")]
    within: String,
    /// Show who would go where and how long that would take, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
    /// Print JSON: a line each half second, then a summary
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArguments,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Show the drains that go on, and wait for their end
    Status(Status),
    /// Ask nobody more to move, until `resume`
    Pause(Choice),
    /// Go on after `pause`; the deadline is as much later
    Resume(Choice),
    /// Call it off: the edge serves as before, who has moved stays away
    Abort(Choice),
}

#[derive(Debug, Args)]
struct Status {
    #[command(flatten)]
    choice: Choice,
    /// Show it once, and do not wait
    #[arg(long)]
    once: bool,
}

/// Which drains.
#[derive(Debug, Args)]
struct Choice {
    /// The edge; may be repeated [default: all that are drained]
    #[arg(long, value_name = "NAME", conflicts_with = "region")]
    node: Vec<String>,
    /// All edges of a region
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArguments,
}

const EXAMPLES: &str = "\
Examples:
  tidegate drain --node edge-1 --dry-run
  tidegate drain --node edge-1 --within 10m
  tidegate drain --region eu --to us
  tidegate drain status
  tidegate drain abort";

pub(super) fn run(command: &Drain) -> anyhow::Result<ExitCode> {
    super::block_on(async {
        match &command.change {
            None => order(&command.order).await,
            Some(Change::Status(status)) => show(status).await,
            Some(Change::Pause(choice)) => change(choice, "pause").await,
            Some(Change::Resume(choice)) => change(choice, "resume").await,
            Some(Change::Abort(choice)) => change(choice, "abort").await,
        }
    })
}

async fn order(order: &Order) -> anyhow::Result<ExitCode> {
    if order.node.is_empty() && order.region.is_none() {
        bail!("which clients? say --node NAME or --region NAME; `tidegate status` lists both");
    }
    let mut body = json!({ "to": order.to, "within": order.within, "dry_run": order.dry_run });
    match &order.region {
        Some(region) => body["region"] = json!(region),
        None => body["node"] = json!(order.node),
    }
    let answer = Api::connect(&order.api).await?.post("/v1/drain", &body).await?;
    let answer = parse(&answer)?;
    if order.dry_run {
        let text = if order.json { format!("{answer}\n") } else { plan::render(&answer) };
        print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let nodes = names(&answer);
    if order.detach {
        let text = match order.json {
            true => format!("{answer}\n"),
            false => format!("draining {}; see `tidegate drain status`\n", nodes.join(", ")),
        };
        print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    Watch::new(&order.api, nodes, order.json).until_the_end(answer).await
}

async fn show(status: &Status) -> anyhow::Result<ExitCode> {
    let Status { choice, once } = status;
    let query = query(&choice.node, choice.region.as_deref(), false);
    let answer = Api::connect(&choice.api).await?.get(&format!("/v1/drain{query}")).await?;
    let answer = parse(&answer)?;
    let nodes = names(&answer);
    if nodes.is_empty() {
        print(if choice.json { "{\"draining\":false,\"drains\":[]}\n" } else { "no edge is drained\n" })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut watch = Watch::new(&choice.api, nodes, choice.json);
    if *once {
        return watch.show_once(&answer);
    }
    watch.until_the_end(answer).await
}

async fn change(choice: &Choice, what: &str) -> anyhow::Result<ExitCode> {
    let query = query(&choice.node, choice.region.as_deref(), true);
    let mut api = Api::connect(&choice.api).await?;
    let answer = match what {
        "abort" => api.delete(&format!("/v1/drain{query}")).await?,
        what => api.post(&format!("/v1/drain/{what}{query}"), &Value::Null).await?,
    };
    let answer = parse(&answer)?;
    let nodes = names(&answer);
    let done = match what {
        "abort" => "called off",
        "pause" => "paused",
        _ => "going on",
    };
    let text = match (choice.json, nodes.is_empty()) {
        (true, _) => format!("{answer}\n"),
        (false, true) => "no edge is drained\n".to_owned(),
        (false, false) => format!("{done}: {}\n", nodes.join(", ")),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn query(nodes: &[String], region: Option<&str>, is_change: bool) -> String {
    let pairs: Vec<String> = match region {
        Some(region) => vec![format!("region={region}")],
        None if nodes.is_empty() && is_change => vec!["all=true".to_owned()],
        None => nodes.iter().map(|node| format!("node={node}")).collect(),
    };
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// Of those that have a drain.
fn names(answer: &Value) -> Vec<String> {
    let drains = answer["drains"].as_array().map(Vec::as_slice).unwrap_or_default();
    let with_drain = drains.iter().filter(|drain| !drain["drain"].is_null());
    with_drain.filter_map(|drain| Some(drain["node"].as_str()?.to_owned())).collect()
}

fn parse(answer: &str) -> anyhow::Result<Value> {
    serde_json::from_str(answer).context("the node's answer is no JSON")
}
