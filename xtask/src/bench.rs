//! `cargo xtask bench`: the benchmarks of interop-tests, in release mode, against a release build of the program.

use std::process::ExitCode;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{prerequisites, process};

/// Flags of `cargo xtask bench`.
#[derive(clap::Args)]
#[command(after_help = "Benchmarks:
  fanout    one publication to many subscriptions: deliveries per second, CPU per delivery, latency
  idle      memory per connection that does nothing
  loss      latency over links that lose packets, by transport; writes a chart
  mobility  what blocked, dying and changing networks cost a client
  faults    kills, pauses, partitions, restarts and hand-overs in a cluster: what is lost, how long it takes
  restart   a new process takes an edge over under load: what is refused or lost, the gap that clients see
  drain     thousands of clients moved from one edge to another and back: lost, doubled, gaps, presence
  kill      an edge with thousands of clients dies: when they are back at another one, and what they missed
  attack    far more than an edge takes on, and forgeries: what is let in, answered, honoured
  channels  bytes per idle channel, publish latency beside millions of them, time to start again
  publish   publish to delivery through edges, cores and engine, by engine

The first two run beside a raw loop over the same number of sockets, the physical limit; loss and mobility in network
namespaces joined by a seeded link (docs/LAB.md), which need root; publish beside each engine's own acknowledgement.
`cargo xtask bench NAME --help` shows the flags of one; docs/PERFORMANCE.md has the figures.")]
pub(crate) struct Args {
    /// One of those below, then what the benchmark itself takes
    #[arg(required = true, value_names = ["NAME", "ARGS"], num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) benchmark: Vec<String>,
}

/// Builds what is measured, then runs the measurement.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    process::run(workspace.cargo().args(["build", "--release", "--package", "tidegate"]))?;
    let mut bench = workspace.cargo();
    bench.args(["run", "--release", "--package", "tidegate-interop-tests", "--bin", "bench", "--"]);
    if args.benchmark.first().is_some_and(|name| IN_THE_LABORATORY.contains(&name.as_str())) {
        prerequisites::install_for_laboratory(workspace)?.export(&mut bench);
    }
    if args.benchmark.first().is_some_and(|name| WITH_PAGES.contains(&name.as_str())) {
        prerequisites::install_browser(workspace)?.export(&mut bench);
    }
    if args.benchmark.first().is_some_and(|name| WITH_NATS.contains(&name.as_str())) {
        bench.env("TIDEGATE_NATS_SERVER", prerequisites::install_nats_server(workspace)?);
    }
    bench.args(&args.benchmark).env("TIDEGATE_BIN", workspace.tidegate("release"));
    process::exit_code(&mut bench)
}

/// Those that run browsers in network namespaces.
const IN_THE_LABORATORY: [&str; 2] = ["loss", "mobility"];
/// Those that run browsers beside the rest.
const WITH_PAGES: [&str; 1] = ["drain"];
/// Those that start NATS servers.
const WITH_NATS: [&str; 2] = ["faults", "publish"];
