//! Coming back: where a place is kept, and where the plan says.

use std::time::Duration;

use quinn::{Endpoint, VarInt};
use tidegate_protocol::frame::{
    ClientBody, Close, CloseCode, Goaway, Reconnect, ReconnectPolicy, ServerBody, ServerFrame,
};
use tidegate_protocol::hint::Hint;
use tidegate_protocol::plan::{Alternative, ReconnectPlan};
use tidegate_transport::clock;

use super::quic::{self, Peer};
use super::{Gateway, disconnected, soon};
use crate::{Client, ClientEvent, Events};

/// As base64url, 20 bytes.
const TICKET: &str = "4QABAgMEBQYHCAkKCwwNDg8QERI";

/// Answers `connect`; what it showed.
async fn greet(peer: &mut Peer, gateway: &mut Gateway) -> Option<String> {
    let frame = peer.next().await.unwrap();
    let Some(ClientBody::Connect(connect)) = frame.body.clone() else { panic!("{frame:?}") };
    let (answer, _) = gateway.handle(frame);
    peer.answer(answer.unwrap()).await;
    connect.slot
}

/// The connection id that a client chose for its first packet, and its connection.
async fn accept(endpoint: &Endpoint) -> (Vec<u8>, Peer) {
    let incoming = endpoint.accept().await.unwrap();
    let id = incoming.orig_dst_cid().to_vec();
    (id, Peer::of(incoming.await.unwrap()).await)
}

/// Waits until the client is connected again, whatever else comes before.
async fn back(events: &mut Events) {
    loop {
        match soon(events.next()).await.expect("an event") {
            ClientEvent::Connected { .. } => return,
            ClientEvent::Closed { .. } => panic!("closed"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_ticket_of_a_refusal_is_shown_as_the_first_connection_id_and_in_connect() {
    let (endpoint, url, hash) = quic::server();
    let serve = async {
        let mut gateway = Gateway::default();
        let (id, mut peer) = accept(&endpoint).await;
        assert_eq!((id.len(), id[0]), (20, 0xe0), "no ticket, and it reads refusals");
        assert_eq!(greet(&mut peer, &mut gateway).await, None);
        peer.next().await.unwrap();
        let reconnect = Reconnect {
            policy: ReconnectPolicy::Backoff.into(),
            after_ms: Some(50),
            slot: Some(TICKET.to_owned()),
        };
        let close = Close { code: 4101, reason: String::new(), reconnect: Some(reconnect) };
        peer.answer(ServerFrame::new(0, ServerBody::Close(close))).await;
        let (id, mut peer) = accept(&endpoint).await;
        assert_eq!(Some(&id[..]), Hint::ticket_bytes(TICKET).as_ref().map(|bytes| &bytes[..]));
        assert_eq!(greet(&mut peer, &mut gateway).await.as_deref(), Some(TICKET));
        // The same by the transport's own close alone.
        peer.next().await.unwrap();
        peer.connection().close(VarInt::from_u32(CloseCode::Overloaded.number()), b"ra=20;t=x");
        let (id, mut peer) = accept(&endpoint).await;
        assert_eq!(id[0], 0xe0, "a ticket of another length is none");
        assert_eq!(greet(&mut peer, &mut gateway).await.as_deref(), Some("x"));
        while peer.next().await.is_some() {}
    };
    let client = async {
        let client = Client::builder(url).with_certificate_hash(hash.to_string());
        let client = soon(client.connect()).await.unwrap();
        let mut events = client.take_events().unwrap();
        let _room = client.subscribe("room").await.unwrap();
        for shown in ["", "ra=20;t=(hidden)"] {
            assert_eq!(disconnected(&mut events).await, (4101, shown.to_owned()));
        }
        back(&mut events).await;
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}

#[tokio::test]
async fn who_is_lost_goes_where_the_plan_says() {
    let (first, url, first_hash) = quic::server();
    let (second, other, second_hash) = quic::server();
    let host = other.strip_prefix("quic://").unwrap().to_owned();
    let serve = async {
        let alternatives = vec![Alternative { host, weight: 1, elsewhere: false }];
        let plan = ReconnectPlan { epoch: 1, node_ms: 1, region_ms: 1, rank: 3, alternatives };
        let mut gateway = Gateway { plan: Some(plan), ..Gateway::default() };
        let (_, mut peer) = accept(&first).await;
        greet(&mut peer, &mut gateway).await;
        // The client has read the answer when it asks for more.
        peer.next().await.unwrap();
        peer.connection().close(VarInt::from_u32(CloseCode::Shutdown.number()), b"");
        let (_, mut peer) = accept(&second).await;
        greet(&mut peer, &mut gateway).await;
        // Now the place that it names is this one, which goes: by the app's own URL it is back all the same.
        second.close(VarInt::from_u32(CloseCode::Shutdown.number()), b"");
        let (_, mut peer) = accept(&first).await;
        greet(&mut peer, &mut gateway).await;
        while peer.next().await.is_some() {}
    };
    let client = async {
        let client = Client::builder(url)
            .with_certificate_hash(first_hash.to_string())
            .with_certificate_hash(second_hash.to_string());
        let client = soon(client.connect()).await.unwrap();
        let mut events = client.take_events().unwrap();
        let _room = client.subscribe("room").await.unwrap();
        for _ in 0..2 {
            assert_eq!(disconnected(&mut events).await.0, 4100);
        }
        back(&mut events).await;
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}

#[tokio::test]
async fn who_is_refused_at_first_has_a_place_and_waits_for_it() {
    let (endpoint, url, hash) = quic::server();
    let serve = async {
        let mut gateway = Gateway::default();
        let (_, peer) = accept(&endpoint).await;
        peer.connection()
            .close(VarInt::from_u32(CloseCode::Overloaded.number()), format!("ra=9;t={TICKET}").as_bytes());
        let (id, mut peer) = accept(&endpoint).await;
        assert_eq!(Some(&id[..]), Hint::ticket_bytes(TICKET).as_ref().map(|bytes| &bytes[..]));
        greet(&mut peer, &mut gateway).await;
        while peer.next().await.is_some() {}
    };
    let client = async {
        let client = Client::builder(url).with_certificate_hash(hash.to_string());
        let client = soon(client.connect()).await.expect("it waits");
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}

/// Reads what comes until the connection ends.
async fn drained(mut peer: Peer) {
    while peer.next().await.is_some() {}
}

#[tokio::test]
async fn who_is_refused_where_it_is_sent_comes_there_again_at_its_slot_and_not_before() {
    let (first, url, first_hash) = quic::server();
    let (second, other, second_hash) = quic::server();
    let host = other.strip_prefix("quic://").unwrap().to_owned();
    let wait = Duration::from_millis(1_500);
    let serve = async {
        let alternatives = vec![Alternative { host: host.clone(), weight: 1, elsewhere: false }];
        let plan = ReconnectPlan { epoch: 1, node_ms: 9_000, region_ms: 9_000, rank: 3, alternatives };
        let mut gateway = Gateway { plan: Some(plan), ..Gateway::default() };
        let (_, mut old) = accept(&first).await;
        greet(&mut old, &mut gateway).await;
        let goaway = Goaway {
            endpoint: Some(format!("https://{host}")),
            slot: None,
            after_ms: 0,
            deadline_ms: 60_000,
            reason: "renewal".to_owned(),
        };
        old.answer(ServerFrame::new(0, ServerBody::Goaway(goaway))).await;
        // Refused by a frame after `connect`, and then by the transport's own close.
        let (_, mut peer) = accept(&second).await;
        peer.next().await.unwrap();
        let reconnect = Reconnect {
            policy: ReconnectPolicy::Backoff.into(),
            after_ms: Some(wait.as_millis() as u64),
            slot: Some(TICKET.to_owned()),
        };
        let mut refused_at = clock::now();
        let close = Close { code: 4101, reason: String::new(), reconnect: Some(reconnect) };
        peer.answer(ServerFrame::new(0, ServerBody::Close(close))).await;
        for refusals in [1, 2] {
            let (id, mut peer) = accept(&second).await;
            let waited = clock::now() - refused_at;
            assert!(waited >= wait, "{waited:?} after refusal {refusals}");
            assert_eq!(Some(&id[..]), Hint::ticket_bytes(TICKET).as_ref().map(|bytes| &bytes[..]));
            if refusals == 1 {
                refused_at = clock::now();
                let reason = format!("ra={};t={TICKET}", wait.as_millis());
                peer.connection().close(VarInt::from_u32(CloseCode::Overloaded.number()), reason.as_bytes());
            } else {
                assert_eq!(greet(&mut peer, &mut gateway).await.as_deref(), Some(TICKET));
                tokio::join!(drained(peer), drained(old));
                return;
            }
        }
    };
    let client = async {
        let client = Client::builder(url)
            .with_certificate_hash(first_hash.to_string())
            .with_certificate_hash(second_hash.to_string());
        let client = soon(client.connect()).await.unwrap();
        let mut events = client.take_events().unwrap();
        while !matches!(soon(events.next()).await.expect("an event"), ClientEvent::Moved { .. }) {}
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}
