//! A node: its CPU, and who decides at its door.

use std::time::{Duration, Instant};

use tidegate_edge::policy::admission::{Admission, Attempt, Decision, Refusal, SlotTicket};

/// What things cost, in units of work; one admission is 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// Handshake and restoring the session.
    pub(super) accept: f64,
    /// An answer that says no.
    pub(super) refuse: f64,
    /// Looking at a packet and dropping it.
    pub(super) drop: f64,
}

impl Costs {
    /// Refused before TLS, or after it.
    pub(super) fn new(costly: bool) -> Self {
        Self { accept: 1.0, refuse: if costly { 0.6 } else { 0.02 }, drop: 0.02 }
    }
}

/// One processor with a queue of a second: what finds it full is lost without an answer.
#[derive(Debug)]
pub(super) struct Cpu {
    per_second: f64,
    free_at: u64,
}

impl Cpu {
    pub(super) fn new(per_second: f64) -> Self {
        Self { per_second, free_at: 0 }
    }

    /// When the work is done; `None` where the queue is full.
    pub(super) fn work(&mut self, micros: u64, cost: f64) -> Option<u64> {
        let start = self.free_at.max(micros);
        if start - micros > QUEUE.as_micros() as u64 {
            return None;
        }
        self.free_at = start + (cost / self.per_second * 1e6) as u64;
        Some(self.free_at)
    }
}

/// Who decides.
#[derive(Debug)]
pub(super) enum Door {
    /// Production's machine.
    Slots(Box<Admission>),
    /// A token bucket that says no, as others have it.
    Bucket(Bucket),
}

/// What becomes of an attempt.
#[derive(Debug)]
pub(super) enum Answer {
    Admit(Instant),
    Defer(Duration, SlotTicket),
    Refuse,
    Elsewhere,
    Silence,
}

impl Door {
    pub(super) fn decide(&mut self, now: Instant, attempt: &Attempt<'_>) -> Answer {
        match self {
            Self::Slots(admission) => match admission.handle_attempt(now, attempt) {
                Decision::Admit { at } => Answer::Admit(at),
                Decision::Defer { retry_after, ticket } => Answer::Defer(retry_after, ticket),
                Decision::Refuse(Refusal::Elsewhere | Refusal::LameDuck) => Answer::Elsewhere,
                Decision::Refuse(Refusal::Busy) => Answer::Silence,
                Decision::Refuse(Refusal::Address { .. } | Refusal::Unvalidated) => Answer::Refuse,
            },
            Self::Bucket(bucket) => match bucket.take(now) {
                true => Answer::Admit(now),
                false => Answer::Refuse,
            },
        }
    }

    pub(super) fn finished(&mut self) {
        if let Self::Slots(admission) = self {
            admission.handle_finished();
        }
    }
}

/// Tokens by rate, 50 ms of them at once.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(now: Instant, rate: f64) -> Self {
        Self { rate, tokens: 1.0, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * self.rate).min((self.rate * 0.05).max(1.0));
        self.at = now;
        let taken = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(taken));
        taken
    }
}

const QUEUE: Duration = Duration::from_secs(1);
