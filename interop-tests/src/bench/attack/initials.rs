//! First flights of QUIC that nobody follows up, and what comes back.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use quinn::crypto::rustls::QuicClientConfig;
use serde::Serialize;
use tidegate_transport::clock;
use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::gateway::Gateway;

/// Bytes that came to addresses for each that went from them.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Amplification {
    /// Over all.
    pub(super) all: f64,
    /// To one.
    pub(super) most: f64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Amplification {
    fn of(traffic: &[Traffic]) -> Self {
        let [mut sent, mut received, mut most] = [0, 0, 0];
        let mut ratio = 0.0_f64;
        for one in traffic {
            sent += one.sent;
            received += one.received;
            most = most.max(one.received);
            ratio = ratio.max(one.received as f64 / one.sent.max(1) as f64);
        }
        Self { all: received as f64 / sent.max(1) as f64, most: ratio, sent, received }
    }
}

/// Of one address.
#[derive(Debug, Clone, Copy, Default)]
struct Traffic {
    sent: u64,
    received: u64,
}

/// One first flight from each of so many addresses, and all that comes back while the server still hopes.
pub(super) async fn silent(edge: &Gateway, addresses: usize) -> Result<Amplification> {
    let mut maker = Maker::new(edge)?;
    let mut sockets = Vec::new();
    for _ in 0..addresses {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let flight = maker.flight()?;
        socket.send_to(&flight, edge.addresses.quic).await?;
        sockets.push((socket, Traffic { sent: flight.len() as u64, received: 0 }));
    }
    sleep(HOPES).await;
    for (socket, traffic) in &mut sockets {
        traffic.received = drain(socket);
    }
    let traffic: Vec<Traffic> = sockets.into_iter().map(|(_, traffic)| traffic).collect();
    Ok(Amplification::of(&traffic))
}

/// So many a second, each a connection of its own, from addresses in turn, until stopped; how many a second there were.
pub(super) async fn flood(
    edge: SocketAddr,
    flights: Vec<Vec<u8>>,
    per_second: u32,
    stop: CancellationToken,
) -> Result<(f64, Amplification)> {
    let mut sockets = Vec::new();
    for _ in 0..ADDRESSES {
        sockets.push((UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?, Traffic::default()));
    }
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut count, mut due) = (0, 0.0);
    let each = f64::from(per_second) * TICK.as_secs_f64();
    let mut flights = flights.into_iter();
    let begun = clock::now();
    'flood: while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        due += each;
        while due >= 1.0 {
            due -= 1.0;
            let Some(flight) = flights.next() else { break 'flood };
            let (socket, traffic) = &mut sockets[count % ADDRESSES];
            // What the kernel has no room for was not sent.
            if socket.try_send_to(&flight, edge).is_ok() {
                traffic.sent += flight.len() as u64;
                count += 1;
            }
            traffic.received += drain(socket);
        }
    }
    let per_second = count as f64 / begun.elapsed().as_secs_f64();
    sleep(HOPES).await;
    for (socket, traffic) in &mut sockets {
        traffic.received += drain(socket);
    }
    let traffic: Vec<Traffic> = sockets.into_iter().map(|(_, traffic)| traffic).collect();
    Ok((per_second, Amplification::of(&traffic)))
}

/// Bytes that wait.
fn drain(socket: &UdpSocket) -> u64 {
    let mut buffer = [0; 2048];
    let mut bytes = 0;
    while let Ok((length, _)) = socket.try_recv_from(&mut buffer) {
        bytes += length as u64;
    }
    bytes
}

/// Makes first flights, each another connection's.
pub(super) struct Maker {
    endpoint: quinn_proto::Endpoint,
    config: quinn_proto::ClientConfig,
    to: SocketAddr,
}

impl Maker {
    pub(super) fn new(edge: &Gateway) -> Result<Self> {
        let crypto = QuicClientConfig::try_from(edge.tls(&[b"tidegate/1"]).as_ref().clone())?;
        let config = quinn_proto::ClientConfig::new(Arc::new(crypto));
        let endpoint = quinn_proto::Endpoint::new(Arc::default(), None, true, None);
        Ok(Self { endpoint, config, to: edge.addresses.quic })
    }

    pub(super) fn flight(&mut self) -> Result<Vec<u8>> {
        let now = clock::now();
        let (_, mut connection) = self.endpoint.connect(now, self.config.clone(), self.to, "localhost")?;
        let mut datagram = Vec::new();
        let _size = connection.poll_transmit(now, 1, &mut datagram).context("a first flight")?;
        Ok(datagram)
    }
}

/// What a flood comes from.
const ADDRESSES: usize = 64;
const TICK: Duration = Duration::from_millis(5);
/// Longer than a server repeats what nobody acknowledges.
const HOPES: Duration = Duration::from_secs(8);
