//! A region is gone, and all of its clients come back to the others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_edge::policy::admission::{Admission, AdmissionConfig, Attempt, SlotKeys, SlotTicket};
use tidegate_edge::policy::plan::{Domain, Outlook, Planner};
use tidegate_protocol::NodeId;
use tidegate_protocol::plan::{Alternative, ReconnectPlan};
use tidegate_protocol::reconnect::{Cause, Reconnect};

use super::agenda::Agenda;
use super::client::{Brain, DEAD, NextDial, Whom, live};
use super::door::{Answer, Bucket, Costs, Cpu, Door};
use super::network::{Network, UNKNOWN_PATH};

pub use super::client::Strategy;

/// One storm.
#[derive(Debug, Clone)]
pub struct StormConfig {
    /// Clients of the region that is gone.
    pub clients: u32,
    /// What all others together can take, clients per second.
    pub rate: f64,
    /// They are so many nodes.
    pub nodes: u16,
    /// How clients come back.
    pub strategy: Strategy,
    /// Published windows are this part of what they should be.
    pub window: f64,
    /// To refuse somebody costs a handshake.
    pub costly: bool,
    /// Of packets that count.
    pub loss: f64,
    /// Clients that never come back, and that do not come to a slot.
    pub no_show: f64,
    /// Random numbers of everything.
    pub seed: u64,
    /// When to stop waiting for the rest.
    pub limit: Duration,
}

impl StormConfig {
    /// So many clients, to be taken in 125 s by eight nodes.
    pub fn new(clients: u32, seed: u64) -> Self {
        Self {
            clients,
            rate: f64::from(clients) / 125.0,
            nodes: 8,
            strategy: Strategy::Planned,
            window: 1.0,
            costly: false,
            loss: 0.02,
            no_show: 0.05,
            seed,
            limit: Duration::from_secs(625),
        }
    }

    /// How long it takes at the very least, seconds: N/R.
    pub fn ideal(&self) -> f64 {
        f64::from(self.clients) / self.rate
    }
}

/// What became of it. Times in seconds since the region was gone; shares of those who want to come back.
#[derive(Debug, Clone)]
pub struct StormOutcome {
    /// Clients that came back or still try.
    pub wanting: u32,
    /// Clients that are back.
    pub back: u32,
    /// When half of them were.
    pub t50: Option<f64>,
    /// 99 %.
    pub t99: Option<f64>,
    /// 99.9 %.
    pub t999: Option<f64>,
    /// Dials to nodes that live, per client.
    pub attempts: f64,
    /// Dials into the region that is gone, per client.
    pub dead_dials: f64,
    /// The most dials within one second.
    pub peak_dials: u32,
    /// The most that were let in within any second, over the rate.
    pub busiest_second: f64,
    /// CPU spent on those who did not get in, over all that was there until 99.9 % were back (or the end).
    pub wasted: f64,
    /// Refusals of all kinds, per client.
    pub refused: f64,
    /// What happened second by second.
    pub seconds: Vec<Second>,
}

/// One second of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Second {
    /// Dials that reached a node.
    pub dials: u32,
    /// Let in.
    pub admitted: u32,
    /// Given a slot, or refused.
    pub refused: u32,
    /// Lost or dropped without a word.
    pub dropped: u32,
    /// Back.
    pub back: u32,
    /// Work done, units.
    pub work: f64,
    /// Of that, for nothing.
    pub wasted: f64,
}

/// Simulates a storm to its end or its limit.
pub fn run(config: &StormConfig) -> StormOutcome {
    let mut storm = Storm::new(config);
    let limit = config.limit.as_micros() as u64;
    while let Some(event) = storm.agenda.pop() {
        if storm.agenda.micros() > limit {
            break;
        }
        storm.handle(event);
    }
    storm.outcome()
}

struct Storm<'a> {
    config: &'a StormConfig,
    agenda: Agenda<Event>,
    rng: ChaCha8Rng,
    network: Network,
    costs: Costs,
    plans: Plans,
    clients: Vec<Client>,
    nodes: Vec<Node>,
    seconds: Vec<Second>,
    /// When each was let in, microseconds.
    admitted: Vec<u64>,
    back: Vec<u64>,
    dead_dials: u64,
    gone: u32,
}

#[derive(Debug)]
struct Client {
    /// Gone when it is back, or never was: for memory's sake.
    brain: Option<Box<Brain>>,
    round_trip: Duration,
    /// Dials are numbered; what belongs to an earlier one is of no interest.
    dial: u32,
    node: u16,
    ticket: Option<SlotTicket>,
    /// Slot and ticket, on their way.
    answer: Option<(Duration, SlotTicket)>,
}

struct Node {
    cpu: Cpu,
    door: Door,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// The client notices that its connection is gone.
    Lost {
        client: u32,
    },
    Dial {
        client: u32,
        dial: u32,
        dead: bool,
    },
    Arrive {
        client: u32,
        dial: u32,
        node: u16,
    },
    /// Its turn.
    Begin {
        client: u32,
        dial: u32,
        node: u16,
    },
    Served {
        client: u32,
        dial: u32,
        node: u16,
    },
    Connected {
        client: u32,
        dial: u32,
    },
    Told {
        client: u32,
        dial: u32,
        what: What,
    },
    /// The client does not wait any longer.
    GiveUp {
        client: u32,
        dial: u32,
    },
}

#[derive(Debug, Clone, Copy)]
enum What {
    Deferred,
    Refused,
    Elsewhere,
}

impl<'a> Storm<'a> {
    fn new(config: &'a StormConfig) -> Self {
        let mut agenda = Agenda::new();
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let network = Network { loss: config.loss, first_timer: UNKNOWN_PATH };
        let plans = Plans::new(config, &agenda, &mut rng);
        let keys = Arc::new(SlotKeys::new(&[7; 32], None));
        let rate = config.rate / f64::from(config.nodes);
        let now = agenda.now();
        let nodes = (0..config.nodes).map(|node| {
            let door = match config.strategy {
                Strategy::Planned => {
                    let name = NodeId::new(&live(node.into()));
                    let wall = (now, 1_790_000_000_000);
                    let rng = ChaCha8Rng::from_rng(&mut rng);
                    let mut admission = AdmissionConfig::for_rate(rate);
                    // What the CPU has left when it admits as many as it may, a little kept back.
                    admission.costly_answers = 0.9 * (CAPACITY - 1.0) * rate / Costs::new(true).refuse;
                    Door::Slots(Box::new(Admission::new(admission, Arc::clone(&keys), &name, wall, rng)))
                }
                _ => Door::Bucket(Bucket::new(now, rate)),
            };
            Node { cpu: Cpu::new(CAPACITY * rate), door }
        });
        let nodes = nodes.collect();
        let mut clients = Vec::with_capacity(config.clients as usize);
        let mut gone = 0;
        for client in 0..config.clients {
            let round_trip = network.round_trip(&mut rng);
            let noticed = Duration::from_micros(rng.random_range(0..NOTICED.as_micros() as u64));
            if rng.random_range(0.0..1.0) < config.no_show {
                gone += 1;
            } else {
                agenda.after(noticed, Event::Lost { client });
            }
            clients.push(Client { brain: None, round_trip, dial: 0, node: 0, ticket: None, answer: None });
        }
        Self {
            costs: Costs::new(config.costly),
            config,
            agenda,
            rng,
            network,
            plans,
            clients,
            nodes,
            seconds: Vec::new(),
            admitted: Vec::new(),
            back: Vec::new(),
            dead_dials: 0,
            gone,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Lost { client } => {
                let rng = ChaCha8Rng::from_rng(&mut self.rng);
                let plan = || self.plans.of(client, &mut self.rng);
                self.clients[client as usize].brain =
                    Some(Box::new(Brain::new(self.config.strategy, rng, plan)));
                self.again(client, Cause::ServerLost);
            }
            Event::Dial { client, dial, dead } => self.dial(client, dial, dead),
            Event::Arrive { client, dial, node } => self.arrive(client, dial, node),
            Event::Begin { client, dial, node } => match self.work(node, self.costs.accept) {
                Some(done) => self.agenda.at(done, Event::Served { client, dial, node }),
                None => {
                    self.second().dropped += 1;
                    self.nodes[usize::from(node)].door.finished();
                }
            },
            Event::Served { client, dial, node } => {
                self.nodes[usize::from(node)].door.finished();
                let waits = self.is_current(client, dial);
                if !waits {
                    self.second().wasted += self.costs.accept;
                    return;
                }
                let delay = self.one_way(client);
                self.agenda.after(delay, Event::Connected { client, dial });
            }
            Event::Connected { client, dial } if self.is_current(client, dial) => {
                self.clients[client as usize].brain = None;
                self.back.push(self.agenda.micros());
                self.second().back += 1;
            }
            Event::Told { client, dial, what } if self.is_current(client, dial) => self.told(client, what),
            Event::GiveUp { client, dial } if self.is_current(client, dial) => {
                self.again(client, Cause::Unreachable);
            }
            Event::Connected { .. } | Event::Told { .. } | Event::GiveUp { .. } => {}
        }
    }

    fn again(&mut self, client: u32, cause: Cause) {
        let now = self.agenda.now();
        let state = &mut self.clients[client as usize];
        let Some(brain) = &mut state.brain else { return };
        let NextDial { delay, whom, ticket } = brain.next(now, cause);
        state.dial += 1;
        state.ticket = ticket;
        match whom {
            Whom::Live(node) => state.node = node.min(self.config.nodes - 1),
            Whom::Anybody => state.node = self.rng.random_range(0..self.config.nodes),
            Whom::Again | Whom::Dead => {}
        }
        let event = Event::Dial { client, dial: state.dial, dead: whom == Whom::Dead };
        self.agenda.after(delay, event);
    }

    fn dial(&mut self, client: u32, dial: u32, dead: bool) {
        if !self.is_current(client, dial) {
            return;
        }
        if dead {
            self.dead_dials += 1;
            self.agenda.after(Reconnect::PATIENCE, Event::GiveUp { client, dial });
            return;
        }
        let node = self.clients[client as usize].node;
        let delay = self.one_way(client);
        self.agenda.after(delay, Event::Arrive { client, dial, node });
        self.agenda.after(DIAL_TIMEOUT, Event::GiveUp { client, dial });
    }

    fn arrive(&mut self, client: u32, dial: u32, node: u16) {
        self.second().dials += 1;
        let costly = self.config.costly;
        let now = self.agenda.now();
        let state = &self.clients[client as usize];
        let attempt = Attempt {
            address: address(client),
            validated: true,
            ticket: state.ticket.as_ref(),
            costly_answer: costly,
            arrived: false,
        };
        match self.nodes[usize::from(node)].door.decide(now, &attempt) {
            Answer::Admit(at) => {
                let at = self.agenda.micros_of(at);
                self.admitted.push(at);
                let second = (at / 1_000_000) as usize;
                self.second_at(second).admitted += 1;
                self.agenda.at(at, Event::Begin { client, dial, node });
            }
            Answer::Defer(after, ticket) => {
                self.clients[client as usize].answer = Some((after, ticket));
                self.refuse(client, dial, node, What::Deferred);
            }
            Answer::Refuse => self.refuse(client, dial, node, What::Refused),
            Answer::Elsewhere => self.refuse(client, dial, node, What::Elsewhere),
            Answer::Silence => {
                self.work(node, self.costs.drop);
                let drop = self.costs.drop;
                let second = self.second();
                second.dropped += 1;
                second.wasted += drop;
            }
        }
    }

    fn refuse(&mut self, client: u32, dial: u32, node: u16, what: What) {
        let cost = self.costs.refuse;
        let Some(done) = self.work(node, cost) else {
            self.second().dropped += 1;
            return;
        };
        let second = self.second();
        second.refused += 1;
        second.wasted += cost;
        let at = done + self.one_way(client).as_micros() as u64;
        self.agenda.at(at, Event::Told { client, dial, what });
    }

    fn told(&mut self, client: u32, what: What) {
        let cause = match (what, self.clients[client as usize].answer.take()) {
            (What::Deferred, Some((after, ticket))) => {
                if self.rng.random_range(0.0..1.0) < self.config.no_show {
                    self.clients[client as usize].brain = None;
                    self.gone += 1;
                    return;
                }
                Cause::Deferred { after, ticket: Some(Arc::from(ticket.to_text())) }
            }
            (What::Elsewhere, _) => Cause::SentElsewhere,
            _ => Cause::Unreachable,
        };
        self.again(client, cause);
    }

    fn work(&mut self, node: u16, cost: f64) -> Option<u64> {
        let done = self.nodes[usize::from(node)].cpu.work(self.agenda.micros(), cost);
        if done.is_some() {
            self.second().work += cost;
        }
        done
    }

    fn one_way(&mut self, client: u32) -> Duration {
        self.network.one_way(self.clients[client as usize].round_trip, &mut self.rng)
    }

    fn is_current(&self, client: u32, dial: u32) -> bool {
        let state = &self.clients[client as usize];
        state.brain.is_some() && state.dial == dial
    }

    fn second(&mut self) -> &mut Second {
        self.second_at((self.agenda.micros() / 1_000_000) as usize)
    }

    fn second_at(&mut self, second: usize) -> &mut Second {
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        &mut self.seconds[second]
    }

    fn outcome(mut self) -> StormOutcome {
        let wanting = self.config.clients - self.gone;
        self.back.sort_unstable();
        self.admitted.sort_unstable();
        let when = |share: f64| {
            let place = (f64::from(wanting) * share).ceil() as usize;
            self.back.get(place.saturating_sub(1)).map(|micros| *micros as f64 / 1e6)
        };
        let t999 = when(0.999);
        let until = t999.map_or(self.seconds.len(), |end| end.ceil() as usize).max(1);
        let sum = |of: fn(&Second) -> f64| self.seconds.iter().map(of).sum::<f64>();
        let per_client = |sum: f64| sum / f64::from(wanting.max(1));
        let wasted: f64 = self.seconds.iter().take(until).map(|second| second.wasted).sum();
        StormOutcome {
            wanting,
            back: self.back.len() as u32,
            t50: when(0.5),
            t99: when(0.99),
            t999,
            attempts: per_client(sum(|second| second.dials.into())),
            dead_dials: per_client(self.dead_dials as f64),
            peak_dials: self.seconds.iter().map(|second| second.dials).max().unwrap_or(0),
            busiest_second: busiest(&self.admitted) as f64 / self.config.rate,
            wasted: wasted / (CAPACITY * self.config.rate * until as f64),
            refused: per_client(sum(|second| second.refused.into())),
            seconds: self.seconds,
        }
    }
}

/// The most of these within any second; microseconds, ascending.
pub(super) fn busiest(times: &[u64]) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (index, time) in times.iter().enumerate() {
        while time - times[first] >= 1_000_000 {
            first += 1;
        }
        most = most.max(index + 1 - first);
    }
    most
}

/// Plans as clients know them: made by production's machine in the two minutes before, and up to a minute old.
struct Plans {
    /// By the second in which they were published, counted from two minutes before.
    published: BTreeMap<u32, ReconnectPlan>,
    /// Of the nodes that are gone.
    ranks: Vec<Planner>,
    window: f64,
}

impl Plans {
    fn new(config: &StormConfig, agenda: &Agenda<Event>, rng: &mut ChaCha8Rng) -> Self {
        let now = agenda.now();
        let mut published = BTreeMap::new();
        let mut ranks: Vec<_> =
            (0..DEAD_NODES).map(|_| Planner::new(ChaCha8Rng::from_rng(&mut *rng))).collect();
        let weight = (1_000_000.0 / f64::from(config.nodes)) as u32;
        let mut alternatives = vec![Alternative { host: DEAD.to_owned(), weight: 1, elsewhere: false }];
        alternatives.extend((0..config.nodes.into()).map(|node| Alternative {
            host: live(node),
            weight,
            elsewhere: true,
        }));
        // Clients become more or fewer, and nobody knows exactly what can be spared.
        let drift: f64 = rng.random_range(-DRIFT..DRIFT);
        for second in 0..BEFORE {
            let left = f64::from(BEFORE - second) / 60.0;
            let sessions = f64::from(config.clients) * (1.0 + drift * left);
            let spare = config.rate * (1.0 + rng.random_range(-NOISE..NOISE));
            let in_region = config.rate / f64::from(config.nodes) * f64::from(DEAD_NODES - 1);
            let outlook = Outlook {
                node: Domain { sessions: sessions as u64 / u64::from(DEAD_NODES), spare: in_region },
                region: Domain { sessions: sessions as u64, spare },
                alternatives: alternatives.clone(),
            };
            ranks[0].handle_outlook(now + Duration::from_secs(second.into()), outlook);
            if ranks[0].poll_event().is_some() {
                published.insert(second, ranks[0].plan(0));
            }
        }
        Self { published, ranks, window: config.window }
    }

    fn of(&mut self, client: u32, rng: &mut ChaCha8Rng) -> ReconnectPlan {
        let node = client % DEAD_NODES;
        let rank = self.ranks[node as usize].next_rank();
        let known_at = BEFORE - rng.random_range(0..=PLAN_AGE);
        let plan = self.published.range(..=known_at).next_back().map(|(_, plan)| plan.clone());
        let mut plan = plan.unwrap_or_default();
        plan.rank = rank;
        plan.node_ms = (f64::from(plan.node_ms) * self.window) as u32;
        plan.region_ms = (f64::from(plan.region_ms) * self.window) as u32;
        plan
    }
}

/// Spread over many networks, some hundred clients in each.
fn address(client: u32) -> IpAddr {
    let mixed = client.wrapping_mul(0x9e37_79b9);
    IpAddr::from((mixed | 0x0100_0000).to_be_bytes())
}

/// What a node's CPU can do, over the rate at which it admits.
const CAPACITY: f64 = 1.25;
/// Clients see that their connection is gone within this time.
const NOTICED: Duration = Duration::from_secs(1);
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const DEAD_NODES: u32 = 20;
/// Seconds of views before the outage.
const BEFORE: u32 = 120;
/// Seconds that a plan may be old.
const PLAN_AGE: u32 = 60;
/// Of the number of clients, per minute.
const DRIFT: f64 = 0.01;
/// Of what is reported as spare.
const NOISE: f64 = 0.01;
