//! Sans-io: one race of rungs: who dials when, and what the losers are to be blamed for.

use std::time::{Duration, Instant};

use tidegate_transport::TransportKind;

use super::{AttemptId, DialFailure, LadderConfig, Purpose};

/// Rungs that race for a connection.
#[derive(Debug)]
pub(super) struct Race {
    pub(super) purpose: Purpose,
    began: Instant,
    /// By doubt, then by rank.
    runners: Vec<Runner>,
    /// Opened beside a suspect connection, which has until then to answer.
    held: Option<(AttemptId, Instant)>,
    /// TCP was refused: perhaps nobody is there at all.
    tcp_refused: Option<Instant>,
}

#[derive(Debug)]
struct Runner {
    transport: TransportKind,
    /// Only where all others failed.
    last_resort: bool,
    state: RunnerState,
}

/// ```text
/// Waiting ── its turn ──► Dialing ── opened ──► Opened          (beside a suspect connection; elsewhere the race ends)
///                            └───── failed, timed out ──► Failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunnerState {
    Waiting,
    Dialing { attempt: AttemptId, since: Instant, udp_heard: bool },
    Opened { attempt: AttemptId },
    Failed(DialFailure),
}

/// What speaks against a rung when a race begins; the more, the later its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    None,
    /// Remembered as broken.
    Broken,
    /// Opened a while ago, and led nowhere: in front it would win again. Whose turn was longest ago comes first.
    Shunned(usize),
}

/// What is known when a race is run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditions<'a> {
    pub(super) config: &'a LadderConfig,
    pub(super) rtt: Duration,
}

impl Race {
    pub(super) fn new(
        now: Instant,
        purpose: Purpose,
        rungs: impl IntoIterator<Item = TransportKind>,
        doubt: impl Fn(TransportKind) -> Doubt,
    ) -> Self {
        let mut runners: Vec<_> = rungs.into_iter().map(|rung| (doubt(rung), rung)).collect();
        runners.sort_by_key(|(doubt, _)| *doubt);
        // Where all are broken, none is.
        let some_sound = runners.iter().any(|(doubt, _)| *doubt == Doubt::None);
        let runners = runners
            .into_iter()
            .map(|(doubt, transport)| Runner {
                transport,
                last_resort: some_sound && doubt > Doubt::None,
                state: RunnerState::Waiting,
            })
            .collect();
        Self { purpose, began: now, runners, held: None, tcp_refused: None }
    }

    /// The rung whose turn it is.
    pub(super) fn next_due(&self, now: Instant, conditions: Conditions<'_>) -> Option<TransportKind> {
        let index = self.waiting()?;
        self.due(index, conditions).is_some_and(|due| due <= now).then(|| self.runners[index].transport)
    }

    /// The driver was told to dial it.
    pub(super) fn started(&mut self, now: Instant, transport: TransportKind, attempt: AttemptId) {
        if let Some(runner) = self.runners.iter_mut().find(|runner| runner.transport == transport) {
            runner.state = RunnerState::Dialing { attempt, since: now, udp_heard: false };
        }
    }

    pub(super) fn udp_heard(&mut self, of: AttemptId) {
        if let Some(RunnerState::Dialing { udp_heard, .. }) = self.state_mut(of) {
            *udp_heard = true;
        }
    }

    /// It opened: how long that took.
    pub(super) fn opened(&mut self, now: Instant, of: AttemptId) -> Option<(TransportKind, Duration)> {
        let runner = self.runners.iter_mut().find(|runner| runner.state.attempt() == Some(of))?;
        let RunnerState::Dialing { since, .. } = runner.state else { return None };
        runner.state = RunnerState::Opened { attempt: of };
        Some((runner.transport, now.saturating_duration_since(since)))
    }

    /// Holds an opened connection back. True where it takes the place of a lower one, which is returned.
    pub(super) fn hold(&mut self, of: AttemptId, until: Instant) -> Option<AttemptId> {
        match self.held {
            None => {
                self.held = Some((of, until));
                None
            }
            Some((held, until)) if self.rank(of) < self.rank(held) => {
                self.held = Some((of, until));
                Some(held)
            }
            Some(_) => Some(of),
        }
    }

    /// The connection whose time of waiting is over.
    pub(super) fn ripe(&self, now: Instant) -> Option<AttemptId> {
        self.held.and_then(|(attempt, until)| (until <= now).then_some(attempt))
    }

    /// True where it was dialling, or held.
    pub(super) fn failed(&mut self, now: Instant, of: AttemptId, failure: DialFailure) -> bool {
        if self.held.is_some_and(|(held, _)| held == of) {
            self.held = None;
        }
        let Some(runner) = self.runners.iter_mut().find(|runner| runner.state.attempt() == Some(of)) else {
            return false;
        };
        runner.state = RunnerState::Failed(failure);
        if failure == DialFailure::Refused && !is_udp(runner.transport) {
            self.tcp_refused = Some(now);
        }
        true
    }

    /// Attempts that took too long.
    pub(super) fn timed_out(&self, now: Instant, conditions: Conditions<'_>) -> Option<AttemptId> {
        self.runners.iter().find_map(|runner| match runner.state {
            RunnerState::Dialing { attempt, since, .. } => {
                (self.dial_deadline(since, conditions) <= now).then_some(attempt)
            }
            _ => None,
        })
    }

    pub(super) fn poll_timeout(&self, conditions: Conditions<'_>) -> Option<Instant> {
        let next = self.waiting().and_then(|index| self.due(index, conditions));
        let dialing = self.runners.iter().filter_map(|runner| match runner.state {
            RunnerState::Dialing { since, .. } => Some(self.dial_deadline(since, conditions)),
            _ => None,
        });
        dialing.chain(next).chain(self.held.map(|(_, until)| until)).min()
    }

    /// No rung is left.
    pub(super) fn is_lost(&self) -> bool {
        self.runners.iter().all(|runner| matches!(runner.state, RunnerState::Failed(_)))
    }

    /// Everything that dials or is held, but for `winner`: to be dropped.
    pub(super) fn others(&self, winner: Option<AttemptId>) -> Vec<AttemptId> {
        let attempts = self.runners.iter().filter_map(|runner| runner.state.attempt());
        attempts.filter(|attempt| Some(*attempt) != winner).collect()
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn was_refused(&self) -> bool {
        self.tcp_refused.is_some()
    }

    pub(super) fn transport_of(&self, attempt: AttemptId) -> Option<TransportKind> {
        let runner = self.runners.iter().find(|runner| runner.state.attempt() == Some(attempt))?;
        Some(runner.transport)
    }

    /// Transports that had their chance and are to be blamed, now that one that is `better` for none of them worked. None
    /// where TCP was refused meanwhile: then the server was away, and no network in the way.
    pub(super) fn blamed(&self, is_better: impl Fn(TransportKind) -> bool) -> Vec<TransportKind> {
        if self.was_refused() {
            return Vec::new();
        }
        let blamed = self.runners.iter().filter(|runner| is_better(runner.transport) && runner.is_to_blame());
        blamed.map(|runner| runner.transport).collect()
    }

    /// The first that waits; nobody overtakes it.
    fn waiting(&self) -> Option<usize> {
        self.runners.iter().position(|runner| runner.state == RunnerState::Waiting)
    }

    /// When the runner may start, as far as that is known.
    fn due(&self, index: usize, conditions: Conditions<'_>) -> Option<Instant> {
        if self.held.is_some() {
            // Those before it may still be better; those behind it are not needed.
            return None;
        }
        let before = &self.runners[..index];
        let Some(last) = before.last() else { return Some(self.began) };
        let others_left = before
            .iter()
            .any(|runner| !runner.last_resort && !matches!(runner.state, RunnerState::Failed(_)));
        if self.runners[index].last_resort && others_left {
            return None;
        }
        match last.state {
            RunnerState::Failed(_) => Some(self.began),
            RunnerState::Dialing { since, udp_heard, .. } => {
                let udp = is_udp(last.transport);
                let alone = conditions.config.head_start(conditions.rtt, if udp { 1 } else { 3 });
                let lead = if udp && !udp_heard { conditions.config.unheard_lead } else { Duration::ZERO };
                Some(since + alone.saturating_sub(lead))
            }
            RunnerState::Waiting | RunnerState::Opened { .. } => None,
        }
    }

    fn dial_deadline(&self, since: Instant, conditions: Conditions<'_>) -> Instant {
        let full = since + conditions.config.dial_timeout;
        let alone = self.waiting().is_none()
            && self.runners.iter().filter(|runner| runner.state.attempt().is_some()).count() == 1;
        match self.tcp_refused {
            Some(at) if alone => full.min(at.max(since) + conditions.config.last_patience),
            _ => full,
        }
    }

    fn rank(&self, attempt: AttemptId) -> Option<usize> {
        self.runners.iter().position(|runner| runner.state.attempt() == Some(attempt))
    }

    fn state_mut(&mut self, of: AttemptId) -> Option<&mut RunnerState> {
        self.runners.iter_mut().map(|runner| &mut runner.state).find(|state| state.attempt() == Some(of))
    }
}

impl Runner {
    /// It failed on its own, or nothing at all came back over UDP. One that was merely slow is not to blame.
    fn is_to_blame(&self) -> bool {
        match self.state {
            RunnerState::Failed(failure) => failure != DialFailure::ByServer,
            RunnerState::Dialing { udp_heard, .. } => is_udp(self.transport) && !udp_heard,
            RunnerState::Waiting | RunnerState::Opened { .. } => false,
        }
    }
}

impl RunnerState {
    fn attempt(self) -> Option<AttemptId> {
        match self {
            Self::Dialing { attempt, .. } | Self::Opened { attempt } => Some(attempt),
            Self::Waiting | Self::Failed(_) => None,
        }
    }
}

pub(super) fn is_udp(transport: TransportKind) -> bool {
    matches!(transport, TransportKind::Quic | TransportKind::WebTransport)
}
