//! Publications that are sent again where the path loses packets.

use std::time::Duration;

use tidegate_protocol::Epoch;
use tidegate_protocol::frame::{ClientBody, Connect};
use tidegate_transport::{Lane, PathStats, TransportKind};

use super::bench::{Bench, Client, settle, simulate, until};
use crate::config::Limits;

const RTT: Duration = Duration::from_millis(300);

/// A live subscriber to `room` whose path has lost so much of a thousand packets, and was looked at.
async fn subscriber(bench: &mut Bench, kind: TransportKind, repeats: bool, lost_packets: u64) -> Client {
    let client = bench.connect(kind);
    client.say(1, ClientBody::Connect(Connect { repeats, ..Connect::default() }));
    until(|| client.replied(1)).await;
    client.take_datagrams(true);
    client.set_path(PathStats {
        rtt: RTT,
        congestion_window: 40_000,
        sent_packets: 1_000,
        lost_packets,
        datagram_size: 1_162,
    });
    client.live(bench, 2, "room", 0).await;
    for offset in 1..=50 {
        bench.publish("room", offset);
        until(|| client.offsets("room").len() as u64 == offset).await;
    }
    // What of these was repeated is of no interest.
    tokio::time::sleep(RTT).await;
    settle().await;
    client.forget_datagrams();
    client
}

#[test]
fn a_lossy_path_brings_publications_again_twice_by_datagram() {
    for kind in [TransportKind::Quic, TransportKind::WebTransport] {
        simulate(Limits::default(), async |bench| {
            let client = subscriber(bench, kind, true, 20).await;
            let (items, bytes) = (bench.metrics().repeats.get(), bench.metrics().repeat_bytes.get());
            for offset in [51, 52] {
                bench.publish("room", offset);
                until(|| client.offsets("room").ends_with(&[offset])).await;
            }
            assert_eq!(client.datagrams(), 0, "not at once");
            tokio::time::sleep(RTT / 4).await;
            assert_eq!(client.repeated(), [[51, 52]]);
            tokio::time::sleep(RTT).await;
            assert_eq!(client.repeated(), [[51, 52], [51, 52]]);
            assert_eq!(bench.metrics().repeats.get() - items, 4);
            assert!(bench.metrics().repeat_bytes.get() - bytes > 200);
            assert!(client.offsets("room").iter().copied().eq(1..=52), "the stream has each once");
        });
    }
}

#[test]
fn nothing_is_repeated_unasked_or_without_losses_or_on_one_pipe() {
    let off = Limits { repeats: false, ..Limits::default() };
    let on = Limits::default();
    for (limits, kind, asked, lost) in [
        (&on, TransportKind::Quic, false, 20),
        (&on, TransportKind::Quic, true, 0),
        (&on, TransportKind::WebSocket, true, 20),
        (&off, TransportKind::Quic, true, 20),
    ] {
        simulate(limits.clone(), async |bench| {
            let client = subscriber(bench, kind, asked, lost).await;
            bench.publish("room", 51);
            until(|| client.offsets("room").ends_with(&[51])).await;
            tokio::time::sleep(RTT).await;
            assert_eq!(client.datagrams(), 0, "{kind:?}, {asked}, {lost}");
            assert_eq!(bench.metrics().repeats.get(), 0);
        });
    }
}

#[test]
fn a_client_that_is_behind_is_not_sent_anything_again() {
    simulate(Limits::default(), async |bench| {
        let client = subscriber(bench, TransportKind::Quic, true, 20).await;
        bench.publish("room", 51);
        until(|| client.offsets("room").ends_with(&[51])).await;
        client.block(Lane::Subscription(0));
        bench.publish("room", 52);
        tokio::time::sleep(RTT).await;
        assert_eq!(client.datagrams(), 0);
        client.unblock(Lane::Subscription(0));
        until(|| client.offsets("room").ends_with(&[52])).await;
        tokio::time::sleep(RTT).await;
        assert_eq!(client.datagrams(), 0, "nor is what was late itself");
    });
}

#[test]
fn what_is_sent_again_bears_the_mark_of_its_epoch_and_nothing_of_an_epoch_that_is_over_is() {
    simulate(Limits::default(), async |bench| {
        let client = subscriber(bench, TransportKind::Quic, true, 20).await;
        let mark = |epoch| u64::from(Epoch::new(epoch).mark());
        bench.publish("room", 51);
        until(|| client.offsets("room").ends_with(&[51])).await;
        tokio::time::sleep(RTT / 4).await;
        assert_eq!((client.repeated(), client.marks()), (vec![vec![51]], vec![mark("e")]));
        bench.rebase("room", "f", 0);
        bench.publish("room", 1);
        until(|| client.offsets("room").ends_with(&[1])).await;
        tokio::time::sleep(RTT).await;
        assert_eq!(client.repeated(), [[51], [1], [1]], "51 is due once more, and is not sent");
        assert_eq!(client.marks()[1..], [mark("f"); 2]);
    });
}

#[test]
fn what_was_left_is_not_sent_again() {
    simulate(Limits::default(), async |bench| {
        let client = subscriber(bench, TransportKind::Quic, true, 20).await;
        bench.publish("room", 51);
        until(|| client.offsets("room").ends_with(&[51])).await;
        client.leave(3, "room");
        until(|| client.replied(3)).await;
        tokio::time::sleep(RTT).await;
        assert_eq!(client.datagrams(), 0);
    });
}
