//! The seam between logic and network: what a connection is to the worker that owns it, links between our own
//! nodes, and the only code that reads the clock or the OS's entropy.

pub mod clock;
mod connection;
pub mod keys;
pub mod link;
pub mod netem;
pub mod quic;

pub use connection::{Closing, Connection, Inbound, Lane, PathStats, RecvError, Sent, TransportKind};
