//! Being asked to move.

use super::*;
use crate::frame::Goaway;

fn to(host: &str, deadline: u64) -> Goaway {
    Goaway {
        endpoint: Some(format!("https://{host}")),
        slot: Some("slot".to_owned()),
        after_ms: 0,
        deadline_ms: deadline,
        reason: "drained".to_owned(),
    }
}

fn goaways(bench: &Bench) -> Vec<&Goaway> {
    let bodies = bench.sent.iter().filter_map(|frame| match &frame.body {
        Some(ServerBody::Goaway(goaway)) => Some(goaway),
        _ => None,
    });
    bodies.collect()
}

#[test]
fn a_session_that_is_asked_to_move_is_served_until_the_deadline_and_then_closed() {
    let mut bench = Bench::open();
    assert!(bench.session.goaway(bench.now, to("a", 30_000)));
    bench.drain();
    assert_eq!(goaways(&bench), [&to("a", 30_000)]);
    assert_eq!(bench.session.poll_timeout(), Some(bench.now + 25 * SECOND), "the ping");
    let slot = bench.live("room:1", 4);
    assert_eq!(bench.session.take(slot, Offset(5), Offset(5)), Due::All);
    bench.pass(25 * SECOND);
    bench.say(0, ClientBody::Pong(Empty {}));
    assert_eq!(bench.session.poll_timeout(), Some(bench.now + 5 * SECOND));
    bench.pass(5 * SECOND);
    assert_eq!(bench.close(), CloseCode::Shutdown.number());
    assert!(!bench.session.goaway(bench.now, to("b", 1)), "it is over");
}

#[test]
fn of_two_the_newer_holds_and_one_that_was_not_sent_never_is() {
    let mut bench = Bench::open();
    assert!(bench.session.goaway(bench.now, to("a", 5_000)));
    assert!(bench.session.goaway(bench.now, to("b", 9_000)));
    bench.drain();
    assert_eq!(goaways(&bench), [&to("b", 9_000)]);
    assert!(bench.session.goaway(bench.now, to("c", 15_000)));
    bench.drain();
    assert_eq!(goaways(&bench), [&to("b", 9_000), &to("c", 15_000)]);
    bench.pass(9 * SECOND);
    assert!(!bench.session.is_ended(), "the newer one's deadline counts");
    bench.pass(6 * SECOND);
    assert_eq!(bench.close(), CloseCode::Shutdown.number());
}

#[test]
fn nobody_is_asked_before_it_is_admitted_or_once_it_left() {
    let mut bench = Bench::new(|settings| settings.tickets = Some(600 * SECOND), None);
    assert!(!bench.session.goaway(bench.now, to("a", 1)));
    bench.say(1, ClientBody::Connect(Connect { moves: true, ..Connect::default() }));
    assert!(!bench.session.goaway(bench.now, to("a", 1)));
    bench.session.admit(bench.now, Identity::anonymous());
    bench.drain();
    // `connected` waits for its ticket, and comes first all the same.
    assert!(bench.session.goaway(bench.now, to("a", 60_000)) && bench.session.moves());
    bench.drain();
    assert!(bench.sent.is_empty());
    bench.session.issued(bench.now, Some("t".to_owned()));
    bench.drain();
    let [connected, goaway] = &bench.sent[..] else { panic!("{:?}", bench.sent) };
    assert!(matches!(connected.body, Some(ServerBody::Connected(_))));
    assert!(matches!(goaway.body, Some(ServerBody::Goaway(_))));
    bench.session.supersede(bench.now);
    // Where it went may be gone.
    assert!(bench.session.has_moved() && bench.session.goaway(bench.now, to("b", 20_000)));
    bench.drain();
    assert_eq!(goaways(&bench).last(), Some(&&to("b", 20_000)));
    bench.pass(SECOND);
    assert!(!bench.session.is_ended());
    bench.say(0, ClientBody::Done(Empty {}));
    assert_eq!(bench.close(), CloseCode::Done.number());
    assert!(!bench.session.goaway(bench.now, to("c", 1)));
}

#[test]
fn the_slot_is_bounded() {
    let mut bench = Bench::new(|_| (), None);
    let slot = |bytes| Connect { slot: Some("x".repeat(bytes)), ..Connect::default() };
    bench.say(1, ClientBody::Connect(slot(512)));
    assert_eq!(bench.session.take_slot().map(|slot| slot.len()), Some(512));
    assert_eq!(bench.session.take_slot(), None);

    let mut bench = Bench::new(|_| (), None);
    bench.say(1, ClientBody::Connect(slot(513)));
    assert_eq!(bench.close(), CloseCode::BadFrame.number());
}
