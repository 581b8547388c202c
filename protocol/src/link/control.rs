//! Sans-io: what the two ends of a link tell each other besides frames: who they are, who owns what, how they are.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::{NodeId, Region};

/// Versions of the link's wire that this program speaks. A field that may be absent needs no new one; a message that the
/// other end must know does, and is sent only where the version agreed on has it.
pub const LINK_VERSIONS: RangeInclusive<u16> = 1..=2;

/// From this version on edges announce themselves, and are told of each other.
pub const FLEET_VERSION: u16 = 2;

/// What whoever dials says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Versions of the wire that it speaks: [`LINK_VERSIONS`].
    pub versions: RangeInclusive<u16>,
    /// Its name; its certificate must be for it.
    pub node: NodeId,
    /// Where it stands.
    pub region: Region,
    /// Version of the program, for people.
    pub program: String,
}

impl Hello {
    /// Speaks the versions of this program.
    pub fn new(node: NodeId, region: Region, program: &str) -> Self {
        Self { versions: LINK_VERSIONS, node, region, program: program.to_owned() }
    }

    /// The highest version that both ends speak; the error says why there is none, for people.
    pub fn agree(&self) -> Result<u16, String> {
        let version = *self.versions.end().min(LINK_VERSIONS.end());
        if version >= *self.versions.start() && version >= *LINK_VERSIONS.start() {
            return Ok(version);
        }
        let spell = |range: &RangeInclusive<u16>| match range.start() == range.end() {
            true => format!("version {}", range.start()),
            false => format!("versions {} to {}", range.start(), range.end()),
        };
        Err(format!(
            "no common version of the link: {} speaks {}, this node {}",
            self.node.as_str(),
            spell(&self.versions),
            spell(&LINK_VERSIONS),
        ))
    }
}

/// Answers a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Spoken from here on.
    pub version: u16,
    /// Who answers; its certificate must be for it.
    pub node: NodeId,
    /// The cluster that it belongs to.
    pub region: Region,
    /// How many partitions that cluster has.
    pub partitions: u16,
}

/// Who owns what in a cluster, as one of its nodes knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// Nodes that are alive.
    pub nodes: Vec<DirectoryNode>,
    /// By number of the partition.
    pub partitions: Vec<DirectoryPartition>,
}

impl Directory {
    /// Where a node's links are.
    pub fn address(&self, node: &NodeId) -> Option<&str> {
        self.nodes.iter().find(|known| known.id == *node).map(|known| &*known.address)
    }

    /// Who owns a partition.
    pub fn owner(&self, partition: u16) -> Option<&NodeId> {
        self.partitions.get(usize::from(partition))?.owner.as_ref()
    }
}

/// A core node, as edges are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryNode {
    /// Its name.
    pub id: NodeId,
    /// Where its links are: `host:port`.
    pub address: Arc<str>,
}

/// A partition, as edges are told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectoryPartition {
    /// Who serves it; `None` where nobody does. Not always among [`Directory::nodes`].
    pub owner: Option<NodeId>,
    /// Grows with every owner.
    pub term: u64,
}
