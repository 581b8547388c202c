//! The policy by hand, and its bounds whatever happens.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const ITEM: usize = 290;
const RTT: Duration = Duration::from_millis(350);

/// A path of so many packets, and what was decided of it.
struct Bench {
    repeats: Repeats,
    start: Instant,
    now: Instant,
    stats: PathStats,
}

impl Bench {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
        let start = Instant::now();
        let stats = PathStats {
            rtt: RTT,
            congestion_window: 40_000,
            sent_packets: 0,
            lost_packets: 0,
            datagram_size: 1_162,
        };
        Self { repeats: Repeats::default(), start, now: start, stats }
    }

    /// One that repeats.
    fn lossy() -> Self {
        let mut bench = Self::new();
        bench.look(500, 10);
        assert!(bench.is_on());
        bench
    }

    fn look(&mut self, sent: u64, lost: u64) {
        self.stats.sent_packets += sent;
        self.stats.lost_packets += lost;
        self.repeats.handle_path(self.now, self.stats);
    }

    fn is_on(&mut self) -> bool {
        self.repeats.ring().is_some()
    }

    fn send(&mut self, slot: u32, bytes: Bytes) -> bool {
        self.repeats.handle_sent(|| self.now, slot, &bytes, || bytes.clone())
    }

    fn item(&mut self, slot: u32, fill: u8) {
        self.send(slot, Bytes::from(vec![fill; ITEM]));
    }

    /// What is repeated until then: after how long, and the first byte of each item.
    fn until(&mut self, after: Duration) -> Vec<(Duration, Vec<u8>)> {
        let mut sent = Vec::new();
        while let Some(at) = self.repeats.poll_timeout().filter(|at| *at <= self.start + after) {
            self.now = self.now.max(at);
            while let Some(Repeat { datagram, items }) = self.repeats.poll_transmit(self.now) {
                let firsts: Vec<u8> = datagram.chunks(ITEM).map(|item| item[0]).collect();
                assert_eq!(firsts.len() as u64, items);
                sent.push((self.now - self.start, firsts));
            }
        }
        self.now = self.now.max(self.start + after);
        sent
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn what_is_sent_on_a_lossy_path_is_repeated_twice() {
    let mut bench = Bench::lossy();
    bench.item(0, 7);
    let sixth = RTT / 6;
    let third = RTT / 3;
    assert_eq!(bench.until(RTT), [(sixth, vec![7]), (third, vec![7])]);
    assert_eq!(bench.repeats.poll_timeout(), None, "nothing is left");
}

#[test]
fn what_is_due_at_about_the_same_time_shares_a_datagram() {
    let mut bench = Bench::lossy();
    for (at, fill) in [(0, 1), (3, 2), (20, 3)] {
        bench.now = bench.start + ms(at);
        bench.item(0, fill);
    }
    let repeated: Vec<_> = bench.until(RTT).into_iter().map(|(_, items)| items).collect();
    assert_eq!(repeated, [vec![1, 2], vec![3], vec![1, 2], vec![3]]);
}

#[test]
fn a_datagram_holds_what_fits() {
    let mut bench = Bench::lossy();
    for fill in 0..6 {
        bench.item(0, fill);
    }
    let repeated: Vec<_> = bench.until(RTT / 6).into_iter().map(|(_, items)| items).collect();
    assert_eq!(repeated, [vec![0, 1, 2, 3], vec![4, 5]]);
    bench.stats.datagram_size = 100;
    bench.look(0, 0);
    assert_eq!(bench.until(RTT), [], "what fits no longer is given up");
    assert_eq!(bench.repeats.poll_timeout(), None);
}

#[test]
fn a_late_timer_sends_each_once() {
    let mut bench = Bench::lossy();
    bench.item(0, 1);
    bench.now += RTT;
    let repeat = bench.repeats.poll_transmit(bench.now).expect("it is due");
    assert_eq!(repeat.items, 1);
    assert_eq!(bench.repeats.poll_transmit(bench.now), None);
    assert_eq!(bench.repeats.poll_timeout(), None);
}

#[test]
fn a_path_is_judged_by_its_losses() {
    for (sent, lost, on) in [
        (1_000, 0, false),
        (1_000, 4, false),
        (1_000, 6, true),
        (1_000, 160, false),
        (50, 1, true),
        (20, 3, true),
    ] {
        let mut bench = Bench::new();
        bench.look(sent, lost);
        assert_eq!(bench.is_on(), on, "{lost} of {sent}");
    }
    for (rtt, size, on) in [(39, 1_162, false), (40, 1_162, true), (40, 0, false)] {
        let mut bench = Bench::new();
        (bench.stats.rtt, bench.stats.datagram_size) = (ms(rtt), size);
        bench.look(1_000, 20);
        assert_eq!(bench.is_on(), on, "{rtt} ms, {size} bytes");
    }
}

#[test]
fn repeats_end_some_time_after_the_losses() {
    let mut bench = Bench::lossy();
    bench.look(1_000, 0);
    assert!(bench.is_on(), "0.7 %, and on already");
    let looks = (0..1_000).take_while(|_| {
        bench.look(60, 0);
        bench.is_on()
    });
    let looks = looks.count();
    assert!((10..100).contains(&looks), "{looks}");
    bench.look(10, 0);
    bench.item(0, 1);
    assert_eq!(bench.repeats.poll_timeout(), None);
}

#[test]
fn a_client_that_moved_has_another_path() {
    let mut bench = Bench::lossy();
    (bench.stats.sent_packets, bench.stats.lost_packets) = (10, 0);
    bench.look(0, 0);
    assert!(!bench.is_on());
}

#[test]
fn the_path_is_looked_at_now_and_then() {
    let mut bench = Bench::new();
    let bytes = Bytes::from_static(b"x");
    let looks = (0..10 * LOOK_EVERY).filter(|_| bench.send(0, bytes.clone())).count();
    assert_eq!(looks, 10);
    assert!(bench.repeats.path.is_none(), "nothing is kept without a look");
}

#[test]
fn large_items_are_not_repeated() {
    let mut bench = Bench::lossy();
    bench.send(0, Bytes::from(vec![1; LARGEST + 1]));
    assert_eq!(bench.repeats.poll_timeout(), None);
    bench.send(0, Bytes::from(vec![1; LARGEST]));
    assert!(bench.repeats.poll_timeout().is_some());
}

#[test]
fn a_subscription_that_ended_is_not_repeated() {
    let mut bench = Bench::lossy();
    for (slot, fill) in [(1, 1), (2, 2), (1, 3), (2, 4)] {
        bench.item(slot, fill);
    }
    assert_eq!(bench.until(RTT / 6).len(), 1);
    bench.item(1, 5);
    bench.item(2, 6);
    bench.repeats.drop_lane(1);
    let items: Vec<u8> = bench.until(RTT).into_iter().flat_map(|(_, items)| items).collect();
    assert_eq!(items, [2, 4, 6, 6], "the second of those that had one, and both of the youngest");
}

#[test]
fn a_blocked_connection_repeats_nothing_that_it_had() {
    let mut bench = Bench::lossy();
    bench.item(0, 1);
    bench.repeats.handle_blocked();
    assert_eq!(bench.until(RTT), []);
    bench.item(0, 2);
    assert_eq!(bench.until(RTT * 2).len(), 2, "what comes later is repeated");
}

#[test]
fn a_short_allowance_is_kept_for_the_later_repeat() {
    let mut bench = Bench::new();
    bench.stats.congestion_window = 12_000;
    bench.look(500, 10);
    // Half of what the window brings in a round trip.
    for fill in 0..14 {
        bench.item(0, fill);
    }
    let repeats = bench.until(RTT);
    let by = |from: Duration, to: Duration| -> usize {
        repeats.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, items)| items.len()).sum()
    };
    let (first, second) = (by(Duration::ZERO, RTT / 4), by(RTT / 4, RTT));
    assert!(first < 5, "{first}");
    assert!(second >= 14 - 1, "{second}");
}

#[derive(Debug, Clone)]
enum Step {
    Send { slot: u32, length: usize },
    Wait(u64),
    Look { sent: u64, lost: u64, window: u64, rtt: u64, size: usize },
    Blocked,
    Drop(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_u32, 4..700_usize).prop_map(|(slot, length)| Step::Send { slot, length }),
        8 => (0..90_u64).prop_map(Step::Wait),
        2 => (0..200_u64, 0..20_u64, 2_400..80_000_u64, 10..800_u64, prop_oneof![Just(0), 300..1_400_usize])
            .prop_map(|(sent, lost, window, rtt, size)| Step::Look { sent, lost, window, rtt, size }),
        1 => Just(Step::Blocked),
        1 => (0..3_u32).prop_map(Step::Drop),
    ]
}

proptest! {
    /// Whatever happens: bounds hold, nothing is repeated that was not sent, nor more than twice, nor after its
    /// subscription ended, and what is repeated stays within the window's share.
    #[test]
    fn bounds_hold(steps in proptest::collection::vec(step(), 1..300)) {
        let mut bench = Bench::new();
        // By number: its slot (none once that ended), length, and how often it was repeated.
        let mut items: BTreeMap<u32, (Option<u32>, usize, usize)> = BTreeMap::new();
        let mut allowed = 0.0;
        let mut used = 0_usize;
        let mut bound = 0;
        for (number, step) in (0_u32..).zip(steps) {
            match step {
                Step::Send { slot, length } => {
                    let mut bytes = vec![0; length];
                    bytes[..4].copy_from_slice(&number.to_be_bytes());
                    bench.send(slot, Bytes::from(bytes));
                    items.insert(number, (Some(slot), length, 0));
                }
                Step::Wait(millis) => {
                    bench.now += ms(millis);
                    if bench.is_on() {
                        allowed += bound as f64 * millis as f64 / bench.stats.rtt.as_millis() as f64;
                    }
                }
                Step::Look { sent, lost, window, rtt, size } => {
                    bench.stats.congestion_window = window;
                    (bench.stats.rtt, bench.stats.datagram_size) = (ms(rtt), size);
                    let was_on = bench.is_on();
                    bench.look(sent, lost.min(sent));
                    bound = window / 4 * ALLOWED_QUARTERS;
                    if bench.is_on() && !was_on {
                        allowed += bound as f64;
                    }
                }
                Step::Blocked => bench.repeats.handle_blocked(),
                Step::Drop(slot) => {
                    bench.repeats.drop_lane(slot);
                    items.values_mut().filter(|item| item.0 == Some(slot)).for_each(|item| item.0 = None);
                }
            }
            while let Some(Repeat { datagram, items: count }) = bench.repeats.poll_transmit(bench.now) {
                prop_assert!(datagram.len() <= bench.stats.datagram_size);
                used += datagram.len();
                let mut rest = &datagram[..];
                for _ in 0..count {
                    let number = u32::from_be_bytes(rest[..4].try_into().unwrap());
                    let (slot, length, repeated) = items.get_mut(&number).expect("was sent");
                    prop_assert!(slot.is_some() && *length <= LARGEST);
                    *repeated += 1;
                    prop_assert!(*repeated <= REPEATS);
                    rest = &rest[*length..];
                }
                prop_assert!(rest.is_empty());
            }
            // Polled: what is due is gone, so that no timer spins.
            prop_assert!(bench.repeats.poll_timeout().is_none_or(|at| at > bench.now));
            prop_assert!(used as f64 <= allowed + 1.0, "{used} of {allowed}");
            if let Some(ring) = bench.repeats.ring() {
                prop_assert!(ring.items.len() <= MAX_ITEMS && ring.bytes <= MAX_BYTES);
                prop_assert_eq!(ring.bytes, ring.items.iter().map(|item| item.bytes.len()).sum::<usize>());
                prop_assert!(ring.next.iter().all(|next| *next <= ring.items.len()));
            }
        }
    }
}
