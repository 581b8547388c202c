//! Sans-io: what is said on a link beside frames, to messages and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::schema::{self, Beside, BesideBody};
use super::{MAX_NODE_BYTES, WireError, fleet};
use crate::link::fleet::{EdgeState, FleetEntry, MAX_RELAY_BYTES, Relayed};
use crate::link::{Directory, DirectoryNode, DirectoryPartition, Hello, Welcome};
use crate::{NodeId, Region};

/// What is said beside frames. The first word of each stream: a `Hello` on the control stream, an `Open` on others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Whoever dials says who it is.
    Hello(Hello),
    /// Answers a hello.
    Welcome(Welcome),
    /// Answers a hello: why not, for people.
    Refused(String),
    /// Who owns what.
    Directory(Arc<Directory>),
    /// The edge wants to know something.
    Ask {
        /// Echoed.
        id: u64,
        /// What.
        what: Bytes,
    },
    /// Answers an `Ask`.
    Answer {
        /// The question's.
        id: u64,
        /// `None`: there is no answer.
        answer: Option<Bytes>,
    },
    /// Asks for the link of a partition: frames follow.
    Open {
        /// Which one.
        partition: u16,
    },
    /// Answers an `Open`: frames follow.
    Opened {
        /// Of the owner.
        term: u64,
        /// Identity of the partition's log.
        epoch: u64,
    },
    /// The edge says how it is.
    Announce(EdgeState),
    /// All edges that the core knows, by name, those that left included.
    Fleet(Arc<Vec<FleetEntry>>),
    /// The edge has something for another one. Answered by an `Answer`: empty, if it is passed on; `busy`; or none, where
    /// there is no such edge.
    Relay {
        /// Echoed.
        id: u64,
        /// For whom.
        to: NodeId,
        /// What: at most [`MAX_RELAY_BYTES`].
        payload: Bytes,
    },
    /// What came from another edge.
    Relayed(Relayed),
}

impl Control {
    pub(super) fn to_wire(&self) -> Beside {
        let body = match self {
            Self::Hello(hello) => BesideBody::Hello(schema::Hello {
                lowest: u32::from(*hello.versions.start()),
                highest: u32::from(*hello.versions.end()),
                node: hello.node.as_str().to_owned(),
                region: hello.region.as_str().to_owned(),
                program: hello.program.clone(),
            }),
            Self::Welcome(welcome) => BesideBody::Welcome(schema::Welcome {
                version: u32::from(welcome.version),
                node: welcome.node.as_str().to_owned(),
                region: welcome.region.as_str().to_owned(),
                partitions: u32::from(welcome.partitions),
            }),
            Self::Refused(reason) => BesideBody::Refused(reason.clone()),
            Self::Directory(directory) => BesideBody::Directory(to_table(directory)),
            Self::Ask { id, what } => BesideBody::Ask(schema::Ask { id: *id, what: what.clone() }),
            Self::Answer { id, answer } => {
                BesideBody::Answer(schema::Answer { id: *id, answer: answer.clone() })
            }
            Self::Open { partition } => BesideBody::Open(u32::from(*partition)),
            Self::Opened { term, epoch } => BesideBody::Opened(schema::Opened { term: *term, epoch: *epoch }),
            Self::Announce(state) => BesideBody::Announce(fleet::to_state(state)),
            Self::Fleet(edges) => BesideBody::Fleet(fleet::to_list(edges)),
            Self::Relay { id, to, payload } => BesideBody::Relay(schema::Relay {
                id: *id,
                to: to.as_str().to_owned(),
                payload: payload.clone(),
            }),
            Self::Relayed(Relayed { from, payload }) => BesideBody::Relayed(schema::Relayed {
                from: from.as_str().to_owned(),
                payload: payload.clone(),
            }),
        };
        Beside { body: Some(body) }
    }

    pub(super) fn from_wire(message: Beside) -> Result<Self, WireError> {
        Ok(match message.body.ok_or(WireError::Unknown)? {
            BesideBody::Hello(wire) => {
                // What a later program may say beyond our numbers, it does not speak with us.
                let highest = u16::try_from(wire.highest).unwrap_or(u16::MAX);
                let lowest = u16::try_from(wire.lowest).unwrap_or(u16::MAX);
                Self::Hello(Hello {
                    versions: lowest..=highest,
                    node: super::node(&wire.node)?,
                    region: region(&wire.region)?,
                    program: text(wire.program)?,
                })
            }
            BesideBody::Welcome(wire) => Self::Welcome(Welcome {
                version: small(wire.version)?,
                node: super::node(&wire.node)?,
                region: region(&wire.region)?,
                partitions: small(wire.partitions)?,
            }),
            BesideBody::Refused(reason) => Self::Refused(reason),
            BesideBody::Directory(wire) => Self::Directory(Arc::new(from_table(wire)?)),
            BesideBody::Ask(wire) => Self::Ask { id: wire.id, what: wire.what },
            BesideBody::Answer(wire) => Self::Answer { id: wire.id, answer: wire.answer },
            BesideBody::Open(partition) => Self::Open { partition: small(partition)? },
            BesideBody::Opened(wire) => Self::Opened { term: wire.term, epoch: wire.epoch },
            BesideBody::Announce(wire) => Self::Announce(fleet::from_state(wire)?),
            BesideBody::Fleet(wire) => Self::Fleet(Arc::new(fleet::from_list(wire)?)),
            BesideBody::Relay(wire) => {
                Self::Relay { id: wire.id, to: super::node(&wire.to)?, payload: payload(wire.payload)? }
            }
            BesideBody::Relayed(wire) => {
                Self::Relayed(Relayed { from: super::node(&wire.from)?, payload: payload(wire.payload)? })
            }
        })
    }
}

fn to_table(directory: &Directory) -> schema::Directory {
    let mut names: Vec<&NodeId> = directory.nodes.iter().map(|node| &node.id).collect();
    let mut places: BTreeMap<&NodeId, usize> =
        names.iter().enumerate().map(|(place, name)| (*name, place)).collect();
    let mut owners = Vec::with_capacity(directory.partitions.len());
    for partition in &directory.partitions {
        owners.push(match &partition.owner {
            Some(owner) => {
                let place = *places.entry(owner).or_insert_with(|| {
                    names.push(owner);
                    names.len() - 1
                });
                u32::try_from(place + 1).expect("nodes are few")
            }
            None => 0,
        });
    }
    schema::Directory {
        names: names.iter().map(|name| name.as_str().to_owned()).collect(),
        addresses: directory.nodes.iter().map(|node| node.address.as_ref().to_owned()).collect(),
        owners,
        terms: directory.partitions.iter().map(|partition| partition.term).collect(),
    }
}

fn from_table(wire: schema::Directory) -> Result<Directory, WireError> {
    if wire.names.len() > MAX_NODES
        || wire.addresses.len() > wire.names.len()
        || wire.owners.len() > usize::from(u16::MAX)
        || wire.terms.len() != wire.owners.len()
    {
        return Err(WireError::Field("the size of a directory"));
    }
    let names: Vec<NodeId> = wire.names.iter().map(|name| super::node(name)).collect::<Result<_, _>>()?;
    let mut nodes = Vec::with_capacity(wire.addresses.len());
    for (id, address) in names.iter().zip(wire.addresses) {
        nodes.push(DirectoryNode { id: id.clone(), address: Arc::from(text(address)?) });
    }
    let mut partitions = Vec::with_capacity(wire.owners.len());
    for (owner, term) in wire.owners.into_iter().zip(wire.terms) {
        let owner = match usize::try_from(owner).unwrap_or(usize::MAX).checked_sub(1) {
            Some(place) => Some(names.get(place).cloned().ok_or(WireError::Field("an owner"))?),
            None => None,
        };
        partitions.push(DirectoryPartition { owner, term });
    }
    Ok(Directory { nodes, partitions })
}

pub(super) fn region(name: &str) -> Result<Region, WireError> {
    if name.len() > MAX_NODE_BYTES || name.chars().any(char::is_control) {
        return Err(WireError::Field("the name of a region"));
    }
    Ok(Region::new(name))
}

/// An address, or the name of a version.
fn text(text: String) -> Result<String, WireError> {
    if text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
        return Err(WireError::Field("a text"));
    }
    Ok(text)
}

fn payload(payload: Bytes) -> Result<Bytes, WireError> {
    if payload.len() > MAX_RELAY_BYTES {
        return Err(WireError::Field("the payload for an edge"));
    }
    Ok(payload)
}

fn small(number: u32) -> Result<u16, WireError> {
    u16::try_from(number).map_err(|_| WireError::Field("a number"))
}

/// Nodes that a directory may name.
const MAX_NODES: usize = 4096;
const MAX_TEXT_BYTES: usize = 512;
