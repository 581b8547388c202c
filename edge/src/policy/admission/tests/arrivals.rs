//! Who may shake hands, where nothing can be shown before.

use super::*;

fn with_answers(answers: f64) -> Rig {
    Rig::with(AdmissionConfig {
        costly_answers: answers,
        addresses: generous(),
        ..AdmissionConfig::for_rate(100.0)
    })
}

impl Rig {
    fn arrive(&mut self, client: u64) -> Arrival {
        self.admission.handle_arrival(self.now, address(client), true)
    }

    /// The handshake is done.
    fn decide(&mut self, client: u64, number: u64, ticket: Option<SlotTicket>) -> Decision {
        self.admission.handle_decided(number);
        self.knock_as(client, ticket, |attempt| attempt.arrived = true)
    }
}

fn passed(arrival: Arrival) -> Option<u64> {
    match arrival {
        Arrival::Pass(number) => Some(number),
        Arrival::Unvalidated | Arrival::Busy => None,
    }
}

#[test]
fn as_many_shake_hands_as_there_are_places_and_answers() {
    let mut rig = with_answers(10.0);
    let passes: Vec<_> = (0..500).map_while(|client| passed(rig.arrive(client))).collect();
    let places = 101..=108;
    assert!(places.contains(&passes.len()), "a second's places and two answers: {}", passes.len());
    assert_eq!(rig.arrive(1), Arrival::Busy);
    // They were gone when it was to be decided: their places are free.
    for number in passes {
        rig.admission.handle_decided(number);
    }
    assert!(passed(rig.arrive(1)).is_some());
}

#[test]
fn who_only_opens_connections_keeps_nobody_out() {
    let mut rig = with_answers(0.0);
    while passed(rig.arrive(1)).is_some() {}
    rig.pass(millis(1_000));
    assert!(passed(rig.arrive(2)).is_some());
}

#[test]
fn a_slot_opens_the_door_for_its_address_once() {
    let mut rig = with_answers(10.0);
    rig.fill();
    let number = passed(rig.arrive(7)).expect("an answer is left");
    let (after, ticket) = deferred(rig.decide(7, number, None));
    rig.pass(after - millis(300));
    rig.fill();
    while passed(rig.arrive(99)).is_some() {}
    assert_eq!(rig.arrive(7), Arrival::Busy, "not yet");
    rig.pass(millis(100));
    rig.fill();
    while passed(rig.arrive(99)).is_some() {}
    let number = passed(rig.arrive(7)).expect("its time has come");
    assert_eq!(rig.arrive(7), Arrival::Busy, "there is one slot");
    assert!(is_admitted(rig.decide(7, number, Some(ticket))));
}

#[test]
fn slots_that_nobody_came_to_are_forgotten() {
    let mut rig =
        Rig::with(AdmissionConfig { spent: 50, addresses: generous(), ..AdmissionConfig::for_rate(100.0) });
    rig.fill();
    for client in 0..200 {
        deferred(rig.knock_as(client, None, |attempt| attempt.arrived = true));
    }
    assert_eq!(rig.admission.expected.len(), 50);
    rig.pass(Duration::from_secs(30));
    rig.arrive(1_000);
    assert_eq!(rig.admission.expected.len(), 0);
}

#[test]
fn who_has_a_session_here_opens_further_connections_for_it() {
    let mut rig = with_answers(0.0);
    rig.admission.handle_resident(address(7));
    rig.admission.handle_lame_duck(true);
    assert!(passed(rig.arrive(7)).is_some());
    assert_eq!(rig.arrive(7), Arrival::Busy, "one a second");
    assert_eq!(rig.arrive(8), Arrival::Busy);
    rig.pass(millis(1_000));
    assert!(passed(rig.arrive(7)).is_some());
    rig.admission.handle_resident_gone(address(7));
    rig.pass(millis(1_000));
    assert_eq!(rig.arrive(7), Arrival::Busy, "a stranger now");
    assert_eq!(rig.admission.residents.len(), 0);
}

#[test]
fn a_lame_duck_shakes_hands_for_its_leases_alone() {
    let mut rig = with_answers(0.0);
    let ask = LeaseAsk { drain: DrainId(1), want: 5, urgent: true };
    let lease = rig.admission.handle_lease_ask(rig.now, &drained(1), ask).expect("all is free");
    rig.admission.handle_lame_duck(true);
    assert_eq!(rig.arrive(1), Arrival::Busy, "its time has not come");
    rig.pass(Duration::from_millis(lease.slot_ms(4) - WALL));
    let passes = (0..100).map_while(|client| passed(rig.arrive(client))).count();
    assert_eq!(passes, 5);
}

#[test]
fn forged_addresses_come_second_and_cost_their_owners_nothing() {
    let limits = AddressLimits { rate: 10.0, burst: 20, networks: 64, exempt: Vec::new() };
    let mut rig = Rig::with(AdmissionConfig { addresses: limits, ..AdmissionConfig::for_rate(100.0) });
    let forged = |rig: &mut Rig| rig.admission.handle_arrival(rig.now, address(1), false);
    let forgeries = (0..100).map_while(|_| passed(forged(&mut rig))).count();
    assert_eq!(forgeries, 20);
    assert_eq!(forged(&mut rig), Arrival::Unvalidated);
    let owner = (0..100).map_while(|_| passed(rig.arrive(1))).count();
    assert_eq!(owner, 20, "the owner's own share is whole");
    assert_eq!(rig.arrive(1), Arrival::Busy);
    let mut rig = with_answers(0.0);
    let forgeries =
        (0..500).map_while(|client| passed(rig.admission.handle_arrival(rig.now, address(client), false)));
    let forgeries = forgeries.count();
    assert!((50..60).contains(&forgeries), "half the hold: {forgeries}");
    assert!(passed(rig.arrive(1)).is_some());
}

#[test]
fn loopback_and_trusted_networks_knock_as_often_as_they_like() {
    let exempt = vec!["10.9.0.0/16".parse().expect("a range")];
    let limits = AddressLimits { rate: 1.0, burst: 1, networks: 64, exempt };
    let mut rig = Rig::with(AdmissionConfig { addresses: limits, ..AdmissionConfig::for_rate(1_000.0) });
    for (address, free) in [([127, 0, 0, 1], true), ([10, 9, 3, 4], true), ([10, 8, 3, 4], false)] {
        let passes =
            (0..10).filter(|_| passed(rig.admission.handle_arrival(rig.now, address.into(), true)).is_some());
        assert_eq!(passes.count(), if free { 10 } else { 1 }, "{address:?}");
    }
}

/// Twenty times the rate, all of whom need a handshake to be told anything.
#[test]
fn a_flood_of_handshakes_changes_nothing_about_the_rate() {
    let mut rig = Rig::new(100.0);
    let mut coming: BTreeMap<(Instant, u64), Option<SlotTicket>> = BTreeMap::new();
    let mut handshakes = 0;
    let mut holders = 0;
    for step in 0..40_000_u64 {
        rig.pass(Duration::from_micros(500));
        coming.insert((rig.now, step), None);
        while let Some(entry) = coming.first_entry()
            && entry.key().0 <= rig.now
        {
            let ((_, client), ticket) = entry.remove_entry();
            let Some(number) = passed(rig.arrive(client)) else {
                assert!(ticket.is_none(), "no holder is dropped");
                continue;
            };
            handshakes += 1;
            match rig.decide(client, number, ticket) {
                Decision::Admit { .. } => holders += u32::from(ticket.is_some()),
                Decision::Defer { retry_after, ticket: slot } => {
                    assert!(ticket.is_none(), "no reservation is lost");
                    coming.insert((rig.now + retry_after, client), Some(slot));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(holders > 100, "{holders}");
    assert!(handshakes <= 20 * 145 + 200, "the rate, and the answers' budget: {handshakes}");
    let span = *rig.admitted.iter().max().expect("many") - rig.start;
    let rate = rig.admitted.len() as f64 / span.as_secs_f64();
    assert!((95.0..=105.0).contains(&rate), "{rate}");
    assert!(rig.busiest_second() <= 105);
}
