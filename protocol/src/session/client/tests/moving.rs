//! Two connections by hand: probes, suspicion, moves, tickets, early data.

use super::*;
use crate::frame::Ping;

const SECOND: Duration = Duration::from_secs(1);

fn with_ticket(ticket: &str) -> Connected {
    Connected { ping_ms: 25_000, resume: Some(ticket.to_owned()), ..Connected::default() }
}

fn resume_of(frame: &ClientFrame) -> (Option<String>, Option<String>) {
    match &frame.body {
        Some(ClientBody::Connect(connect)) => (connect.resume.clone(), connect.key.clone()),
        other => panic!("{other:?}"),
    }
}

fn flow(rig: &mut Rig) {
    for offset in 1..=6 {
        rig.publication("a", offset);
        rig.advance(Duration::from_millis(100));
    }
    rig.events();
}

#[test]
fn publications_that_stop_are_asked_about_once() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 0);
    flow(&mut rig);
    rig.advance(Duration::from_millis(1_800));
    assert_eq!(rig.transmits(), []);
    rig.advance(Duration::from_millis(200));
    let (id, body) = rig.transmit();
    assert_eq!(body, ClientBody::Ping(Empty {}));
    rig.advance(Duration::from_millis(30));
    rig.feed(id, ServerBody::Pong(Empty {}));
    let round_trip = Duration::from_millis(30);
    assert_eq!(rig.events(), [Event::RoundTrip { connection: ConnectionId(1), round_trip }]);
    for _ in 0..20 {
        rig.advance(SECOND);
        assert_eq!(rig.transmits(), [], "an idle session is left alone");
    }
}

#[test]
fn silence_after_a_ping_is_suspicious_until_something_comes() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 0);
    flow(&mut rig);
    rig.advance(2 * SECOND);
    rig.transmit();
    rig.advance(Duration::from_millis(2_900));
    assert_eq!(rig.events(), []);
    rig.advance(Duration::from_millis(100));
    assert_eq!(rig.events(), [Event::Suspect { connection: ConnectionId(1) }]);
    rig.advance(10 * SECOND);
    assert_eq!(rig.events(), [], "told once");
    rig.feed(0, ServerBody::Ping(Ping::default()));
    assert_eq!(rig.events(), [Event::Heard { connection: ConnectionId(1) }]);
}

#[test]
fn a_request_that_waits_and_a_change_of_network_are_asked_about() {
    let mut rig = Rig::opened();
    rig.session.publish(&channel("a"), payload(), None).unwrap();
    rig.transmit();
    rig.events();
    rig.advance(2 * SECOND);
    let (id, body) = rig.transmit();
    assert!(matches!(body, ClientBody::Ping(_)));
    rig.feed(id, ServerBody::Pong(Empty {}));
    rig.advance(10 * SECOND);
    assert_eq!(rig.transmits(), [], "the path works: the server is slow");
    rig.events();
    rig.session.network_changed(rig.now);
    assert!(matches!(rig.transmit().1, ClientBody::Ping(_)));
    rig.advance(SECOND);
    assert_eq!(rig.events(), [Event::Suspect { connection: ConnectionId(1) }]);
    // Where the transport knows of a longer way, it gets more time.
    let mut rig = Rig::opened();
    rig.events();
    rig.session.set_round_trip(rig.now, ConnectionId(1), SECOND, 2 * SECOND);
    rig.session.network_changed(rig.now);
    rig.advance(5 * SECOND);
    assert_eq!(rig.events(), []);
    rig.advance(SECOND);
    assert_eq!(rig.events(), [Event::Suspect { connection: ConnectionId(1) }]);
}

#[test]
fn a_move_resumes_takes_from_both_and_says_done_to_the_old_one() {
    let mut rig = Rig::new();
    rig.open(with_ticket("t1"));
    rig.subscribe("a", 10);
    let request = rig.session.publish(&channel("a"), payload(), None).unwrap();
    rig.transmit();
    let (old, new) = (rig.newest(), rig.dial());
    let frames = rig.transmits();
    assert_eq!(resume_of(&frames[0]).0.as_deref(), Some("t1"));
    assert!(matches!(frames[1].body, Some(ClientBody::Subscribe(_))), "in the same flight");
    assert_eq!(frames.len(), 2, "requests wait for `connected`");
    rig.feed_on(old, 0, ServerBody::Publication(publication("a", 11)));
    let early = ServerFrame::new(0, ServerBody::Publication(publication("a", 12)));
    rig.read_on(new, &Carrier::Stream(Epoch::new("e")), early);
    rig.feed_on(new, frames[0].id, ServerBody::Connected(Connected { resumed: true, ..with_ticket("t2") }));
    let (again, body) = rig.transmit();
    assert!(matches!(body, ClientBody::Publish(_)), "repeated on the next one");
    let position = Some(frame::Position { epoch: "e".to_owned(), offset: 12 });
    rig.feed_on(new, again, ServerBody::Published(Published { channel: "a".to_owned(), position }));
    rig.feed_on(old, again, ServerBody::Published(Published::default()));
    rig.feed_on(new, frames[1].id, subscribed("a", 12, true, &[11]));
    let events = rig.events();
    let kinds: Vec<_> = events.iter().filter(|event| !matches!(event, Event::Connected { .. })).collect();
    assert!(
        matches!(
            &kinds[..],
            [
                Event::Publication { .. },
                Event::Published { request: answered, result: Ok(_) },
                Event::Publication { .. },
                Event::Moved { connection },
            ] if *answered == request && *connection == new
        ),
        "{kinds:?}"
    );
    let done = rig.session.poll_transmit(rig.now).expect("done");
    assert_eq!((done.connection, done.frame.body), (old, Some(ClientBody::Done(Empty {}))));
    assert_eq!(rig.events(), [Event::Release { connection: old }]);
    rig.feed_on(old, 0, close(4000, ReconnectPolicy::Never, None));
    rig.session.connection_lost(rig.now, old, None, "closed");
    assert_eq!(rig.events(), []);
}

#[test]
fn the_first_to_die_leaves_the_session_to_the_other() {
    let mut rig = Rig::new();
    rig.open(with_ticket("t1"));
    rig.subscribe("a", 10);
    let (old, new) = (rig.newest(), rig.dial());
    rig.transmits();
    rig.session.connection_lost(rig.now, new, None, "no");
    assert!(matches!(rig.events()[..], [Event::MoveFailed { connection, .. }] if connection == new));
    rig.feed_on(old, 0, ServerBody::Publication(publication("a", 11)));
    assert_eq!(rig.offsets(), [11]);
    let next = rig.dial();
    let connect = rig.transmits().remove(0);
    rig.session.connection_lost(rig.now, old, None, "dead");
    assert_eq!(rig.events(), [Event::Moved { connection: next }, Event::Release { connection: old }]);
    rig.feed(connect.id, ServerBody::Connected(with_ticket("t2")));
    assert!(matches!(rig.events()[..], [Event::Connected { .. }]), "no break, no backoff");
}

#[test]
fn an_unanswered_resume_is_repeated_and_a_refused_one_forgotten() {
    let mut rig = Rig::new();
    rig.open(with_ticket("t1"));
    rig.feed(0, ServerBody::Ping(Ping { resume: Some("t2".to_owned()), plan: None }));
    let mut offers = Vec::new();
    for _ in 0..2 {
        rig.lose();
        rig.wait_for_dial();
        rig.dial();
        offers.push(resume_of(&rig.transmits()[0]));
    }
    assert_eq!(offers[0].0.as_deref(), Some("t2"));
    assert_eq!(offers[0], offers[1], "the same attempt");
    rig.events();
    rig.feed(0, close(4201, ReconnectPolicy::Now, None));
    assert!(matches!(
        rig.events()[..],
        [Event::Closed { code: 4201, .. }, Event::Reconnect { delay: Duration::ZERO }, Event::Dial]
    ));
    rig.dial();
    let connect = rig.transmits().remove(0);
    assert_eq!(resume_of(&connect), (None, None));
    assert!(matches!(connect.body, Some(ClientBody::Connect(connect)) if connect.token.is_some()));
}

#[test]
fn early_data_is_a_resume_and_subscriptions_alone() {
    let mut rig = Rig::new();
    rig.open(with_ticket("t1"));
    rig.subscribe("a", 10);
    rig.session.publish(&channel("a"), payload(), None).unwrap();
    rig.lose();
    rig.wait_for_dial();
    rig.dials += 1;
    let early = rig.newest();
    rig.session.connecting_early(rig.now, early);
    let sent = rig.transmits();
    assert!(
        matches!(
            [&sent[0].body, &sent[1].body],
            [Some(ClientBody::Connect(_)), Some(ClientBody::Subscribe(_))]
        ) && sent.len() == 2,
        "{sent:?}"
    );
    rig.session.early_rejected(rig.now, early);
    let again = rig.transmits();
    assert_eq!(again[..2], sent, "the same attempt");
    assert!(matches!(again[2].body, Some(ClientBody::Publish(_))));
    // A repeat waits for the handshake.
    rig.lose();
    rig.wait_for_dial();
    rig.dials += 1;
    rig.session.connecting_early(rig.now, rig.newest());
    assert_eq!(rig.transmits(), []);
    rig.session.connection_established(rig.now, rig.newest());
    assert_eq!(resume_of(&rig.transmits()[0]), resume_of(&sent[0]));
}

#[test]
fn what_the_next_server_refuses_while_the_silent_one_might_not_is_asked_again_after_the_move() {
    let mut rig = Rig::new();
    rig.open(with_ticket("t1"));
    rig.subscribe("a", 10);
    let request = rig.session.publish(&channel("a"), payload(), None).unwrap();
    rig.transmit();
    let (old, new) = (rig.newest(), rig.dial());
    let frames = rig.transmits();
    rig.feed_on(new, frames[0].id, ServerBody::Connected(Connected { resumed: true, ..with_ticket("t2") }));
    let (again, _) = rig.transmit();
    let refused = ErrorReply { code: ErrorCode::Unavailable.number(), ..ErrorReply::default() };
    rig.events();
    rig.feed_on(new, again, ServerBody::Error(refused.clone()));
    assert_eq!(rig.events(), [], "the old server may have done it");
    rig.feed_on(new, frames[1].id, subscribed("a", 10, true, &[]));
    assert!(rig.events().contains(&Event::Moved { connection: new }));
    let done = rig.session.poll_transmit_on(rig.now, old).expect("done");
    assert_eq!(done.frame.body, Some(ClientBody::Done(Empty {})));
    let (third, body) = rig.transmit();
    assert!(matches!(body, ClientBody::Publish(_)) && third == again, "with the same key: {body:?}");
    rig.events();
    rig.feed_on(new, third, ServerBody::Error(refused.clone()));
    assert_eq!(rig.events(), [Event::Published { request, result: Err(RequestError::Refused(refused)) }]);
}
