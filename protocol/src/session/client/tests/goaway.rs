//! A server that asks to be left.

use super::*;
use crate::frame::Goaway;
use crate::plan::{Alternative, ReconnectPlan};

const SECOND: Duration = Duration::from_secs(1);

fn connected(ticket: &str, hosts: &[&str]) -> Connected {
    let alternative = |host: &&str| Alternative { host: (*host).to_owned(), weight: 1, elsewhere: false };
    let alternatives = hosts.iter().map(alternative).collect();
    Connected {
        ping_ms: 25_000,
        resume: Some(ticket.to_owned()),
        plan: Some(ReconnectPlan { alternatives, ..ReconnectPlan::default() }),
        ..Connected::default()
    }
}

fn goaway(endpoint: &str, after: Duration, deadline: Duration) -> ServerBody {
    ServerBody::Goaway(Goaway {
        endpoint: (!endpoint.is_empty()).then(|| endpoint.to_owned()),
        slot: Some(format!("slot for {endpoint}")),
        after_ms: after.as_millis() as u64,
        deadline_ms: deadline.as_millis() as u64,
        reason: "drained".to_owned(),
    })
}

fn leave(connection: u64, endpoint: Option<&str>) -> Event {
    Event::Goaway { connection: ConnectionId(connection), endpoint: endpoint.map(Arc::from) }
}

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.open(connected("t1", &["edge-2", "edge-3:9"]));
    rig.subscribe("a", 0);
    rig
}

impl Rig {
    /// Advances from timeout to timeout; what was asked to be left where, and when.
    fn leaves(&mut self, mut by: Duration) -> Vec<(Duration, Option<String>)> {
        let start = self.now;
        let mut leaves = Vec::new();
        loop {
            for event in self.events() {
                if let Event::Goaway { endpoint, .. } = event {
                    leaves.push((self.now - start, endpoint.map(|endpoint| endpoint.to_string())));
                    self.session.not_left(self.now);
                }
            }
            let next = self.session.poll_timeout().map_or(by, |at| at.saturating_duration_since(self.now));
            if next >= by {
                self.advance(by);
                return leaves;
            }
            by -= next;
            self.advance(next);
        }
    }

    /// A connection beside the present one resumes; what its `connect` says.
    fn move_on(&mut self, answer: Connected) -> frame::Connect {
        let next = self.dial();
        let frames: Vec<_> = std::iter::from_fn(|| self.session.poll_transmit_on(self.now, next))
            .map(|one| one.frame)
            .collect();
        let [connect, subscribe] = &frames[..] else { panic!("{frames:?}") };
        let Some(ClientBody::Connect(body)) = &connect.body else { panic!("{connect:?}") };
        self.feed_on(next, connect.id, ServerBody::Connected(Connected { resumed: true, ..answer }));
        self.feed_on(next, subscribe.id, subscribed("a", 0, true, &[]));
        body.clone()
    }
}

#[test]
fn the_session_moves_when_it_is_time_and_shows_its_slot() {
    let mut rig = rig();
    rig.feed(0, goaway("https://EDGE-2", 2 * SECOND, 30 * SECOND));
    rig.advance(1_999 * SECOND / 1_000);
    assert_eq!(rig.events(), []);
    rig.publication("a", 1);
    rig.advance(SECOND / 1_000);
    let events = rig.events();
    assert!(events.contains(&leave(1, Some("edge-2:4433"))), "{events:?}");
    let connect = rig.move_on(connected("t2", &[]));
    assert_eq!(connect.slot.as_deref(), Some("slot for https://EDGE-2"));
    assert!(connect.moves && connect.resume.as_deref() == Some("t1"));
    assert!(rig.events().contains(&Event::Moved { connection: ConnectionId(2) }));
    let done = rig.session.poll_transmit_on(rig.now, ConnectionId(1)).expect("done").frame;
    assert_eq!(done.body, Some(ClientBody::Done(Empty {})));
    assert_eq!(rig.leaves(60 * SECOND), [], "it has left");
}

#[test]
fn nobody_sends_a_session_where_it_does_not_belong() {
    let mut rig = rig();
    rig.session.trust_endpoint("own.example");
    for forged in [
        "https://evil.example",
        "https://edge-2:4434",
        "https://edge-2.evil.example",
        "https://edge-2@evil.example",
        "https://evil.example/edge-2",
        "http://edge-2",
        "edge-2",
        "https://",
    ] {
        rig.feed(0, goaway(forged, Duration::ZERO, 30 * SECOND));
        let endpoint = forged.to_owned();
        assert_eq!(rig.events(), [Event::GoawayIgnored { connection: ConnectionId(1), endpoint }]);
        assert_eq!(rig.leaves(SECOND), [], "{forged}");
    }
    for allowed in ["https://edge-3:9/", "https://own.example:4433"] {
        rig.feed(0, goaway(allowed, Duration::ZERO, 30 * SECOND));
        rig.advance(Duration::ZERO);
        assert!(matches!(&rig.events()[..], [Event::Goaway { endpoint: Some(_), .. }]), "{allowed}");
    }
}

#[test]
fn what_one_server_announced_is_not_another_ones_to_use_nor_before_it_is_known() {
    let mut rig = Rig::new();
    rig.events();
    let connection = rig.dial();
    let connect = rig.session.poll_transmit_on(rig.now, connection).expect("connect").frame;
    rig.feed(0, goaway("", Duration::ZERO, SECOND));
    rig.feed(connect.id, ServerBody::Connected(connected("t1", &["edge-2"])));
    rig.subscribe("a", 0);
    assert_eq!(rig.leaves(2 * SECOND), []);
    rig.feed(0, goaway("https://edge-2", Duration::ZERO, 30 * SECOND));
    rig.advance(Duration::ZERO);
    assert_eq!(rig.events(), [leave(1, Some("edge-2:4433"))]);
    rig.move_on(connected("t2", &["edge-1"]));
    rig.events();
    rig.feed(0, goaway("https://edge-2", Duration::ZERO, 30 * SECOND));
    assert!(matches!(&rig.events()[..], [Event::GoawayIgnored { .. }]));
}

#[test]
fn a_target_that_refuses_is_tried_again_and_anywhere_before_it_is_too_late() {
    let mut rig = rig();
    rig.feed(0, goaway("https://edge-2", Duration::ZERO, 30 * SECOND));
    let leaves = rig.leaves(40 * SECOND);
    let (there, anywhere): (Vec<_>, Vec<_>) = leaves.iter().partition(|(_, endpoint)| endpoint.is_some());
    assert!(there.len() >= 4 && there.iter().all(|(at, _)| *at < 25 * SECOND), "{leaves:?}");
    assert_eq!(anywhere.first().map(|(at, _)| *at), Some(25 * SECOND), "{leaves:?}");
    assert!(anywhere.iter().all(|(at, _)| *at < 30 * SECOND), "{leaves:?}");
    rig.publication("a", 1);
    assert_eq!(rig.offsets(), [1], "it is served meanwhile");
}

#[test]
fn a_move_that_fails_is_begun_again() {
    let mut rig = rig();
    rig.feed(0, goaway("https://edge-2", Duration::ZERO, 30 * SECOND));
    rig.advance(Duration::ZERO);
    rig.events();
    let next = rig.dial();
    rig.advance(SECOND);
    assert_eq!(rig.events(), [], "it is on its way");
    rig.session.connection_lost(rig.now, next, Some(CloseCode::Overloaded.number()), "full");
    assert!(matches!(&rig.events()[..], [Event::MoveFailed { .. }]));
    let leaves = rig.leaves(5 * SECOND);
    let (at, _) = leaves.first().expect("again");
    assert!(*at >= SECOND / 4 && *at <= SECOND, "{leaves:?}");
}

#[test]
fn half_way_to_a_place_another_is_gone_to_and_the_same_one_goes_on() {
    for other in ["https://edge-3:9", "https://edge-2"] {
        let mut rig = rig();
        rig.feed(0, goaway("https://edge-2", Duration::ZERO, 30 * SECOND));
        rig.advance(Duration::ZERO);
        rig.events();
        let next = rig.dial();
        let frames: Vec<_> =
            std::iter::from_fn(|| rig.session.poll_transmit_on(rig.now, next)).map(|one| one.frame).collect();
        rig.feed_on(next, frames[0].id, ServerBody::Connected(connected("t2", &[])));
        rig.events();
        // If the place died now, the session would wait for it for long.
        rig.feed_on(ConnectionId(1), 0, goaway(other, Duration::ZERO, 30 * SECOND));
        rig.advance(Duration::ZERO);
        let events = rig.events();
        if other == "https://edge-2" {
            assert_eq!(events, []);
            rig.feed_on(next, frames[1].id, subscribed("a", 0, true, &[]));
            assert!(rig.events().contains(&Event::Moved { connection: next }));
            continue;
        }
        assert!(
            matches!(&events[0], Event::MoveFailed { connection, .. } if *connection == next),
            "{events:?}"
        );
        assert!(events.contains(&leave(1, Some("edge-3:9"))), "{events:?}");
        let frame = ServerFrame::new(0, ServerBody::Publication(publication("a", 1)));
        rig.read_on(ConnectionId(1), &Carrier::Stream(Epoch::new("e")), frame);
        assert_eq!(rig.offsets(), [1], "it is served meanwhile");
        let connect = rig.move_on(connected("t3", &[]));
        assert_eq!(connect.resume.as_deref(), Some("t2"), "the newest ticket, wherever it came from");
        assert!(rig.events().contains(&Event::Moved { connection: ConnectionId(3) }));
    }
}

#[test]
fn a_newer_goaway_replaces_the_one_before_and_one_on_the_next_connection_holds_there() {
    let mut rig = rig();
    rig.feed(0, goaway("https://edge-2", 10 * SECOND, 30 * SECOND));
    rig.feed(0, goaway("https://edge-3:9", SECOND, 60 * SECOND));
    rig.advance(SECOND);
    assert_eq!(rig.events(), [leave(1, Some("edge-3:9"))]);
    let next = rig.dial();
    let frames: Vec<_> =
        std::iter::from_fn(|| rig.session.poll_transmit_on(rig.now, next)).map(|one| one.frame).collect();
    rig.feed_on(next, frames[0].id, ServerBody::Connected(connected("t2", &["edge-2"])));
    rig.feed_on(next, 0, goaway("https://edge-2", Duration::ZERO, 30 * SECOND));
    rig.advance(Duration::ZERO);
    assert!(!rig.events().iter().any(|event| matches!(event, Event::Goaway { .. })), "one move at a time");
    rig.feed_on(next, frames[1].id, subscribed("a", 0, true, &[]));
    assert!(rig.events().contains(&Event::Moved { connection: next }));
    rig.advance(Duration::ZERO);
    assert_eq!(rig.events(), [leave(2, Some("edge-2:4433"))]);
    let connect = rig.move_on(connected("t3", &[]));
    assert_eq!(connect.slot.as_deref(), Some("slot for https://edge-2"));
    assert!(rig.events().contains(&Event::Moved { connection: ConnectionId(3) }));
}

#[test]
fn the_slot_is_shown_also_where_the_connection_is_lost_first() {
    let mut rig = rig();
    rig.feed(0, goaway("https://edge-2", 5 * SECOND, 30 * SECOND));
    rig.lose();
    rig.wait_for_dial();
    let connect = rig.open(connected("t2", &[]));
    let Some(ClientBody::Connect(connect)) = connect.body else { panic!("connect") };
    assert_eq!(connect.slot.as_deref(), Some("slot for https://edge-2"));
    rig.lose();
    rig.wait_for_dial();
    let connect = rig.open(connected("t3", &[]));
    let Some(ClientBody::Connect(connect)) = connect.body else { panic!("connect") };
    assert_eq!(connect.slot, None, "once");
}

/// The place that the session is sent to refuses, in a `close` frame, and names a slot.
fn refused_by(rig: &mut Rig, after: Duration) {
    let next = rig.dial();
    rig.session.poll_transmit_on(rig.now, next).expect("connect");
    let reconnect = frame::Reconnect {
        policy: ReconnectPolicy::Backoff.into(),
        after_ms: Some(after.as_millis() as u64),
        slot: Some("kept".to_owned()),
    };
    let close = Close { code: 4101, reason: "full".to_owned(), reconnect: Some(reconnect) };
    rig.feed_on(next, 0, ServerBody::Close(close));
    assert!(rig.events().iter().any(|event| matches!(event, Event::MoveFailed { .. })));
}

#[test]
fn a_slot_that_a_refusal_names_is_kept_however_often_its_failure_is_told() {
    let mut rig = rig();
    rig.feed(0, goaway("https://edge-2", Duration::ZERO, 300 * SECOND));
    rig.advance(Duration::ZERO);
    rig.events();
    refused_by(&mut rig, 40 * SECOND);
    // The driver's ladder hears of the end, and tells it again.
    rig.session.not_left(rig.now);
    rig.advance(39 * SECOND);
    rig.session.not_left(rig.now);
    assert_eq!(rig.events(), [], "not before its time");
    rig.advance(SECOND);
    assert_eq!(rig.events(), [leave(1, Some("edge-2:4433"))]);
    assert_eq!(rig.move_on(connected("t2", &[])).slot.as_deref(), Some("kept"));
}

#[test]
fn what_a_climb_is_told_is_not_of_the_place_to_leave_for() {
    let mut rig = rig();
    rig.feed(0, goaway("https://edge-2", 10 * SECOND, 300 * SECOND));
    refused_by(&mut rig, 40 * SECOND);
    assert_eq!(rig.session.slot(rig.now).as_deref(), Some("slot for https://edge-2"));
    rig.advance(10 * SECOND);
    assert_eq!(rig.events(), [leave(1, Some("edge-2:4433"))]);
    rig.session.not_left(rig.now);
    // Between two tries as well.
    refused_by(&mut rig, 40 * SECOND);
    assert_eq!(rig.session.slot(rig.now).as_deref(), Some("slot for https://edge-2"));
    assert_eq!(rig.leaves(SECOND).len(), 1, "at its own time");
}
