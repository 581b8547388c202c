//! Sans-io: what edges tell each other of themselves through the cores: how many sessions they have, how many more they
//! could take, and whether they go away.
//!
//! Each edge announces itself to every core that it is linked to; each core tells all its edges of all that it knows.
//! Whoever hears of an edge several times believes what is newest, and forgets whom it has not heard of for too long.

mod table;

use std::time::Duration;

use bytes::Bytes;
use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use crate::{NodeId, Region};

pub use table::{FleetTable, Known, News};

/// What an edge says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeState {
    /// Its name: the one in its hello, which its certificate is for.
    pub node: NodeId,
    /// Where it stands: as in its hello.
    pub region: Region,
    /// Where clients find it: URLs as SDKs take them, at most [`MAX_ENDPOINTS`].
    pub endpoints: Vec<String>,
    /// Live ones.
    pub sessions: u64,
    /// Clients that it admits at most, per second.
    pub rate: u32,
    /// How many of those are not coming now, per second.
    pub slack: u32,
    /// Whether it takes clients.
    pub condition: EdgeCondition,
    /// When its process began, milliseconds of Unix time. Of two processes with one name the later one counts.
    pub started_unix_ms: u64,
    /// Grows with everything that the process says of itself.
    pub sequence: u64,
}

impl EdgeState {
    /// Later than another word of the same edge?
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.age_rank() > other.age_rank()
    }

    /// Whether others decide otherwise by this than by `before`: another state or place, or numbers that are off by more
    /// than a twentieth (of [`FEW`] at least).
    pub fn differs_from(&self, before: &Self) -> bool {
        let far = |one: u64, other: u64| one.abs_diff(other) * 20 > one.max(other).max(FEW);
        self.condition != before.condition
            || self.endpoints != before.endpoints
            || self.region != before.region
            || self.started_unix_ms != before.started_unix_ms
            || far(self.sessions, before.sessions)
            || far(u64::from(self.rate), u64::from(before.rate))
            || far(u64::from(self.slack), u64::from(before.slack))
    }

    fn age_rank(&self) -> (u64, u64) {
        (self.started_unix_ms, self.sequence)
    }
}

/// Whether an edge takes clients.
///
/// ```text
/// Serving ◄──► LameDuck ──► Draining ──► Gone
///    └────────────┴─────────────┴─────────►┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EdgeCondition {
    /// It takes them.
    Serve,
    /// It keeps those that it has, and is not to be sent more.
    LameDuck,
    /// It sends away those that it has.
    Drain {
        /// Which drain: of several at once, the lower one goes first.
        drain: u64,
    },
    /// It ended in order: its last word. Cores keep it for as long as an older one might still be on its way.
    Leave,
}

/// An edge, as one core knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetEntry {
    /// What it said last.
    pub state: EdgeState,
    /// How long ago the core heard it.
    pub age: Duration,
}

/// As statuses of nodes show it.
impl Serialize for FleetEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { state, age } = self;
        let (name, drain) = match state.condition {
            EdgeCondition::Serve => ("serving", None),
            EdgeCondition::LameDuck => ("lame_duck", None),
            EdgeCondition::Drain { drain } => ("draining", Some(drain)),
            EdgeCondition::Leave => ("gone", None),
        };
        let mut shown = serializer.serialize_struct("FleetEntry", 10)?;
        shown.serialize_field("node", state.node.as_str())?;
        shown.serialize_field("region", state.region.as_str())?;
        shown.serialize_field("endpoints", &state.endpoints)?;
        shown.serialize_field("sessions", &state.sessions)?;
        shown.serialize_field("rate", &state.rate)?;
        shown.serialize_field("slack", &state.slack)?;
        shown.serialize_field("state", name)?;
        shown.serialize_field("drain", &drain)?;
        shown.serialize_field("started_ms", &state.started_unix_ms)?;
        shown.serialize_field("age_ms", &u64::try_from(age.as_millis()).unwrap_or(u64::MAX))?;
        shown.end()
    }
}

/// Why a payload for another edge is not on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// No core in reach is linked to an edge of that name.
    #[error("no such edge")]
    NoSuchEdge,
    /// Too many at once, from here or for there. Nothing was passed on.
    #[error("too many payloads between edges")]
    Busy,
    /// Longer than [`MAX_RELAY_BYTES`].
    #[error("too long for a payload between edges")]
    TooLong,
    /// The connection ended before the core answered: it may have passed the payload on.
    #[error("the core did not say whether it passed the payload on")]
    Unknown,
}

/// What came from another edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    /// Who sent it: a core vouches for the name.
    pub from: NodeId,
    /// Nobody between looked at it.
    pub payload: Bytes,
}

/// Between two lists of a core to its edges, at least, if it knows so many. A fleet of thousands is told less often: what a
/// core sends to one edge stays below about 100 KB/s.
pub fn pace(edges: usize) -> Duration {
    PACE.max(Duration::from_millis(1) * u32::try_from(edges).unwrap_or(u32::MAX))
}

/// Between two lists at most, though nothing that matters has changed: ages stay true.
pub fn refresh(edges: usize) -> Duration {
    pace(edges) * 4
}

/// After which an edge that nobody hears of any more is forgotten: [`EXPIRY`], or longer in a fleet so large that an edge in
/// it may be heard of less often.
pub fn expiry(edges: usize) -> Duration {
    EXPIRY.max(refresh(edges) * 3)
}

/// Between two announcements of an edge whose state does not change.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// Without a word from an edge for so long, a core takes it for gone.
pub const EXPIRY: Duration = Duration::from_secs(5);
/// Edges that a table holds; further ones are not taken.
pub const MAX_EDGES: usize = 4096;
/// URLs of one edge.
pub const MAX_ENDPOINTS: usize = 8;
/// The longest of them, bytes.
pub const MAX_ENDPOINT_BYTES: usize = 256;
/// The longest payload from edge to edge, bytes.
pub const MAX_RELAY_BYTES: usize = 4096;
/// Payloads that a core passes on for one edge, per second.
pub const RELAYS_PER_SECOND: u32 = 1000;

const PACE: Duration = Duration::from_millis(250);
/// Numbers below are compared as if they were this.
const FEW: u64 = 20;
