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

/// For fuzz targets: reads `bytes` as a client's; the number of whole things in them.
#[doc(hidden)]
pub fn fuzz_reader(bytes: &[u8], text: bool, limit: usize) -> usize {
    let mut reader = reader::Reader::new(if text { reader::Kind::Text } else { reader::Kind::Binary }, limit);
    let mut whole = 0;
    for chunk in bytes.chunks(61) {
        reader.push(chunk);
        loop {
            match reader.next() {
                Ok(Some(_)) => whole += 1,
                Ok(None) => break,
                Err(_) => return whole,
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests;
