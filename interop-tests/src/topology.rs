//! What a test means by a gateway: a process alone, or the edge of a cluster. The tests of sessions and transports are
//! run with both, unchanged.

use std::path::Path;

/// What stands behind the listeners that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// Edge and core in one process, with its own engine.
    Alone,
    /// An edge with links to two cores, which share a NATS server.
    Cluster,
}

impl Topology {
    /// That of this test binary: the one that is called `cluster` has clusters. `TIDEGATE_TOPOLOGY=cluster` makes any
    /// other do likewise.
    pub fn of_this_process() -> Self {
        let named = std::env::var_os("TIDEGATE_TOPOLOGY").is_some_and(|value| value == "cluster");
        let path = std::env::current_exe().unwrap_or_default();
        if named || is_cluster(&path) { Self::Cluster } else { Self::Alone }
    }
}

/// `target/debug/deps/cluster-0123456789abcdef`
fn is_cluster(test: &Path) -> bool {
    let name = test.file_stem().unwrap_or_default().to_string_lossy();
    let in_deps = test.parent().is_some_and(|folder| folder.ends_with("deps"));
    in_deps && name.split_once('-').is_some_and(|(name, _)| name == "cluster")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_of_clusters_is_told_by_its_name() {
        for (path, expected) in [
            ("/work/target/debug/deps/cluster-0123456789abcdef", true),
            ("/work/target/debug/deps/real-0123456789abcdef", false),
            ("/work/target/debug/deps/cluster_other-0123456789abcdef", false),
            ("/work/target/debug/cluster-bench", false),
        ] {
            assert_eq!(is_cluster(Path::new(path)), expected, "{path}");
        }
    }
}
