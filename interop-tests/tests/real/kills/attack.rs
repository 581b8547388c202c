//! What kills connections.

use std::net::SocketAddr;

use anyhow::Result;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use tidegate_client::Transport;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::middle::{Cut, Hole, Relay, Wire};

/// Between one client and the gateway: a way for each transport.
pub(super) struct Middle {
    relay: Relay,
    web_socket: Wire,
    long_poll: Wire,
}

impl Middle {
    /// `tcp` is the gateway's listener with TLS, or the one without.
    pub(super) async fn begin(gateway: &Gateway, tcp: SocketAddr) -> Result<Self> {
        Ok(Self {
            relay: Relay::new(gateway.addresses.quic).await?,
            web_socket: Wire::to(tcp).await?,
            long_poll: Wire::to(tcp).await?,
        })
    }

    /// Where the client finds the gateway.
    pub(super) fn address(&self, transport: Transport) -> SocketAddr {
        match transport {
            Transport::WebSocket => self.web_socket.address,
            Transport::LongPoll => self.long_poll.address,
            _ => self.relay.address,
        }
    }

    /// Breaks, in some way, what there is of a transport. Says how many connections that hit.
    pub(super) async fn kill(&self, rng: &mut ChaCha8Rng, transport: Transport) -> usize {
        let cut = match rng.random_range(0..6) {
            0 => Cut::Both,
            1 => Cut::Orderly,
            2 => Cut::Client,
            3 => Cut::After(rng.random_range(0..4_000)),
            _ => Cut::Answer,
        };
        match transport {
            Transport::WebSocket => self.web_socket.cut_by(cut).await,
            Transport::LongPoll => self.long_poll.cut_by(cut).await,
            _ => {
                let hole = [Hole::Both, Hole::Both, Hole::Down, Hole::Up][rng.random_range(0..4)];
                self.relay.cut(hole).await
            }
        }
    }
}
