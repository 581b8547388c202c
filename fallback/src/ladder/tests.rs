//! The ladder's rules by hand, and in random networks.

mod sim;

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tidegate_transport::TransportKind::{self, LongPoll, Quic, WebSocket};

use super::*;

const RUNGS: [TransportKind; 3] = [Quic, WebSocket, LongPoll];
const WALL_MS: u64 = 1_790_000_000_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A ladder whose driver is the test.
struct Hand {
    ladder: Ladder,
    start: Instant,
    now: Instant,
}

impl Hand {
    fn new() -> Self {
        Self::remembering(LadderMemory::default())
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
    fn remembering(memory: LadderMemory) -> Self {
        let now = Instant::now();
        let rng = ChaCha8Rng::seed_from_u64(7);
        let ladder = Ladder::new(
            LadderConfig::default(),
            RUNGS.to_vec(),
            memory,
            ("host", "net"),
            (now, WALL_MS),
            rng,
        );
        Self { ladder, start: now, now }
    }

    fn at(&self) -> Duration {
        self.now - self.start
    }

    /// What is to be done, at once.
    fn events(&mut self) -> Vec<LadderEvent> {
        std::iter::from_fn(|| self.ladder.poll_event()).collect()
    }

    /// Time passes, and what it brings.
    fn pass(&mut self, time: Duration) -> Vec<LadderEvent> {
        let end = self.now + time;
        let mut events = self.events();
        while let Some(at) = self.ladder.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.ladder.handle_timeout(self.now);
            events.extend(self.events());
        }
        self.now = end;
        events
    }

    /// The next dial, and when it comes.
    fn next_dial(&mut self) -> (TransportKind, AttemptId, Duration) {
        for _ in 0..1_000 {
            while let Some(event) = self.ladder.poll_event() {
                if let LadderEvent::Dial { attempt, transport } = event {
                    return (transport, attempt, self.at());
                }
            }
            let at = self.ladder.poll_timeout().expect("something is planned");
            self.now = self.now.max(at);
            self.ladder.handle_timeout(self.now);
        }
        panic!("no dial comes");
    }

    fn dial(&mut self) {
        self.ladder.dial(self.now);
    }

    fn opened(&mut self, attempt: AttemptId) -> Vec<LadderEvent> {
        self.ladder.handle_opened(self.now, attempt);
        self.events()
    }

    fn failed(&mut self, attempt: AttemptId, failure: DialFailure) -> Vec<LadderEvent> {
        self.ladder.handle_failed(self.now, attempt, failure);
        self.events()
    }

    /// Connects over the first rung and passes its trial.
    fn settled(&mut self) -> AttemptId {
        self.dial();
        let (transport, attempt, _) = self.next_dial();
        assert_eq!(transport, Quic);
        self.pass(ms(40));
        assert_eq!(self.opened(attempt), [LadderEvent::Use { attempt }]);
        self.ladder.handle_connected(self.now, attempt);
        for _ in 0..3 {
            self.pass(secs(3));
            self.ladder.handle_round_trip(self.now, attempt, ms(40));
        }
        self.pass(secs(2));
        self.ladder.handle_round_trip(self.now, attempt, ms(40));
        attempt
    }

    /// Connects where UDP is a black hole: by WebSocket. Returns when it was dialled.
    fn blocked(&mut self) -> (AttemptId, Duration) {
        let (socket, after) = self.opened_blocked();
        self.ladder.handle_connected(self.now, socket);
        (socket, after)
    }

    /// The same, until the WebSocket is open.
    fn opened_blocked(&mut self) -> (AttemptId, Duration) {
        let began = self.at();
        self.dial();
        let (transport, quic, _) = self.next_dial();
        assert_eq!(transport, Quic);
        let (transport, socket, at) = self.next_dial();
        assert_eq!(transport, WebSocket);
        self.pass(ms(100));
        assert_eq!(
            self.opened(socket),
            [LadderEvent::Use { attempt: socket }, LadderEvent::Abandon { attempt: quic }]
        );
        (socket, at - began)
    }

    /// QUIC opens and is not answered in time; the WebSocket beside it opens. Returns that.
    fn opened_and_outrun(&mut self) -> AttemptId {
        self.dial();
        let (_, quic, _) = self.next_dial();
        self.opened(quic);
        self.ladder.handle_suspect(self.now, quic);
        let (transport, socket, _) = self.next_dial();
        assert_eq!(transport, WebSocket);
        self.opened(socket);
        self.pass(secs(1));
        socket
    }

    fn is_broken(&mut self, transport: TransportKind) -> bool {
        let wall = self.ladder.wall_ms(self.now);
        self.ladder.known().is_broken(transport, wall)
    }
}

#[test]
fn the_websocket_joins_after_a_head_start_that_follows_the_round_trip() {
    // 1.5 · 150 ms + 100 ms where nothing is known, and 100 ms less while UDP is silent.
    assert_eq!(Hand::new().blocked().1, ms(225));
    let mut heard = Hand::new();
    heard.dial();
    let (_, quic, _) = heard.next_dial();
    heard.pass(ms(50));
    heard.ladder.handle_udp_heard(heard.now, quic);
    assert_eq!(heard.next_dial().2, ms(325));
    for (rtt, head_start) in [(10, 250), (200, 400), (2_000, 500)] {
        let mut hand = Hand::new();
        hand.ladder.known().measured(ms(rtt));
        hand.dial();
        let (_, quic, _) = hand.next_dial();
        hand.ladder.handle_udp_heard(hand.now, quic);
        assert_eq!(hand.next_dial(), (WebSocket, AttemptId(2), ms(head_start)), "{rtt} ms");
        assert_eq!(hand.next_dial(), (LongPoll, AttemptId(3), ms(head_start * 4)), "{rtt} ms");
    }
}

#[test]
fn a_hard_failure_lets_the_next_join_at_once() {
    let mut hand = Hand::new();
    hand.dial();
    let (_, quic, _) = hand.next_dial();
    let events = hand.failed(quic, DialFailure::Failed);
    let [LadderEvent::Dial { attempt: socket, transport: WebSocket }] = events[..] else {
        panic!("{events:?}")
    };
    let events = hand.failed(socket, DialFailure::Failed);
    let [LadderEvent::Dial { attempt: poll, transport: LongPoll }] = events[..] else { panic!("{events:?}") };
    assert_eq!(hand.opened(poll), [LadderEvent::Use { attempt: poll }]);
    assert!(hand.is_broken(Quic) && hand.is_broken(WebSocket));
}

#[test]
fn a_block_is_remembered_doubles_and_is_over_some_time() {
    let mut hand = Hand::new();
    let (socket, _) = hand.blocked();
    for (times, seconds) in [60, 120, 240].into_iter().enumerate() {
        assert!(hand.is_broken(Quic), "{times}");
        let memory = hand.ladder.memory().clone();
        // In the next run, after the app was restarted, too.
        let text = serde_json::to_string(&memory).unwrap();
        let mut later = Hand::remembering(serde_json::from_str(&text).unwrap());
        later.dial();
        assert_eq!(later.next_dial(), (WebSocket, AttemptId(1), Duration::ZERO));
        let known = hand.ladder.known();
        let wall = known.broken_until(Quic) - 1;
        assert!(known.is_broken(Quic, wall) && !known.is_broken(Quic, wall + 1));
        let left = known.broken_until(Quic) - hand.ladder.wall_ms(hand.now);
        assert_eq!(left, seconds * 1_000, "{times}");
        hand.ladder.blame(hand.now, Quic);
    }
    for _ in 0..20 {
        hand.ladder.blame(hand.now, Quic);
    }
    let left = hand.ladder.known().broken_until(Quic) - hand.ladder.wall_ms(hand.now);
    assert_eq!(left, 6 * 3600 * 1_000);
    // Another network, or the same one again: who knows.
    hand.ladder.handle_network_changed(hand.now, "net");
    assert!(!hand.is_broken(Quic));
    let (transport, _, at) = hand.next_dial();
    assert_eq!((transport, at), (Quic, hand.at()), "tried at once");
    hand.ladder.handle_lost(hand.now, socket, false);
}

#[test]
fn two_failures_are_forgiven_where_it_worked_today() {
    let mut hand = Hand::new();
    let quic = hand.settled();
    hand.ladder.handle_lost(hand.now, quic, false);
    for failure in 0..=3 {
        // The first time the server may have been restarting: that is no failure at all.
        hand.blocked();
        assert_eq!(hand.is_broken(Quic), failure == 3);
        hand.ladder.stop();
    }
    let mut hand = Hand::new();
    let quic = hand.settled();
    hand.ladder.handle_lost(hand.now, quic, false);
    hand.pass(secs(25 * 3600));
    hand.blocked();
    hand.ladder.stop();
    hand.blocked();
    assert!(hand.is_broken(Quic), "yesterday does not count");
}

#[test]
fn a_server_that_is_away_is_no_network_in_the_way() {
    // Nobody there at all.
    let mut hand = Hand::new();
    hand.dial();
    let (_, quic, _) = hand.next_dial();
    let (_, socket, _) = hand.next_dial();
    let events = hand.failed(socket, DialFailure::Refused);
    let [LadderEvent::Dial { attempt: poll, .. }] = events[..] else { panic!("{events:?}") };
    assert_eq!(hand.failed(poll, DialFailure::Refused), []);
    let began = hand.at();
    // QUIC says nothing where nobody listens: it does not get all of its time.
    let events = hand.pass(secs(4));
    assert_eq!(
        events,
        [LadderEvent::Abandon { attempt: quic }, LadderEvent::Failed { purpose: Purpose::Need }]
    );
    assert!(hand.at() - began <= secs(4));
    assert!(RUNGS.into_iter().all(|rung| !hand.is_broken(rung)));

    // Back while the race runs: TCP opens first, having been refused before.
    hand.dial();
    let (_, _, _) = hand.next_dial();
    let (_, socket, _) = hand.next_dial();
    let events = hand.failed(socket, DialFailure::Refused);
    let [LadderEvent::Dial { attempt: poll, .. }] = events[..] else { panic!("{events:?}") };
    hand.opened(poll);
    hand.ladder.handle_connected(hand.now, poll);
    assert!(RUNGS.into_iter().all(|rung| !hand.is_broken(rung)));

    // It says so itself, young as the connection is.
    let mut hand = Hand::new();
    for _ in 0..5 {
        hand.dial();
        let (_, quic, _) = hand.next_dial();
        hand.opened(quic);
        hand.ladder.handle_connected(hand.now, quic);
        hand.pass(secs(1));
        hand.ladder.handle_lost(hand.now, quic, true);
    }
    assert!(!hand.is_broken(Quic));
}

#[test]
fn a_restart_between_two_dials_is_cleared_up_soon() {
    for by_server in [true, false] {
        for still_blocked in [true, false] {
            let mut hand = Hand::new();
            hand.dial();
            let (_, quic, _) = hand.next_dial();
            hand.opened(quic);
            hand.ladder.handle_connected(hand.now, quic);
            hand.ladder.handle_lost(hand.now, quic, by_server);
            // UDP was silent when it was dialled; TCP was not there to be refused.
            hand.blocked();
            assert!(!hand.is_broken(Quic), "nobody knows yet");
            let began = hand.at();
            let (transport, quic, at) = hand.next_dial();
            assert!(transport == Quic && at - began <= secs(3), "{transport:?} after {:?}", at - began);
            if still_blocked {
                hand.failed(quic, DialFailure::Failed);
            } else {
                hand.opened(quic);
                hand.ladder.handle_connected(hand.now, quic);
            }
            assert_eq!(hand.is_broken(Quic), still_blocked);
        }
    }
}

#[test]
fn a_connection_to_a_server_on_its_way_down_leaves_the_doubt() {
    let mut hand = Hand::new();
    hand.dial();
    let (_, quic, _) = hand.next_dial();
    hand.opened(quic);
    hand.ladder.handle_connected(hand.now, quic);
    hand.ladder.handle_lost(hand.now, quic, true);
    let (socket, _) = hand.opened_blocked();
    hand.ladder.handle_lost(hand.now, socket, true);
    // The restart is not over yet.
    hand.blocked();
    assert!(!hand.is_broken(Quic), "nobody knows yet");
}

#[test]
fn a_server_that_starts_is_slow_and_no_black_hole() {
    for still_blocked in [true, false] {
        let mut hand = Hand::new();
        let quic = hand.settled();
        hand.ladder.handle_lost(hand.now, quic, true);
        // It opens, and the answer takes its time: the WebSocket's came before.
        let after = hand.opened_and_outrun();
        hand.ladder.handle_connected(hand.now, after);
        hand.ladder.handle_connected(hand.now, after);
        assert!(hand.ladder.known().failures(Quic) == 0, "nobody knows yet");
        let began = hand.at();
        let (transport, quic, at) = hand.next_dial();
        assert!(transport == Quic && at - began <= secs(3), "{transport:?} after {:?}", at - began);
        hand.opened(quic);
        if still_blocked {
            hand.pass(secs(5));
        } else {
            hand.ladder.handle_connected(hand.now, quic);
        }
        assert_eq!(hand.ladder.known().failures(Quic) == 1, still_blocked);
    }
}

#[test]
fn a_black_hole_after_opening_demotes() {
    let mut hand = Hand::new();
    let quic = hand.settled();
    hand.ladder.handle_suspect(hand.now, quic);
    assert_eq!(hand.ladder.poll_event(), Some(LadderEvent::Probe));
    let (transport, fresh, _) = hand.next_dial();
    assert_eq!(transport, Quic, "the server may merely have forgotten the connection");
    let (transport, socket, _) = hand.next_dial();
    assert_eq!(transport, WebSocket);
    assert_eq!(hand.opened(socket), [LadderEvent::Probe], "a last chance");
    let events = hand.pass(ms(200));
    assert_eq!(events, [LadderEvent::Use { attempt: socket }, LadderEvent::Abandon { attempt: fresh }]);
    hand.ladder.handle_connected(hand.now, socket);
    assert!(!hand.is_broken(Quic), "it worked today: forgiven, but the session is elsewhere");
    let (transport, climb, at) = hand.next_dial();
    assert_eq!(transport, Quic);
    assert_eq!(hand.opened(climb), [LadderEvent::Use { attempt: climb }]);
    assert!(at >= secs(30));
}

#[test]
fn who_is_heard_again_stays() {
    let mut hand = Hand::new();
    let quic = hand.settled();
    for opened in [false, true] {
        hand.ladder.handle_suspect(hand.now, quic);
        let (_, _, _) = hand.next_dial();
        let (_, socket, _) = hand.next_dial();
        if opened {
            hand.opened(socket);
        }
        hand.pass(ms(150));
        hand.ladder.handle_heard(hand.now, quic);
        let events = hand.events();
        assert!(events.contains(&LadderEvent::Abandon { attempt: socket }), "{events:?}");
        assert!(hand.pass(secs(600)).is_empty());
    }
    // Even where the session was already on its way.
    hand.ladder.handle_suspect(hand.now, quic);
    let (_, _, _) = hand.next_dial();
    let (_, socket, _) = hand.next_dial();
    hand.opened(socket);
    assert!(hand.pass(ms(200)).contains(&LadderEvent::Use { attempt: socket }));
    hand.ladder.handle_heard(hand.now, quic);
    assert_eq!(hand.events(), [LadderEvent::Abandon { attempt: socket }]);
    assert!(!hand.is_broken(Quic));
}

#[test]
fn a_restart_in_silence_leads_back_to_the_same_rung() {
    let mut hand = Hand::new();
    let quic = hand.settled();
    hand.ladder.handle_suspect(hand.now, quic);
    let (_, _, _) = hand.next_dial();
    let (_, socket, _) = hand.next_dial();
    let events = hand.failed(socket, DialFailure::Refused);
    let Some(LadderEvent::Dial { attempt: poll, .. }) = events.last() else { panic!("{events:?}") };
    hand.failed(*poll, DialFailure::Refused);
    let events = hand.pass(ms(3_500));
    assert!(events.contains(&LadderEvent::Failed { purpose: Purpose::Suspicion }), "{events:?}");
    // It is back; TCP is quicker than UDP this time.
    hand.next_dial();
    let (transport, socket, _) = hand.next_dial();
    assert_eq!(transport, WebSocket);
    hand.opened(socket);
    hand.pass(secs(1));
    hand.ladder.handle_connected(hand.now, socket);
    assert_eq!(hand.ladder.known().broken_until(Quic), 0);
    assert!(hand.ladder.known().failures(Quic) == 0);
}

#[test]
fn climbing_takes_ever_longer_and_a_climb_must_last() {
    let mut hand = Hand::new();
    hand.blocked();
    let mut connected = hand.at();
    for seconds in [60, 120, 240, 480, 960, 1800, 1800] {
        let (transport, quic, at) = hand.next_dial();
        assert_eq!(transport, Quic);
        let waited = at - connected;
        let bounds = secs(seconds).mul_f64(0.5)..=secs(seconds).mul_f64(1.5).min(secs(1800));
        assert!(bounds.contains(&waited), "{waited:?} of {seconds} s");
        hand.failed(quic, DialFailure::Failed);
        connected = hand.at();
    }
    // UDP is back, for a moment.
    let (_, quic, _) = hand.next_dial();
    assert_eq!(hand.opened(quic), [LadderEvent::Use { attempt: quic }]);
    hand.ladder.handle_connected(hand.now, quic);
    hand.pass(secs(5));
    let failures = hand.ladder.climb.failures;
    hand.ladder.handle_lost(hand.now, quic, false);
    assert_eq!(hand.ladder.climb.failures, failures + 1);
    assert!(hand.is_broken(Quic));
    hand.dial();
    assert_eq!(hand.next_dial().0, WebSocket, "back, at once");
    hand.ladder.stop();
    hand.events();

    // And for good: three round trips and ten seconds.
    let mut hand = Hand::new();
    hand.blocked();
    let (_, quic, _) = hand.next_dial();
    hand.opened(quic);
    hand.ladder.handle_connected(hand.now, quic);
    for _ in 0..3 {
        assert_eq!(hand.pass(secs(3)), [LadderEvent::Probe]);
        assert!(hand.ladder.known().failures(Quic) > 0);
        hand.ladder.handle_round_trip(hand.now, quic, ms(40));
    }
    hand.pass(secs(1));
    assert!(!hand.is_broken(Quic));
    assert_eq!(hand.ladder.climb.failures, 0);
    assert!(hand.pass(secs(3600)).is_empty(), "nothing above it");
}

#[test]
fn a_connection_that_never_answers_is_given_up_for_the_next_rung() {
    let mut hand = Hand::new();
    hand.dial();
    let (_, quic, _) = hand.next_dial();
    hand.opened(quic);
    assert_eq!(hand.pass(secs(5)), [LadderEvent::Abandon { attempt: quic }]);
    hand.dial();
    assert_eq!(hand.next_dial().0, WebSocket);
    assert!(!hand.is_broken(Quic), "once is no proof");

    // Where the session suspects it before that, without a break.
    let mut hand = Hand::new();
    let socket = hand.opened_and_outrun();
    hand.ladder.handle_connected(hand.now, socket);
    assert!(hand.is_broken(Quic), "TCP works meanwhile");
}

#[test]
fn rungs_that_lead_nowhere_stand_back_until_one_answers() {
    let mut hand = Hand::new();
    // Both TCP rungs are remembered as broken, wrongly by now: QUIC opens, and says nothing.
    hand.ladder.blame(hand.now, WebSocket);
    hand.ladder.blame(hand.now, LongPoll);
    let given_up = |hand: &mut Hand, transport| {
        hand.dial();
        let (first, attempt, _) = hand.next_dial();
        assert_eq!(first, transport);
        hand.opened(attempt);
        hand.ladder.handle_lost(hand.now, attempt, false);
    };
    given_up(&mut hand, Quic);
    given_up(&mut hand, WebSocket);
    // Neither of the two again before the third had its turn; then in the order in which they failed.
    given_up(&mut hand, LongPoll);
    given_up(&mut hand, Quic);
    hand.dial();
    let (_, socket, _) = hand.next_dial();
    hand.opened(socket);
    hand.ladder.handle_connected(hand.now, socket);
    hand.ladder.handle_lost(hand.now, socket, false);
    hand.dial();
    assert_eq!(hand.next_dial().0, Quic, "forgotten: one answered");
}

#[test]
fn the_app_may_choose_a_rung() {
    let mut hand = Hand::new();
    assert!(!hand.ladder.move_to(hand.now, WebSocket), "nothing to move from");
    hand.settled();
    assert!(!hand.ladder.move_to(hand.now, TransportKind::WebTransport), "no such rung");
    assert!(hand.ladder.move_to(hand.now, LongPoll));
    let (transport, poll, _) = hand.next_dial();
    assert_eq!(transport, LongPoll);
    assert_eq!(hand.opened(poll), [LadderEvent::Use { attempt: poll }]);
    assert!(!hand.ladder.move_to(hand.now, WebSocket), "moving already");
    hand.ladder.handle_connected(hand.now, poll);
    assert!(hand.ladder.move_to(hand.now, WebSocket));
    let (_, socket, _) = hand.next_dial();
    assert_eq!(hand.failed(socket, DialFailure::Failed), [LadderEvent::Failed { purpose: Purpose::Request }]);
    assert!(!hand.is_broken(Quic) && !hand.is_broken(WebSocket));
}

#[test]
fn a_server_that_is_left_says_nothing_of_transports() {
    let mut hand = Hand::new();
    assert!(!hand.ladder.leave(hand.now, false), "nothing to leave");
    hand.settled();
    assert!(hand.ladder.move_to(hand.now, WebSocket));
    let (_, socket, _) = hand.next_dial();
    hand.opened(socket);
    hand.ladder.handle_connected(hand.now, socket);
    hand.events();
    // The present transport first, and the others behind it.
    assert!(hand.ladder.leave(hand.now, false) && hand.ladder.is_leaving());
    assert!(hand.ladder.leave(hand.now, false), "it is under way");
    let (transport, first, _) = hand.next_dial();
    assert_eq!(transport, WebSocket);
    let dialled = |events: Vec<LadderEvent>, expected| match events[..] {
        [LadderEvent::Dial { attempt, transport }] if transport == expected => attempt,
        _ => panic!("{events:?}"),
    };
    let second = dialled(hand.failed(first, DialFailure::Failed), Quic);
    let third = dialled(hand.failed(second, DialFailure::Failed), LongPoll);
    let events = hand.failed(third, DialFailure::Refused);
    assert_eq!(events, [LadderEvent::Failed { purpose: Purpose::Goaway }]);
    assert!(!hand.ladder.is_leaving());
    // It opens there, and is refused.
    assert!(hand.ladder.leave(hand.now, false));
    let (_, attempt, _) = hand.next_dial();
    assert!(hand.opened(attempt).contains(&LadderEvent::Use { attempt }));
    assert!(!hand.ladder.leave(hand.now, false), "one move at a time");
    hand.ladder.handle_lost(hand.now, attempt, false);
    assert_eq!(hand.events(), [LadderEvent::Failed { purpose: Purpose::Goaway }]);
    // Nobody is blamed for it: the next race begins as the first did.
    hand.ladder.handle_lost(hand.now, socket, true);
    hand.events();
    hand.dial();
    assert_eq!(hand.next_dial().0, Quic);
    assert_eq!(hand.next_dial().0, WebSocket);
}

#[test]
fn a_memory_from_elsewhere_is_bounded() {
    let mut memory = LadderMemory::default();
    for index in 0..100 {
        memory.network("host", &index.to_string()).failed(Quic, &LadderConfig::default(), u64::MAX - 1);
    }
    let text = serde_json::to_string(&memory).unwrap();
    let networks = serde_json::from_str::<serde_json::Value>(&text).unwrap();
    assert_eq!(networks["networks"].as_array().unwrap().len(), 32);
    let mut restored = memory.restored(&LadderConfig::default(), WALL_MS);
    let until = restored.network("host", "99").broken_until(Quic);
    assert_eq!(until, WALL_MS + 6 * 3600 * 1_000);
}
