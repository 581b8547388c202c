//! A session that resumes: its ticket is opened here, and the core asked whether it was spent.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_protocol::frame::CloseCode;
use tidegate_protocol::link::{LinkError, LinkName};
use tidegate_protocol::session::resume::{AttemptKey, Outcome, Spending, Ticket, Told};
use tidegate_protocol::session::server::Resumption;
use tidegate_transport::{RecvError, clock};
use tracing::debug;

use super::{Inner, Session};
use crate::metrics::ResumeResult;
use crate::resume::{OpenError, attempt_key};

/// An attempt to resume that is not decided.
pub(super) struct Resuming {
    ticket: Ticket,
    key: Option<AttemptKey>,
    /// Not to be honoured as early data: asked again once the handshake is complete.
    awaits_handshake: bool,
}

impl Session {
    /// Opens a ticket, and asks whether it was spent.
    pub(super) fn resume(self: &Rc<Self>, inner: &mut Inner, text: &str, key: Option<&str>) {
        let (now, unix_ms) = (clock::now(), clock::unix_ms());
        let ticket = match self.worker.tickets().open(text, unix_ms) {
            Ok(ticket) => ticket,
            Err(error) => {
                let result = match error {
                    OpenError::Malformed => ResumeResult::Malformed,
                    OpenError::Foreign => ResumeResult::Foreign,
                    OpenError::Expired => ResumeResult::Expired,
                };
                return self.refuse(inner, result, error.close_code(), &error.to_string());
            }
        };
        if ticket.identity(now, unix_ms).is_none() {
            let reason = "the token expired: get a new one";
            return self.refuse(inner, ResumeResult::TokenExpired, CloseCode::TokenExpired, reason);
        }
        let key = key.map(attempt_key);
        inner.resuming = Some(Box::new(Resuming { ticket, key, awaits_handshake: false }));
        self.spend(inner);
    }

    /// The core said whether the ticket was spent, or that it cannot.
    pub(super) fn spent(&self, inner: &mut Inner, result: Result<Outcome, LinkError>) {
        if inner.resuming.is_none() {
            // It was too late with its answer, and the ticket honoured here meanwhile.
            if let Ok(Outcome::Theft | Outcome::Revoked) = result {
                inner.machine.end(CloseCode::BadResume, REVOKED);
            }
            return;
        }
        match result {
            Ok(outcome) => {
                if let (Outcome::First | Outcome::Repeated, Some(spending)) = (outcome, self.spending(inner))
                {
                    // Should the core be out of reach soon, this much is known here.
                    self.worker.spend_here(&spending);
                }
                self.decide(inner, outcome);
            }
            Err(_) => self.decide_here(inner),
        }
    }

    /// Nobody said whether the ticket was spent: this process honours it once.
    pub(super) fn decide_here(&self, inner: &mut Inner) {
        if inner.resuming.as_ref().is_some_and(|resuming| resuming.awaits_handshake) {
            // The core did say: not before the handshake is complete.
            return;
        }
        let Some(spending) = self.spending(inner) else { return };
        let outcome = self.worker.spend_here(&spending);
        if matches!(outcome, Outcome::First | Outcome::Repeated) {
            self.worker.metrics().resumes_unchecked.inc();
        }
        self.decide(inner, outcome);
    }

    /// Asks again where the handshake is complete that an attempt waited for. True where it did.
    pub(super) fn poll_resume(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        inner: &mut Inner,
    ) -> Result<bool, RecvError> {
        let Some(resuming) = inner.resuming.as_mut().filter(|resuming| resuming.awaits_handshake) else {
            return Ok(false);
        };
        match inner.connection.poll_established(cx) {
            Poll::Ready(established) => established?,
            Poll::Pending => return Ok(false),
        }
        resuming.awaits_handshake = false;
        self.spend(inner);
        Ok(true)
    }

    /// Seals the session's next ticket.
    pub(super) fn issue(self: &Rc<Self>, inner: &mut Inner) {
        // Whoever has a ticket may resume: from now on this connection is to be found.
        self.make_known(inner);
        let worker = &self.worker;
        let now = clock::now();
        let ticket = inner.machine.ticket(now, clock::unix_ms(), worker.index());
        let text = ticket.and_then(|ticket| worker.tickets().seal(&ticket));
        if text.is_some() {
            worker.metrics().tickets.inc();
        }
        inner.machine.issued(now, text);
    }

    /// The session was resumed elsewhere, with this generation, or revoked.
    pub(crate) fn moved(&self, generation: u32, told: Told) {
        let inner = &mut *self.inner.borrow_mut();
        let own = inner.machine.generation();
        match told {
            Told::Revoked => inner.machine.end(CloseCode::BadResume, REVOKED),
            Told::Repeated if own == generation => {
                inner.machine.end(CloseCode::Superseded, "the same attempt came by another connection");
            }
            Told::Resumed | Told::Repeated if own < generation => {
                inner.machine.supersede(clock::now());
                inner.connection.supersede();
            }
            Told::Resumed | Told::Repeated => return,
        }
        debug!(?told, "the session moved");
        self.wake();
    }

    fn spend(self: &Rc<Self>, inner: &mut Inner) {
        let Some(spending) = self.spending(inner) else { return };
        let Some(resuming) = &inner.resuming else { return };
        let holder = LinkName { node: resuming.ticket.node.clone(), worker: resuming.ticket.worker };
        self.worker.spend(self, spending, holder);
    }

    fn spending(&self, inner: &Inner) -> Option<Spending> {
        let Resuming { ticket, key, .. } = &**inner.resuming.as_ref()?;
        let left = Duration::from_millis(ticket.expires_ms.saturating_sub(clock::unix_ms()));
        let settings = self.worker.settings();
        let lifetime = settings.tickets.unwrap_or_default();
        Some(Spending {
            session: ticket.session,
            generation: ticket.generation,
            key: *key,
            early: inner.connection.is_early(),
            remember: lifetime.max(left) + settings.grace + CLOCKS_APART,
        })
    }

    fn decide(&self, inner: &mut Inner, outcome: Outcome) {
        let metrics = self.worker.metrics();
        let (result, code, reason) = match outcome {
            Outcome::First | Outcome::Repeated => {
                let result =
                    if outcome == Outcome::First { ResumeResult::Honoured } else { ResumeResult::Repeated };
                metrics.count_resume(result);
                return self.honour(inner);
            }
            Outcome::NotEarly => {
                if let Some(resuming) = &mut inner.resuming {
                    resuming.awaits_handshake = true;
                }
                return;
            }
            Outcome::Stale => {
                (ResumeResult::Stale, CloseCode::Superseded, "the session was resumed by a later attempt")
            }
            Outcome::Theft => (
                ResumeResult::Theft,
                CloseCode::BadResume,
                "the ticket was spent before: the session is revoked",
            ),
            Outcome::Revoked => (ResumeResult::Revoked, CloseCode::BadResume, REVOKED),
            Outcome::Full => {
                (ResumeResult::Full, CloseCode::ResumeExpired, "too many sessions were resumed lately")
            }
        };
        self.refuse(inner, result, code, reason);
    }

    fn honour(&self, inner: &mut Inner) {
        let Some(resuming) = inner.resuming.take() else { return };
        let Resuming { ticket, .. } = *resuming;
        let now = clock::now();
        let Some(identity) = ticket.identity(now, clock::unix_ms()) else {
            return inner.machine.refuse(CloseCode::TokenExpired, "the token expired: get a new one");
        };
        let generation = ticket.generation.saturating_add(1);
        inner.machine.resume(now, Resumption { session: ticket.session, generation, identity });
        // At once: that it was revoked may be the next thing on the link.
        self.make_known(inner);
    }

    fn make_known(&self, inner: &Inner) {
        if self.known_as.get().is_none() {
            let id = inner.machine.id();
            self.known_as.set(Some(id));
            self.worker.make_known(id, self.enrolled.get());
        }
    }

    fn refuse(&self, inner: &mut Inner, result: ResumeResult, code: CloseCode, reason: &str) {
        debug!(result = result.name(), "not resumed");
        self.worker.metrics().count_resume(result);
        inner.resuming = None;
        inner.machine.refuse(code, reason);
    }
}

const REVOKED: &str = "a spent ticket of this session was used again: it is revoked";
/// What the clocks of a fleet may differ by before a ticket that is valid for one is forgotten by another.
const CLOCKS_APART: Duration = Duration::from_secs(60);
