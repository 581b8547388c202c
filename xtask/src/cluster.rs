//! `cargo xtask cluster`: a whole cluster on this machine, with everything as separate processes.

mod files;
mod members;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::workspace::Workspace;
use crate::{prerequisites, process};

use self::files::{Files, Kind};
use self::members::Members;

/// Flags of `cargo xtask cluster`.
#[derive(clap::Args)]
#[command(
    after_help = "Edges stand in the regions eu and us in turn; channels live in eu, where the cores are. Edges are as open as
`tidegate dev`: for development only. Without --dir everything is below the target folder, and made anew each time;
with --dir keys and data stay, and the next call goes on with them.

Kill, stop and continue its processes as you like (the table has their ids): it says which of them ended."
)]
pub(crate) struct Args {
    /// Core nodes
    #[arg(long, default_value_t = 2)]
    cores: usize,
    /// Edges
    #[arg(long, default_value_t = 2)]
    edges: usize,
    /// NATS servers, for --engine nats: 1, 3 or 5
    #[arg(long, default_value_t = 3)]
    nats: usize,
    /// What keeps the logs; memory and local go with one core
    #[arg(long, value_enum, default_value_t = Engine::Nats)]
    engine: Engine,
    /// Folder of keys, data and logs; kept
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// First of the ports, which then follow one another; 0: any that are free
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Build and run the release profile
    #[arg(long)]
    release: bool,
}

/// `core.engine`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Memory,
    Local,
    Nats,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Local => "local",
            Self::Nats => "nats",
        }
    }
}

/// Builds, starts, waits until everything is ready, and for Ctrl-C.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    ensure!(args.cores > 0 && args.edges > 0, "a cluster needs at least one core and one edge");
    ensure!(
        args.engine == Engine::Nats || args.cores == 1,
        "--engine {} belongs to one process: say --cores 1, or --engine nats",
        args.engine.name()
    );
    ensure!([1, 3, 5].contains(&args.nats), "--nats can be 1, 3 or 5");
    let nats = match args.engine {
        Engine::Nats => Some(prerequisites::install_nats_server(workspace)?),
        _ => None,
    };
    let mut build = workspace.cargo();
    build.args(["build", "--package", "tidegate"]);
    if args.release {
        build.arg("--release");
    }
    process::run(&mut build)?;
    let program = workspace.tidegate(if args.release { "release" } else { "debug" });

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let files = Files::prepare(workspace, args, &program)?;
        let mut members = Members::default();
        let started = tokio::select! {
            biased;
            () = signals.next() => Ok(false),
            started = start(&files, nats, &program, &mut members) => started.map(|()| true),
        };
        if matches!(started, Ok(true)) {
            print!("{}", files.table(&members, &program));
            tokio::select! {
                () = signals.next() => eprintln!("\nending; once more ends at once"),
                () = members.watch() => eprintln!("\nno process is left"),
            }
        }
        // Edges before cores, cores before their engine.
        tokio::select! {
            () = members.end() => {}
            () = signals.next() => members.kill(),
        }
        started.map(|_| ExitCode::SUCCESS)
    })
}

async fn start(
    files: &Files,
    nats: Option<PathBuf>,
    program: &std::path::Path,
    members: &mut Members,
) -> Result<()> {
    // What others need comes first, and is ready by then.
    for kind in [Kind::Nats, Kind::Core, Kind::Edge] {
        for member in files.members.iter().filter(|member| member.kind == kind) {
            let mut command = match (kind, &nats) {
                (Kind::Nats, Some(nats)) => Command::new(nats),
                _ => Command::new(program),
            };
            // Settings of this shell are not the cluster's.
            for (name, _) in std::env::vars_os() {
                if name.to_string_lossy().starts_with("TIDEGATE_") && name != "TIDEGATE_LOG" {
                    command.env_remove(name);
                }
            }
            command.args(&member.arguments);
            members.start(&member.name, &member.log, command)?;
        }
        for member in files.members.iter().filter(|member| member.kind == kind) {
            let not_ready = || format!("{} is not ready; its log is {}", member.name, member.log.display());
            members.wait_until_ready(member, PATIENCE).await.with_context(not_ready)?;
        }
    }
    Ok(())
}

/// Ctrl-C and `kill`.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// For everything to start: a NATS cluster elects its leaders first.
const PATIENCE: Duration = Duration::from_secs(60);
