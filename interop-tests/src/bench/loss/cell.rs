//! What is measured: the grid.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use tidegate_transport::netem::{Loss, Profile};

/// By what the client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(in crate::bench) enum Carrier {
    /// `sdk/rust` over native QUIC.
    Quic,
    /// `sdk/js` in Chromium over WebTransport.
    #[value(name = "webtransport")]
    WebTransport,
    /// `sdk/rust` over WebSocket and TLS, the kernel's TCP.
    #[value(name = "websocket")]
    WebSocket,
}

impl Carrier {
    /// Every carrier, in the order of the tables.
    pub(super) const ALL: [Self; 3] = [Self::Quic, Self::WebTransport, Self::WebSocket];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::WebTransport => "webtransport",
            Self::WebSocket => "websocket",
        }
    }
}

/// A loss of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(in crate::bench) struct Lossy {
    /// Mean share of packets that are lost, each way.
    pub(in crate::bench) mean: f64,
    /// Mean length of a run of lost packets; 1: each packet for itself.
    pub(in crate::bench) burst: f64,
}

impl Lossy {
    pub(super) fn model(self) -> Loss {
        match self {
            Self { mean, .. } if mean <= 0.0 => Loss::None,
            Self { mean, burst } if burst <= 1.0 => Loss::Uniform(mean),
            Self { mean, burst } => Loss::bursts(mean, burst),
        }
    }
}

impl fmt::Display for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.mean * 100.0)?;
        if self.burst > 1.0 { write!(f, " in bursts of {}", self.burst) } else { Ok(()) }
    }
}

/// One measurement's conditions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Cell {
    pub(super) carrier: Carrier,
    pub(super) loss: Lossy,
    pub(super) rtt_ms: u64,
    pub(super) channels: u32,
    /// Bytes per second of a further channel, whose publications are not measured.
    pub(super) flood: u64,
    /// Of the link: the same for every carrier, so that all meet the same packet loss, index by index.
    pub(super) seed: u64,
}

impl Cell {
    /// One direction of the link.
    pub(super) fn profile(&self, rate: u64) -> Profile {
        // A queue of 100 ms, at least ten full packets: what an access network has.
        let queue = usize::try_from(rate / 8 / 10).unwrap_or(usize::MAX).max(15_000);
        Profile::delay(Duration::from_millis(self.rtt_ms) / 2)
            .with_rate(rate, queue)
            .with_loss(self.loss.model())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { carrier, loss, rtt_ms, channels, flood, .. } = self;
        write!(f, "{}, loss {loss}, {rtt_ms} ms, {channels} channels", carrier.name())?;
        if *flood > 0 { write!(f, ", flooded") } else { Ok(()) }
    }
}

/// Every combination of the grid, carriers innermost.
pub(super) fn grid(
    seed: u64,
    carriers: &[Carrier],
    losses: &[Lossy],
    rtts: &[u64],
    channels: &[u32],
) -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut number = 0;
    for &loss in losses {
        for &rtt_ms in rtts {
            for &channels in channels {
                number += 1;
                let seed = seed.wrapping_mul(1_000_003).wrapping_add(number);
                cells.extend(carriers.iter().map(|&carrier| Cell {
                    carrier,
                    loss,
                    rtt_ms,
                    channels,
                    flood: 0,
                    seed,
                }));
            }
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carriers_of_one_condition_meet_the_same_link() {
        let losses = [Lossy { mean: 0.02, burst: 3.0 }, Lossy { mean: 0.0, burst: 1.0 }];
        let cells = grid(7, &Carrier::ALL, &losses, &[50, 350], &[1, 8]);
        assert_eq!(cells.len(), 3 * 2 * 2 * 2);
        for same in cells.chunks(3) {
            assert!(same.iter().all(|cell| cell.seed == same[0].seed && cell.loss == same[0].loss));
        }
        assert_ne!(cells[0].seed, cells[3].seed);
        assert_eq!(cells[0].to_string(), "quic, loss 2 % in bursts of 3, 50 ms, 1 channels");
        assert!((cells[0].loss.model().mean() - 0.02).abs() < 1e-9);
    }
}
