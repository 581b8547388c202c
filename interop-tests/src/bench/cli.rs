//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::channels::{Engine, Kind};
use super::crowd::Transport;
use super::loss::{Carrier, Lossy};
use super::publish;
use super::shape::TransportChoice;
use crate::faults::FaultKind;

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
    Loss(LossArgs),
    Mobility(MobilityArgs),
    Faults(FaultsArgs),
    Restart(RestartArgs),
    Drain(DrainArgs),
    Kill(KillArgs),
    Attack(AttackArgs),
    Channels(ChannelsArgs),
    Publish(PublishArgs),
    #[command(hide = true)]
    Limit(LimitArgs),
    /// Clients, started by the other commands
    #[command(hide = true)]
    Crowd,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench fanout --quick
  cargo xtask bench fanout --transport ws,wss --rounds 3
  cargo xtask bench fanout --transport quic --subscribers 1000 --window 1 --seconds 4
  cargo xtask bench idle --transport all --connections 5000
  cargo xtask bench loss --quick
  cargo xtask bench loss --loss 2x3 --rtt 350 --channels 8 --seconds 60 --seed 7
  cargo xtask bench mobility --rtt 60
  cargo xtask bench faults --rounds 50 --seed 1
  cargo xtask bench restart --restarts 20 --connections 2000
  cargo xtask bench drain --connections 200 --pages 3 --rounds 1 --within 30s
  cargo xtask bench kill --connections 600 --settle 30s
  cargo xtask bench attack --seconds 10 --forged 1000
  cargo xtask bench channels --channels 1000000 --engine memory
  cargo xtask bench publish --quick
  cargo xtask bench publish --engine nats-r3 --rate 1000,5000 --seconds 10";

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

/// Latency over links that lose packets: QUIC, WebTransport in real Chromium, WebSocket
///
/// Each measurement runs in a laboratory of its own (two network namespaces and a seeded link, docs/LAB.md; needs root), with
/// the gateway at one end and one subscriber at the other. Every transport meets the same link. Writes loss.json and
/// loss.svg.
#[derive(Debug, Args)]
pub(super) struct LossArgs {
    /// What to measure, separated by commas [default: all]
    #[arg(long, value_name = "TRANSPORT", value_delimiter = ',')]
    pub(super) transport: Vec<Carrier>,
    /// Per cent of packets lost, each way; `2x3`: 2 % in bursts of 3 on average
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "0,1,2,5,10,2x3", value_parser = lossy)]
    pub(super) loss: Vec<Lossy>,
    /// Round-trip times, milliseconds
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "50,150,350", value_parser = clap::value_parser!(u64).range(1..=5_000))]
    pub(super) rtt: Vec<u64>,
    /// Numbers of channels that the publications are shared out to
    #[arg(long, value_name = "COUNT", value_delimiter = ',', default_value = "1,8,64", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(super) channels: Vec<u32>,
    /// Publications per second, over all channels
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(super) per_second: u32,
    /// Bytes of each payload, beside some 40 of bookkeeping
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    pub(super) payload: usize,
    /// Length of each measurement, after 3 seconds of warming up
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(super) seconds: u32,
    /// Rate of the link, Mbit/s
    #[arg(long, value_name = "MBIT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rate: u32,
    /// Bytes per second on a further channel, at 64 channels and 50 ms, measured beside the run without; 0: not measured
    #[arg(long, value_name = "BYTES", default_value_t = 1_000_000)]
    pub(super) flood: u64,
    /// Decides which packets are lost
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(super) seed: u64,
    /// Measurements at a time
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(super) parallel: u8,
    /// Folder for loss.json and loss.svg [default: docs; with --quick target/bench]
    #[arg(long, value_name = "FOLDER")]
    pub(super) out: Option<PathBuf>,
    /// A smoke test: one condition, a few seconds
    #[arg(long, conflicts_with_all = ["loss", "rtt", "channels", "seconds"])]
    pub(super) quick: bool,
}

/// What blocked, dying and changing networks cost a client: QUIC with WebSocket behind it
///
/// Scenarios in a laboratory (two network namespaces and a seeded link, docs/LAB.md; needs root), under 20 publications
/// per second of which none may be lost.
#[derive(Debug, Args)]
pub(super) struct MobilityArgs {
    /// Round-trip time of the link, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub(super) rtt: u64,
    /// How often most scenarios are repeated; the slow ones a third as often
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) rounds: u32,
    /// Only scenarios whose name contains this: connect, black hole, rebinding, outage, address; "outage in Chromium"
    #[arg(long, value_name = "TEXT")]
    pub(super) only: Option<String>,
    /// NAT rebindings
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) rebindings: u32,
    /// Of the link
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(super) seed: u64,
    /// Result file [default: target/bench/mobility-TIME.json]
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// Bytes per idle channel, publish latency beside millions of them, time to start again
///
/// For each number, engine and kind a fresh `tidegate serve`, filled through the backend API by one publication to each
/// channel, and beside it another one with 1,000 channels that latency is compared with. With the engine local the node
/// is killed and started again: from its log, while snapshots are written, and from snapshots. What does not fit into
/// memory is left out. 16 million channels take up to 7 GiB of memory, 5 GiB of disk below the temporary folder, and minutes.
#[derive(Debug, Args)]
pub(super) struct ChannelsArgs {
    /// Numbers of channels
    #[arg(long, value_name = "COUNT", value_delimiter = ',', default_value = "1000000,4000000,16000000", value_parser = clap::value_parser!(u64).range(1_000..=64_000_000))]
    pub(super) channels: Vec<u64>,
    /// What keeps the log: nothing, or the disk
    #[arg(long, value_name = "ENGINE", value_delimiter = ',', default_value = "memory,local")]
    pub(super) engine: Vec<Engine>,
    /// What is left of the publication: nothing, or all of it
    #[arg(long, value_name = "KIND", value_delimiter = ',', default_value = "idle,kept")]
    pub(super) kind: Vec<Kind>,
    /// Turns of the latency measurement
    #[arg(long, value_name = "COUNT", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// Length of each, on either node
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(super) seconds: u64,
    /// A smoke test of a minute: 50,000 channels, figures mean little
    #[arg(long, conflicts_with_all = ["channels", "rounds", "seconds"])]
    pub(super) quick: bool,
    /// Result file [default: target/bench/channels-TIME.json]
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// The program that is measured
    #[arg(long, value_name = "FILE", env = "TIDEGATE_BIN")]
    pub(super) tidegate: PathBuf,
}

/// From publish to delivery through edges, cores and engine; beside it the engine alone
///
/// Real processes: two edges, one or two cores, NATS servers. A WebSocket publishes at the first edge, one on each edge
/// subscribes to all channels. Beside it, in turns of a second: a round trip over loopback (memory), the store's library
/// with a sync to the disk (local), JetStream's publish and acknowledgement at the same servers (nats). One at a time,
/// then at each --rate (open loop), then with --window under way.
#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// Engines, separated by commas
    #[arg(
        long,
        value_name = "ENGINE",
        value_delimiter = ',',
        default_value = "memory,local,nats-r1,nats-r3"
    )]
    pub(super) engine: Vec<publish::Engine>,
    /// Publications per second, over all channels; 0: none
    #[arg(long, value_name = "COUNT", value_delimiter = ',', default_value = "200,1000,5000", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(super) rate: Vec<u32>,
    /// Publications under way at saturation; 0: not measured
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=512))]
    pub(super) window: u32,
    /// Bytes of each payload
    #[arg(long, value_name = "BYTES", default_value_t = 200, value_parser = clap::value_parser!(u32).range(40..=60_000))]
    pub(super) payload: u32,
    /// Channels, which publications go to in turn
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub(super) channels: u32,
    /// Logs that the channels are shared out to, and raw streams
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) partitions: u16,
    /// Workers of each edge. One alone runs the links to the cores itself; more leave them to another thread. 0: one per
    /// processor
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub(super) workers: u8,
    /// NATS servers write everything to the disk before they answer, also for the raw publisher
    #[arg(long)]
    pub(super) synced: bool,
    /// A setting of the cores, such as `core.linger=0s`; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) settings: Vec<String>,
    /// Length of each measurement of either side, after a second of warming up
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(super) seconds: u32,
    /// How often everything is repeated; medians and ranges are reported
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// A smoke test: one round of a second each, one at a time
    #[arg(long, conflicts_with_all = ["rate", "window", "seconds", "rounds"])]
    pub(super) quick: bool,
    /// Result file [default: target/bench/publish-TIME.json]
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// Rounds of faults in a cluster under load, and what they cost: kills, pauses, partitions, loss, restarts, hand-overs
///
/// Three cores, three NATS servers and two edges in two regions, as processes on this machine. A checker judges each round:
/// nothing that was acknowledged may be lost, doubled or out of order. Fails where anything was.
#[derive(Debug, Args)]
pub(super) struct FaultsArgs {
    /// Rounds, one fault each
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(super) rounds: u32,
    /// Picks faults, victims and times
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(super) seed: u64,
    /// Channels of a round, with a subscriber on either edge
    #[arg(long, value_name = "COUNT", default_value_t = 240, value_parser = clap::value_parser!(u32).range(12..=10_000))]
    pub(super) channels: u32,
    /// Publishes per second, over all channels
    #[arg(long, value_name = "COUNT", default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    pub(super) rate: u32,
    /// Only these faults, separated by commas
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    pub(super) only: Vec<FaultKind>,
    /// How often each core hands over everything and takes it back, after the rounds
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(super) handovers: u32,
    /// Meanwhile something is published on each partition so often
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) every_ms: u32,
    /// Result file [default: target/bench/faults-TIME.json]
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// An edge that a new process takes over from again and again: connections refused, publications lost, gaps
///
/// One core and one edge as processes on this machine; clients by QUIC, WebTransport, WebSocket and long poll, each on one
/// channel, and others that connect all the time. Fails where a connection or a publication did.
#[derive(Debug, Args)]
pub(super) struct RestartArgs {
    #[command(flatten)]
    pub(super) crowd: CrowdArgs,
    /// How often the edge is taken over
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub(super) restarts: u32,
    /// Clients with a subscription each: by QUIC as many as by all others together
    #[arg(long, value_name = "COUNT", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(4..=10_000))]
    pub(super) connections: u32,
    /// Channels that they are shared out to evenly
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) channels: u32,
    /// `admission.rate` of the edge: its clients move to the new process by what that can take
    #[arg(long, value_name = "COUNT", default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) admission: u32,
    /// Publications per second, over all channels
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub(super) rate: u32,
}

/// An edge with thousands of clients is killed: when they are back at another one, and what they missed
///
/// One core and two edges as processes on this machine. Fails where 99 % are not back within the window that the edge told
/// them before plus 2 s, where the other edge opened more sessions in any second than 1.05 times its admission rate, or where
/// a publication was lost or doubled.
#[derive(Debug, Args)]
pub(super) struct KillArgs {
    #[command(flatten)]
    pub(super) crowd: CrowdArgs,
    /// Clients, over all transports
    #[arg(long, value_name = "COUNT", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(super) connections: u32,
    /// `admission.rate` of both edges
    #[arg(long, value_name = "COUNT", default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) admission: u32,
    /// From the last client's coming to the kill: plans follow
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(super) settle: Duration,
    /// Channels that clients are shared out to evenly
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) channels: u32,
    /// Channels that each client is on
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) follow: u32,
    /// Publications per second, over all channels
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) rate: u32,
}

/// Clients moved from one edge to another and back under load: lost, doubled, gaps, presence
///
/// One core and three edges as processes on this machine; two edges are drained in turn, the third has a watcher on each
/// channel. Clients of sdk/rust in processes of their own, of sdk/js in pages of Chromium, each a user. First as long without
/// drains, to compare with. Fails where a publication was lost or doubled, a client disconnected, somebody was seen to come or
/// go, or the longest gap is more than 50 ms longer at p99.
#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    pub(super) crowd: CrowdArgs,
    /// Clients of each transport
    #[arg(long, value_name = "COUNT", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub(super) connections: u32,
    /// Pages of Chromium, by WebTransport, WebSocket and long poll in turn
    #[arg(long, value_name = "COUNT", default_value_t = 24, value_parser = clap::value_parser!(u32).range(0..=200))]
    pub(super) pages: u32,
    /// There and back so often
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) rounds: u32,
    /// What each drain is given
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(super) within: Duration,
    /// `admission.rate` of all edges: a drain goes by what its target can take
    #[arg(long, value_name = "COUNT", default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) admission: u32,
    /// Windows without a drain, each as long as a drain may take at best, before the first
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) undrained: u32,
    /// Channels that clients are shared out to evenly
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) channels: u32,
    /// Channels that each client is on
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) follow: u32,
    /// Publications per second, over all channels
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) rate: u32,
}

/// Many times more clients than an edge takes on, and forgeries
///
/// One edge with everything, as a process on this machine. First flights of QUIC that nobody follows up, TCP connections that
/// say nothing, and clients by WebSocket that mean it, together; fails where the edge does not admit its rate within 5 %,
/// where an address gets more than three bytes for each that it sent, or where a forged slot, resume ticket or goaway target
/// has an effect.
#[derive(Debug, Args)]
pub(super) struct AttackArgs {
    /// `admission.rate` of the edge
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    pub(super) admission: u32,
    /// First flights by UDP, as a multiple of the rate
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) factor: u32,
    /// Length of the measurement, after 5 seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(super) seconds: u32,
    /// Forgeries of each kind
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    pub(super) forged: u32,
    /// Workers of the edge
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) workers: u16,
    /// Result file [default: target/bench/attack-TIME.json]
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// Clients of sdk/rust
#[derive(Debug, Args)]
pub(super) struct CrowdArgs {
    /// What they come by, separated by commas [default: all]
    #[arg(long, value_name = "TRANSPORT", value_delimiter = ',')]
    pub(super) transport: Vec<Transport>,
    /// Connects per second at the beginning, over all transports
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) connects: u32,
    /// Workers of each edge
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) workers: u16,
    /// A key of the configuration of all nodes, as TOML; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Result file [default: target/bench/NAME-TIME.json]
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

impl CrowdArgs {
    /// Each once.
    pub(super) fn transports(&self) -> impl Iterator<Item = Transport> + Clone {
        let chosen = |transport: &Transport| self.transport.is_empty() || self.transport.contains(transport);
        Transport::ALL.into_iter().filter(chosen)
    }
}

/// `2` or `2x3`.
fn lossy(text: &str) -> Result<Lossy, String> {
    let (mean, burst) = text.split_once('x').unwrap_or((text, "1"));
    let number = |text: &str| text.parse::<f64>().map_err(|_| format!("`{text}` is no number"));
    let (mean, burst) = (number(mean)? / 100.0, number(burst)?);
    if !(0.0..=0.9).contains(&mean) || !(1.0..=1000.0).contains(&burst) {
        return Err("from 0 to 90 per cent, in bursts of 1 to 1000".to_owned());
    }
    Ok(Lossy { mean, burst })
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

    /// Those that take the program's path as a flag too.
    const WITH_PROGRAM: [&str; 3] = ["fanout", "idle", "channels"];

    #[test]
    fn flags_that_make_no_sense_together_are_refused() {
        let parse = |flags: &str| {
            let program =
                if WITH_PROGRAM.iter().any(|name| flags.starts_with(name)) { " --tidegate x" } else { "" };
            Cli::try_parse_from(format!("bench {flags}{program}").split(' '))
        };
        for flags in [
            "fanout --quick",
            "fanout --transport ws,quic --subscribers 10 --channels 5 --window 2 --workers 1,2",
            "fanout --subscribers 10 --rate 15",
            "idle --transport all --connections 5000",
            "loss --loss 0,2x3 --rtt 350 --transport quic,websocket",
            "publish --quick --engine memory,nats-r3",
            "publish --rate 0 --window 0 --synced",
            "drain --connections 200 --transport quic,websocket --pages 0 --rounds 1 --within 30s",
            "kill --connections 600 --settle 30s --set quic.early_data=false",
            "restart --restarts 2 --connections 200",
            "attack --admission 100 --factor 5 --seconds 10 --forged 1000",
            "channels --quick --engine local",
            "channels --channels 1000000,4000000 --kind idle --rounds 2",
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
            "loss --loss 2x",
            "loss --loss 95",
            "loss --quick --rtt 50",
            "publish --engine nats",
            "publish --quick --rate 9",
            "publish --payload 30",
            "drain --rounds 0",
            "drain --within soon",
            "kill --transport sse",
            "attack --factor 0",
            "channels --channels 10",
            "channels --quick --rounds 2",
        ] {
            assert!(parse(flags).is_err(), "{flags}");
        }
    }
}
