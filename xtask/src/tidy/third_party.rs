//! Every direct third-party dependency is declared once, in the root manifest, and explained in docs/DEPENDENCIES.md.

use std::fs;

use anyhow::{Context as _, Result};

use super::{File, Finding};
use crate::workspace::Workspace;

/// Looks at the root manifest, the members' and the document.
pub(super) fn check(workspace: &Workspace, files: &[File]) -> Result<Vec<Finding>> {
    let manifest = fs::read_to_string(workspace.root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let declared = declared(&manifest)?;
    let mut findings = match files.iter().find(|file| file.path == DOCUMENT) {
        Some(document) => unexplained(&manifest, &declared, &document.text),
        None => vec![Finding { path: DOCUMENT.to_owned(), line: 1, message: "is missing".to_owned() }],
    };
    for package in &workspace.packages {
        for dependency in package.dependencies.iter().filter(|dependency| dependency.source.is_some()) {
            if !declared.contains(&dependency.name) {
                findings.push(Finding {
                    path: format!("{}/Cargo.toml", package.folder(&workspace.root)),
                    line: 1,
                    message: format!("declare {} in the root's [workspace.dependencies]", dependency.name),
                });
            }
        }
    }
    Ok(findings)
}

/// The third-party names in `[workspace.dependencies]`.
fn declared(manifest: &str) -> Result<Vec<String>> {
    let manifest: toml::Table = manifest.parse().context("cannot parse Cargo.toml")?;
    let dependencies = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("dependencies"))
        .and_then(toml::Value::as_table)
        .context("Cargo.toml has no [workspace.dependencies]")?;
    let third_party = dependencies.iter().filter(|(_, value)| value.get("path").is_none());
    Ok(third_party
        .map(|(name, value)| value.get("package").and_then(toml::Value::as_str).unwrap_or(name).to_owned())
        .collect())
}

fn unexplained(manifest: &str, declared: &[String], document: &str) -> Vec<Finding> {
    let named = |name: &str| {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        document.split(|c: char| !is_name(c)).any(|word| word == name)
    };
    let line_of = |name: &str| manifest.lines().position(|line| line.split([' ', '=']).next() == Some(name));
    let missing = declared.iter().filter(|name| !named(name));
    missing
        .map(|name| Finding {
            path: "Cargo.toml".to_owned(),
            line: line_of(name).map_or(1, |index| index + 1),
            message: format!("{name} has no line in {DOCUMENT}: what for, why this one"),
        })
        .collect()
}

const DOCUMENT: &str = "docs/DEPENDENCIES.md";

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[workspace.dependencies]\nours = { path = \"ours\" }\ntokio = \"1\"\ntokio-util = \"0.7\"\n\
                            alias = { package = \"real-name\", version = \"1\" }\n";

    #[test]
    fn our_own_crates_need_no_line() {
        let mut names = declared(MANIFEST).expect("a valid manifest");
        names.sort();
        assert_eq!(names, ["real-name", "tokio", "tokio-util"]);
    }

    #[test]
    fn a_longer_name_does_not_explain_a_shorter_one() {
        let names = ["tokio".to_owned(), "tokio-util".to_owned()];
        let found = unexplained(MANIFEST, &names, "| `tokio-util` | codecs |\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].message.starts_with("tokio has no line"), "{}", found[0]);
        assert_eq!(found[0].line, 3);
    }
}
