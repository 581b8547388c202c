//! A gateway as a process of its own, and the tools against it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use tempfile::TempDir;

use super::{failure, run, stdout, tidegate};

/// `tidegate dev` on ports of its own; killed if a test fails.
pub(crate) struct Gateway {
    process: Child,
    banner: String,
}

impl Gateway {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::start_as(folder, &["dev"], arguments)
    }

    /// Another command that prints the banner.
    pub(crate) fn start_as(folder: &Path, command: &[&str], arguments: &[&str]) -> Self {
        let any =
            ["--quic", ANY, "--tls", ANY, "--plain", ANY, "--http3", ANY, "--api", ANY, "--workers", "1"];
        let mut process = tidegate(folder)
            .args(command)
            .args(any)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut banner = String::new();
        let mut lines = BufReader::new(process.stdout.take().expect("piped"));
        while !banner.contains("End with Ctrl-C.") {
            if lines.read_line(&mut banner).unwrap() == 0 {
                let text = rest(process.stderr.take().expect("piped"));
                panic!("it ended: {banner}{text}");
            }
        }
        Self { process, banner }
    }

    /// The word after a name in the first column.
    pub(crate) fn address(&self, name: &str) -> &str {
        let line = self.banner.lines().find(|line| line.trim_start().starts_with(name)).expect("it is there");
        line.trim_start()[name.len()..].split_whitespace().next().expect("an address")
    }

    pub(crate) fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Its end, and everything that it logged.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let log = rest(self.process.stderr.take().expect("piped"));
        (self.process.wait().unwrap(), log)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Where it ended in order there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn rest(mut stderr: ChildStderr) -> String {
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    text
}

/// One request over a connection of its own: the whole answer.
pub(crate) fn http(base: &str, request: &str) -> String {
    let address = base.strip_prefix("http://").unwrap_or(base).trim_end_matches('/');
    let mut stream = std::net::TcpStream::connect(address.replace("localhost", "127.0.0.1")).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) const ANY: &str = "127.0.0.1:0";

#[test]
fn dev_serves_page_probes_and_tools_and_ends_in_order() {
    let folder = TempDir::new().unwrap();
    let gateway = Gateway::start(folder.path(), &[]);
    let api = gateway.address("Backend API");
    assert!(http(api, "GET /healthz").starts_with("HTTP/1.1 200"));
    assert!(http(api, "GET /readyz").starts_with("HTTP/1.1 200"));
    assert!(http(api, "POST /readyz").starts_with("HTTP/1.1 405"));
    assert!(http(api, "GET /nothing").starts_with("HTTP/1.1 404"));

    let page = gateway.address("Demo page");
    let facts = http(page, "GET /dev.json");
    assert!(facts.contains("content-security-policy: default-src 'none'"), "{facts}");
    let body = facts.split_once("\r\n\r\n").expect("a body").1;
    let facts: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(facts["webtransport"], gateway.address("WebTransport"));
    assert_eq!(facts["websocket"], gateway.address("WebSocket"));
    assert_eq!(facts["longpoll"], gateway.address("Long poll"));
    assert_eq!(facts["publish"], format!("{api}/v1/publish"));
    assert_eq!(facts["certificate_hash"].as_str().map(str::len), Some(44));

    let published = stdout(&run(folder.path(), &["publish", "room:1", "{\"text\":\"hello\"}", "--api", api]));
    assert!(published.contains("\"offset\":1"), "{published}");
    let again = ["publish", "room:1", "no json", "--key", "k", "--api", api];
    assert_eq!(
        stdout(&run(folder.path(), &again)),
        stdout(&run(folder.path(), &again)),
        "the same key is stored once"
    );
    for url in [gateway.address("QUIC"), &gateway.address("WebSocket").replace("/v1/connect", "")] {
        let arguments = ["subscribe", "room:1", "--url", url, "--from", ":0", "--count", "2"];
        let lines = stdout(&run(folder.path(), &arguments));
        assert_eq!(lines, "room:1 1 {\"text\":\"hello\"}\nroom:1 2 \"no json\"\n", "{url}");
    }
    assert!(http(api, "GET /metrics").contains("tidegate_core_publications_total{kind=\"durable\"} 2"));

    gateway.signal("HUP");
    gateway.signal("TERM");
    let (status, log) = gateway.wait();
    assert!(status.success(), "{log}");
    assert!(log.contains("ready") && log.contains("ended"), "{log}");
}

#[test]
fn the_api_key_is_asked_for_and_never_logged() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("key"), "an-api-key-for-these-tests\n").unwrap();
    let gateway = Gateway::start(folder.path(), &["--set", "api.key_files=key", "--set", "log.level=trace"]);
    let api = gateway.address("Backend API");
    let text = failure(&run(folder.path(), &["publish", "room:1", "1", "--api", api]));
    assert!(text.contains("refused with HTTP 401") && text.contains("--api-key-file"), "{text}");
    let with_key = ["publish", "room:1", "1", "--api", api, "--api-key-file", "key"];
    assert!(stdout(&run(folder.path(), &with_key)).contains("\"offset\":1"));
    gateway.signal("INT");
    let (status, log) = gateway.wait();
    assert!(status.success());
    assert!(!log.contains("an-api-key-for-these-tests"));
}

#[test]
fn a_taken_port_names_the_flag_and_the_key_that_change_it() {
    let folder = TempDir::new().unwrap();
    let taken = TcpListener::bind(ANY).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for name in ["tls", "plain", "api"] {
        let mut arguments = vec!["dev", "--set", "node.workers=1", "--set", "log.level=error"];
        let flags = [("--quic", ANY), ("--tls", ANY), ("--plain", ANY), ("--http3", ANY), ("--api", ANY)];
        for (flag, any) in flags {
            arguments.extend([flag, if flag.trim_start_matches('-') == name { &address } else { any }]);
        }
        let text = failure(&run(folder.path(), &arguments));
        assert!(text.contains(&address), "{text}");
        assert!(text.contains(&format!("--{name} or `listen.{name}`")), "{text}");
    }
}

#[test]
fn subscribe_says_why_it_was_not_let_in() {
    let folder = TempDir::new().unwrap();
    let keys = "auth.keys=[{secret = 'a secret that only these tests use'}]";
    let gateway = Gateway::start(folder.path(), &["--set", "auth.anonymous=false", "--set", keys]);
    let url = gateway.address("WebSocket").replace("/v1/connect", "");
    let text = failure(&run(folder.path(), &["subscribe", "room:1", "--url", &url]));
    assert!(text.contains("4004") && text.contains("give a token with --token-file"), "{text}");
    let closed = TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let text = failure(&run(folder.path(), &["subscribe", "room:1", "--url", &format!("ws://{closed}")]));
    assert!(
        text.contains(&closed.to_string()) && text.contains("does --url name its scheme and port?"),
        "{text}"
    );
}

#[test]
fn an_unreachable_api_says_what_to_look_at() {
    let folder = TempDir::new().unwrap();
    let closed = TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let text =
        failure(&run(folder.path(), &["publish", "room:1", "1", "--api", &format!("http://{closed}")]));
    assert!(text.contains(&format!("cannot connect to {closed}")) && text.contains("listen.api"), "{text}");
}
