//! Tickets: resuming with one, giving them out, moving on.

use super::*;
use crate::frame::Ping;

const LIFETIME: Duration = Duration::from_secs(600);

impl Bench {
    /// A server that issues tickets.
    fn issuing() -> Self {
        Self::new(|settings| settings.tickets = Some(LIFETIME), None)
    }

    fn admit(&mut self, identity: Identity) {
        self.say(1, ClientBody::Connect(Connect::default()));
        self.session.admit(self.now, identity);
        self.drain();
    }

    fn issue(&mut self, text: &str) {
        assert!(self.take(|event| matches!(event, Event::Issue)), "{:?}", self.asked);
        assert!(self.session.ticket(self.now, 0, 0).is_some());
        self.session.issued(self.now, Some(text.to_owned()));
        self.drain();
    }

    fn try_resume(&mut self, key: Option<&str>) {
        let connect = Connect {
            token: Some("ignored".to_owned()),
            resume: Some("ticket".to_owned()),
            key: key.map(str::to_owned),
            ..Connect::default()
        };
        self.say(1, ClientBody::Connect(connect));
    }

    fn resumed(identity: Identity) -> Self {
        let mut bench = Self::issuing();
        bench.try_resume(Some("k"));
        assert!(bench.take(|event| matches!(event, Event::Resume { ticket, key: Some(key) } if ticket == "ticket" && key == "k")));
        let resumption = Resumption { session: SessionId::from_bytes([5; 16]), generation: 3, identity };
        bench.session.resume(bench.now, resumption);
        bench.drain();
        bench
    }

    fn take(&mut self, fits: impl Fn(&Event) -> bool) -> bool {
        let found = self.asked.iter().position(fits);
        found.map(|index| self.asked.remove(index)).is_some()
    }

    fn pings(&mut self) -> Vec<Option<String>> {
        let sent = std::mem::take(&mut self.sent);
        let pings = sent.into_iter().filter_map(|frame| match frame.body {
            Some(ServerBody::Ping(Ping { resume, .. })) => Some(resume),
            _ => None,
        });
        pings.collect()
    }

    fn closed(&self) -> Option<u32> {
        self.sent.iter().find_map(|frame| match &frame.body {
            Some(ServerBody::Close(close)) => Some(close.code),
            _ => None,
        })
    }

    fn connected(&self) -> &Connected {
        let bodies = self.sent.iter().filter_map(|frame| frame.body.as_ref());
        let connected = bodies.filter_map(|body| match body {
            ServerBody::Connected(connected) => Some(connected),
            _ => None,
        });
        connected.last().expect("connected was sent")
    }
}

fn ann(bench: &Bench) -> Identity {
    let grants = Grants { subscribe: vec![ChannelPattern::new("secret:*")], ..Grants::default() };
    Identity {
        user: Some("ann".into()),
        grants: Arc::new(grants),
        subscriptions: vec![ChannelName::new("user:ann").expect("valid")],
        expires: Some(bench.now + 90 * SECOND),
    }
}

#[test]
fn connected_waits_for_the_ticket_and_brings_it() {
    let mut bench = Bench::issuing();
    bench.admit(Identity::anonymous());
    assert!(bench.sent.is_empty(), "{:?}", bench.sent);
    bench.issue("first");
    assert_eq!(bench.connected().resume.as_deref(), Some("first"));
    assert!(!bench.connected().resumed);
}

#[test]
fn a_ticket_says_what_the_session_is() {
    let mut bench = Bench::issuing();
    let identity = ann(&bench);
    bench.admit(identity.clone());
    let ticket = bench.session.ticket(bench.now, 1_000_000, 7).expect("one is issued");
    assert_eq!((ticket.session, ticket.generation, ticket.worker), (bench.session.id(), 0, 7));
    assert_eq!((ticket.token_expires_ms, ticket.expires_ms), (Some(1_090_000), 1_600_000));
    let back = ticket.identity(bench.now + SECOND, 1_001_000).expect("the token lives");
    assert_eq!(back.user, identity.user);
    assert_eq!(back.grants, identity.grants);
    assert_eq!(back.subscriptions, identity.subscriptions);
    assert_eq!(back.expires, identity.expires);
}

#[test]
fn without_a_ticket_it_opens_all_the_same() {
    let mut bench = Bench::issuing();
    bench.admit(Identity::anonymous());
    bench.session.issued(bench.now, None);
    bench.drain();
    assert_eq!(bench.connected().resume, None);
}

#[test]
fn half_a_life_later_a_ping_brings_a_fresher_one_and_awaits_its_pong() {
    let mut bench = Bench::issuing();
    bench.admit(Identity::anonymous());
    bench.issue("first");
    for _ in 0..11 {
        bench.pass(25 * SECOND);
        bench.say(0, ClientBody::Pong(Empty {}));
    }
    assert_eq!(bench.pings(), vec![None; 11]);
    bench.pass(20 * SECOND);
    assert!(!bench.asked.iter().any(|event| matches!(event, Event::Issue)), "too early");
    bench.pass(5 * SECOND);
    // Both are due now.
    bench.issue("second");
    assert_eq!(bench.pings(), [None, Some("second".to_owned())]);
    bench.pass(10 * SECOND);
    assert_eq!(bench.closed(), Some(4103), "no pong came");
}

#[test]
fn where_polling_is_the_heartbeat_no_pong_is_awaited() {
    let mut bench = Bench::issuing();
    bench.session.heartbeats = false;
    bench.admit(Identity::anonymous());
    bench.issue("first");
    assert_eq!(bench.session.poll_timeout(), Some(bench.now + LIFETIME / 2));
    bench.pass(LIFETIME / 2);
    bench.issue("second");
    assert_eq!(bench.pings(), [Some("second".to_owned())]);
    bench.pass(60 * SECOND);
    assert_eq!(bench.closed(), None);
    bench.say(0, ClientBody::Pong(Empty {}));
    assert!(!bench.session.is_ended());
}

#[test]
fn a_refreshed_token_is_in_a_ticket_at_once() {
    let mut bench = Bench::issuing();
    bench.admit(Identity::anonymous());
    bench.issue("first");
    bench.say(5, ClientBody::Refresh(Refresh { token: "t".to_owned() }));
    let new = Identity { expires: Some(bench.now + 50 * SECOND), ..Identity::anonymous() };
    bench.session.refreshed(bench.now, 5, Ok(new));
    assert_eq!(bench.session.poll_timeout(), Some(bench.now));
    bench.pass(Duration::ZERO);
    let ticket = bench.session.ticket(bench.now, 0, 0).expect("open");
    assert_eq!(ticket.token_expires_ms, Some(50_000));
    bench.issue("second");
    assert_eq!(bench.pings(), [Some("second".to_owned())]);
}

#[test]
fn a_resumed_session_keeps_its_id_and_goes_on_in_the_next_generation() {
    let mut bench = Bench::resumed(Identity::anonymous());
    bench.issue("next");
    let id = SessionId::from_bytes([5; 16]);
    let connected = bench.connected();
    assert!(connected.resumed && connected.session == id.to_string());
    assert_eq!(bench.session.id(), id);
    assert_eq!(bench.session.ticket(bench.now, 0, 0).expect("open").generation, 3);
}

#[test]
fn behind_a_resume_the_token_s_subscriptions_can_be_taken_over_in_the_same_flight() {
    let identity = ann(&Bench::issuing());
    let mut bench = Bench::resumed(identity);
    assert!(!bench.session.wants_input(), "what follows waits");
    bench.issue("next");
    assert!(!bench.session.wants_input());
    let (slot, ask) = bench.asked_for();
    let recovery = |head| {
        Ok(Recovery {
            position: Position::new(Epoch::default(), Offset(head)),
            recovered: true,
            publications: Vec::new(),
        })
    };
    bench.session.recovered(bench.now, slot, ask, recovery(5), BUDGET);
    bench.drain();
    assert_eq!(bench.connected().subscriptions.len(), 1);
    assert!(bench.session.wants_input());
    bench.subscribe(2, "user:ann", Some(Position::new(Epoch::default(), Offset(3))));
    let (again, ask) = bench.asked_for();
    assert_eq!(again, slot);
    bench.session.recovered(bench.now, slot, ask, recovery(5), BUDGET);
    bench.drain();
    assert!(matches!(bench.sent.last(), Some(ServerFrame { id: 2, body: Some(ServerBody::Subscribed(_)) })));
}

#[test]
fn a_ticket_is_checked_without_a_look_at_the_token_beside_it() {
    let mut bench = Bench::issuing();
    bench.try_resume(None);
    assert!(bench.take(|event| matches!(event, Event::Resume { key: None, .. })));
    assert!(!bench.take(|event| matches!(event, Event::Authenticate { .. })));
    assert!(!bench.session.wants_input());
    bench.session.refuse(CloseCode::ResumeExpired, "too old");
    bench.drain();
    assert_eq!(bench.closed(), Some(4201));
}

#[test]
fn resumes_that_cannot_be_are_refused_at_once() {
    let mut bench = Bench::new(|_| (), None);
    bench.try_resume(None);
    assert_eq!(bench.closed(), Some(4202), "no tickets here");
    let mut bench = Bench::issuing();
    bench.try_resume(Some(&"k".repeat(129)));
    assert_eq!(bench.closed(), Some(4008));
    let mut bench = Bench::issuing();
    bench.try_resume(Some(&"k".repeat(128)));
    assert_eq!(bench.closed(), None);
}

#[test]
fn a_core_that_says_nothing_is_reported_again_and_again() {
    let mut bench = Bench::issuing();
    bench.try_resume(None);
    for _ in 0..3 {
        assert_eq!(bench.session.poll_timeout(), Some(bench.now + 2 * SECOND));
        bench.pass(2 * SECOND);
        assert!(bench.take(|event| matches!(event, Event::Unanswered)));
    }
    assert_eq!(bench.closed(), None);
}

#[test]
fn as_early_data_only_a_resume_and_subscribes_are_taken() {
    let early = |bench: &mut Bench, body| {
        let result = bench.session.handle_early_frame(bench.now, ClientFrame::new(1, body));
        bench.drain();
        result
    };
    let mut bench = Bench::issuing();
    let connect = |resume: Option<&str>| {
        ClientBody::Connect(Connect { resume: resume.map(str::to_owned), ..Connect::default() })
    };
    assert_eq!(early(&mut bench, connect(None)), Err(SessionError::NotEarly));
    assert_eq!(early(&mut bench, connect(Some("ticket"))), Ok(()));
    let mut bench = Bench::resumed(Identity::anonymous());
    bench.issue("next");
    let subscribe = Subscribe { channel: "room:1".to_owned(), ..Subscribe::default() };
    assert_eq!(early(&mut bench, ClientBody::Subscribe(subscribe)), Ok(()));
    let publish = Publish { channel: "room:1".to_owned(), ..Publish::default() };
    for body in [
        ClientBody::Publish(publish),
        ClientBody::Ping(Empty {}),
        ClientBody::Done(Empty {}),
        ClientBody::Refresh(Refresh::default()),
        ClientBody::Unsubscribe(Unsubscribe::default()),
    ] {
        let error = early(&mut bench, body).expect_err("not early");
        assert_eq!((error.clone(), error.close_code().number()), (SessionError::NotEarly, 4003));
    }
}

#[test]
fn a_superseded_connection_goes_on_for_the_grace_and_gives_out_no_ticket() {
    let mut bench = Bench::issuing();
    bench.admit(Identity::anonymous());
    bench.issue("first");
    bench.session.supersede(bench.now);
    bench.pass(10 * SECOND);
    // A second notice does not prolong it.
    bench.session.supersede(bench.now);
    bench.subscribe(2, "room:1", None);
    bench.pass(19 * SECOND);
    assert_eq!(bench.closed(), None);
    bench.pass(SECOND);
    assert_eq!(bench.closed(), Some(4009));

    let mut bench = Bench::issuing();
    bench.admit(Identity::anonymous());
    bench.issue("first");
    bench.session.supersede(bench.now);
    bench.say(2, ClientBody::Done(Empty {}));
    assert_eq!(bench.closed(), Some(4000));
}

#[test]
fn superseded_while_it_opens_it_opens_without_a_ticket() {
    let mut bench = Bench::issuing();
    bench.admit(Identity::anonymous());
    bench.session.supersede(bench.now);
    bench.issue("first");
    assert_eq!(bench.connected().resume, None);
    bench.pass(30 * SECOND);
    assert_eq!(bench.closed(), Some(4009));
}
