//! `cargo xtask test`: everything. What README tells a newcomer to run, and what CI runs.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::prerequisites::{self, Tools};
use crate::step::Steps;
use crate::workspace::Workspace;
use crate::{advisories, check, process};

/// Flags of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only install what is missing, build, and run the tests: no lints, advisories, SDK or doc tests
    #[arg(long)]
    pub(crate) only_tests: bool,
    /// For the test runner: `-- -E 'test(browser)'`, `-- --no-capture`
    #[arg(last = true)]
    pub(crate) nextest: Vec<String>,
}

/// Installs what is missing, runs each step, and ends with the test runner's own summary.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let mut steps = Steps::new();
    let tools = steps.run("prerequisites", "see the message below", || prerequisites::install(workspace))?;
    if !args.only_tests {
        check::lints(workspace, &mut steps)?;
        steps.run("advisories", "raise the version named: `cargo update -p NAME`", || {
            advisories::run(workspace)
        })?;
        javascript(workspace, &tools, &mut steps)?;
        check::doc_tests(workspace, &mut steps)?;
    }
    steps.run("build tidegate", "mend the compiler's complaint", || {
        process::run(workspace.cargo().args(["build", "--package", "tidegate"]))
    })?;
    steps.last("tests");
    let mut nextest = workspace.cargo();
    nextest.args(["nextest", "run", "--workspace"]).args(&args.nextest);
    tools.export(&mut nextest).env("TIDEGATE_BIN", workspace.tidegate("debug"));
    process::exit_code(&mut nextest)
}

/// The JavaScript SDK: its types, then its own tests.
fn javascript(workspace: &Workspace, tools: &Tools, steps: &mut Steps) -> Result<()> {
    let sdk = workspace.root.join(prerequisites::SDK_JS);
    steps.run("sdk/js types", "mend the JSDoc that is named above", || {
        let tsc = sdk.join("node_modules/typescript/bin/tsc");
        ensure!(tsc.is_file(), "{} is missing: typescript must be a devDependency of sdk/js", tsc.display());
        let mut command = workspace.command(&tools.browser.node);
        command.current_dir(&sdk).arg(tsc).args(["--project", ".", "--noEmit", "--allowJs", "--checkJs"]);
        process::run(&mut command)
    })?;
    steps.run("sdk/js tests", "run `node --test` in sdk/js", || {
        // `node --test` is content with nothing to run; a suite that vanished must not pass.
        ensure!(has_tests(&sdk)?, "sdk/js has no *.test.js file");
        process::run(workspace.command(&tools.browser.node).current_dir(&sdk).arg("--test"))
    })
}

fn has_tests(folder: &Path) -> Result<bool> {
    for entry in folder.read_dir()? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let found = if entry.file_type()?.is_dir() {
            name != "node_modules" && has_tests(&entry.path())?
        } else {
            name.ends_with(".test.js") || name.ends_with(".test.mjs")
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
