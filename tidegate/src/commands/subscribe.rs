//! `tidegate subscribe`: prints what channels bring.

use std::path::PathBuf;
use std::process::ExitCode;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Map, Value, json, value::RawValue};
use tidegate_client::{
    Client, ClientError, Epoch, LadderConfig, Offset, Payload, Position, Publication, Subscription,
    SubscriptionEvent,
};
use tidegate_edge::auth::Secret;
use tidegate_protocol::ChannelName;
use tidegate_protocol::frame::CloseCode;

use super::print;
use crate::run::dev_ca_file;

/// Print what is published on channels, in order, across reconnects
///
/// One line for each publication: channel, offset, data; `~` instead of an offset for ephemeral data. Ends with Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Subscribe {
    /// Channels to subscribe to
    #[arg(required = true, value_name = "CHANNEL")]
    channels: Vec<ChannelName>,
    /// The gateway: quic://, wss://, ws://, https:// or http:// (long poll)
    #[arg(long, default_value = "quic://127.0.0.1:4433")]
    url: String,
    /// File with the token [default: $TIDEGATE_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with a CA to trust beside the system's [default on loopback: the one of `tidegate dev`]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Trust only the certificate with this SHA-256 hash, as base64 or hexadecimal digits
    #[arg(long, value_name = "HASH", conflicts_with = "ca")]
    certificate_hash: Option<String>,
    /// Begin after this position, for one channel; `:0` for everything that is retained
    #[arg(long, value_name = "EPOCH:OFFSET", value_parser = parse_position)]
    from: Option<Position>,
    /// End after so many publications
    #[arg(long)]
    count: Option<u64>,
    /// Print JSON objects, one on each line
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  tidegate subscribe room:1 room:2
  tidegate subscribe room:1 --from :0 --json
  tidegate subscribe user:ann --url wss://push.example --token-file token.txt";

pub(super) fn run(command: Subscribe) -> anyhow::Result<ExitCode> {
    super::block_on(subscribe(command))?;
    Ok(ExitCode::SUCCESS)
}

async fn subscribe(command: Subscribe) -> anyhow::Result<()> {
    if command.from.is_some() && command.channels.len() > 1 {
        bail!("--from is a position in one channel: name only one");
    }
    let client = connect(&command).await?;
    let mut subscriptions = Vec::with_capacity(command.channels.len());
    for channel in &command.channels {
        let subscription = match &command.from {
            Some(position) => client.subscribe_from(channel.as_str(), position.clone()).await,
            None => client.subscribe(channel.as_str()).await,
        };
        subscriptions.push(subscription?);
    }
    let mut printer = Printer { json: command.json, left: command.count };
    let result = tokio::select! {
        result = printer.run(subscriptions) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    client.close().await;
    result
}

async fn connect(command: &Subscribe) -> anyhow::Result<Client> {
    // Somebody looks on: an answer that takes longer is none.
    let ladder = LadderConfig { dial_timeout: Duration::from_secs(5), ..LadderConfig::default() };
    let mut builder = Client::builder(command.url.clone()).with_ladder(ladder);
    let token = match (&command.token_file, std::env::var("TIDEGATE_TOKEN")) {
        (Some(path), _) => Some(String::from_utf8(Secret::read(path)?.expose().to_vec())?),
        (None, Ok(token)) => Some(token).filter(|token| !token.is_empty()),
        (None, Err(_)) => None,
    };
    if let Some(token) = token {
        builder = builder.with_token(token);
    }
    if let Some(hash) = &command.certificate_hash {
        builder = builder.with_certificate_hash(hash);
    } else if let Some(ca) = command.ca.clone().or_else(|| dev_ca(&command.url)) {
        builder = builder.with_ca_file(ca);
    }
    builder.connect().await.map_err(|error| {
        let hint = match &error {
            ClientError::Connect { .. } => {
                "; is `tidegate dev` or `tidegate serve` running there, and does --url name its scheme and port?"
            }
            ClientError::Closed { code, .. } if *code == CloseCode::Unauthorized.number() => {
                "; give a token with --token-file or TIDEGATE_TOKEN"
            }
            _ => "",
        };
        anyhow!("{error}{hint}")
    })
}

/// The development CA counts for this machine alone.
fn dev_ca(url: &str) -> Option<PathBuf> {
    let uri: http::Uri = url.parse().ok()?;
    let local = matches!(uri.host()?, "localhost" | "127.0.0.1" | "[::1]");
    dev_ca_file().filter(|file| local && file.exists())
}

struct Printer {
    json: bool,
    /// Publications still to print.
    left: Option<u64>,
}

impl Printer {
    async fn run(&mut self, mut subscriptions: Vec<Subscription>) -> anyhow::Result<()> {
        let mut first = 0;
        while self.left != Some(0) {
            let (index, event) =
                std::future::poll_fn(|context| poll_any(&mut subscriptions, first, context)).await;
            // Whoever had its turn comes last: a busy channel does not hide the others.
            first = index + 1;
            let channel = subscriptions[index].channel().to_owned();
            match event {
                Some(event) => self.event(&channel, event)?,
                None => bail!("the session is over"),
            }
        }
        Ok(())
    }

    fn event(&mut self, channel: &str, event: SubscriptionEvent) -> anyhow::Result<()> {
        match event {
            SubscriptionEvent::Subscribed { position, .. } => {
                eprintln!("{channel}: subscribed at {}", shown(&position));
            }
            SubscriptionEvent::Publication(publication) => {
                self.left = self.left.map(|left| left - 1);
                print(&self.publication(channel, &publication))?;
            }
            SubscriptionEvent::Ephemeral(ephemeral) => {
                let line = if self.json {
                    let mut line =
                        object(channel, &ephemeral.payload, ephemeral.user.as_deref(), ephemeral.time_ms);
                    line.insert("ephemeral".to_owned(), Value::Bool(true));
                    Value::Object(line).to_string()
                } else {
                    format!("{channel} ~ {}", data(&ephemeral.payload))
                };
                print(&format!("{line}\n"))?;
            }
            SubscriptionEvent::Rebased { position } => {
                eprintln!("{channel}: publications were missed; going on after {}", shown(&position));
            }
            SubscriptionEvent::Unsubscribed { error } => {
                let reason =
                    error.map_or_else(|| "the server ended it".to_owned(), |error| error.to_string());
                return Err(anyhow!("{channel}: {reason}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn publication(&self, channel: &str, publication: &Publication) -> String {
        let Publication { position, payload, user, time_ms } = publication;
        if !self.json {
            return format!("{channel} {} {}\n", position.offset, data(payload));
        }
        let mut line = object(channel, payload, user.as_deref(), *time_ms);
        line.insert("epoch".to_owned(), json!(position.epoch.as_str()));
        line.insert("offset".to_owned(), json!(position.offset.0));
        format!("{}\n", Value::Object(line))
    }
}

fn poll_any(
    subscriptions: &mut [Subscription],
    first: usize,
    context: &mut Context<'_>,
) -> Poll<(usize, Option<SubscriptionEvent>)> {
    let count = subscriptions.len();
    for index in (0..count).map(|step| (first + step) % count) {
        if let Poll::Ready(event) = subscriptions[index].poll_next(context) {
            return Poll::Ready((index, event));
        }
    }
    Poll::Pending
}

fn object(channel: &str, payload: &Payload, user: Option<&str>, time_ms: u64) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("channel".to_owned(), json!(channel));
    match payload {
        Payload::Json(text) => {
            let value = serde_json::from_slice(text).unwrap_or_else(|_| json!(String::from_utf8_lossy(text)));
            object.insert("data".to_owned(), value);
        }
        Payload::Binary(bytes) => {
            object.insert("data_base64".to_owned(), json!(STANDARD.encode(bytes)));
        }
    }
    if let Some(user) = user {
        object.insert("user".to_owned(), json!(user));
    }
    object.insert("time_ms".to_owned(), json!(time_ms));
    object
}

/// On one line: a JSON text may hold line ends between its parts.
fn data(payload: &Payload) -> String {
    match payload {
        Payload::Json(text) => serde_json::from_slice::<Box<RawValue>>(text)
            .map_or_else(|_| String::from_utf8_lossy(text).into_owned(), |value| value.get().to_owned())
            .replace(['\n', '\r'], " "),
        Payload::Binary(bytes) => format!("base64:{}", STANDARD.encode(bytes)),
    }
}

fn shown(position: &Position) -> String {
    format!("{}:{}", position.epoch, position.offset)
}

fn parse_position(text: &str) -> Result<Position, String> {
    let (epoch, offset) =
        text.rsplit_once(':').ok_or("write EPOCH:OFFSET, or :OFFSET for whichever epoch is current")?;
    let offset = offset.parse().map_err(|_| "the offset is a number")?;
    Ok(Position { epoch: Epoch::new(epoch), offset: Offset(offset) })
}
