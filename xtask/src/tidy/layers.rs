//! Which crate may depend on which: one direction, checked on what the manifests say.

use super::Finding;
use crate::workspace::Workspace;

/// What the rule needs of a member's manifest.
pub(super) struct Member {
    name: String,
    manifest: String,
    dependencies: Vec<String>,
}

/// The members of the workspace.
pub(super) fn members(workspace: &Workspace) -> Vec<Member> {
    let member = |package: &crate::workspace::Package| Member {
        name: package.name.clone(),
        manifest: format!("{}/Cargo.toml", package.folder(&workspace.root)),
        dependencies: package.dependencies.iter().map(|dependency| dependency.name.clone()).collect(),
    };
    workspace.packages.iter().map(member).collect()
}

/// Looks at every dependency, of whatever kind: a test that needs both edge and core belongs in interop-tests.
pub(super) fn check(members: &[Member]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut report = |member: &Member, message: String| {
        findings.push(Finding { path: member.manifest.clone(), line: 1, message });
    };
    for member in members {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == member.name) else {
            report(
                member,
                format!(
                    "{} has no place in the order of crates: an ADR and a line in xtask/src/tidy/layers.rs",
                    member.name
                ),
            );
            continue;
        };
        for dependency in &member.dependencies {
            let ours = members.iter().any(|other| other.name == *dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                report(member, format!("{} must not depend on {dependency}", member.name));
            }
            if member.name == "tidegate-protocol" && NOT_IN_PROTOCOL.contains(&dependency.as_str()) {
                report(member, format!("protocol is sans-io: it must not depend on {dependency}"));
            }
        }
    }
    findings
}

const PROTOCOL: &str = "tidegate-protocol";
const TRANSPORT: &str = "tidegate-transport";
const FALLBACK: &str = "tidegate-fallback";
const CERTS: &str = "tidegate-certs";
const CORE: &str = "tidegate-core";
const EDGE: &str = "tidegate-edge";
const CLIENT: &str = "tidegate-client";
const PROGRAM: &str = "tidegate";

/// protocol <- transport <- fallback <- edge, sdk/rust; transport <- core; certs <- edge, core, sdk/rust (ADR 0005), and
/// the tests of transport and fallback. Edge and core never see each other; nothing depends on interop-tests or xtask.
const ALLOWED: [(&str, &[&str]); 10] = [
    (PROTOCOL, &[]),
    (TRANSPORT, &[PROTOCOL, CERTS]),
    (FALLBACK, &[PROTOCOL, TRANSPORT, CERTS]),
    (CERTS, &[]),
    (CORE, &[PROTOCOL, TRANSPORT, CERTS]),
    (EDGE, &[PROTOCOL, TRANSPORT, FALLBACK, CERTS]),
    (CLIENT, &[PROTOCOL, TRANSPORT, FALLBACK, CERTS]),
    (PROGRAM, &[PROTOCOL, TRANSPORT, FALLBACK, CERTS, CORE, EDGE, CLIENT]),
    ("tidegate-interop-tests", &[PROTOCOL, TRANSPORT, FALLBACK, CERTS, CORE, EDGE, CLIENT, PROGRAM]),
    ("xtask", &[]),
];
const NOT_IN_PROTOCOL: [&str; 4] = ["tokio", "quinn", "hyper", "tracing-subscriber"];

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(members: &[(&str, &[&str])]) -> Vec<String> {
        let members = members.iter().map(|(name, dependencies)| Member {
            name: (*name).to_owned(),
            manifest: format!("{name}/Cargo.toml"),
            dependencies: dependencies.iter().map(|dependency| (*dependency).to_owned()).collect(),
        });
        check(&members.collect::<Vec<_>>()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn edge_and_core_never_see_each_other() {
        let found = messages(&[(EDGE, &[CORE, PROTOCOL, "quinn"]), (CORE, &[TRANSPORT]), (PROTOCOL, &[])]);
        assert_eq!(found, ["tidegate-edge/Cargo.toml:1: tidegate-edge must not depend on tidegate-core"]);
    }

    #[test]
    fn protocol_has_no_runtime() {
        assert_eq!(messages(&[(PROTOCOL, &["serde", "tokio"])]).len(), 1);
        assert!(messages(&[(PROTOCOL, &["serde", "prost"])]).is_empty());
    }

    #[test]
    fn nothing_depends_on_the_tests() {
        let tests: (&str, &[&str]) = ("tidegate-interop-tests", &[EDGE, CORE]);
        assert_eq!(
            messages(&[(PROGRAM, &["tidegate-interop-tests"]), tests, (EDGE, &[]), (CORE, &[])]).len(),
            1
        );
    }

    #[test]
    fn a_new_crate_needs_a_reason() {
        assert!(messages(&[("tidegate-utils", &[])])[0].contains("an ADR"));
    }
}
