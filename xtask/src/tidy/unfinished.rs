//! What is left for later: marker words, placeholders, tests that are switched off.

use super::source::{code_only, whole_words};
use super::{File, Finding};

/// Looks at one file of code; prose may name the words.
pub(super) fn check(file: &File) -> Vec<Finding> {
    if file.has_extension("md") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for word in MARKERS.into_iter().filter(|word| whole_words(line, word).next().is_some()) {
            findings.push(
                file.finding(index + 1, format!("{word}: finish it, or write it down where work is planned")),
            );
        }
    }
    if file.has_extension("rs") {
        let code = code_only(&file.text);
        for (index, (line, original)) in code.lines().zip(file.text.lines()).enumerate() {
            for placeholder in PLACEHOLDERS.into_iter().filter(|placeholder| line.contains(placeholder)) {
                findings.push(file.finding(index + 1, format!("`{placeholder}..)` is a promise, not code")));
            }
            if line.contains(IGNORE) && !has_reason(original) {
                findings.push(file.finding(
                    index + 1,
                    format!("a test is switched off without a reason: `{IGNORE} = \"..\"]`"),
                ));
            }
        }
    }
    findings
}

fn has_reason(line: &str) -> bool {
    let after = line.split_once(IGNORE).map_or("", |(_, after)| after).trim_start();
    let reason = after.strip_prefix('=').map_or("", str::trim_start);
    // A reason may also begin on the next line.
    reason.is_empty() && after.starts_with('=') || reason.starts_with('"') && !reason.starts_with("\"\"")
}

// Spelled in pieces, so that this file follows its own rule.
const MARKERS: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
const PLACEHOLDERS: [&str; 2] = [concat!("todo", "!("), concat!("unimplemented", "!(")];
const IGNORE: &str = concat!("#[", "ignore");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::file;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(&file(path, text)).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn marker_words_are_found_in_comments_of_any_language() {
        let marker = MARKERS[0];
        assert_eq!(lines("a.rs", &format!("//! A.\n// {marker}: later\n")), [2]);
        assert_eq!(lines("a.js", &format!("// {marker}(me)\n")), [1]);
        assert_eq!(lines("a.md", &format!("We leave no {marker}.\n")), [0_usize; 0]);
        assert_eq!(lines("a.rs", &format!("const {marker}_LIST: u8 = 0;\n")), [0_usize; 0]);
    }

    #[test]
    fn placeholders_are_found_in_code_only() {
        let call = PLACEHOLDERS[1];
        assert_eq!(lines("a.rs", &format!("fn a() {{ {call}) }}\n// {call})\n")), [1]);
    }

    #[test]
    fn a_switched_off_test_needs_a_reason() {
        for (attribute, fine) in [("]", false), (" = \"\"]", false), (" = \"needs root\"]", true)] {
            assert_eq!(
                lines("a.rs", &format!("{IGNORE}{attribute}\nfn a() {{}}\n")).is_empty(),
                fine,
                "{attribute}"
            );
        }
    }
}
