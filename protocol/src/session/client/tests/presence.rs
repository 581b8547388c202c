//! Who is there: asked once, and told as they come and go.

use super::*;
use crate::frame::{Join, Leave, Presence, PresenceGap, PresenceRequest};

fn join(user: &str) -> Join {
    Join { channel: "a".to_owned(), user: user.to_owned(), time_ms: 7 }
}

#[test]
fn a_watch_is_asked_for_again_on_every_connection() {
    let mut rig = Rig::opened();
    let options = SubscribeOptions { presence: true, rank: 0 };
    rig.session.subscribe(rig.now, channel("a"), None, options).unwrap();
    let (id, body) = rig.transmit();
    let ClientBody::Subscribe(subscribe) = body else { panic!("{body:?}") };
    assert!(subscribe.presence);
    rig.feed(id, subscribed("a", 1, false, &[]));
    rig.lose();
    rig.wait_for_dial();
    rig.open(Connected { ping_ms: 25_000, ..Connected::default() });
    let (_, body) = rig.transmit();
    let ClientBody::Subscribe(subscribe) = body else { panic!("{body:?}") };
    assert!(subscribe.presence);
}

#[test]
fn joins_and_leaves_of_a_subscription_are_handed_on() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 1);
    rig.feed(0, ServerBody::Join(join("bo")));
    rig.feed(0, ServerBody::Join(Join { channel: "b".to_owned(), ..join("bo") }));
    let leave = Leave { channel: "a".to_owned(), user: "bo".to_owned(), time_ms: 8 };
    rig.feed(0, ServerBody::Leave(leave.clone()));
    for name in ["a", "b"] {
        rig.feed(0, ServerBody::PresenceGap(PresenceGap { channel: name.to_owned() }));
    }
    assert_eq!(
        rig.events(),
        [
            Event::Join { channel: channel("a"), join: join("bo") },
            Event::Leave { channel: channel("a"), leave },
            Event::PresenceGap { channel: channel("a") }
        ],
        "what is not subscribed is not told"
    );
    rig.session.unsubscribe(&channel("a")).unwrap();
    rig.events();
    rig.feed(0, ServerBody::Join(join("cy")));
    assert!(rig.events().is_empty());
}

#[test]
fn who_is_there_is_answered_once_and_asked_again_after_a_loss() {
    let mut rig = Rig::opened();
    let request = rig.session.presence(&channel("a")).unwrap();
    let (id, body) = rig.transmit();
    assert_eq!(body, ClientBody::Presence(PresenceRequest { channel: "a".to_owned() }));
    rig.lose();
    rig.wait_for_dial();
    rig.open(Connected { ping_ms: 25_000, ..Connected::default() });
    assert_eq!(rig.transmit(), (id, body));
    rig.events();
    let presence = Presence { channel: "a".to_owned(), sessions: 3, exact: true, ..Presence::default() };
    rig.feed(id, ServerBody::Presence(presence.clone()));
    rig.feed(id, ServerBody::Presence(presence.clone()));
    assert_eq!(rig.events(), [Event::Presence { request, result: Ok(presence) }]);
    let refused = rig.session.presence(&channel("a")).unwrap();
    let (id, _) = rig.transmit();
    let error = ErrorCode::Forbidden.reply("no");
    rig.feed(id, ServerBody::Error(error.clone()));
    assert_eq!(
        rig.events(),
        [Event::Presence { request: refused, result: Err(RequestError::Refused(error)) }]
    );
}
