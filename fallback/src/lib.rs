//! Server halves of the carriers for clients that cannot reach Tidegate over QUIC: WebSocket, long poll, the
//! session-less channel poll and Server-Sent Events, and the HTTP conventions that they share.
//!
//! Nothing here listens, routes or spawns: the edge accepts connections, speaks HTTP and hands over requests.

pub mod channel_poll;
pub mod events;
pub mod http;
pub mod ladder;
pub mod longpoll;
pub mod websocket;
