//! Who may ask who is there, and what counts.

use super::*;
use crate::frame::{Presence, PresenceGap, PresentUser};
use crate::link::Members;

/// `room` counts and shows only whom the token lets see; `open` shows everybody; all else counts nobody.
fn counting(settings: &mut Settings) {
    let rules =
        |presence| Namespace { subscribe: Access::Anyone, presence: Some(presence), ..Namespace::default() };
    let silent = Namespace { subscribe: Access::Anyone, ..Namespace::default() };
    let named = BTreeMap::from([
        ("room".to_owned(), rules(Access::Granted)),
        ("open".to_owned(), rules(Access::Anyone)),
    ]);
    settings.namespaces = Namespaces::new(silent, named, false);
}

/// A session of ann, whose token lets her see who is in `room:1`.
fn ann() -> Bench {
    let mut bench = Bench::new(counting, None);
    bench.say(1, ClientBody::Connect(Connect::default()));
    bench.session.admit(bench.now, identity(&["room:1"]));
    bench.drain();
    bench.sent.clear();
    bench.asked.clear();
    bench
}

fn identity(presence: &[&str]) -> Identity {
    let presence = presence.iter().copied().map(ChannelPattern::new).collect();
    let grants = Grants { presence, ..Grants::default() };
    Identity { user: Some("ann".into()), grants: Arc::new(grants), ..Identity::default() }
}

fn ask(bench: &mut Bench, id: u64, channel: &str) {
    bench.say(id, ClientBody::Presence(PresenceRequest { channel: channel.to_owned() }));
}

/// Subscribes, has the core answer, and says what the driver was told of presence.
fn begin(bench: &mut Bench, channel: &str, presence: bool) -> (u32, Vec<(Option<String>, bool)>) {
    let subscribe = Subscribe { channel: channel.to_owned(), presence, ..Subscribe::default() };
    bench.say(9, ClientBody::Subscribe(subscribe));
    assert!(told(bench).is_empty(), "nobody counts before it has begun");
    let (slot, ask) = bench.asked_for();
    bench.session.recovered(bench.now, slot, ask, Ok(recovery(3, false, &[])), BUDGET);
    bench.drain();
    (slot, told(bench))
}

fn told(bench: &mut Bench) -> Vec<(Option<String>, bool)> {
    let told = bench.asked.iter().filter_map(|event| match event {
        Event::Present { user, watch, .. } => Some((user.as_deref().map(str::to_owned), *watch)),
        _ => None,
    });
    let told = told.collect();
    bench.asked.retain(|event| !matches!(event, Event::Present { .. }));
    told
}

#[test]
fn a_list_is_asked_of_the_core_where_the_session_may_see_it() {
    let mut bench = ann();
    ask(&mut bench, 2, "room:2");
    assert_eq!(bench.error(), (2, 403));
    ask(&mut bench, 3, "elsewhere:1");
    assert_eq!(bench.error(), (3, 501), "nobody is counted there");
    ask(&mut bench, 4, "");
    assert_eq!(bench.error(), (4, 400));
    assert!(bench.asked.is_empty());
    ask(&mut bench, 5, "room:1");
    let Some(Event::Members { id: 5, channel }) = bench.asked.pop() else { panic!("{:?}", bench.asked) };
    let members = Members {
        users: vec![("ann".into(), 2), ("bo".into(), 1)],
        users_total: 2,
        sessions: 4,
        exact: true,
    };
    bench.session.presence(5, &channel, Ok(members));
    bench.drain();
    let present = |user: &str, sessions| PresentUser { user: user.to_owned(), sessions };
    let expected = Presence {
        channel: "room:1".to_owned(),
        users: vec![present("ann", 2), present("bo", 1)],
        users_total: 2,
        sessions: 4,
        exact: true,
    };
    assert_eq!(bench.sent.last(), Some(&ServerFrame::new(5, ServerBody::Presence(expected))));
    ask(&mut bench, 6, "room:1");
    bench.session.presence(6, &channel, Err(unavailable()));
    bench.drain();
    assert_eq!(bench.error(), (6, 503));
    assert!(bench.session.wants_input(), "both were answered");
}

#[test]
fn a_list_that_does_not_fit_in_a_frame_says_that_it_is_a_part() {
    let mut bench = ann();
    ask(&mut bench, 5, "room:1");
    let channel = ChannelName::new("room:1").expect("valid");
    let users = (0..1000).map(|n| (format!("{n:0>500}").into(), 1)).collect();
    let members = Members { users, users_total: 1000, sessions: 1000, exact: true };
    bench.session.presence(5, &channel, Ok(members));
    bench.drain();
    let Some(ServerBody::Presence(presence)) = &bench.sent.last().expect("a reply").body else {
        panic!("{:?}", bench.sent)
    };
    assert!((300..1000).contains(&presence.users.len()), "{}", presence.users.len());
    assert_eq!((presence.users_total, presence.sessions, presence.exact), (1000, 1000, false));
}

#[test]
fn a_subscription_counts_where_its_namespace_counts_and_watches_where_it_asked() {
    let mut bench = ann();
    let (_, told) = begin(&mut bench, "room:2", false);
    assert_eq!(told, [(Some("ann".to_owned()), false)]);
    let (_, told) = begin(&mut bench, "elsewhere:1", false);
    assert!(told.is_empty(), "nothing is said of a channel that counts nobody");
    let (_, told) = begin(&mut bench, "room:1", true);
    assert_eq!(told, [(Some("ann".to_owned()), true)]);
}

#[test]
fn who_watches_is_told_of_a_gap_and_nobody_else() {
    let mut bench = ann();
    let (counts, _) = begin(&mut bench, "room:2", false);
    let (watches, _) = begin(&mut bench, "room:1", true);
    bench.sent.clear();
    for slot in [counts, watches, 7] {
        bench.session.presence_gap(slot);
    }
    bench.drain();
    let gap = PresenceGap { channel: "room:1".to_owned() };
    assert_eq!(bench.sent, [ServerFrame::new(0, ServerBody::PresenceGap(gap))]);
}

#[test]
fn a_watch_that_is_not_allowed_fails_the_subscribe() {
    let mut bench = ann();
    for (id, channel, code) in [(2, "room:2", 403), (3, "elsewhere:1", 501)] {
        let subscribe = Subscribe { channel: channel.to_owned(), presence: true, ..Subscribe::default() };
        bench.say(id, ClientBody::Subscribe(subscribe));
        assert_eq!(bench.error(), (id, code));
    }
    assert!(bench.asked.is_empty());
}

#[test]
fn an_anonymous_session_counts_without_a_name() {
    let mut bench = Bench::open_with(counting);
    assert_eq!(begin(&mut bench, "open:1", true).1, [(None, true)]);
    ask(&mut bench, 2, "room:1");
    assert_eq!(bench.error(), (2, 403));
}

#[test]
fn a_watch_ends_with_the_token_that_granted_it() {
    let mut bench = ann();
    begin(&mut bench, "room:1", true);
    bench.say(10, ClientBody::Refresh(Refresh { token: "new".to_owned() }));
    bench.session.refreshed(bench.now, 10, Ok(identity(&["room:1", "room:2"])));
    bench.drain();
    assert!(told(&mut bench).is_empty());
    bench.say(11, ClientBody::Refresh(Refresh { token: "newer".to_owned() }));
    bench.session.refreshed(bench.now, 11, Ok(identity(&[])));
    bench.drain();
    assert_eq!(told(&mut bench), [(Some("ann".to_owned()), false)], "still there, and not told any more");
}

#[test]
fn a_subscription_of_the_token_counts_and_may_be_taken_up_to_watch() {
    let channel = ChannelName::new("room:1").expect("valid");
    let mut bench = Bench::new(counting, None);
    bench.say(1, ClientBody::Connect(Connect::default()));
    bench.session.admit(bench.now, Identity { subscriptions: vec![channel], ..identity(&["room:1"]) });
    bench.drain();
    let (slot, ask) = bench.asked_for();
    bench.session.recovered(bench.now, slot, ask, Ok(recovery(3, false, &[])), BUDGET);
    bench.drain();
    assert_eq!(told(&mut bench), [(Some("ann".to_owned()), false)]);
    assert_eq!(begin(&mut bench, "room:1", true), (slot, vec![(Some("ann".to_owned()), true)]));
}
