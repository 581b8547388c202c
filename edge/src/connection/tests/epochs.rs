//! Subscriptions whose epoch changes under them.

use tidegate_protocol::frame::{ServerBody, ServerFrame};
use tidegate_protocol::{Epoch, Offset, Position};
use tidegate_transport::{Lane, TransportKind};

use super::bench::{recovery, settle, simulate, until};
use crate::config::Limits;

fn rebased(epoch: &'static str) -> impl Fn(&ServerFrame) -> bool {
    move |frame| {
        matches!(&frame.body, Some(ServerBody::Subscribed(subscribed))
            if frame.id == 0 && subscribed.position.as_ref().is_some_and(|position| position.epoch == epoch))
    }
}

#[test]
fn lanes_are_given_the_epoch_and_what_waits_of_another_is_dropped() {
    for kind in [TransportKind::Quic, TransportKind::WebTransport, TransportKind::WebSocket] {
        simulate(Limits::default(), async |bench| {
            let client = bench.open(kind).await;
            client.live(bench, 2, "room", 0).await;
            assert_eq!(client.epochs(), [(0, "e".to_owned())]);
            client.block(Lane::Subscription(0));
            for offset in 1..=3 {
                bench.publish("room", offset);
            }
            bench.rebase("room", "f", 5);
            bench.publish("room", 6);
            settle().await;
            client.unblock(Lane::Subscription(0));
            until(|| client.offsets("room") == [6]).await;
            assert!(client.frames().iter().any(rebased("f")));
            assert_eq!(client.epochs(), [(0, "e".to_owned()), (0, "f".to_owned())]);
        });
    }
}

#[test]
fn a_lane_of_its_own_does_not_wait_for_the_control_lane_that_tells_of_its_epoch() {
    simulate(Limits::default(), async |bench| {
        let client = bench.open(TransportKind::Quic).await;
        client.live(bench, 2, "room", 0).await;
        client.block(Lane::Control);
        bench.rebase("room", "f", 5);
        bench.publish("room", 6);
        until(|| client.offsets("room") == [6]).await;
        assert!(!client.frames().iter().any(rebased("f")));
        client.unblock(Lane::Control);
        client.received(rebased("f")).await;
    });
}

#[test]
fn a_refill_that_finds_another_epoch_begins_it() {
    let limits = Limits { subscription_queue: 1, ..Limits::default() };
    simulate(limits, async |bench| {
        let client = bench.open(TransportKind::Quic).await;
        client.live(bench, 2, "room", 0).await;
        client.block(Lane::Subscription(0));
        bench.publish("room", 1);
        settle().await;
        client.unblock(Lane::Subscription(0));
        let (_, position) = bench.subscribe_frame().await;
        assert_eq!(position, Some(Position::new(Epoch::new("e"), Offset(0))));
        let mut found = recovery(4, false, &[]);
        found.position.epoch = Epoch::new("f");
        bench.answer_with(found).await;
        client.received(rebased("f")).await;
        bench.publish("room", 5);
        until(|| client.offsets("room") == [5]).await;
        assert_eq!(client.epochs(), [(0, "e".to_owned()), (0, "f".to_owned())]);
    });
}
