//! A node is drained into others whose slack falls and rises meanwhile.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_edge::policy::admission::{
    AddressLimits, Admission, AdmissionConfig, Attempt, Decision, DrainId, Lease, LeaseAsk, SlotKeys,
    SlotTicket,
};
use tidegate_edge::policy::drain::{
    Candidate, Class, ConnectionKey, Departure, DrainConfig as MachineConfig, Drainer, Event as Act, Order,
};
use tidegate_protocol::NodeId;

use super::agenda::Agenda;
use super::network::{KNOWN_PATH, Network};

/// One drain.
#[derive(Debug, Clone)]
pub struct DrainConfig {
    /// Connections of the node.
    pub clients: u32,
    /// What all targets together can take beside the rest, per second: from which second on how much.
    pub slack: Vec<(f64, f64)>,
    /// They are so many.
    pub targets: u16,
    /// From a target's decision to the drained node, and the other way round.
    pub feedback: Duration,
    /// By when everybody is to be gone.
    pub within: Duration,
    /// Of packets that count.
    pub loss: f64,
    /// Of the clients: long polls.
    pub polls: f64,
    /// Random numbers of everything.
    pub seed: u64,
}

impl DrainConfig {
    /// So many clients; slack of N/25 a second, an eighth of it from the tenth to the fortieth second.
    pub fn new(clients: u32, seed: u64) -> Self {
        let slack = f64::from(clients) / 25.0;
        Self {
            clients,
            slack: vec![(0.0, slack), (10.0, slack / 8.0), (40.0, slack)],
            targets: 4,
            feedback: Duration::from_millis(200),
            within: Duration::from_secs(300),
            loss: 0.02,
            polls: 0.1,
            seed,
        }
    }

    /// The time T with ∫ 0.8 · S(t) dt = N from 0 to T: what a drain takes that uses 0.8 of the slack that there is at each
    /// moment, knows it at once, and needs no time for anything else. Seconds.
    pub fn ideal(&self) -> f64 {
        let mut left = f64::from(self.clients);
        for (index, (from, slack)) in self.slack.iter().enumerate() {
            let until = self.slack.get(index + 1).map_or(f64::INFINITY, |(next, _)| *next);
            let moved = SHARE * slack * (until - from);
            if moved >= left {
                return from + left / (SHARE * slack);
            }
            left -= moved;
        }
        f64::INFINITY
    }

    fn slack_at(&self, second: f64) -> f64 {
        self.slack.iter().rev().find(|(from, _)| *from <= second).map_or(0.0, |(_, slack)| *slack)
    }

    /// What a target could take if nobody else came.
    fn rate(&self) -> f64 {
        1.25 * self.slack.iter().map(|(_, slack)| *slack).fold(0.0, f64::max) / f64::from(self.targets)
    }
}

/// What became of it.
#[derive(Debug, Clone)]
pub struct DrainOutcome {
    /// Connections that there were.
    pub clients: u32,
    /// See [`DrainConfig::ideal`].
    pub ideal: f64,
    /// Until the last was gone, seconds; the time as a lame duck included.
    pub took: f64,
    /// Until 99.9 % were.
    pub took_999: f64,
    /// Migrating clients that were not let in.
    pub refused: u32,
    /// The longest that one of them was held at the door.
    pub longest_hold: Duration,
    /// Clients that moved.
    pub moved: usize,
    /// Connections that were closed.
    pub forced: usize,
    /// Others that came to a target and were told to come later.
    pub deferred: u32,
    /// The most that one target let in within any second, over its rate.
    pub busiest_second: f64,
    /// What happened second by second.
    pub seconds: Vec<Second>,
}

/// One second of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Second {
    /// What targets could take beside the rest.
    pub slack: f64,
    /// Places granted.
    pub granted: u32,
    /// Clients that were gone from the old node.
    pub moved: u32,
    /// Asked to move, at its end.
    pub in_flight: u32,
    /// Not gone, at its end.
    pub left: u32,
    /// Others deferred by targets.
    pub deferred: u32,
}

/// Simulates a drain to its end.
pub fn run(config: &DrainConfig) -> DrainOutcome {
    let mut simulation = Simulation::new(config);
    while simulation.took.is_none()
        && simulation.agenda.seconds() < config.within.as_secs_f64() + 60.0
        && let Some(event) = simulation.agenda.pop()
    {
        simulation.handle(event);
    }
    simulation.outcome()
}

struct Simulation<'a> {
    config: &'a DrainConfig,
    agenda: Agenda<Event>,
    rng: ChaCha8Rng,
    network: Network,
    drainer: Drainer,
    /// The node that is drained.
    name: NodeId,
    targets: Vec<(NodeId, Admission)>,
    round_trips: Vec<Duration>,
    tickets: Vec<Option<SlotTicket>>,
    poll_due: Vec<bool>,
    admitted: Vec<Vec<u64>>,
    seconds: Vec<Second>,
    others: u64,
    gone: u32,
    took_999: Option<f64>,
    refused: u32,
    longest_hold: Duration,
    took: Option<f64>,
}

#[derive(Debug, Clone)]
enum Event {
    Tick,
    Ask {
        target: u16,
        ask: LeaseAsk,
    },
    Lease {
        target: u16,
        lease: Lease,
    },
    /// Somebody who has nothing to do with the drain.
    Other {
        target: u16,
    },
    PollEnds {
        client: u32,
    },
    Dial {
        client: u32,
        target: u16,
    },
    Arrive {
        client: u32,
        target: u16,
    },
    Done {
        client: u32,
        target: u16,
    },
    Gone {
        client: u32,
    },
}

impl<'a> Simulation<'a> {
    fn new(config: &'a DrainConfig) -> Self {
        let mut agenda = Agenda::new();
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let network = Network { loss: config.loss, first_timer: KNOWN_PATH };
        let keys = Arc::new(SlotKeys::new(&[7; 32], None));
        let wall = (agenda.now(), 1_790_000_000_000);
        let targets: Vec<_> = (0..config.targets)
            .map(|target| {
                let name = NodeId::new(&format!("target-{target}"));
                let addresses =
                    AddressLimits { rate: 1e6, burst: 1_000_000, networks: 65_536, exempt: Vec::new() };
                let limits = AdmissionConfig { addresses, ..AdmissionConfig::for_rate(config.rate()) };
                let rng = ChaCha8Rng::from_rng(&mut rng);
                let admission = Admission::new(limits, Arc::clone(&keys), &name, wall, rng);
                (name, admission)
            })
            .collect();
        let order = Order {
            drain: DrainId(1),
            deadline: agenda.now() + config.within,
            targets: targets.iter().map(|(name, _)| name.clone()).collect(),
        };
        let mut drainer = Drainer::new(MachineConfig::default(), keys, order, wall);
        let mut poll_due = Vec::new();
        for client in 0..config.clients {
            let class = match rng.random_range(0.0..1.0) {
                share if share < config.polls => Class::LongPoll,
                share if share < config.polls + 0.7 => Class::Idle,
                _ => Class::Busy,
            };
            drainer.handle_connection(Candidate {
                connection: ConnectionKey(client.into()),
                class,
                rank: client,
                // Few large tenants, many small ones.
                tenant: (rng.random_range(0.0_f64..1.0).powi(4) * 1_000.0) as u64,
            });
            poll_due.push(class == Class::LongPoll);
            if class == Class::LongPoll {
                agenda.after(HOLD.mul_f64(rng.random_range(0.0..1.0)), Event::PollEnds { client });
            }
        }
        for target in 0..config.targets {
            agenda.after(Duration::ZERO, Event::Other { target });
        }
        agenda.after(Duration::ZERO, Event::Tick);
        Self {
            round_trips: (0..config.clients).map(|_| network.round_trip(&mut rng)).collect(),
            tickets: vec![None; config.clients as usize],
            poll_due,
            admitted: vec![Vec::new(); config.targets.into()],
            seconds: Vec::new(),
            others: 0,
            gone: 0,
            took_999: None,
            refused: 0,
            longest_hold: Duration::ZERO,
            took: None,
            config,
            agenda,
            rng,
            network,
            drainer,
            name: NodeId::new("drained"),
            targets,
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.agenda.now();
        match event {
            Event::Tick => {
                if let Some(at) = self.drainer.poll_timeout() {
                    if at <= now {
                        self.drainer.handle_timeout(now);
                        self.react();
                    }
                    if let Some(at) = self.drainer.poll_timeout() {
                        self.agenda.at(self.agenda.micros_of(at), Event::Tick);
                    }
                }
            }
            Event::Ask { target, ask } => {
                let lease = self.targets[usize::from(target)].1.handle_lease_ask(now, &self.name, ask);
                if let Some(lease) = lease {
                    self.second().granted += u32::from(lease.count);
                    self.agenda.after(self.config.feedback, Event::Lease { target, lease });
                }
            }
            Event::Lease { target, lease } => {
                let name = self.targets[usize::from(target)].0.clone();
                self.drainer.handle_lease(now, &name, lease);
                self.react();
            }
            Event::Other { target } => self.other(target),
            Event::PollEnds { client } => {
                if self.poll_due[client as usize] {
                    self.drainer.handle_poll_ended(now, ConnectionKey(client.into()));
                    let again = HOLD.mul_f64(self.rng.random_range(0.9..1.1));
                    self.agenda.after(again, Event::PollEnds { client });
                }
            }
            Event::Dial { client, target } => {
                let delay = self.one_way(client);
                self.agenda.after(delay, Event::Arrive { client, target });
            }
            Event::Arrive { client, target } => self.arrive(client, target),
            Event::Done { client, target } => {
                self.targets[usize::from(target)].1.handle_finished();
                // The answer to the client, its `done` to the old node.
                let delay = self.one_way(client) + self.one_way_settled(client);
                self.agenda.after(delay, Event::Gone { client });
            }
            Event::Gone { client } => {
                self.second().moved += 1;
                self.gone += 1;
                if f64::from(self.gone) >= f64::from(self.config.clients) * 0.999 {
                    self.took_999.get_or_insert_with(|| self.agenda.seconds());
                }
                self.drainer.handle_gone(now, ConnectionKey(client.into()), Departure::Resumed);
                self.react();
            }
        }
    }

    fn react(&mut self) {
        while let Some(event) = self.drainer.poll_event() {
            match event {
                Act::Ask { target, ask } => {
                    let target = self.target(&target);
                    self.agenda.after(self.config.feedback, Event::Ask { target, ask });
                }
                Act::Return { target, lease, from } => {
                    let target = self.target(&target);
                    self.targets[usize::from(target)].1.handle_lease_returned(lease, from);
                }
                Act::Goaway { connection, target, ticket, after, .. } => {
                    let client = connection.0 as u32;
                    self.poll_due[client as usize] = false;
                    self.tickets[client as usize] = Some(ticket);
                    let target = self.target(&target);
                    let delay = self.one_way_settled(client) + after;
                    self.agenda.after(delay, Event::Dial { client, target });
                }
                Act::Close { connection, .. } => {
                    let client = connection.0 as u32;
                    self.poll_due[client as usize] = false;
                    self.agenda.after(Duration::ZERO, Event::Gone { client });
                }
                Act::Done(_) => self.took = Some(self.agenda.seconds()),
                Act::LameDuck(_) | Act::Progress(_) | Act::Behind { .. } => {}
            }
        }
        let now = self.agenda.now();
        let progress = self.drainer.progress(now);
        let second = self.second();
        second.in_flight = progress.in_flight as u32;
        second.left = progress.remaining as u32;
    }

    fn arrive(&mut self, client: u32, target: u16) {
        let now = self.agenda.now();
        let ticket = self.tickets[client as usize];
        let attempt = Attempt {
            address: address(client),
            validated: true,
            ticket: ticket.as_ref(),
            costly_answer: false,
            arrived: false,
        };
        match self.targets[usize::from(target)].1.handle_attempt(now, &attempt) {
            Decision::Admit { at } => {
                self.longest_hold = self.longest_hold.max(at - now);
                let micros = self.agenda.micros_of(at);
                self.admitted[usize::from(target)].push(micros);
                self.agenda.at(micros + HANDSHAKE.as_micros() as u64, Event::Done { client, target });
            }
            // It stays where it is, and is closed in the end.
            Decision::Defer { .. } | Decision::Refuse(_) => self.refused += 1,
        }
    }

    /// Somebody comes, and somebody else after a random time.
    fn other(&mut self, target: u16) {
        let now = self.agenda.now();
        self.others += 1;
        let client = (self.others as u32).wrapping_add(1 << 31);
        let attempt = Attempt {
            address: address(client),
            validated: true,
            ticket: None,
            costly_answer: false,
            arrived: false,
        };
        match self.targets[usize::from(target)].1.handle_attempt(now, &attempt) {
            Decision::Admit { at } => {
                self.admitted[usize::from(target)].push(self.agenda.micros_of(at));
                // Short handshakes of theirs do not matter here.
                self.targets[usize::from(target)].1.handle_finished();
            }
            Decision::Defer { .. } | Decision::Refuse(_) => self.second().deferred += 1,
        }
        let slack = self.config.slack_at(self.agenda.seconds());
        let theirs = self.config.rate() - slack / f64::from(self.config.targets);
        let pause = -self.rng.random_range(f64::MIN_POSITIVE..1.0).ln() / theirs.max(0.001);
        self.agenda.after(Duration::from_secs_f64(pause.min(1.0)), Event::Other { target });
    }

    fn target(&self, name: &NodeId) -> u16 {
        self.targets.iter().position(|(other, _)| other == name).unwrap_or(0) as u16
    }

    fn one_way(&mut self, client: u32) -> Duration {
        self.network.one_way(self.round_trips[client as usize], &mut self.rng)
    }

    fn one_way_settled(&mut self, client: u32) -> Duration {
        self.network.one_way_settled(self.round_trips[client as usize], &mut self.rng)
    }

    fn second(&mut self) -> &mut Second {
        let second = (self.agenda.micros() / 1_000_000) as usize;
        while self.seconds.len() <= second {
            let last = self
                .seconds
                .last()
                .copied()
                .unwrap_or_else(|| Second { left: self.config.clients, ..Second::default() });
            let slack = self.config.slack_at(self.seconds.len() as f64);
            self.seconds.push(Second {
                slack,
                in_flight: last.in_flight,
                left: last.left,
                ..Second::default()
            });
        }
        &mut self.seconds[second]
    }

    fn outcome(mut self) -> DrainOutcome {
        let progress = self.drainer.progress(self.agenda.now());
        let busiest = self.admitted.iter_mut().map(|times| {
            times.sort_unstable();
            super::outage::busiest(times)
        });
        DrainOutcome {
            clients: self.config.clients,
            ideal: self.config.ideal(),
            took: self.took.unwrap_or(f64::INFINITY),
            took_999: self.took_999.unwrap_or(f64::INFINITY),
            refused: self.refused,
            longest_hold: self.longest_hold,
            moved: progress.moved,
            forced: progress.forced + progress.closed,
            deferred: self.seconds.iter().map(|second| second.deferred).sum(),
            busiest_second: busiest.max().unwrap_or(0) as f64 / self.config.rate(),
            seconds: self.seconds,
        }
    }
}

fn address(client: u32) -> IpAddr {
    IpAddr::from((client.wrapping_mul(0x9e37_79b9) | 0x0100_0000).to_be_bytes())
}

/// What leases get of the slack.
const SHARE: f64 = 0.8;
/// Of long polls.
const HOLD: Duration = Duration::from_secs(25);
const HANDSHAKE: Duration = Duration::from_millis(50);
