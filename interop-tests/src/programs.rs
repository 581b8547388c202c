//! The programs that the real tests start: given by `cargo xtask test`, else found where they usually are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The gateway: `TIDEGATE_BIN`, else the one that was built beside the running test.
///
/// # Errors
/// When there is none.
pub fn tidegate() -> Result<PathBuf> {
    if let Some(path) = variable("TIDEGATE_BIN") {
        ensure!(path.is_file(), "TIDEGATE_BIN names {}, which is not a file", path.display());
        return Ok(path);
    }
    // target/debug/deps/real-0123 -> target/debug/tidegate
    let test = std::env::current_exe().context("where is this test?")?;
    let profile = test.parent().and_then(Path::parent).context("a test lies in target/<profile>/deps")?;
    let path = profile.join("tidegate");
    ensure!(
        path.is_file(),
        "there is no {}: run `cargo build --package tidegate`, or `cargo xtask test`, which does",
        path.display()
    );
    Ok(path)
}

/// Node.js.
pub fn node() -> PathBuf {
    variable("TIDEGATE_NODE").unwrap_or_else(|| "node".into())
}

/// Chromium or Chrome.
///
/// # Errors
/// When there is none.
pub fn chromium() -> Result<PathBuf> {
    let usual = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    variable("TIDEGATE_CHROMIUM")
        .or_else(|| usual.iter().map(PathBuf::from).find(|path| path.is_file()))
        .with_context(|| absent("Chromium", "TIDEGATE_CHROMIUM"))
}

/// The Python that has the packages of `interop-tests/python/requirements.txt`.
///
/// # Errors
/// When there is none.
pub fn python() -> Result<PathBuf> {
    let ours = root().join(".tools/venv/bin/python");
    variable("TIDEGATE_PYTHON")
        .or_else(|| ours.is_file().then_some(ours))
        .with_context(|| absent("Python's virtual environment", "TIDEGATE_PYTHON"))
}

/// The NATS server, with JetStream.
///
/// # Errors
/// When there is none.
pub fn nats_server() -> Result<PathBuf> {
    let ours = root().join(".tools/venv/bin/nats-server");
    variable("TIDEGATE_NATS_SERVER")
        .or_else(|| ours.is_file().then_some(ours))
        .with_context(|| absent("nats-server", "TIDEGATE_NATS_SERVER"))
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// A file of this package.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn absent(what: &str, variable: &str) -> String {
    format!("{what} is missing: run `cargo xtask test`, which installs it, or set {variable}")
}
