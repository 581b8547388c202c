//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::shape::TransportChoice;

/// Measures Tidegate beside the physical limit of the machine
#[derive(Debug, Parser)]
#[command(name = "bench", max_term_width = 100, after_help = EXAMPLES)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Fanout(FanoutArgs),
    Idle(IdleArgs),
    #[command(hide = true)]
    Limit(LimitArgs),
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench fanout --quick
  cargo xtask bench fanout --transport ws,wss --rounds 3
  cargo xtask bench fanout --transport quic --subscribers 1000 --window 1 --seconds 4
  cargo xtask bench idle --transport all --connections 5000";

/// One publication to many subscriptions: deliveries per second, CPU per delivery, latency
///
/// Each round measures the raw loop, then the gateway with each number of workers, every time with fresh processes.
/// Closed loop: --window publications are outstanding, each until every subscriber has it. Open loop: --rate.
#[derive(Debug, Args)]
pub(super) struct FanoutArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// Connections with one subscription each; gives one shape instead of the usual ones
    #[arg(long, value_name = "COUNT")]
    pub(super) subscribers: Option<NonZeroUsize>,
    /// Channels that the subscribers are shared out to evenly
    #[arg(long, value_name = "COUNT", requires = "subscribers")]
    pub(super) channels: Option<NonZeroUsize>,
    /// Publications outstanding at any time (closed loop) [default: 4]
    #[arg(long, value_name = "COUNT", requires = "subscribers")]
    pub(super) window: Option<NonZeroUsize>,
    /// Publications published at once, the next when everybody has them (closed loop), instead of --window
    #[arg(long, value_name = "COUNT", requires = "subscribers", conflicts_with = "window")]
    pub(super) burst: Option<NonZeroUsize>,
    /// Publications per second (open loop), instead of --window
    #[arg(long, value_name = "NUMBER", requires = "subscribers", conflicts_with_all = ["window", "burst"])]
    pub(super) rate: Option<NonZeroUsize>,
    /// Bytes of each payload, 40 to 60000
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(40..=60_000))]
    pub(super) payload: u32,
    /// Length of each measurement, after a second of warming up
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(super) seconds: u32,
    /// How often everything is repeated; medians and ranges are reported
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// Workers of the gateway: several numbers are measured one after the other
    #[arg(long, value_name = "COUNT", value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) workers: Vec<u16>,
    /// A smoke test of a few seconds: small, one round, figures mean little
    #[arg(long, conflicts_with_all = ["subscribers", "seconds", "rounds", "workers"])]
    pub(super) quick: bool,
}

/// Memory of connections that do nothing, and the cost of connecting
///
/// A fresh gateway for each transport: RSS before and after the connections, after 40 small publications to each, and
/// after a bulk of 100 KiB to each.
#[derive(Debug, Args)]
pub(super) struct IdleArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// Connections, each with one subscription to the same channel
    #[arg(long, value_name = "COUNT", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub(super) connections: u32,
    /// How often everything is repeated
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// Workers of the gateway
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) workers: u16,
}

/// What all benchmarks take.
#[derive(Debug, Args)]
pub(super) struct CommonArgs {
    /// What to measure; several separated by commas
    #[arg(long, value_name = "TRANSPORT", value_delimiter = ',', default_value = "all")]
    pub(super) transport: Vec<TransportChoice>,
    /// UDP: connections that share one client socket
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub(super) per_socket: u32,
    /// Result file [default: target/bench/NAME-TIME.json]
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// The program that is measured
    #[arg(long, value_name = "FILE", env = "TIDEGATE_BIN")]
    pub(super) tidegate: PathBuf,
}

/// The raw loop, started by the other commands.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// UDP instead of TCP.
    #[arg(long)]
    pub(super) udp: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_make_no_sense_together_are_refused() {
        let parse = |flags: &str| Cli::try_parse_from(format!("bench {flags} --tidegate x").split(' '));
        for flags in [
            "fanout --quick",
            "fanout --transport ws,quic --subscribers 10 --channels 5 --window 2 --workers 1,2",
            "fanout --subscribers 10 --rate 15",
            "idle --transport all --connections 5000",
        ] {
            assert!(parse(flags).is_ok(), "{flags}");
        }
        for flags in [
            "fanout --window 2",
            "fanout --quick --seconds 9",
            "fanout --subscribers 10 --rate 15 --window 2",
            "fanout --subscribers 0",
            "fanout --payload 30",
            "fanout --transport sse",
            "idle --connections 15001",
        ] {
            assert!(parse(flags).is_err(), "{flags}");
        }
    }
}
