//! Sans-io: what a drain is told and tells.

use std::time::Duration;

use tidegate_protocol::NodeId;

use super::{ConnectionKey, LeaseAsk, SlotTicket};

/// A connection that is to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The driver's name for it.
    pub connection: ConnectionKey,
    /// How it can leave.
    pub class: Class,
    /// Its rank in the reconnect plan.
    pub rank: u32,
    /// Those of one tenant use one part of the channel tier: no more than an eighth of them at once, or their share.
    pub tenant: u64,
}

/// How a connection can leave. Idle ones go before busy ones; the other two have moments of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Makes the next connection before it leaves, and nothing is under way on it.
    Idle,
    /// The same, with requests or deliveries under way.
    Busy,
    /// A long poll: told with the answer that it is waiting for. Before all others when its hold ends
    /// ([`super::Drainer::handle_poll_ended`]), else last.
    LongPoll,
    /// Knows nothing of `goaway`: is closed, and comes back. They are spread over the whole time.
    BreakOnly,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// The session had been resumed on another one.
    Resumed,
    /// The client said that it needs it no more.
    Done,
    /// In another way: closed, or lost.
    Broken,
}

/// Where a drain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Others hear that the node takes nobody more.
    LameDuck,
    /// Clients are asked to move.
    Move,
    /// Nobody more is.
    Pause,
    /// Over.
    End,
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Begin or end being a lame duck: not ready, not advertised, admitting nobody.
    LameDuck(bool),
    /// Ask a node for places; its answer goes to [`super::Drainer::handle_lease`].
    Ask {
        /// Whom.
        target: NodeId,
        /// For how many.
        ask: LeaseAsk,
    },
    /// Give back the places of a lease from an index on.
    Return {
        /// Whose lease.
        target: NodeId,
        /// Its number.
        lease: u32,
        /// The first that is not needed.
        from: u16,
    },
    /// Ask a client to move.
    Goaway {
        /// Which one.
        connection: ConnectionKey,
        /// Where to.
        target: NodeId,
        /// To be shown there.
        ticket: SlotTicket,
        /// From now until it is to dial.
        after: Duration,
        /// From now until its present connection is closed.
        deadline: Duration,
    },
    /// Close a connection, with advice to come back at once.
    Close {
        /// Which one.
        connection: ConnectionKey,
        /// Where a place is kept for it, and the ticket for it; without one it follows its plan.
        place: Option<(NodeId, SlotTicket)>,
        /// The deadline is near.
        forced: bool,
    },
    /// How far it is; once a second.
    Progress(Progress),
    /// At this rate it will not be done in time: said when that begins.
    Behind {
        /// Clients per second that the deadline needs.
        needed: f64,
        /// Clients per second that the targets grant.
        granted: f64,
    },
    /// It is over: the last event.
    Done(Progress),
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Connections that there were, those that came meanwhile included.
    pub total: usize,
    /// Moved by themselves.
    pub moved: usize,
    /// Closed as was planned for them.
    pub closed: usize,
    /// Closed because of the deadline.
    pub forced: usize,
    /// Ended by themselves.
    pub left: usize,
    /// Asked to move, and still here.
    pub in_flight: usize,
    /// Still here.
    pub remaining: usize,
    /// Places per second that targets grant now.
    pub rate: f64,
    /// Until it is done at this rate; `None` where nothing moves.
    pub eta: Option<Duration>,
    /// True: it was called off.
    pub aborted: bool,
}
