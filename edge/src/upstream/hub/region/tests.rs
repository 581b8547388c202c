//! A region by hand: whom it dials, and whom it asks for what.

use rand::SeedableRng as _;
use tidegate_protocol::link::{DirectoryNode, DirectoryPartition};

use super::*;

const PARTITION: u16 = 0;

struct Bench {
    now: Instant,
    region: RegionLinks,
    outbox: Outbox,
    effects: Effects,
}

impl Bench {
    fn new(addresses: &[&str]) -> Self {
        let now = start();
        let bounds = Bounds {
            requests: 100,
            request_bytes: 1 << 20,
            in_flight: 100,
            resubscriptions: 10,
            request_wait: Duration::from_secs(5),
        };
        let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
        let rng = ChaCha8Rng::seed_from_u64(1);
        let mut region = RegionLinks::new(now, Region::new("eu"), 0, &addresses, bounds, rng);
        let mut effects = Effects::default();
        region.update(now, &mut effects);
        Self { now, region, outbox: Outbox::new(1, 1 << 20), effects }
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.effects.poll()).collect()
    }

    fn dialled(&mut self, connection: ConnectionId, node: &str, partitions: u16) {
        let (node, region) = (NodeId::new(node), Region::new("eu"));
        let welcome = Welcome { version: 1, node, region, partitions };
        self.region.handle_dialled(self.now, connection, Ok(welcome), &mut self.outbox, &mut self.effects);
    }

    fn directory(&mut self, owner: Option<&str>, term: u64) {
        self.directory_of(&["core-1", "core-2"], owner, term);
    }

    fn directory_of(&mut self, alive: &[&str], owner: Option<&str>, term: u64) {
        let node =
            |name: &str| DirectoryNode { id: NodeId::new(name), address: Arc::from(format!("{name}:1")) };
        let directory = Directory {
            nodes: alive.iter().map(|name| node(name)).collect(),
            partitions: vec![DirectoryPartition { owner: owner.map(NodeId::new), term }],
        };
        self.region.handle_directory(self.now, &directory, &mut self.effects);
    }

    fn opened(&mut self, link: LinkId, term: u64) {
        let (outbox, effects) = (&mut self.outbox, &mut self.effects);
        self.region.handle_opened(self.now, PARTITION, link, term, outbox, effects);
    }

    fn moved(&mut self, link: LinkId, to: Option<&str>) {
        let frame = CoreFrame::Moved { partition: PARTITION, to: to.map(NodeId::new) };
        let (outbox, effects) = (&mut self.outbox, &mut self.effects);
        self.region.handle_core(self.now, PARTITION, link, frame, outbox, effects);
    }

    fn wait(&mut self) {
        if let Some(at) = self.region.poll_timeout() {
            self.now = self.now.max(at);
            self.region.handle_timeout(self.now, &mut self.outbox, &mut self.effects);
        }
    }

    /// Connected to both cores; the first one owns the partition at term 3, and has a link.
    fn linked() -> (Self, [ConnectionId; 2], LinkId) {
        let mut bench = Self::new(&["core-1:1", "core-2:1"]);
        let connections = dials(&bench.events());
        bench.dialled(connections[0], "core-1", 1);
        bench.dialled(connections[1], "core-2", 1);
        bench.directory(Some("core-1"), 3);
        let link = open(&bench.events(), connections[0]);
        bench.opened(link, 3);
        assert!(bench.region.is_ready() && bench.events().is_empty());
        (bench, [connections[0], connections[1]], link)
    }
}

fn dials(events: &[Event]) -> Vec<ConnectionId> {
    let dial = |event: &Event| match event {
        Event::Dial { connection, .. } => *connection,
        event => panic!("{event:?}"),
    };
    events.iter().map(dial).collect()
}

/// The one event there is asks for the partition over this connection.
fn open(events: &[Event], over: ConnectionId) -> LinkId {
    let opens = events.iter().filter(|event| !matches!(event, Event::Drop { .. })).collect::<Vec<_>>();
    let [Event::Open { partition: PARTITION, connection, link, .. }] = opens[..] else {
        panic!("{events:?}")
    };
    assert_eq!(*connection, over);
    *link
}

#[test]
fn who_moved_says_where_to_and_is_not_asked_again_at_that_term() {
    let (mut bench, [_, second], link) = Bench::linked();
    bench.moved(link, Some("core-2"));
    let next = open(&bench.events(), second);
    // A directory from before the move is on its way.
    bench.directory(Some("core-1"), 3);
    assert!(bench.events().is_empty());
    bench.opened(next, 4);
    assert!(bench.region.is_ready());
}

#[test]
fn a_hand_over_takes_nothing_out_of_reach_and_a_loss_does_after_a_while() {
    let (mut bench, [_, second], link) = Bench::linked();
    assert!(bench.region.is_in_reach(bench.now));
    bench.moved(link, Some("core-2"));
    let next = open(&bench.events(), second);
    assert!(!bench.region.is_ready() && bench.region.is_in_reach(bench.now));
    assert!(bench.region.is_in_reach(bench.now + Duration::from_millis(4_999)));
    assert!(!bench.region.is_in_reach(bench.now + Duration::from_secs(5)));
    bench.now += Duration::from_secs(60);
    assert!(!bench.region.is_in_reach(bench.now));
    bench.opened(next, 4);
    assert!(bench.region.is_in_reach(bench.now));
    // Who never had a link was never in reach.
    let mut fresh = Bench::new(&["core-1:1"]);
    let connections = dials(&fresh.events());
    fresh.dialled(connections[0], "core-1", 1);
    fresh.directory(Some("core-1"), 3);
    assert!(!fresh.region.is_in_reach(fresh.now));
}

#[test]
fn the_last_words_of_an_owner_that_died_are_not_waited_for() {
    let (mut bench, [_, second], link) = Bench::linked();
    bench.directory_of(&["core-2"], None, 3);
    assert!(bench.events().is_empty() && bench.region.is_ready());
    bench.directory_of(&["core-2"], Some("core-2"), 4);
    let before = bench.now;
    bench.wait();
    assert_eq!(bench.now, before);
    let events = bench.events();
    assert!(events.contains(&Event::Drop { link }), "{events:?}");
    let next = open(&events, second);
    bench.opened(next, 4);
    assert!(bench.region.is_ready());
}

#[test]
fn a_node_that_owns_nothing_yet_is_connected_to() {
    let mut bench = Bench::new(&["core-1:1"]);
    let connections = dials(&bench.events());
    bench.dialled(connections[0], "core-1", 1);
    bench.directory(Some("core-1"), 3);
    let events = bench.events();
    assert!(
        events.iter().any(|event| matches!(event, Event::Dial { address, .. } if &**address == "core-2:1")),
        "{events:?}"
    );
}

#[test]
fn a_core_that_is_back_is_dialled_at_once() {
    let mut bench = Bench::new(&["core-1:1", "core-2:1"]);
    let [first, mut away] = dials(&bench.events())[..] else { panic!("two cores") };
    bench.dialled(first, "core-1", 1);
    for _ in 0..5 {
        let (outbox, effects) = (&mut bench.outbox, &mut bench.effects);
        bench.region.handle_dialled(bench.now, away, Err(()), outbox, effects);
        bench.directory_of(&["core-1"], None, 0);
        assert!(bench.events().is_empty());
        bench.wait();
        away = dials(&bench.events())[0];
    }
    let (outbox, effects) = (&mut bench.outbox, &mut bench.effects);
    bench.region.handle_dialled(bench.now, away, Err(()), outbox, effects);
    bench.directory_of(&["core-1", "core-2"], None, 0);
    let unheard = dials(&bench.events())[0];

    // Also where a dial is under way: it may wait for seconds before its next packet.
    bench.directory_of(&["core-1"], None, 0);
    assert!(bench.events().is_empty());
    bench.directory_of(&["core-1", "core-2"], None, 0);
    let events = bench.events();
    assert!(
        matches!(events[..], [Event::HangUp { connection, .. }, Event::Dial { .. }] if connection == unheard),
        "{events:?}"
    );
}

#[test]
fn who_is_asked_already_is_not_asked_anew_once_the_directory_says_so_too() {
    let (mut bench, [_, second], link) = Bench::linked();
    bench.moved(link, Some("core-2"));
    let next = open(&bench.events(), second);
    bench.directory(Some("core-2"), 4);
    assert!(bench.events().is_empty());
    bench.opened(next, 4);
    assert!(bench.region.is_ready());
}

#[test]
fn a_cluster_that_began_anew_is_believed_once_nobody_can_be_left_of_the_old_one() {
    for moved in [false, true] {
        let (mut bench, connections, link) = Bench::linked();
        if moved {
            bench.moved(link, None);
        }
        for connection in connections {
            bench.region.handle_hung_up(bench.now, connection, &mut bench.outbox, &mut bench.effects);
        }
        let down = bench.now;
        bench.events();
        while bench.region.connected() == 0 {
            bench.wait();
            for event in bench.events() {
                if let Event::Dial { address, connection, .. } = event
                    && &*address == "core-2:1"
                {
                    bench.dialled(connection, "core-2", 1);
                }
            }
        }
        // Lower than any that was seen, of whoever stopped in order as well.
        let term = if moved { 3 } else { 1 };
        bench.directory(Some("core-2"), term);
        let asked = loop {
            let open = bench.events().into_iter().find_map(|event| match event {
                Event::Open { link, .. } => Some(link),
                _ => None,
            });
            if let Some(link) = open {
                break link;
            }
            bench.wait();
        };
        assert!(bench.now >= down + FORGET_TERMS, "too early for it: {:?}", bench.now - down);
        bench.opened(asked, term);
        assert!(bench.region.is_ready());
    }
}

#[test]
fn a_link_that_says_what_cannot_be_is_ended_and_opened_again() {
    let (mut bench, [first, _], link) = Bench::linked();
    let nothing = CoreFrame::Published { request: 99, result: Ok(None) };
    let (outbox, effects) = (&mut bench.outbox, &mut bench.effects);
    bench.region.handle_core(bench.now, PARTITION, link, nothing, outbox, effects);
    let events = bench.events();
    assert!(matches!(events[..], [Event::Fault { .. }, Event::Drop { link: dropped }] if dropped == link));
    // What it had sent before it heard of that is nothing to us.
    let nothing = CoreFrame::Published { request: 99, result: Ok(None) };
    let (outbox, effects) = (&mut bench.outbox, &mut bench.effects);
    bench.region.handle_core(bench.now, PARTITION, link, nothing, outbox, effects);
    assert!(bench.events().is_empty());
    bench.wait();
    let link = open(&bench.events(), first);
    bench.opened(link, 3);
    assert!(bench.region.is_ready());
}

#[test]
fn without_a_name_the_next_directory_is_waited_for() {
    let (mut bench, [_, second], link) = Bench::linked();
    bench.moved(link, None);
    assert_eq!(bench.events(), [Event::Drop { link }]);
    bench.directory(Some("core-1"), 3);
    assert!(bench.events().is_empty());
    bench.directory(Some("core-2"), 4);
    open(&bench.events(), second);
}

#[test]
fn an_owner_of_an_older_term_is_refused() {
    let (mut bench, [first, _], link) = Bench::linked();
    let (outbox, effects) = (&mut bench.outbox, &mut bench.effects);
    bench.region.handle_closed(bench.now, PARTITION, link, outbox, effects);
    bench.wait();
    let link = open(&bench.events(), first);
    bench.opened(link, 2);
    assert_eq!(bench.events(), [Event::Drop { link }]);
    assert!(!bench.region.is_ready());
    assert_eq!(bench.region.take_stats().stale, 1);
    bench.wait();
    let link = open(&bench.events(), first);
    bench.opened(link, 3);
    assert!(bench.region.is_ready(), "the same term is as good as before");
}

#[test]
fn an_owner_that_lost_its_partition_has_a_moment_for_its_last_words() {
    let (mut bench, [_, second], link) = Bench::linked();
    bench.directory(Some("core-2"), 4);
    assert!(bench.events().is_empty());
    let before = bench.now;
    bench.wait();
    assert_eq!(bench.now - before, GRACE);
    let events = bench.events();
    assert_eq!(events[0], Event::Drop { link });
    open(&events, second);
}

#[test]
fn a_core_that_does_not_own_it_is_asked_again_or_left_for_another() {
    let (mut bench, [first, second], link) = Bench::linked();
    bench.moved(link, Some("core-2"));
    let link = open(&bench.events(), second);
    let (outbox, effects) = (&mut bench.outbox, &mut bench.effects);
    bench.region.handle_open_failed(bench.now, PARTITION, link, OpenFailure::NotOwner, outbox, effects);
    assert!(bench.events().is_empty());
    let before = bench.now;
    bench.wait();
    assert!(bench.now - before <= FIRST_PAUSE, "soon");
    let link = open(&bench.events(), second);
    bench.directory(Some("core-1"), 5);
    let events = bench.events();
    assert_eq!(events[0], Event::Drop { link }, "it waits there in vain");
    let link = open(&events, first);
    bench.opened(link, 5);
    assert!(bench.region.is_ready());
}

#[test]
fn one_core_under_two_addresses_has_one_connection() {
    let mut bench = Bench::new(&["core-1:1", "other:1"]);
    let connections = dials(&bench.events());
    bench.dialled(connections[0], "core-1", 1);
    bench.dialled(connections[1], "core-1", 1);
    let events = bench.events();
    assert!(
        matches!(events[..], [Event::HangUp { connection, .. }] if connection == connections[1]),
        "{events:?}"
    );
    // Once that one is lost, the other address may do.
    bench.region.handle_hung_up(bench.now, connections[0], &mut bench.outbox, &mut bench.effects);
    let dialled = dials(&bench.events());
    assert_eq!(dialled.len(), 1, "the other is waited with");
    bench.dialled(dialled[0], "core-1", 1);
    assert_eq!(bench.region.connected(), 1);
}

#[test]
fn owners_are_dialled_where_the_directory_says() {
    let mut bench = Bench::new(&["seed:1"]);
    let connections = dials(&bench.events());
    bench.dialled(connections[0], "core-1", 1);
    bench.directory_of(&["core-1"], Some("core-1"), 1);
    open(&bench.events(), connections[0]);
    bench.directory(Some("core-2"), 2);
    let events = bench.events();
    let [Event::Drop { .. }, Event::Dial { address, connection, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(&**address, "core-2:1");
    let connection = *connection;
    bench.dialled(connection, "core-2", 1);
    open(&bench.events(), connection);
    // An address that is not needed any more is given up with its connection.
    bench.directory_of(&["core-1"], Some("core-1"), 3);
    bench.events();
    bench.region.handle_hung_up(bench.now, connection, &mut bench.outbox, &mut bench.effects);
    assert_eq!(bench.region.cores(bench.now).len(), 1);
}

#[test]
fn cores_must_agree_on_the_number_of_partitions() {
    let (mut bench, [_, second], _) = Bench::linked();
    bench.region.handle_hung_up(bench.now, second, &mut bench.outbox, &mut bench.effects);
    bench.wait();
    let connections = dials(&bench.events());
    bench.dialled(connections[0], "core-2", 2);
    assert!(matches!(bench.events()[..], [Event::HangUp { .. }]));
    assert_eq!((bench.region.count(), bench.region.connected()), (1, 1));
}

#[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
fn start() -> Instant {
    Instant::now()
}
