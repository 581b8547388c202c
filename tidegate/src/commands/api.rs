//! One connection to a node's API listener, for the tools that ask it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{Request, Uri, header, request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tidegate_edge::auth::Secret;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// Where the API is, and the key to it.
#[derive(Debug, Args)]
pub(super) struct ApiArguments {
    /// The backend API
    #[arg(long, value_name = "URL", env = "TIDEGATE_API_URL", default_value = "http://127.0.0.1:9090")]
    pub(super) api: Uri,
    /// File with the API key [default: $TIDEGATE_API_KEY]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Send the API key over plain HTTP beyond this machine
    #[arg(long)]
    insecure: bool,
}

/// One connection.
pub(super) struct Api {
    authority: String,
    key: Option<Secret>,
    sender: SendRequest<Full<Bytes>>,
}

impl Api {
    pub(super) async fn connect(arguments: &ApiArguments) -> anyhow::Result<Self> {
        let uri = &arguments.api;
        let host = uri.host().with_context(|| format!("--api {uri}: write http://HOST:PORT"))?;
        if uri.scheme_str() != Some("http") || !matches!(uri.path(), "" | "/") {
            bail!("--api {uri}: write http://HOST:PORT; for HTTPS, use the proxy's own client or `curl`");
        }
        let key = match (&arguments.api_key_file, std::env::var("TIDEGATE_API_KEY")) {
            (Some(path), _) => Some(Secret::read(path)?),
            (None, Ok(key)) if !key.is_empty() => Some(Secret::new(key)),
            _ => None,
        };
        let address = host.trim_matches(['[', ']']);
        let loopback = address == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if key.is_some() && !loopback && !arguments.insecure {
            bail!(
                "plain HTTP would show the API key to the network: reach {host} by a tunnel, or say --insecure"
            );
        }
        let port = uri.port_u16().unwrap_or(80);
        let hint =
            "is `tidegate dev`, `serve`, `edge` or `core` running there, and is `listen.api` that address?";
        let stream = timeout(PATIENCE, TcpStream::connect((address, port)))
            .await
            .map_err(|_| anyhow!("{host}:{port} does not answer; {hint}"))?
            .map_err(|error| anyhow!("cannot connect to {host}:{port}: {error}; {hint}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Moves the bytes until the sender is dropped; its end shows in the request that waits for an answer.
        TaskTracker::new().spawn(connection);
        Ok(Self { authority: format!("{host}:{port}"), key, sender })
    }

    /// The body of the answer.
    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<String> {
        self.exchange(Request::get(path), Bytes::new()).await
    }

    /// The same.
    pub(super) async fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<String> {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        self.exchange(request, Bytes::from(body.to_string())).await
    }

    /// The same.
    pub(super) async fn delete(&mut self, path: &str) -> anyhow::Result<String> {
        self.exchange(Request::delete(path), Bytes::new()).await
    }

    async fn exchange(&mut self, request: request::Builder, body: Bytes) -> anyhow::Result<String> {
        let mut request = request.header(header::HOST, &self.authority);
        if let Some(key) = &self.key {
            let value = [b"Bearer ", key.expose()].concat();
            let mut value = header::HeaderValue::from_bytes(&value)
                .ok()
                .context("the API key has characters that HTTP cannot carry")?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::from(body)).context("cannot build the request")?;
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
/// The status of a cluster with hundreds of partitions and links fits.
const MAX_ANSWER: usize = 4 << 20;
