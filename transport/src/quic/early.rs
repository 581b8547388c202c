//! The time between a client's early data (0-RTT) and the end of its handshake.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::{VarInt, ZeroRttAccepted};
use tidegate_protocol::frame::CloseCode;
use tokio::time::Sleep;

/// A handshake that is not complete. Whoever records a client's first flight can send it again, and gets as far as
/// this and no further.
pub(crate) struct Early {
    /// `None` once it was ready.
    complete: Option<ZeroRttAccepted>,
    deadline: Pin<Box<Sleep>>,
}

impl Early {
    /// A replay never completes: it may take up a connection for `limit` and no longer.
    pub(crate) fn new(complete: ZeroRttAccepted, limit: Duration) -> Self {
        Self { complete: Some(complete), deadline: Box::pin(tokio::time::sleep(limit)) }
    }

    /// Ready when the handshake is complete, or with an error when it never will be.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &quinn::Connection,
    ) -> Poll<Result<(), ()>> {
        if let Some(complete) = &mut self.complete {
            if Pin::new(complete).poll(cx).is_pending() {
                if self.deadline.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let code = CloseCode::ConnectTimeout.number();
                connection.close(VarInt::from_u32(code), b"no handshake in time");
            } else if connection.close_reason().is_none() {
                return Poll::Ready(Ok(()));
            }
            self.complete = None;
        }
        // quinn says "complete" of a connection that ended, too. What came early on such a one stays early: anybody can
        // end a connection in its handshake, whose first keys are no secret.
        Poll::Ready(Err(()))
    }
}
