//! Drains by hand, then against targets that grant at random.

#![expect(clippy::disallowed_methods, reason = "a test needs some first instant")]

use super::super::admission::Issuer;
use super::*;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct Rig {
    drainer: Drainer,
    now: Instant,
    /// Places granted per target and tick.
    grant: u16,
    next_lease: u32,
    granted: usize,
    used: usize,
    moves: Vec<(Instant, ConnectionKey, NodeId, Duration)>,
    closes: Vec<(Instant, ConnectionKey, bool, bool)>,
    asks: Vec<(NodeId, LeaseAsk)>,
    returned: usize,
    behind: usize,
    lame: Vec<bool>,
    done: Option<Progress>,
    /// From `goaway` to gone.
    takes: Option<Duration>,
}

impl Rig {
    fn new(connections: impl IntoIterator<Item = Candidate>, seconds: u64) -> Self {
        let now = Instant::now();
        let mut drainer =
            Drainer::new(DrainConfig::default(), keys(), order_of(4, now, seconds, &["b", "c"]), (now, WALL));
        connections.into_iter().for_each(|candidate| drainer.handle_connection(candidate));
        Self {
            drainer,
            now,
            grant: 10,
            next_lease: 1,
            granted: 0,
            used: 0,
            moves: Vec::new(),
            closes: Vec::new(),
            asks: Vec::new(),
            returned: 0,
            behind: 0,
            lame: Vec::new(),
            done: None,
            takes: Some(Duration::from_millis(600)),
        }
    }

    fn lease(&mut self, drain: DrainId, count: u16) -> Lease {
        let number = self.next_lease;
        self.next_lease += 1;
        Lease {
            drain,
            issuer: Issuer::of(&node("b")),
            number,
            first_ms: self.unix_ms() + 500,
            spacing_us: 250_000 / u32::from(count.max(1)),
            count,
        }
    }

    fn unix_ms(&self) -> u64 {
        self.drainer.unix_ms(self.now)
    }

    fn react(&mut self) {
        while let Some(event) = self.drainer.poll_event() {
            assert!(self.done.is_none(), "nothing comes after the end");
            match event {
                Event::LameDuck(on) => self.lame.push(on),
                Event::Ask { target, ask } => {
                    self.asks.push((target.clone(), ask));
                    let count = u32::from(self.grant).min(ask.want) as u16;
                    if count > 0 {
                        let lease = self.lease(ask.drain, count);
                        self.granted += usize::from(count);
                        self.drainer.handle_lease(self.now, &target, lease);
                    }
                }
                Event::Return { .. } => self.returned += 1,
                Event::Goaway { connection, target, after, deadline, ticket } => {
                    let anybody = std::net::IpAddr::from([192, 0, 2, 1]);
                    let claims = keys().open(&ticket, anybody).expect("genuine");
                    assert!(deadline > after);
                    self.used += 1;
                    assert!(claims.serial.lease().0 < self.next_lease);
                    self.moves.push((self.now, connection, target, after));
                }
                Event::Close { connection, place, forced } => {
                    self.used += usize::from(place.is_some());
                    self.closes.push((self.now, connection, place.is_some(), forced));
                }
                Event::Progress(progress) => {
                    let known = progress.moved + progress.closed + progress.forced + progress.left;
                    assert_eq!(known + progress.remaining, progress.total);
                }
                Event::Behind { .. } => self.behind += 1,
                Event::Done(progress) => self.done = Some(progress),
            }
        }
    }

    /// Lets time pass in steps of 50 ms; clients do what they are asked to.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end && self.done.is_none() {
            self.now += Duration::from_millis(50);
            if self.drainer.poll_timeout().is_some_and(|at| at <= self.now) {
                self.drainer.handle_timeout(self.now);
            }
            self.react();
            if let Some(takes) = self.takes {
                let arrived =
                    |(at, ..): &&(Instant, ConnectionKey, NodeId, Duration)| *at + takes <= self.now;
                let gone: Vec<_> = self.moves.iter().filter(arrived).map(|(_, key, ..)| *key).collect();
                gone.into_iter().for_each(|key| self.drainer.handle_gone(self.now, key, Departure::Resumed));
            }
            let closed: Vec<_> = self.closes.iter().map(|(_, key, ..)| *key).collect();
            closed.into_iter().for_each(|key| self.drainer.handle_gone(self.now, key, Departure::Broken));
            self.react();
            assert!(self.used <= self.granted, "never more than was granted");
        }
    }
}

fn keys() -> Arc<SlotKeys> {
    Arc::new(SlotKeys::new(&[7; 32], None))
}

fn node(name: &str) -> NodeId {
    NodeId::new(name)
}

fn order_of(drain: u64, now: Instant, seconds: u64, targets: &[&str]) -> Order {
    Order {
        drain: DrainId(drain),
        deadline: now + Duration::from_secs(seconds),
        targets: targets.iter().map(|name| node(name)).collect(),
    }
}

fn candidate(number: u64, class: Class) -> Candidate {
    Candidate { connection: ConnectionKey(number), class, rank: number as u32, tenant: number % 20 }
}

fn many(count: u64, class: Class) -> impl Iterator<Item = Candidate> {
    (0..count).map(move |number| candidate(number, class))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn everybody_moves_at_the_pace_of_the_leases() {
    let mut rig = Rig::new(many(1_000, Class::Idle), 300);
    rig.run(Duration::from_millis(950));
    assert_eq!((rig.moves.len(), rig.lame.as_slice()), (0, &[true][..]), "a lame duck first");
    rig.run(seconds(60));
    let done = rig.done.expect("it ends");
    assert_eq!((done.moved, done.forced, done.remaining, done.aborted), (1_000, 0, 0, false));
    assert_eq!((rig.moves.len(), rig.behind), (1_000, 0));
    // Two targets of ten places every 250 ms: 12.5 s.
    let took = rig.now - rig.drainer.began;
    assert!((seconds(13)..seconds(16)).contains(&took), "{took:?}");
    assert!(rig.moves.iter().any(|(_, _, target, _)| *target == node("c")));
}

#[test]
fn idle_ones_go_first_and_by_rank() {
    let all = many(50, Class::Idle)
        .chain((50..100).map(|number| candidate(number, Class::Busy)))
        .map(|one| Candidate { tenant: 1, ..one });
    let mut rig = Rig::new(all, 300);
    rig.run(seconds(30));
    let firsts: Vec<u64> = rig.moves.iter().take(50).map(|(_, key, ..)| key.0).collect();
    assert!(firsts.iter().all(|key| *key < 50), "{firsts:?}");
    let orders: Vec<u32> = firsts.iter().map(|key| (*key as u32).wrapping_mul(0x9e37_79b9)).collect();
    assert!(orders.windows(2).all(|pair| pair[0] < pair[1]), "spread over the ranks");
}

#[test]
fn who_can_only_break_is_spread_over_the_whole_time() {
    let mut rig = Rig::new(many(120, Class::BreakOnly), 140);
    rig.run(seconds(140));
    assert_eq!(rig.done.expect("it ends").closed, 120);
    let begin = rig.drainer.began;
    for quarter in 0..4 {
        let from = begin + seconds(30 * quarter);
        let closed = rig.closes.iter().filter(|(at, ..)| (from..from + seconds(30)).contains(at)).count();
        assert!((27..=33).contains(&closed), "{closed} in quarter {quarter}");
    }
    assert!(rig.closes.iter().all(|(_, _, with_place, forced)| *with_place && !*forced));
}

#[test]
fn long_polls_go_when_their_hold_ends_or_when_nobody_else_is_left() {
    let all = many(40, Class::LongPoll).chain((40..400).map(|number| candidate(number, Class::Idle)));
    let mut rig = Rig::new(all, 300);
    rig.run(seconds(2));
    assert!(rig.moves.iter().all(|(_, key, ..)| key.0 >= 40));
    for number in 0..10 {
        rig.drainer.handle_poll_ended(rig.now, ConnectionKey(number));
    }
    rig.run(POLL_PATIENCE);
    let polls = |rig: &Rig| rig.moves.iter().filter(|(_, key, ..)| key.0 < 40).count();
    assert_eq!(polls(&rig), 10, "before all others");
    rig.grant = 0;
    rig.run(seconds(1));
    rig.drainer.handle_poll_ended(rig.now, ConnectionKey(20));
    rig.run(POLL_PATIENCE + TICK);
    rig.grant = 5;
    rig.run(seconds(2));
    assert_eq!(polls(&rig), 10, "answered meanwhile: it waits for the next end");
    rig.run(seconds(12));
    assert_eq!((rig.drainer.idle.len(), polls(&rig)), (0, 10), "alone, they have their hold all the same");
    for number in 20..25 {
        rig.drainer.handle_poll_ended(rig.now, ConnectionKey(number));
    }
    rig.run(POLL_PATIENCE);
    assert_eq!(polls(&rig), 15);
    rig.run(seconds(60));
    assert_eq!(rig.done.expect("the rest have had their time").moved, 400);
    let took = rig.now - rig.drainer.began;
    assert!((seconds(27)..seconds(33)).contains(&took), "{took:?}");
    assert_eq!(rig.behind, 0);
}

#[test]
fn polls_have_no_longer_than_half_of_the_time_and_an_end_that_is_told_twice_is_one() {
    let mut rig = Rig::new(many(40, Class::LongPoll), 20);
    rig.grant = 0;
    rig.run(seconds(2));
    rig.drainer.handle_poll_ended(rig.now, ConnectionKey(1));
    rig.run(POLL_PATIENCE - TICK);
    rig.drainer.handle_poll_ended(rig.now, ConnectionKey(1));
    rig.run(2 * TICK);
    rig.grant = 10;
    rig.run(seconds(1));
    assert_eq!(rig.moves.len(), 0, "its time is over");
    rig.run(seconds(4));
    let done = rig.done.expect("in time");
    assert_eq!((done.moved, done.forced), (40, 0));
    assert!(rig.moves.iter().all(|(at, ..)| *at >= rig.drainer.began + seconds(5)));
}

#[test]
fn too_many_on_their_way_stop_the_drain() {
    let mut rig = Rig::new(many(1_000, Class::Idle), 300);
    rig.takes = None;
    rig.run(seconds(10));
    let bound = 2.0 * 2.0 * f64::from(rig.grant) * 4.0;
    assert!(rig.moves.len() as f64 <= bound * 1.3, "{}", rig.moves.len());
    assert!(rig.moves.len() >= 64);
}

#[test]
fn who_is_there_but_does_not_leave_holds_up_nobody() {
    let mut rig = Rig::new(many(1_000, Class::Idle), 300);
    rig.takes = None;
    for _ in 0..150 {
        rig.run(Duration::from_millis(100));
        let asked: Vec<_> = rig.moves.iter().map(|(_, key, ..)| *key).collect();
        asked.into_iter().for_each(|key| rig.drainer.handle_there(key));
        rig.drainer.handle_there(ConnectionKey(5_000));
    }
    let progress = rig.drainer.progress(rig.now);
    assert_eq!((rig.moves.len(), progress.in_flight, progress.remaining), (1_000, 0, 1_000));
    // Those there lose it again.
    rig.drainer.handle_target_gone(&node("b"));
    rig.run(seconds(1));
    assert!(rig.moves.len() > 1_000 && rig.drainer.progress(rig.now).in_flight > 0);
    let all: Vec<_> = rig.drainer.connections.keys().copied().collect();
    all.into_iter().for_each(|key| rig.drainer.handle_gone(rig.now, key, Departure::Resumed));
    assert!(rig.drainer.there.is_empty() && rig.drainer.moving.is_empty());
    assert_eq!(rig.drainer.progress(rig.now).moved, 1_000);
}

#[test]
fn a_deadline_that_is_too_near_is_said_and_kept() {
    let mut rig = Rig::new(many(2_000, Class::Busy), 60);
    rig.grant = 1;
    rig.run(seconds(62));
    assert_eq!(rig.behind, 1);
    assert!(rig.asks.last().expect("many").1.urgent);
    let done = rig.done.expect("the deadline holds");
    assert!(done.forced > 1_500 && done.remaining == 0, "{done:?}");
    let forced_from = rig.drainer.began + seconds(40);
    let (mut most, mut last) = (0, 0);
    for second in 0..20 {
        let from = forced_from + seconds(second);
        last = rig.closes.iter().filter(|(at, ..)| (from..from + seconds(1)).contains(at)).count();
        most = most.max(last);
    }
    assert!(most < 120 && last > 0, "evenly: at most {most} a second");
}

#[test]
fn clients_that_ignore_goaway_are_closed_in_the_end() {
    let mut rig = Rig::new(many(30, Class::Idle), 120);
    rig.takes = None;
    rig.run(seconds(125));
    let done = rig.done.expect("it ends");
    assert_eq!((done.moved, done.closed + done.forced), (0, 30));
    assert_eq!(rig.moves.len(), 30, "asked once");
}

#[test]
fn pause_resume_and_abort() {
    let mut rig = Rig::new(many(1_000, Class::Idle), 300);
    rig.run(seconds(4));
    rig.drainer.pause(rig.now);
    rig.react();
    let (moved, deadline) = (rig.moves.len(), rig.drainer.deadline);
    assert!(moved > 0 && rig.drainer.poll_timeout().is_none());
    rig.run(seconds(30));
    assert_eq!(rig.moves.len(), moved);
    let late = rig.lease(DrainId(4), 5);
    rig.granted += 5;
    let returned = rig.returned;
    rig.drainer.handle_lease(rig.now, &node("b"), late);
    rig.react();
    assert_eq!(rig.returned, returned + 1, "what comes meanwhile is given back");
    assert_eq!(rig.drainer.resume(rig.now), seconds(30));
    assert_eq!(rig.drainer.deadline, deadline + seconds(30));
    assert_eq!(rig.drainer.resume(rig.now), Duration::ZERO);
    rig.run(seconds(2));
    assert!(rig.moves.len() > moved);
    let moved = rig.moves.len();
    rig.drainer.abort(rig.now);
    rig.react();
    let done = rig.done.expect("called off");
    assert!(done.aborted && done.remaining > 0);
    assert_eq!(rig.lame, [true, false]);
    assert_eq!((rig.moves.len(), rig.drainer.poll_timeout()), (moved, None));
    rig.drainer.handle_gone(rig.now, ConnectionKey(999), Departure::Broken);
    rig.drainer.abort(rig.now);
    assert!(rig.drainer.poll_event().is_none());
}

#[test]
fn a_pause_is_no_time_that_went_by() {
    // Those that only break are spread over 280 s, one each.
    let mut rig = Rig::new(many(280, Class::BreakOnly), 300);
    rig.run(seconds(56));
    let closed = rig.closes.len();
    assert!((54..=60).contains(&closed), "{closed}");
    rig.drainer.pause(rig.now);
    rig.run(seconds(200));
    rig.drainer.resume(rig.now);
    rig.run(seconds(10));
    let closed = rig.closes.len();
    assert!((62..=72).contains(&closed), "{closed}");
    assert_eq!(rig.behind, 0, "places come again only now");
    rig.run(seconds(300));
    assert_eq!(rig.done.expect("in time").closed, 280);

    // Polls have as long to end by themselves.
    let mut rig = Rig::new(many(5, Class::LongPoll), 300);
    rig.run(seconds(10));
    rig.drainer.pause(rig.now);
    rig.run(seconds(60));
    rig.drainer.resume(rig.now);
    rig.run(seconds(10));
    assert!(rig.moves.is_empty(), "{:?}", rig.moves);
    rig.run(seconds(20));
    assert_eq!(rig.moves.len(), 5);
}

#[test]
fn an_order_during_a_pause_counts_from_then() {
    let mut rig = Rig::new(many(1_000, Class::Idle), 300);
    rig.run(seconds(4));
    let began = rig.drainer.began;
    rig.drainer.pause(rig.now);
    rig.run(seconds(60));
    rig.drainer.handle_order(rig.now, order_of(9, rig.now, 100, &["b"]));
    let ordered = rig.now;
    rig.run(seconds(20));
    assert_eq!(rig.drainer.resume(rig.now), seconds(20));
    assert_eq!(rig.drainer.deadline, ordered + seconds(120));
    assert_eq!(rig.drainer.began, began + seconds(80));
}

#[test]
fn who_is_on_the_way_to_a_lame_duck_is_asked_again_once_it_is_dead() {
    let mut rig = Rig::new(many(40, Class::Idle), 300);
    rig.takes = None;
    rig.run(seconds(3));
    let to_b = rig.moves.iter().filter(|(_, _, target, _)| *target == node("b")).count();
    assert!(to_b > 0);
    rig.drainer.handle_targets(&[node("c")]);
    rig.react();
    assert_eq!(rig.drainer.destinations(), BTreeSet::from([node("b"), node("c")]));
    let before = rig.moves.len();
    rig.drainer.handle_target_gone(&node("b"));
    assert_eq!(rig.drainer.destinations(), BTreeSet::from([node("c")]));
    rig.run(seconds(20));
    assert_eq!(rig.moves.len(), 40 + to_b);
    assert!(rig.moves[before..].iter().all(|(_, _, target, _)| *target == node("c")));
}

#[test]
fn a_target_that_dies_is_replaced_and_one_that_revokes_is_believed() {
    let mut rig = Rig::new(many(200, Class::Idle), 300);
    rig.takes = None;
    rig.run(seconds(3));
    let to_b: Vec<_> =
        rig.moves.iter().filter(|(_, _, target, _)| *target == node("b")).map(|(_, key, ..)| *key).collect();
    assert!(!to_b.is_empty());
    let before = rig.moves.len();
    rig.drainer.handle_target_gone(&node("b"));
    rig.takes = Some(Duration::from_millis(600));
    // Those who were on their way to it did not get there.
    rig.moves.retain(|(_, _, target, _)| *target != node("b"));
    rig.run(seconds(60));
    assert_eq!(rig.done.expect("through c alone").moved, 200);
    for key in to_b {
        assert!(rig.moves.iter().any(|(_, other, target, _)| *other == key && *target == node("c")));
    }
    assert!(rig.moves.len() <= 200 && before > 0);

    let mut rig = Rig::new(many(10, Class::Idle), 300);
    rig.grant = 0;
    rig.run(seconds(2));
    rig.drainer.pause(rig.now);
    rig.drainer.resume(rig.now);
    let lease = rig.lease(DrainId(4), 5);
    let number = lease.number;
    rig.drainer.targets.add(rig.now, &node("b"), lease);
    rig.drainer.handle_revoked(&node("b"), number);
    rig.run(seconds(2));
    assert!(rig.moves.is_empty());
}

#[test]
fn the_newer_order_holds() {
    let mut rig = Rig::new(many(1_000, Class::Idle), 300);
    rig.run(seconds(3));
    rig.drainer.handle_order(rig.now, order_of(3, rig.now, 10, &["z"]));
    assert_eq!(rig.drainer.drain, DrainId(4), "out of date");
    rig.drainer.handle_order(rig.now, order_of(9, rig.now, 30, &["d"]));
    rig.asks.clear();
    let old = rig.lease(DrainId(4), 5);
    rig.granted += 5;
    let returned = rig.returned;
    rig.drainer.handle_lease(rig.now, &node("d"), old);
    rig.run(seconds(2));
    assert!(rig.returned > returned, "the lease of another drain");
    assert!(rig.asks.iter().all(|(target, ask)| *target == node("d") && ask.drain == DrainId(9)));
    rig.run(seconds(40));
    assert!(rig.done.is_some(), "by the newer deadline");
}

#[test]
fn how_a_connection_ends_says_what_it_counts_as() {
    let mut rig = Rig::new(many(6, Class::Idle).chain([candidate(6, Class::BreakOnly)]), 60);
    rig.takes = None;
    // Before anybody was asked.
    rig.drainer.handle_gone(rig.now, ConnectionKey(0), Departure::Done);
    rig.drainer.handle_gone(rig.now, ConnectionKey(1), Departure::Broken);
    rig.drainer.handle_gone(rig.now, ConnectionKey(2), Departure::Resumed);
    rig.run(seconds(5));
    assert_eq!(rig.moves.len(), 3);
    for (key, departure) in [(3, Departure::Resumed), (4, Departure::Done), (5, Departure::Broken)] {
        rig.drainer.handle_gone(rig.now, ConnectionKey(key), departure);
    }
    assert!(rig.closes.iter().all(|(_, key, ..)| *key == ConnectionKey(6)));
    rig.drainer.handle_gone(rig.now, ConnectionKey(6), Departure::Broken);
    rig.react();
    let done = rig.done.expect("nobody is left");
    // One was asked, and broke on the way; one was closed as planned, or went before its turn.
    assert_eq!((done.moved, done.forced), (3, 1));
    assert_eq!((done.left + done.closed, done.total), (3, 7));
}

#[test]
fn nobody_is_given_longer_than_there_is() {
    let mut rig = Rig::new(many(200, Class::Idle), 10);
    rig.drainer.config.forced = seconds(2);
    rig.takes = None;
    let deadline = rig.drainer.deadline;
    let mut now = rig.now;
    while now < deadline {
        now += Duration::from_millis(250);
        rig.drainer.handle_timeout(now);
        while let Some(event) = rig.drainer.poll_event() {
            match event {
                Event::Ask { target, ask } => {
                    rig.now = now;
                    let lease = rig.lease(ask.drain, 4);
                    rig.drainer.handle_lease(now, &target, lease);
                }
                Event::Goaway { after, deadline: left, .. } => {
                    assert!(after < left, "{after:?} of {left:?}");
                    assert!(now + left <= deadline.max(now + SHORTEST), "{left:?} at {:?}", deadline - now);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn who_becomes_busy_waits_for_those_who_are_not() {
    let mut rig = Rig::new(many(100, Class::Idle), 300);
    for number in 0..50 {
        rig.drainer.handle_class(ConnectionKey(number), Class::Busy);
    }
    rig.run(seconds(30));
    assert!(rig.moves.iter().take(50).all(|(_, key, ..)| key.0 >= 50));
    assert_eq!(rig.done.expect("it ends").moved, 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn everybody_leaves_in_time_and_no_place_is_used_twice(
        seed: u64,
        classes in prop::collection::vec(0_u8..4, 1..300),
        deadline in 40_u64..200,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let all = classes.iter().zip(0..).map(|(class, number)| {
            let class = [Class::Idle, Class::Busy, Class::LongPoll, Class::BreakOnly][usize::from(*class)];
            candidate(number, class)
        });
        let mut rig = Rig::new(all, deadline);
        let mut asked = BTreeSet::new();
        for _ in 0..deadline * 5 + 10 {
            rig.grant = rng.random_range(0..8);
            rig.takes = rng.random_bool(0.9).then(|| Duration::from_millis(rng.random_range(100..5_000)));
            if rng.random_bool(0.3) {
                let key = ConnectionKey(rng.random_range(0..classes.len() as u64));
                if rng.random_bool(0.9) {
                    rig.drainer.handle_poll_ended(rig.now, key);
                } else {
                    rig.drainer.handle_gone(rig.now, key, Departure::Resumed);
                }
            }
            rig.run(Duration::from_millis(200));
            for (_, key, ..) in rig.moves.drain(..) {
                prop_assert!(asked.insert(key), "asked twice");
                rig.drainer.handle_gone(rig.now, key, Departure::Resumed);
            }
            rig.react();
        }
        let done = rig.done.expect("the deadline holds");
        prop_assert_eq!(done.remaining, 0);
        prop_assert_eq!(done.moved + done.closed + done.forced + done.left, classes.len());
    }
}

const WALL: u64 = 1_790_000_000_000;
