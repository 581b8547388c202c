//! An edge that serves QUIC: what clients leave behind that never became a connection.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::ServerConfig;
use tidegate_certs::{CertStore, DevCertificates, client_config_pinned, server_config};
use tidegate_edge::config::{Config, Limits};
use tidegate_edge::{EdgeNode, Parts};
use tidegate_transport::clock;
use tidegate_transport::quic::{ALPN_HTTP3, ALPN_NATIVE, QuicConfig};
use tokio::net::UdpSocket;

use super::{GRACE, LOOPBACK, config, links, parts};

#[tokio::test]
async fn shutdown_does_not_wait_for_clients_of_whom_only_the_close_arrived() {
    let (edge, _cores) = start(Limits::default());
    let addresses = edge.addresses().clone();
    for (address, alpn) in [(addresses.quic, ALPN_NATIVE), (addresses.http3, ALPN_HTTP3)] {
        let address = address.expect("a listener");
        let failed = failures(&edge, "quic");
        let socket = UdpSocket::bind(LOOPBACK).await.expect("a socket");
        socket.send_to(&stray_close(alpn).await, address).await.expect("sent");
        until_failures(&edge, "quic", failed + 1).await;
    }
    tokio::time::timeout(GRACE / 2, edge.shutdown(GRACE)).await.expect("nothing to wait for");
}

#[tokio::test]
async fn connections_that_have_ended_are_bounded_as_long_as_they_drain() {
    let quic = QuicConfig { max_incoming: 2, ..QuicConfig::default() };
    let (edge, _cores) = start(Limits { connections: 1, quic, ..Limits::default() });
    let address = edge.addresses().quic.expect("a listener");
    let socket = UdpSocket::bind(LOOPBACK).await.expect("a socket");
    for ended in 1..=3 {
        socket.send_to(&stray_close(ALPN_NATIVE).await, address).await.expect("sent");
        until_failures(&edge, "quic", ended).await;
    }
    socket.send_to(&stray_close(ALPN_NATIVE).await, address).await.expect("sent");
    until_failures(&edge, "overloaded", 1).await;
    assert_eq!(failures(&edge, "quic"), 3);
    edge.shutdown(GRACE).await;
}

/// A worker with both QUIC listeners, and its silent core.
fn start(limits: Limits) -> (EdgeNode, Vec<tidegate_transport::link::CoreLink>) {
    let store = Arc::new(CertStore::from_dev(DevCertificates::ephemeral(&[], clock::wall()).expect("a CA")));
    let tls = |alpn: &[&[u8]]| -> Arc<ServerConfig> { Arc::new(server_config(Arc::clone(&store), alpn)) };
    let (links, cores) = links(1);
    let parts = Parts { tls: Some((tls(&[b"h2"]), tls(&[ALPN_NATIVE, ALPN_HTTP3]))), ..parts(links) };
    let config = Config { quic: Some(LOOPBACK), http3: Some(LOOPBACK), ..config(1, limits) };
    (EdgeNode::start(config, parts).expect("an edge"), cores)
}

/// The packet that closes a connection whose client changed its mind before anybody answered.
async fn stray_close(alpn: &[u8]) -> Vec<u8> {
    let hole = UdpSocket::bind(LOOPBACK).await.expect("a socket");
    let tls = client_config_pinned([[0; 32].into()], &[alpn]).expect("a client");
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3")));
    let endpoint = quinn::Endpoint::client(LOOPBACK).expect("a client");
    let address = hole.local_addr().expect("bound");
    let connecting = endpoint.connect_with(config, address, "localhost").expect("dials");
    let mut datagram = [0; 2048];
    hole.recv(&mut datagram).await.expect("the hello");
    // All of it was sent in one go.
    while hole.try_recv(&mut datagram).is_ok() {}
    drop(connecting);
    let length = hole.recv(&mut datagram).await.expect("the close");
    datagram[..length].to_vec()
}

async fn until_failures(edge: &EdgeNode, reason: &str, count: u64) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while failures(edge, reason) < count {
        ticks.tick().await;
    }
}

/// Handshakes that failed for this reason.
fn failures(edge: &EdgeNode, reason: &str) -> u64 {
    let mut registry = Registry::default();
    edge.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    let label = format!("{{reason=\"{reason}\"}} ");
    let sample = text.lines().find(|line| line.contains("handshake_failures") && line.contains(&label));
    sample.map_or(0, |line| line.rsplit(' ').next().expect("a value").parse().expect("a number"))
}
