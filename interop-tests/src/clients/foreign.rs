//! Clients that are not ours, in processes of their own: Python `websockets`, npm `ws`, aioquic. Each prints an event a
//! line.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Event, Inbox, Wish};
use crate::gateway::Gateway;
use crate::programs;

/// Python's `websockets`, over TLS.
///
/// # Errors
/// When it cannot be started.
pub async fn python_web_socket(gateway: &Gateway, wishes: &[Wish]) -> Result<Inbox> {
    let url = format!("wss://{}/v1/connect", gateway.addresses.tls);
    start("python websockets", programs::python()?, "python/ws_client.py", gateway, &url, wishes).await
}

/// npm `ws`, over TLS.
///
/// # Errors
/// When it cannot be started.
pub async fn node_ws(gateway: &Gateway, wishes: &[Wish]) -> Result<Inbox> {
    let url = format!("wss://{}/v1/connect", gateway.addresses.tls);
    start("npm ws", programs::node(), "browser/ws_client.mjs", gateway, &url, wishes).await
}

/// aioquic's HTTP/3 and WebTransport.
///
/// # Errors
/// When it cannot be started.
pub async fn python_web_transport(gateway: &Gateway, wishes: &[Wish]) -> Result<Inbox> {
    let url = format!("https://{}/v1/connect", gateway.addresses.quic);
    start("aioquic", programs::python()?, "python/wt_client.py", gateway, &url, wishes).await
}

async fn start(
    name: &'static str,
    program: PathBuf,
    script: &str,
    gateway: &Gateway,
    url: &str,
    wishes: &[Wish],
) -> Result<Inbox> {
    let mut child = Command::new(&program)
        .arg(programs::file(script))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let stdout = child.stdout.take().context("stdout")?;
    let channels: Vec<_> = wishes
        .iter()
        .map(|(channel, position)| {
            let position =
                position.as_ref().map(|(epoch, offset)| json!({ "epoch": epoch, "offset": offset }));
            json!({ "channel": channel, "position": position })
        })
        .collect();
    let order = json!({ "url": url, "ca": gateway.ca_file(), "subscribe": channels });
    stdin.write_all(format!("{order}\n").as_bytes()).await?;
    let (sender, events) = mpsc::channel(4096);
    let stop = CancellationToken::new();
    let reading = async move {
        // It ends with its stdin, and at the latest when this is dropped.
        let _held = (stdin, child);
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let event = serde_json::from_str(&line).context(line).and_then(|line| Event::parse(&line));
            if sender.send(event).await.is_err() {
                return;
            }
        }
    };
    TaskTracker::new().spawn(stop.clone().run_until_cancelled_owned(reading));
    Ok(Inbox::new(name, events, stop.drop_guard()))
}
