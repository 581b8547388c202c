//! What cargo knows about this workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::process;

/// The workspace as `cargo metadata --no-deps` tells it.
#[derive(Deserialize)]
pub(crate) struct Workspace {
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    /// Where builds go; follows `CARGO_TARGET_DIR`.
    pub(crate) target_directory: PathBuf,
    pub(crate) packages: Vec<Package>,
}

/// A member of the workspace.
#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
}

/// A direct dependency of a member, of any kind (normal, dev, build).
#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Where it comes from; nothing for a path.
    pub(crate) source: Option<String>,
}

impl Workspace {
    /// Asks cargo. Works from any folder of the workspace.
    pub(crate) fn load() -> Result<Self> {
        let json = process::capture(process::clean(Command::new(process::cargo_program())).args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
        ]))?;
        serde_json::from_str(&json).context("cargo metadata printed something unexpected")
    }

    /// Cargo, in the root of the workspace.
    pub(crate) fn cargo(&self) -> Command {
        self.command(process::cargo_program())
    }

    /// Another program, in the root of the workspace.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = process::clean(Command::new(program));
        command.current_dir(&self.root);
        command
    }

    /// The program `tidegate` as `cargo build` leaves it; `profile` is the folder's name, `debug` or `release`.
    pub(crate) fn tidegate(&self, profile: &str) -> PathBuf {
        self.target_directory.join(profile).join(format!("tidegate{}", std::env::consts::EXE_SUFFIX))
    }
}

impl Package {
    /// The folder of this member, relative to the root, with `/`.
    pub(crate) fn folder(&self, root: &Path) -> String {
        let folder = self.manifest_path.parent().unwrap_or(root);
        folder.strip_prefix(root).unwrap_or(folder).to_string_lossy().replace('\\', "/")
    }
}
