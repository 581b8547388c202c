//! Sans-io: the messages of a link. Fields are added, never given another meaning: both ends may be of different releases.

use bytes::Bytes;
use prost::{Message, Oneof};

pub(super) use crate::frame::Position;

/// Edge to core.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Edge {
    #[prost(oneof = "EdgeBody", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub(super) body: Option<EdgeBody>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum EdgeBody {
    #[prost(message, tag = "1")]
    Subscribe(Subscribe),
    #[prost(string, tag = "2")]
    Unsubscribe(String),
    #[prost(message, tag = "3")]
    Publish(Publish),
    #[prost(message, tag = "4")]
    History(History),
    #[prost(message, tag = "5")]
    Presence(Presence),
    #[prost(message, tag = "6")]
    Watch(Watch),
    #[prost(message, tag = "7")]
    Members(AskMembers),
    #[prost(message, tag = "8")]
    Spend(Spend),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Subscribe {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(string, tag = "2")]
    pub(super) channel: String,
    #[prost(message, optional, tag = "3")]
    pub(super) position: Option<Position>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Publish {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(string, tag = "2")]
    pub(super) channel: String,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(super) data: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(super) data_base64: Option<Bytes>,
    #[prost(string, optional, tag = "5")]
    pub(super) key: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub(super) user: Option<String>,
    #[prost(bool, tag = "7")]
    pub(super) ephemeral: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct History {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(string, tag = "2")]
    pub(super) channel: String,
    #[prost(message, optional, tag = "3")]
    pub(super) since: Option<Position>,
    #[prost(uint32, tag = "4")]
    pub(super) limit: u32,
    #[prost(uint64, optional, tag = "5")]
    pub(super) before: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Presence {
    #[prost(string, tag = "1")]
    pub(super) channel: String,
    #[prost(string, optional, tag = "2")]
    pub(super) user: Option<String>,
    #[prost(uint32, tag = "3")]
    pub(super) sessions: u32,
    #[prost(bool, tag = "4")]
    pub(super) again: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Watch {
    #[prost(string, tag = "1")]
    pub(super) channel: String,
    #[prost(bool, tag = "2")]
    pub(super) on: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AskMembers {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(string, tag = "2")]
    pub(super) channel: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Spend {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) session: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub(super) generation: u32,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub(super) key: Option<Vec<u8>>,
    #[prost(bool, tag = "5")]
    pub(super) early: bool,
    #[prost(uint64, tag = "6")]
    pub(super) remember_ms: u64,
    #[prost(string, tag = "7")]
    pub(super) node: String,
    #[prost(uint32, tag = "8")]
    pub(super) worker: u32,
}

/// Core to edge.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Core {
    #[prost(oneof = "CoreBody", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub(super) body: Option<CoreBody>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum CoreBody {
    /// The first part of the list of the reply behind it: items, each behind its length.
    #[prost(bytes = "bytes", tag = "1")]
    Part(Bytes),
    #[prost(message, tag = "2")]
    Recovered(Recovered),
    #[prost(message, tag = "3")]
    Published(Published),
    /// The delimited frame for clients. [`PUBLICATION`] is its tag.
    #[prost(bytes = "bytes", tag = "4")]
    Publication(Bytes),
    /// The delimited frame for clients. [`EPHEMERAL`] is its tag.
    #[prost(bytes = "bytes", tag = "5")]
    Ephemeral(Bytes),
    #[prost(message, tag = "6")]
    Rebased(Rebased),
    /// The delimited frame for clients. [`PRESENCE_CHANGED`] is its tag.
    #[prost(bytes = "bytes", tag = "7")]
    PresenceChanged(Bytes),
    #[prost(message, tag = "8")]
    Members(Members),
    #[prost(message, tag = "9")]
    Moved(Moved),
    #[prost(message, tag = "10")]
    Spent(Spent),
    #[prost(message, tag = "11")]
    SessionMoved(SessionMoved),
}

/// Of [`CoreBody::Publication`], which is written by hand.
pub(super) const PUBLICATION: u8 = 4;
/// Of [`CoreBody::Ephemeral`], which is written by hand.
pub(super) const EPHEMERAL: u8 = 5;
/// Of [`CoreBody::PresenceChanged`], which is written by hand.
pub(super) const PRESENCE_CHANGED: u8 = 7;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Failed {
    #[prost(uint32, tag = "1")]
    pub(super) code: u32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Recovered {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    /// Nothing else counts where it is there.
    #[prost(message, optional, tag = "2")]
    pub(super) failed: Option<Failed>,
    #[prost(message, optional, tag = "3")]
    pub(super) position: Option<Position>,
    #[prost(bool, tag = "4")]
    pub(super) recovered: bool,
    /// The last part of the publications.
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) publications: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Published {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) failed: Option<Failed>,
    #[prost(message, optional, tag = "3")]
    pub(super) position: Option<Position>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Rebased {
    #[prost(string, tag = "1")]
    pub(super) channel: String,
    #[prost(message, optional, tag = "2")]
    pub(super) position: Option<Position>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Members {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) failed: Option<Failed>,
    #[prost(uint64, tag = "3")]
    pub(super) sessions: u64,
    #[prost(bool, tag = "4")]
    pub(super) exact: bool,
    /// The last part of the users.
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) users: Bytes,
    #[prost(uint64, tag = "6")]
    pub(super) users_total: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Member {
    #[prost(string, tag = "1")]
    pub(super) user: String,
    #[prost(uint32, tag = "2")]
    pub(super) sessions: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Moved {
    #[prost(uint32, tag = "1")]
    pub(super) partition: u32,
    #[prost(string, optional, tag = "2")]
    pub(super) to: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Spent {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) failed: Option<Failed>,
    #[prost(uint32, tag = "3")]
    pub(super) outcome: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionMoved {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) session: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(super) generation: u32,
    #[prost(uint32, tag = "3")]
    pub(super) told: u32,
}

/// Beside frames, in both directions.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Beside {
    #[prost(oneof = "BesideBody", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub(super) body: Option<BesideBody>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum BesideBody {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Welcome(Welcome),
    #[prost(string, tag = "3")]
    Refused(String),
    #[prost(message, tag = "4")]
    Directory(Directory),
    #[prost(message, tag = "5")]
    Ask(Ask),
    #[prost(message, tag = "6")]
    Answer(Answer),
    #[prost(uint32, tag = "7")]
    Open(u32),
    #[prost(message, tag = "8")]
    Opened(Opened),
    #[prost(message, tag = "9")]
    Announce(EdgeState),
    #[prost(message, tag = "10")]
    Fleet(Fleet),
    #[prost(message, tag = "11")]
    Relay(Relay),
    #[prost(message, tag = "12")]
    Relayed(Relayed),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(super) lowest: u32,
    #[prost(uint32, tag = "2")]
    pub(super) highest: u32,
    #[prost(string, tag = "3")]
    pub(super) node: String,
    #[prost(string, tag = "4")]
    pub(super) region: String,
    #[prost(string, tag = "5")]
    pub(super) program: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Welcome {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(string, tag = "2")]
    pub(super) node: String,
    #[prost(string, tag = "3")]
    pub(super) region: String,
    #[prost(uint32, tag = "4")]
    pub(super) partitions: u32,
}

/// Names once, and numbers for them: a directory of many partitions stays small.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Directory {
    #[prost(string, repeated, tag = "1")]
    pub(super) names: Vec<String>,
    /// Of the first names, one each: these are the nodes alive.
    #[prost(string, repeated, tag = "2")]
    pub(super) addresses: Vec<String>,
    /// By partition: a name's place among the names, from 1; 0 for none.
    #[prost(uint32, repeated, tag = "3")]
    pub(super) owners: Vec<u32>,
    /// By partition.
    #[prost(uint64, repeated, tag = "4")]
    pub(super) terms: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Ask {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) what: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) answer: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Opened {
    #[prost(uint64, tag = "1")]
    pub(super) term: u64,
    #[prost(uint64, tag = "2")]
    pub(super) epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EdgeState {
    #[prost(string, tag = "1")]
    pub(super) node: String,
    #[prost(string, tag = "2")]
    pub(super) region: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) endpoints: Vec<String>,
    #[prost(uint64, tag = "4")]
    pub(super) sessions: u64,
    #[prost(uint32, tag = "5")]
    pub(super) rate: u32,
    #[prost(uint32, tag = "6")]
    pub(super) slack: u32,
    /// 0: serves; 1: lame duck; 2: drains; 3: leaves.
    #[prost(uint32, tag = "7")]
    pub(super) condition: u32,
    /// Where it drains.
    #[prost(uint64, tag = "8")]
    pub(super) drain: u64,
    #[prost(uint64, tag = "9")]
    pub(super) started_unix_ms: u64,
    #[prost(uint64, tag = "10")]
    pub(super) sequence: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Fleet {
    #[prost(message, repeated, tag = "1")]
    pub(super) edges: Vec<EdgeState>,
    /// Of the same edges, one each.
    #[prost(uint32, repeated, tag = "2")]
    pub(super) ages_ms: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Relay {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(string, tag = "2")]
    pub(super) to: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) payload: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Relayed {
    #[prost(string, tag = "1")]
    pub(super) from: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) payload: Bytes,
}
