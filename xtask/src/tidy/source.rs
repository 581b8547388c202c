//! Rust source with what is not code blanked out, so that rules can look for words.

/// The source with comments and the contents of strings and characters replaced by spaces. Lines stay where they are.
pub(super) fn code_only(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let in_word = out.chars().next_back().is_some_and(is_word);
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest).filter(|_| !in_word) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' {
            character(rest)
        } else {
            0
        };
        if skip == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let (blanked, after) = rest.split_at(skip);
            out.extend(blanked.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = after;
        }
    }
    out
}

/// Code with its `#[cfg(test)] mod .. { .. }` blocks blanked; takes what `code_only` returned. Also how many lines
/// those blocks have.
pub(super) fn without_tests(code: &str) -> (String, usize) {
    let mut out = String::with_capacity(code.len());
    let mut test_lines = 0;
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        let (before, block) = rest.split_at(start);
        out.push_str(before);
        let length = test_module(block).unwrap_or("#[cfg(test)]".len());
        let (block, after) = block.split_at(length);
        if block.contains('{') {
            test_lines += block.lines().count();
        }
        out.extend(block.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    out.push_str(rest);
    (out, test_lines)
}

/// Whether `code` has `word` as a whole word at the byte `index`.
pub(super) fn is_whole_word(code: &str, index: usize, word: &str) -> bool {
    let before = code[..index].chars().next_back();
    let after = code[index + word.len()..].chars().next();
    !before.is_some_and(is_word) && !after.is_some_and(is_word)
}

/// Where `word` occurs as a whole word.
pub(super) fn whole_words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(index, _)| index).filter(move |index| is_whole_word(code, *index, word))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of an attribute and the module in braces that follows it.
fn test_module(block: &str) -> Option<usize> {
    let open = block.find('{')?;
    let head = block[..open].strip_prefix("#[cfg(test)]")?;
    // Other attributes may stand between; a `;` means that the module, or something else, ended before the brace.
    if head.contains(';') || whole_words(head, "mod").next().is_none() {
        return None;
    }
    let mut depth = 0_usize;
    for (index, c) in block[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return Some(open + index + 1),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut index = 0;
    while index < text.len() {
        if text[index..].starts_with("/*") {
            depth += 1;
            index += 2;
        } else if text[index..].starts_with("*/") {
            depth -= 1;
            index += 2;
            if depth == 0 {
                return index;
            }
        } else {
            index += text[index..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// `r"..."`, `r#"..."#`, `br".."`: no escapes inside.
fn raw_string(text: &str) -> Option<usize> {
    let after_prefix =
        text.strip_prefix("br").or_else(|| text.strip_prefix("cr")).or_else(|| text.strip_prefix('r'))?;
    let content = after_prefix.trim_start_matches('#');
    let hashes = after_prefix.len() - content.len();
    let content = content.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - content.len();
    Some(content.find(&end).map_or(text.len(), |index| start + index + end.len()))
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return index + 1;
        }
    }
    text.len()
}

/// The length of a character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) => quoted(text, '\''),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_blanked_and_lines_kept() {
        let source = "let a = \"tokio \\\" ::\"; // quinn\n/* hyper\n/* nested */ */ let b = r#\"x\"y\"#;\n";
        let code = code_only(source);
        assert_eq!(code.lines().count(), source.lines().count());
        for word in ["tokio", "quinn", "hyper", "nested", "x\"y"] {
            assert!(!code.contains(word), "{code}");
        }
        assert!(code.contains("let a =") && code.contains("let b ="), "{code}");
    }

    #[test]
    fn lifetimes_are_no_characters() {
        assert_eq!(
            code_only("fn f<'a>(x: &'a str) { g('}', '\\'', 'ß') }"),
            "fn f<'a>(x: &'a str) { g(   ,     ,    ) }"
        );
    }

    #[test]
    fn a_word_that_ends_in_r_does_not_begin_a_raw_string() {
        assert_eq!(code_only("macro_for\"x\" end"), "macro_for    end");
    }

    #[test]
    fn test_modules_are_taken_out_and_counted() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { {} }\n}\nfn c() {}\n";
        let (production, lines) = without_tests(code);
        assert_eq!(lines, 4);
        assert!(
            production.contains("fn a()") && production.contains("fn c()") && !production.contains("fn b()")
        );
        assert_eq!(production.lines().count(), code.lines().count());
    }

    #[test]
    fn a_test_module_in_its_own_file_hides_nothing() {
        let (production, lines) = without_tests("#[cfg(test)]\nmod tests;\nmod real { fn a() {} }\n");
        assert_eq!(lines, 0);
        assert!(production.contains("fn a()"));
    }

    #[test]
    fn whole_words_only() {
        assert_eq!(whole_words("tokio tokio_util my_tokio", "tokio").collect::<Vec<_>>(), [0]);
    }
}
