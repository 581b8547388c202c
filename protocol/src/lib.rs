//! Sans-io: what travels between clients, edges and cores, and how both ends behave.
//!
//! Nothing here reads a socket, a clock or the OS's entropy: machines are fed with frames and `now`.
//! The normative text is `docs/PROTOCOL.md`; `protocol/tidegate.proto` is the same schema for other languages.

mod ids;
mod position;

pub mod backoff;
pub mod endpoint;
pub mod frame;
pub mod grants;
pub mod hint;
pub mod link;
pub mod namespace;
pub mod placement;
pub mod plan;
pub mod reconnect;
pub mod session;

pub use ids::{ChannelName, ChannelNameError, ConnectionId, NodeId, Region, SessionId, SessionIdError};
pub use position::{Epoch, Offset, Position};
