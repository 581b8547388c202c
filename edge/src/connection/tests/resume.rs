//! Sessions that move from one connection to another.

use tidegate_protocol::frame::{Connected, ErrorCode, Publish};
use tidegate_protocol::link::LinkError;
use tidegate_protocol::session::resume::{Outcome, Spending, Told};

use super::bench::Bench;
use super::*;

/// What is asked of the core next: whether a ticket is spent.
async fn question(bench: &mut Bench) -> (u64, Spending) {
    match bench.try_next().await {
        Some(EdgeFrame::Spend { request, spending, holder }) => {
            assert_eq!((holder.node.as_str(), holder.worker), ("edge-1", 0));
            (request, spending)
        }
        other => panic!("nothing spent but {other:?}"),
    }
}

async fn answer(bench: &mut Bench, outcome: Outcome) -> Spending {
    let (request, spending) = question(bench).await;
    bench.send(CoreFrame::Spent { request, result: Ok(outcome) });
    spending
}

/// A fresh session, and what it was told.
async fn fresh(bench: &Bench, kind: TransportKind) -> (Client, Connected) {
    let client = bench.connect(kind);
    client.hello();
    until(|| client.connected().is_some()).await;
    let connected = client.connected().expect("just seen");
    (client, connected)
}

fn ticket(connected: &Connected) -> &str {
    connected.resume.as_deref().expect("a ticket")
}

#[test]
fn a_session_goes_on_elsewhere_while_both_deliver_until_the_grace_is_over() {
    simulate(Limits::default(), async |bench| {
        let (old, connected) = fresh(bench, TransportKind::Quic).await;
        assert!(!connected.resumed);
        old.live(bench, 2, "room", 0).await;
        let new = bench.connect(TransportKind::WebSocket);
        new.resume(ticket(&connected), Some("k"));
        // In the same flight, and read once the session is open.
        new.subscribe(2, "room", Some(Position::new(Epoch::new("e"), Offset(0))));
        let (request, spending) = question(bench).await;
        assert_eq!((spending.generation, spending.early), (0, false));
        assert_eq!(spending.session.to_string(), connected.session);
        bench.send(CoreFrame::SessionMoved { session: spending.session, generation: 1, told: Told::Resumed });
        bench.send(CoreFrame::Spent { request, result: Ok(Outcome::First) });
        bench.answer(recovery(0, true, &[])).await;
        until(|| new.replied(2)).await;
        let resumed = new.connected().expect("let in");
        assert!(resumed.resumed && resumed.session == connected.session);
        bench.publish("room", 1);
        until(|| old.offsets("room") == [1] && new.offsets("room") == [1]).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        for client in [&old, &new] {
            client.say(0, ClientBody::Pong(Empty {}));
        }
        bench.publish("room", 2);
        until(|| old.offsets("room") == [1, 2]).await;
        old.ended().await;
        assert_eq!(old.close_code(), Some(4009));
        assert_eq!(bench.metrics().tickets.get(), 2);
        bench.publish("room", 3);
        until(|| new.offsets("room") == [1, 2, 3]).await;
        // The next one is of the next generation.
        let third = bench.connect(TransportKind::LongPoll);
        third.resume(ticket(&resumed), Some("k2"));
        assert_eq!(answer(bench, Outcome::First).await.generation, 1);
        until(|| third.connected().is_some()).await;
    });
}

#[test]
fn what_is_not_honoured_is_refused_with_its_code() {
    for (outcome, code) in
        [(Outcome::Theft, 4008), (Outcome::Revoked, 4008), (Outcome::Stale, 4009), (Outcome::Full, 4201)]
    {
        simulate(Limits::default(), async |bench| {
            let (_client, connected) = fresh(bench, TransportKind::WebSocket).await;
            let other = bench.connect(TransportKind::WebSocket);
            other.resume(ticket(&connected), None);
            answer(bench, outcome).await;
            other.ended().await;
            assert_eq!(other.close_code(), Some(code), "{outcome:?}");
            assert!(other.connected().is_none());
        });
    }
}

#[test]
fn a_text_that_is_no_ticket_is_not_asked_about() {
    simulate(Limits::default(), async |bench| {
        let (_client, connected) = fresh(bench, TransportKind::WebSocket).await;
        let genuine = ticket(&connected);
        let foreign = format!("{}{}", if genuine.starts_with('B') { 'C' } else { 'B' }, &genuine[1..]);
        for (text, code) in [("", 4008), ("nonsense", 4008), (&genuine[..60], 4008), (foreign.as_str(), 4202)]
        {
            let other = bench.connect(TransportKind::WebSocket);
            other.resume(text, Some("k"));
            other.ended().await;
            assert_eq!(other.close_code(), Some(code), "{text}");
        }
        bench.expect_silence().await;
    });
}

#[test]
fn a_revoked_session_ends_on_every_connection_and_a_stranger_s_does_not() {
    simulate(Limits::default(), async |bench| {
        let (first, connected) = fresh(bench, TransportKind::Quic).await;
        let (stranger, _) = fresh(bench, TransportKind::Quic).await;
        let second = bench.connect(TransportKind::WebSocket);
        second.resume(ticket(&connected), Some("k"));
        let (request, spending) = question(bench).await;
        bench.send(CoreFrame::Spent { request, result: Ok(Outcome::First) });
        // Right behind it.
        bench.send(CoreFrame::SessionMoved { session: spending.session, generation: 1, told: Told::Revoked });
        first.ended().await;
        second.ended().await;
        assert_eq!((first.close_code(), second.close_code()), (Some(4008), Some(4008)));
        settle().await;
        assert!(!stranger.is_ending());
    });
}

#[test]
fn a_repeat_ends_the_connection_of_the_attempt_before_at_once() {
    simulate(Limits::default(), async |bench| {
        let (old, connected) = fresh(bench, TransportKind::Quic).await;
        let one = bench.connect(TransportKind::Quic);
        one.resume(ticket(&connected), Some("k"));
        let spending = answer(bench, Outcome::First).await;
        until(|| one.connected().is_some()).await;
        let two = bench.connect(TransportKind::WebSocket);
        two.resume(ticket(&connected), Some("k"));
        let (request, again) = question(bench).await;
        assert_eq!((again.key, again.session), (spending.key, spending.session));
        bench.send(CoreFrame::SessionMoved { session: again.session, generation: 1, told: Told::Repeated });
        bench.send(CoreFrame::Spent { request, result: Ok(Outcome::Repeated) });
        until(|| two.connected().is_some()).await;
        one.ended().await;
        assert_eq!(one.close_code(), Some(4009));
        settle().await;
        assert!(!two.is_ending() && !old.is_ending());
    });
}

#[test]
fn early_data_is_asked_about_again_once_the_handshake_is_complete() {
    simulate(Limits::default(), async |bench| {
        let (_old, connected) = fresh(bench, TransportKind::Quic).await;
        let client = bench.connect(TransportKind::Quic);
        client.establish(false);
        client.resume(ticket(&connected), Some("k"));
        let publish = Publish { channel: "room".to_owned(), ephemeral: true, ..Publish::default() };
        client.say_by_datagram(ClientBody::Publish(publish));
        assert!(answer(bench, Outcome::NotEarly).await.early);
        // For as long as it takes.
        tokio::time::sleep(Duration::from_secs(9)).await;
        bench.expect_silence().await;
        assert!(client.connected().is_none() && !client.is_ending());
        client.establish(true);
        assert!(!answer(bench, Outcome::Repeated).await.early);
        until(|| client.connected().is_some()).await;
        bench.expect_silence().await;
    });
}

#[test]
fn as_early_data_anything_else_is_refused() {
    simulate(Limits::default(), async |bench| {
        let (_old, connected) = fresh(bench, TransportKind::Quic).await;
        let client = bench.connect(TransportKind::Quic);
        client.establish(false);
        client.hello();
        client.ended().await;
        assert_eq!(client.close_code(), Some(4003));
        let client = bench.connect(TransportKind::Quic);
        client.establish(false);
        client.resume(ticket(&connected), Some("k"));
        client.subscribe(2, "room", None);
        client.say(3, ClientBody::Ping(Empty {}));
        answer(bench, Outcome::First).await;
        client.ended().await;
        assert_eq!(client.close_code(), Some(4003));
        assert!(client.connected().is_some(), "the resume itself was right");
    });
}

#[test]
fn with_the_partition_out_of_reach_a_ticket_is_honoured_once() {
    simulate(Limits::default(), async |bench| {
        let (_old, connected) = fresh(bench, TransportKind::Quic).await;
        let refusal = || LinkError { code: ErrorCode::Unavailable, message: "gone".to_owned() };
        let mut clients = Vec::new();
        for (key, code) in [("k", None), ("k", None), ("other", Some(4008)), ("k", Some(4008))] {
            let client = bench.connect(TransportKind::WebSocket);
            client.resume(ticket(&connected), Some(key));
            let (request, _) = question(bench).await;
            bench.send(CoreFrame::Spent { request, result: Err(refusal()) });
            until(|| client.connected().is_some() || client.is_ending()).await;
            settle().await;
            assert_eq!(client.close_code(), code, "{key}");
            clients.push(client);
        }
        assert_eq!(bench.metrics().resumes_unchecked.get(), 2);
        // What is honoured so is bounded: no ticket of a third session. (The bench remembers two.)
        for (unchecked, code) in [(3, None), (3, Some(4201))] {
            let (_client, connected) = fresh(bench, TransportKind::Quic).await;
            let client = bench.connect(TransportKind::WebSocket);
            client.resume(ticket(&connected), Some("k"));
            let (request, _) = question(bench).await;
            bench.send(CoreFrame::Spent { request, result: Err(refusal()) });
            until(|| client.connected().is_some() || client.is_ending()).await;
            settle().await;
            assert_eq!(client.close_code(), code);
            assert_eq!(bench.metrics().resumes_unchecked.get(), unchecked);
        }
    });
}

#[test]
fn a_core_that_does_not_answer_is_not_waited_for_and_may_still_revoke() {
    simulate(Limits::default(), async |bench| {
        let (_old, connected) = fresh(bench, TransportKind::Quic).await;
        let client = bench.connect(TransportKind::WebSocket);
        client.resume(ticket(&connected), Some("k"));
        let (request, _) = question(bench).await;
        let before = bench.now();
        client.received(|frame| matches!(frame.body, Some(ServerBody::Connected(_)))).await;
        assert_eq!(bench.now() - before, Duration::from_secs(2));
        assert_eq!(bench.metrics().resumes_unchecked.get(), 1);
        bench.send(CoreFrame::Spent { request, result: Ok(Outcome::Theft) });
        client.ended().await;
        assert_eq!(client.close_code(), Some(4008));
    });
}

#[test]
fn what_the_core_honoured_is_known_here_too() {
    simulate(Limits::default(), async |bench| {
        let (_old, connected) = fresh(bench, TransportKind::Quic).await;
        let client = bench.connect(TransportKind::WebSocket);
        client.resume(ticket(&connected), Some("k"));
        answer(bench, Outcome::First).await;
        until(|| client.connected().is_some()).await;
        let thief = bench.connect(TransportKind::WebSocket);
        thief.resume(ticket(&connected), Some("other"));
        let (request, _) = question(bench).await;
        let gone = LinkError { code: ErrorCode::Unavailable, message: "gone".to_owned() };
        bench.send(CoreFrame::Spent { request, result: Err(gone) });
        thief.ended().await;
        assert_eq!(thief.close_code(), Some(4008));
        assert_eq!(bench.metrics().resumes_unchecked.get(), 0);
    });
}

#[test]
fn a_connection_that_left_is_not_told() {
    simulate(Limits::default(), async |bench| {
        let (old, connected) = fresh(bench, TransportKind::Quic).await;
        old.hang_up();
        old.ended().await;
        let session = connected.session.parse().expect("an id");
        for told in [Told::Resumed, Told::Repeated, Told::Revoked] {
            bench.send(CoreFrame::SessionMoved { session, generation: 1, told });
        }
        settle().await;
    });
}
