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
        let node =
            |name: &str| DirectoryNode { id: NodeId::new(name), address: Arc::from(format!("{name}:1")) };
        let directory = Directory {
            nodes: vec![node("core-1"), node("core-2")],
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
    bench.directory(Some("core-1"), 1);
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
    bench.directory(Some("core-1"), 3);
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
