//! The command line: one module for each command.

mod api;
mod certs;
mod config;
mod core;
mod dev;
mod drain;
mod edge;
mod publish;
mod serve;
mod status;
mod subscribe;
mod token;

use std::future::Future;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::config::Layers;

/// QUIC/WebTransport-first edge gateway for realtime apps
///
/// Clients connect by WebTransport, native QUIC, WebSocket or long poll, subscribe to channels and get every
/// publication in order, once. Your backend publishes over HTTP.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::Dev),
    Serve(serve::Serve),
    Edge(edge::Edge),
    Core(core::Core),
    Status(status::Status),
    Drain(drain::Drain),
    Publish(publish::Publish),
    Subscribe(subscribe::Subscribe),
    Token(Box<token::Token>),
    Certs(certs::Certs),
    Config(config::Config),
}

const EXAMPLES: &str = "\
Examples:
  tidegate dev                              try it: everything on this machine, with a demo page
  tidegate publish room:1 '{\"text\":\"hi\"}'   publish through the backend API
  tidegate subscribe room:1                 print what is published
  tidegate config default > tidegate.toml   begin a configuration
  tidegate config check                     look for mistakes in it
  tidegate serve                            run in production, on one machine
  tidegate core, tidegate edge              run in production, on several: docs/OPERATIONS.md
  tidegate status                           nodes, partitions and links of a cluster
  tidegate drain --node edge-1              move the clients of an edge to others";

/// Runs what was asked for.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Dev(command) => dev::run(command),
        Command::Serve(command) => serve::run(&command),
        Command::Edge(command) => edge::run(command),
        Command::Core(command) => core::run(&command),
        Command::Status(command) => status::run(&command),
        Command::Drain(command) => drain::run(&command),
        Command::Publish(command) => publish::run(command),
        Command::Subscribe(command) => subscribe::run(command),
        Command::Token(command) => token::run(&command),
        Command::Certs(command) => certs::run(&command),
        Command::Config(command) => config::run(&command),
    }
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Configuration")]
pub(crate) struct ConfigArguments {
    /// Configuration file [default: $TIDEGATE_CONFIG, else ./tidegate.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key, over file and environment; may be repeated
    ///
    /// Example: --set limits.payload=32KiB --set namespaces.room.publish=users
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,
    /// UDP address of QUIC and WebTransport, or false (listen.quic)
    #[arg(long, value_name = "ADDRESS")]
    quic: Option<String>,
    /// TCP address of WebSocket, long poll and events over TLS, or false (listen.tls)
    #[arg(long, value_name = "ADDRESS")]
    tls: Option<String>,
    /// TCP address of the same without TLS, or false (listen.plain)
    #[arg(long, value_name = "ADDRESS")]
    plain: Option<String>,
    /// UDP address of the same over HTTP/3, or false (listen.http3)
    #[arg(long, value_name = "ADDRESS")]
    http3: Option<String>,
    /// TCP address of the backend API, or false (listen.api)
    #[arg(long, value_name = "ADDRESS")]
    api: Option<String>,
    /// Number of workers; 0: one per processor (node.workers)
    #[arg(long, value_name = "COUNT")]
    workers: Option<String>,
}

impl ConfigArguments {
    /// All that is given, with the environment of this process.
    fn layers(&self) -> Layers {
        let direct = [
            ("--quic", "listen.quic", &self.quic),
            ("--tls", "listen.tls", &self.tls),
            ("--plain", "listen.plain", &self.plain),
            ("--http3", "listen.http3", &self.http3),
            ("--api", "listen.api", &self.api),
            ("--workers", "node.workers", &self.workers),
        ];
        let direct = direct
            .into_iter()
            .filter_map(|(flag, key, value)| Some((flag.to_owned(), key.to_owned(), value.clone()?)));
        let set = self.set.iter().map(|(key, value)| (format!("--set {key}"), key.clone(), value.clone()));
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .filter(|(name, _)| name.starts_with(crate::config::ENVIRONMENT_PREFIX))
            .collect();
        Layers { file: self.config.clone(), environment, flags: set.chain(direct).collect() }
    }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as limits.payload=32KiB")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// Writes to stdout. Whoever reads it may stop early, as `head` does: that ends the program in order.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("cannot write to stdout"),
    }
}

/// Waits for a tool that needs little.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(future)
}
