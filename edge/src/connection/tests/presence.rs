//! Joins and leaves on their way to a client that does not take them.

use std::sync::Arc;

use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::frame::{ClientBody, Join, ServerBody, Subscribe};
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame};
use tidegate_protocol::{Offset, Position};
use tidegate_transport::{Lane, TransportKind};

use super::bench::{Bench, Client, channel, publication, recovery, settle, simulate, until};
use crate::config::Limits;

const ROOM: &str = "open:1";

fn joined(user: &str) -> CoreFrame {
    let (name, user) = (ROOM.to_owned(), user.to_owned());
    let frame = Arc::new(SharedFrame::new(ServerBody::Join(Join { channel: name, user, time_ms: 1 })));
    CoreFrame::PresenceChanged(Delivery { channel: channel(ROOM), offset: Offset(0), frame })
}

/// Subscribes from 0 on and watches.
async fn watch(bench: &mut Bench, client: &Client) {
    let subscribe = Subscribe { channel: ROOM.to_owned(), presence: true, ..Subscribe::default() };
    client.say(2, ClientBody::Subscribe(subscribe));
    bench.answer(recovery(0, false, &[])).await;
    until(|| client.replied(2)).await;
    assert!(matches!(bench.try_next().await, Some(EdgeFrame::Watch { on: true, .. })));
    assert!(matches!(bench.try_next().await, Some(EdgeFrame::Presence { sessions: 1, .. })));
}

/// Who joined, and `gap`, as they came.
fn told(client: &Client) -> Vec<String> {
    let text = |body| match body {
        Some(ServerBody::Join(join)) => Some(join.user),
        Some(ServerBody::PresenceGap(gap)) if gap.channel == ROOM => Some("gap".to_owned()),
        _ => None,
    };
    client.frames().into_iter().filter_map(|frame| text(frame.body)).collect()
}

#[test]
fn who_comes_is_told_in_order_and_never_by_datagram() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::Quic).await;
        watch(bench, &client).await;
        client.take_datagrams(true);
        for user in ["ann", "bo"] {
            bench.send(joined(user));
        }
        until(|| told(&client) == ["ann", "bo"]).await;
        assert_eq!(client.datagrams(), 0, "what is lost on the way would be missed for ever");
    });
}

#[test]
fn a_client_that_does_not_read_is_told_once_that_it_missed_somebody() {
    for kind in [TransportKind::Quic, TransportKind::WebSocket] {
        simulate(Limits::default(), async |bench| {
            let client = bench.open(kind).await;
            watch(bench, &client).await;
            bench.send(joined("ann"));
            until(|| told(&client) == ["ann"]).await;
            let jams = kind == TransportKind::WebSocket;
            if jams {
                client.jam()
            } else {
                client.block(Lane::Subscription(0))
            };
            for user in ["bo", "cy", "dee"] {
                bench.send(joined(user));
            }
            settle().await;
            assert_eq!(told(&client), ["ann"], "it would only be missed again");
            if jams {
                client.unjam()
            } else {
                client.unblock(Lane::Subscription(0))
            };
            until(|| told(&client) == ["ann", "gap"]).await;
            bench.send(joined("eve"));
            until(|| told(&client) == ["ann", "gap", "eve"]).await;
            assert_eq!(bench.metrics().ephemeral_dropped.no_room.get(), 3);
        });
    }
}

#[test]
fn a_parked_subscription_is_told_of_a_gap_once_it_has_caught_up() {
    let limits = Limits { subscription_queue: 500, ..Limits::default() };
    simulate(limits, async |bench| {
        let client = bench.open(TransportKind::WebSocket).await;
        watch(bench, &client).await;
        client.jam();
        for offset in 1..=30 {
            bench.publish(ROOM, offset);
            settle().await;
        }
        bench.send(joined("bo"));
        settle().await;
        client.unjam();
        let (_, position) = bench.subscribe_frame().await;
        assert_eq!(position.map(|at: Position| at.offset), Some(Offset(0)));
        assert!(told(&client).is_empty(), "it is not live");
        let missed: Vec<_> = (29..=30).map(|offset| publication(ROOM, offset)).collect();
        bench.answer_with(recovery(30, true, &missed)).await;
        until(|| told(&client) == ["gap"]).await;
    });
}

#[test]
fn what_was_missed_ends_with_its_subscription() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::Quic).await;
        watch(bench, &client).await;
        client.block(Lane::Subscription(0));
        bench.send(joined("bo"));
        settle().await;
        client.leave(3, ROOM);
        until(|| client.replied(3)).await;
        while bench.try_next().await.is_some() {}
        client.unblock(Lane::Subscription(0));
        watch(bench, &client).await;
        bench.send(joined("cy"));
        until(|| told(&client) == ["cy"]).await;
    });
}
