//! `tidegate certs`: the CA of a cluster, and certificates for its nodes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use tidegate_certs::ClusterAuthority;
use tidegate_transport::clock;

use super::print;

/// Make the CA of a cluster, and certificates for its nodes
///
/// Edges and cores let each other in by certificates of this CA alone. Its key is needed to make certificates and by no
/// node: keep it where nodes are not.
#[derive(Debug, Args)]
pub(crate) struct Certs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Init(Init),
    Node(Node),
}

/// Make the CA: ca.pem, for every node (`cluster.ca`), and ca-key.pem, for this command
///
/// Valid for ten years. An existing one is never replaced.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tidegate certs init --dir cluster")]
struct Init {
    /// Where to write them; made if it is missing
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
}

/// Make a node's certificate and key: NAME.pem (`cluster.certificate`) and NAME-key.pem (`cluster.key`)
///
/// The node lets nobody else in under its name: `node.name` must be NAME. Running nodes read new files by themselves.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate certs node core-1 --dir cluster\n  tidegate certs node core-1 --dir cluster --renew\n  tidegate certs node edge-1 --dir cluster --expires 90d"
)]
struct Node {
    /// Name of the node
    name: String,
    /// Folder of the CA; the new files go there too
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Further DNS name or address, for whoever checks those; may be repeated
    #[arg(long, value_name = "HOST")]
    host: Vec<String>,
    /// How long it is valid, at most as long as the CA
    #[arg(long, value_name = "DURATION", default_value = "1y", value_parser = humantime::parse_duration)]
    expires: Duration,
    /// Replace the files of an earlier one
    #[arg(long)]
    renew: bool,
}

pub(super) fn run(command: &Certs) -> anyhow::Result<ExitCode> {
    let text = match &command.action {
        Action::Init(action) => init(action, clock::wall())?,
        Action::Node(action) => node(action, clock::wall())?,
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn init(command: &Init, now: SystemTime) -> anyhow::Result<String> {
    let authority = ClusterAuthority::create(&command.dir, now)?;
    let dir = command.dir.display();
    Ok(format!(
        "{dir}/ca.pem      CA of the cluster, until {}: for every node, as `cluster.ca`\n\
         {dir}/ca-key.pem  its key: for `tidegate certs node`, for no node\n",
        day(authority.not_after())
    ))
}

fn node(command: &Node, now: SystemTime) -> anyhow::Result<String> {
    let authority = ClusterAuthority::load(&command.dir, now)?;
    let issued = authority.issue(&command.name, &command.host, command.expires, now)?;
    let ours = ["", "-key"].map(|kind| command.dir.join(format!("{}{kind}.pem", command.name)));
    if let Some(path) = ours.iter().find(|path| path.exists() && !command.renew) {
        bail!("{} is there already: replace it with --renew, or choose another name", path.display());
    }
    let files = issued.write(&command.dir).map_err(|error| anyhow!(error))?;
    Ok(format!(
        "{}  certificate of {}, until {}: `cluster.certificate`\n{}  its key: `cluster.key`\n",
        files.certificate.display(),
        command.name,
        day(issued.certificate().not_after()),
        files.key.display()
    ))
}

fn day(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}
