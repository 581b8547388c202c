//! Sans-io: how a ladder runs its races, and what their outcomes mean.

use std::time::Instant;

use tidegate_transport::TransportKind;

use super::race::{Doubt, Race};
use super::{AttemptId, Current, DialFailure, Ladder, LadderEvent, Next, Purpose};

impl Ladder {
    /// Begins a race; with `mind`, what is remembered as broken comes last.
    pub(super) fn search(&mut self, now: Instant, purpose: Purpose, rungs: Vec<TransportKind>, mind: bool) {
        self.abandon_race();
        let wall_ms = self.wall_ms(now);
        let shunned = self.shunned.clone();
        let known = self.known();
        let doubt = |rung| match shunned.iter().position(|one| *one == rung) {
            Some(turn) => Doubt::Shunned(turn),
            None if mind && known.is_broken(rung, wall_ms) => Doubt::Broken,
            None => Doubt::None,
        };
        self.race = Some(Race::new(now, purpose, rungs, doubt));
    }

    pub(super) fn suspect_search(&mut self, now: Instant) {
        if let Some(Current { suspicion: Some(suspicion), .. }) = &mut self.current {
            suspicion.search_at = None;
        }
        self.events.push_back(LadderEvent::Probe);
        self.search(now, Purpose::Suspicion, self.rungs.clone(), true);
    }

    /// Dials whose turn it is, drops who took too long, and sees whether the race is over.
    pub(super) fn run_race(&mut self, now: Instant) {
        loop {
            let conditions = self.conditions();
            let Some(race) = &self.race else { return };
            if let Some(attempt) = race.ripe(now) {
                self.win(now, attempt);
            } else if let Some(attempt) = race.timed_out(now, conditions) {
                self.events.push_back(LadderEvent::Abandon { attempt });
                if let Some(race) = &mut self.race {
                    race.failed(now, attempt, DialFailure::Failed);
                }
            } else if let Some(transport) = race.next_due(now, conditions) {
                let attempt = AttemptId(self.next_id);
                self.next_id += 1;
                self.events.push_back(LadderEvent::Dial { attempt, transport });
                if let Some(race) = &mut self.race {
                    race.started(now, transport, attempt);
                }
            } else if race.is_lost() {
                self.lose(now);
            } else {
                return;
            }
        }
    }

    pub(super) fn win(&mut self, now: Instant, attempt: AttemptId) {
        let Some(race) = self.race.take() else { return };
        let Some(transport) = race.transport_of(attempt) else { return };
        let rank = self.rank(transport);
        let mut blamed = race.blamed(|rung| self.rank(rung) < rank);
        let mut demotes = false;
        if race.purpose == Purpose::Suspicion
            && let Some(current) = &self.current
        {
            let away = current.suspicion.as_ref().is_some_and(|suspicion| suspicion.server_away);
            demotes = rank > self.rank(current.transport) && !away && !race.was_refused();
            // Blamed when the session has moved, and once.
            blamed.retain(|rung| !away && (*rung != current.transport || !demotes));
        }
        let in_need = matches!(race.purpose, Purpose::Need | Purpose::Suspicion);
        let doubt = in_need && std::mem::take(&mut self.doubt);
        demotes &= !doubt;
        if !matches!(race.purpose, Purpose::Request | Purpose::Goaway) && !doubt {
            for rung in blamed {
                self.blame(now, rung);
            }
        }
        self.events.push_back(LadderEvent::Use { attempt });
        for attempt in race.others(Some(attempt)) {
            self.events.push_back(LadderEvent::Abandon { attempt });
        }
        self.next = Some(Next { attempt, transport, since: now, purpose: race.purpose, demotes, doubt });
    }

    /// Nothing is blamed: where no rung leads anywhere, the network or the server is away.
    pub(super) fn lose(&mut self, now: Instant) {
        let Some(race) = self.race.take() else { return };
        match race.purpose {
            Purpose::Need | Purpose::Request => {}
            // Where it is suspect besides, that search was in the way.
            Purpose::Goaway => self.search_again(now, false),
            Purpose::Suspicion => self.search_again(now, race.was_refused()),
            Purpose::Climb => {
                // The session lives on a lower rung meanwhile: the higher ones are to blame.
                for rung in race.blamed(|_| true) {
                    self.blame(now, rung);
                }
                self.climb.failures = self.climb.failures.saturating_add(1);
                self.plan_climb(now);
            }
        }
        self.events.push_back(LadderEvent::Failed { purpose: race.purpose });
    }

    pub(super) fn abandon_race(&mut self) {
        let Some(race) = self.race.take() else { return };
        for attempt in race.others(None) {
            self.events.push_back(LadderEvent::Abandon { attempt });
        }
        if matches!(race.purpose, Purpose::Request | Purpose::Goaway) {
            self.events.push_back(LadderEvent::Failed { purpose: race.purpose });
        }
        if race.purpose == Purpose::Climb {
            // It was in the way of something more urgent.
            self.climb.at = Some(race.began() + self.config.climb_base);
        }
    }
}
