//! The shape of a Rust file: where it lies, how it begins, how long it is.

use super::source::{code_only, without_tests};
use super::{File, Finding};

/// Looks at one Rust file.
pub(super) fn check(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    if file.path == "mod.rs" || file.path.ends_with("/mod.rs") {
        findings.push(file.finding(1, "a module `foo` lives in `foo.rs` beside `foo/`, never in `mod.rs`"));
    }
    if !file.text.starts_with("//!") {
        findings.push(file.finding(1, "begin with a `//!` line that says what this module is for"));
    }
    if !file.is_test() {
        let (_, test_lines) = without_tests(&code_only(&file.text));
        let lines = file.text.lines().count() - test_lines;
        if lines > MAX_LINES {
            findings.push(file.finding(
                MAX_LINES + 1,
                format!("{lines} lines that are not tests: look for the seam (at most {MAX_LINES})"),
            ));
        }
    }
    findings
}

const MAX_LINES: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::file;

    fn long(lines: usize) -> String {
        "//! Long.\n".to_owned() + &"const A: u8 = 0;\n".repeat(lines - 1)
    }

    #[test]
    fn mod_rs_is_refused() {
        assert_eq!(check(&file("edge/src/policy/mod.rs", "//! Policies.\n"))[0].line, 1);
        assert!(check(&file("edge/src/policy.rs", "//! Policies.\n")).is_empty());
    }

    #[test]
    fn a_file_begins_with_what_it_is_for() {
        assert_eq!(check(&file("edge/src/node.rs", "use std::fmt;\n")).len(), 1);
    }

    #[test]
    fn a_thousand_lines_is_the_end() {
        assert!(check(&file("edge/src/node.rs", &long(1_000))).is_empty());
        let found = check(&file("edge/src/node.rs", &long(1_001)));
        assert_eq!((found.len(), found[0].line), (1, 1_001));
    }

    #[test]
    fn tests_do_not_count() {
        let text = long(990) + "#[cfg(test)]\nmod tests {\n" + &"    // x\n".repeat(100) + "}\n";
        assert!(check(&file("edge/src/node.rs", &text)).is_empty());
        assert!(check(&file("interop-tests/tests/sim/main.rs", &long(2_000))).is_empty());
    }
}
