//! The machine driven by hand.

use bytes::Bytes;
use std::collections::BTreeMap;

use super::*;
use crate::frame::{PresenceRequest, Refresh, Rpc};
use crate::grants::{ChannelPattern, Grants};
use crate::namespace::{Access, Namespaces};
use crate::{NodeId, Region};

const SECOND: Duration = Duration::from_secs(1);
const BUDGET: usize = 1 << 20;

struct Bench {
    session: Session,
    now: Instant,
    sent: Vec<ServerFrame>,
    asked: Vec<Event>,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Settings), identity: Option<Identity>) -> Self {
        let open = Namespace { publish: Access::Anyone, subscribe: Access::Anyone, ..Namespace::default() };
        let named = BTreeMap::from([
            ("secret".to_owned(), Namespace::default()),
            ("latest".to_owned(), Namespace { conflate: true, ..open.clone() }),
        ]);
        let mut settings = Settings {
            node: NodeId::new("edge-1"),
            region: Region::new("eu"),
            namespaces: Namespaces::new(open, named, false),
            anonymous: true,
            connect_timeout: 5 * SECOND,
            ping: 25 * SECOND,
            pong: 10 * SECOND,
            max_subscriptions: 3,
            max_requests: 2,
            max_payload: 16,
            max_token: 32,
            tickets: None,
            grace: 30 * SECOND,
            resume_wait: 2 * SECOND,
        };
        change(&mut settings);
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        let now = Instant::now();
        let mut rng = <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(1);
        let id = SessionId::generate(&mut rng, 0);
        let session = Session::new(now, Arc::new(settings), id, identity, true);
        Self { session, now, sent: Vec::new(), asked: Vec::new() }
    }

    /// A session that is open, anonymous, with nothing said since.
    fn open() -> Self {
        Self::open_with(|_| ())
    }

    fn open_with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut bench = Self::new(change, None);
        bench.connect();
        bench.sent.clear();
        bench.asked.clear();
        bench
    }

    fn connect(&mut self) {
        self.say(1, ClientBody::Connect(Connect::default()));
        self.session.admit(self.now, Identity::anonymous());
        self.drain();
    }

    fn say(&mut self, id: u64, body: ClientBody) {
        self.try_say(id, body).expect("a legal frame");
    }

    fn try_say(&mut self, id: u64, body: ClientBody) -> Result<(), SessionError> {
        let result = self.session.handle_frame(self.now, ClientFrame::new(id, body));
        self.drain();
        result
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.session.handle_timeout(self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(frame) = self.session.poll_transmit() {
            self.sent.push(frame);
        }
        while let Some(event) = self.session.poll_event() {
            self.asked.push(event);
        }
    }

    fn subscribe(&mut self, id: u64, channel: &str, position: Option<Position>) {
        let position = position.map(Into::into);
        self.say(
            id,
            ClientBody::Subscribe(Subscribe {
                channel: channel.to_owned(),
                position,
                ..Subscribe::default()
            }),
        );
    }

    /// The slot and ask of the last question about a subscription.
    fn asked_for(&self) -> (u32, u32) {
        let asks = self.asked.iter().rev();
        asks.into_iter()
            .find_map(|event| match event {
                Event::Subscribe { slot, ask, .. } => Some((*slot, *ask)),
                _ => None,
            })
            .expect("a subscription was asked for")
    }

    /// A live subscription at `head`.
    fn live(&mut self, channel: &str, head: u64) -> u32 {
        self.subscribe(9, channel, None);
        let (slot, ask) = self.asked_for();
        let left = self.session.recovered(self.now, slot, ask, Ok(recovery(head, false, &[])), BUDGET);
        assert!(left.is_empty());
        self.drain();
        self.sent.clear();
        self.asked.clear();
        slot
    }

    fn error(&self) -> (u64, u32) {
        let last = self.sent.last().expect("a frame");
        let Some(ServerBody::Error(error)) = &last.body else { panic!("no error: {last:?}") };
        (last.id, error.code)
    }

    fn close(&self) -> u32 {
        let last = self.sent.last().expect("a frame");
        let Some(ServerBody::Close(close)) = &last.body else { panic!("no close: {last:?}") };
        assert!(matches!(self.asked.last(), Some(Event::End { .. })));
        assert!(self.session.is_ended());
        close.code
    }

    fn subscribed(&self) -> (u64, &Subscribed) {
        let last = self.sent.last().expect("a frame");
        let Some(ServerBody::Subscribed(subscribed)) = &last.body else { panic!("not subscribed: {last:?}") };
        (last.id, subscribed)
    }
}

fn publication(offset: u64, bytes: usize) -> Publication {
    Publication {
        channel: "room:1".to_owned(),
        offset,
        data_base64: Some(Bytes::from(vec![0; bytes])),
        ..Publication::default()
    }
}

fn recovery(head: u64, recovered: bool, publications: &[Publication]) -> Recovery {
    Recovery { position: position(head), recovered, publications: publications.to_vec() }
}

fn position(offset: u64) -> Position {
    Position::new(Epoch::new("e"), Offset(offset))
}

fn unavailable() -> LinkError {
    LinkError { code: ErrorCode::Unavailable, message: "busy".to_owned() }
}

fn publish(channel: &str, payload: &[u8]) -> Publish {
    Publish {
        channel: channel.to_owned(),
        data_base64: Some(Bytes::copy_from_slice(payload)),
        ..Publish::default()
    }
}

fn member(patterns: &[&str]) -> Identity {
    let subscribe = patterns.iter().map(|pattern| ChannelPattern::new(pattern)).collect();
    let grants = Arc::new(Grants { subscribe, ..Grants::default() });
    Identity { user: Some("ann".into()), grants, ..Identity::default() }
}

#[test]
fn connect_opens_and_says_who_and_where() {
    let mut bench = Bench::new(|_| (), None);
    bench.say(7, ClientBody::Connect(Connect { token: Some("t".to_owned()), ..Connect::default() }));
    assert!(matches!(&bench.asked[..], [Event::Authenticate { token: Some(token) }] if token == "t"));
    assert!(!bench.session.wants_input());
    let expires = Some(bench.now + 60 * SECOND);
    bench.session.admit(bench.now, Identity { expires, ..member(&[]) });
    bench.drain();
    let [ServerFrame { id: 7, body: Some(ServerBody::Connected(connected)) }] = &bench.sent[..] else {
        panic!("not connected: {:?}", bench.sent)
    };
    assert_eq!(connected.user.as_deref(), Some("ann"));
    assert_eq!((connected.ping_ms, connected.expires_ms), (25_000, Some(60_000)));
    assert_eq!((connected.node.as_str(), connected.region.as_str()), ("edge-1", "eu"));
    assert!(matches!(bench.asked.last(), Some(Event::Opened)));
}

#[test]
fn frames_out_of_order_end_the_session() {
    let mut bench = Bench::new(|_| (), None);
    assert_eq!(bench.try_say(1, ClientBody::Pong(Empty {})), Err(SessionError::NotConnected));
    let mut bench = Bench::open();
    let again = bench.try_say(2, ClientBody::Connect(Connect::default()));
    assert_eq!(again, Err(SessionError::AlreadyConnected));
    assert_eq!(SessionError::AlreadyConnected.close_code(), CloseCode::OutOfOrder);
}

#[test]
fn no_connect_in_time_and_no_token_end_the_session() {
    let mut bench = Bench::new(|_| (), None);
    assert_eq!(bench.session.poll_timeout(), Some(bench.now + 5 * SECOND));
    bench.pass(5 * SECOND);
    assert_eq!(bench.close(), 4102);

    let mut bench = Bench::new(|settings| settings.anonymous = false, None);
    bench.say(1, ClientBody::Connect(Connect::default()));
    assert_eq!(bench.close(), 4004);

    let mut bench = Bench::new(|_| (), None);
    bench.say(1, ClientBody::Connect(Connect { token: Some("x".repeat(33)), ..Connect::default() }));
    assert_eq!(bench.close(), 4004);
}

#[test]
fn a_token_from_the_handshake_needs_no_other() {
    let mut bench = Bench::new(|settings| settings.anonymous = false, Some(member(&["secret:*"])));
    bench.say(1, ClientBody::Connect(Connect::default()));
    assert!(matches!(bench.sent[..], [ServerFrame { id: 1, body: Some(ServerBody::Connected(_)) }]));
    bench.subscribe(2, "secret:1", None);
    assert!(matches!(bench.asked.last(), Some(Event::Subscribe { begins: true, .. })));
}

#[test]
fn heartbeats_are_answered_or_the_session_ends() {
    let mut bench = Bench::open();
    bench.pass(25 * SECOND);
    assert!(matches!(bench.sent[..], [ServerFrame { id: 0, body: Some(ServerBody::Ping(_)) }]));
    bench.pass(9 * SECOND);
    bench.say(0, ClientBody::Pong(Empty {}));
    assert_eq!(bench.session.poll_timeout(), Some(bench.now + 25 * SECOND));
    bench.pass(25 * SECOND);
    bench.pass(10 * SECOND);
    assert_eq!(bench.close(), 4103);
}

#[test]
fn a_pong_that_may_be_unread_is_waited_for() {
    let mut bench = Bench::open();
    bench.subscribe(2, "a", None);
    bench.subscribe(3, "b", None);
    let (slot, ask) = bench.asked_for();
    assert!(!bench.session.wants_input());
    bench.pass(25 * SECOND);
    bench.pass(10 * SECOND);
    assert!(!bench.session.is_ended(), "the core is slow, not the client");
    bench.session.recovered(bench.now, slot, ask, Ok(recovery(1, false, &[])), BUDGET);
    bench.pass(10 * SECOND);
    assert_eq!(bench.close(), 4103);
}

#[test]
fn a_token_ends_the_session_unless_it_is_refreshed_in_place() {
    let mut bench = Bench::new(|_| (), None);
    bench.say(1, ClientBody::Connect(Connect::default()));
    let at = |now: Instant| Identity { expires: Some(now + 20 * SECOND), ..member(&["*"]) };
    bench.session.admit(bench.now, at(bench.now));
    bench.drain();
    bench.pass(10 * SECOND);
    bench.say(2, ClientBody::Refresh(Refresh { token: "new".to_owned() }));
    assert!(matches!(bench.asked.last(), Some(Event::Refresh { id: 2, .. })));
    bench.session.refreshed(bench.now, 2, Err("bad signature".to_owned()));
    bench.drain();
    assert_eq!(bench.error(), (2, 401));
    let other = Identity { user: Some("eve".into()), ..Identity::default() };
    bench.say(3, ClientBody::Refresh(Refresh { token: "new".to_owned() }));
    bench.session.refreshed(bench.now, 3, Ok(other));
    bench.drain();
    assert_eq!(bench.error(), (3, 401));
    bench.say(4, ClientBody::Refresh(Refresh { token: "new".to_owned() }));
    bench.session.refreshed(bench.now, 4, Ok(at(bench.now)));
    bench.pass(15 * SECOND);
    let refreshed = Refreshed { expires_ms: Some(20_000) };
    assert!(bench.sent.contains(&ServerFrame::new(4, ServerBody::Refreshed(refreshed))));
    assert!(!bench.session.is_ended());
    bench.pass(5 * SECOND);
    assert_eq!(bench.close(), 4005);
}

#[test]
fn a_refresh_that_grants_less_ends_what_it_does_not() {
    let mut bench = Bench::new(|_| (), Some(member(&["secret:*"])));
    bench.say(1, ClientBody::Connect(Connect::default()));
    let slot = bench.live("secret:1", 0);
    bench.say(2, ClientBody::Refresh(Refresh { token: "less".to_owned() }));
    bench.session.refreshed(bench.now, 2, Ok(member(&[])));
    bench.drain();
    let Some(ServerBody::Unsubscribed(ended)) = &bench.sent[0].body else { panic!("{:?}", bench.sent) };
    assert_eq!(ended.error.as_ref().map(|error| error.code), Some(403));
    assert!(matches!(bench.asked.last(), Some(Event::Unsubscribe { slot: gone, .. }) if *gone == slot));
    assert_eq!(bench.session.take(slot, Offset(1), Offset(1)), Due::Nothing);
}

#[test]
fn a_subscription_begins_at_the_head_and_takes_what_follows() {
    let mut bench = Bench::open();
    bench.subscribe(2, "room:1", None);
    let (slot, ask) = bench.asked_for();
    assert_eq!(bench.session.take(slot, Offset(1), Offset(1)), Due::Nothing, "not begun");
    bench.session.recovered(bench.now, slot, ask, Ok(recovery(4, false, &[])), BUDGET);
    bench.drain();
    let (id, subscribed) = bench.subscribed();
    assert_eq!(
        (id, subscribed.recovered, subscribed.position.as_ref().map(|p| p.offset)),
        (2, false, Some(4))
    );
    assert_eq!(bench.session.take(slot, Offset(3), Offset(4)), Due::Nothing, "came before the head");
    assert_eq!(bench.session.take(slot, Offset(4), Offset(6)), Due::From(Offset(5)));
    assert_eq!(bench.session.take(slot, Offset(7), Offset(7)), Due::All);
    assert_eq!(bench.session.take(slot, Offset(9), Offset(9)), Due::Gap);
    assert!(bench.session.is_parked(slot));
}

#[test]
fn what_was_missed_comes_with_the_answer_and_the_rest_behind_it() {
    let mut bench = Bench::open();
    bench.subscribe(2, "room:1", Some(position(1)));
    let (slot, ask) = bench.asked_for();
    let missed: Vec<_> = (2..=7).map(|offset| publication(offset, 12_000)).collect();
    let rest = bench.session.recovered(bench.now, slot, ask, Ok(recovery(7, true, &missed)), BUDGET);
    bench.drain();
    let (_, subscribed) = bench.subscribed();
    let inline: Vec<_> = subscribed.publications.iter().map(|publication| publication.offset).collect();
    assert_eq!(inline, [2, 3, 4, 5], "64 KiB of base64");
    assert_eq!(rest.iter().map(|publication| publication.offset).collect::<Vec<_>>(), [6, 7]);
    assert_eq!(bench.session.take(slot, Offset(8), Offset(8)), Due::All);
}

#[test]
fn what_is_over_the_budget_is_fetched_later() {
    let mut bench = Bench::open();
    bench.subscribe(2, "room:1", Some(position(1)));
    let (slot, ask) = bench.asked_for();
    let missed: Vec<_> = (2..=9).map(|offset| publication(offset, 12_000)).collect();
    let rest = bench.session.recovered(bench.now, slot, ask, Ok(recovery(9, true, &missed)), 20_000);
    bench.drain();
    let (_, subscribed) = bench.subscribed();
    assert_eq!(subscribed.publications.len(), 1, "the budget holds for the frame as well");
    assert_eq!(rest.iter().map(|publication| publication.offset).collect::<Vec<_>>(), [3]);
    assert_eq!(bench.session.take(slot, Offset(10), Offset(10)), Due::Nothing, "parked at 3");
    assert!(bench.session.refill(slot));
    assert!(!bench.session.refill(slot), "one question at a time");
    bench.drain();
    let Some(Event::Subscribe { begins: false, position: Some(from), ask, .. }) = bench.asked.last() else {
        panic!("{:?}", bench.asked)
    };
    assert_eq!(*from, position(3));
    let missed: Vec<_> = (4..=10).map(|offset| publication(offset, 10)).collect();
    let (ask, sent) = (*ask, bench.sent.len());
    let rest = bench.session.recovered(bench.now, slot, ask, Ok(recovery(10, true, &missed)), BUDGET);
    bench.drain();
    assert_eq!(rest.len(), 7);
    assert_eq!(bench.sent.len(), sent, "nothing was lost: nothing to tell");
    assert_eq!(bench.session.take(slot, Offset(11), Offset(11)), Due::All);
}

#[test]
fn what_was_not_in_the_answer_is_fetched_as_well() {
    let mut bench = Bench::open();
    bench.subscribe(2, "room:1", Some(position(1)));
    let (slot, ask) = bench.asked_for();
    let first: Vec<_> = (2..=4).map(|offset| publication(offset, 10)).collect();
    bench.session.recovered(bench.now, slot, ask, Ok(recovery(6, true, &first)), BUDGET);
    bench.drain();
    let (_, subscribed) = bench.subscribed();
    assert_eq!(subscribed.publications.len(), 3);
    assert_eq!(subscribed.position.as_ref().map(|position| position.offset), Some(6));
    assert_eq!(bench.session.take(slot, Offset(7), Offset(7)), Due::Nothing, "5 and 6 come first");
    assert!(bench.session.refill(slot));
    bench.drain();
    let Some(Event::Subscribe { begins: false, position: Some(from), ask, .. }) = bench.asked.last() else {
        panic!("{:?}", bench.asked)
    };
    assert_eq!(*from, position(4));
    let rest: Vec<_> = (5..=7).map(|offset| publication(offset, 10)).collect();
    let ask = *ask;
    let rest = bench.session.recovered(bench.now, slot, ask, Ok(recovery(7, true, &rest)), BUDGET);
    assert_eq!(rest.iter().map(|publication| publication.offset).collect::<Vec<_>>(), [5, 6, 7]);
    assert_eq!(bench.session.take(slot, Offset(8), Offset(8)), Due::All);
}

#[test]
fn a_slow_consumer_that_history_no_longer_reaches_is_told() {
    let mut bench = Bench::open();
    let slot = bench.live("room:1", 4);
    bench.session.park(slot, Offset(4));
    assert!(bench.session.refill(slot));
    bench.drain();
    let (_, ask) = bench.asked_for();
    bench.session.recovered(bench.now, slot, ask, Ok(recovery(90, false, &[])), BUDGET);
    bench.drain();
    let (id, subscribed) = bench.subscribed();
    assert_eq!(
        (id, subscribed.recovered, subscribed.position.as_ref().map(|p| p.offset)),
        (0, false, Some(90))
    );
}

#[test]
fn an_answer_to_an_older_question_is_passed_over() {
    let mut bench = Bench::open();
    bench.subscribe(2, "room:1", None);
    let (slot, old) = bench.asked_for();
    bench.say(3, ClientBody::Unsubscribe(Unsubscribe { channel: "room:1".to_owned() }));
    assert_eq!(
        bench
            .sent
            .iter()
            .map(|frame| (frame.id, matches!(frame.body, Some(ServerBody::Error(_)))))
            .collect::<Vec<_>>(),
        [(2, true), (3, false)]
    );
    bench.subscribe(4, "room:2", None);
    let (again, new) = bench.asked_for();
    assert_eq!(slot, again, "the slot is free again");
    bench.session.recovered(bench.now, slot, old, Ok(recovery(50, false, &[])), BUDGET);
    assert_eq!(bench.session.take(slot, Offset(51), Offset(51)), Due::Nothing);
    bench.session.recovered(bench.now, slot, new, Ok(recovery(3, false, &[])), BUDGET);
    assert_eq!(bench.session.take(slot, Offset(4), Offset(4)), Due::All);
}

#[test]
fn a_rank_goes_with_its_subscription_and_one_out_of_range_is_refused() {
    let mut bench = Bench::open();
    for (id, rank) in [(2, i32::from(i8::MIN) - 1), (3, 128), (4, i32::MAX)] {
        bench.say(
            id,
            ClientBody::Subscribe(Subscribe { channel: "room:1".into(), rank, ..Subscribe::default() }),
        );
        assert_eq!(bench.error(), (id, 400));
    }
    for (id, channel, rank) in [(5, "room:1", -128), (6, "room:2", 127)] {
        let subscribe = Subscribe { channel: channel.into(), rank, ..Subscribe::default() };
        bench.say(id, ClientBody::Subscribe(subscribe));
        let Some(Event::Subscribe { slot, rank: told, .. }) = bench.asked.last() else {
            panic!("{:?}", bench.asked)
        };
        assert_eq!((i32::from(*told), i32::from(bench.session.rank(*slot))), (rank, rank));
    }
}

#[test]
fn server_side_subscriptions_come_with_connected_and_can_be_taken_up() {
    let mut bench = Bench::new(|_| (), None);
    bench.say(1, ClientBody::Connect(Connect::default()));
    let channels = ["user:456", "user:all"].map(|name| ChannelName::new(name).expect("valid"));
    let identity = Identity { subscriptions: channels.to_vec(), ..member(&[]) };
    bench.session.admit(bench.now, identity);
    bench.drain();
    assert!(bench.sent.is_empty(), "connected waits for them");
    let asks: Vec<_> = bench
        .asked
        .iter()
        .filter_map(|event| match event {
            Event::Subscribe { slot, ask, begins: true, .. } => Some((*slot, *ask)),
            _ => None,
        })
        .collect();
    bench.session.recovered(bench.now, asks[0].0, asks[0].1, Ok(recovery(3, false, &[])), BUDGET);
    bench.session.recovered(bench.now, asks[1].0, asks[1].1, Err(unavailable()), BUDGET);
    bench.drain();
    let Some(ServerBody::Connected(connected)) = &bench.sent[0].body else { panic!("{:?}", bench.sent) };
    assert_eq!(connected.subscriptions.len(), 1);
    assert_eq!(connected.subscriptions[0].channel, "user:456");
    let Some(ServerBody::Unsubscribed(failed)) = &bench.sent[1].body else { panic!("{:?}", bench.sent) };
    assert_eq!((failed.channel.as_str(), failed.error.as_ref().map(|e| e.retry)), ("user:all", Some(true)));

    let position = Some(position(1).into());
    bench.say(
        2,
        ClientBody::Subscribe(Subscribe { channel: "user:456".into(), position, rank: 4, presence: false }),
    );
    let Some(Event::Subscribe { slot, ask, begins: false, rank: 4, .. }) = bench.asked.last() else {
        panic!("{:?}", bench.asked)
    };
    let (slot, ask) = (*slot, *ask);
    bench.session.recovered(
        bench.now,
        slot,
        ask,
        Ok(recovery(3, true, &[publication(2, 1), publication(3, 1)])),
        BUDGET,
    );
    bench.drain();
    assert_eq!(bench.subscribed().0, 2);
    bench.subscribe(3, "user:456", None);
    assert_eq!(bench.error(), (3, 409), "taken up once");
}

#[test]
fn requests_are_checked_before_the_core_hears_of_them() {
    let mut bench = Bench::open();
    bench.subscribe(2, "", None);
    assert_eq!(bench.error(), (2, 400));
    bench.subscribe(3, &"x".repeat(256), None);
    assert_eq!(bench.error(), (3, 400));
    bench.subscribe(4, "secret:1", None);
    assert_eq!(bench.error(), (4, 403));
    bench.subscribe(5, "room:1", Some(Position::new(Epoch::new(&"e".repeat(65)), Offset(0))));
    assert_eq!(bench.error(), (5, 400));
    bench.say(6, ClientBody::Publish(publish("secret:1", b"x")));
    assert_eq!(bench.error(), (6, 403));
    bench.say(7, ClientBody::Publish(publish("room:1", &[0; 17])));
    assert_eq!(bench.error(), (7, 413));
    bench.say(8, ClientBody::Publish(Publish { channel: "room:1".to_owned(), ..Publish::default() }));
    assert_eq!(bench.error(), (8, 400));
    bench.say(9, ClientBody::Publish(Publish { key: Some("k".repeat(129)), ..publish("room:1", b"x") }));
    assert_eq!(bench.error(), (9, 413));
    bench.say(10, ClientBody::Presence(PresenceRequest::default()));
    assert_eq!(bench.error(), (10, 400));
    bench.say(11, ClientBody::Rpc(Rpc::default()));
    assert_eq!(bench.error(), (11, 501));
    bench.say(12, ClientBody::Unsubscribe(Unsubscribe { channel: "room:1".to_owned() }));
    assert_eq!(bench.error(), (12, 404));
    bench.say(13, ClientBody::Refresh(Refresh { token: "x".repeat(33) }));
    assert_eq!(bench.error(), (13, 413));
    assert!(bench.asked.is_empty());
}

#[test]
fn subscriptions_and_requests_in_flight_are_bounded() {
    let mut bench = Bench::open();
    for (id, channel) in [(2, "a"), (3, "b")] {
        assert!(bench.session.wants_input());
        bench.subscribe(id, channel, None);
    }
    assert!(!bench.session.wants_input(), "two requests wait for the core");
    let (slot, ask) = bench.asked_for();
    bench.session.recovered(bench.now, slot, ask, Err(unavailable()), BUDGET);
    bench.drain();
    assert_eq!(bench.error(), (3, 503));
    assert!(bench.session.wants_input());
    bench.subscribe(4, "b", None);
    bench.subscribe(5, "c", None);
    bench.subscribe(6, "d", None);
    assert_eq!(bench.error(), (6, 429));
    bench.subscribe(7, "a", None);
    assert_eq!(bench.error(), (7, 409));
}

#[test]
fn questions_count_until_they_are_answered_whoever_still_waits() {
    let mut bench = Bench::open();
    let mut asks = Vec::new();
    for id in [2, 4] {
        bench.subscribe(id, "a", None);
        asks.push(bench.asked_for());
        bench.say(id + 1, ClientBody::Unsubscribe(Unsubscribe { channel: "a".to_owned() }));
    }
    assert!(!bench.session.wants_input(), "two questions wait for the core");
    for (slot, ask) in asks {
        bench.session.recovered(bench.now, slot, ask, Ok(recovery(3, false, &[])), BUDGET);
        assert!(bench.session.wants_input());
    }
    let slots = ["a", "b"].map(|channel| bench.live(channel, 4));
    for slot in slots {
        bench.session.park(slot, Offset(4));
        assert!(bench.session.wants_input());
        assert!(bench.session.refill(slot));
    }
    assert!(!bench.session.wants_input(), "a refill is a question too");
}

#[test]
fn publishes_and_history_are_answered_by_id() {
    let mut bench = Bench::open();
    let channel = ChannelName::new("room:1").expect("valid");
    bench.say(2, ClientBody::Publish(Publish { key: Some("k".to_owned()), ..publish("room:1", b"x") }));
    let Some(Event::Publish { id: 2, publish: asked }) = bench.asked.last() else {
        panic!("{:?}", bench.asked)
    };
    assert_eq!((asked.key.as_deref(), asked.ephemeral), (Some("k"), false));
    bench.session.published(2, &channel, Ok(Some(position(5))));
    bench.say(3, ClientBody::History(HistoryRequest { channel: "room:1".to_owned(), since: None, limit: 2 }));
    let old: Vec<_> = (1..=40).map(|offset| publication(offset, 10_000)).collect();
    bench.session.history(3, &channel, Ok(recovery(40, true, &old)));
    bench.drain();
    let Some(ServerBody::Published(published)) = &bench.sent[0].body else { panic!("{:?}", bench.sent) };
    assert_eq!((bench.sent[0].id, published.position.as_ref().map(|p| p.offset)), (2, Some(5)));
    let Some(ServerBody::History(history)) = &bench.sent[1].body else { panic!("{:?}", bench.sent) };
    assert_eq!(history.publications.last().map(|publication| publication.offset), Some(40), "the newest");
    assert!(!history.recovered && history.publications.len() < 40, "cut to what fits");

    bench.sent.clear();
    bench.say(0, ClientBody::Publish(publish("room:1", b"x")));
    bench.session.published(0, &channel, Ok(Some(position(6))));
    bench.drain();
    assert!(bench.sent.is_empty(), "no id, no reply");
}

#[test]
fn datagrams_hold_ephemeral_publishes_only() {
    let mut bench = Bench::open();
    let ephemeral = Publish { ephemeral: true, ..publish("room:1", b"x") };
    let frame = ClientFrame::new(0, ClientBody::Publish(ephemeral));
    assert_eq!(bench.session.handle_datagram(bench.now, frame.clone()), Ok(()));
    bench.drain();
    assert!(matches!(bench.asked.last(), Some(Event::Publish { id: 0, .. })));
    let durable = ClientFrame::new(0, ClientBody::Publish(publish("room:1", b"x")));
    assert_eq!(bench.session.handle_datagram(bench.now, durable), Err(SessionError::BadDatagram));
    let mut early = Bench::new(|_| (), None);
    assert_eq!(early.session.handle_datagram(early.now, frame), Ok(()), "overtook connect");
    early.drain();
    assert!(early.asked.is_empty());
}

#[test]
fn a_new_numbering_is_told() {
    let mut bench = Bench::open();
    let slot = bench.live("latest:1", 4);
    assert!(bench.session.rebased(slot, &Position::new(Epoch::new("f"), Offset(0))));
    bench.drain();
    let (id, subscribed) = bench.subscribed();
    assert_eq!((id, subscribed.recovered, subscribed.conflated), (0, false, true));
    assert_eq!(subscribed.position.as_ref().map(|p| p.epoch.as_str()), Some("f"));
    assert_eq!(bench.session.take(slot, Offset(1), Offset(1)), Due::All);
}

#[test]
fn who_began_behind_a_new_numbering_is_not_told_of_it() {
    let mut bench = Bench::open();
    let slot = bench.live("room:1", 4);
    let here = Position::new(bench.session.epoch(slot).expect("it has begun").clone(), Offset(4));
    assert!(!bench.session.rebased(slot, &here), "others come from elsewhere");
    let ahead = Position { offset: Offset(9), ..here };
    assert!(bench.session.rebased(slot, &ahead), "more was missed than is retained");
    assert_eq!(bench.session.take(slot, Offset(10), Offset(10)), Due::All);
}

#[test]
fn on_a_conflated_channel_what_is_between_does_not_count() {
    let mut bench = Bench::open();
    let slot = bench.live("latest:1", 4);
    assert_eq!(bench.session.take(slot, Offset(9), Offset(9)), Due::All, "the newest of what was missed");
    assert_eq!(bench.session.take(slot, Offset(9), Offset(10)), Due::From(Offset(10)));
    assert!(!bench.session.is_parked(slot));
}

#[test]
fn who_is_left_is_told_of_what_it_asked_before() {
    let mut bench = Bench::open();
    let channel = ChannelName::new("room:1").expect("valid");
    bench.say(2, ClientBody::Publish(publish("room:1", b"x")));
    bench.say(3, ClientBody::Publish(publish("room:1", b"y")));
    bench.session.leave(bench.now, CloseCode::Shutdown, "the node ends");
    bench.drain();
    assert!(!bench.session.wants_input() && !bench.session.is_ended());
    bench.session.published(2, &channel, Ok(Some(position(5))));
    bench.drain();
    assert!(!bench.session.is_ended(), "one is left");
    bench.session.published(3, &channel, Ok(Some(position(6))));
    bench.drain();
    let sent: Vec<_> = bench.sent.iter().map(|frame| frame.id).collect();
    assert_eq!(sent, [2, 3, 0], "answers, then the end");
    assert_eq!(bench.close(), CloseCode::Shutdown.number());
    assert_eq!(bench.session.poll_timeout(), None);
}

#[test]
fn answers_that_do_not_come_are_waited_for_a_second() {
    let mut bench = Bench::open();
    bench.session.leave(bench.now, CloseCode::Shutdown, "the node ends");
    bench.drain();
    assert_eq!(bench.close(), CloseCode::Shutdown.number(), "nothing was asked");

    let mut bench = Bench::open();
    bench.say(2, ClientBody::Publish(publish("room:1", b"x")));
    bench.session.leave(bench.now, CloseCode::Shutdown, "the node ends");
    let until = bench.now + SECOND;
    assert_eq!(bench.session.poll_timeout(), Some(until));
    bench.session.handle_timeout(until);
    bench.drain();
    assert_eq!(bench.close(), CloseCode::Shutdown.number());
}

#[test]
fn done_ends_in_order_and_nothing_is_heard_after() {
    let mut bench = Bench::open();
    bench.say(2, ClientBody::Done(Empty {}));
    assert_eq!(bench.close(), 4000);
    let sent = bench.sent.len();
    bench.subscribe(3, "room:1", None);
    bench.pass(100 * SECOND);
    assert_eq!(bench.sent.len(), sent);
    assert_eq!(bench.session.poll_timeout(), None);
}

mod door;
mod goaway;
mod plan;
mod presence;
mod resume;
