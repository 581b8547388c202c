//! WebSocket (RFC 6455) over an HTTP/1.1 upgrade or an HTTP/2 extended CONNECT (RFC 8441).
//!
//! [`upgrade`] checks the request and makes the response. Once hyper has handed the connection over, [`downcast`]
//! takes the socket out of hyper's hands and [`WebSocketConnection`] speaks frames over it. Keep nothing of the
//! request across the upgrade: its headers pin hyper's read buffer, 9 KB a connection.

mod connection;
mod handshake;
mod io;
mod reader;

pub use connection::{WebSocketConnection, WebSocketLimits};
pub use handshake::{Subprotocol, Upgrade, UpgradeError, upgrade};
pub use io::{Duplex, WebSocketIo, downcast};

#[cfg(test)]
mod tests;
