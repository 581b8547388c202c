//! `tidegate publish`: through the backend API, as an app's backend would.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tidegate_edge::auth::Secret;
use tidegate_protocol::ChannelName;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

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
    /// The backend API
    #[arg(long, value_name = "URL", env = "TIDEGATE_API_URL", default_value = "http://127.0.0.1:9090")]
    api: Uri,
    /// File with the API key [default: $TIDEGATE_API_KEY]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Send the API key over plain HTTP beyond this machine
    #[arg(long)]
    insecure: bool,
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
    let mut api = Api::connect(&command).await?;
    if let Some(data) = &command.data {
        print(&format!("{}\n", api.publish(&command, data).await?))?;
        return Ok(());
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.context("cannot read stdin")? {
        print(&format!("{}\n", api.publish(&command, &line).await?))?;
    }
    Ok(())
}

/// One connection to the backend API.
struct Api {
    authority: String,
    key: Option<Secret>,
    sender: SendRequest<Full<Bytes>>,
}

impl Api {
    async fn connect(command: &Publish) -> anyhow::Result<Self> {
        let uri = &command.api;
        let host = uri.host().with_context(|| format!("--api {uri}: write http://HOST:PORT"))?;
        if uri.scheme_str() != Some("http") || !matches!(uri.path(), "" | "/") {
            bail!("--api {uri}: write http://HOST:PORT; for HTTPS, use the proxy's own client or `curl`");
        }
        let key = match (&command.api_key_file, std::env::var("TIDEGATE_API_KEY")) {
            (Some(path), _) => Some(Secret::read(path)?),
            (None, Ok(key)) if !key.is_empty() => Some(Secret::new(key)),
            _ => None,
        };
        let address = host.trim_matches(['[', ']']);
        let loopback = address == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if key.is_some() && !loopback && !command.insecure {
            bail!(
                "plain HTTP would show the API key to the network: reach {host} by a tunnel, or say --insecure"
            );
        }
        let port = uri.port_u16().unwrap_or(80);
        let hint = "is `tidegate dev` or `tidegate serve` running there, and is `listen.api` that address?";
        let stream = timeout(PATIENCE, TcpStream::connect((address, port)))
            .await
            .map_err(|_| anyhow!("{host}:{port} does not answer; {hint}"))?
            .map_err(|error| anyhow!("cannot connect to {host}:{port}: {error}; {hint}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Moves the bytes until the sender is dropped; its end shows in the request that waits for an answer.
        TaskTracker::new().spawn(connection);
        Ok(Self { authority: format!("{host}:{port}"), key, sender })
    }

    async fn publish(&mut self, command: &Publish, data: &str) -> anyhow::Result<String> {
        let data: Value = serde_json::from_str(data).unwrap_or_else(|_| Value::String(data.to_owned()));
        let mut body = json!({ "channel": command.channel.as_str(), "data": data });
        if command.ephemeral {
            body["ephemeral"] = Value::Bool(true);
        }
        if let Some(key) = &command.key {
            body["key"] = Value::String(key.clone());
        }
        let mut request = Request::post("/v1/publish")
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            let value = [b"Bearer ", key.expose()].concat();
            let mut value = header::HeaderValue::from_bytes(&value)
                .ok()
                .context("the API key has characters that HTTP cannot carry")?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::from(body.to_string())).context("cannot build the request")?;
        let exchange = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| anyhow!(error))?;
            anyhow::Ok((status, body.to_bytes()))
        };
        let (status, body) =
            timeout(PATIENCE, exchange).await.context("the backend API does not answer")??;
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        if status.is_success() {
            return Ok(text);
        }
        let message = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|answer| answer["error"]["message"].as_str().map(str::to_owned))
            .unwrap_or(text);
        let hint =
            if status == http::StatusCode::UNAUTHORIZED { "; give the key with --api-key-file" } else { "" };
        bail!("refused with HTTP {}: {message}{hint}", status.as_u16())
    }
}

/// For connecting, and for each answer.
const PATIENCE: Duration = Duration::from_secs(15);
const MAX_ANSWER: usize = 1 << 20;
