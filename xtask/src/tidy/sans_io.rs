//! Sans-io modules: what decides takes `now` and frames as arguments and never waits, reads a clock or owns a socket.

use super::source::{code_only, whole_words, without_tests};
use super::{File, Finding};

/// Looks at one Rust file.
pub(super) fn check(file: &File) -> Vec<Finding> {
    if !file.text.starts_with(MARK) {
        let owed = must_be_sans_io(&file.path) && !file.is_test();
        return owed
            .then(|| file.finding(1, format!("this module is sans-io by design: begin with `{MARK} ..`")))
            .into_iter()
            .collect();
    }
    let code = code_only(&file.text);
    let (production, _) = without_tests(&code);
    let mut findings = Vec::new();
    for (index, line) in code.lines().enumerate() {
        for name in RUNTIMES.into_iter().filter(|name| uses_crate(line, name)) {
            findings.push(file.finding(index + 1, format!("a sans-io module must not use {name}")));
        }
        for name in TYPES.into_iter().filter(|name| whole_words(line, name).next().is_some()) {
            findings.push(file.finding(index + 1, format!("a sans-io module must not use {name}")));
        }
    }
    // Tests may read the clock once, to have an instant to count from.
    for (index, line) in production.lines().enumerate() {
        if line.contains("Instant::now") {
            findings.push(file.finding(index + 1, "a sans-io module takes `now` as an argument"));
        }
    }
    findings
}

/// Whether DESIGN puts this file among the machines.
fn must_be_sans_io(path: &str) -> bool {
    let Some(in_protocol) = path.strip_prefix("protocol/src/") else {
        return MACHINES.iter().any(|machine| path.starts_with(machine));
    };
    in_protocol != "lib.rs"
}

/// `tokio::..`, `use tokio;` and their families (`tokio_util::..`).
fn uses_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(index, _)| {
        let starts = !line[..index].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let rest = line[index..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        let imported = line[..index].trim_end().ends_with("use");
        starts && (rest.starts_with("::") || imported)
    })
}

const MARK: &str = "//! Sans-io:";
const RUNTIMES: [&str; 4] = ["tokio", "quinn", "hyper", "async_std"];
const TYPES: [&str; 5] = ["SystemTime", "UdpSocket", "TcpStream", "TcpListener", "ToSocketAddrs"];
const MACHINES: [&str; 8] = [
    "transport/src/netem.rs",
    "edge/src/policy/",
    "core/src/channel/",
    "core/src/placement/",
    "core/src/presence.rs",
    "fallback/src/ladder.rs",
    "fallback/src/longpoll/mailbox.rs",
    "fallback/src/longpoll/mailbox/",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::file;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(&file(path, text)).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn runtimes_sockets_and_clocks_are_found() {
        let text = "//! Sans-io: sessions.\nuse tokio::time;\nuse std::net::{IpAddr, UdpSocket};\n\
                    fn a() { let t = std::time::Instant::now(); }\nfn b() { SystemTime::now(); }\nuse tokio_util::codec;\n";
        assert_eq!(lines("protocol/src/session.rs", text), [2, 3, 5, 6, 4]);
    }

    #[test]
    fn talk_about_runtimes_is_fine() {
        let text = "//! Sans-io: sessions, driven by tokio::select elsewhere.\nuse std::net::SocketAddr;\n\
                    const A: &str = \"quinn::Endpoint\";\nfn hyperbole(quinn: u8) { quinn; }\n";
        assert_eq!(lines("protocol/src/session.rs", text), [0_usize; 0]);
    }

    #[test]
    fn tests_may_take_an_instant_but_no_runtime() {
        let text = "//! Sans-io: sessions.\n#[cfg(test)]\nmod tests {\n    fn a() { Instant::now(); }\n    use tokio::test;\n}\n";
        assert_eq!(lines("protocol/src/session.rs", text), [5]);
    }

    #[test]
    fn machines_must_say_that_they_are_sans_io() {
        assert_eq!(lines("protocol/src/session.rs", "//! Sessions.\n"), [1]);
        assert_eq!(lines("edge/src/policy/admission.rs", "//! Admission.\n"), [1]);
        for free in ["protocol/src/lib.rs", "protocol/src/session/tests.rs", "edge/src/node.rs"] {
            assert_eq!(lines(free, "//! Something.\nuse tokio::time;\n"), [0_usize; 0], "{free}");
        }
    }
}
