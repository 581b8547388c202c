//! Sans-io: what a ladder makes of connections that lived and died.

use std::time::{Duration, Instant};

use rand::RngExt;
use tidegate_transport::TransportKind;

use super::{Current, Ladder, LadderConfig, LadderEvent, Next, Purpose, Trial};

impl Ladder {
    /// The next connection ended without an answer.
    pub(super) fn lost_next(&mut self, now: Instant, next: &Next, by_server: bool) {
        // A server on its way down still lets clients in, and then ends them.
        self.doubt |= next.doubt || by_server && !matches!(next.purpose, Purpose::Climb | Purpose::Goaway);
        // Another server's trouble is not the transport's.
        if !by_server && next.purpose != Purpose::Goaway {
            self.shun(next.transport);
            // Beside one that works, it is the transport; alone, it may have been the server's end.
            self.died_young(now, next.transport, next.purpose == Purpose::Climb);
        }
        self.search_again(now, false);
        match next.purpose {
            Purpose::Request | Purpose::Goaway => {
                self.events.push_back(LadderEvent::Failed { purpose: next.purpose });
            }
            Purpose::Climb => self.plan_climb(now),
            Purpose::Need | Purpose::Suspicion => {}
        }
    }

    /// Plans the next search beside a connection that is still suspect.
    pub(super) fn search_again(&mut self, now: Instant, server_away: bool) {
        let Some(Current { suspicion: Some(suspicion), .. }) = &mut self.current else { return };
        suspicion.server_away |= server_away;
        let wait = LadderConfig::doubled(self.config.suspect_retry, suspicion.failures, RETRY_CAP);
        suspicion.failures = suspicion.failures.saturating_add(1);
        suspicion.search_at = Some(now + wait);
    }

    /// It opened, and ended before it had proved anything. Once that may have been a server's restart, unless the session
    /// had just climbed to it from a rung that worked.
    pub(super) fn died_young(&mut self, now: Instant, transport: TransportKind, climbed: bool) {
        if self.known().died(transport) || climbed {
            self.blame(now, transport);
        }
        if climbed {
            self.climb.failures = self.climb.failures.saturating_add(1);
        }
    }

    /// Until a connection answers, the others come before it.
    pub(super) fn shun(&mut self, transport: TransportKind) {
        self.shunned.retain(|one| *one != transport);
        self.shunned.push(transport);
    }

    pub(super) fn blame(&mut self, now: Instant, transport: TransportKind) {
        let wall_ms = self.wall_ms(now);
        let config = self.config.clone();
        self.known().failed(transport, &config, wall_ms);
    }

    pub(super) fn judge_trial(&mut self, now: Instant) {
        let Some(current) = &mut self.current else { return };
        let Trial::Pending { since, trips, .. } = current.trial else { return };
        if trips < self.config.trial_trips || now < since + self.config.trial_time {
            return;
        }
        current.trial = Trial::Passed;
        let transport = current.transport;
        let wall_ms = self.wall_ms(now);
        self.known().worked(transport, wall_ms);
        if self.rungs.first() == Some(&transport) {
            self.climb.failures = 0;
        }
    }

    pub(super) fn plan_climb(&mut self, now: Instant) {
        self.climb.at = None;
        if !self.better_rungs().is_empty() {
            let wait =
                LadderConfig::doubled(self.config.climb_base, self.climb.failures, self.config.climb_cap);
            let jitter = self.rng.random_range(0.5..1.5);
            self.climb.at = Some(now + wait.mul_f64(jitter).min(self.config.climb_cap));
        }
    }
}

/// Between searches beside a connection that stays suspect.
const RETRY_CAP: Duration = Duration::from_secs(60);
