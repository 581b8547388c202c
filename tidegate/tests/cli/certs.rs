//! `tidegate certs`: the CA of a cluster and its nodes' certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::{failure, run, stdout, tidegate};

#[test]
fn certs_are_made_once_and_their_keys_are_the_owners_alone() {
    let folder = TempDir::new().unwrap();
    let certs =
        |arguments: &[&str]| run(folder.path(), &[&["certs"], arguments, &["--dir", "cluster"]].concat());
    let text = failure(&certs(&["node", "core-1"]));
    assert!(text.contains("no cluster CA in cluster") && text.contains("tidegate certs init"), "{text}");

    let said = stdout(&certs(&["init"]));
    assert!(
        said.contains("cluster/ca.pem") && said.contains("`cluster.ca`") && said.contains("until 20"),
        "{said}"
    );
    let text = failure(&certs(&["init"]));
    assert!(text.contains("is there already"), "{text}");

    let said = stdout(&certs(&["node", "core-1", "--host", "10.0.0.1", "--expires", "90d"]));
    for part in ["cluster/core-1.pem", "cluster/core-1-key.pem", "`cluster.certificate`", "`cluster.key`"] {
        assert!(said.contains(part), "{said}");
    }
    for key in ["ca-key.pem", "core-1-key.pem"] {
        let mode = fs::metadata(folder.path().join("cluster").join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }

    let read = || fs::read(folder.path().join("cluster/core-1.pem")).unwrap();
    let first = read();
    let text = failure(&certs(&["node", "core-1"]));
    assert!(text.contains("core-1.pem is there already: replace it with --renew"), "{text}");
    assert_eq!(read(), first);
    stdout(&certs(&["node", "core-1", "--renew"]));
    assert_ne!(read(), first);
    for name in ["not a name", "*.example", "10.0.0.1", "ca"] {
        failure(&certs(&["node", name]));
    }
}

#[test]
fn a_core_asks_for_the_certificate_with_its_own_name() {
    let folder = TempDir::new().unwrap();
    let arguments =
        ["core", "--set", "core.engine=memory", "--set", "node.name=core-1", "--api", "127.0.0.1:0"];
    let text = failure(&run(folder.path(), &arguments));
    assert!(text.contains("`tidegate core` needs `cluster.ca`"), "{text}");
    assert!(text.contains("`tidegate certs node core-1` this node's certificate"), "{text}");

    for made in [&["init"][..], &["node", "core-2"]] {
        stdout(&run(folder.path(), &[&["certs"], made, &["--dir", "."]].concat()));
    }
    let check = tidegate(folder.path())
        .args(["config", "check", "--core", "--set", "core.engine=memory", "--set", "node.name=core-1"])
        .args(["--set", "cluster.ca=ca.pem", "--set", "cluster.certificate=core-2.pem"])
        .args(["--set", "cluster.key=core-2-key.pem"])
        .output()
        .unwrap();
    let text = failure(&check);
    assert!(text.contains("core-2.pem is for core-2, not for this node, core-1"), "{text}");
}
