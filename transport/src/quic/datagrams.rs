//! Datagrams towards the client, and when there are too many of them.

use std::time::Instant;

use crate::clock;

/// QUIC sends datagrams before anything of any stream: a channel of ephemeral items that floods would have the whole
/// link. While half of their buffer is taken none is added, and then for a round trip; what is not taken goes by stream,
/// where it has its turn.
///
/// What the buffer holds goes out in its order. Were it full, QUIC would drop the oldest, of whichever channel.
#[derive(Debug)]
pub(crate) struct Datagrams {
    buffer: u32,
    paused: Option<Instant>,
}

impl Datagrams {
    /// `buffer`: QUIC's for what it could not send yet, bytes.
    pub(crate) fn new(buffer: u32) -> Self {
        Self { buffer, paused: None }
    }

    /// Whether one may be sent now.
    pub(crate) fn are_open(&mut self, connection: &quinn::Connection) -> bool {
        if self.paused.is_some_and(|until| clock::now() < until) {
            return false;
        }
        self.paused = None;
        if connection.datagram_send_buffer_space() < self.buffer as usize / 2 {
            self.paused = Some(clock::now() + connection.rtt());
            return false;
        }
        true
    }
}
