//! The reconnect plan as clients hear of it, and connections that grow old.

use super::*;
use crate::frame::{Goaway, Ping};
use crate::plan::{Alternative, ReconnectPlan};

fn plan(epoch: u64) -> Arc<ReconnectPlan> {
    let other = Alternative { host: "edge-2:4433".to_owned(), weight: 7, elsewhere: false };
    Arc::new(ReconnectPlan { epoch, node_ms: 1_500, region_ms: 9_000, rank: 0, alternatives: vec![other] })
}

fn placed(heartbeats: bool, lifetime: Option<Duration>, moves: bool) -> Bench {
    let mut bench = Bench::new(|_| (), None);
    if !heartbeats {
        let settings = Arc::clone(&bench.session.settings);
        let id = bench.session.id();
        bench.session = Session::new(bench.now, settings, id, None, false);
    }
    bench.session.place(77, plan(3), lifetime);
    bench.say(1, ClientBody::Connect(Connect { moves, ..Connect::default() }));
    bench.session.admit(bench.now, Identity::anonymous());
    bench.drain();
    bench
}

/// What came since, told apart from `connected`.
fn pings(bench: &mut Bench) -> Vec<Ping> {
    let bodies = bench.sent.drain(..).filter_map(|frame| match frame.body {
        Some(ServerBody::Ping(ping)) => Some(ping),
        _ => None,
    });
    bodies.collect()
}

fn renewal() -> Goaway {
    Goaway { deadline_ms: 60_000, reason: "renewal".to_owned(), ..Goaway::default() }
}

#[test]
fn the_plan_comes_with_connected_and_again_when_its_epoch_is_another() {
    let mut bench = placed(true, None, false);
    let Some(ServerBody::Connected(connected)) = &bench.sent[0].body else { panic!("{:?}", bench.sent) };
    let told = ReconnectPlan { rank: 77, ..(*plan(3)).clone() };
    assert_eq!(connected.plan.as_ref(), Some(&told));
    bench.sent.clear();
    bench.pass(25 * SECOND);
    assert_eq!(pings(&mut bench), [Ping::default()], "nothing new");
    bench.say(0, ClientBody::Pong(Empty {}));
    bench.session.handle_plan(plan(4));
    assert_eq!(bench.session.plan_epoch(), Some(4));
    bench.drain();
    assert!(bench.sent.is_empty(), "not at once: everybody else would hear of it at the same time");
    bench.pass(25 * SECOND);
    let newer = ReconnectPlan { rank: 77, ..(*plan(4)).clone() };
    assert_eq!(pings(&mut bench), [Ping { resume: None, plan: Some(newer) }]);
    bench.say(0, ClientBody::Pong(Empty {}));
    bench.pass(25 * SECOND);
    assert_eq!(pings(&mut bench), [Ping::default()]);
}

#[test]
fn where_the_transport_needs_no_pings_only_news_are_told() {
    let mut bench = placed(false, None, false);
    bench.sent.clear();
    bench.pass(25 * SECOND);
    assert!(bench.sent.is_empty() && !bench.session.is_ended());
    bench.session.handle_plan(plan(5));
    bench.pass(25 * SECOND);
    assert_eq!(pings(&mut bench).len(), 1);
    // And no pong is awaited.
    bench.pass(3600 * SECOND);
    assert!(!bench.session.is_ended());
}

#[test]
fn a_plan_that_says_nothing_is_not_told() {
    let mut bench = Bench::new(|_| (), None);
    bench.session.place(1, Arc::default(), None);
    bench.connect();
    let Some(ServerBody::Connected(connected)) = &bench.sent[0].body else { panic!("{:?}", bench.sent) };
    assert_eq!(connected.plan, None);
    bench.sent.clear();
    bench.session.handle_plan(plan(1));
    bench.pass(25 * SECOND);
    assert!(pings(&mut bench)[0].plan.is_some());
}

#[test]
fn who_is_asked_to_leave_has_the_newest_plan_first() {
    let mut bench = placed(true, None, true);
    bench.sent.clear();
    bench.session.handle_plan(plan(4));
    // One that was not sent yet never is, and must not stand before the plan.
    assert!(bench.session.goaway(bench.now, renewal()));
    bench.session.handle_plan(plan(5));
    assert!(bench.session.goaway(bench.now, Goaway { deadline_ms: 30_000, ..renewal() }));
    bench.drain();
    let [first, second, goaway] = &bench.sent[..] else { panic!("{:?}", bench.sent) };
    assert!(matches!(&first.body, Some(ServerBody::Ping(ping)) if ping.plan.is_some()));
    assert!(matches!(&second.body, Some(ServerBody::Ping(Ping { plan: Some(plan), .. })) if plan.epoch == 5));
    assert!(matches!(&goaway.body, Some(ServerBody::Goaway(goaway)) if goaway.deadline_ms == 30_000));
    bench.pass(10 * SECOND);
    assert_eq!(bench.close(), CloseCode::HeartbeatTimeout.number(), "a ping is a ping");
}

#[test]
fn an_old_connection_is_renewed_and_not_closed_where_that_leads_nowhere() {
    let life = 3600 * SECOND;
    let mut bench = placed(false, Some(life), true);
    bench.pass(life - SECOND);
    assert!(!bench.asked.iter().any(|event| matches!(event, Event::Renew)));
    bench.pass(SECOND);
    assert!(matches!(bench.asked.last(), Some(Event::Renew)));
    bench.asked.clear();
    assert!(bench.session.renew(bench.now, renewal()));
    bench.pass(60 * SECOND);
    assert!(!bench.session.is_ended() && !bench.session.is_expected_elsewhere());
    bench.pass(life);
    assert!(matches!(bench.asked.last(), Some(Event::Renew)), "again, as late");
    // A drain outranks it, and closes.
    bench.asked.clear();
    assert!(bench.session.renew(bench.now, renewal()));
    assert!(bench.session.goaway(bench.now, renewal()));
    bench.pass(60 * SECOND);
    assert_eq!(bench.close(), CloseCode::Shutdown.number());
}

#[test]
fn who_cannot_move_or_moves_already_is_not_renewed() {
    for (moves, leaves) in [(false, false), (true, true)] {
        let mut bench = placed(false, Some(60 * SECOND), moves);
        if leaves {
            assert!(bench.session.goaway(bench.now, Goaway { deadline_ms: 600_000, ..renewal() }));
        }
        bench.pass(300 * SECOND);
        assert!(!bench.asked.iter().any(|event| matches!(event, Event::Renew)));
    }
    let mut never = placed(false, None, true);
    never.pass(90_000 * SECOND);
    assert!(!never.asked.iter().any(|event| matches!(event, Event::Renew)));
    let mut later = placed(false, Some(60 * SECOND), true);
    later.pass(60 * SECOND);
    later.session.renew_later(later.now);
    later.asked.clear();
    later.pass(59 * SECOND);
    assert!(later.asked.is_empty());
    later.pass(SECOND);
    assert!(matches!(later.asked.last(), Some(Event::Renew)));
}
