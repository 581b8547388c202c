//! The connections of a driver: those that are dialled, those that wait for the ladder's word, those that the session has.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tidegate_fallback::ladder::AttemptId;
use tidegate_protocol::ConnectionId;
use tidegate_protocol::session::client::Session;
use tidegate_transport::clock;
use tokio::sync::mpsc::error::TrySendError;

use crate::Transport;
use crate::endpoint::Endpoint;
use crate::transport::{Connection, DialError, Dialed, Established, Establishing, Inbound, Lost};

pub(super) type Dialing = Pin<Box<dyn Future<Output = Result<(Endpoint, Dialed), DialError>> + Send>>;

/// A handful at most: what the ladder dials, and what the session has or leaves.
#[derive(Default)]
pub(super) struct Connections {
    dialing: BTreeMap<AttemptId, (Transport, Dialing)>,
    open: BTreeMap<AttemptId, Open>,
    /// Who is asked first for what came, in turn.
    turn: u64,
}

/// A connection that takes frames.
pub(super) struct Open {
    pub(super) connection: Connection,
    /// The session has it.
    pub(super) used: bool,
    /// Until the handshake is complete.
    early: Option<Establishing>,
    /// Until it takes another frame.
    room: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// What became of connections.
pub(super) enum Happening {
    Dialed(AttemptId, Result<(Endpoint, Dialed), DialError>),
    /// What became of early data.
    Established(AttemptId, Result<(), Lost>, bool),
    Inbound(AttemptId, Inbound),
    Room,
}

impl Connections {
    pub(super) fn dial(&mut self, attempt: AttemptId, transport: Transport, dialing: Dialing) {
        self.dialing.insert(attempt, (transport, dialing));
    }

    pub(super) fn insert(&mut self, attempt: AttemptId, connection: Connection, early: Option<Establishing>) {
        self.open.insert(attempt, Open { connection, used: false, early, room: None });
    }

    pub(super) fn get(&self, attempt: AttemptId) -> Option<&Open> {
        self.open.get(&attempt)
    }

    pub(super) fn get_mut(&mut self, attempt: AttemptId) -> Option<&mut Open> {
        self.open.get_mut(&attempt)
    }

    /// Ends a dial, or takes a connection out.
    pub(super) fn remove(&mut self, attempt: AttemptId) -> Option<Open> {
        self.dialing.remove(&attempt);
        self.open.remove(&attempt)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Open> {
        self.open.values()
    }

    /// Those that the session has.
    pub(super) fn used(&self) -> Vec<AttemptId> {
        self.open.iter().filter(|(_, open)| open.used).map(|(attempt, _)| *attempt).collect()
    }

    pub(super) fn transport(&self, attempt: AttemptId) -> Option<Transport> {
        Some(self.open.get(&attempt)?.connection.transport)
    }

    /// Hands frames to the connections, to each as many as it takes: one that is stuck is in nobody's way.
    pub(super) fn transmit(&mut self, session: &mut Session) {
        for (attempt, open) in &mut self.open {
            let id = ConnectionId(attempt.0);
            while open.used && open.room.is_none() && session.wants_transmit(id) {
                match open.connection.outbound.try_reserve() {
                    Ok(permit) => match session.poll_transmit_on(clock::now(), id) {
                        Some(transmit) => permit.send(transmit),
                        None => break,
                    },
                    Err(TrySendError::Full(())) => {
                        let outbound = open.connection.outbound.clone();
                        // Closed: its end is on its way through the other queue.
                        open.room = Some(Box::pin(async move { drop(outbound.reserve().await) }));
                    }
                    Err(TrySendError::Closed(())) => break,
                }
            }
        }
    }

    /// The next thing that happens; without `may_read` nothing is read, with `control_only` control lanes alone.
    /// Cancel-safe.
    pub(super) async fn next(&mut self, may_read: bool, control_only: bool) -> Happening {
        std::future::poll_fn(|cx| self.poll_next(cx, may_read, control_only)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, may_read: bool, control_only: bool) -> Poll<Happening> {
        for (attempt, (_, dialing)) in &mut self.dialing {
            if let Poll::Ready(result) = dialing.as_mut().poll(cx) {
                let attempt = *attempt;
                self.dialing.remove(&attempt);
                return Poll::Ready(Happening::Dialed(attempt, result));
            }
        }
        for (attempt, open) in &mut self.open {
            if let Some(room) = &mut open.room
                && room.as_mut().poll(cx).is_ready()
            {
                open.room = None;
                return Poll::Ready(Happening::Room);
            }
            if let Some(early) = &mut open.early
                && let Poll::Ready(result) = early.as_mut().poll(cx)
            {
                open.early = None;
                let (result, accepted) = match result {
                    Ok(Established::Accepted(path)) => {
                        open.connection.established(path);
                        (Ok(()), true)
                    }
                    Ok(Established::Rejected(connection)) => {
                        open.connection = connection;
                        open.room = None;
                        (Ok(()), false)
                    }
                    Err(lost) => (Err(lost), false),
                };
                return Poll::Ready(Happening::Established(*attempt, result, accepted));
            }
        }
        if !may_read || self.open.is_empty() {
            return Poll::Pending;
        }
        self.turn = self.turn.wrapping_add(1);
        let first = (self.turn % self.open.len() as u64) as usize;
        for half in [first..usize::MAX, 0..first] {
            let (skip, take) = (half.start, half.end - half.start);
            for (attempt, open) in self.open.iter_mut().skip(skip).take(take) {
                // Before the handshake is complete nothing comes, and the end is told by its result.
                if open.early.is_none()
                    && let Poll::Ready(inbound) = open.connection.poll_recv(cx, control_only)
                {
                    return Poll::Ready(Happening::Inbound(*attempt, inbound));
                }
            }
        }
        Poll::Pending
    }
}
