//! The driver between a scripted connection and a scripted core, on one thread, with paused time.

mod bench;
mod epochs;
mod goaway;
mod presence;
mod repeats;
mod resume;

use std::rc::Rc;
use std::time::Duration;

use tidegate_protocol::frame::{ClientBody, Empty, HistoryRequest, ServerBody, Unsubscribe};
use tidegate_protocol::link::{CoreFrame, EdgeFrame};
use tidegate_protocol::{Epoch, Offset, Position};
use tidegate_transport::{Lane, RecvError, TransportKind};

use self::bench::{Client, channel, ephemeral, publication, recovery, settle, simulate, until};
use crate::config::Limits;

#[test]
fn what_waits_on_the_link_goes_in_one_write_and_live_data_follows() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.subscribe(2, "room", None);
        bench.answer(recovery(7, false, &[])).await;
        until(|| client.offsets("room").is_empty() && client.replied(2)).await;
        // In one batch with what the subscription must not see again.
        for offset in 7..=10 {
            bench.publish("room", offset);
        }
        until(|| client.offsets("room") == [8, 9, 10]).await;
        bench.publish("room", 11);
        bench.publish("room", 12);
        until(|| client.offsets("room") == [8, 9, 10, 11, 12]).await;
        let writes = client.writes_on(Lane::Subscription(0));
        assert_eq!(writes, [1, 1, 1, 2], "a part of a run goes one by one, a whole run as one");
    });
}

#[test]
fn a_slow_client_gets_everything_in_order_once_it_reads() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.live(bench, 2, "room", 0).await;
        client.jam();
        for offset in 1..=50 {
            bench.publish("room", offset);
            settle().await;
        }
        assert!(client.offsets("room").is_empty());
        assert!(bench.metrics().queue_bytes.get() > 0);
        client.unjam();
        until(|| client.offsets("room") == (1..=50).collect::<Vec<_>>()).await;
        assert_eq!(bench.metrics().queue_bytes.get(), 0);
    });
}

#[test]
fn a_parked_subscription_catches_up_from_history_without_gap_or_duplicate() {
    let limits = Limits { subscription_queue: 2_000, ..Limits::default() };
    for kind in [TransportKind::WebSocket, TransportKind::Quic] {
        simulate(limits.clone(), async |bench| {
            let client = bench.open(kind).await;
            client.live(bench, 2, "room", 0).await;
            client.jam();
            for offset in 1..=100 {
                bench.publish("room", offset);
                settle().await;
            }
            assert_eq!(bench.metrics().parked.get(), 1);
            assert_eq!(bench.metrics().queue_bytes.get(), 0, "its queue was dropped");
            bench.expect_silence().await;
            client.unjam();
            let (_, position) = bench.subscribe_frame().await;
            assert_eq!(position, Some(Position::new(Epoch::new("e"), Offset(0))));
            // Published while the question is under way: in the answer, and not sent twice.
            bench.publish("room", 101);
            settle().await;
            let missed: Vec<_> = (1..=101).map(|offset| publication("room", offset)).collect();
            bench.answer_with(recovery(101, true, &missed)).await;
            // More than the budget: fetched in pieces, each when the one before is out.
            loop {
                let Some(next) = bench.try_subscribe_frame().await else { break };
                let from = next.1.expect("a refill has a position").offset.0;
                assert_eq!(Some(&from), client.offsets("room").last(), "all before it was sent");
                let missed: Vec<_> = (from + 1..=101).map(|offset| publication("room", offset)).collect();
                bench.answer_with(recovery(101, true, &missed)).await;
            }
            bench.publish("room", 102);
            until(|| client.offsets("room").last() == Some(&102)).await;
            assert_eq!(client.offsets("room"), (1..=102).collect::<Vec<_>>());
            assert_eq!(bench.metrics().queue_bytes.get(), 0);
            if kind == TransportKind::Quic {
                assert!(client.catch_ups_finished() > 0, "a catch-up stream ends");
            }
        });
    }
}

#[test]
fn a_parked_subscription_that_history_no_longer_reaches_is_told() {
    let limits = Limits { subscription_queue: 500, ..Limits::default() };
    simulate(limits, async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.live(bench, 2, "room", 4).await;
        client.jam();
        for offset in 5..=30 {
            bench.publish("room", offset);
            settle().await;
        }
        client.unjam();
        bench.subscribe_frame().await;
        bench.answer_with(recovery(30, false, &[])).await;
        until(|| {
            client.frames().iter().any(|frame| {
            matches!(&frame.body, Some(ServerBody::Subscribed(told)) if frame.id == 0 && !told.recovered)
        })
        })
        .await;
        bench.publish("room", 31);
        until(|| client.offsets("room") == [31]).await;
        assert_eq!(bench.metrics().gaps.get(), 1);
    });
}

#[test]
fn a_stream_that_is_not_read_holds_back_neither_the_others_nor_their_catch_up() {
    let limits = Limits { subscription_queue: 1_000, ..Limits::default() };
    simulate(limits, async |bench| {
        let client = bench.open(TransportKind::Quic).await;
        client.live(bench, 2, "stuck", 0).await;
        client.live(bench, 3, "room", 0).await;
        client.block(Lane::Subscription(0));
        client.block(Lane::Subscription(1));
        bench.publish("stuck", 1);
        for offset in 1..=60 {
            bench.publish("room", offset);
            settle().await;
        }
        assert_eq!(bench.metrics().parked.get(), 1);
        client.unblock(Lane::Subscription(1));
        let (of, _) = bench.subscribe_frame().await;
        assert_eq!(of, channel("room"), "refilled although the other stream still waits");
        let missed: Vec<_> = (59..=60).map(|offset| publication("room", offset)).collect();
        bench.answer_with(recovery(60, true, &missed)).await;
        until(|| client.offsets("room") == [59, 60]).await;
        assert!(client.offsets("stuck").is_empty());
        client.unblock(Lane::Subscription(0));
        until(|| client.offsets("stuck") == [1]).await;
    });
}

#[test]
fn a_conflated_channel_keeps_only_the_newest_of_what_waits() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.live(bench, 2, "latest:x", 0).await;
        client.jam();
        for run in [1..=3, 4..=9] {
            run.for_each(|offset| bench.publish("latest:x", offset));
            settle().await;
        }
        client.unjam();
        until(|| client.offsets("latest:x") == [9]).await;
        bench.publish("latest:x", 10);
        until(|| client.offsets("latest:x") == [9, 10]).await;
    });
}

#[test]
fn of_ephemeral_items_the_newest_waits_and_datagrams_go_first() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::Quic).await;
        client.live(bench, 2, "room", 0).await;
        client.take_datagrams(true);
        bench.send(ephemeral("room", "0"));
        until(|| client.datagrams() == 1).await;
        client.take_datagrams(false);
        client.block(Lane::Subscription(0));
        for text in ["1", "2", "3"] {
            bench.send(ephemeral("room", text));
        }
        settle().await;
        client.unblock(Lane::Subscription(0));
        until(|| client.ephemeral() == ["3"]).await;
        assert_eq!(bench.metrics().queue_bytes.get(), 0);
    });
}

#[test]
fn a_client_that_does_not_read_its_replies_is_closed_with_4104() {
    let limits = Limits { session_queue: 4_000, ..Limits::default() };
    simulate(limits, async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.jam();
        for id in 2..=60 {
            client.say(
                id,
                ClientBody::History(HistoryRequest { channel: "room".to_owned(), ..Default::default() }),
            );
        }
        let old = [publication("room", 1), publication("room", 2)];
        // It is not read on for long before that; each answer is for a request that was.
        while !client.is_ending() {
            match bench.try_next().await {
                Some(EdgeFrame::History { request, .. }) => {
                    bench.send(CoreFrame::Recovered { request, result: Ok(recovery(2, true, &old)) });
                }
                Some(other) => panic!("{other:?}"),
                None => break,
            }
        }
        client.unjam();
        client.ended().await;
        assert_eq!(client.close_code(), Some(4104));
        let frames = client.frames();
        let Some(ServerBody::Close(close)) = frames.last().and_then(|frame| frame.body.as_ref()) else {
            panic!("no close frame: {frames:?}")
        };
        assert_eq!(close.code, 4104);
        bench.assert_empty().await;
    });
}

#[test]
fn a_client_that_never_reads_again_still_ends_with_its_code_and_in_time() {
    let limits = Limits { session_queue: 1_000, ..Limits::default() };
    simulate(limits, async |bench| {
        let client = bench.open(TransportKind::Quic).await;
        client.jam();
        // Pings alone, answered by a client that reads nothing.
        let began = bench.now();
        client.say(2, ClientBody::Done(Empty {}));
        client.ended().await;
        assert_eq!(client.close_code(), Some(4000), "the transport's own close has it");
        assert_eq!(bench.now() - began, Limits::default().close);
        bench.assert_empty().await;
    });
}

#[test]
fn pings_are_answered_or_the_session_ends() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        let began = bench.now();
        client.received(|frame| matches!(frame.body, Some(ServerBody::Ping(_)))).await;
        assert_eq!(bench.now() - began, Duration::from_secs(25));
        client.say(0, ClientBody::Pong(Empty {}));
        client.ended().await;
        assert_eq!(bench.now() - began, Duration::from_secs(60), "25 s to the second ping, 10 s more");
        assert_eq!(client.close_code(), Some(4103));
        assert_eq!(bench.metrics().heartbeat_failures.get(), 1);
        bench.assert_empty().await;
    });
}

#[test]
fn a_full_backlog_of_publications_does_not_keep_pongs_from_being_read() {
    let limits = Limits { session_queue: 40_000, subscription_queue: 30_000, ..Limits::default() };
    simulate(limits, async |bench| {
        let client = bench.open(TransportKind::Quic).await;
        client.live(bench, 2, "room", 0).await;
        client.block(Lane::Subscription(0));
        for offset in 1..=400 {
            bench.publish("room", offset);
            settle().await;
        }
        assert!(bench.metrics().queue_bytes.get() > 20_000);
        for _ in 0..3 {
            client.forget();
            client.received(|frame| matches!(frame.body, Some(ServerBody::Ping(_)))).await;
            client.say(0, ClientBody::Pong(Empty {}));
        }
        assert!(!client.is_ending());
    });
}

#[test]
fn when_the_core_is_lost_requests_fail_and_every_session_is_told() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.subscribe(2, "room", None);
        bench.subscribe_frame().await;
        bench.lose_core();
        client.ended().await;
        let frames = client.frames();
        assert!(frames.iter().any(|frame| frame.id == 2 && matches!(frame.body, Some(ServerBody::Error(_)))));
        assert_eq!(client.close_code(), Some(4107));
        // Admitted before, begun after.
        let late = bench.connect(TransportKind::WebSocket);
        late.ended().await;
        assert_eq!(late.close_code(), Some(4107));
        assert!(bench.worker().admit().is_none());
        // A question of nobody's session is answered too.
        let waiter = Rc::new(crate::channel_poll::Waiter::new(true));
        let key = bench.worker().wait_on(Rc::clone(&waiter), &channel("room"), None);
        waiter.asked().await;
        assert!(matches!(waiter.result(), Some(Err(_))));
        bench.worker().unsubscribe(&channel("room"), key);
        bench.assert_empty().await;
    });
}

#[test]
fn a_crowd_that_comes_and_goes_during_a_fan_out_sees_each_publication_once() {
    simulate(Limits::default(), async |bench| {
        let mut crowd = Vec::new();
        for _ in 0..100 {
            let client = bench.open(TransportKind::WebSocket).await;
            client.live(bench, 2, "room", 0).await;
            crowd.push(client);
        }
        bench.publish("room", 1);
        until(|| crowd[0].offsets("room") == [1]).await;
        assert!(crowd[99].offsets("room").is_empty(), "the fan-out lets others run in between");
        // The last leave, and others come, in the middle of it.
        for client in crowd.drain(90..) {
            client.say(0, ClientBody::Unsubscribe(Unsubscribe { channel: "room".to_owned() }));
        }
        let late: Vec<Client> = (0..5).map(|_| bench.connect(TransportKind::WebSocket)).collect();
        for client in &late {
            client.hello();
            client.subscribe(2, "room", None);
        }
        for _ in &late {
            bench.answer(recovery(1, false, &[])).await;
        }
        until(|| crowd.iter().all(|client| client.offsets("room") == [1])).await;
        until(|| late.iter().all(|client| client.replied(2))).await;
        bench.publish("room", 2);
        until(|| crowd.iter().all(|client| client.offsets("room") == [1, 2])).await;
        until(|| late.iter().all(|client| client.offsets("room") == [2])).await;
        assert_eq!(bench.metrics().subscriptions.get(), 95);
        for client in crowd.iter().chain(&late) {
            client.hang_up();
        }
        until(|| bench.metrics().subscriptions.get() == 0).await;
    });
}

#[test]
fn connected_comes_before_any_publication_of_a_channel_that_the_token_names() {
    simulate(Limits::default(), async |bench| {
        let client = bench.connect_as(TransportKind::WebSocket, &["a", "b"]);
        client.hello();
        let (first, _) = bench.subscribe_question().await;
        let (second, _) = bench.subscribe_question().await;
        bench.send(CoreFrame::Recovered { request: first, result: Ok(recovery(3, false, &[])) });
        bench.publish("a", 4);
        bench.send(ephemeral("a", "1"));
        settle().await;
        assert!(client.frames().is_empty());
        bench.send(CoreFrame::Recovered { request: second, result: Ok(recovery(9, false, &[])) });
        until(|| client.offsets("a") == [4]).await;
        let frames = client.frames();
        let Some(ServerBody::Connected(connected)) = &frames[0].body else { panic!("{frames:?}") };
        assert_eq!(connected.subscriptions.len(), 2);
        bench.publish("a", 5);
        until(|| client.offsets("a") == [4, 5]).await;
    });
}

#[test]
fn a_session_that_ends_before_connected_leaves_nothing() {
    simulate(Limits::default(), async |bench| {
        let client = bench.connect_as(TransportKind::WebSocket, &["a", "b"]);
        client.hello();
        let (first, _) = bench.subscribe_question().await;
        bench.send(CoreFrame::Recovered { request: first, result: Ok(recovery(3, false, &[])) });
        bench.publish("a", 4);
        settle().await;
        client.break_off(RecvError::Lost("gone".to_owned()));
        bench.assert_empty().await;
    });
}

#[test]
fn a_session_that_ended_is_let_go_although_the_core_still_owes_it_an_answer() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.subscribe(2, "room", None);
        let (request, _) = bench.subscribe_question().await;
        client.hang_up();
        until(|| client.is_dropped()).await;
        bench.send(CoreFrame::Recovered { request, result: Ok(recovery(3, false, &[])) });
        settle().await;
        bench.assert_empty().await;
    });
}

#[test]
fn nothing_follows_the_close_frame() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.subscribe(2, "room", None);
        let (request, _) = bench.subscribe_question().await;
        client.hold_close();
        client.say(3, ClientBody::Done(Empty {}));
        until(|| client.is_ending()).await;
        bench.send(CoreFrame::Recovered { request, result: Ok(recovery(3, false, &[])) });
        settle().await;
        assert!(!client.is_dropped(), "the close is waited for");
        assert!(matches!(client.frames().last().and_then(|f| f.body.as_ref()), Some(ServerBody::Close(_))));
        client.release_close();
        client.ended().await;
        assert_eq!(client.close_code(), Some(4000));
        bench.assert_empty().await;
    });
}

#[test]
fn of_a_long_message_only_what_may_be_in_flight_is_handled() {
    let limits = Limits { requests: 4, ..Limits::default() };
    simulate(limits, async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.publish_many(2..=11, "room");
        let mut requests = Vec::new();
        for _ in 0..4 {
            let Some(EdgeFrame::Publish { request, .. }) = bench.try_next().await else {
                panic!("no publish")
            };
            requests.push(request);
        }
        bench.expect_silence().await;
        for answered in 0..10 {
            bench.send(CoreFrame::Published { request: requests[answered], result: Ok(None) });
            if answered < 6 {
                let Some(EdgeFrame::Publish { request, .. }) = bench.try_next().await else {
                    panic!("no publish")
                };
                requests.push(request);
            }
        }
        until(|| (2..=11).all(|id| client.replied(id))).await;
        bench.expect_silence().await;
    });
}

#[test]
fn a_connection_that_breaks_while_it_is_flushed_leaves_no_bytes_behind() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.live(bench, 2, "room", 0).await;
        client.jam();
        for offset in 1..=5 {
            bench.publish("room", offset);
            settle().await;
        }
        client.break_after(2);
        client.unjam();
        bench.assert_empty().await;
        assert_eq!(client.offsets("room"), [1, 2]);
    });
}

#[test]
fn a_new_numbering_is_told_before_its_first_publication_and_the_old_is_dropped() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.live(bench, 2, "room", 40).await;
        client.jam();
        bench.publish("room", 41);
        settle().await;
        client.unjam_quietly();
        bench.send(CoreFrame::Rebased {
            channel: channel("room"),
            position: Position::new(Epoch::new("f"), Offset(0)),
        });
        bench.publish("room", 1);
        until(|| client.offsets("room") == [1]).await;
        let told = client.frames().iter().position(|frame| {
            frame.id == 0 && matches!(&frame.body, Some(ServerBody::Subscribed(told)) if !told.recovered)
        });
        let came = client.frames().iter().position(|f| matches!(f.body, Some(ServerBody::Publication(_))));
        assert!(told < came, "{:?}", client.frames());
    });
}

#[test]
fn a_slot_that_is_used_again_has_nothing_of_the_subscription_before() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        client.live(bench, 2, "old", 0).await;
        client.jam();
        bench.publish("old", 1);
        settle().await;
        client.say(3, ClientBody::Unsubscribe(Unsubscribe { channel: "old".to_owned() }));
        let Some(EdgeFrame::Unsubscribe { channel: of }) = bench.try_next().await else {
            panic!("interest stays")
        };
        assert_eq!(of, channel("old"));
        client.subscribe(4, "new", None);
        bench.answer(recovery(8, false, &[])).await;
        bench.publish("new", 9);
        settle().await;
        client.unjam();
        until(|| client.offsets("new") == [9]).await;
        assert!(client.offsets("old").is_empty());
        assert_eq!(client.lanes(), ["open 0 old", "close 0", "open 0 new"]);
    });
}
