//! What goes to an address that may be forged: not more than three times what came from it (RFC 9000 §8.1), and while the
//! node is full, a fifth of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::raw::{first_flight, first_flight_to, random_id};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{CONFIG, fill};

/// Bytes that come to each of these clients, none of whom says anything more.
async fn answered(gateway: &Gateway, flights: &[Vec<u8>]) -> Result<BTreeMap<usize, usize>> {
    let mut answered = BTreeMap::new();
    let mut sockets = Vec::new();
    for flight in flights {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.connect(gateway.addresses.quic).await?;
        socket.send(flight).await?;
        sockets.push(socket);
    }
    let mut buffer = vec![0; 2048];
    for (index, socket) in sockets.iter().enumerate() {
        // Until nothing more comes: what is lost is sent again within a second at first.
        while let Ok(received) = timeout(Duration::from_millis(1_200), socket.recv(&mut buffer)).await {
            *answered.entry(index).or_default() += received?;
        }
    }
    Ok(answered)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_proved_nothing_is_sent_little() -> Result<()> {
    let gateway = Gateway::dev(CONFIG).await?;
    for is_full in [false, true] {
        if is_full {
            fill(&gateway, 20).await?;
        }
        let mut flights = Vec::new();
        for _ in 0..4 {
            flights.push(first_flight(&gateway)?);
            flights.push(first_flight_to(&gateway, &random_id())?);
        }
        let answered = answered(&gateway, &flights).await?;
        ensure!(answered.len() == flights.len(), "all get some answer: {answered:?}");
        for (index, bytes) in &answered {
            // quinn sends one packet more than that where anything was left of it.
            ensure!(*bytes < 3 * flights[*index].len() + 1_200, "{bytes} bytes, full: {is_full}");
            // Nothing but a Retry then.
            ensure!(!is_full || *bytes < 250, "{bytes} bytes");
        }
    }
    Ok(())
}
