//! Sans-io: moving the sessions of a node to others, at the pace that those grant.
//!
//! Every 250 ms the node asks its targets for *leases*, places that they keep free, and asks as many clients to move as
//! it was granted places, if not too many are on their way already. So a client that moves is never refused, and a target
//! that gets busy slows the drain down within one round trip. Only near the deadline are connections closed without a
//! place, at an even pace.
//!
//! The driver feeds in what happens, calls [`Drainer::handle_timeout`] when [`Drainer::poll_timeout`] says so, and does
//! what [`Drainer::poll_event`] gives until it gives nothing.

mod event;
mod queue;
mod targets;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;

use super::admission::{DrainId, Lease, LeaseAsk, SlotKeys, SlotTicket};
use queue::Queue;
use targets::{PlaceAt, Targets};

pub use event::{Candidate, Class, Departure, Event, Progress, Stage};

/// A connection, as the driver names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey(pub u64);

/// What somebody wants drained. Of two, the one with the higher id holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Which drain; among several of a fleet also who goes first: the lower one.
    pub drain: DrainId,
    /// By when everybody is to be gone.
    pub deadline: Instant,
    /// Where they may go.
    pub targets: Vec<NodeId>,
}

/// How patient a drain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainConfig {
    /// From becoming a lame duck to the first client that is asked to move: others stop sending new ones meanwhile.
    pub lame_duck: Duration,
    /// How long a client that was asked to move keeps its present connection.
    pub patience: Duration,
    /// Before the deadline: connections are closed whether there is a place or not. At most half of the whole time.
    pub forced: Duration,
    /// Clients on their way that never are too many.
    pub in_flight: usize,
    /// How long long polls are left to end by themselves, once clients are asked to move: at least one hold. At most half of the
    /// time until connections are closed.
    pub polls: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            lame_duck: Duration::from_secs(1),
            patience: Duration::from_secs(30),
            forced: Duration::from_secs(20),
            in_flight: 64,
            polls: POLL_HOLD.saturating_add(POLL_PATIENCE),
        }
    }
}

/// Where a drain stands.
///
/// ```text
/// LameDuck ── its time is over ──► Moving ── nobody left ──► Ended
///     │ pause  ▲ resume            │    ▲                      ▲
///     ▼        │              pause▼    │resume                │
///   Paused ◄───┴───────────────── Paused ── abort, from every state
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    LameDuck { until: Instant },
    Moving,
    Paused { since: Instant },
    Ended,
}

/// Drains one node.
#[derive(Debug)]
pub struct Drainer {
    config: DrainConfig,
    keys: Arc<SlotKeys>,
    /// An instant, and the Unix time then, milliseconds.
    wall: (Instant, u64),
    drain: DrainId,
    /// Later by as long as it paused.
    began: Instant,
    deadline: Instant,
    phase: Phase,
    next_tick: Instant,
    connections: HashMap<ConnectionKey, Connection>,
    idle: Queue,
    busy: Queue,
    polls: Queue,
    /// Polls whose hold ended a moment ago, and until when they wait.
    ended_polls: Queue,
    ended_until: VecDeque<(Instant, ConnectionKey)>,
    /// Those that are closed when their time comes.
    breaking: Queue,
    /// Asked to move: until when.
    moving: BTreeSet<(Instant, ConnectionKey)>,
    /// Those of them who are there, and have not left here.
    there: BTreeSet<ConnectionKey>,
    targets: Targets,
    counts: Counts,
    /// Places granted per second, over about a second.
    granted: f64,
    granted_at: Instant,
    behind: bool,
    /// Before it, nobody has had the time to grant what is needed.
    judged_from: Instant,
    progress_at: Instant,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Connection {
    candidate: Candidate,
    state: State,
}

/// Where a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// In the queue of its class.
    Waiting,
    /// Asked to move, to be gone until then.
    Moving {
        target: NodeId,
        until: Instant,
    },
    /// Did not move: among those that are closed.
    Stubborn,
    Closing {
        forced: bool,
    },
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    moved: usize,
    closed: usize,
    forced: usize,
    left: usize,
    /// All that were ever to be broken, and those closed of them.
    to_break: usize,
    broken: usize,
}

impl Drainer {
    /// Begins a drain. `wall_ms` is Unix time at `now`. Then tell it every connection.
    pub fn new(
        config: DrainConfig,
        keys: Arc<SlotKeys>,
        order: Order,
        (now, wall_ms): (Instant, u64),
    ) -> Self {
        let mut drainer = Self {
            keys,
            wall: (now, wall_ms),
            drain: order.drain,
            began: now,
            deadline: order.deadline,
            phase: Phase::LameDuck { until: now + config.lame_duck },
            // The first places are asked for so early that they are there in time.
            next_tick: now + config.lame_duck.saturating_sub(ASK_AHEAD),
            connections: HashMap::new(),
            idle: Queue::default(),
            busy: Queue::default(),
            polls: Queue::default(),
            ended_polls: Queue::default(),
            ended_until: VecDeque::new(),
            breaking: Queue::default(),
            moving: BTreeSet::new(),
            there: BTreeSet::new(),
            targets: Targets::default(),
            counts: Counts::default(),
            granted: 0.0,
            granted_at: now,
            behind: false,
            judged_from: now + config.lame_duck + SETTLING,
            progress_at: now,
            events: VecDeque::from([Event::LameDuck(true)]),
            config,
        };
        drainer.targets.set(&order.targets);
        drainer
    }

    // What there is to drain.

    /// A connection is here.
    pub fn handle_connection(&mut self, candidate: Candidate) {
        let connection = Connection { candidate, state: State::Waiting };
        if self.connections.insert(candidate.connection, connection).is_none() {
            self.counts.total += 1;
            self.counts.to_break += usize::from(candidate.class == Class::BreakOnly);
            self.enqueue(candidate);
        }
    }

    /// It is of another class now.
    pub fn handle_class(&mut self, connection: ConnectionKey, class: Class) {
        let Some(known) = self.connections.get_mut(&connection) else { return };
        let before = known.candidate;
        known.candidate.class = class;
        let after = known.candidate;
        if before.class != class && known.state == State::Waiting {
            self.dequeue(before);
            self.enqueue(after);
        }
    }

    /// A connection ended.
    pub fn handle_gone(&mut self, now: Instant, connection: ConnectionKey, departure: Departure) {
        let Some(gone) = self.connections.remove(&connection) else { return };
        if let State::Moving { until, .. } = gone.state {
            self.moving.remove(&(until, connection));
            self.there.remove(&connection);
        } else {
            self.dequeue(gone.candidate);
        }
        let count = match (departure, gone.state) {
            // Also who was on the way to a target that died, and got somewhere.
            (Departure::Resumed, _) => &mut self.counts.moved,
            // Word of a resume may come later than the client's `done`.
            (Departure::Done, State::Moving { .. }) => &mut self.counts.moved,
            (_, State::Closing { forced: false }) => &mut self.counts.closed,
            // It did not go, and its time was over; or its connection broke on the way.
            (Departure::Broken, State::Moving { .. } | State::Stubborn | State::Closing { .. }) => {
                &mut self.counts.forced
            }
            (Departure::Done | Departure::Broken, _) => &mut self.counts.left,
        };
        *count += 1;
        if self.connections.is_empty() && matches!(self.phase, Phase::Moving) {
            self.end(now, false);
        }
    }

    /// The session of a connection was resumed elsewhere: it needs no place any more. Where the client does not leave at once, it is
    /// nobody's business but its own.
    pub fn handle_there(&mut self, connection: ConnectionKey) {
        if let Some(Connection { state: State::Moving { .. }, .. }) = self.connections.get(&connection) {
            self.there.insert(connection);
        }
    }

    /// The hold of a long poll is over: the driver waits for [`POLL_PATIENCE`] more and then answers it, with a `goaway` if one
    /// came meanwhile. Or it is answered at once, because there is something for it: then the next poll brings the `goaway`.
    /// Said again within that time, it changes nothing.
    pub fn handle_poll_ended(&mut self, now: Instant, connection: ConnectionKey) {
        if let Some(Connection { candidate, state: State::Waiting }) = self.connections.get(&connection)
            && candidate.class == Class::LongPoll
            && self.ended_polls.insert(candidate.tenant, order(candidate), connection)
        {
            self.ended_until.push_back((now + POLL_PATIENCE, connection));
        }
    }

    // What the targets say.

    /// A target answered with a lease.
    pub fn handle_lease(&mut self, now: Instant, target: &NodeId, lease: Lease) {
        let (number, count, drain) = (lease.number, lease.count, lease.drain);
        let over = matches!(self.phase, Phase::Ended | Phase::Paused { .. }) || drain != self.drain;
        if over || !self.targets.add(now, target, lease) {
            self.events.push_back(Event::Return { target: target.clone(), lease: number, from: 0 });
            return;
        }
        self.granted = self.granted_rate(now) + f64::from(count);
        self.granted_at = now;
        self.dispatch(now);
    }

    /// A target takes back a lease: nobody more is sent with it. Who is on his way with it is still taken.
    pub fn handle_revoked(&mut self, target: &NodeId, lease: u32) {
        self.targets.revoke(target, lease);
    }

    /// A target is dead. Those on their way to it are asked again, to another one.
    pub fn handle_target_gone(&mut self, target: &NodeId) {
        self.targets.remove(target);
        let moving = std::mem::take(&mut self.moving);
        for (until, key) in moving {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            match &connection.state {
                State::Moving { target: other, .. } if other == target => {
                    self.there.remove(&key);
                    connection.state = State::Waiting;
                    let candidate = connection.candidate;
                    self.enqueue(candidate);
                }
                _ => {
                    self.moving.insert((until, key));
                }
            }
        }
    }

    /// Where those go that are on their way: to targets, and to nodes that were targets when they were asked.
    pub fn destinations(&self) -> BTreeSet<NodeId> {
        let mut found = BTreeSet::new();
        for (_, key) in &self.moving {
            if let Some(Connection { state: State::Moving { target, .. }, .. }) = self.connections.get(key)
                && !found.contains(target)
            {
                found.insert(target.clone());
            }
        }
        found
    }

    /// These are the targets from now on: a node that is drained itself is none.
    pub fn handle_targets(&mut self, targets: &[NodeId]) {
        for (target, lease, from) in self.targets.set(targets) {
            self.events.push_back(Event::Return { target, lease, from });
        }
    }

    // What operators say.

    /// Another order. One with a lower id is out of date; the same or a higher one says by when and where to from now on.
    pub fn handle_order(&mut self, now: Instant, order: Order) {
        if order.drain < self.drain || self.phase == Phase::Ended {
            return;
        }
        if let Phase::Paused { since } = self.phase {
            // Its deadline counts from here.
            self.began += now.saturating_duration_since(since);
            self.phase = Phase::Paused { since: now };
        }
        if order.drain > self.drain {
            self.give_back();
        }
        self.drain = order.drain;
        self.deadline = order.deadline;
        self.handle_targets(&order.targets);
    }

    /// Asks nobody more to move. Those on their way go on.
    pub fn pause(&mut self, now: Instant) {
        if matches!(self.phase, Phase::LameDuck { .. } | Phase::Moving) {
            self.phase = Phase::Paused { since: now };
            self.give_back();
        }
    }

    /// Goes on, as if no time had passed. The deadline is later by as long as it paused, or as long as it paused since the
    /// order: that long.
    pub fn resume(&mut self, now: Instant) -> Duration {
        let Phase::Paused { since } = self.phase else { return Duration::ZERO };
        let paused = now.saturating_duration_since(since);
        self.began += paused;
        self.deadline += paused;
        self.judged_from = now + SETTLING;
        self.phase = Phase::Moving;
        self.next_tick = now;
        paused
    }

    /// Calls it off. Everybody who was not asked to move stays.
    pub fn abort(&mut self, now: Instant) {
        if self.phase != Phase::Ended {
            self.events.push_back(Event::LameDuck(false));
            self.end(now, true);
        }
    }

    // Time.

    /// When to call [`Drainer::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        matches!(self.phase, Phase::LameDuck { .. } | Phase::Moving).then_some(self.next_tick)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Phase::LameDuck { until } = self.phase
            && self.next_tick <= now
        {
            if now < until {
                self.next_tick = (now + TICK).min(until);
                self.ask(now);
                return;
            }
            self.phase = Phase::Moving;
        }
        if self.phase != Phase::Moving || now < self.next_tick {
            return;
        }
        // Ticks that were missed are not made up for: leases say how many may move.
        self.next_tick = now + TICK;
        if self.connections.is_empty() {
            self.end(now, false);
            return;
        }
        self.expire_moves(now);
        self.expire_polls(now);
        self.dispatch(now);
        self.judge_pace(now);
        self.ask(now);
        self.force(now);
        if self.progress_at <= now {
            self.progress_at = now + PROGRESS;
            let progress = self.progress(now);
            self.events.push_back(Event::Progress(progress));
        }
    }

    /// What the driver must do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Where it stands.
    pub fn stage(&self) -> Stage {
        match self.phase {
            Phase::LameDuck { .. } => Stage::LameDuck,
            Phase::Moving => Stage::Move,
            Phase::Paused { .. } => Stage::Pause,
            Phase::Ended => Stage::End,
        }
    }

    /// At this rate it will not be done in time.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// How far it is.
    pub fn progress(&self, now: Instant) -> Progress {
        let remaining = self.connections.len();
        let rate = self.granted_rate(now);
        let eta = (rate > 0.5).then(|| Duration::from_secs_f64(remaining as f64 / rate));
        Progress {
            total: self.counts.total,
            moved: self.counts.moved,
            closed: self.counts.closed,
            forced: self.counts.forced,
            left: self.counts.left,
            in_flight: self.in_flight(),
            remaining,
            rate,
            eta,
            aborted: false,
        }
    }

    // The pace.

    /// Uses the places that there are.
    fn dispatch(&mut self, now: Instant) {
        if self.phase != Phase::Moving {
            return;
        }
        let unix_ms = self.unix_ms(now);
        let mut budget = self.targets.available(unix_ms).min(self.room(now));
        let breaking = self.due_to_break(now).min(budget);
        for key in self.breaking.take(breaking) {
            let place = self.place(unix_ms, key);
            self.counts.broken += 1;
            self.close(key, place.map(|place| (place.target, place.ticket)), false);
            budget -= 1;
        }
        // A poll that is not told now is told when its next hold ends.
        let polls = self.ended_polls.take(budget);
        for key in &polls {
            self.leave_polls(*key);
        }
        let idle = self.idle.take(budget - polls.len());
        let busy = self.busy.take(budget - polls.len() - idle.len());
        // With nobody else left, polls that had their time are not waited for.
        let rest = if self.idle.len() + self.busy.len() == 0 && !self.awaits_polls(now) {
            self.polls.take(budget - polls.len() - idle.len() - busy.len())
        } else {
            Vec::new()
        };
        for key in polls.into_iter().chain(idle).chain(busy).chain(rest) {
            self.send_away(now, unix_ms, key);
        }
    }

    fn send_away(&mut self, now: Instant, unix_ms: u64, key: ConnectionKey) {
        let Some(candidate) = self.connections.get(&key).map(|connection| connection.candidate) else {
            return;
        };
        let Some(place) = self.targets.take(&self.keys, unix_ms) else {
            // Not as long as no more are sent away than there are places.
            self.enqueue(candidate);
            return;
        };
        // Whoever is there at the deadline is closed then.
        let left = self.deadline.saturating_duration_since(now).max(SHORTEST);
        let deadline = (place.after + self.config.patience).min(left);
        let until = now + deadline;
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.state = State::Moving { target: place.target.clone(), until };
        if candidate.class == Class::LongPoll {
            self.leave_polls(key);
        }
        self.moving.insert((until, key));
        self.events.push_back(Event::Goaway {
            connection: key,
            target: place.target,
            ticket: place.ticket,
            after: place.after.min(deadline / 2),
            deadline,
        });
    }

    /// It is no poll any more that waits, with its hold over or not.
    fn leave_polls(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get(&key) {
            let candidate = connection.candidate;
            self.polls.remove(candidate.tenant, order(&candidate), key);
            self.ended_polls.remove(candidate.tenant, order(&candidate), key);
        }
    }

    fn place(&mut self, unix_ms: u64, key: ConnectionKey) -> Option<PlaceAt> {
        self.connections.get(&key)?;
        self.targets.take(&self.keys, unix_ms)
    }

    fn close(&mut self, key: ConnectionKey, place: Option<(NodeId, SlotTicket)>, forced: bool) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.state = State::Closing { forced };
        self.events.push_back(Event::Close { connection: key, place, forced });
    }

    /// How many more may be on their way: two seconds' worth in all.
    fn room(&self, now: Instant) -> usize {
        let rate = self.granted_rate(now).max(self.targets.latest_rate(now));
        let bound = (rate * IN_FLIGHT.as_secs_f64()) as usize;
        bound.max(self.config.in_flight).saturating_sub(self.in_flight())
    }

    /// Asked to move, and not there.
    fn in_flight(&self) -> usize {
        self.moving.len() - self.there.len()
    }

    fn ask(&mut self, now: Instant) {
        let unix_ms = self.unix_ms(now);
        let breaking = self.due_to_break(now + ASK_AHEAD);
        let others = self.idle.len() + self.busy.len();
        let polls = if others > 0 || self.awaits_polls(now) {
            let soon = self.polls.len() as f64 * ASK_AHEAD.as_secs_f64() / POLL_HOLD.as_secs_f64();
            self.ended_polls.len() + soon.ceil() as usize
        } else {
            self.polls.len()
        };
        let waiting = others + breaking + polls;
        let wanted = waiting.saturating_sub(self.targets.available(unix_ms));
        // A target that has not granted anything yet does not count as slow.
        let room = if self.granted > 0.0 { self.room(now) } else { wanted };
        let targets: Vec<NodeId> = self.targets.nodes().cloned().collect();
        for target in targets {
            let want = wanted.min(room).saturating_sub(self.targets.available_at(&target));
            let want = u32::try_from(want).unwrap_or(u32::MAX);
            if want > 0 {
                let ask = LeaseAsk { drain: self.drain, want, urgent: self.behind };
                self.events.push_back(Event::Ask { target, ask });
            }
        }
        if waiting == 0 {
            self.give_back();
        }
    }

    /// Whether polls are left to end by themselves although nobody else is there.
    fn awaits_polls(&self, now: Instant) -> bool {
        let half = self.forced_from().saturating_duration_since(self.began) / 2;
        now < self.began + (self.config.lame_duck + self.config.polls).min(half)
    }

    /// Those that only break are spread over the whole time.
    fn due_to_break(&self, at: Instant) -> usize {
        let whole = self.forced_from().saturating_duration_since(self.began).as_secs_f64();
        let share = at.saturating_duration_since(self.began).as_secs_f64() / whole.max(f64::MIN_POSITIVE);
        let due = (self.counts.to_break as f64 * share.min(1.0)).ceil() as usize;
        due.saturating_sub(self.counts.broken).min(self.breaking.len())
    }

    /// Clients that were asked to move and did not.
    fn expire_moves(&mut self, now: Instant) {
        while let Some(&(until, key)) = self.moving.first()
            && until <= now
        {
            self.moving.pop_first();
            self.there.remove(&key);
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.state = State::Stubborn;
            let candidate = connection.candidate;
            self.counts.to_break += 1;
            self.breaking.insert(candidate.tenant, order(&candidate), key);
        }
    }

    /// Polls that were answered without a `goaway`: their next hold has begun.
    fn expire_polls(&mut self, now: Instant) {
        while let Some(&(until, key)) = self.ended_until.front()
            && until <= now
        {
            self.ended_until.pop_front();
            let Some(connection) = self.connections.get(&key) else { continue };
            let candidate = connection.candidate;
            self.ended_polls.remove(candidate.tenant, order(&candidate), key);
        }
    }

    fn judge_pace(&mut self, now: Instant) {
        let left = self.forced_from().saturating_duration_since(now).max(TICK).as_secs_f64();
        // Polls that nobody asks a place for yet are not slow.
        let polls = if self.awaits_polls(now) { self.ended_polls.len() } else { self.polls.len() };
        let waiting = self.idle.len() + self.busy.len() + polls;
        let (needed, granted) = (waiting as f64 / left, self.granted_rate(now));
        let settled = now > self.judged_from;
        if self.behind {
            self.behind = waiting > 0 && needed * CLEARLY > granted;
        } else if settled && waiting > 0 && needed > granted {
            self.behind = true;
            self.events.push_back(Event::Behind { needed, granted });
        }
    }

    /// Near the deadline: everybody who is left, evenly over the time that is.
    fn force(&mut self, now: Instant) {
        if now < self.forced_from() {
            return;
        }
        let left = self.deadline.saturating_duration_since(now);
        let ticks = left.as_secs_f64() / TICK.as_secs_f64();
        let open = self.connections.len() - self.closing();
        let mut budget = if ticks < 1.0 { open } else { (open as f64 / ticks).ceil() as usize };
        let unix_ms = self.unix_ms(now);
        for queue in [Queues::Breaking, Queues::Idle, Queues::Busy, Queues::Polls] {
            let taken = match queue {
                Queues::Breaking => self.breaking.take(budget),
                Queues::Idle => self.idle.take(budget),
                Queues::Busy => self.busy.take(budget),
                Queues::Polls => self.polls.take(budget),
            };
            budget -= taken.len();
            for key in taken {
                self.leave_polls(key);
                let place = self.place(unix_ms, key);
                self.close(key, place.map(|place| (place.target, place.ticket)), true);
            }
        }
        // Who is on his way has been told already.
        while budget > 0
            && ticks < 1.0
            && let Some((_, key)) = self.moving.pop_first()
        {
            self.there.remove(&key);
            self.close(key, None, true);
            budget -= 1;
        }
    }

    fn closing(&self) -> usize {
        let open = self.idle.len() + self.busy.len() + self.polls.len() + self.breaking.len();
        self.connections.len() - open - self.moving.len()
    }

    fn forced_from(&self) -> Instant {
        let whole = self.deadline.saturating_duration_since(self.began);
        self.deadline.checked_sub(self.config.forced.min(whole / 2)).unwrap_or(self.began)
    }

    fn granted_rate(&self, now: Instant) -> f64 {
        self.granted * (-now.saturating_duration_since(self.granted_at).as_secs_f64()).exp()
    }

    fn give_back(&mut self) {
        for (target, lease, from) in self.targets.take_all() {
            self.events.push_back(Event::Return { target, lease, from });
        }
    }

    fn end(&mut self, now: Instant, aborted: bool) {
        self.give_back();
        self.phase = Phase::Ended;
        let progress = Progress { aborted, ..self.progress(now) };
        self.events.push_back(Event::Done(progress));
    }

    fn enqueue(&mut self, candidate: Candidate) {
        let queue = match candidate.class {
            Class::Idle => &mut self.idle,
            Class::Busy => &mut self.busy,
            Class::LongPoll => &mut self.polls,
            Class::BreakOnly => &mut self.breaking,
        };
        queue.insert(candidate.tenant, order(&candidate), candidate.connection);
    }

    fn dequeue(&mut self, candidate: Candidate) {
        let place = order(&candidate);
        for queue in
            [&mut self.idle, &mut self.busy, &mut self.polls, &mut self.ended_polls, &mut self.breaking]
        {
            queue.remove(candidate.tenant, place, candidate.connection);
        }
    }

    fn unix_ms(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.wall.0).as_millis();
        self.wall.1.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

#[derive(Clone, Copy)]
enum Queues {
    Breaking,
    Idle,
    Busy,
    Polls,
}

/// By rank, but not one after the other: consecutive ranks connected together, and may belong together.
fn order(candidate: &Candidate) -> u32 {
    candidate.rank.wrapping_mul(0x9e37_79b9)
}

/// How often targets are asked.
const TICK: Duration = Duration::from_millis(250);
const PROGRESS: Duration = Duration::from_secs(1);
/// What a client that was asked to move has at least, however near the deadline is.
const SHORTEST: Duration = Duration::from_secs(1);
/// On their way at once: what is granted in this time.
const IN_FLIGHT: Duration = Duration::from_secs(2);
/// From asking for a place to having it, more or less.
const ASK_AHEAD: Duration = Duration::from_millis(750);
/// How long a poll whose hold is over waits for a place: as long as it takes to ask for one, and to get it.
pub const POLL_PATIENCE: Duration = Duration::from_secs(1);
/// Of long polls.
const POLL_HOLD: Duration = Duration::from_secs(25);
/// Before the pace is judged.
const SETTLING: Duration = Duration::from_secs(3);
const CLEARLY: f64 = 1.2;

#[cfg(test)]
mod tests;
