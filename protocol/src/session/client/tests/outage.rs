//! Coming back: by the plan, by a slot, by nothing but jitter.

use super::*;
use crate::plan::{Alternative, ReconnectPlan};
use crate::reconnect::Reconnect;

fn plan(epoch: u64, rank: u32) -> ReconnectPlan {
    let place = |host: &str, elsewhere| Alternative { host: host.to_owned(), weight: 1, elsewhere };
    let alternatives = vec![place("Near:1", false), place("far", true), place("no host", false)];
    ReconnectPlan { epoch, node_ms: 2_000, region_ms: 100_000, rank, alternatives }
}

fn connected(plan: Option<ReconnectPlan>) -> Connected {
    Connected { ping_ms: 25_000, plan, ..Connected::default() }
}

/// A session that was open for an hour.
fn settled(plan: Option<ReconnectPlan>) -> Rig {
    let mut rig = Rig::new();
    rig.open(connected(plan));
    rig.now += Duration::from_secs(3600);
    rig.session.handle_activity(rig.now, rig.newest());
    rig.transmits();
    rig.events();
    rig
}

fn delay(rig: &mut Rig) -> Duration {
    let events = rig.events();
    let delays = events.iter().filter_map(|event| match event {
        Event::Reconnect { delay } => Some(*delay),
        _ => None,
    });
    delays.last().unwrap_or_else(|| panic!("it does not come back: {events:?}"))
}

fn host(rig: &Rig) -> Option<&str> {
    rig.session.target().host.as_deref()
}

/// What the next `connect` shows.
fn slot_of_connect(rig: &mut Rig) -> Option<String> {
    rig.wait_for_dial();
    let connection = rig.dial();
    let connect = rig.session.poll_transmit_on(rig.now, connection).expect("connect").frame;
    match connect.body {
        Some(ClientBody::Connect(connect)) => connect.slot,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lost_server_means_the_plan_and_its_first_dial_has_little_time() {
    let told = plan(1, 9);
    let mut rig = settled(Some(told.clone()));
    rig.lose();
    let first = delay(&mut rig);
    let exact = told.node_window().mul_f64(told.place());
    assert!((exact..exact + Duration::from_millis(300)).contains(&first), "{first:?}");
    assert_eq!(host(&rig), Some("near:1"));
    rig.wait_for_dial();
    assert!(rig.events().contains(&Event::Dial));
    assert_eq!(rig.session.poll_timeout(), Some(rig.now + Reconnect::PATIENCE));
    rig.advance(Reconnect::PATIENCE);
    let second = delay(&mut rig);
    assert!(second > Duration::from_secs(20), "what is left of the region's window: {second:?}");
    assert_eq!(host(&rig), Some("far:4433"));
    rig.wait_for_dial();
    assert_eq!(rig.session.poll_timeout(), None, "later dials have their usual time");
    rig.events();
    rig.session.connection_lost(rig.now, ConnectionId(99), None, "nobody there");
    assert!(delay(&mut rig) < Duration::from_secs(1), "then full jitter");
    assert_eq!(host(&rig), Some("far:4433"));
}

#[test]
fn what_opens_in_time_has_all_the_time_that_it_needs() {
    let mut rig = settled(Some(plan(1, 9)));
    rig.lose();
    rig.wait_for_dial();
    rig.dial();
    rig.events();
    rig.advance(Reconnect::PATIENCE + Duration::from_secs(1));
    assert!(!rig.events().iter().any(|event| matches!(event, Event::Closed { .. })));
    // But not where it is early data that nobody has answered.
    let mut rig = settled(Some(plan(1, 9)));
    rig.lose();
    rig.wait_for_dial();
    rig.session.connecting_early(rig.now, ConnectionId(7));
    rig.events();
    rig.advance(Reconnect::PATIENCE);
    assert!(rig.events().iter().any(|event| matches!(event, Event::Closed { .. })));
    assert_eq!(host(&rig), Some("far:4433"));
}

#[test]
fn the_plan_of_the_last_connection_holds_and_its_newest() {
    let mut rig = settled(Some(plan(5, 9)));
    let ping = |plan| ServerBody::Ping(frame::Ping { resume: None, plan: Some(plan) });
    rig.feed(0, ping(ReconnectPlan { node_ms: 200_000, ..plan(6, 9) }));
    rig.feed(0, ping(plan(4, 9)));
    rig.lose();
    assert!(delay(&mut rig) > Duration::from_secs(20));
    // A server that makes none leaves nothing of it.
    rig.wait_for_dial();
    rig.open(connected(None));
    rig.events();
    rig.now += Duration::from_secs(3600);
    rig.lose();
    assert!(delay(&mut rig) < Duration::from_secs(1));
    assert_eq!(host(&rig), None);
    // Nor does one without windows: it only names places.
    let mut rig = settled(Some(ReconnectPlan { node_ms: 0, region_ms: 0, ..plan(1, 9) }));
    rig.lose();
    assert!(delay(&mut rig) < Duration::from_secs(1));
    assert_eq!(host(&rig), None);
}

#[test]
fn a_place_that_is_kept_is_claimed_when_it_is_time() {
    let refusals: [fn(&mut Rig); 3] = [
        |rig| {
            let reconnect = frame::Reconnect {
                policy: ReconnectPolicy::Backoff.into(),
                after_ms: Some(7_321),
                slot: Some("ticket".to_owned()),
            };
            let close = Close { code: 4101, reason: String::new(), reconnect: Some(reconnect) };
            rig.feed(0, ServerBody::Close(close));
        },
        |rig| rig.feed(0, ServerBody::Close(CloseCode::Overloaded.frame("ra=7321;t=ticket"))),
        |rig| {
            let (now, newest) = (rig.now, rig.newest());
            rig.session.connection_lost(now, newest, Some(4101), "ra=7321;t=ticket");
        },
    ];
    for refuse in refusals {
        let mut rig = settled(Some(plan(1, 9)));
        refuse(&mut rig);
        assert_eq!(delay(&mut rig), Duration::from_millis(7_321));
        assert_eq!(host(&rig), None, "there");
        assert_eq!(rig.session.slot(rig.now).as_deref(), Some("ticket"));
        assert_eq!(slot_of_connect(&mut rig).as_deref(), Some("ticket"));
        // Once.
        rig.lose();
        assert_eq!(slot_of_connect(&mut rig), None);
    }
    // Advice of another kind is not taken from a text.
    let mut rig = settled(None);
    rig.session.connection_lost(rig.now, rig.newest(), Some(4008), "ra=7321;t=ticket");
    assert!(rig.events().contains(&Event::NeedToken(TokenNeed::Refused)));
    let mut rig = settled(Some(plan(1, 9)));
    rig.session.connection_lost(rig.now, rig.newest(), Some(4101), "elsewhere");
    assert!(delay(&mut rig) < Duration::from_millis(300));
    assert_eq!(host(&rig), Some("far:4433"));
}

#[test]
fn who_changed_networks_waits_for_nobody() {
    // A connection that dies of it.
    let mut rig = settled(Some(ReconnectPlan { node_ms: 200_000, ..plan(1, 9) }));
    rig.session.network_changed(rig.now);
    rig.transmits();
    rig.now += Duration::from_secs(4);
    rig.lose();
    assert!(delay(&mut rig) < Duration::from_millis(500));
    assert_eq!(host(&rig), None, "the server is not to blame");
    // And one that waits in a window, or for a slot.
    for reason in [None, Some("ra=60000;t=ticket")] {
        let mut rig = settled(Some(ReconnectPlan { node_ms: 200_000, ..plan(1, 9) }));
        rig.session.connection_lost(
            rig.now,
            rig.newest(),
            reason.map(|_| 4101),
            reason.unwrap_or("the connection ended"),
        );
        assert!(delay(&mut rig) > Duration::from_secs(20));
        rig.session.network_changed(rig.now);
        rig.advance(Duration::from_millis(500));
        assert!(rig.events().contains(&Event::Dial));
        assert_eq!(rig.session.slot(rig.now), None, "it was for the address that it had");
    }
    // The server's word is not overruled.
    let mut rig = settled(None);
    rig.feed(0, close(4100, ReconnectPolicy::Backoff, Some(60_000)));
    rig.session.network_changed(rig.now);
    rig.advance(Duration::from_secs(59));
    assert!(!rig.events().contains(&Event::Dial));
}

#[test]
fn a_crowd_comes_back_over_the_window_and_by_weight() {
    let mut tenths = [0; 10];
    let mut near = 0;
    for client in 0..1_000 {
        let mut told = plan(1, 4_000_000_000 + client);
        told.node_ms = 10_000;
        told.alternatives.push(Alternative { host: "second".to_owned(), weight: 3, elsewhere: false });
        let mut rig = settled(Some(told));
        rig.lose();
        let delay = delay(&mut rig);
        tenths[(delay.as_secs_f64() as usize).min(9)] += 1;
        near += i32::from(host(&rig) == Some("near:1"));
    }
    assert!(tenths.iter().all(|count| (75..125).contains(count)), "{tenths:?}");
    assert!((240..260).contains(&near), "a quarter: {near}");
}

/// Where [`Event::Goaway`] leads, and when.
fn escapes(rig: &mut Rig, mut by: Duration) -> Vec<(Duration, Option<String>)> {
    let start = rig.now;
    let mut all = Vec::new();
    loop {
        for event in rig.events() {
            if let Event::Goaway { endpoint, .. } = event {
                all.push((rig.now - start, endpoint.map(|endpoint| endpoint.to_string())));
            }
        }
        let next = rig.session.poll_timeout().map_or(by, |at| at.saturating_duration_since(rig.now));
        if next >= by {
            rig.advance(by);
            return all;
        }
        by -= next;
        rig.advance(next);
    }
}

#[test]
fn a_silent_server_is_left_as_the_plan_says_and_stays_until_another_is_there() {
    let told = plan(1, 9);
    let exact = told.node_window().mul_f64(told.place());
    for silent in [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(20)] {
        let mut rig = settled(Some(told.clone()));
        rig.now += silent;
        rig.session.path_suspect(rig.now, rig.newest());
        assert!(rig.events().contains(&Event::Suspect { connection: rig.newest() }));
        let all = escapes(&mut rig, Duration::from_secs(10));
        let [(after, host)] = &all[..] else { panic!("{all:?}") };
        assert_eq!(host.as_deref(), Some("near:1"));
        let least = exact.saturating_sub(silent).max(Duration::from_secs(1));
        assert!((least..least + Duration::from_millis(300)).contains(after), "{silent:?}: {after:?}");
        // The old connection is there still, until the new one is.
        let next = rig.dial();
        rig.transmits();
        assert!(!rig.events().iter().any(|event| matches!(event, Event::Closed { .. })));
        assert!(rig.session.poll_transmit_on(rig.now, next).is_none(), "`connect` went out");
    }
}

#[test]
fn a_server_that_is_heard_again_is_not_left() {
    let mut rig = settled(Some(plan(1, 9)));
    rig.session.path_suspect(rig.now, rig.newest());
    rig.session.path_suspect(rig.now, rig.newest());
    let suspect = Event::Suspect { connection: rig.newest() };
    assert_eq!(rig.events().iter().filter(|event| **event == suspect).count(), 1);
    rig.session.handle_activity(rig.now, rig.newest());
    assert!(rig.events().contains(&Event::Heard { connection: rig.newest() }));
    assert!(escapes(&mut rig, Duration::from_secs(20)).is_empty());
    // Nor where nobody says where to go.
    for told in [None, Some(ReconnectPlan { alternatives: Vec::new(), ..plan(1, 9) })] {
        let mut rig = settled(told);
        rig.session.path_suspect(rig.now, rig.newest());
        assert!(escapes(&mut rig, Duration::from_secs(20)).is_empty());
    }
}

#[test]
fn a_server_that_stayed_after_it_had_asked_to_be_left_is_left_when_it_falls_silent() {
    let mut rig = settled(Some(plan(1, 9)));
    let goaway = frame::Goaway { deadline_ms: 5_000, ..frame::Goaway::default() };
    rig.feed(0, ServerBody::Goaway(goaway));
    assert!(!escapes(&mut rig, Duration::from_secs(6)).is_empty());
    rig.session.handle_activity(rig.now, rig.newest());
    rig.session.path_suspect(rig.now, rig.newest());
    let all = escapes(&mut rig, Duration::from_secs(10));
    assert!(matches!(&all[..], [(_, Some(host))] if host == "near:1"), "{all:?}");
}
