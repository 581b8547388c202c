//! Facts without which a figure means nothing.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

use super::proc;

/// Where and with what was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) kernel: String,
    pub(super) processor: String,
    pub(super) memory: String,
    pub(super) tidegate: String,
    pub(super) commit: String,
    pub(super) rust: String,
    pub(super) build: &'static str,
    pub(super) load_before: String,
    pub(super) load_after: String,
}

impl Machine {
    /// Before the first measurement.
    pub(super) fn look(tidegate: &Path) -> Self {
        let repository = env!("CARGO_MANIFEST_DIR");
        let commit = output("git", &["-C", repository, "describe", "--always", "--dirty", "--abbrev=12"]);
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: output("uname", &["-sr"]),
            processor: line_of("/proc/cpuinfo", "model name"),
            memory: line_of("/proc/meminfo", "MemTotal"),
            tidegate: output(&tidegate.to_string_lossy(), &["--version"]),
            commit,
            rust: output("rustc", &["--version"]),
            build: if cfg!(debug_assertions) { "debug: figures mean nothing" } else { "release" },
            load_before: proc::load_average(),
            load_after: String::new(),
        }
    }

    /// For the top of the report.
    pub(super) fn summary(&self) -> String {
        format!(
            "{} ({}), {} cores, {}; {}; load generator: {} build; load average {} before, {} after; {}, commit {}",
            self.processor,
            self.memory,
            self.cores,
            self.kernel,
            self.rust,
            self.build,
            self.load_before,
            self.load_after,
            self.tidegate,
            self.commit
        )
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let text = Command::new(program).args(arguments).output().map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    if text.is_empty() { "unknown".to_owned() } else { text }
}

fn line_of(path: &str, name: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
    line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
}
