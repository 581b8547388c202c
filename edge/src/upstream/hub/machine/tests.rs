//! The hub against model clusters that move, crash, lose links and their memory, on one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::frame::Payload;
use tidegate_protocol::link::{
    CoreFrame, Directory, DirectoryNode, DirectoryPartition, EdgeFrame, HistoryRange, Members, Publish,
    Welcome,
};
use tidegate_protocol::session::resume::{Outcome, Spending, Told};
use tidegate_protocol::{ChannelName, NodeId, Offset, Position, Region, SessionId};

use super::super::workers::unavailable;
use super::*;
use model::{Asks, Cluster, Worker};

mod model;

const WORKERS: u16 = 3;
const CORES: usize = 3;

/// What a seed makes of the world.
struct Weather {
    /// Partitions lose their numbering, and histories are short.
    forgetful: bool,
    /// Queues of workers are short, so that they are parked.
    tight: bool,
    /// Cores refuse to say what was missed, now and then; interest begins all the same, or does not.
    refusing: bool,
}

struct World {
    seed: u64,
    rng: ChaCha8Rng,
    weather: Weather,
    now: Instant,
    machine: Machine,
    cluster: Cluster,
    workers: Vec<Worker>,
    connections: BTreeMap<ConnectionId, Connection>,
    links: BTreeMap<LinkId, Link>,
    payloads: u64,
}

struct Connection {
    core: usize,
    directories: VecDeque<Directory>,
    welcomed: bool,
}

struct Link {
    partition: u16,
    connection: ConnectionId,
    state: LinkState,
    to_core: VecDeque<EdgeFrame>,
    to_edge: VecDeque<CoreFrame>,
    /// The core has closed it: what is on its way still arrives.
    over: bool,
    interest: BTreeSet<ChannelName>,
    present: BTreeMap<(ChannelName, Option<Arc<str>>), u32>,
    watches: BTreeSet<ChannelName>,
}

#[derive(PartialEq)]
enum LinkState {
    Asked,
    Open { term: u64 },
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let weather = Weather { forgetful: seed % 2 == 1, tight: seed % 3 == 1, refusing: seed % 5 == 2 };
        let now = start();
        let partitions = rng.random_range(1..4);
        let fits = if seed % 7 < 3 { rng.random_range(1..4) } else { usize::MAX };
        let cluster = Cluster::new(CORES, partitions, if weather.forgetful { 6 } else { usize::MAX }, fits);
        let bounds = Bounds {
            requests: 10_000,
            request_bytes: 1 << 20,
            in_flight: rng.random_range(1..20),
            resubscriptions: rng.random_range(1..4),
            request_wait: Duration::from_secs(5),
        };
        let outbox = if weather.tight { rng.random_range(200..3000) } else { 1 << 30 };
        let mut machine = Machine::new(
            now,
            WORKERS,
            HomeRules::new(Region::new("eu")),
            [(Region::new("eu"), vec!["core-0:1".to_owned(), "alias-0:1".to_owned()])],
            &bounds,
            outbox,
            ChaCha8Rng::seed_from_u64(seed ^ 1),
        );
        machine.start(now);
        let workers = (0..WORKERS).map(|_| Worker::default()).collect();
        let (connections, links) = (BTreeMap::new(), BTreeMap::new());
        Self { seed, rng, weather, now, machine, cluster, workers, connections, links, payloads: 0 }
    }

    fn chance(&mut self, of: u32) -> bool {
        self.rng.random_range(0..of) == 0
    }

    fn channel(&mut self) -> ChannelName {
        ChannelName::new(&format!("room:{}", self.rng.random_range(0..6))).expect("valid")
    }

    fn run(&mut self) {
        for _ in 0..1500 {
            match self.rng.random_range(0..100) {
                0..30 => self.act(),
                30..35 => self.publish_elsewhere(),
                35..37 => self.trouble(),
                _ => {
                    let limit = self.rng.random_range(1..6);
                    self.step(limit);
                }
            }
        }
        self.settle();
        self.check_end();
    }

    /// What a worker does.
    fn act(&mut self) {
        let client = self.rng.random_range(0..WORKERS);
        let channel = self.channel();
        let worker = &mut self.workers[usize::from(client)];
        let frame = match self.rng.random_range(0..20) {
            0..5 => {
                let position = worker.position(&channel).filter(|_| self.rng.random_range(0..2) == 0);
                let request = worker.asks(Asks::Subscribe(channel.clone()));
                EdgeFrame::Subscribe { request, channel, position }
            }
            5..8 => {
                worker.leaves(&channel);
                EdgeFrame::Unsubscribe { channel }
            }
            8..13 => {
                self.payloads += 1;
                let key = (self.rng.random_range(0..2) == 0).then(|| self.payloads.to_string());
                let ephemeral = key.is_none() && self.rng.random_range(0..4) == 0;
                let request = worker.asks(Asks::Publish {
                    channel: channel.clone(),
                    payload: self.payloads,
                    ephemeral,
                });
                let payload = Payload::Json(self.payloads.to_string().into());
                let publish = Publish { channel, payload, key, user: None, ephemeral };
                EdgeFrame::Publish { request, publish }
            }
            13..14 => {
                let request = worker.asks(Asks::History);
                EdgeFrame::History {
                    request,
                    channel,
                    range: HistoryRange { limit: 3, ..Default::default() },
                }
            }
            14..15 => EdgeFrame::Members { request: worker.asks(Asks::Members), channel },
            15..16 => {
                let mut bytes = [0; 16];
                self.rng.fill(&mut bytes);
                let spending = Spending {
                    session: SessionId::from_bytes(bytes),
                    generation: 0,
                    key: None,
                    early: false,
                    remember: Duration::from_secs(60),
                };
                let holder =
                    tidegate_protocol::link::LinkName { node: NodeId::new("edge"), worker: client as u8 };
                EdgeFrame::Spend { request: worker.asks(Asks::Spend(spending.session)), spending, holder }
            }
            16..18 => {
                let user = [None, Some(Arc::from("ann")), Some(Arc::from("bob"))]
                    [self.rng.random_range(0..3)]
                .clone();
                let sessions = self.rng.random_range(0..3);
                worker.present.insert((channel.clone(), user.clone()), sessions);
                EdgeFrame::Presence { channel, user, sessions, again: false }
            }
            _ => {
                let on = self.rng.random_range(0..2) == 0;
                if on {
                    worker.watches.insert(channel.clone());
                } else {
                    worker.watches.remove(&channel);
                }
                EdgeFrame::Watch { channel, on }
            }
        };
        self.machine.handle_client(self.now, Client(client), frame);
    }

    /// Somebody at another edge publishes.
    fn publish_elsewhere(&mut self) {
        let channel = self.channel();
        let partition = partition_of(&channel, self.cluster.count());
        self.payloads += 1;
        if self.cluster.partitions[usize::from(partition)].owner.is_some() {
            let offset = self.cluster.store(partition, &channel, self.payloads, None);
            self.publish_to_links(partition, &channel, offset);
        }
    }

    fn publish_to_links(&mut self, partition: u16, channel: &ChannelName, offset: u64) {
        let owner = self.cluster.partitions[usize::from(partition)].owner;
        let term = self.cluster.partitions[usize::from(partition)].term;
        let delivery = self.cluster.delivery(partition, channel, offset);
        for link in self.links.values_mut() {
            let core = self.connections.get(&link.connection).map(|connection| connection.core);
            let serves =
                link.partition == partition && core == owner && link.state == LinkState::Open { term };
            if serves && !link.over && link.interest.contains(channel) {
                link.to_edge.push_back(CoreFrame::Publication(delivery.clone()));
            }
        }
    }

    /// Something goes wrong, or moves.
    fn trouble(&mut self) {
        let partition = self.rng.random_range(0..self.cluster.count());
        match self.rng.random_range(0..7) {
            // A link is lost, with all that was on it.
            0 => {
                if let Some(id) = self.some_link() {
                    self.lose_link(id);
                }
            }
            1 => {
                if let Some(id) = self.some_connection() {
                    self.lose_connection(id);
                }
            }
            // A core crashes: nobody owns what it had, until somebody claims it.
            2 => {
                let core = self.rng.random_range(0..CORES);
                self.cluster.crash(core);
                let lost: Vec<_> =
                    self.connections.iter().filter(|(_, c)| c.core == core).map(|(id, _)| *id).collect();
                for id in lost {
                    self.lose_connection(id);
                }
            }
            // A partition's owner hands over.
            3 | 4 => self.hand_over(partition),
            // Somebody claims it, and the old owner does not know.
            5 => {
                let next = self.rng.random_range(0..CORES);
                self.cluster.usurp(partition, next);
            }
            _ => {
                if self.weather.forgetful && self.cluster.partitions[usize::from(partition)].owner.is_none() {
                    self.cluster.forget(partition);
                }
            }
        }
        self.tell_directory();
    }

    fn hand_over(&mut self, partition: u16) {
        let state = &self.cluster.partitions[usize::from(partition)];
        let (Some(owner), term) = (state.owner, state.term) else { return };
        let to = self.rng.random_range(0..CORES);
        if to == owner || !self.cluster.alive[to] {
            return;
        }
        let says = if self.chance(3) { None } else { Some(model::node(to)) };
        for link in self.links.values_mut() {
            let core = self.connections.get(&link.connection).map(|connection| connection.core);
            if link.partition == partition && core == Some(owner) && link.state == (LinkState::Open { term })
            {
                // What it has not read it has not handled.
                link.to_core.clear();
                link.to_edge.push_back(CoreFrame::Moved { partition, to: says.clone() });
                link.over = true;
            }
        }
        self.cluster.claim(partition, to);
    }

    fn tell_directory(&mut self) {
        let directory = self.cluster.directory();
        for connection in self.connections.values_mut() {
            connection.directories.push_back(directory.clone());
        }
    }

    fn some_link(&mut self) -> Option<LinkId> {
        let index = self.rng.random_range(0..self.links.len().max(1));
        self.links.keys().nth(index).copied()
    }

    fn some_connection(&mut self) -> Option<ConnectionId> {
        let index = self.rng.random_range(0..self.connections.len().max(1));
        self.connections.keys().nth(index).copied()
    }

    fn lose_link(&mut self, id: LinkId) {
        if let Some(link) = self.links.remove(&id) {
            match link.state {
                LinkState::Asked => {
                    self.machine.handle_open_failed(self.now, (0, link.partition), id, OpenFailure::Lost)
                }
                LinkState::Open { .. } => self.machine.handle_closed(self.now, (0, link.partition), id),
            }
            self.machine_says();
        }
    }

    fn lose_connection(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let over: Vec<_> =
            self.links.iter().filter(|(_, link)| link.connection == id).map(|(id, _)| *id).collect();
        for link in over {
            self.lose_link(link);
        }
        if connection.welcomed {
            self.machine.handle_hung_up(self.now, 0, id);
        } else {
            self.machine.handle_dialled(self.now, 0, id, Err(()));
        }
        self.machine_says();
    }

    /// Something that takes time goes on.
    fn step(&mut self, limit: usize) {
        match self.rng.random_range(0..6) {
            0 => {
                let time = Duration::from_millis(self.rng.random_range(0..200));
                self.pass(time);
            }
            1 => {
                let client = self.rng.random_range(0..WORKERS);
                self.take(client, limit);
            }
            2 => {
                if let Some(id) = self.some_connection() {
                    self.serve_connection(id);
                }
            }
            choice => {
                if let Some(id) = self.some_link() {
                    match choice {
                        3 => self.transmit(id, limit),
                        4 => self.serve_link(id, limit),
                        _ => self.receive(id, limit),
                    }
                }
            }
        }
        self.machine_says();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        while let Some(at) = self.machine.poll_timeout()
            && at <= self.now
        {
            self.machine.handle_timeout(self.now);
            self.machine_says();
        }
        self.cluster.pass(time, &mut self.rng);
        if std::mem::take(&mut self.cluster.changed) {
            self.tell_directory();
        }
    }

    fn machine_says(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            match event {
                Event::Dial { address, connection, .. } => {
                    let core = address.trim_start_matches(|c: char| !c.is_ascii_digit());
                    let core = core.split(':').next().and_then(|n| n.parse().ok()).expect("an address");
                    let fresh = Connection { core, directories: VecDeque::new(), welcomed: false };
                    assert!(self.connections.insert(connection, fresh).is_none());
                }
                Event::HangUp { connection, .. } => {
                    self.connections.remove(&connection);
                    self.links.retain(|_, link| link.connection != connection);
                }
                Event::Open { partition, connection, link, .. } => {
                    assert!(
                        self.connections.contains_key(&connection),
                        "SEED={}: of a lost connection",
                        self.seed
                    );
                    let fresh = Link {
                        partition,
                        connection,
                        state: LinkState::Asked,
                        to_core: VecDeque::new(),
                        to_edge: VecDeque::new(),
                        over: false,
                        interest: BTreeSet::new(),
                        present: BTreeMap::new(),
                        watches: BTreeSet::new(),
                    };
                    assert!(self.links.insert(link, fresh).is_none());
                }
                Event::Drop { link } => {
                    self.links.remove(&link);
                }
                Event::Fault { fault, .. } => panic!("SEED={}: {fault}", self.seed),
            }
        }
    }

    fn serve_connection(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !self.cluster.alive[connection.core] {
            return self.lose_connection(id);
        }
        if !connection.welcomed {
            connection.welcomed = true;
            connection.directories.push_back(self.cluster.directory());
            let welcome = Welcome {
                version: 1,
                node: model::node(connection.core),
                region: Region::new("eu"),
                partitions: self.cluster.count(),
            };
            self.machine.handle_dialled(self.now, 0, id, Ok(welcome));
        } else if let Some(directory) = connection.directories.pop_front() {
            self.machine.handle_directory(self.now, 0, &directory);
        }
    }

    fn transmit(&mut self, id: LinkId, limit: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        for _ in 0..limit {
            let Some(frame) = self.machine.poll_transmit((0, link.partition), id) else { break };
            assert!(matches!(link.state, LinkState::Open { .. }), "SEED={}: not open", self.seed);
            // Where the core is done with it, nobody reads it.
            if !link.over {
                link.to_core.push_back(frame);
            }
        }
    }

    /// The core's end of a link.
    fn serve_link(&mut self, id: LinkId, limit: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let partition = link.partition;
        let Some(connection) = self.connections.get(&link.connection) else { return };
        let core = connection.core;
        let LinkState::Open { term } = link.state else {
            return match self.cluster.serves(core, partition) {
                Some(term) => {
                    link.state = LinkState::Open { term };
                    self.machine.handle_opened(self.now, (0, partition), id, term);
                }
                None => {
                    self.links.remove(&id);
                    let at = (0, partition);
                    self.machine.handle_open_failed(self.now, at, id, OpenFailure::NotOwner);
                }
            };
        };
        let is_owner = self.cluster.is_owner(core, partition, term);
        if !is_owner && self.cluster.serves(core, partition) != Some(term) {
            link.over = true;
            return;
        }
        for _ in 0..limit {
            let Some(link) = self.links.get_mut(&id) else { return };
            if link.over {
                return;
            }
            let Some(frame) = link.to_core.pop_front() else { return };
            match frame {
                EdgeFrame::Publish { publish, request } => {
                    if !is_owner {
                        // The log refuses.
                        link.over = true;
                        return;
                    }
                    let payload = model::number(&publish.payload);
                    if publish.ephemeral {
                        link.to_edge.push_back(CoreFrame::Published { request, result: Ok(None) });
                        continue;
                    }
                    let (known, offset) = match self.cluster.find(partition, &publish) {
                        Some(offset) => (true, offset),
                        None => {
                            let key = publish.key.as_deref();
                            (false, self.cluster.store(partition, &publish.channel, payload, key))
                        }
                    };
                    let position = self.cluster.position(partition, &publish.channel, offset);
                    link.to_edge.push_back(CoreFrame::Published { request, result: Ok(Some(position)) });
                    if !known {
                        self.publish_to_links(partition, &publish.channel, offset);
                    }
                }
                EdgeFrame::Subscribe { request, channel, position } => {
                    let refused = self.weather.refusing && self.rng.random_range(0..4) == 0;
                    if !refused || self.rng.random_range(0..2) == 0 {
                        link.interest.insert(channel.clone());
                    }
                    let result = if refused {
                        Err(unavailable())
                    } else {
                        Ok(self.cluster.recover(core, partition, &channel, position.as_ref()))
                    };
                    link.to_edge.push_back(CoreFrame::Recovered { request, result });
                }
                EdgeFrame::Unsubscribe { channel } => {
                    link.interest.remove(&channel);
                }
                EdgeFrame::History { request, channel, range } => {
                    let result = Ok(self.cluster.recover(core, partition, &channel, range.since.as_ref()));
                    link.to_edge.push_back(CoreFrame::Recovered { request, result });
                }
                EdgeFrame::Members { request, .. } => {
                    link.to_edge.push_back(CoreFrame::Members { request, result: Ok(Members::default()) });
                }
                EdgeFrame::Presence { channel, user, sessions, again } => {
                    let before = link.present.insert((channel.clone(), user.clone()), sessions);
                    assert!(!again || before.is_none(), "SEED={}: again on the same link", self.seed);
                    if sessions == 0 {
                        link.present.remove(&(channel, user));
                    }
                }
                EdgeFrame::Watch { channel, on } => {
                    let changed =
                        if on { link.watches.insert(channel) } else { link.watches.remove(&channel) };
                    assert!(changed, "SEED={}: a watch that says nothing", self.seed);
                }
                EdgeFrame::Spend { request, spending, .. } => {
                    let session = spending.session;
                    link.to_edge.push_back(CoreFrame::SessionMoved {
                        session,
                        generation: 1,
                        told: Told::Resumed,
                    });
                    link.to_edge.push_back(CoreFrame::Spent { request, result: Ok(Outcome::First) });
                }
            }
        }
    }

    /// The hub's end of a link.
    fn receive(&mut self, id: LinkId, limit: usize) {
        for _ in 0..limit {
            let Some(link) = self.links.get_mut(&id) else { return };
            let partition = link.partition;
            match link.to_edge.pop_front() {
                Some(frame) => self.machine.handle_core(self.now, (0, partition), id, frame),
                None if link.over => return self.lose_link(id),
                None => return,
            }
            self.machine_says();
        }
    }

    /// A worker reads.
    fn take(&mut self, client: u16, limit: usize) {
        for _ in 0..limit {
            let Some(frame) = self.machine.poll_client(Client(client)) else { return };
            let worker = &mut self.workers[usize::from(client)];
            let rebase_allowed = self.weather.forgetful;
            if let Err(wrong) = worker.handle(frame, &self.cluster, rebase_allowed) {
                panic!("SEED={}: worker {client}: {wrong}", self.seed);
            }
        }
    }

    /// No more trouble: everything that is under way comes to its end.
    fn settle(&mut self) {
        self.cluster.heal();
        self.weather.refusing = false;
        self.tell_directory();
        for _ in 0..400 {
            self.pass(Duration::from_millis(100));
            for id in self.connections.keys().copied().collect::<Vec<_>>() {
                for _ in 0..100 {
                    self.serve_connection(id);
                    self.machine_says();
                }
            }
            for id in self.links.keys().copied().collect::<Vec<_>>() {
                self.transmit(id, 1000);
                self.serve_link(id, 1000);
                self.receive(id, 1000);
                self.machine_says();
            }
            for client in 0..WORKERS {
                self.take(client, 1000);
            }
        }
    }

    fn check_end(&mut self) {
        let seed = self.seed;
        assert!(self.machine.is_ready(), "SEED={seed}: not ready");
        let mut interest = BTreeSet::new();
        let (mut present, mut watches) = (BTreeMap::new(), BTreeSet::new());
        assert_eq!(self.links.len(), usize::from(self.cluster.count()), "SEED={seed}: one link each");
        for link in self.links.values() {
            interest.extend(link.interest.iter().cloned());
            present.extend(link.present.clone());
            watches.extend(link.watches.iter().cloned());
        }
        let mut wanted = BTreeSet::new();
        let mut expected: BTreeMap<(ChannelName, Option<Arc<str>>), u32> = BTreeMap::new();
        let mut watched = BTreeSet::new();
        for (index, worker) in self.workers.iter().enumerate() {
            assert!(worker.asked.is_empty(), "SEED={seed}: worker {index} waits: {:?}", worker.asked);
            for (channel, at) in worker.active() {
                wanted.insert(channel.clone());
                let partition = partition_of(channel, self.cluster.count());
                let head = self.cluster.head(partition, channel);
                assert_eq!(at, head, "SEED={seed}: worker {index} on {channel}");
            }
            for (member, sessions) in &worker.present {
                *expected.entry(member.clone()).or_default() += sessions;
            }
            watched.extend(worker.watches.iter().cloned());
        }
        expected.retain(|_, sessions| *sessions > 0);
        assert_eq!(interest, wanted, "SEED={seed}");
        assert_eq!(present, expected, "SEED={seed}");
        assert_eq!(watches, watched, "SEED={seed}");
        self.cluster.check(seed);
        let stats = self.machine.take_stats();
        assert!(self.weather.forgetful || stats.rebased == 0, "SEED={seed}: {stats:?}");
        assert!(self.weather.tight || stats.parked == 0, "SEED={seed}: {stats:?}");
        let queued = self.machine.queued_bytes();
        assert_eq!(queued, 0, "SEED={seed}: nothing waits");
    }
}

#[test]
fn whatever_cores_and_links_do_workers_see_every_publication_once_and_in_order() {
    let seeds = match std::env::var("TIDEGATE_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("TIDEGATE_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..400,
    };
    for seed in seeds {
        World::new(seed).run();
    }
}

#[test]
fn the_simulation_meets_what_it_is_for() {
    let mut all = Stats::default();
    for seed in 0..40 {
        let mut world = World::new(seed);
        let mut stats = Stats::default();
        for _ in 0..30 {
            for _ in 0..50 {
                match world.rng.random_range(0..100) {
                    0..30 => world.act(),
                    30..35 => world.publish_elsewhere(),
                    35..37 => world.trouble(),
                    _ => world.step(4),
                }
            }
            stats.add(world.machine.take_stats());
        }
        all.add(stats);
    }
    let met = [all.resubscriptions, all.filled, all.rebased, all.resent, all.unknown, all.parked];
    assert!(met.iter().all(|count| *count > 0), "{all:?}");
}

#[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
fn start() -> Instant {
    Instant::now()
}

/// A position that says nothing.
fn nowhere() -> Position {
    Position::new(Default::default(), Offset(0))
}
