//! Sans-io: frames between edge and core. The only place where the two meet.
//!
//! A link is ordered, reliable while it lives, and carries requests (with an id that the reply echoes) one way,
//! replies and publications the other. Everything that a core sends about one channel over one link is in order: the
//! reply to a `Subscribe` comes before the first publication that is not in it.

mod control;
pub mod drain;
pub mod fleet;
pub mod lease;
pub mod wire;

use std::sync::Arc;

use crate::frame::shared::SharedFrame;
use crate::frame::{ErrorCode, Payload, Publication};
use crate::session::resume::{Outcome, Spending, Told};
use crate::{ChannelName, NodeId, Offset, Position, SessionId};

pub use control::{
    Directory, DirectoryNode, DirectoryPartition, FLEET_VERSION, Hello, LINK_VERSIONS, Welcome,
};

/// Whose link it is: tickets name it, so that whoever held a session can be told where it went.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName {
    /// The edge.
    pub node: NodeId,
    /// Its worker.
    pub worker: u8,
}

/// Edge to core.
#[derive(Debug, Clone, PartialEq)]
pub enum EdgeFrame {
    /// Registers interest (if there is none yet) and asks what comes after `position`.
    Subscribe {
        /// Echoed.
        request: u64,
        /// Which one.
        channel: ChannelName,
        /// The last publication that the subscriber has.
        position: Option<Position>,
    },
    /// The last local subscription is gone: no more publications of this channel.
    Unsubscribe {
        /// Which one.
        channel: ChannelName,
    },
    /// Publishes.
    Publish {
        /// Echoed.
        request: u64,
        /// What.
        publish: Publish,
    },
    /// Reads history without registering interest.
    History {
        /// Echoed.
        request: u64,
        /// Which one.
        channel: ChannelName,
        /// What of it.
        range: HistoryRange,
    },
    /// How many sessions of a user are on a channel over this link now; 0: none any more. Anonymous ones count together.
    Presence {
        /// Which one.
        channel: ChannelName,
        /// Who; `None` for anonymous sessions.
        user: Option<Arc<str>>,
        /// How many.
        sessions: u32,
        /// Was said before, to an owner that is gone or over a link that is: nobody is to be told of it as news.
        again: bool,
    },
    /// Whether somebody here wants to be told who joins and leaves a channel.
    Watch {
        /// Which one.
        channel: ChannelName,
        /// From now on, or no longer.
        on: bool,
    },
    /// Asks who is on a channel.
    Members {
        /// Echoed.
        request: u64,
        /// Which one.
        channel: ChannelName,
    },
    /// Spends a resume ticket. Goes to the partition of the session, which remembers it.
    Spend {
        /// Echoed.
        request: u64,
        /// What of the ticket counts.
        spending: Spending,
        /// Who issued the ticket.
        holder: LinkName,
    },
}

/// Which part of a channel's history is asked for. By default all, of which an answer holds the newest that fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryRange {
    /// Only what comes after it.
    pub since: Option<Position>,
    /// Only what comes before it: to go on where an answer was cut.
    pub before: Option<Offset>,
    /// At most so many, the newest; 0 for all.
    pub limit: u32,
}

/// A publish on its way to its sequencer.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// Where.
    pub channel: ChannelName,
    /// What.
    pub payload: Payload,
    /// Idempotency key.
    pub key: Option<String>,
    /// Who; `None` for the backend and for anonymous sessions.
    pub user: Option<Arc<str>>,
    /// At-most-once: no offset, not stored.
    pub ephemeral: bool,
}

/// Core to edge.
#[derive(Debug, Clone, PartialEq)]
pub enum CoreFrame {
    /// Answers `Subscribe` and `History`.
    Recovered {
        /// The request's.
        request: u64,
        /// What comes after the position that was asked for.
        result: Result<Recovery, LinkError>,
    },
    /// Answers `Publish`.
    Published {
        /// The request's.
        request: u64,
        /// `None` for an ephemeral one.
        result: Result<Option<Position>, LinkError>,
    },
    /// A publication of a channel that this link is interested in.
    Publication(Delivery),
    /// An ephemeral item of such a channel.
    Ephemeral(Delivery),
    /// Continuity of a channel was lost: its numbering begins anew at `position`.
    Rebased {
        /// Which one.
        channel: ChannelName,
        /// Its new head.
        position: Position,
    },
    /// Somebody joined or left a channel that this link watches: a `join` or `leave` frame.
    PresenceChanged(Delivery),
    /// Answers `Members`.
    Members {
        /// The request's.
        request: u64,
        /// Who is there.
        result: Result<Members, LinkError>,
    },
    /// This partition's owner stops: what it has not answered before this frame it has not handled, and somebody else will.
    /// Nothing of the partition follows on this link.
    Moved {
        /// Which one.
        partition: u16,
        /// Who has it next, where that is known.
        to: Option<NodeId>,
    },
    /// Answers `Spend`.
    Spent {
        /// The request's.
        request: u64,
        /// Whether the ticket is honoured.
        result: Result<Outcome, LinkError>,
    },
    /// A session of which this link may hold connections was resumed or revoked. Comes before the answer to the `Spend`
    /// that caused it, where that is the same link's.
    SessionMoved {
        /// Which one.
        session: SessionId,
        /// The generation of the connection that has it now.
        generation: u32,
        /// What happened.
        told: Told,
    },
}

/// One item on its way to the local subscribers of a link.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Where.
    pub channel: ChannelName,
    /// Its number; 0 for an ephemeral item.
    pub offset: Offset,
    /// The frame to deliver, with its encodings.
    pub frame: Arc<SharedFrame>,
}

/// What a channel's history says of a position.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    /// The head of the channel.
    pub position: Position,
    /// True: `publications` is everything between the position that was asked for and the head (or what `before` says),
    /// or, where it answers `Subscribe`, the first of it; see [`Recovery::cut_at`].
    pub recovered: bool,
    /// In order. Empty where not recovered, except for a `History` request: then what is retained, or the newest of it.
    pub publications: Vec<Publication>,
}

impl Recovery {
    /// The last publication of what was too much for one answer: the rest is to be asked for from here.
    pub fn cut_at(&self) -> Option<Offset> {
        let last = Offset(self.publications.last()?.offset);
        (self.recovered && last < self.position.offset).then_some(last)
    }
}

/// Who is on a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Users and how many sessions each has there, by name; cut at the bound of the channel.
    pub users: Vec<(Arc<str>, u32)>,
    /// All users, also those that are not listed.
    pub users_total: u64,
    /// Sessions, anonymous ones too.
    pub sessions: u64,
    /// False where there are more users than are known one by one: then `users` is a part of them.
    pub exact: bool,
}

/// A request that failed in the core.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LinkError {
    /// What kind.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl LinkError {
    /// Perhaps handled, perhaps not.
    pub fn outcome_unknown() -> Self {
        let message = "the outcome is unknown: try again, with the same key".to_owned();
        Self { code: ErrorCode::Unavailable, message }
    }
}
