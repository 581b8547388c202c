//! Sans-io: what a session is told at start, what it asks of its driver, and what ends it.

use std::sync::Arc;
use std::time::Duration;

use crate::frame::CloseCode;
use crate::link;
use crate::namespace::Namespaces;
use crate::{ChannelName, NodeId, Position, Region};

/// What all sessions of an edge share.
#[derive(Debug)]
pub struct Settings {
    /// Told in `connected`.
    pub node: NodeId,
    /// Told in `connected`.
    pub region: Region,
    /// Rules of channels.
    pub namespaces: Namespaces,
    /// Whether a session needs no token.
    pub anonymous: bool,
    /// From an open connection to its `connect` frame.
    pub connect_timeout: Duration,
    /// Between pings.
    pub ping: Duration,
    /// From a ping to its pong.
    pub pong: Duration,
    /// Subscriptions of one session.
    pub max_subscriptions: usize,
    /// Questions to the core that are not answered; the session wants no input at the limit.
    pub max_requests: usize,
    /// Bytes of one payload.
    pub max_payload: usize,
    /// Bytes of a token.
    pub max_token: usize,
    /// How long a resume ticket is valid; `None` where none are issued or honoured.
    pub tickets: Option<Duration>,
    /// From a resume to the end of the session's older connections.
    pub grace: Duration,
    /// For the core to say whether a ticket is spent.
    pub resume_wait: Duration,
}

/// What the driver must do.
#[derive(Debug)]
pub enum Event {
    /// Ask whether the client may come in, with [`Session::take_slot`]; then call [`Session::let_in`], at the moment that was
    /// named, or [`Session::turn_away`], or [`Session::refuse`]. Only after [`Session::ask_first`].
    Knock,
    /// Check the token (`None`: allow or refuse an anonymous session), then call [`Session::admit`] or
    /// [`Session::refuse`].
    Authenticate {
        /// As the client gave it.
        token: Option<String>,
    },
    /// Check the ticket, then call [`Session::resume`] or [`Session::refuse`].
    Resume {
        /// As the client gave it.
        ticket: String,
        /// The client's name for the attempt.
        key: Option<String>,
    },
    /// What [`Event::Resume`] asked for should have been answered by now. Comes again until it is.
    Unanswered,
    /// Seal [`Session::ticket`], then call [`Session::issued`].
    Issue,
    /// The session is open.
    Opened,
    /// The connection is old enough to be renewed: call [`Session::renew`] or [`Session::renew_later`].
    Renew,
    /// Ask the core, then call [`Session::recovered`] with the same slot and ask.
    Subscribe {
        /// The session's name for the subscription.
        slot: u32,
        /// Tells this question from an older one about the same slot.
        ask: u32,
        /// True for a new subscription; false where a known one goes on.
        begins: bool,
        /// Which one.
        channel: ChannelName,
        /// The last publication that the client has.
        position: Option<Position>,
        /// What waits of a higher rank goes first. May differ from the one before.
        rank: i8,
    },
    /// The subscription counts for who is on its channel, until it is gone. Comes again where `watch` changes.
    Present {
        /// The session's name for it.
        slot: u32,
        /// Which one.
        channel: ChannelName,
        /// Who; `None` for an anonymous session.
        user: Option<Arc<str>>,
        /// Whether to deliver who joins and leaves.
        watch: bool,
    },
    /// The subscription is gone; its slot is free again.
    Unsubscribe {
        /// The session's name for it.
        slot: u32,
        /// Which one.
        channel: ChannelName,
    },
    /// Ask the core, then call [`Session::published`].
    Publish {
        /// The request's id.
        id: u64,
        /// What.
        publish: link::Publish,
    },
    /// Ask the core, then call [`Session::history`].
    History {
        /// The request's id.
        id: u64,
        /// Which one.
        channel: ChannelName,
        /// Only what comes after it.
        since: Option<Position>,
        /// At most so many, 0 for all.
        limit: u32,
    },
    /// Ask the core, then call [`Session::presence`].
    Members {
        /// The request's id.
        id: u64,
        /// Which one.
        channel: ChannelName,
    },
    /// Check the token, then call [`Session::refreshed`].
    Refresh {
        /// The request's id.
        id: u64,
        /// The new token.
        token: String,
    },
    /// Send what is queued, then end the connection so. The last event.
    End {
        /// The code.
        code: CloseCode,
        /// For people.
        reason: String,
    },
}

/// A frame that the client may not send, or send now. Ends the session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Something before `connect`.
    #[error("the first frame must be connect")]
    NotConnected,
    /// `connect` twice.
    #[error("this connection has had its connect frame")]
    AlreadyConnected,
    /// A frame without a body.
    #[error("a frame without a known body")]
    UnknownFrame,
    /// Something else than an ephemeral publish by datagram.
    #[error("a datagram can only hold ephemeral publishes")]
    BadDatagram,
    /// Something else than a resume or a subscribe before the handshake was complete.
    #[error("as early data, only connect with a resume and subscribe are taken")]
    NotEarly,
}

impl SessionError {
    /// What the session ends with.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::NotConnected | Self::AlreadyConnected | Self::BadDatagram | Self::NotEarly => {
                CloseCode::OutOfOrder
            }
            Self::UnknownFrame => CloseCode::BadFrame,
        }
    }
}
