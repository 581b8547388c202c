//! `cargo xtask tidy`: the project's own rules about its tree, which no compiler checks.
//!
//! * no `mod.rs`; a `//!` first line in every Rust file; at most 1,000 lines of it that are not tests
//! * modules that begin with `//! Sans-io:` stay free of tokio, sockets and clocks, and those that must begin so do
//! * crates depend on each other in one direction only, and `protocol` on no runtime
//! * nothing left unfinished: no marker words, no test switched off without a reason
//! * every third-party dependency has its line in docs/DEPENDENCIES.md
//! * relative links in Markdown lead somewhere; README's `cargo` commands exist

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;

mod layers;
mod markdown;
mod sans_io;
mod shape;
mod source;
mod third_party;
mod unfinished;

/// Applies every rule; the error lists what breaks one, as `file:line: why`.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let files = load(&workspace.root)?;
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(unfinished::check(file));
        if file.has_extension("rs") {
            findings.extend(shape::check(file));
            findings.extend(sans_io::check(file));
        }
        if file.has_extension("md") {
            findings.extend(markdown::broken_links(file, &workspace.root));
        }
        if file.path == "README.md" {
            findings.extend(markdown::unknown_commands(file, &crate::command_names()));
        }
    }
    findings.extend(layers::check(&layers::members(workspace)));
    findings.extend(third_party::check(workspace, &files)?);
    if findings.is_empty() {
        eprintln!("  {} files follow the rules", files.len());
        return Ok(());
    }
    let list = findings.iter().map(|finding| format!("  {finding}\n")).collect::<String>();
    bail!("{} places break a rule:\n{list}", findings.len())
}

/// One text file of the project.
struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

impl File {
    fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|own| own == extension)
    }

    /// Whether the whole file is tests: `tests/..`, `src/foo/tests.rs`.
    fn is_test(&self) -> bool {
        self.path.split('/').any(|part| part == "tests" || part == "tests.rs")
    }

    fn finding(&self, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, message: message.into() }
    }
}

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// From 1.
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// The text files of the tree, in order of their paths.
fn load(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    walk(root, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(folder: &Path, relative: &str, files: &mut Vec<File>) -> Result<()> {
    for entry in folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if relative.is_empty() { name.clone() } else { format!("{relative}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let hidden = name.starts_with('.') && name != ".ci";
            if !hidden && !GENERATED.contains(&name.as_str()) && path != "certs/dev" {
                walk(&entry.path(), &path, files)?;
            }
        } else if kind.is_file()
            && (EXTENSIONS.iter().any(|extension| name.ends_with(extension)) || path == ".ci/run")
        {
            let text = fs::read_to_string(entry.path()).with_context(|| format!("cannot read {path}"))?;
            files.push(File { path, text });
        }
    }
    Ok(())
}

const GENERATED: [&str; 4] = ["target", "node_modules", "corpus", "artifacts"];
const EXTENSIONS: [&str; 7] = [".rs", ".md", ".js", ".mjs", ".ts", ".py", ".sh"];

#[cfg(test)]
fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_can_be_clicked() {
        assert_eq!(
            file("edge/src/node.rs", "").finding(7, "too long").to_string(),
            "edge/src/node.rs:7: too long"
        );
    }

    #[test]
    fn test_files_are_known_by_their_place() {
        assert!(file("interop-tests/tests/real/main.rs", "").is_test());
        assert!(file("protocol/src/session/tests.rs", "").is_test());
        assert!(!file("interop-tests/src/cluster.rs", "").is_test());
    }

    #[test]
    fn this_projects_tree_is_read_without_what_is_generated() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the root");
        let files = load(root).expect("the tree is readable");
        assert!(files.iter().any(|file| file.path == "xtask/src/tidy.rs"));
        assert!(
            files
                .iter()
                .all(|file| !file.path.contains("node_modules/") && !file.path.starts_with("target/"))
        );
    }
}
