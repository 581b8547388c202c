//! Edge and core as processes of their own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use tempfile::TempDir;

use super::gateway::{ANY, Gateway, http};
use super::{failure, run, stdout, tidegate};

/// A node without a banner, known by its log; killed if a test fails.
struct Node {
    process: Child,
    log: BufReader<ChildStderr>,
    /// What it logged before it was ready.
    said: String,
    api: String,
}

impl Node {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut process = tidegate(folder)
            .args(arguments)
            .args(["--api", ANY, "--workers", "1"])
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().expect("piped"));
        let mut said = String::new();
        let api = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended: {said}");
            said.push_str(&line);
            if line.contains(" ready ") {
                break field(&line, "api=Some(").expect("it is said");
            }
        };
        Self { process, log, said, api: format!("http://{api}") }
    }

    fn publish(&self, folder: &Path, data: &str) -> String {
        stdout(&run(folder, &["publish", "room:1", data, "--api", &self.api]))
    }

    fn terminate(mut self) -> (ExitStatus, String) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.process.wait().unwrap(), rest)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Where it ended in order there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The word behind `name` in a line of the log.
fn field(line: &str, name: &str) -> Option<String> {
    let value = line.split_once(name)?.1;
    Some(value.split([' ', ')', '\n']).next()?.trim_matches('"').to_owned())
}

/// Flags for the certificates of a node in ./certs.
fn identity(node: &str) -> Vec<String> {
    let files = [("ca", "ca".to_owned()), ("certificate", node.to_owned()), ("key", format!("{node}-key"))];
    let flags = files.map(|(key, file)| ["--set".to_owned(), format!("cluster.{key}=certs/{file}.pem")]);
    flags.into_iter().flatten().collect()
}

/// Certificates of `core-1` and `edge-1`, and that core, in the region `eu`; where its links are.
fn core_in_memory(here: &Path) -> (Node, String) {
    for made in [&["init"][..], &["node", "core-1"], &["node", "edge-1"]] {
        stdout(&run(here, &[&["certs"], made, &["--dir", "certs"]].concat()));
    }
    let own = identity("core-1");
    let mut arguments = vec!["core", "--set", "node.name=core-1", "--set", "node.region=eu"];
    arguments.extend(["--set", "core.engine=memory", "--set", "cluster.listen=127.0.0.1:0"]);
    arguments.extend(own.iter().map(String::as_str));
    let core = Node::start(here, &arguments);
    let links = field(&core.said, "links=").expect("it is said").to_owned();
    (core, links)
}

#[test]
fn an_edge_serves_what_a_core_owns() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    let (core, links) = core_in_memory(here);
    let cores = format!("cluster.regions.eu.cores={links}");
    let mut arguments =
        vec!["--set", "node.name=edge-1", "--set", "node.region=us", "--set", "cluster.home=eu"];
    arguments.extend(["--set", &cores]);
    let own = identity("edge-1");
    arguments.extend(own.iter().map(String::as_str));
    let edge = Gateway::start_as(here, &["edge", "--dev"], &arguments);
    let api = edge.address("Backend API");

    // Waits for the link, as any request does.
    let published = stdout(&run(here, &["publish", "room:1", "\"hello\"", "--api", api]));
    assert!(published.contains("\"offset\":1"), "{published}");
    let subscribe = ["subscribe", "room:1", "--url", edge.address("QUIC"), "--from", ":0", "--count", "1"];
    assert_eq!(stdout(&run(here, &subscribe)), "room:1 1 \"hello\"\n");
    assert!(http(api, "GET /readyz").starts_with("HTTP/1.1 200"));
    assert!(http(&core.api, "GET /readyz").starts_with("HTTP/1.1 200"));

    for api in [api, &core.api] {
        let status = stdout(&run(here, &["status", "--api", api]));
        for part in ["Region eu", "16 of 16 partitions have an owner", "core-1", "edge-1"] {
            assert!(status.contains(part), "{part}\n{status}");
        }
        let json = stdout(&run(here, &["status", "--json", "--api", api]));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["ready"], true);
        assert_eq!(json["regions"][0]["partitions"].as_array().map(Vec::len), Some(16), "{json}");
        let region = &json["regions"][0];
        assert_eq!(
            (&region["engine"], &region["capabilities"]["durable"]),
            (&"memory".into(), &false.into())
        );
        let (link, partition) = (&region["links"][0], &region["partitions"][0]);
        assert_eq!((&link["edge"], &link["core"]), (&"edge-1".into(), &"core-1".into()), "{json}");
        assert!(link["rtt_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{json}");
        assert!(link["to_edge_bytes"].is_u64() && partition["lag"].is_u64(), "{json}");
        assert!(partition["tail"].is_u64() && partition["term"].is_u64(), "{json}");
        let shown = watched(here, api);
        assert!(shown.iter().all(|line| line.contains("\"regions\"")), "{shown:?}");
    }
    let text = failure(&run(here, &["publish", "room:1", "1", "--api", &core.api]));
    assert!(text.contains("refused with HTTP 501") && text.contains("linked to it now: edge-1"), "{text}");

    edge.signal("TERM");
    let (status, log) = edge.wait();
    assert!(status.success(), "{log}");
    let (status, log) = core.terminate();
    assert!(status.success() && log.contains("ended"), "{log}");
}

/// What `tidegate status --watch` says first and second.
fn watched(folder: &Path, api: &str) -> Vec<String> {
    let mut watch = tidegate(folder)
        .args(["status", "--json", "--watch", "--api", api])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let lines = lines.take(2).map(Result::unwrap).collect();
    watch.kill().unwrap();
    watch.wait().unwrap();
    lines
}

#[test]
fn a_region_out_of_reach_is_shown_beside_the_others() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    let (core, links) = core_in_memory(here);
    let cores = format!("cluster.regions.eu.cores={links}");
    // Bound, and answers nothing.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = format!("cluster.regions.ap.cores={}", silent.local_addr().unwrap());
    let mut arguments =
        vec!["--set", "node.name=edge-1", "--set", "node.region=us", "--set", "cluster.home=eu"];
    arguments.extend(["--set", &cores, "--set", &nobody]);
    let own = identity("edge-1");
    arguments.extend(own.iter().map(String::as_str));
    let edge = Gateway::start_as(here, &["edge", "--dev"], &arguments);
    let api = edge.address("Backend API");

    // Its channels are served, but the edge is not ready: some that it is to serve are out of reach.
    let published = stdout(&run(here, &["publish", "room:1", "1", "--api", api]));
    assert!(published.contains("\"offset\":1"), "{published}");
    assert!(http(api, "GET /readyz").starts_with("HTTP/1.1 503"));
    let status = stdout(&run(here, &["status", "--api", api]));
    for part in
        ["not ready", "Region ap (NOT IN REACH): 0 of 0", "DOWN", "Region eu, engine memory: 16 of 16"]
    {
        assert!(status.contains(part), "{part}\n{status}");
    }
    let json = stdout(&run(here, &["status", "--json", "--api", api]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let regions = json["regions"].as_array().unwrap();
    assert_eq!((&regions[0]["region"], &regions[0]["ready"]), (&"ap".into(), &false.into()), "{json}");
    assert_eq!((&regions[1]["region"], &regions[1]["ready"]), (&"eu".into(), &true.into()), "{json}");
    assert_eq!(json["ready"], false);

    edge.signal("TERM");
    let (status, log) = edge.wait();
    assert!(status.success(), "{log}");
    let (status, log) = core.terminate();
    assert!(status.success(), "{log}");
}

#[test]
fn a_core_must_not_be_named_as_its_certificate_is_not() {
    let folder = TempDir::new().unwrap();
    for made in [&["init"][..], &["node", "core-1"]] {
        stdout(&run(folder.path(), &[&["certs"], made, &["--dir", "certs"]].concat()));
    }
    let own = identity("core-1");
    let mut arguments =
        vec!["core", "--set", "node.name=core-2", "--set", "core.engine=memory", "--api", ANY];
    arguments.extend(own.iter().map(String::as_str));
    let text = failure(&run(folder.path(), &arguments));
    assert!(text.contains("certs/core-1.pem is for core-1, not for this node, core-2"), "{text}");
}

#[test]
fn serve_keeps_what_it_acknowledged_and_says_where() {
    let folder = TempDir::new().unwrap();
    let mut serve =
        vec!["serve", "--set", "auth.anonymous=true", "--set", "core.partitions=2", "--plain", ANY];
    serve.extend(["--quic", "false", "--tls", "false"]);
    let mut first = Node::start(folder.path(), &serve);
    assert!(first.said.contains("tidegate-data"), "{}", first.said);
    let before = first.publish(folder.path(), "1");
    first.process.kill().unwrap();
    first.process.wait().unwrap();
    let second = Node::start(folder.path(), &serve);
    let after = second.publish(folder.path(), "2");
    assert!(before.contains("\"offset\":1"), "{before}");
    assert_eq!(after, before.replace("\"offset\":1", "\"offset\":2"), "the epoch is the same");
    assert!(folder.path().join("tidegate-data").is_dir());
    let text = failure(&run(folder.path(), &[&serve[..], &["--api", ANY]].concat()));
    assert!(text.contains("in use by another process") && text.contains("`core.local.path`"), "{text}");
    assert!(second.terminate().0.success());
}
