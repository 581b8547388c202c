//! `cargo xtask check`: what every commit passes.

use std::process::ExitCode;

use anyhow::Result;

use crate::step::Steps;
use crate::workspace::Workspace;
use crate::{prerequisites, process, tidy};

/// Formatting, lints, tidy, doc tests, then unit and simulated tests.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    let mut steps = Steps::new();
    steps.run("prerequisites", "see the message below", || {
        prerequisites::rust_components(workspace)?;
        prerequisites::nextest(workspace)
    })?;
    lints(workspace, &mut steps)?;
    doc_tests(workspace, &mut steps)?;
    steps.last("unit and simulated tests");
    process::exit_code(workspace.cargo().args(["nextest", "run", "--workspace", "-E", WITHOUT_REAL]))
}

/// Formatting, clippy and tidy: shared with `cargo xtask test`.
pub(crate) fn lints(workspace: &Workspace, steps: &mut Steps) -> Result<()> {
    steps.run("formatting", "run `cargo fmt --all`", || {
        process::run(workspace.cargo().args(["fmt", "--all", "--check"]))
    })?;
    steps.run("clippy", "mend each warning above; an exception is #[expect(.., reason = \"..\")]", || {
        process::run(workspace.cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    steps.run("tidy", "mend each place listed; the rules are in xtask/src/tidy.rs", || tidy::run(workspace))
}

/// The examples in the documentation: shared with `cargo xtask test`.
pub(crate) fn doc_tests(workspace: &Workspace, steps: &mut Steps) -> Result<()> {
    steps.run("doc tests", "mend the example that is named above", || {
        process::run(workspace.cargo().args(["test", "--doc", "--workspace"]))
    })
}

/// All tests but those over real sockets and browsers.
const WITHOUT_REAL: &str = "not (package(tidegate-interop-tests) & binary(real))";
