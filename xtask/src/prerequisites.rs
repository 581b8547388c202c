//! What the whole test suite needs besides Rust and Node.js: found, or installed with a word about it, or an error.
//! Nothing is skipped because a part is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process;
use crate::workspace::Workspace;

/// The JavaScript SDK, relative to the root.
pub(crate) const SDK_JS: &str = "sdk/js";

/// The programs that the real tests start.
pub(crate) struct Tools {
    pub(crate) browser: Browser,
    pub(crate) python: PathBuf,
    pub(crate) nats_server: PathBuf,
}

impl Tools {
    /// Tells a test run where the programs are.
    pub(crate) fn export<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.browser
            .export(command)
            .env("TIDEGATE_PYTHON", &self.python)
            .env("TIDEGATE_NATS_SERVER", &self.nats_server)
    }
}

/// Chromium and what drives it.
pub(crate) struct Browser {
    pub(crate) chromium: PathBuf,
    pub(crate) node: PathBuf,
}

impl Browser {
    /// Tells where they are.
    pub(crate) fn export<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("TIDEGATE_CHROMIUM", &self.chromium).env("TIDEGATE_NODE", &self.node)
    }
}

/// Finds or installs everything.
pub(crate) fn install(workspace: &Workspace) -> Result<Tools> {
    rust_components(workspace)?;
    nextest(workspace)?;
    let browser = install_for_laboratory(workspace)?;
    let python = python(workspace)?;
    let nats_server = nats_server(&python)?;
    npm_packages(workspace, SDK_JS)?;
    Ok(Tools { browser, python, nats_server })
}

/// Finds or installs what the benchmarks in the laboratory need: namespaces, and a browser inside.
pub(crate) fn install_for_laboratory(workspace: &Workspace) -> Result<Browser> {
    laboratory()?;
    install_browser(workspace)
}

/// The same without namespaces.
pub(crate) fn install_browser(workspace: &Workspace) -> Result<Browser> {
    let browser = Browser { node: node()?, chromium: chromium()? };
    npm_packages(workspace, BROWSER_TESTS)?;
    Ok(browser)
}

/// Finds or installs the server that a cluster's logs are kept by.
pub(crate) fn install_nats_server(workspace: &Workspace) -> Result<PathBuf> {
    nats_server(&python(workspace)?)
}

/// rustfmt and clippy, which a minimal Rust lacks.
pub(crate) fn rust_components(workspace: &Workspace) -> Result<()> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if !succeeds(workspace.cargo().args([subcommand, "--version"])) {
            installing(&format!("the Rust component {component}"), "rustup");
            process::run(workspace.command("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

/// The test runner.
pub(crate) fn nextest(workspace: &Workspace) -> Result<()> {
    if !succeeds(workspace.cargo().args(["nextest", "--version"])) {
        installing("cargo-nextest", "cargo install, a few minutes");
        process::run(workspace.cargo().args(["install", NEXTEST, "--locked"]))?;
    }
    found("cargo-nextest", &process::capture(workspace.cargo().args(["nextest", "--version"]))?);
    Ok(())
}

fn node() -> Result<PathBuf> {
    let advice = format!(
        "install Node.js {NODE_MAJOR} or newer with its npm, from https://nodejs.org or your system's packages"
    );
    let node =
        chosen("TIDEGATE_NODE", &["node"])?.with_context(|| format!("Node.js is missing: {advice}"))?;
    let version = process::capture(Command::new(&node).arg("--version"))?;
    ensure!(
        major(&version).is_some_and(|major| major >= NODE_MAJOR),
        "Node.js is {}: {advice}",
        version.trim()
    );
    ensure!(process::which("npm").is_some(), "npm is missing: {advice}");
    found("Node.js", &version);
    Ok(node)
}

fn chromium() -> Result<PathBuf> {
    const NAMES: [&str; 2] = ["chromium", "chromium-browser"];
    if chosen("TIDEGATE_CHROMIUM", &NAMES)?.is_none() {
        apt_install(&["chromium"], "or set TIDEGATE_CHROMIUM to a Chromium or Chrome of your own")?;
    }
    let chromium = chosen("TIDEGATE_CHROMIUM", &NAMES)?
        .context("chromium was installed, yet no `chromium` is in PATH: set TIDEGATE_CHROMIUM to its path")?;
    found("Chromium", &process::capture(Command::new(&chromium).arg("--version"))?);
    Ok(chromium)
}

/// A virtual environment of our own, so that nothing of the system's Python changes.
fn python(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(python) = chosen("TIDEGATE_PYTHON", &[])? {
        found(
            "Python",
            &format!("{} (TIDEGATE_PYTHON, its packages are yours to install)", python.display()),
        );
        return Ok(python);
    }
    let requirements = workspace.root.join(PYTHON_REQUIREMENTS);
    let wanted = read(&requirements)?;
    let venv = workspace.root.join(VENV);
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let stamp = venv.join(STAMP);
    if !up_to_date(&stamp, &wanted) || !succeeds(Command::new(&python).arg("--version")) {
        if !make_venv(&venv) {
            apt_install(&["python3", "python3-venv"], "or install Python 3 with its venv module")?;
            ensure!(make_venv(&venv), "`python3 -m venv {}` fails: run it to see why", venv.display());
        }
        installing(&format!("the Python packages of {PYTHON_REQUIREMENTS}"), &format!("pip, into {VENV}"));
        process::run(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
                .arg(&requirements),
        )?;
        write(&stamp, &wanted)?;
    }
    found("Python", &process::capture(Command::new(&python).arg("--version"))?);
    Ok(python)
}

/// The server of the cluster tests. The Python packages bring one; it runs without Python.
fn nats_server(python: &Path) -> Result<PathBuf> {
    let advice = "set TIDEGATE_NATS_SERVER to a nats-server 2.11 or newer \
                  (https://github.com/nats-io/nats-server/releases)";
    let beside = python.with_file_name(if cfg!(windows) { "nats-server.exe" } else { "nats-server" });
    let server = match chosen("TIDEGATE_NATS_SERVER", &[])? {
        Some(server) => server,
        None if beside.is_file() => beside,
        None => process::which("nats-server").with_context(|| format!("nats-server is missing: {advice}"))?,
    };
    found("nats-server", &process::capture(Command::new(&server).arg("--version"))?);
    Ok(server)
}

/// What the link laboratory of the real tests stands on.
fn laboratory() -> Result<()> {
    if process::which("ip").is_none() {
        apt_install(&["iproute2"], "the link laboratory makes network namespaces with its `ip`")?;
    }
    ensure!(
        process::capture(Command::new("id").arg("-u"))?.trim() == "0",
        "the link laboratory of the real tests makes network namespaces, which needs root: run `sudo -E cargo xtask test` \
         or, where /dev/net/tun is open to your user, `unshare --map-root-user --net --mount sh -c \
         'mount -t tmpfs tmpfs /run && ip link set lo up && cargo xtask test'`"
    );
    ensure!(
        Path::new(TUN).exists(),
        "the link laboratory needs TUN devices and there is no {TUN}: `modprobe tun`"
    );
    found("ip", &process::capture(Command::new("ip").arg("-Version"))?);
    Ok(())
}

fn make_venv(venv: &Path) -> bool {
    succeeds(Command::new("python3").args(["-m", "venv", "--clear"]).arg(venv))
}

/// The npm packages of one folder, exactly as its lock file has them.
fn npm_packages(workspace: &Workspace, folder: &str) -> Result<()> {
    let path = workspace.root.join(folder);
    let lock = path.join("package-lock.json");
    let (verb, wanted) = if lock.is_file() { ("ci", read(&lock)?) } else { ("install", String::new()) };
    let wanted = read(&path.join("package.json"))? + &wanted;
    let stamp = path.join("node_modules").join(STAMP);
    if !up_to_date(&stamp, &wanted) {
        installing(&format!("the npm packages of {folder}"), &format!("npm {verb}"));
        let mut npm = workspace.command("npm");
        npm.current_dir(&path).args([verb, "--ignore-scripts", "--no-audit", "--no-fund"]);
        process::run(&mut npm)?;
        // A package without dependencies gets no folder from npm.
        fs::create_dir_all(path.join("node_modules"))?;
        write(&stamp, &wanted)?;
    }
    found("npm packages", folder);
    Ok(())
}

/// Installs packages of Debian or Ubuntu; elsewhere says what is needed.
fn apt_install(packages: &[&str], otherwise: &str) -> Result<()> {
    let names = packages.join(" ");
    let advice = format!(
        "install {names} (Debian: `apt-get install {names}`; macOS: `brew install {names}`), {otherwise}"
    );
    let Some(apt) = process::which("apt-get") else {
        bail!("{names} is missing and this system has no apt-get: {advice}");
    };
    let root = process::capture(Command::new("id").arg("-u"))?.trim() == "0";
    let command = || -> Result<Command> {
        if root {
            return Ok(Command::new(&apt));
        }
        let sudo = process::which("sudo")
            .with_context(|| format!("{names} is missing, and only root can add it: {advice}"))?;
        let mut command = Command::new(sudo);
        command.arg(&apt);
        Ok(command)
    };
    installing(&names, "apt-get");
    process::run(command()?.args(["update", "--quiet"]))?;
    process::run(
        command()?
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--quiet", "--yes", "--no-install-recommends"])
            .args(packages),
    )
    .with_context(|| advice)
}

/// The program that an environment variable names, else the first of `names` in PATH.
fn chosen(variable: &str, names: &[&str]) -> Result<Option<PathBuf>> {
    if let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{variable} names {}, which is not a file", path.display());
        return Ok(Some(std::path::absolute(path)?));
    }
    Ok(names.iter().find_map(|name| process::which(name)))
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The major number of a version such as `v20.20.2`.
fn major(version: &str) -> Option<u32> {
    version.trim().trim_start_matches('v').split('.').next()?.parse().ok()
}

fn up_to_date(stamp: &Path, wanted: &str) -> bool {
    fs::read_to_string(stamp).is_ok_and(|installed| installed == wanted)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn installing(what: &str, how: &str) {
    eprintln!("  installing {what} ({how})");
}

fn found(what: &str, version: &str) {
    eprintln!("  {what}: {}", version.lines().next().unwrap_or_default().trim());
}

const BROWSER_TESTS: &str = "interop-tests/browser";
const PYTHON_REQUIREMENTS: &str = "interop-tests/python/requirements.txt";
const TUN: &str = "/dev/net/tun";
const VENV: &str = ".tools/venv";
/// Holds what was installed, so that a second run has nothing to do.
const STAMP: &str = ".tidegate-installed";
const NEXTEST: &str = "cargo-nextest@0.9.143";
/// `node --test`, and what playwright-core asks for.
const NODE_MAJOR: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_numbers() {
        assert_eq!(major("v20.20.2\n"), Some(20));
        assert_eq!(major("22.1.0"), Some(22));
        assert_eq!(major("nightly"), None);
    }

    #[test]
    fn a_variable_that_names_nothing_is_an_error_not_a_fallback() {
        // PATH is set everywhere and never a file.
        let error = chosen("PATH", &["sh"]).expect_err("PATH is no file");
        assert!(error.to_string().starts_with("PATH names "), "{error}");
        assert_eq!(chosen("TIDEGATE_NOT_SET", &[]).expect("nothing to go wrong"), None);
    }

    #[test]
    fn another_lock_file_is_installed_anew() {
        let folder = std::env::temp_dir().join(format!("tidegate-xtask-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the temporary folder is writable");
        let stamp = folder.join(STAMP);
        assert!(!up_to_date(&stamp, "one"));
        write(&stamp, "one").expect("the temporary folder is writable");
        assert!(up_to_date(&stamp, "one"));
        assert!(!up_to_date(&stamp, "two"));
        fs::remove_dir_all(&folder).expect("the folder is ours");
    }
}
