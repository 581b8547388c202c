//! The machine driven by hand.

#![expect(clippy::disallowed_methods, reason = "a test needs some first instant")]

mod goaway;
mod model;
mod moving;
mod outage;
mod presence;

use bytes::Bytes;

use super::*;
use crate::frame::{
    ClientBody, Close, Connected, Empty, Ephemeral, ErrorCode, Payload, Publication, Published, Refreshed,
    Subscribed, Unsubscribed,
};
use crate::{Epoch, Offset, Position};

struct Rig {
    session: Session,
    now: Instant,
    dials: u64,
}

impl Rig {
    fn new() -> Self {
        Self::with_config(Config::default())
    }

    fn with_config(config: Config) -> Self {
        let mut session = Session::new(config, ChaCha8Rng::seed_from_u64(3));
        session.connect(Some("token".to_owned()));
        Self { session, now: Instant::now(), dials: 0 }
    }

    /// Dials, connects, and answers `connected`.
    fn opened() -> Self {
        let mut rig = Self::new();
        rig.open(Connected { ping_ms: 25_000, ..Connected::default() });
        rig
    }

    fn open(&mut self, connected: Connected) -> ClientFrame {
        assert!(self.events().contains(&Event::Dial), "the session wants no connection");
        let connection = self.dial();
        let connect = self.session.poll_transmit_on(self.now, connection).expect("connect").frame;
        self.feed(connect.id, ServerBody::Connected(connected));
        connect
    }

    /// A new connection is there.
    fn dial(&mut self) -> ConnectionId {
        self.dials += 1;
        self.session.connection_opened(self.now, ConnectionId(self.dials));
        ConnectionId(self.dials)
    }

    /// The newest connection.
    fn newest(&self) -> ConnectionId {
        ConnectionId(self.dials)
    }

    fn feed(&mut self, id: u64, body: ServerBody) {
        self.feed_on(self.newest(), id, body);
    }

    fn feed_on(&mut self, connection: ConnectionId, id: u64, body: ServerBody) {
        let frame = ServerFrame::new(id, body);
        self.session.handle_frame(self.now, connection, frame).expect("a frame that may come");
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        self.session.handle_timeout(self.now);
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    fn transmits(&mut self) -> Vec<ClientFrame> {
        std::iter::from_fn(|| self.session.poll_transmit(self.now)).map(|transmit| transmit.frame).collect()
    }

    /// The one frame that is to be sent, and its id.
    fn transmit(&mut self) -> (u64, ClientBody) {
        let mut all = self.transmits();
        assert_eq!(all.len(), 1, "{all:?}");
        let frame = all.remove(0);
        (frame.id, frame.body.expect("a body"))
    }

    /// Subscribes, and answers with `head`.
    fn subscribe(&mut self, name: &str, head: u64) {
        self.session.subscribe(self.now, channel(name), None, SubscribeOptions::default()).expect("taken");
        let (id, body) = self.transmit();
        assert!(matches!(body, ClientBody::Subscribe(_)));
        self.feed(id, subscribed(name, head, false, &[]));
        self.events();
    }

    fn offsets(&mut self) -> Vec<u64> {
        self.events()
            .into_iter()
            .filter_map(|event| match event {
                Event::Publication { position, publication, .. } => {
                    assert_eq!(position.offset.0, publication.offset);
                    Some(publication.offset)
                }
                _ => None,
            })
            .collect()
    }

    /// By the subscription's stream.
    fn publication(&mut self, name: &str, offset: u64) {
        self.publication_of("e", name, offset);
    }

    fn publication_of(&mut self, epoch: &str, name: &str, offset: u64) {
        self.read(&Carrier::Stream(Epoch::new(epoch)), 0, name, offset);
    }

    fn read(&mut self, carrier: &Carrier, id: u64, name: &str, offset: u64) {
        let frame = ServerFrame::new(id, ServerBody::Publication(publication(name, offset)));
        self.read_on(self.newest(), carrier, frame);
    }

    fn read_on(&mut self, connection: ConnectionId, carrier: &Carrier, frame: ServerFrame) {
        self.session.handle_frame_on(self.now, connection, carrier, frame).expect("a frame that may come");
    }

    fn lose(&mut self) {
        self.session.connection_lost(self.now, self.newest(), None, "test");
    }

    /// Waits for the dial after a loss.
    fn wait_for_dial(&mut self) {
        let at = self.session.poll_timeout().expect("a delay");
        self.advance(at.saturating_duration_since(self.now));
    }
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).expect("valid")
}

fn publication(name: &str, offset: u64) -> Publication {
    Publication {
        channel: name.to_owned(),
        offset,
        data_base64: Some(Bytes::from_static(b"x")),
        ..Publication::default()
    }
}

fn subscribed(name: &str, head: u64, recovered: bool, offsets: &[u64]) -> ServerBody {
    ServerBody::Subscribed(Subscribed {
        channel: name.to_owned(),
        position: Some(frame::Position { epoch: "e".to_owned(), offset: head }),
        recovered,
        publications: offsets.iter().map(|offset| publication(name, *offset)).collect(),
        conflated: false,
    })
}

fn close(code: u32, policy: ReconnectPolicy, after_ms: Option<u64>) -> ServerBody {
    ServerBody::Close(Close {
        code,
        reason: "because".to_owned(),
        reconnect: Some(frame::Reconnect { policy: policy.into(), after_ms, slot: None }),
    })
}

fn payload() -> Payload {
    Payload::Json(Bytes::from_static(b"{\"a\":1}"))
}

#[test]
fn connect_goes_first_and_requests_follow_it_without_waiting() {
    let mut rig = Rig::new();
    rig.session.subscribe(rig.now, channel("a"), None, SubscribeOptions::default()).unwrap();
    rig.session.publish(&channel("a"), payload(), None).unwrap();
    rig.session.publish_ephemeral(&channel("a"), payload()).unwrap();
    assert_eq!(rig.transmits(), [], "nothing is sent without a connection");
    rig.events();
    rig.dial();
    let bodies: Vec<_> = rig.transmits().into_iter().filter_map(|frame| frame.body).collect();
    assert!(
        matches!(&bodies[..], [ClientBody::Connect(connect), ClientBody::Subscribe(_), ClientBody::Publish(_)]
            if connect.token.as_deref() == Some("token")),
        "{bodies:?}"
    );
}

#[test]
fn publications_that_overtake_the_answer_are_held() {
    let mut rig = Rig::opened();
    rig.session
        .subscribe(
            rig.now,
            channel("a"),
            Some(Position::new(Epoch::new("e"), Offset(3))),
            SubscribeOptions::default(),
        )
        .unwrap();
    let (id, _) = rig.transmit();
    rig.publication("a", 7);
    rig.publication("a", 6);
    assert_eq!(rig.offsets(), Vec::<u64>::new());
    rig.feed(id, subscribed("a", 5, true, &[4, 5]));
    assert_eq!(rig.offsets(), [4, 5, 6, 7]);
}

#[test]
fn live_publications_that_overtake_catch_up_wait_for_it() {
    let mut rig = Rig::opened();
    rig.session
        .subscribe(
            rig.now,
            channel("a"),
            Some(Position::new(Epoch::new("e"), Offset(0))),
            SubscribeOptions::default(),
        )
        .unwrap();
    let (id, _) = rig.transmit();
    rig.feed(id, subscribed("a", 4, true, &[1]));
    rig.publication("a", 5);
    rig.publication("a", 5);
    rig.publication("a", 2);
    rig.publication("a", 1);
    assert_eq!(rig.offsets(), [1, 2]);
    rig.publication("a", 3);
    rig.publication("a", 4);
    assert_eq!(rig.offsets(), [3, 4, 5]);
    assert_eq!(rig.transmits(), []);
}

#[test]
fn what_comes_by_datagram_and_by_stream_is_delivered_once_by_whichever_is_first() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 1);
    // By datagram; by stream; the next one's repeat overtakes what the stream still lacks.
    for (offset, delivered) in [(2, &[2][..]), (2, &[]), (4, &[]), (3, &[3, 4]), (3, &[]), (4, &[]), (2, &[])]
    {
        rig.publication("a", offset);
        assert_eq!(rig.offsets(), delivered, "{offset}");
    }
    rig.advance(Duration::from_secs(10));
    let asked = rig.transmits();
    let is_probe = |frame: &ClientFrame| matches!(frame.body, Some(ClientBody::Ping(_)));
    assert!(asked.iter().all(is_probe), "no gap is left: {asked:?}");
}

#[test]
fn a_gap_that_stays_is_asked_for_again() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 1);
    rig.publication("a", 2);
    rig.publication("a", 4);
    rig.advance(Duration::from_secs(9));
    assert_eq!(rig.transmits(), []);
    rig.advance(Duration::from_secs(1));
    let (id, body) = rig.transmit();
    assert!(matches!(body, ClientBody::Unsubscribe(_)));
    rig.feed(id, ServerBody::Unsubscribed(Unsubscribed { channel: "a".to_owned(), error: None }));
    let (id, body) = rig.transmit();
    let ClientBody::Subscribe(subscribe) = body else { panic!("{body:?}") };
    assert_eq!(subscribe.position, Some(frame::Position { epoch: "e".to_owned(), offset: 2 }));
    rig.feed(id, subscribed("a", 4, true, &[3, 4]));
    assert_eq!(rig.offsets(), [2, 3, 4]);
}

#[test]
fn a_full_hold_buffer_subscribes_again_from_the_last_position() {
    let mut rig = Rig::with_config(Config { max_held: 3, ..Config::default() });
    rig.open(Connected::default());
    rig.subscribe("a", 10);
    for offset in 12..15 {
        rig.publication("a", offset);
    }
    assert_eq!(rig.transmits(), []);
    rig.publication("a", 15);
    let (id, body) = rig.transmit();
    assert!(matches!(body, ClientBody::Unsubscribe(_)));
    // What still comes in order counts.
    rig.publication("a", 11);
    rig.feed(id, ServerBody::Unsubscribed(Unsubscribed { channel: "a".to_owned(), error: None }));
    let (id, body) = rig.transmit();
    assert!(
        matches!(body, ClientBody::Subscribe(subscribe) if subscribe.position.as_ref().unwrap().offset == 11)
    );
    rig.feed(id, subscribed("a", 15, true, &[12, 13, 14, 15]));
    assert_eq!(rig.offsets(), [11, 12, 13, 14, 15]);
}

#[test]
fn a_rebase_is_told_and_goes_on_from_the_new_position() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 10);
    rig.publication("a", 52);
    rig.feed(0, subscribed("a", 50, false, &[]));
    rig.publication("a", 51);
    let events = rig.events();
    assert!(
        matches!(&events[0], Event::Subscribed { recovered: false, was_recovering: true, position, .. }
            if position.offset == Offset(50)),
        "{events:?}"
    );
    let offsets = events.iter().filter_map(|event| match event {
        Event::Publication { position, .. } => Some(position.offset.0),
        _ => None,
    });
    assert_eq!(offsets.collect::<Vec<_>>(), [51, 52]);
}

/// `subscribed` without an id, for another epoch.
fn rebased(epoch: &str, offset: u64) -> ServerBody {
    ServerBody::Subscribed(Subscribed {
        channel: "a".to_owned(),
        position: Some(frame::Position { epoch: epoch.to_owned(), offset }),
        ..Subscribed::default()
    })
}

#[test]
fn publications_of_another_epoch_wait_to_be_told_of_it_or_are_dropped() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 10);
    // The gap is of the epoch that ends; what overtook the news of the next one is kept.
    rig.publication("a", 12);
    rig.publication_of("other", "a", 3);
    rig.publication_of("third", "a", 1);
    rig.publication_of("other", "a", 2);
    assert_eq!(rig.offsets(), Vec::<u64>::new());
    rig.feed(0, rebased("other", 1));
    assert_eq!(rig.offsets(), [2, 3]);
    // Late, of the old stream: next by its number.
    rig.publication("a", 4);
    assert_eq!(rig.offsets(), Vec::<u64>::new());
    rig.publication_of("other", "a", 4);
    rig.feed(0, rebased("third", 0));
    rig.publication_of("other", "a", 2);
    rig.publication_of("third", "a", 2);
    assert_eq!(rig.offsets(), [4, 1, 2]);
    assert_eq!(rig.transmits(), [], "nothing had to be asked for");
}

#[test]
fn a_datagram_counts_where_it_bears_the_mark_of_the_epoch() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 10);
    let mark = |epoch: &str| u64::from(Epoch::new(epoch).mark());
    rig.read(&Carrier::Datagram, mark("e"), "a", 11);
    rig.read(&Carrier::Datagram, 0, "a", 12);
    assert_eq!(rig.offsets(), [11], "without a mark it may be of any");
    rig.read(&Carrier::Datagram, mark("other"), "a", 6);
    rig.feed(0, rebased("other", 5));
    rig.read(&Carrier::Datagram, mark("e"), "a", 7);
    assert_eq!(rig.offsets(), [6]);
    rig.publication_of("other", "a", 7);
    assert_eq!(rig.offsets(), [7]);
}

#[test]
fn what_does_not_fit_before_the_news_of_its_epoch_is_asked_for() {
    let mut rig = Rig::with_config(Config { max_held: 3, ..Config::default() });
    rig.open(Connected::default());
    rig.subscribe("a", 10);
    for offset in 1..=4 {
        rig.publication_of("other", "a", offset);
    }
    assert_eq!(rig.transmits(), []);
    rig.feed(0, rebased("other", 0));
    assert_eq!(rig.offsets(), [1, 2, 3]);
    assert!(matches!(rig.transmit().1, ClientBody::Unsubscribe(_)));
}

#[test]
fn on_the_control_lane_order_tells_the_epoch() {
    let mut rig = Rig::opened();
    rig.session
        .subscribe(
            rig.now,
            channel("a"),
            Some(Position::new(Epoch::new("e"), Offset(3))),
            SubscribeOptions::default(),
        )
        .unwrap();
    let (id, _) = rig.transmit();
    // Of a subscription that the server had begun by itself: it comes again.
    rig.read(&Carrier::Control, 0, "a", 4);
    rig.feed(0, rebased("other", 7));
    rig.read(&Carrier::Control, 0, "a", 8);
    rig.feed(id, rebased("other", 8));
    rig.read(&Carrier::Control, 0, "a", 9);
    rig.feed(0, rebased("third", 0));
    rig.read(&Carrier::Control, 0, "a", 1);
    assert_eq!(rig.offsets(), [9, 1]);
    assert_eq!(rig.transmits(), []);
}

#[test]
fn conflated_channels_skip() {
    let mut rig = Rig::opened();
    rig.session.subscribe(rig.now, channel("a"), None, SubscribeOptions::default()).unwrap();
    let (id, _) = rig.transmit();
    let ServerBody::Subscribed(mut answer) = subscribed("a", 4, false, &[]) else { unreachable!() };
    answer.conflated = true;
    rig.feed(id, ServerBody::Subscribed(answer));
    for offset in [9, 7, 12, 12] {
        rig.publication("a", offset);
    }
    assert_eq!(rig.offsets(), [9, 12]);
    rig.advance(Duration::from_secs(20));
    assert!(matches!(rig.transmit().1, ClientBody::Ping(_)), "what is skipped is not asked for");
}

#[test]
fn a_new_connection_takes_up_everything_from_where_it_was() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 10);
    rig.publication("a", 11);
    let first = rig.session.publish(&channel("a"), payload(), None).unwrap();
    let second = rig.session.publish(&channel("a"), payload(), Some("mine".to_owned())).unwrap();
    let sent = rig.transmits();
    rig.lose();
    let events = rig.events();
    assert!(
        matches!(&events[..], [Event::Publication { .. }, Event::Closed { code: 4108, .. }, Event::Reconnect { delay }]
            if *delay < Duration::from_secs(1)),
        "{events:?}"
    );
    rig.wait_for_dial();
    rig.open(Connected::default());
    let again = rig.transmits();
    assert!(
        matches!(&again[0].body, Some(ClientBody::Subscribe(subscribe))
            if subscribe.position == Some(frame::Position { epoch: "e".to_owned(), offset: 11 })),
        "{again:?}"
    );
    assert_eq!(again[1..], sent, "the same keys and ids, in the same order");
    let keys: Vec<_> = sent
        .iter()
        .map(|frame| match &frame.body {
            Some(ClientBody::Publish(publish)) => {
                publish.key.clone().expect("every durable publish has a key")
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((keys[0].len(), keys[1].as_str()), (32, "mine"));
    rig.events();
    for frame in &sent {
        let position = Some(frame::Position { epoch: "e".to_owned(), offset: frame.id });
        rig.feed(frame.id, ServerBody::Published(Published { channel: "a".to_owned(), position }));
        // Twice answered is once told.
        rig.feed(frame.id, ServerBody::Published(Published::default()));
    }
    let done: Vec<_> = rig
        .events()
        .into_iter()
        .map(|event| match event {
            Event::Published { request, result } => (request, result.unwrap().offset.0),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(done, [(first, sent[0].id), (second, sent[1].id)]);
}

#[test]
fn a_publish_is_not_repeated_once_its_key_may_be_forgotten() {
    let mut rig = Rig::opened();
    let request = rig.session.publish(&channel("a"), payload(), None).unwrap();
    rig.transmits();
    rig.now += Duration::from_secs(240);
    rig.lose();
    assert!(rig.events().contains(&Event::Published { request, result: Err(RequestError::Unanswered) }));
}

#[test]
fn pings_are_answered_and_silence_ends_the_connection() {
    let mut rig = Rig::opened();
    rig.advance(Duration::from_secs(49));
    rig.feed(0, ServerBody::Ping(frame::Ping::default()));
    assert_eq!(rig.transmit(), (0, ClientBody::Pong(Empty {})));
    rig.advance(Duration::from_secs(49));
    rig.session.handle_activity(rig.now, rig.newest());
    rig.advance(Duration::from_secs(49));
    rig.events();
    rig.advance(Duration::from_secs(1));
    let events = rig.events();
    assert!(matches!(events[..], [Event::Closed { code: 4108, .. }, Event::Reconnect { .. }]), "{events:?}");
}

#[test]
fn close_policies_are_followed() {
    let mut rig = Rig::opened();
    rig.events();
    rig.feed(0, close(4200, ReconnectPolicy::Now, None));
    assert!(matches!(
        rig.events()[..],
        [Event::Closed { code: 4200, .. }, Event::Reconnect { delay: Duration::ZERO }, Event::Dial]
    ));
    // Told so twice in a row, it does not come back at once: that would be a loop.
    rig.dial();
    rig.transmits();
    rig.feed(0, close(4200, ReconnectPolicy::Now, None));
    assert!(
        matches!(rig.events()[..], [Event::Closed { .. }, Event::Reconnect { delay }] if !delay.is_zero())
    );
    rig.wait_for_dial();
    rig.events();
    rig.dial();
    rig.feed(0, close(4101, ReconnectPolicy::Backoff, Some(90_000)));
    assert!(
        matches!(rig.events()[..], [Event::Closed { .. }, Event::Reconnect { delay }] if delay == Duration::from_secs(90))
    );
    rig.wait_for_dial();
    rig.events();
    // A transport's own close does as well as the frame.
    rig.session.connection_lost(rig.now, ConnectionId(99), Some(4006), "origin");
    let events = rig.events();
    assert!(
        matches!(&events[..], [Event::Closed { code: 4006, .. }, Event::Ended { code: 4006, .. }]),
        "{events:?}"
    );
    assert_eq!(
        rig.session.subscribe(rig.now, channel("a"), None, SubscribeOptions::default()),
        Err(CommandError::Ended)
    );
    assert_eq!(rig.session.poll_timeout(), None);
}

#[test]
fn a_refused_token_is_replaced_before_the_next_connection() {
    let mut rig = Rig::opened();
    rig.events();
    rig.feed(0, close(4005, ReconnectPolicy::FreshToken, None));
    assert!(matches!(rig.events()[..], [Event::Closed { .. }, Event::NeedToken(TokenNeed::Refused)]));
    rig.session.token_unavailable(rig.now);
    rig.wait_for_dial();
    assert_eq!(rig.events(), [Event::NeedToken(TokenNeed::Refused)]);
    rig.session.refresh(rig.now, "second".to_owned()).unwrap();
    let connect = rig.open(Connected::default());
    assert!(
        matches!(connect.body, Some(ClientBody::Connect(connect)) if connect.token.as_deref() == Some("second"))
    );
    // Refused again at once: the next attempt waits.
    rig.feed(0, close(4004, ReconnectPolicy::FreshToken, None));
    rig.session.refresh(rig.now, "third".to_owned()).unwrap();
    assert!(matches!(rig.events().last(), Some(Event::Reconnect { delay }) if !delay.is_zero()));
}

#[test]
fn a_token_is_asked_for_before_it_expires_and_kept_when_taken() {
    let mut rig = Rig::new();
    rig.open(Connected { expires_ms: Some(600_000), ping_ms: 0, ..Connected::default() });
    rig.events();
    rig.advance(Duration::from_secs(539));
    assert_eq!(rig.events(), []);
    rig.advance(Duration::from_secs(1));
    assert_eq!(rig.events(), [Event::NeedToken(TokenNeed::Expiring)]);
    let request = rig.session.refresh(rig.now, "new".to_owned()).unwrap();
    let (id, body) = rig.transmit();
    assert!(matches!(body, ClientBody::Refresh(refresh) if refresh.token == "new"));
    rig.feed(id, ServerBody::Refreshed(Refreshed { expires_ms: Some(100_000) }));
    assert_eq!(rig.events(), [Event::Refreshed { request, result: Ok(()) }]);
    rig.advance(Duration::from_secs(75));
    assert_eq!(rig.events(), [Event::NeedToken(TokenNeed::Expiring)]);
    rig.lose();
    rig.wait_for_dial();
    let connect = rig.open(Connected::default());
    assert!(
        matches!(connect.body, Some(ClientBody::Connect(connect)) if connect.token.as_deref() == Some("new"))
    );
}

#[test]
fn subscriptions_that_the_server_begins_are_told_resumed_and_adopted() {
    let mut rig = Rig::new();
    assert!(rig.events().contains(&Event::Dial));
    rig.dial();
    let connect = rig.session.poll_transmit(rig.now).unwrap().frame;
    // Its publications may overtake `connected`, which names it.
    rig.publication("user:1", 8);
    let ServerBody::Subscribed(begun) = subscribed("user:1", 7, false, &[]) else { unreachable!() };
    rig.feed(
        connect.id,
        ServerBody::Connected(Connected { subscriptions: vec![begun.clone()], ..Connected::default() }),
    );
    let events = rig.events();
    assert!(
        matches!(
            &events[..],
            [
                Event::Connected { .. },
                Event::Subscribed { server: true, was_recovering: false, .. },
                Event::Publication { .. },
            ]
        ),
        "{events:?}"
    );
    rig.session.subscribe(rig.now, channel("user:1"), None, SubscribeOptions::default()).unwrap();
    assert!(matches!(rig.events()[..], [Event::Subscribed { server: false, .. }]));
    assert_eq!(
        rig.session.subscribe(rig.now, channel("user:1"), None, SubscribeOptions::default()),
        Err(CommandError::AlreadySubscribed)
    );
    rig.lose();
    rig.wait_for_dial();
    rig.open(Connected {
        subscriptions: vec![Subscribed {
            position: Some(frame::Position { epoch: "e".to_owned(), offset: 9 }),
            ..begun
        }],
        ..Connected::default()
    });
    rig.publication("user:1", 10);
    let (id, body) = rig.transmit();
    assert!(
        matches!(body, ClientBody::Subscribe(subscribe) if subscribe.position.as_ref().unwrap().offset == 8)
    );
    rig.events();
    rig.feed(id, subscribed("user:1", 9, true, &[9]));
    assert_eq!(rig.offsets(), [9, 10]);
}

#[test]
fn leaving_silences_a_channel_at_once_and_joining_again_waits_for_it() {
    let mut rig = Rig::opened();
    rig.subscribe("a", 1);
    rig.session.unsubscribe(&channel("a")).unwrap();
    let (left, _) = rig.transmit();
    rig.publication("a", 2);
    rig.feed(0, ServerBody::Ephemeral(Ephemeral { channel: "a".to_owned(), ..Ephemeral::default() }));
    assert_eq!(rig.events(), []);
    rig.session.subscribe(rig.now, channel("a"), None, SubscribeOptions::default()).unwrap();
    assert_eq!(rig.transmits(), []);
    rig.feed(left, ServerBody::Unsubscribed(Unsubscribed { channel: "a".to_owned(), error: None }));
    let (id, _) = rig.transmit();
    rig.feed(id, subscribed("a", 2, false, &[]));
    rig.publication("a", 3);
    assert_eq!(rig.offsets(), [3]);
    rig.session.unsubscribe(&channel("a")).unwrap();
    let (left, _) = rig.transmit();
    rig.feed(left, ServerBody::Unsubscribed(Unsubscribed { channel: "a".to_owned(), error: None }));
    assert_eq!(rig.events(), [Event::Unsubscribed { channel: channel("a"), error: None }]);
    assert_eq!(rig.session.unsubscribe(&channel("a")), Err(CommandError::NotSubscribed));
}

#[test]
fn a_refused_subscription_ends_unless_the_server_says_later() {
    let mut rig = Rig::opened();
    rig.events();
    rig.session.subscribe(rig.now, channel("a"), None, SubscribeOptions::default()).unwrap();
    let (id, _) = rig.transmit();
    rig.feed(id, ServerBody::Error(ErrorCode::Unavailable.reply("busy")));
    assert_eq!((rig.events(), rig.transmits()), (vec![], vec![]));
    rig.wait_for_dial();
    let (id, _) = rig.transmit();
    let refused = ErrorCode::Forbidden.reply("no");
    rig.feed(id, ServerBody::Error(refused.clone()));
    assert_eq!(rig.events(), [Event::Unsubscribed { channel: channel("a"), error: Some(refused) }]);
}

#[test]
fn bounds_are_kept() {
    let config = Config {
        max_requests: 2,
        max_in_flight: 1,
        max_ephemeral: 2,
        max_subscriptions: 1,
        max_payload: 8,
        ..Config::default()
    };
    let mut rig = Rig::with_config(config);
    rig.open(Connected::default());
    let name = channel("a");
    rig.session.publish(&name, payload(), None).unwrap();
    rig.session.history(&name, None, 0).unwrap();
    assert!(!rig.session.has_room());
    assert_eq!(rig.session.publish(&name, payload(), None), Err(CommandError::TooManyRequests));
    let (id, _) = rig.transmit();
    assert!(!rig.session.wants_transmit(rig.newest()), "one request in flight");
    rig.feed(id, ServerBody::Error(ErrorCode::Forbidden.reply("no")));
    assert!(rig.session.wants_transmit(rig.newest()));
    rig.transmit();
    for offset in 0..3 {
        rig.session.publish_ephemeral(&name, Payload::Json(Bytes::from(offset.to_string()))).unwrap();
    }
    let sent: Vec<_> = rig
        .transmits()
        .into_iter()
        .map(|frame| match frame.body {
            Some(ClientBody::Publish(publish)) => publish.data.unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sent, ["1", "2"], "the oldest was dropped");
    rig.session.subscribe(rig.now, name.clone(), None, SubscribeOptions::default()).unwrap();
    assert_eq!(
        rig.session.subscribe(rig.now, channel("b"), None, SubscribeOptions::default()),
        Err(CommandError::TooManySubscriptions)
    );
    let binary = |bytes: usize| Payload::Binary(Bytes::from(vec![0; bytes]));
    assert_eq!(
        rig.session.publish(&name, binary(9), None),
        Err(CommandError::TooLarge { bytes: 9, limit: 8 })
    );
    let bad = Payload::Json(Bytes::from_static(b"{]"));
    assert_eq!(rig.session.publish_ephemeral(&name, bad), Err(CommandError::BadJson));
    assert_eq!(rig.session.publish(&name, binary(1), Some("k".repeat(129))), Err(CommandError::BadKey));
}

#[test]
fn closing_says_done_and_waits_a_bounded_time() {
    let mut rig = Rig::opened();
    let request = rig.session.publish(&channel("a"), payload(), None).unwrap();
    rig.events();
    rig.session.close(rig.now);
    assert_eq!(rig.transmit(), (0, ClientBody::Done(Empty {})));
    assert_eq!(rig.events(), [Event::Published { request, result: Err(RequestError::Ended) }]);
    rig.feed(0, close(4000, ReconnectPolicy::Never, None));
    assert!(matches!(rig.events()[..], [Event::Closed { code: 4000, .. }, Event::Ended { code: 4000, .. }]));

    let mut rig = Rig::opened();
    rig.events();
    rig.session.close(rig.now);
    rig.advance(Duration::from_secs(5));
    assert!(matches!(rig.events()[..], [Event::Ended { code: 4000, .. }]));
}

#[test]
fn a_server_that_breaks_the_rules_is_an_error_not_a_panic() {
    let mut rig = Rig::opened();
    let again = ServerFrame::new(9, ServerBody::Connected(Connected::default()));
    assert_eq!(
        rig.session.handle_frame(rig.now, ConnectionId(1), again),
        Err(SessionError::AlreadyConnected)
    );
    let request = rig.session.publish(&channel("a"), payload(), None).unwrap();
    let (id, _) = rig.transmit();
    rig.events();
    let wrong = ServerFrame::new(id, ServerBody::Published(Published::default()));
    assert_eq!(rig.session.handle_frame(rig.now, ConnectionId(1), wrong), Err(SessionError::WrongAnswer));
    assert_eq!(rig.events(), [Event::Published { request, result: Err(RequestError::Unanswered) }]);
    rig.session.subscribe(rig.now, channel("a"), None, SubscribeOptions::default()).unwrap();
    let (id, _) = rig.transmit();
    let wrong = ServerFrame::new(id, ServerBody::Subscribed(Subscribed::default()));
    assert!(matches!(
        rig.session.handle_frame(rig.now, ConnectionId(1), wrong),
        Err(SessionError::Malformed(_))
    ));
    rig.session.handle_frame(rig.now, ConnectionId(1), ServerFrame { id: 0, body: None }).unwrap();
}
