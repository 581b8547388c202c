//! What the ladder says, and what it is told: dials, moves, suspicion.

use std::sync::Arc;
use std::time::Instant;

use tidegate_fallback::ladder::{AttemptId, DialFailure, LadderEvent, Purpose};
use tidegate_protocol::ConnectionId;
use tidegate_protocol::hint::Hint;
use tidegate_transport::{TransportKind, clock};

use crate::client::ClientEvent;
use crate::endpoint::Endpoint;
use crate::transport::{Cause, DialError, Dialed, Lost};
use crate::{ClientError, Transport};

use super::{Driver, answer, network};

impl Driver {
    /// Does what the ladder says.
    pub(super) fn obey(&mut self, event: LadderEvent) {
        let now = clock::now();
        match event {
            LadderEvent::Dial { attempt, transport } => self.dial(now, attempt, transport),
            LadderEvent::Abandon { attempt } => self.abandon(now, attempt),
            LadderEvent::Use { attempt } => self.hand_to_session(now, attempt),
            LadderEvent::Probe => self.probe(now),
            LadderEvent::Failed { purpose: Purpose::Need } => self.find_none(now),
            LadderEvent::Failed { purpose: Purpose::Request } => self.refuse_move("it did not open"),
            LadderEvent::Failed { purpose: Purpose::Goaway } => self.session.not_left(now),
            LadderEvent::Failed { .. } => {}
        }
    }

    fn dial(&mut self, now: Instant, attempt: AttemptId, kind: TransportKind) {
        self.last_attempt = attempt;
        let Some(transport) = Transport::of_kind(kind) else { return };
        let leaving = self.ladder.is_leaving();
        let endpoints = self.destination.choose(&self.endpoints, transport, leaving.then_some(attempt));
        let heard = self.heard_sender.clone();
        let mut dialer = self.dialer.clone();
        dialer.slot = self.session.slot(now).as_deref().and_then(Hint::ticket_bytes);
        // Early only where there is nothing to lose: beside another connection the ladder decides first. Nor at another
        // server, whose name may be the same: a ticket for early data is of the one that gave it.
        let may_be_early = self.connections.used().is_empty() && self.early.is_none();
        dialer.early = may_be_early && !self.destination.is_another();
        tracing::debug!(?transport, "dialling");
        let dialing = dialer.dial_any(endpoints, move || {
            let _one_too_many = heard.try_send(attempt);
        });
        self.connections.dial(attempt, transport, Box::pin(dialing));
    }

    /// The server wants to be left.
    pub(super) fn go_away(&mut self, now: Instant, endpoint: Option<Arc<str>>) {
        tracing::debug!(endpoint = endpoint.as_deref(), "leaving the server that asks for it");
        self.tell(ClientEvent::Leaving { endpoint: endpoint.as_deref().map(str::to_owned) });
        let anew = self.destination.set(endpoint);
        if !self.ladder.leave(now, anew) {
            self.session.not_left(now);
        }
    }

    fn abandon(&mut self, now: Instant, attempt: AttemptId) {
        let open = self.connections.remove(attempt);
        if open.is_some_and(|open| open.used) && self.early != Some(attempt) {
            self.session.connection_lost(now, ConnectionId(attempt.0), None, "given up for another");
        }
    }

    fn hand_to_session(&mut self, now: Instant, attempt: AttemptId) {
        let Some(open) = self.connections.get_mut(attempt) else { return };
        open.used = true;
        self.session.connection_opened(now, ConnectionId(attempt.0));
        if let Some(early) = self.early.take().filter(|early| *early != attempt) {
            self.session.connection_lost(now, ConnectionId(early.0), None, "another was faster");
            self.connections.remove(early);
        }
    }

    fn probe(&mut self, now: Instant) {
        let mut by_transport = false;
        for open in self.connections.values().filter(|open| open.used) {
            by_transport |= open.connection.probe();
        }
        if !by_transport {
            self.session.ping(now);
        }
    }

    /// No rung leads there.
    fn find_none(&mut self, now: Instant) {
        // The first dial of an outage is one of many: whoever the plan names next is waited for.
        if !self.session.target().is_first() && self.destination.fall_back(&self.endpoints) {
            tracing::debug!("dialling the app's own addresses");
            return self.ladder.dial(now);
        }
        self.report_no_connection(now);
    }

    fn report_no_connection(&mut self, now: Instant) {
        let id = self.early.take().unwrap_or(self.last_attempt);
        let error = self.dial_error.get_or_insert_with(|| DialError {
            url: self.endpoints.first().map(Endpoint::to_string).unwrap_or_default(),
            lost: Lost::new("no answer in time"),
        });
        let (code, reason) = (error.lost.code, error.lost.reason.clone());
        self.session.connection_lost(now, ConnectionId(id.0), code, &reason);
    }

    pub(super) fn handle_dialed(
        &mut self,
        now: Instant,
        attempt: AttemptId,
        result: Result<(Endpoint, Dialed), DialError>,
    ) {
        let (endpoint, dialed) = match result {
            Ok(dialed) => dialed,
            Err(error) => return self.handle_not_dialed(now, attempt, error),
        };
        // The next dial of this transport begins with what works.
        self.endpoints.sort_by_key(|other| *other != endpoint);
        match dialed {
            Dialed::Open(connection) => {
                self.connections.insert(attempt, connection, None);
                self.handle_opened(now, attempt);
            }
            Dialed::Early(connection, establishing) => {
                self.connections.insert(attempt, connection, Some(establishing));
                if self.early.is_none() && self.connections.used().is_empty() {
                    self.early = Some(attempt);
                    if let Some(open) = self.connections.get_mut(attempt) {
                        open.used = true;
                    }
                    self.session.connecting_early(now, ConnectionId(attempt.0));
                }
            }
        }
    }

    fn handle_opened(&mut self, now: Instant, attempt: AttemptId) {
        if !self.ladder.handle_opened(now, attempt) {
            self.connections.remove(attempt);
        }
    }

    fn handle_not_dialed(&mut self, now: Instant, attempt: AttemptId, error: DialError) {
        let hint = error.lost.code.and_then(|_| Hint::parse(&error.lost.reason));
        if hint.is_some() && self.connections.used().is_empty() {
            // The server's word: it would say the same to whatever is dialled next.
            self.ladder.handle_failed(now, attempt, DialFailure::ByServer);
            self.ladder.stop();
            self.dial_error = Some(error);
            return self.report_no_connection(now);
        }
        if let Some(hint) = hint {
            self.session.put_off_leaving(now, hint);
        }
        let failure = match error.lost.cause {
            Cause::Refused => DialFailure::Refused,
            Cause::Server => DialFailure::ByServer,
            Cause::Network => DialFailure::Failed,
        };
        // What a server said counts more than that another did not answer.
        if self.dial_error.is_none() || error.lost.code.is_some() {
            self.dial_error = Some(error);
        }
        self.ladder.handle_failed(now, attempt, failure);
    }

    /// The handshake of a connection that began early is over.
    pub(super) fn handle_established(
        &mut self,
        now: Instant,
        attempt: AttemptId,
        result: Result<(), Lost>,
        accepted: bool,
    ) {
        match result {
            Ok(()) => {
                tracing::debug!(accepted, "early data");
                if accepted {
                    self.accepted_early = Some(attempt);
                    self.session.connection_established(now, ConnectionId(attempt.0));
                } else {
                    self.session.early_rejected(now, ConnectionId(attempt.0));
                }
                self.handle_opened(now, attempt);
            }
            Err(lost) => {
                // Still the session's: others may be on their way to take its place.
                self.connections.remove(attempt);
                let url = self.endpoints.first().map(Endpoint::to_string).unwrap_or_default();
                self.handle_not_dialed(now, attempt, DialError { url, lost });
            }
        }
    }

    pub(super) fn handle_lost(&mut self, now: Instant, attempt: AttemptId, lost: &Lost) {
        let used = self.connections.remove(attempt).is_some_and(|open| open.used);
        self.ladder.handle_lost(now, attempt, lost.cause == Cause::Server);
        if used {
            self.session.connection_lost(now, ConnectionId(attempt.0), lost.code, &lost.reason);
        }
    }

    /// Where the session does not live on that connection yet, only the ladder can do something.
    pub(super) fn handle_path_suspect(&mut self, now: Instant, attempt: AttemptId) {
        self.session.path_suspect(now, ConnectionId(attempt.0));
        self.ladder.handle_suspect(now, attempt);
    }

    pub(super) fn handle_suspect(&mut self, now: Instant, attempt: AttemptId) {
        self.ladder.handle_suspect(now, attempt);
        if self.connected == Some(attempt)
            && let Some(transport) = self.connections.transport(attempt)
        {
            tracing::debug!(?transport, "the connection is suspect");
            self.tell(ClientEvent::Suspect { transport });
        }
    }

    /// The app says that the network may be another.
    pub(super) fn handle_network_changed(&mut self, now: Instant, key: Option<String>) {
        for open in self.connections.values() {
            open.connection.rebind();
        }
        self.session.network_changed(now);
        if key.is_some() {
            self.network_key = key;
        }
        match (&self.network_key, self.endpoints.first()) {
            (Some(key), _) => self.ladder.handle_network_changed(now, key),
            (None, Some(endpoint)) => self.naming = Some(Box::pin(network::key(endpoint.clone()))),
            (None, None) => {}
        }
    }

    /// The session left a connection: it is let go when what was sent is out.
    pub(super) fn release(&mut self, now: Instant, attempt: AttemptId) {
        self.ladder.handle_lost(now, attempt, true);
        if let Some(open) = self.connections.remove(attempt) {
            self.dialer.tracker.spawn(open.connection.linger());
        }
    }

    pub(super) fn refuse_move(&mut self, reason: &str) {
        if let Some(reply) = self.moving.take() {
            answer(reply, Err(ClientError::NotMoved(reason.to_owned())));
        }
    }
}
