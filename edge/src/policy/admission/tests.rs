//! Admission by hand, then by crowds.

#![expect(clippy::disallowed_methods, reason = "a test needs some first instant")]

mod arrivals;

use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;
use rand::SeedableRng as _;

struct Rig {
    admission: Admission,
    start: Instant,
    now: Instant,
    /// Every moment at which somebody was let in.
    admitted: Vec<Instant>,
}

impl Rig {
    fn new(rate: f64) -> Self {
        Self::with(AdmissionConfig { addresses: generous(), ..AdmissionConfig::for_rate(rate) })
    }

    fn with(config: AdmissionConfig) -> Self {
        let now = Instant::now();
        let rng = ChaCha8Rng::seed_from_u64(1);
        let node = NodeId::new("edge-1");
        let admission = Admission::new(config, keys(), &node, (now, WALL), rng);
        Self { admission, start: now, now, admitted: Vec::new() }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn knock(&mut self, holder: u64, ticket: Option<SlotTicket>) -> Decision {
        self.knock_as(holder, ticket, |_| {})
    }

    fn knock_as(
        &mut self,
        holder: u64,
        ticket: Option<SlotTicket>,
        change: impl FnOnce(&mut Attempt<'_>),
    ) -> Decision {
        let mut attempt = Attempt {
            address: address(holder),
            validated: true,
            ticket: ticket.as_ref(),
            costly_answer: false,
            arrived: false,
        };
        change(&mut attempt);
        let decision = self.admission.handle_attempt(self.now, &attempt);
        if let Decision::Admit { at } = decision {
            assert!(at >= self.now);
            self.admitted.push(at);
            self.admission.handle_finished();
        }
        decision
    }

    /// Fills every place within the hold.
    fn fill(&mut self) -> (Duration, SlotTicket) {
        for holder in 1_000_000.. {
            match self.knock(holder, None) {
                Decision::Admit { .. } => {}
                Decision::Defer { retry_after, ticket } => return (retry_after, ticket),
                Decision::Refuse(refusal) => panic!("{refusal:?}"),
            }
        }
        unreachable!("no rate is endless")
    }

    /// The most that were let in within one second.
    fn busiest_second(&self) -> usize {
        let mut times = self.admitted.clone();
        times.sort_unstable();
        let mut first = 0;
        let mut most = 0;
        for (index, time) in times.iter().enumerate() {
            while *time - times[first] >= Duration::from_secs(1) {
                first += 1;
            }
            most = most.max(index + 1 - first);
        }
        most
    }
}

fn keys() -> Arc<SlotKeys> {
    Arc::new(SlotKeys::new(&[7; 32], None))
}

fn generous() -> AddressLimits {
    AddressLimits { rate: 1e6, burst: 1_000_000, networks: 1_024, exempt: Vec::new() }
}

fn address(client: u64) -> IpAddr {
    IpAddr::from((0x0a00_0000 + client as u32).to_be_bytes())
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn deferred(decision: Decision) -> (Duration, SlotTicket) {
    match decision {
        Decision::Defer { retry_after, ticket } => (retry_after, ticket),
        other => panic!("{other:?}"),
    }
}

fn is_admitted(decision: Decision) -> bool {
    matches!(decision, Decision::Admit { .. })
}

#[test]
fn a_burst_is_held_then_deferred_to_slots_of_their_own() {
    let mut rig = Rig::new(100.0);
    let mut slots = Vec::new();
    for holder in 0..300 {
        match rig.knock(holder, None) {
            Decision::Admit { at } => assert!(at - rig.now <= millis(1_050) && slots.is_empty()),
            Decision::Defer { retry_after, .. } => slots.push(retry_after),
            Decision::Refuse(refusal) => panic!("{refusal:?}"),
        }
    }
    assert!((100..=105).contains(&rig.admitted.len()), "{}", rig.admitted.len());
    assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "each a slot of its own");
    assert!(slots.iter().all(|slot| *slot >= LEAD));
    let last = slots.last().expect("many").as_secs_f64();
    assert!((last - 3.0).abs() < 0.1, "packed as the rate allows: {last}");
}

#[test]
fn a_ticket_serves_once_on_time_and_its_holder_alone() {
    let mut rig = Rig::new(100.0);
    rig.fill();
    let (after, ticket) = deferred(rig.knock(1, None));
    let (thief_after, _) = deferred(rig.knock(2, Some(ticket)));
    assert!(thief_after > after, "a newcomer");
    // Too early: the same again.
    let (again, same) = deferred(rig.knock(1, Some(ticket)));
    assert_eq!((again.as_millis(), same), (after.as_millis(), ticket));
    for newcomer in 0..500 {
        rig.knock(10_000 + newcomer, None);
    }
    rig.pass(after);
    assert!(is_admitted(rig.knock(1, Some(ticket))));
    assert!(!is_admitted(rig.knock(1, Some(ticket))), "once");
}

#[test]
fn who_is_late_gets_one_new_slot_that_counts() {
    let mut rig = Rig::new(100.0);
    rig.fill();
    let (after, ticket) = deferred(rig.knock(1, None));
    rig.pass(after + LATE + millis(100));
    rig.fill();
    let (after, renewed) = deferred(rig.knock(1, Some(ticket)));
    deferred(rig.knock(1, Some(ticket)));
    rig.pass(after + LATE + millis(100));
    rig.fill();
    let (_, third) = deferred(rig.knock(1, Some(renewed)));
    let claims = rig.admission.keys.open(&third, address(1)).expect("genuine");
    assert_eq!(claims.kind, Kind::Slot, "late twice: a newcomer");
}

#[test]
fn newcomers_get_the_places_that_nobody_was_promised() {
    let mut rig = Rig::new(100.0);
    rig.fill();
    let (after, ticket) = deferred(rig.knock(1, None));
    // The slot is more than a second away; what lies before and behind it is free again.
    rig.pass(after - millis(100));
    let mut in_time = 0;
    for newcomer in 100..150 {
        in_time += usize::from(is_admitted(rig.knock(newcomer, None)));
    }
    assert_eq!(in_time, 50, "there is a reservation outstanding, and room beside it");
    rig.fill();
    rig.pass(millis(100));
    assert!(is_admitted(rig.knock(1, Some(ticket))), "and its place is still there");
}

#[test]
fn the_wait_has_an_end_and_it_is_another_region() {
    let mut rig = Rig::new(10.0);
    let mut longest = Duration::ZERO;
    for newcomer in 0..3_000 {
        match rig.knock(newcomer, None) {
            Decision::Defer { retry_after, .. } => longest = longest.max(retry_after),
            Decision::Refuse(refusal) => {
                assert_eq!(refusal, Refusal::Elsewhere);
                assert!(longest > millis(119_000) && longest <= millis(120_050), "{longest:?}");
                return;
            }
            Decision::Admit { .. } => {}
        }
    }
    panic!("everybody was promised something");
}

#[test]
fn handshakes_are_bounded_and_holders_are_told_when() {
    let mut rig = Rig::with(AdmissionConfig { handshakes: 3, ..AdmissionConfig::for_rate(100.0) });
    let attempt = |number, ticket| Attempt {
        address: address(number),
        validated: true,
        ticket,
        costly_answer: false,
        arrived: false,
    };
    let now = rig.now;
    for number in 0..3 {
        assert!(is_admitted(rig.admission.handle_attempt(now, &attempt(number, None))));
    }
    let (after, ticket) = deferred(rig.admission.handle_attempt(now, &attempt(3, None)));
    let (_, again) = deferred(rig.admission.handle_attempt(now + after, &attempt(3, Some(&ticket))));
    assert_eq!(rig.admission.keys.open(&again, address(3)).map(|claims| claims.kind), Some(Kind::Renewed));
    rig.admission.handle_finished();
    assert!(is_admitted(rig.admission.handle_attempt(now + after, &attempt(4, None))));
    assert_eq!(rig.admission.handshakes(), 3);
}

#[test]
fn answers_that_cost_a_handshake_have_a_budget() {
    let mut rig = Rig::with(AdmissionConfig {
        costly_answers: 10.0,
        addresses: generous(),
        ..AdmissionConfig::for_rate(100.0)
    });
    rig.fill();
    let mut answered = 0;
    for step in 0..5_000 {
        rig.pass(millis(1));
        rig.fill();
        let decision = rig.knock_as(step, None, |attempt| attempt.costly_answer = true);
        match decision {
            Decision::Refuse(Refusal::Busy) => {}
            Decision::Defer { .. } => answered += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((48..=53).contains(&answered), "{answered} in five seconds");
}

#[test]
fn a_forged_address_gets_no_slot() {
    let mut rig = Rig::new(100.0);
    let decisions: Vec<_> =
        (0..500).map(|number| rig.knock_as(number, None, |attempt| attempt.validated = false)).collect();
    let admitted = decisions.iter().filter(|decision| is_admitted(**decision)).count();
    assert!((50..60).contains(&admitted), "half the hold: {admitted}");
    assert_eq!(decisions.last(), Some(&Decision::Refuse(Refusal::Unvalidated)));
    assert!(is_admitted(rig.knock(1, None)), "whoever has proved his comes before");
}

#[test]
fn a_network_knocks_as_often_as_it_may() {
    let limits = AddressLimits { rate: 10.0, burst: 20, networks: 2, exempt: Vec::new() };
    let mut rig = Rig::with(AdmissionConfig { addresses: limits, ..AdmissionConfig::for_rate(1000.0) });
    let mut refused = 0;
    for host in 0..100 {
        let decision = rig.knock_as(host, None, |attempt| attempt.address = [192, 0, 2, host as u8].into());
        refused += usize::from(matches!(decision, Decision::Refuse(Refusal::Address { .. })));
    }
    assert_eq!(refused, 80);
    let v6 = |low: u16| IpAddr::from([0x2001, 0xdb8, 0, 0x4200, 0, 0, 0, low]);
    for low in 0..20 {
        assert!(is_admitted(rig.knock_as(1, None, |attempt| attempt.address = v6(low))));
    }
    assert!(!is_admitted(rig.knock_as(1, None, |attempt| attempt.address = v6(99))), "one /56");
    // The table is full: the others share.
    for network in 0..500_u64 {
        rig.knock_as(1, None, |attempt| {
            attempt.address = [172, (network >> 8) as u8, network as u8, 1].into()
        });
        assert!(rig.admission.addresses.len() <= 2);
    }
    rig.pass(Duration::from_secs(60));
    let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201]);
    assert!(is_admitted(rig.knock_as(1, None, |attempt| attempt.address = mapped)), "forgotten when idle");
}

#[test]
fn no_shows_are_learnt_and_their_places_given_twice() {
    let mut rig = Rig::new(200.0);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut coming: BTreeMap<(Instant, u64), SlotTicket> = BTreeMap::new();
    let mut next = 0;
    let mut renewed = 0;
    for _ in 0..40_000 {
        rig.pass(millis(2));
        next += 1;
        if let Decision::Defer { retry_after, ticket } = rig.knock(next, None)
            && rng.random_range(0.0..1.0) > 0.2
        {
            coming.insert((rig.now + retry_after, next), ticket);
        }
        while let Some(entry) = coming.first_entry()
            && entry.key().0 <= rig.now
        {
            let ((_, number), ticket) = entry.remove_entry();
            renewed += usize::from(!is_admitted(rig.knock(number, Some(ticket))));
        }
    }
    assert!((rig.admission.no_show() - 0.2).abs() < 0.04, "{}", rig.admission.no_show());
    // Slots that were given before the first ones were over could not know.
    let last = rig.now - Duration::from_secs(30);
    let rate = rig.admitted.iter().filter(|at| **at > last).count() as f64 / 30.0;
    assert!(rate > 188.0, "the places of those who stay away are not lost: {rate}");
    assert!(rig.busiest_second() <= 211);
    assert!(renewed < 200, "{renewed}");
}

#[test]
fn twenty_times_the_rate_changes_nothing_about_the_rate() {
    let mut rig = Rig::new(100.0);
    let mut coming: BTreeMap<(Instant, u64), SlotTicket> = BTreeMap::new();
    for step in 0..40_000 {
        rig.pass(Duration::from_micros(500));
        if let Decision::Defer { retry_after, ticket } = rig.knock(step, None) {
            coming.insert((rig.now + retry_after, step), ticket);
        }
        while let Some(entry) = coming.first_entry()
            && entry.key().0 <= rig.now
        {
            let ((_, number), ticket) = entry.remove_entry();
            assert!(is_admitted(rig.knock(number, Some(ticket))), "no reservation is lost");
        }
    }
    assert!(rig.busiest_second() <= 105);
    let span = *rig.admitted.iter().max().expect("many") - rig.start;
    let rate = rig.admitted.len() as f64 / span.as_secs_f64();
    assert!((95.0..=105.0).contains(&rate), "{rate}");
}

#[test]
fn nothing_forged_is_honoured() {
    let mut rig = Rig::new(20.0);
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let other_fleet = SlotKeys::new(&[8; 32], None);
    let (_, genuine) = rig.fill();
    let before = rig.admitted.len();
    for attempt in 0..10_000_u64 {
        let ticket = match attempt % 3 {
            0 => {
                let mut bytes = [0; SlotTicket::BYTES];
                rng.fill(&mut bytes);
                bytes[0] = 0xe1 + (bytes[0] % 3);
                SlotTicket::from_bytes(&bytes).expect("the right length")
            }
            1 => {
                // Everything right but the key.
                let kind = [Kind::Slot, Kind::Lease][(attempt & 1) as usize];
                let slot = SlotTime::at(rig.admission.unix_ms(rig.now));
                let serial = Serial::new(attempt);
                let claims = Claims { kind, issuer: Issuer::of(&NodeId::new("edge-1")), slot, serial };
                other_fleet.seal(&claims, address(attempt))
            }
            _ => genuine,
        };
        assert!(!is_admitted(rig.knock_as(attempt, Some(ticket), |attempt| attempt.validated = false)));
    }
    assert_eq!(rig.admitted.len(), before);
}

#[test]
fn leases_are_a_share_of_the_slack_and_never_refused() {
    let mut rig = Rig::new(1000.0);
    let keys = keys();
    // Six hundred a second come by themselves.
    let mut places: Vec<(Instant, SlotTicket, u64)> = Vec::new();
    let mut granted = [0_u32; 10];
    for step in 0..10_000_u64 {
        rig.pass(millis(1));
        if step % 10 < 6 {
            assert!(is_admitted(rig.knock(step, None)));
        }
        if step % 250 == 0 {
            let ask = LeaseAsk { drain: DrainId(3), want: 1_000, urgent: false };
            let Some(lease) = rig.admission.handle_lease_ask(rig.now, &drained(1), ask) else { continue };
            granted[(step / 1000) as usize] += u32::from(lease.count);
            for index in 0..lease.count {
                let number = 1_000_000 + places.len() as u64;
                let claims = Claims {
                    kind: Kind::Lease,
                    issuer: lease.issuer,
                    slot: SlotTime::at(lease.slot_ms(index)),
                    serial: Serial::of_lease(lease.number, index),
                };
                let at = rig.start + millis(lease.slot_ms(index) - WALL);
                places.push((at, keys.seal(&claims, address(number)), number));
            }
        }
    }
    let steady = &granted[5..];
    assert!(steady.iter().all(|count| (300..=330).contains(count)), "0.8 of 400: {granted:?}");
    // In the middle of a storm they come, late, and some another time from elsewhere.
    rig.fill();
    let now = rig.now;
    for (_, ticket, number) in places.iter().filter(|(at, ..)| *at + millis(500) > now) {
        assert!(is_admitted(rig.knock(*number, Some(*ticket))));
        assert!(!is_admitted(rig.knock(*number + 1, Some(*ticket))), "once");
    }
}

#[test]
fn the_lower_drain_goes_first() {
    let mut rig = Rig::new(1000.0);
    let mut totals = [0_u32; 2];
    for step in 0..80 {
        rig.pass(millis(125));
        let which = step % 2;
        // The first one wants less than there is.
        let want = [100, 1_000][which];
        let ask = LeaseAsk { drain: DrainId(5 + which as u64), want, urgent: false };
        totals[which] += rig
            .admission
            .handle_lease_ask(rig.now, &drained(1), ask)
            .map_or(0, |lease| u32::from(lease.count));
    }
    assert_eq!(totals[0], 4_000, "it gets all that it wants");
    let both = totals[0] + totals[1];
    assert!(totals[1] > 3_000 && both <= 8_400, "{totals:?}");
}

#[test]
fn nodes_of_one_drain_have_their_turns() {
    let mut rig = Rig::new(100.0);
    let mut totals = [0_u32; 3];
    for _ in 0..120 {
        rig.pass(millis(248));
        for (which, total) in totals.iter_mut().enumerate() {
            rig.pass(millis(1));
            // The last one goes away after a while.
            if which == 2 && *total > 200 {
                continue;
            }
            let ask = LeaseAsk { drain: DrainId(5), want: 1_000, urgent: false };
            let lease = rig.admission.handle_lease_ask(rig.now, &drained(which), ask);
            *total += lease.map_or(0, |lease| u32::from(lease.count));
        }
    }
    let all: u32 = totals.iter().sum();
    assert!(all > 2_300, "0.8 of 100 a second in 30 s: {totals:?}");
    // A turn may be used up by a remainder of one place.
    assert!(totals[0].abs_diff(totals[1]) <= 200, "{totals:?}");
}

#[test]
fn a_lame_duck_admits_nobody_but_who_was_promised() {
    let mut rig = Rig::new(100.0);
    let ask = LeaseAsk { drain: DrainId(1), want: 5, urgent: true };
    let lease = rig.admission.handle_lease_ask(rig.now, &drained(1), ask).expect("all is free");
    assert_eq!(lease.count, 5);
    assert_eq!(rig.admission.handle_lame_duck(true), [lease.number]);
    assert!(rig.admission.handle_lease_ask(rig.now, &drained(1), ask).is_none());
    assert_eq!(rig.admission.slack(rig.now), 0.0);
    assert_eq!(rig.knock(1, None), Decision::Refuse(Refusal::LameDuck));
    let ticket = |index| ticket_of(&lease, index, lease.slot_ms(index));
    assert!(is_admitted(rig.knock(1, Some(ticket(0)))));
    rig.admission.handle_lease_returned(lease.number, 1);
    assert!(!is_admitted(rig.knock(1, Some(ticket(1)))), "given back");
    assert!(!is_admitted(rig.knock(1, Some(ticket(5)))), "there are five");
    assert!(rig.admission.handle_lame_duck(false).is_empty());
    rig.admission.set_rate(rig.now, 1000.0);
    assert!((rig.admission.slack(rig.now) - 1000.0).abs() < 1.0);
}

fn ticket_of(lease: &Lease, index: u16, slot_ms: u64) -> SlotTicket {
    let (slot, serial) = (SlotTime::at(slot_ms), Serial::of_lease(lease.number, index));
    keys().seal(&Claims { kind: Kind::Lease, issuer: lease.issuer, slot, serial }, address(1))
}

#[test]
fn a_place_of_a_lease_is_for_a_few_tries_of_one_network() {
    let mut rig = Rig::new(100.0);
    let ask = LeaseAsk { drain: DrainId(1), want: 5, urgent: true };
    let lease = rig.admission.handle_lease_ask(rig.now, &drained(1), ask).expect("all is free");
    rig.admission.handle_lame_duck(true);
    let ticket = ticket_of(&lease, 0, lease.slot_ms(0));
    let tries = (0..10).filter(|_| is_admitted(rig.knock(1, Some(ticket))));
    assert_eq!(tries.count(), 4);
    let ticket = ticket_of(&lease, 1, lease.slot_ms(1));
    assert!(is_admitted(rig.knock(1, Some(ticket))));
    assert!(!is_admitted(rig.knock(2, Some(ticket))), "somebody else's");
    let other = ticket_of(&lease, 2, lease.slot_ms(2) + 1);
    assert!(!is_admitted(rig.knock(1, Some(other))), "of a lease with the same number, another time");
    rig.pass(Lease::GRACE * 2);
    assert!(!is_admitted(rig.knock(1, Some(ticket))), "it is over");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Newcomers in bursts; holders on time, early, late, never, twice.
    #[test]
    fn no_second_takes_more_than_it_may_and_no_ticket_serves_twice(
        seed: u64,
        rate in 20.0_f64..500.0,
        bursts in prop::collection::vec((0_u64..400, 0_u64..60), 1..80),
    ) {
        let mut rig = Rig::new(rate);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut coming: BTreeMap<(Instant, u64), SlotTicket> = BTreeMap::new();
        let mut next = 0;
        for (pause, newcomers) in bursts {
            rig.pass(millis(pause));
            for _ in 0..newcomers {
                next += 1;
                if let Decision::Defer { retry_after, ticket } = rig.knock(next, None) {
                    prop_assert!(retry_after <= millis(120_100));
                    let error = rng.random_range(-1_000..4_000);
                    let due = rig.now + retry_after.saturating_add(millis(1_000));
                    let at = due + millis((error + 1_000_i64).unsigned_abs()) - millis(2_000).min(retry_after);
                    if rng.random_range(0..10) > 0 {
                        coming.insert((at, next), ticket);
                    }
                }
            }
            while let Some(entry) = coming.first_entry() && entry.key().0 <= rig.now {
                let ((_, number), ticket) = entry.remove_entry();
                let first = rig.knock(number, Some(ticket));
                if is_admitted(first) {
                    // Whoever shows it again is a newcomer: behind those who were promised something.
                    let claims = rig.admission.keys.open(&ticket, address(number)).expect("genuine");
                    prop_assert!(!rig.admission.spent.spend(rig.now, claims.serial.number(), rig.now));
                }
            }
        }
        prop_assert!(rig.busiest_second() as f64 <= rate * 1.05 + 1.0, "{} at {rate}", rig.busiest_second());
        prop_assert!(rig.admission.spent.len() <= next as usize);
    }

    #[test]
    fn leases_never_exceed_the_slack(
        asks in prop::collection::vec((0_u64..600, 0_u64..3, 0_u32..2_000), 1..120),
        rate in 50.0_f64..5_000.0,
    ) {
        let mut rig = Rig::new(rate);
        let mut granted: Vec<(Instant, u32)> = Vec::new();
        for (pause, drain, want) in asks {
            rig.pass(millis(pause));
            let ask = LeaseAsk { drain: DrainId(drain), want, urgent: false };
            if let Some(lease) = rig.admission.handle_lease_ask(rig.now, &drained(1), ask) {
                prop_assert!(u32::from(lease.count) <= want);
                granted.push((rig.now, lease.count.into()));
            }
        }
        for (index, (from, _)) in granted.iter().enumerate() {
            let mut sum = 0;
            for (at, count) in &granted[index..] {
                sum += count;
                let span = (*at - *from).as_secs_f64();
                // What may have gathered before: half a second's worth.
                prop_assert!(f64::from(sum) <= 0.8 * rate * (span + 0.5) + 1.0, "{sum} in {span} s at {rate}");
            }
        }
    }
}

fn drained(which: usize) -> NodeId {
    NodeId::new(&format!("edge-{which}"))
}

const WALL: u64 = 1_790_000_000_000;
