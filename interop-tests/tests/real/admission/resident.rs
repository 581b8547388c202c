//! Who has a session here opens further connections for it, however many want to come in.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{post, send};
use tidegate_interop_tests::wait::until;
use tokio::net::{TcpSocket, TcpStream};

use super::{CONFIG, fill};

const BUSY: &str = "tidegate_edge_admission_arrivals_total{decision=\"busy\"}";
/// Once a second each session has a connection, whatever the door is like.
const EACH: Duration = Duration::from_secs(1);

/// A poll by a connection of its own.
async fn poll(gateway: &Gateway, body: Value) -> Result<Value> {
    let tls = gateway.tls(&[b"http/1.1"]);
    let answer =
        send(gateway.addresses.tls, Some(Arc::clone(&tls)), post("/v1/poll", body.to_string())).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(answer.json())
}

/// Strangers from another address knock until nobody of them is heard any more.
async fn flood(edge: SocketAddr) -> Result<Vec<TcpStream>> {
    let mut strangers = Vec::new();
    for _ in 0..40 {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into())?;
        strangers.push(socket.connect(edge).await?);
    }
    Ok(strangers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_further_connections_at_a_full_door() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    let begun = poll(&gateway, json!({ "ack": 0, "frames": [{ "id": 1, "connect": {} }] })).await?;
    let session = begun["session"].as_str().context("a session")?;
    fill(&gateway, 10).await?;
    for round in 0..5 {
        let before = gateway.metric(BUSY).await?;
        let strangers = flood(gateway.addresses.tls).await?;
        until("strangers are dropped", || async {
            let dropped = gateway.metric(BUSY).await? - before;
            ensure!(dropped > 20.0, "{dropped} of {}", strangers.len());
            Ok(())
        })
        .await?;
        let body = json!({ "session": session, "ack": begun["batch"], "wait_ms": 0, "frames": [] });
        poll(&gateway, body).await.with_context(|| format!("round {round}"))?;
        tokio::time::sleep(EACH).await;
    }
    Ok(())
}
