//! Random networks: blocked, black-holed, flapping, with a server that restarts. A session of a few lines drives the
//! ladder, in virtual time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What a rung does during one stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    /// Opens, answers.
    Works,
    /// Refused or reset at once.
    Fails,
    /// Nothing comes back, on new and old connections.
    BlackHole,
    /// New ones open; nothing comes back on what was said then.
    OpensOnly,
}

#[derive(Debug, Clone)]
struct Network {
    seed: u64,
    rtt: Duration,
    /// Per stretch: what each rung does, and whether the server is there.
    stretches: Vec<([Path; 3], bool)>,
    /// For ever after; the server is there.
    finally: [Path; 3],
}

const STRETCH: Duration = Duration::from_secs(20);

impl Network {
    fn path(&self, at: Duration, rung: TransportKind) -> (Path, bool) {
        let index = (at.as_millis() / STRETCH.as_millis()) as usize;
        let (paths, server) = self.stretches.get(index).copied().unwrap_or((self.finally, true));
        (paths[RUNGS.iter().position(|one| *one == rung).unwrap()], server)
    }

    fn works(&self, at: Duration, rung: TransportKind) -> bool {
        self.path(at, rung) == (Path::Works, true)
    }
}

/// Something that will happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Opened(AttemptId),
    Failed(AttemptId, bool),
    Answered(AttemptId),
    RoundTrip(AttemptId),
    Suspect(AttemptId),
    Dead(AttemptId),
    Dial,
    /// The connection is looked at: what flows, or does not.
    Tick,
}

struct World {
    hand: Hand,
    network: Network,
    due: BTreeMap<(Duration, u32), Due>,
    order: u32,
    dialing: BTreeMap<AttemptId, TransportKind>,
    open: BTreeMap<AttemptId, TransportKind>,
    current: Option<AttemptId>,
    next: Option<AttemptId>,
    suspect: bool,
    /// Since when nothing was heard on the current connection.
    silent_since: Option<Duration>,
    climbs: Vec<Duration>,
    needed_since: Option<Duration>,
    longest_need: Duration,
}

impl World {
    fn new(network: Network) -> Self {
        let mut hand = Hand::new();
        hand.ladder.rng = ChaCha8Rng::seed_from_u64(network.seed);
        let mut world = Self {
            hand,
            network,
            due: BTreeMap::new(),
            order: 0,
            dialing: BTreeMap::new(),
            open: BTreeMap::new(),
            current: None,
            next: None,
            suspect: false,
            silent_since: None,
            climbs: Vec::new(),
            needed_since: None,
            longest_need: Duration::ZERO,
        };
        world.plan(Duration::ZERO, Due::Dial);
        world.plan(ms(500), Due::Tick);
        world
    }

    fn plan(&mut self, after: Duration, due: Due) {
        self.order += 1;
        self.due.insert((self.hand.at() + after, self.order), due);
    }

    fn run(&mut self, end: Duration) {
        let mut steps = 0_u32;
        while self.hand.at() < end {
            steps += 1;
            assert!(steps < 200_000, "it spins");
            self.obey();
            let due = self.due.keys().next().copied().expect("the tick is always due");
            let timeout =
                self.hand.ladder.poll_timeout().map(|at| at.saturating_duration_since(self.hand.start));
            if timeout.is_some_and(|at| at <= due.0) {
                self.hand.now = self.hand.now.max(self.hand.start + timeout.unwrap());
                self.hand.ladder.handle_timeout(self.hand.now);
                continue;
            }
            let due = self.due.remove_entry(&due).unwrap();
            self.hand.now = self.hand.start + due.0.0;
            self.happen(due.1);
        }
    }

    fn obey(&mut self) {
        let mut race = None;
        while let Some(event) = self.hand.ladder.poll_event() {
            match event {
                LadderEvent::Dial { attempt, transport } => {
                    assert!(!self.dialing.values().any(|other| *other == transport), "{transport:?} twice");
                    if self.current.is_some() && !self.suspect && transport == Quic {
                        self.climbs.push(self.hand.at());
                    }
                    self.dialing.insert(attempt, transport);
                    self.start(attempt, transport);
                }
                LadderEvent::Abandon { attempt } => {
                    self.dialing.remove(&attempt);
                    self.open.remove(&attempt);
                    if self.next == Some(attempt) {
                        self.next = None;
                        if self.current.is_none() {
                            self.need(ms(700));
                        }
                    }
                }
                LadderEvent::Use { attempt } => {
                    assert!(self.open.contains_key(&attempt), "used before it opened");
                    assert!(self.next.is_none(), "two at once");
                    self.next = Some(attempt);
                    let rtt = self.network.rtt;
                    self.plan(rtt, Due::Answered(attempt));
                    self.plan(secs(10), Due::Dead(attempt));
                }
                LadderEvent::Probe => {
                    if let Some(current) = self.current {
                        let rtt = self.network.rtt;
                        self.plan(rtt, Due::RoundTrip(current));
                    }
                }
                LadderEvent::Failed { purpose } => race = Some(purpose),
            }
        }
        if race == Some(Purpose::Need) {
            self.need(ms(700));
        }
        let busy: Vec<_> = self.dialing.values().collect();
        assert!(busy.len() <= RUNGS.len());
    }

    fn need(&mut self, after: Duration) {
        let at = self.hand.at();
        self.needed_since.get_or_insert(at);
        self.plan(after, Due::Dial);
    }

    fn start(&mut self, attempt: AttemptId, transport: TransportKind) {
        let trips = if transport == Quic { 1 } else { 3 };
        let rtt = self.network.rtt;
        match self.network.path(self.hand.at(), transport) {
            (Path::Works | Path::OpensOnly, true) => self.plan(rtt * trips, Due::Opened(attempt)),
            (Path::Fails, _) => self.plan(rtt, Due::Failed(attempt, false)),
            (Path::BlackHole, _) => {}
            // Nobody there: TCP is refused, UDP says nothing.
            (_, false) if transport != Quic => self.plan(rtt, Due::Failed(attempt, true)),
            (_, false) => {}
        }
    }

    fn happen(&mut self, due: Due) {
        let now = self.hand.now;
        let at = self.hand.at();
        match due {
            Due::Dial if self.current.is_none() && self.next.is_none() => {
                self.needed_since.get_or_insert(at);
                self.hand.ladder.dial(now);
            }
            Due::Opened(attempt) => {
                if let Some(transport) = self.dialing.remove(&attempt)
                    && self.hand.ladder.handle_opened(now, attempt)
                {
                    self.open.insert(attempt, transport);
                }
            }
            Due::Failed(attempt, refused) if self.dialing.remove(&attempt).is_some() => {
                let failure = if refused { DialFailure::Refused } else { DialFailure::Failed };
                self.hand.ladder.handle_failed(now, attempt, failure);
            }
            Due::Answered(attempt) if self.next == Some(attempt) => {
                let transport = self.open[&attempt];
                if self.network.works(at, transport) {
                    self.next = None;
                    if let Some(old) = self.current.replace(attempt) {
                        self.open.remove(&old);
                    }
                    self.suspect = false;
                    self.silent_since = None;
                    if let Some(since) = self.needed_since.take() {
                        self.longest_need = self.longest_need.max(at - since);
                    }
                    self.hand.ladder.handle_connected(now, attempt);
                }
            }
            Due::Dead(attempt) if self.next == Some(attempt) => {
                self.next = None;
                self.open.remove(&attempt);
                self.hand.ladder.handle_lost(now, attempt, false);
                if self.current.is_none() {
                    self.need(ms(700));
                }
            }
            Due::RoundTrip(attempt)
                if self.current == Some(attempt) && self.network.works(at, self.open[&attempt]) =>
            {
                self.hand.ladder.handle_round_trip(now, attempt, self.network.rtt);
            }
            Due::Suspect(attempt) if self.current == Some(attempt) && self.silent_since.is_some() => {
                self.suspect = true;
                self.hand.ladder.handle_suspect(now, attempt);
            }
            Due::Tick => {
                self.plan(ms(500), Due::Tick);
                let Some(current) = self.current else { return };
                let transport = self.open[&current];
                let (path, server) = self.network.path(at, transport);
                if !server && transport != Quic {
                    // Reset by whoever is left there.
                    self.lose(current, true);
                } else if path == Path::Works && server {
                    self.silent_since = None;
                    if std::mem::take(&mut self.suspect) {
                        self.hand.ladder.handle_heard(now, current);
                    }
                } else if path == Path::Fails {
                    self.lose(current, false);
                } else if let Some(since) = self.silent_since {
                    if at - since > secs(50) {
                        self.lose(current, false);
                    }
                } else {
                    self.silent_since = Some(at);
                    self.plan(secs(3), Due::Suspect(current));
                }
            }
            _ => {}
        }
    }

    fn lose(&mut self, current: AttemptId, by_server: bool) {
        self.current = None;
        self.suspect = false;
        self.silent_since = None;
        self.open.remove(&current);
        self.hand.ladder.handle_lost(self.hand.now, current, by_server);
        self.obey();
        if self.next.is_none() {
            self.need(ms(500));
        }
    }
}

fn path() -> impl Strategy<Value = Path> {
    prop_oneof![
        3 => Just(Path::Works),
        1 => Just(Path::Fails),
        2 => Just(Path::BlackHole),
        1 => Just(Path::OpensOnly),
    ]
}

fn network() -> impl Strategy<Value = Network> {
    let stretch = ([path(), path(), path()], prop::bool::weighted(0.8));
    (any::<u64>(), 5_u64..600, prop::collection::vec(stretch, 0..12), [path(), path(), path()])
        .prop_filter("something works in the end", |(.., finally)| finally.contains(&Path::Works))
        .prop_map(|(seed, rtt, stretches, finally)| Network { seed, rtt: ms(rtt), stretches, finally })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_network_ends_on_its_best_working_rung(network in network()) {
        let best = RUNGS.into_iter().find(|rung| network.works(secs(1 << 30), *rung)).unwrap();
        let stretches = STRETCH * network.stretches.len() as u32;
        let mut world = World::new(network);
        // Soon after the network has settled there is a connection that answers ..
        world.run(stretches + secs(120));
        let current = world.current.expect("a connection");
        prop_assert!(world.network.works(world.hand.at(), world.open[&current]), "it is a dead one");
        // .. and within a few climbs it is the best one.
        world.climbs.clear();
        world.run(stretches + secs(3 * 3600));
        let current = world.current.expect("a connection");
        prop_assert_eq!(world.open[&current], best);
        // At most one try in half a minute, and one in a quarter of an hour at length.
        for pair in world.climbs.windows(2) {
            prop_assert!(pair[1] - pair[0] >= secs(15), "{:?}", pair);
        }
        prop_assert!(world.climbs.len() <= 30, "{} climbs", world.climbs.len());
    }

    #[test]
    fn where_a_rung_works_it_is_found_in_time(seed in any::<u64>(), rtt in 5_u64..600, paths in [path(), path(), path()]) {
        prop_assume!(paths.contains(&Path::Works));
        let network = Network { seed, rtt: ms(rtt), stretches: Vec::new(), finally: paths };
        let mut world = World::new(network);
        world.run(secs(60));
        prop_assert!(world.current.is_some());
        // A WebSocket that opens and never answers has the session's ten seconds, twice.
        let opens_only = paths.iter().filter(|path| **path == Path::OpensOnly).count() as u32;
        let rounds = ms(rtt) * 4;
        prop_assert!(
            world.longest_need <= ms(2_000) + rounds + secs(23) * opens_only,
            "{:?}", world.longest_need
        );
        if paths[0] != Path::OpensOnly && paths[1] == Path::Works {
            // QUIC's failure, whatever it is, costs at most 550 ms over the WebSocket alone.
            prop_assert!(world.longest_need <= rounds + ms(550), "{:?}", world.longest_need);
        }
    }
}
