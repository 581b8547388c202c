//! What lanes and datagrams take from each other. Nothing is sent while these tests do not yield, so that what was
//! handed to QUIC stays there.

use std::task::Poll;

use quinn::TransportConfig;

use super::*;

/// Fills QUIC's send window by one lane; what the lane holds beyond it.
fn flood(connection: &mut QuicConnection, lane: Lane) -> usize {
    let bytes = encode_delimited(&publication(1, 4096));
    let mut taken = 0;
    while connection.send(lane, &bytes).unwrap() == Sent::Taken {
        taken += 1;
        assert!(taken < 64, "256 KiB were taken");
    }
    assert!(connection.buffered() > 0);
    connection.buffered()
}

#[tokio::test]
async fn a_lane_that_floods_leaves_room_for_light_ones_and_control() {
    let server = Server::start();
    let (mut connection, client) = server.native(TransportConfig::default()).await;
    for number in 1..=3 {
        connection.open_lane(number, &channel(&format!("room:{number}")), 0);
    }
    let left = flood(&mut connection, Lane::Subscription(1));
    let small = encode_delimited(&publication(1, 1000));
    for number in 2..=3 {
        assert_eq!(connection.send(Lane::Subscription(number), &small).unwrap(), Sent::Taken);
    }
    assert_eq!(connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap(), Sent::Taken);
    assert_eq!(connection.buffered(), left, "all of it was handed to QUIC");

    // Who sends much is no longer light: the rest of the reserve is not for it.
    let mut light = 0;
    while connection.send(Lane::Subscription(2), &small).unwrap() == Sent::Taken
        && connection.buffered() == left
    {
        light += 1;
    }
    assert!((4..=7).contains(&light), "{light} more KB of one lane");
    let before = connection.buffered();
    assert_eq!(connection.send(Lane::Subscription(3), &small).unwrap(), Sent::Taken);
    assert_eq!(connection.buffered(), before, "another lane is still light");

    // All of it arrives.
    let (_, mut flooded) = client.accept_lane().await;
    let push = async {
        while connection.buffered() > 0 {
            assert!(poll_fn(|cx| connection.poll_ready(cx, Lane::Subscription(1))).await.is_ok());
            assert!(poll_fn(|cx| connection.poll_ready(cx, Lane::Subscription(2))).await.is_ok());
        }
    };
    tokio::join!(push, async {
        assert_eq!(flooded.next().await, Some(publication(1, 4096)));
        let (header, mut second) = client.accept_lane().await;
        assert_eq!(header.channel, "room:2");
        assert_eq!(second.next().await, Some(publication(1, 1000)));
        // Read, so that what is left over can go.
        for _ in 0..14 {
            assert_eq!(flooded.next().await, Some(publication(1, 4096)));
        }
    });
}

#[tokio::test]
async fn what_is_left_over_goes_by_rank_and_a_new_rank_counts() {
    let server = Server::start();
    let (mut connection, _client) = server.native(TransportConfig::default()).await;
    for (number, rank) in [(1, 0), (2, -7), (3, 7)] {
        connection.open_lane(number, &channel(&format!("room:{number}")), rank);
    }
    let flooded = flood(&mut connection, Lane::Subscription(1));
    // Too much to be light.
    let large = encode_delimited(&publication(1, 30_000));
    for number in 2..=3 {
        assert_eq!(connection.send(Lane::Subscription(number), &large).unwrap(), Sent::Taken);
    }
    assert!(connection.buffered() >= flooded + 2 * large.len(), "nothing of the two has gone");
    connection.rank_lane(2, 9);
    let others = flooded + large.len();
    poll_fn(|cx| {
        let _all = connection.poll_ready(cx, Lane::Control);
        if connection.buffered() <= others { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert!(poll_now(ready(&mut connection, Lane::Subscription(2))).is_some(), "the highest rank goes first");
}

#[tokio::test]
async fn datagrams_that_do_not_get_away_pause() {
    let server = Server::start();
    let (mut connection, client) = server.native(TransportConfig::default()).await;
    let bytes = encode_delimited(&publication(1, 900));
    let taken = (0..100).take_while(|_| connection.send_datagram(&bytes)).count();
    assert!((4..=9).contains(&taken), "{taken} datagrams were taken");
    for _ in 0..taken {
        client.connection.read_datagram().await.unwrap();
    }
    let pause = connection.rtt() * 4;
    tokio::time::sleep(pause).await;
    assert!(connection.send_datagram(&bytes), "they go on");
}
