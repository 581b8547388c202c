//! Sans-io: which transport a client tries, when it tries another beside it, and when it climbs back.
//!
//! The *rungs* are the transports in order of preference. Where a connection is needed, they race: QUIC first; the
//! WebSocket joins after h = 1.5 round trips and 100 ms, within 250 and 500 ms, 100 ms earlier while not one UDP datagram
//! came back, at once where QUIC failed. Long poll joins behind the WebSocket by the same rule, with h three times as long:
//! a WebSocket takes three round trips to open where QUIC takes one. The first that opens wins, the others are dropped
//! before they say `connect`. A rung that lost without a sign of life, while TCP worked, is remembered as broken on this
//! network and left out for a while; a server that is merely away is never taken for a network in the way.
//!
//! A connection that is suspect gets rivals: the rungs race again beside it. Where it answers first they are dropped;
//! where one of them opens, the suspect has a last chance of about three round trips, then the session moves. A session on
//! a lower rung climbs: now and then the higher ones are dialled beside it.
//!
//! The driver dials what [`LadderEvent::Dial`] says and tells the outcome; it drains [`Ladder::poll_event`] after every
//! input. One connection at most is *next*: handed to the session ([`LadderEvent::Use`]) and not answered yet.

mod config;
mod event;
mod judgement;
mod memory;
mod race;
mod search;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tidegate_transport::TransportKind;

pub use config::LadderConfig;
pub use event::{AttemptId, DialFailure, LadderEvent, Purpose};
pub use memory::LadderMemory;

use memory::Network;
use race::{Conditions, Race, is_udp};

/// The ladder of one session.
#[derive(Debug)]
pub struct Ladder {
    config: LadderConfig,
    /// Best first.
    rungs: Vec<TransportKind>,
    rng: ChaCha8Rng,
    memory: LadderMemory,
    origin: String,
    network: String,
    /// An instant, and what the wall clock said then.
    wall: (Instant, u64),
    next_id: u64,
    current: Option<Current>,
    next: Option<Next>,
    race: Option<Race>,
    climb: Climb,
    /// The server closed, or a connection that worked ended: it may be restarting, so the next race blames nobody. A climb
    /// soon after does.
    doubt: bool,
    /// Opened and led nowhere since a connection last answered, the latest last: behind all others in a race.
    shunned: Vec<TransportKind>,
    events: VecDeque<LadderEvent>,
}

/// The connection that the session lives on.
#[derive(Debug)]
struct Current {
    attempt: AttemptId,
    transport: TransportKind,
    trial: Trial,
    suspicion: Option<Suspicion>,
}

/// Whether the transport really works here.
#[derive(Debug)]
enum Trial {
    Pending {
        since: Instant,
        trips: u32,
        ask_at: Instant,
        /// The rung below worked a moment ago.
        climbed: bool,
    },
    Passed,
}

/// The connection is silent where it should not be.
#[derive(Debug)]
struct Suspicion {
    /// Searches that found nothing.
    failures: u32,
    /// TCP was refused in one of them: the server was away.
    server_away: bool,
    search_at: Option<Instant>,
}

/// Handed to the session, which has said `connect` on it.
#[derive(Debug)]
struct Next {
    attempt: AttemptId,
    transport: TransportKind,
    since: Instant,
    purpose: Purpose,
    /// To be blamed if the session moves away from the current connection.
    demotes: bool,
    /// Who lost against it was not blamed.
    doubt: bool,
}

#[derive(Debug, Default)]
struct Climb {
    failures: u32,
    at: Option<Instant>,
}

impl Ladder {
    /// `rungs` best first. `origin` names the server in the memory, `network` the network that the client is in; `wall_ms`
    /// is Unix time at `now`.
    pub fn new(
        config: LadderConfig,
        rungs: Vec<TransportKind>,
        memory: LadderMemory,
        (origin, network): (&str, &str),
        (now, wall_ms): (Instant, u64),
        rng: ChaCha8Rng,
    ) -> Self {
        let mut unique = Vec::with_capacity(rungs.len());
        for rung in rungs {
            if !unique.contains(&rung) {
                unique.push(rung);
            }
        }
        Self {
            memory: memory.restored(&config, wall_ms),
            config,
            rungs: unique,
            rng,
            origin: memory::cut(origin),
            network: memory::cut(network),
            wall: (now, wall_ms),
            next_id: 1,
            current: None,
            next: None,
            race: None,
            climb: Climb::default(),
            doubt: false,
            shunned: Vec::new(),
            events: VecDeque::new(),
        }
    }

    // What the session wants.

    /// The session needs a connection: the first, a new one, or one beside that which it has.
    pub fn dial(&mut self, now: Instant) {
        if self.next.is_some() {
            return;
        }
        match &mut self.race {
            Some(race) if race.purpose == Purpose::Need => {}
            _ => self.search(now, Purpose::Need, self.rungs.clone(), true),
        }
        self.run_race(now);
    }

    /// The session looks for no connection any more: it ended, or waits before it dials again.
    pub fn stop(&mut self) {
        self.abandon_race();
        if let Some(next) = self.next.take() {
            self.events.push_back(LadderEvent::Abandon { attempt: next.attempt });
        }
        self.current = None;
        self.climb.at = None;
    }

    /// The app wants this rung, beside the present connection. False where there is no such rung, no connection, or the
    /// session is moving already.
    pub fn move_to(&mut self, now: Instant, transport: TransportKind) -> bool {
        let needed = self.race.as_ref().is_some_and(|race| race.purpose == Purpose::Need);
        if !self.rungs.contains(&transport) || self.current.is_none() || self.next.is_some() || needed {
            return false;
        }
        self.search(now, Purpose::Request, vec![transport], false);
        self.run_race(now);
        true
    }

    /// The server wants to be left: a connection to another is looked for beside the present one, by the same transport
    /// first. What comes of it says nothing of transports. With `anew` it is another place than before. False where the
    /// session is on its way already, or has no connection.
    pub fn leave(&mut self, now: Instant, anew: bool) -> bool {
        if self.is_leaving() && !anew {
            return true;
        }
        let needed = self.race.as_ref().is_some_and(|race| race.purpose == Purpose::Need);
        let Some(current) = self.current.as_ref().filter(|_| self.next.is_none() && !needed) else {
            return false;
        };
        let present = current.transport;
        let mut rungs = self.rungs.clone();
        rungs.sort_by_key(|rung| *rung != present);
        self.search(now, Purpose::Goaway, rungs, true);
        self.run_race(now);
        true
    }

    /// True while what is dialled is dialled because of [`Ladder::leave`].
    pub fn is_leaving(&self) -> bool {
        self.race.as_ref().is_some_and(|race| race.purpose == Purpose::Goaway)
    }

    // What became of dials.

    /// A datagram came back before the attempt opened.
    pub fn handle_udp_heard(&mut self, now: Instant, attempt: AttemptId) {
        if let Some(race) = &mut self.race {
            race.udp_heard(attempt);
        }
        self.run_race(now);
    }

    /// It is open: frames can be sent. False where nobody waits for it any more: drop it.
    pub fn handle_opened(&mut self, now: Instant, attempt: AttemptId) -> bool {
        let Some(race) = &mut self.race else { return false };
        let Some((transport, took)) = race.opened(now, attempt) else { return false };
        if is_udp(transport) {
            // One round trip, and some cryptography.
            self.known().measured(took);
        }
        let last_chance = self.last_chance();
        match &mut self.race {
            Some(race) if race.purpose == Purpose::Suspicion => {
                self.events.push_back(LadderEvent::Probe);
                if let Some(attempt) = race.hold(attempt, now + last_chance) {
                    // One of the two is enough.
                    race.failed(now, attempt, DialFailure::ByServer);
                    self.events.push_back(LadderEvent::Abandon { attempt });
                }
            }
            _ => self.win(now, attempt),
        }
        self.run_race(now);
        true
    }

    /// It did not open, or ended before anybody needed it.
    pub fn handle_failed(&mut self, now: Instant, attempt: AttemptId, failure: DialFailure) {
        if let Some(race) = &mut self.race {
            race.failed(now, attempt, failure);
        }
        self.run_race(now);
    }

    // What became of connections.

    /// The session lives on this connection now. Said again, it changes nothing.
    pub fn handle_connected(&mut self, now: Instant, attempt: AttemptId) {
        if self.climb.at.is_none() && self.current.as_ref().is_some_and(|current| current.attempt == attempt)
        {
            // It was suspect before it was connected.
            self.plan_climb(now);
        }
        let Some(next) = self.next.take_if(|next| next.attempt == attempt) else { return };
        self.shunned.clear();
        let before = self.current.take();
        if let Some(before) = &before
            && next.demotes
        {
            self.blame(now, before.transport);
        }
        if let Some(Current { transport, trial: Trial::Pending { climbed: true, .. }, .. }) = before
            && self.rank(next.transport) > self.rank(transport)
        {
            self.climb.failures = self.climb.failures.saturating_add(1);
        }
        let climbed = next.purpose == Purpose::Climb;
        self.current = Some(Current {
            attempt,
            transport: next.transport,
            trial: self.trial(now, next.transport, climbed),
            suspicion: None,
        });
        self.plan_climb(now);
        if next.doubt && self.climb.at.is_some() {
            let wait = self.config.climb_base.min(SOON).mul_f64(self.rng.random_range(0.5..1.5));
            self.climb.at = Some(now + wait);
        }
    }

    /// A round trip was measured on a connection.
    pub fn handle_round_trip(&mut self, now: Instant, attempt: AttemptId, rtt: Duration) {
        let Some(current) = self.current.as_mut().filter(|current| current.attempt == attempt) else {
            return;
        };
        if let Trial::Pending { trips, .. } = &mut current.trial {
            *trips = trips.saturating_add(1);
        }
        self.known().measured(rtt);
        self.judge_trial(now);
    }

    /// Nothing is heard on the current connection although something should be.
    pub fn handle_suspect(&mut self, now: Instant, attempt: AttemptId) {
        if self.current.is_none()
            && let Some(next) = self.next.take_if(|next| next.attempt == attempt)
        {
            // Opened, and not answered: as good as a black hole. If it is, a fresh one of its kind is none better.
            self.shun(next.transport);
            self.doubt |= next.doubt;
            let trial = self.trial(now, next.transport, false);
            self.current = Some(Current { attempt, transport: next.transport, trial, suspicion: None });
        }
        let Some(current) = self.current.as_mut().filter(|current| current.attempt == attempt) else {
            return;
        };
        if current.suspicion.is_some() {
            return;
        }
        // Where the session is on its way anyway, that comes first.
        let search_at = now + self.config.suspect_retry;
        current.suspicion = Some(Suspicion { failures: 0, server_away: false, search_at: Some(search_at) });
        let needed = self.race.as_ref().is_some_and(|race| race.purpose == Purpose::Need);
        if self.next.is_none() && !needed {
            self.suspect_search(now);
        }
        self.run_race(now);
    }

    /// The suspect connection lives.
    pub fn handle_heard(&mut self, now: Instant, attempt: AttemptId) {
        let Some(current) = self.current.as_mut().filter(|current| current.attempt == attempt) else {
            return;
        };
        if current.suspicion.take().is_none() {
            return;
        }
        if self.race.as_ref().is_some_and(|race| race.purpose == Purpose::Suspicion) {
            self.abandon_race();
        }
        if let Some(next) = self.next.take_if(|next| next.purpose == Purpose::Suspicion) {
            self.events.push_back(LadderEvent::Abandon { attempt: next.attempt });
        }
        self.run_race(now);
    }

    /// A connection that the session had ended; `by_server` where the server said so, or showed that it had forgotten it.
    pub fn handle_lost(&mut self, now: Instant, attempt: AttemptId, by_server: bool) {
        if let Some(next) = self.next.take_if(|next| next.attempt == attempt) {
            self.lost_next(now, &next, by_server);
        } else if let Some(current) = self.current.take_if(|current| current.attempt == attempt) {
            self.doubt |= by_server || is_udp(current.transport);
            if let Trial::Pending { climbed, .. } = current.trial
                && !by_server
            {
                self.died_young(now, current.transport, climbed);
            }
            self.climb.at = None;
            if self.race.as_ref().is_some_and(|race| race.purpose != Purpose::Need) {
                // The session says when it needs another.
                self.abandon_race();
            }
        } else {
            self.handle_failed(now, attempt, DialFailure::Failed);
        }
        self.run_race(now);
    }

    /// The client may be in another network now, by `network`'s name.
    pub fn handle_network_changed(&mut self, now: Instant, network: &str) {
        self.network = memory::cut(network);
        self.known().forgive();
        self.climb.failures = 0;
        self.shunned.clear();
        self.doubt = false;
        let top = self.rungs.first().copied();
        if let Some(transport) = self.current.as_ref().map(|current| current.transport) {
            let trial = self.trial(now, transport, false);
            if let Some(current) = &mut self.current {
                current.trial = trial;
            }
            self.climb.at = (Some(transport) != top).then_some(now);
        }
        if self.race.as_ref().is_some_and(|race| race.purpose == Purpose::Need) {
            // What was dialled from the old network leads nowhere.
            self.search(now, Purpose::Need, self.rungs.clone(), true);
            self.run_race(now);
        }
    }

    // The rest of the five verbs.

    /// What time alone does.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next.as_ref().is_some_and(|next| now >= self.connect_deadline(next))
            && let Some(next) = self.next.take()
        {
            self.events.push_back(LadderEvent::Abandon { attempt: next.attempt });
            self.lost_next(now, &next, false);
        }
        self.judge_trial(now);
        if let Some(Current { trial: Trial::Pending { since, ask_at, .. }, .. }) = &mut self.current
            && now >= *ask_at
        {
            // Ever less often where no answer comes: not every server knows the client's pings.
            *ask_at = now + trial_step(&self.config).max(now.saturating_duration_since(*since) / 2);
            self.events.push_back(LadderEvent::Probe);
        }
        if let Some(Current { suspicion: Some(suspicion), .. }) = &self.current
            && suspicion.search_at.is_some_and(|at| now >= at)
            && self.next.is_none()
            && self.race.is_none()
        {
            self.suspect_search(now);
            self.run_race(now);
        }
        if self.is_quiet() && self.climb.at.is_some_and(|at| now >= at) {
            self.climb.at = None;
            let rungs = self.better_rungs();
            if !rungs.is_empty() {
                self.search(now, Purpose::Climb, rungs, false);
            }
        }
        self.run_race(now);
    }

    /// When to call [`Ladder::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let race = self.race.as_ref().and_then(|race| race.poll_timeout(self.conditions()));
        let next =
            self.next.as_ref().filter(|next| self.is_impatient(next)).map(|next| self.connect_deadline(next));
        let (mut ask, mut search) = (None, None);
        if let Some(current) = &self.current {
            if let Trial::Pending { since, ask_at, trips, .. } = current.trial {
                let passed = (trips >= self.config.trial_trips).then_some(since + self.config.trial_time);
                ask = passed.into_iter().chain([ask_at]).min();
            }
            if self.next.is_none() && self.race.is_none() {
                search = current.suspicion.as_ref().and_then(|suspicion| suspicion.search_at);
            }
        }
        let climb = if self.is_quiet() { self.climb.at } else { None };
        [race, next, ask, search, climb].into_iter().flatten().min()
    }

    /// What the driver must do.
    pub fn poll_event(&mut self) -> Option<LadderEvent> {
        self.events.pop_front()
    }

    /// What is known of networks: to be kept for the next run.
    pub fn memory(&self) -> &LadderMemory {
        &self.memory
    }

    /// The round trip to the server on this network, as far as it was ever measured.
    pub fn rtt(&self) -> Option<Duration> {
        self.memory.peek(&self.origin, &self.network).and_then(Network::rtt)
    }

    /// The rungs, best first.
    pub fn rungs(&self) -> &[TransportKind] {
        &self.rungs
    }

    // What is known.

    /// There is no rung below the last that it could be told from: it has nothing to prove.
    fn trial(&self, now: Instant, transport: TransportKind, climbed: bool) -> Trial {
        if self.rungs.last() == Some(&transport) {
            return Trial::Passed;
        }
        Trial::Pending { since: now, trips: 0, ask_at: now + trial_step(&self.config), climbed }
    }

    /// Nothing but the current connection, which is in order.
    fn is_quiet(&self) -> bool {
        self.next.is_none()
            && self.race.is_none()
            && self.current.as_ref().is_some_and(|current| current.suspicion.is_none())
    }

    fn better_rungs(&self) -> Vec<TransportKind> {
        let Some(current) = &self.current else { return Vec::new() };
        self.rungs.iter().copied().take_while(|rung| *rung != current.transport).collect()
    }

    /// QUIC may open and then lead nowhere; TCP that opened delivers, or is slow.
    fn is_impatient(&self, next: &Next) -> bool {
        is_udp(next.transport) && self.rungs.last() != Some(&next.transport)
    }

    fn connect_deadline(&self, next: &Next) -> Instant {
        if self.is_impatient(next) {
            next.since + self.config.connect_patience
        } else {
            // The session's own bound is nearer.
            next.since + NEVER
        }
    }

    /// How long a suspect connection has to answer once another has opened.
    fn last_chance(&self) -> Duration {
        let rtt = self.rtt().unwrap_or(self.config.initial_rtt);
        (rtt * 3).clamp(self.config.suspect_grace_min, self.config.suspect_grace_max)
    }

    fn conditions(&self) -> Conditions<'_> {
        Conditions { config: &self.config, rtt: self.rtt().unwrap_or(self.config.initial_rtt) }
    }

    fn known(&mut self) -> &mut Network {
        self.memory.network(&self.origin, &self.network)
    }

    fn rank(&self, transport: TransportKind) -> usize {
        self.rungs.iter().position(|rung| *rung == transport).unwrap_or(self.rungs.len())
    }

    fn wall_ms(&self, now: Instant) -> u64 {
        let (at, wall_ms) = self.wall;
        let since = u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX);
        wall_ms.saturating_add(since)
    }
}

/// From a connection that was made in doubt to the climb that ends the doubt.
const SOON: Duration = Duration::from_secs(2);

/// Between the round trips that a trial wants to see.
fn trial_step(config: &LadderConfig) -> Duration {
    config.trial_time.mul_f64(0.3)
}

const NEVER: Duration = Duration::from_secs(24 * 3600);
