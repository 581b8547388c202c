//! `cargo xtask fuzz`: looks for input that breaks a parser. The corpus it grows is replayed by an ordinary test.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process;
use crate::workspace::Workspace;

/// Flags of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A file of fuzz/fuzz_targets, without its `.rs`; each in turn when left out
    pub(crate) target: Option<String>,
    /// How long, per target
    #[arg(default_value_t = 60)]
    pub(crate) seconds: u32,
}

/// Runs cargo-fuzz on one target or on each.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let known = targets(workspace)?;
    let chosen = match &args.target {
        Some(target) if known.contains(target) => vec![target.clone()],
        Some(target) => bail!("there is no fuzz target {target}; there are: {}", known.join(", ")),
        None => known,
    };
    ensure!(
        succeeds(Command::new("rustup").args(["run", "nightly", "rustc", "--version"])),
        "fuzzing needs a nightly compiler: `rustup toolchain install nightly`. \
         (`cargo xtask test` replays the corpus without one.)"
    );
    ensure!(
        succeeds(workspace.cargo().args(["fuzz", "--version"])),
        "fuzzing needs cargo-fuzz: `cargo install cargo-fuzz --locked`. \
         (`cargo xtask test` replays the corpus without it.)"
    );
    for target in chosen {
        let mut fuzz = workspace.command("rustup");
        fuzz.args(["run", "nightly", "cargo", "fuzz", "run", &target, "--"]);
        fuzz.arg(format!("-max_total_time={}", args.seconds));
        // cargo told us which compiler to use; this run wants the other one.
        fuzz.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
        process::run(&mut fuzz)
            .with_context(|| format!("fuzz target {target}: the input is in fuzz/artifacts/{target}"))?;
    }
    Ok(())
}

fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))? {
        if let Some(name) = entry?.file_name().to_string_lossy().strip_suffix(".rs") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
