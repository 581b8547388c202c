//! Markdown: relative links lead to files that exist; README's commands are real ones.

use std::path::Path;

use super::{File, Finding};

/// Relative links of one document that lead nowhere, or out of the project.
pub(super) fn broken_links(file: &File, root: &Path) -> Vec<Finding> {
    let folder = Path::new(&file.path).parent().unwrap_or_else(|| Path::new(""));
    let mut findings = Vec::new();
    for (line, target) in links(&file.text) {
        let path = target.split(['#', '?']).next().unwrap_or_default();
        if path.is_empty() || target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let joined = if let Some(absolute) = path.strip_prefix('/') {
            Path::new(absolute).to_owned()
        } else {
            folder.join(path)
        };
        let inside = normal(&joined).is_some_and(|inside| root.join(inside).exists());
        if !inside {
            findings.push(file.finding(line, format!("the link to {target} leads nowhere")));
        }
    }
    findings
}

/// Lines of ```sh blocks that call cargo with something that does not exist; `xtask` has the names of our commands.
pub(super) fn unknown_commands(file: &File, xtask: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut shell = false;
    for (index, line) in file.text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            shell = !shell && language.trim() == "sh";
        } else if shell && line.trim_start().starts_with("cargo") && !is_known(line, xtask) {
            findings
                .push(file.finding(index + 1, format!("`{}` is no command of this project", line.trim())));
        }
    }
    findings
}

fn is_known(line: &str, xtask: &[String]) -> bool {
    let words = line.split('#').next().unwrap_or(line).split_whitespace().collect::<Vec<_>>();
    match words.as_slice() {
        ["cargo", "xtask", command, ..] => xtask.iter().any(|name| name == command),
        ["cargo", "run", rest @ ..] => {
            let Some(dashes) = rest.iter().position(|word| *word == "--") else { return false };
            let flags = rest[..dashes].iter().all(|flag| RUN_FLAGS.contains(flag));
            flags && rest.get(dashes + 1).is_some_and(|command| PROGRAM_COMMANDS.contains(command))
        }
        ["cargo", "build", rest @ ..] => rest.iter().all(|flag| RUN_FLAGS.contains(flag)),
        ["cargo", "install", rest @ ..] => rest.contains(&"tidegate"),
        _ => false,
    }
}

/// The targets of `[text](target)` and `![text](target)`, outside code, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        // Every second piece between backticks is code.
        let prose = line.split('`').enumerate().map(|(piece, text)| if piece % 2 == 0 { text } else { "" });
        let prose = prose.collect::<Vec<_>>().join("`");
        for (_, rest) in prose.match_indices("](").map(|(at, mark)| (at, &prose[at + mark.len()..])) {
            if let Some((target, _)) = rest.split_once(')') {
                let target = target.split_whitespace().next().unwrap_or_default();
                found.push((index + 1, target.trim_matches(['<', '>']).to_owned()));
            }
        }
    }
    found
}

/// The path without `.` and `..`; nothing when it leaves the root.
fn normal(path: &Path) -> Option<std::path::PathBuf> {
    use std::path::Component;
    let mut out = std::path::PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::ParentDir if out.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

const RUN_FLAGS: [&str; 6] = ["--release", "--locked", "--quiet", "-p", "--package", "tidegate"];
const PROGRAM_COMMANDS: [&str; 10] =
    ["dev", "serve", "edge", "core", "drain", "publish", "subscribe", "token", "config", "bench"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::file;

    #[test]
    fn links_are_found_outside_code_only() {
        let text = "[a](x.md) and `[b](y.md)`\n```\n[c](z.md)\n```\n![d](<d.svg> \"title\") [e](e.md#part)\n";
        let targets =
            links(text).into_iter().map(|(line, target)| format!("{line}:{target}")).collect::<Vec<_>>();
        assert_eq!(targets, ["1:x.md", "5:d.svg", "5:e.md#part"]);
    }

    #[test]
    fn relative_links_must_lead_to_a_file() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = "[1](Cargo.toml) [2](src/main.rs#L1) [3](https://example.org/x) [4](#here)\n[5](src/none.rs)\n[6](../Cargo.toml)\n";
        let lines = |path| {
            broken_links(&file(path, text), root).into_iter().map(|finding| finding.line).collect::<Vec<_>>()
        };
        assert_eq!(lines("README.md"), [2, 3], "the second leaves the root");
        assert_eq!(broken_links(&file("src/NOTES.md", "[a](../Cargo.toml) [b](main.rs)\n"), root), []);
    }

    #[test]
    fn readme_calls_only_what_exists() {
        let xtask = ["test".to_owned(), "bench".to_owned()];
        let text = "```sh\ncargo run --release -- dev\ncargo xtask test   # everything\ncargo xtask fly\ncargo run -- fly\n\
                    curl http://x\ncargo build --release\n```\n```text\ncargo fly\n```\n";
        let lines = unknown_commands(&file("README.md", text), &xtask)
            .into_iter()
            .map(|finding| finding.line)
            .collect::<Vec<_>>();
        assert_eq!(lines, [4, 5]);
    }
}
