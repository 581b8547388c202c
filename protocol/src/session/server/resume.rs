//! Sans-io: tickets of a session: resuming with one, giving them out, and ending once the session went on elsewhere.

use std::time::Instant;

use super::{Event, Session, SessionError, State};
use crate::SessionId;
use crate::frame::{ClientBody, ClientFrame, CloseCode};
use crate::grants::Identity;
use crate::session::resume::Ticket;

/// ```text
///            the driver sealed one         half of its life is over, or the token is another
/// Issuing ──────────────────────► RenewAt ───────────────────────────────────────────────► Issuing
///     └────────── resumed elsewhere ─┴────► Superseded
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tickets {
    /// This server issues none, or the session is not open.
    Off,
    /// The driver was asked for one.
    Issuing,
    /// The client has one; it gets a fresher one then.
    RenewAt(Instant),
    /// The session goes on elsewhere: no ticket is given out any more, and the connection ends then.
    Superseded(Instant),
}

/// What an honoured ticket gives.
#[derive(Debug, Clone)]
pub struct Resumption {
    /// The ticket's.
    pub session: SessionId,
    /// Of this connection: one more than the ticket's.
    pub generation: u32,
    /// Who it is.
    pub identity: Identity,
}

impl Session {
    /// Which of the session's connections this is.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Takes a frame of the control lane that came as early data: whoever recorded it can send it again, so that only
    /// what changes nothing may.
    pub fn handle_early_frame(&mut self, now: Instant, frame: ClientFrame) -> Result<(), SessionError> {
        match &frame.body {
            Some(ClientBody::Connect(connect)) if connect.resume.is_some() => {}
            Some(ClientBody::Subscribe(_)) => {}
            _ => return Err(SessionError::NotEarly),
        }
        self.handle_frame(now, frame)
    }

    /// The ticket was honoured.
    pub fn resume(&mut self, now: Instant, resumption: Resumption) {
        let State::Checking { id, .. } = self.state else { return };
        self.id = resumption.session;
        self.generation = resumption.generation;
        self.open(now, id, resumption.identity, true);
    }

    /// What the next ticket says, where one is to be issued; `now` and `unix_ms` are the same moment.
    pub fn ticket(&self, now: Instant, unix_ms: u64, worker: u8) -> Option<Ticket> {
        let (identity, lifetime) = (self.identity()?, self.settings.tickets?);
        let at = |left: std::time::Duration| {
            unix_ms.saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
        };
        Some(Ticket {
            session: self.id,
            generation: self.generation,
            user: identity.user.clone(),
            grants: std::sync::Arc::clone(&identity.grants),
            subscriptions: identity.subscriptions.clone(),
            token_expires_ms: identity.expires.map(|end| at(end.saturating_duration_since(now))),
            expires_ms: at(lifetime),
            node: self.settings.node.clone(),
            worker,
        })
    }

    /// The driver sealed [`Session::ticket`], or could not.
    pub fn issued(&mut self, now: Instant, ticket: Option<String>) {
        let Some(lifetime) = self.settings.tickets else { return };
        let superseded = matches!(self.tickets, Tickets::Superseded(_));
        if !superseded {
            self.tickets = Tickets::RenewAt(now + lifetime / 2);
        }
        let ticket = ticket.filter(|_| !superseded);
        match &mut self.state {
            State::Opening { connected, waiting, .. } => {
                connected.1.resume = ticket;
                *waiting -= 1;
                self.open_when_ready(now);
            }
            State::Open { .. } if ticket.is_some() => {
                let plan = self.untold_plan();
                self.ping_aside(now, ticket, plan);
            }
            _ => {}
        }
    }

    /// The session went on elsewhere: this connection ends after the grace, unless the client ends it before.
    pub fn supersede(&mut self, now: Instant) {
        if !self.is_ended() && !matches!(self.tickets, Tickets::Superseded(_)) {
            self.tickets = Tickets::Superseded(now + self.settings.grace);
        }
    }

    pub(super) fn resume_with(&mut self, now: Instant, id: u64, ticket: String, key: Option<String>) {
        if self.settings.tickets.is_none() {
            return self.end(CloseCode::ResumeForeign, "this server issues no tickets");
        }
        if key.as_ref().is_some_and(|key| key.len() > crate::session::resume::MAX_ATTEMPT_KEY_BYTES) {
            return self.end(CloseCode::BadResume, "the key of a resume has at most 128 bytes");
        }
        self.state = State::Checking { id, answer_by: Some(now + self.settings.resume_wait) };
        self.events.push_back(Event::Resume { ticket, key: key.filter(|key| !key.is_empty()) });
    }

    /// Asks for the first ticket, where this server issues any: `connected` waits for it.
    pub(super) fn begin_tickets(&mut self) -> usize {
        if self.settings.tickets.is_none() {
            return 0;
        }
        self.tickets = Tickets::Issuing;
        self.events.push_back(Event::Issue);
        1
    }

    /// The token is another: the ticket should be too.
    pub(super) fn renew_ticket(&mut self, now: Instant) {
        if let Tickets::RenewAt(at) = &mut self.tickets {
            *at = now;
        }
    }

    pub(super) fn tickets_timeout(&self) -> Option<Instant> {
        match (&self.state, self.tickets) {
            (State::Checking { answer_by, .. }, _) => *answer_by,
            (State::Open { .. }, Tickets::RenewAt(at)) => Some(at),
            (State::Open { .. } | State::Opening { .. }, Tickets::Superseded(at)) => Some(at),
            _ => None,
        }
    }

    pub(super) fn tend_tickets(&mut self, now: Instant) {
        if self.tickets_timeout().is_none_or(|at| at > now) {
            return;
        }
        if let State::Checking { answer_by, .. } = &mut self.state {
            *answer_by = Some(now + self.settings.resume_wait);
            self.events.push_back(Event::Unanswered);
        } else if let Tickets::RenewAt(_) = self.tickets {
            self.tickets = Tickets::Issuing;
            self.events.push_back(Event::Issue);
        } else {
            self.end(CloseCode::Superseded, "the session was resumed on another connection");
        }
    }
}
