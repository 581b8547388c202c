//! TLS sessions go on at other processes with the same keys, without a signature.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec, HOME};
use tidegate_interop_tests::gateway::Gateway;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_at_another_edge_of_the_fleet() -> Result<()> {
    let spec = ClusterSpec {
        nats: 0,
        engine: "memory",
        cores: 1,
        edges: vec![HOME, HOME],
        ..ClusterSpec::default()
    };
    let cluster = Cluster::start(spec).await?;
    let [first, second] = &cluster.edges[..] else { unreachable!("two were started") };
    let tls = first.tls(&[b"http/1.1"]);
    ensure!(kind(first.addresses.tls, &tls).await? == HandshakeKind::Full, "nobody knew it");
    for edge in [second, first, second] {
        ensure!(kind(edge.addresses.tls, &tls).await? == HandshakeKind::Resumed, "a full handshake");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_after_a_take_over_and_not_after_a_restart_without_key_files() -> Result<()> {
    let mut gateway = Gateway::dev("[node]\nhandover = \"handover\"\n").await?;
    let tls = gateway.tls(&[b"http/1.1"]);
    ensure!(kind(gateway.addresses.tls, &tls).await? == HandshakeKind::Full, "nobody knew it");
    gateway.take_over().await?.ended().await?;
    ensure!(kind(gateway.addresses.tls, &tls).await? == HandshakeKind::Resumed, "a full handshake");
    gateway.restart().await?;
    ensure!(kind(gateway.addresses.tls, &tls).await? == HandshakeKind::Full, "the keys are known");
    Ok(())
}

/// How a connection began. An answer is read, so that the ticket before it is too.
async fn kind(address: SocketAddr, tls: &Arc<ClientConfig>) -> Result<HandshakeKind> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    let mut stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
    let request = format!("GET /v1/nothing HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(answer.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
    stream.get_ref().1.handshake_kind().context("a handshake")
}
