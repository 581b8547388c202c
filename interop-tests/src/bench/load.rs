//! The load generator: as cheap as can be, since it shares the processors with what it measures.

mod quic;
pub(super) mod scan;
mod tcp;
mod udp;

use std::time::Duration;

use anyhow::Result;

use super::ledger::{Ledger, Stopwatch};

pub(super) use quic::{QuicClients, QuicTarget};
pub(super) use tcp::{TcpClients, TcpKind, UPGRADE, poll_request};
pub(super) use udp::UdpClients;

/// Connections with one subscription each; number `i` is on channel `i % channels`.
pub(super) trait Load {
    /// Connects and subscribes all, some at a time, and tells how many are through.
    fn connect(&mut self, progress: &mut dyn FnMut(usize)) -> Result<()>;

    /// Reads what there is, waiting at most `wait` for something.
    fn pump(&mut self, ledger: &mut Ledger, wait: Duration) -> Result<()>;
}

/// How many, and on how many channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowd {
    pub(super) connections: usize,
    pub(super) channels: usize,
    pub(super) watch: Stopwatch,
}

/// Connections that are being opened at any time.
const IN_FLIGHT: usize = 128;
/// Without any progress for so long, connecting has failed.
const STALLED: Duration = Duration::from_secs(20);
