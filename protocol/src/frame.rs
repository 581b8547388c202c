//! Sans-io: the schema. One set of structs, two encodings: Protobuf (`prost`) and JSON (`serde`).
//!
//! `protocol/tidegate.proto` is the same for other languages; a test proves that it matches. Names of fields and
//! frames in JSON are the names here. Structs carry what was on the wire; the session machines parse them further.

pub mod close;
pub mod codec;
mod json;
pub mod shared;

use bytes::Bytes;
use prost::{Message, Oneof};
use serde::{Deserialize, Serialize};

use crate::frame::json::json_frame;
pub use crate::plan::{Alternative, ReconnectPlan};
pub use close::{CloseCode, ErrorCode, ReconnectPolicy};

/// A frame from a client: an id that the reply echoes (0 where no reply is awaited), and one body.
#[derive(Clone, PartialEq, Message)]
pub struct ClientFrame {
    /// Chosen by the client; replies echo it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// `None` only for a frame of a later protocol: the codec refuses it.
    #[prost(oneof = "ClientBody", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub body: Option<ClientBody>,
}

/// What a client can say.
#[derive(Clone, PartialEq, Oneof)]
pub enum ClientBody {
    /// Opens or resumes the session; the first frame of every connection.
    #[prost(message, tag = "2")]
    Connect(Connect),
    /// Joins a channel.
    #[prost(message, tag = "3")]
    Subscribe(Subscribe),
    /// Leaves a channel.
    #[prost(message, tag = "4")]
    Unsubscribe(Unsubscribe),
    /// Publishes.
    #[prost(message, tag = "5")]
    Publish(Publish),
    /// Reads history.
    #[prost(message, tag = "6")]
    History(HistoryRequest),
    /// Asks who is on a channel.
    #[prost(message, tag = "7")]
    Presence(PresenceRequest),
    /// Replaces the token before it expires.
    #[prost(message, tag = "8")]
    Refresh(Refresh),
    /// Calls the app's backend.
    #[prost(message, tag = "9")]
    Rpc(Rpc),
    /// Answers a ping.
    #[prost(message, tag = "10")]
    Pong(Empty),
    /// Ends the session: nothing more comes from the client.
    #[prost(message, tag = "11")]
    Done(Empty),
    /// Asks for a pong: the client's own probe of its connection.
    #[prost(message, tag = "12")]
    Ping(Empty),
}

/// A frame from the server: the id of the request that it answers (0 for none), and one body.
#[derive(Clone, PartialEq, Message)]
pub struct ServerFrame {
    /// The request's id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// `None` only for a frame of a later protocol; clients ignore it.
    #[prost(oneof = "ServerBody", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18")]
    pub body: Option<ServerBody>,
}

/// What the server can say.
#[derive(Clone, PartialEq, Oneof)]
pub enum ServerBody {
    /// The session is open.
    #[prost(message, tag = "2")]
    Connected(Connected),
    /// A subscription begins; without an id: it begins anew because continuity was lost.
    #[prost(message, tag = "3")]
    Subscribed(Subscribed),
    /// A subscription ended, asked for (id) or not.
    #[prost(message, tag = "4")]
    Unsubscribed(Unsubscribed),
    /// A publish was kept.
    #[prost(message, tag = "5")]
    Published(Published),
    /// Retained publications.
    #[prost(message, tag = "6")]
    History(History),
    /// The new token was taken.
    #[prost(message, tag = "7")]
    Refreshed(Refreshed),
    /// One publication of a subscription.
    #[prost(message, tag = "8")]
    Publication(Publication),
    /// One ephemeral item of a subscription.
    #[prost(message, tag = "9")]
    Ephemeral(Ephemeral),
    /// Asks for a pong; may bring a fresh ticket.
    #[prost(message, tag = "10")]
    Ping(Ping),
    /// A request failed; the session lives on.
    #[prost(message, tag = "11")]
    Error(ErrorReply),
    /// The connection ends.
    #[prost(message, tag = "12")]
    Close(Close),
    /// Answers the client's ping.
    #[prost(message, tag = "13")]
    Pong(Empty),
    /// Who is on a channel.
    #[prost(message, tag = "14")]
    Presence(Presence),
    /// A user's first session joined a channel that the subscription watches.
    #[prost(message, tag = "15")]
    Join(Join),
    /// A user's last session left such a channel.
    #[prost(message, tag = "16")]
    Leave(Leave),
    /// Some of these never came: who keeps a list asks for it again.
    #[prost(message, tag = "17")]
    PresenceGap(PresenceGap),
    /// Asks the client to move to another connection, before this one ends.
    #[prost(message, tag = "18")]
    Goaway(Goaway),
}

/// No fields.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct Empty {}

/// Position on the wire.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Position {
    /// Opaque, at most 64 bytes.
    #[prost(string, tag = "1")]
    pub epoch: String,
    /// The last offset seen.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
}

/// First frame of a connection.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Connect {
    /// JWT; not needed where it came in a header or `?token=`, or where anonymous sessions are allowed.
    #[prost(string, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Ticket of an earlier `connected` or `ping`.
    #[prost(string, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// Random text of the client's, at most 128 bytes: a `resume` that is sent again with the same key is the same
    /// attempt, with another one a theft.
    #[prost(string, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The client takes publications from datagrams too, where the transport has them.
    #[prost(bool, tag = "4")]
    #[serde(skip_serializing_if = "is_false")]
    pub repeats: bool,
    /// The slot of a `goaway`, or of a server that refused: the place that is kept for the client here.
    #[prost(string, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// The client does what `goaway` asks: it moves, and loses nothing.
    #[prost(bool, tag = "6")]
    #[serde(skip_serializing_if = "is_false")]
    pub moves: bool,
}

/// Answer to `connect`.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Connected {
    /// 32 hexadecimal digits. A secret of its holder on long poll.
    #[prost(string, tag = "1")]
    pub session: String,
    /// Ticket to resume this session with; absent where the server issues none.
    #[prost(string, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// The token's subject; absent for anonymous sessions.
    #[prost(string, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The server pings at this interval, milliseconds. Silence for twice as long means that the connection is dead.
    #[prost(uint64, tag = "4")]
    pub ping_ms: u64,
    /// Name of the edge.
    #[prost(string, tag = "5")]
    pub node: String,
    /// Its region.
    #[prost(string, tag = "6")]
    pub region: String,
    /// Until the token expires, milliseconds; absent where it never does. `refresh` before that.
    #[prost(uint64, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Subscriptions that the token asked for: already begun.
    #[prost(message, repeated, tag = "8")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<Subscribed>,
    /// True: the ticket was honoured, and this is the session of before.
    #[prost(bool, tag = "9")]
    #[serde(skip_serializing_if = "is_false")]
    pub resumed: bool,
    /// When and where to come back should this edge vanish; absent where the server makes none.
    #[prost(message, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<ReconnectPlan>,
}

/// Asks the client to move: to open another connection, resume there, and only then leave this one.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Goaway {
    /// Where to: `https://host[:port]`, whatever the transport. Absent: the client chooses among the places it knows.
    #[prost(string, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// To be shown there, in `connect`.
    #[prost(string, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// When to begin, milliseconds from now.
    #[prost(uint64, tag = "3")]
    pub after_ms: u64,
    /// When this connection is closed, milliseconds from now.
    #[prost(uint64, tag = "4")]
    pub deadline_ms: u64,
    /// For people, at most 120 bytes.
    #[prost(string, tag = "5")]
    pub reason: String,
}

/// Asks for a pong.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Ping {
    /// A ticket that takes the place of the one before.
    #[prost(string, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// A plan that takes the place of the one before.
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<ReconnectPlan>,
}

/// Joins a channel.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscribe {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// The last publication that the client has; absent to begin now.
    #[prost(message, optional, tag = "2")]
    #[serde(deserialize_with = "json::optional_object", skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Channels of a higher rank go first, −128 to 127.
    #[prost(sint32, tag = "3")]
    #[serde(skip_serializing_if = "is_zero")]
    pub rank: i32,
    /// True: `join` and `leave` of this channel are wanted.
    #[prost(bool, tag = "4")]
    #[serde(skip_serializing_if = "is_false")]
    pub presence: bool,
}

/// A subscription begins.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscribed {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// The head of the channel when the subscription began.
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// True: everything after the position that the client gave comes, here in `publications` and, where that would
    /// be too much for one frame, in frames after it. False: nothing before `position` comes.
    #[prost(bool, tag = "3")]
    pub recovered: bool,
    /// What was missed, in order. Its last offset is below `position.offset` where the rest follows in frames.
    #[prost(message, repeated, tag = "4")]
    pub publications: Vec<Publication>,
    /// True on a channel that keeps only the latest: offsets may skip, and whatever is newer counts.
    #[prost(bool, tag = "5")]
    #[serde(skip_serializing_if = "is_false")]
    pub conflated: bool,
}

/// Leaves a channel.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Unsubscribe {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
}

/// A subscription ended.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Unsubscribed {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// Why, where the client did not ask for it.
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReply>,
}

/// Publishes. Exactly one of `data` and `data_base64`.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Publish {
    /// Where.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// The payload as JSON text (any JSON value).
    #[prost(bytes = "bytes", optional, tag = "2")]
    #[serde(with = "json::raw", skip_serializing_if = "Option::is_none")]
    pub data: Option<Bytes>,
    /// The payload as bytes; base64 in JSON.
    #[prost(bytes = "bytes", optional, tag = "3")]
    #[serde(with = "json::base64", skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<Bytes>,
    /// Idempotency key, at most 128 bytes: the same key on the same channel is stored once.
    #[prost(string, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// At-most-once: never stored, no offset.
    #[prost(bool, tag = "5")]
    #[serde(skip_serializing_if = "is_false")]
    pub ephemeral: bool,
}

/// A publish was kept (or, ephemeral, passed on).
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Published {
    /// Where.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// What it became; absent for an ephemeral one.
    #[prost(message, optional, tag = "2")]
    #[serde(deserialize_with = "json::optional_object", skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

/// One sequenced item of a channel. Holds nothing per subscriber: one encoding serves all.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Publication {
    /// Where.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// Its number.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// The payload, if it is JSON.
    #[prost(bytes = "bytes", optional, tag = "3")]
    #[serde(with = "json::raw", skip_serializing_if = "Option::is_none")]
    pub data: Option<Bytes>,
    /// The payload, if it is bytes.
    #[prost(bytes = "bytes", optional, tag = "4")]
    #[serde(with = "json::base64", skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<Bytes>,
    /// Who published; absent for the backend and for anonymous sessions.
    #[prost(string, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// When the core numbered it, milliseconds of Unix time.
    #[prost(uint64, tag = "6")]
    pub time_ms: u64,
}

/// One ephemeral item of a channel: at most once, newest first, never stored.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Ephemeral {
    /// Where.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// The payload, if it is JSON.
    #[prost(bytes = "bytes", optional, tag = "2")]
    #[serde(with = "json::raw", skip_serializing_if = "Option::is_none")]
    pub data: Option<Bytes>,
    /// The payload, if it is bytes.
    #[prost(bytes = "bytes", optional, tag = "3")]
    #[serde(with = "json::base64", skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<Bytes>,
    /// Who published.
    #[prost(string, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// When the core saw it, milliseconds of Unix time.
    #[prost(uint64, tag = "5")]
    pub time_ms: u64,
}

/// Reads history.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryRequest {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// Only what comes after it; absent for everything retained.
    #[prost(message, optional, tag = "2")]
    #[serde(deserialize_with = "json::optional_object", skip_serializing_if = "Option::is_none")]
    pub since: Option<Position>,
    /// At most so many, the newest ones; 0 or absent for as many as fit in a frame.
    #[prost(uint32, tag = "3")]
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u32,
}

/// Retained publications, in order.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// The head of the channel.
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// True: nothing is missing between `since` and the head.
    #[prost(bool, tag = "3")]
    pub recovered: bool,
    /// In order.
    #[prost(message, repeated, tag = "4")]
    pub publications: Vec<Publication>,
}

/// Asks who is on a channel.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PresenceRequest {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
}

/// Who is on a channel.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Presence {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// By name; a part of them where not `exact`.
    #[prost(message, repeated, tag = "2")]
    pub users: Vec<PresentUser>,
    /// All users, also those that are not listed.
    #[prost(uint64, tag = "3")]
    pub users_total: u64,
    /// All sessions, anonymous ones too.
    #[prost(uint64, tag = "4")]
    pub sessions: u64,
    /// True: `users` is everybody who has a name.
    #[prost(bool, tag = "5")]
    pub exact: bool,
}

/// One of them.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PresentUser {
    /// Who.
    #[prost(string, tag = "1")]
    pub user: String,
    /// How many sessions of that user are there.
    #[prost(uint32, tag = "2")]
    pub sessions: u32,
}

/// A user who was not on the channel is now. At most once.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Join {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// Who.
    #[prost(string, tag = "2")]
    pub user: String,
    /// When the core heard of it, milliseconds of Unix time.
    #[prost(uint64, tag = "3")]
    pub time_ms: u64,
}

/// A user who was on the channel is not any more. At most once.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Leave {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// Who.
    #[prost(string, tag = "2")]
    pub user: String,
    /// When the core heard of it, milliseconds of Unix time.
    #[prost(uint64, tag = "3")]
    pub time_ms: u64,
}

/// Joins and leaves of a channel were not told.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PresenceGap {
    /// Which one.
    #[prost(string, tag = "1")]
    pub channel: String,
}

/// Replaces the token.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Refresh {
    /// JWT of the same user.
    #[prost(string, tag = "1")]
    pub token: String,
}

/// The new token was taken.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Refreshed {
    /// Until it expires, milliseconds; absent where it never does.
    #[prost(uint64, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

/// Calls the app's backend.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Rpc {
    /// Name of the call.
    #[prost(string, tag = "1")]
    pub method: String,
    /// The argument, if it is JSON.
    #[prost(bytes = "bytes", optional, tag = "2")]
    #[serde(with = "json::raw", skip_serializing_if = "Option::is_none")]
    pub data: Option<Bytes>,
    /// The argument, if it is bytes.
    #[prost(bytes = "bytes", optional, tag = "3")]
    #[serde(with = "json::base64", skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<Bytes>,
}

/// A request failed.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorReply {
    /// One of [`ErrorCode`]; unknown ones are to be treated by `retry` alone.
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// The same request may succeed later.
    #[prost(bool, tag = "3")]
    pub retry: bool,
}

/// The connection ends.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Close {
    /// One of [`CloseCode`].
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// For people, at most 120 bytes.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// What to do next.
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect: Option<Reconnect>,
}

/// What a client does after a close.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Reconnect {
    /// Whether and how.
    #[prost(enumeration = "ReconnectPolicy", tag = "1")]
    #[serde(with = "json::policy")]
    pub policy: i32,
    /// Not before, milliseconds from now; absent where the policy alone decides.
    #[prost(uint64, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    /// The place that is kept for the client at that time: to be shown as `slot` of `connect`.
    #[prost(string, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
}

/// First message on each stream that the server opens: what the length-delimited [`ServerFrame`]s after it belong to.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamHeader {
    /// The subscription.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// True on a stream that carries what was missed, and ends; false on the live one.
    #[prost(bool, tag = "2")]
    #[serde(skip_serializing_if = "is_false")]
    pub catch_up: bool,
    /// Of all publications on the stream.
    #[prost(string, tag = "3")]
    pub epoch: String,
}

json_frame!(ClientFrame, ClientBody, refuse, {
    "connect" => Connect,
    "subscribe" => Subscribe,
    "unsubscribe" => Unsubscribe,
    "publish" => Publish,
    "history" => History,
    "presence" => Presence,
    "refresh" => Refresh,
    "rpc" => Rpc,
    "pong" => Pong,
    "done" => Done,
    "ping" => Ping,
});

json_frame!(ServerFrame, ServerBody, ignore, {
    "connected" => Connected,
    "subscribed" => Subscribed,
    "unsubscribed" => Unsubscribed,
    "published" => Published,
    "history" => History,
    "refreshed" => Refreshed,
    "publication" => Publication,
    "ephemeral" => Ephemeral,
    "ping" => Ping,
    "error" => Error,
    "close" => Close,
    "pong" => Pong,
    "presence" => Presence,
    "join" => Join,
    "leave" => Leave,
    "presence_gap" => PresenceGap,
    "goaway" => Goaway,
});

/// An opaque payload: JSON text that was checked, or bytes.
#[derive(Clone, PartialEq, Eq)]
pub enum Payload {
    /// Text of one JSON value.
    Json(Bytes),
    /// Bytes.
    Binary(Bytes),
}

impl Payload {
    /// Its size, bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(bytes) | Self::Binary(bytes) => bytes.len(),
        }
    }

    /// True for an empty one (bytes only: no JSON value is empty).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// From the two fields of a frame; `None` unless exactly one of them is there.
    pub fn from_fields(data: Option<Bytes>, data_base64: Option<Bytes>) -> Option<Self> {
        match (data, data_base64) {
            (Some(json), None) => Some(Self::Json(json)),
            (None, Some(bytes)) => Some(Self::Binary(bytes)),
            _ => None,
        }
    }

    /// The two fields of a frame, `data` first.
    pub fn into_fields(self) -> (Option<Bytes>, Option<Bytes>) {
        match self {
            Self::Json(json) => (Some(json), None),
            Self::Binary(bytes) => (None, Some(bytes)),
        }
    }
}

impl std::fmt::Debug for Payload {
    /// Kind and size: payloads never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Json(bytes) => write!(f, "Json({} bytes)", bytes.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

impl ClientFrame {
    /// A frame with `id`.
    pub fn new(id: u64, body: ClientBody) -> Self {
        Self { id, body: Some(body) }
    }
}

impl ServerFrame {
    /// A frame that answers request `id`; 0 for none.
    pub fn new(id: u64, body: ServerBody) -> Self {
        Self { id, body: Some(body) }
    }
}

impl From<crate::Position> for Position {
    fn from(position: crate::Position) -> Self {
        Self { epoch: position.epoch.as_str().to_owned(), offset: position.offset.0 }
    }
}

impl From<Position> for crate::Position {
    fn from(position: Position) -> Self {
        Self::new(crate::Epoch::new(&position.epoch), crate::Offset(position.offset))
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero<T: PartialEq + Default>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
pub(crate) mod tests;
