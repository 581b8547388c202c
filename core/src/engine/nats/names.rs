//! What our streams and subjects are called.

use tidegate_protocol::NodeId;

use super::super::{LogPosition, PartitionId};

/// Begins with prefix and region, so that several may share the servers.
#[derive(Debug, Clone)]
pub(super) struct Names {
    base: String,
}

impl Names {
    pub(super) fn new(prefix: &str, region: &str) -> Self {
        Self { base: format!("{prefix}-{region}") }
    }

    pub(super) fn log_stream(&self, partition: u16) -> String {
        format!("{}-log-{partition}", self.base)
    }

    pub(super) fn log_subject(&self, partition: u16) -> String {
        format!("{}.log.{partition}", self.base)
    }

    pub(super) fn snapshot_stream(&self) -> String {
        format!("{}-snapshots", self.base)
    }

    pub(super) fn snapshot_subjects(&self) -> String {
        format!("{}.snapshot.>", self.base)
    }

    /// Beside a partition's snapshots: nothing of interest.
    pub(super) fn probe(&self, partition: PartitionId) -> String {
        format!("{}.snapshot.{}.probe", self.base, partition.0)
    }

    /// All that is there of a partition's snapshots.
    pub(super) fn snapshots_of(&self, partition: PartitionId) -> String {
        format!("{}.snapshot.{}.>", self.base, partition.0)
    }

    /// A snapshot being written by one term is nobody else's.
    pub(super) fn pieces(&self, partition: PartitionId, term: u64, at: LogPosition) -> String {
        format!("{}.snapshot.{}.{term}.{}", self.base, partition.0, at.0)
    }

    pub(super) fn lease_stream(&self) -> String {
        format!("KV_{}", self.base)
    }

    pub(super) fn lease_subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.base)
    }

    pub(super) fn partition(&self, partition: PartitionId) -> String {
        self.lease_subject(&format!("part.{}", partition.0))
    }

    pub(super) fn node(&self, node: &NodeId) -> String {
        self.lease_subject(&format!("node.{}", encoded(node.as_str())))
    }

    /// What a subject of the lease table is about.
    pub(super) fn key_of(&self, subject: &str) -> Option<Key> {
        let key = subject.strip_prefix("$KV.")?.strip_prefix(&self.base)?.strip_prefix('.')?;
        if let Some(partition) = key.strip_prefix("part.") {
            return Some(Key::Partition(PartitionId(partition.parse().ok()?)));
        }
        Some(Key::Node(NodeId::new(&decoded(key.strip_prefix("node.")?)?)))
    }
}

/// An entry of the lease table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    Node(NodeId),
    Partition(PartitionId),
}

/// Node names have dots; keys of NATS take few characters.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("={b:02x}") }).collect()
}

fn decoded(key: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'=' {
            bytes.push(*first);
            continue;
        }
        let (hex, tail) = rest.split_first_chunk::<2>()?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_of_a_node_is_a_key_and_comes_back() {
        let names = Names::new("tidegate", "eu-1");
        for name in ["core-1", "core.example.org:7000", "größer = ✓", "*", ">", "a b"] {
            let node = NodeId::new(name);
            let subject = names.node(&node);
            let key = subject.strip_prefix("$KV.tidegate-eu-1.node.").expect("a key of nodes");
            assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b)), "{key}");
            assert_eq!(names.key_of(&subject), Some(Key::Node(node)));
        }
        let partition = PartitionId(17);
        assert_eq!(names.key_of(&names.partition(partition)), Some(Key::Partition(partition)));
        for subject in
            ["$KV.tidegate-eu-1.shape", "$KV.tidegate-eu-10.part.1", "$KV.tidegate-eu-1.node.=zz", ""]
        {
            assert_eq!(names.key_of(subject), None, "{subject}");
        }
    }
}
