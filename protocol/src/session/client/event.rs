//! Sans-io: what a client's session tells its driver, and what can go wrong.

use std::sync::Arc;
use std::time::Duration;

use crate::frame::{CloseCode, Ephemeral, ErrorReply, Join, Leave, Presence, Publication, ReconnectPolicy};
use crate::{ChannelName, ConnectionId, Position};

/// A request of the app, as its command named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// What the driver must do or pass on to the app.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// There is no connection: make one, then call `connection_opened` or `connection_lost`.
    Dial,
    /// Nothing comes over this connection any more: dial another beside it. Told again while that leads nowhere.
    Suspect {
        /// Which one.
        connection: ConnectionId,
    },
    /// Something came: the suspicion is over.
    Heard {
        /// Which one.
        connection: ConnectionId,
    },
    /// The server of this connection wants it to be left: dial another beside it. Where that leads nowhere, tell by
    /// `not_left`. Told again while nothing comes of it.
    Goaway {
        /// Which one.
        connection: ConnectionId,
        /// Where to, as host and port; by the same transport if possible. `None`: wherever the app's URLs lead.
        endpoint: Option<Arc<str>>,
    },
    /// It wanted the session to go where it has no right to send it. Nothing is done.
    GoawayIgnored {
        /// Which one.
        connection: ConnectionId,
        /// As it came, at most 255 characters.
        endpoint: String,
    },
    /// The session is on this connection now; the one before is released.
    Moved {
        /// Which one.
        connection: ConnectionId,
    },
    /// The session stays where it is: the connection that it was to move to failed. Drop it.
    MoveFailed {
        /// Which one.
        connection: ConnectionId,
        /// A number of [`CloseCode`], or one of a later version.
        code: u32,
        /// For people.
        reason: String,
    },
    /// The session is through with this connection: close it when what was handed out is sent. Nothing that comes over
    /// it counts any more.
    Release {
        /// Which one.
        connection: ConnectionId,
    },
    /// A ping of the session's own came back.
    RoundTrip {
        /// Over which one.
        connection: ConnectionId,
        /// How long it took.
        round_trip: Duration,
    },
    /// The session is open on a connection: the only one, or the one that it moves to (then `Moved` follows).
    Connected {
        /// Over which one.
        connection: ConnectionId,
        /// Its id: a secret on long poll. The same as before where `resumed`.
        session: String,
        /// The ticket was honoured.
        resumed: bool,
        /// The token's subject.
        user: Option<String>,
        /// Name of the edge.
        node: String,
        /// Its region.
        region: String,
    },
    /// A subscription begins, after every time without a connection anew. Continuity is lost where `was_recovering` and
    /// not `recovered`.
    Subscribed {
        /// Which one.
        channel: ChannelName,
        /// The head of the channel. What was missed follows, where `recovered`.
        position: Position,
        /// Everything after the last position comes.
        recovered: bool,
        /// There was a last position.
        was_recovering: bool,
        /// Begun by the server; the app did not ask for it.
        server: bool,
    },
    /// The next publication of a subscription.
    Publication {
        /// Which one.
        channel: ChannelName,
        /// Where the subscription stands with it.
        position: Position,
        /// The item.
        publication: Publication,
    },
    /// An ephemeral item of a subscription.
    Ephemeral {
        /// Which one.
        channel: ChannelName,
        /// The item.
        ephemeral: Ephemeral,
    },
    /// A user who was not on a watched channel is now.
    Join {
        /// Which one.
        channel: ChannelName,
        /// Who, and when.
        join: Join,
    },
    /// A user who was on a watched channel is not any more.
    Leave {
        /// Which one.
        channel: ChannelName,
        /// Who, and when.
        leave: Leave,
    },
    /// Some of these were not told: what is known of who is on a watched channel may be wrong.
    PresenceGap {
        /// Which one.
        channel: ChannelName,
    },
    /// A subscription ended: it is not taken up again.
    Unsubscribed {
        /// Which one.
        channel: ChannelName,
        /// Why, where the app did not ask for it.
        error: Option<ErrorReply>,
    },
    /// A publish was answered.
    Published {
        /// Which one.
        request: RequestId,
        /// What it became.
        result: Result<Position, RequestError>,
    },
    /// A history request was answered.
    History {
        /// Which one.
        request: RequestId,
        /// What is retained.
        result: Result<History, RequestError>,
    },
    /// A request for who is on a channel was answered.
    Presence {
        /// Which one.
        request: RequestId,
        /// Who is there.
        result: Result<Presence, RequestError>,
    },
    /// A refresh was answered.
    Refreshed {
        /// Which one.
        request: RequestId,
        /// Where refused, the old token stays in force.
        result: Result<(), RequestError>,
    },
    /// Something without an id was refused: an ephemeral publish.
    Error(ErrorReply),
    /// The only connection ended: drop it. `Reconnect`, `NeedToken` or `Ended` follows.
    Closed {
        /// A number of [`CloseCode`], or one of a later version.
        code: u32,
        /// For people.
        reason: String,
        /// What the server wants next.
        policy: ReconnectPolicy,
    },
    /// `Dial` follows after so long.
    Reconnect {
        /// From now.
        delay: Duration,
    },
    /// Get a token and call `refresh`, or `token_unavailable`.
    NeedToken(TokenNeed),
    /// The session is over: nothing more comes.
    Ended {
        /// What ended it.
        code: u32,
        /// For people.
        reason: String,
    },
}

/// Why a token is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenNeed {
    /// The present one expires soon.
    Expiring,
    /// The present one was refused: there is no connection before there is another.
    Refused,
}

/// Answer to a history request.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// The head of the channel.
    pub position: Position,
    /// Nothing is missing between the position that was asked for and the head.
    pub recovered: bool,
    /// In order.
    pub publications: Vec<Publication>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The server's answer.
    #[error("refused with {}: {}", .0.code, .0.message)]
    Refused(ErrorReply),
    /// The connection was lost, and the server may or may not have done it.
    #[error("the connection was lost before the answer came, and it is too late to ask again")]
    Unanswered,
    /// The session ended first.
    #[error("the session ended before the answer came")]
    Ended,
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The session is over.
    #[error("the session has ended")]
    Ended,
    /// The app has as many requests waiting as the configuration allows.
    #[error("too many requests wait for their answers")]
    TooManyRequests,
    /// The app has as many subscriptions as the configuration allows.
    #[error("too many subscriptions")]
    TooManySubscriptions,
    /// There is one already.
    #[error("already subscribed")]
    AlreadySubscribed,
    /// There is none.
    #[error("not subscribed")]
    NotSubscribed,
    /// The payload is over the limit.
    #[error("a payload of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The key is over the limit.
    #[error("an idempotency key has 1 to 128 bytes")]
    BadKey,
    /// The payload is not the JSON that it claims to be.
    #[error("the payload is not one JSON value")]
    BadJson,
}

/// A frame that a server must not send. Ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// `connected` twice.
    #[error("`connected` came twice")]
    AlreadyConnected,
    /// An answer of another kind than its request.
    #[error("an answer does not fit its request")]
    WrongAnswer,
    /// Something that must be there is not.
    #[error("malformed: {0}")]
    Malformed(&'static str),
}

impl SessionError {
    /// What the connection ends with.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::AlreadyConnected | Self::WrongAnswer => CloseCode::OutOfOrder,
            Self::Malformed(_) => CloseCode::BadFrame,
        }
    }
}
