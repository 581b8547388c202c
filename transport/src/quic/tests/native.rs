//! Native clients over loopback.

use quinn::{ConnectionError, TransportConfig, VarInt};
use tidegate_protocol::Epoch;
use tidegate_protocol::frame::Publish;

use super::*;

fn small_windows() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(8 * 1024)).receive_window(VarInt::from_u32(64 * 1024));
    transport
}

#[tokio::test]
async fn control_frames_go_both_ways() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    assert_eq!(connection.kind(), crate::TransportKind::Quic);
    assert_eq!(connection.remote_address().ip(), server.address.ip());
    client.say(&pong_frame(7)).await;
    assert_eq!(frames(&mut connection).await, [pong_frame(7)]);
    assert_eq!(connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap(), Sent::Taken);
    assert_eq!(client.control.next().await, Some(ping_frame()));
    assert_eq!(connection.buffered(), 0);
    assert!(connection.stats().sent_packets > 0 && connection.stats().rtt == connection.rtt());
}

#[tokio::test]
async fn many_small_frames_come_in_bounded_batches() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    let all: Vec<ClientFrame> = (1..=1000).map(pong_frame).collect();
    let bytes: Vec<u8> = all.iter().flat_map(encode_delimited).collect();
    client.send.write_all(&bytes).await.unwrap();
    let mut came = Vec::new();
    while came.len() < all.len() {
        let batch = frames(&mut connection).await;
        assert!(batch.len() <= 64, "{}", batch.len());
        came.extend(batch);
    }
    assert_eq!(came, all);
}

#[tokio::test]
async fn each_lane_has_a_stream_that_names_it() {
    let server = Server::start();
    let (mut connection, client) = server.native(TransportConfig::default()).await;
    connection.open_lane(5, &channel("room:1"), 0);
    connection.begin_epoch(5, &Epoch::new("e1"));
    for offset in 1..=3 {
        let bytes = encode_delimited(&publication(offset, 100));
        assert_eq!(connection.send(Lane::CatchUp(5), &bytes).unwrap(), Sent::Taken);
    }
    connection.finish_catch_up(5);
    let (header, mut catch_up) = client.accept_lane().await;
    assert_eq!(header, StreamHeader { channel: "room:1".into(), catch_up: true, epoch: "e1".into() });

    connection.send(Lane::Subscription(5), &encode_delimited(&publication(4, 100))).unwrap();
    let (header, mut live) = client.accept_lane().await;
    assert_eq!(header, StreamHeader { channel: "room:1".into(), catch_up: false, epoch: "e1".into() });
    assert_eq!(live.next().await, Some(publication(4, 100)));
    for offset in 1..=3 {
        assert_eq!(catch_up.next().await, Some(publication(offset, 100)));
    }
    assert_eq!(catch_up.next().await, None);

    // Another catch-up has another stream; closing the lane ends both.
    connection.send(Lane::CatchUp(5), &encode_delimited(&publication(5, 10))).unwrap();
    let (header, mut catch_up) = client.accept_lane().await;
    assert!(header.catch_up);
    connection.close_lane(5);
    assert_eq!(catch_up.next().await, Some(publication(5, 10)));
    assert_eq!(catch_up.next().await, None);
    assert_eq!(live.next().await, None);

    // The number can be used again.
    connection.open_lane(5, &channel("room:2"), 0);
    connection.send(Lane::Subscription(5), &encode_delimited(&publication(6, 10))).unwrap();
    assert_eq!(client.accept_lane().await.0.channel, "room:2");
}

#[tokio::test]
async fn datagrams_go_both_ways() {
    let server = Server::start();
    let (mut connection, client) = server.native(TransportConfig::default()).await;
    let publish = ClientFrame {
        id: 0,
        body: Some(ClientBody::Publish(Publish { ephemeral: true, ..Publish::default() })),
    };
    let two = [encode_delimited(&publish), encode_delimited(&pong_frame(2))].concat();
    client.connection.send_datagram(two.into()).unwrap();
    assert_eq!(datagram(&mut connection).await, [publish, pong_frame(2)]);
    assert!(connection.send_datagram(&encode_delimited(&publication(1, 200))));
    let bytes = client.connection.read_datagram().await.unwrap();
    assert_eq!(bytes, encode_delimited(&publication(1, 200)));
    assert!(!connection.send_datagram(&encode_delimited(&publication(2, 4000))), "it does not fit");
}

#[tokio::test]
async fn datagrams_are_refused_where_the_client_takes_none() {
    let server = Server::start();
    let mut transport = TransportConfig::default();
    transport.datagram_receive_buffer_size(None);
    let (mut connection, _client) = server.native(transport).await;
    assert!(!connection.send_datagram(&encode_delimited(&ping_frame())));
}

#[tokio::test]
async fn neither_datagrams_nor_control_starve_the_other() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    for id in 0..100 {
        client.connection.send_datagram(encode_delimited(&pong_frame(id))).unwrap();
    }
    let bytes: Vec<u8> = (1..=1000).map(pong_frame).flat_map(|frame| encode_delimited(&frame)).collect();
    client.send.write_all(&bytes).await.unwrap();
    // Acknowledged: all of it is here before the first is read.
    client.send.finish().unwrap();
    client.send.stopped().await.unwrap();
    let mut turns = Vec::new();
    for _ in 0..20 {
        turns.push(matches!(recv(&mut connection).await.unwrap(), Inbound::Datagram(_)));
    }
    assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_makes_the_lane_full_and_ready_again_when_it_does() {
    let server = Server::start();
    let (mut connection, client) = server.native(small_windows()).await;
    connection.open_lane(1, &channel("room:1"), 0);
    let lane = Lane::Subscription(1);
    let mut taken = 0;
    while connection.send(lane, &encode_delimited(&publication(taken + 1, 4096))).unwrap() == Sent::Taken {
        taken += 1;
        assert!(taken < 64, "256 KiB were taken for a client that does not read");
    }
    assert!(connection.buffered() > 0);
    assert!(poll_now(ready(&mut connection, lane)).is_none());
    // Another lane and control are not held up by it, beyond what QUIC itself holds for all.
    assert_eq!(connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap(), Sent::Taken);

    let read = async {
        let (_, mut live) = client.accept_lane().await;
        for offset in 1..=taken {
            assert_eq!(live.next().await, Some(publication(offset, 4096)));
        }
    };
    tokio::join!(read, ready(&mut connection, lane));
    let pushed = poll_fn(|cx| connection.poll_ready(cx, Lane::Control)).await;
    assert!(pushed.is_ok());
    assert_eq!(connection.buffered(), 0);
}

#[tokio::test]
async fn a_mebibyte_of_frames_survives_small_windows_on_several_lanes() {
    const FRAMES: u64 = 128;
    const BYTES: usize = 8 * 1024 + 13;
    let server = Server::start();
    let (mut connection, client) = server.native(small_windows()).await;
    for number in 1..=2 {
        connection.open_lane(number, &channel(&format!("room:{number}")), 0);
    }
    let lanes = [Lane::Control, Lane::Subscription(1), Lane::Subscription(2), Lane::CatchUp(1)];
    let write = async {
        let mut next = [1; 4];
        // Whatever takes something gets it: each lane blocks at its own pace.
        while next.iter().any(|offset| *offset <= FRAMES) {
            let mut full = 0;
            for (lane, offset) in lanes.into_iter().zip(&mut next) {
                if *offset > FRAMES {
                    continue;
                }
                match connection.send(lane, &encode_delimited(&publication(*offset, BYTES))).unwrap() {
                    Sent::Taken => *offset += 1,
                    Sent::Full => full += 1,
                }
            }
            if full > 0 {
                poll_fn(|cx| {
                    let mut any = false;
                    for (lane, offset) in lanes.into_iter().zip(&next) {
                        any |= *offset <= FRAMES && connection.poll_ready(cx, lane).is_ready();
                    }
                    if any { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
                })
                .await;
            }
        }
        connection.finish_catch_up(1);
        for number in 1..=2 {
            connection.close_lane(number);
        }
        // What is left over goes by being read from.
        assert!(matches!(recv(&mut connection).await, Ok(Inbound::Closed { code: Some(4000) })));
        assert_eq!(connection.buffered(), 0);
    };
    let Client { connection: dialled, send: _send, mut control } = client;
    let read = async {
        let on_control = async {
            for offset in 1..=FRAMES {
                assert_eq!(control.next().await, Some(publication(offset, BYTES)));
            }
        };
        let on_lane = async || {
            let mut frames = Frames::new(dialled.accept_uni().await.unwrap());
            frames.header().await;
            for offset in 1..=FRAMES {
                assert_eq!(frames.next().await, Some(publication(offset, BYTES)));
            }
            assert_eq!(frames.next().await, None);
        };
        tokio::join!(on_control, on_lane(), on_lane(), on_lane());
        dialled.close(VarInt::from_u32(4000), b"");
    };
    tokio::join!(write, read);
}

#[tokio::test]
async fn taken_bytes_go_out_to_a_connection_that_only_receives() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(small_windows()).await;
    connection.open_lane(1, &channel("room:1"), 0);
    // More than the client's window and the send buffer: most of it is left over.
    let bytes = encode_delimited(&publication(1, 500_000));
    assert_eq!(connection.send(Lane::Subscription(1), &bytes).unwrap(), Sent::Taken);
    assert_eq!(connection.send(Lane::Subscription(1), &bytes).unwrap(), Sent::Full);
    let read = async {
        let (_, mut live) = client.accept_lane().await;
        assert_eq!(live.next().await, Some(publication(1, 500_000)));
        client.say(&pong_frame(1)).await;
    };
    let ((), received) = tokio::join!(read, frames(&mut connection));
    assert_eq!(received, [pong_frame(1)]);
}

#[tokio::test]
async fn a_lane_closed_with_something_left_over_still_delivers_it() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(small_windows()).await;
    connection.open_lane(1, &channel("room:1"), 0);
    connection.send(Lane::Subscription(1), &encode_delimited(&publication(1, 300_000))).unwrap();
    connection.close_lane(1);
    assert!(connection.buffered() > 0);
    let read = async {
        let (_, mut live) = client.accept_lane().await;
        assert_eq!(live.next().await, Some(publication(1, 300_000)));
        assert_eq!(live.next().await, None);
        client.say(&pong_frame(1)).await;
    };
    let ((), received) = tokio::join!(read, frames(&mut connection));
    assert_eq!(received, [pong_frame(1)]);
    assert_eq!(connection.buffered(), 0);
}

#[tokio::test]
async fn coming_and_going_without_reading_piles_up_little() {
    let server = Server::start();
    let mut transport = TransportConfig::default();
    transport.receive_window(VarInt::from_u32(8 * 1024)).max_concurrent_uni_streams(VarInt::from_u32(1000));
    let (mut connection, _client) = server.native(transport).await;
    let bytes = encode_delimited(&publication(1, 1024));
    let mut full = 0;
    for number in 0..500 {
        connection.open_lane(number, &channel("room:1"), 0);
        full += usize::from(connection.send(Lane::Subscription(number), &bytes).unwrap() == Sent::Full);
        connection.close_lane(number);
    }
    // 8 KiB at the client, and one publication on each stream that still closes and on control.
    assert!(full >= 450, "{full}");
    assert!(connection.buffered() <= 34 * 1100, "{}", connection.buffered());
}

#[tokio::test]
async fn a_lane_without_stream_credit_is_on_control_and_looks_for_some_now_and_then() {
    let server = Server::start();
    let mut transport = TransportConfig::default();
    transport.max_concurrent_uni_streams(VarInt::from_u32(1));
    let (mut connection, mut client) = server.native(transport).await;
    for number in 1..=3 {
        connection.open_lane(number, &channel(&format!("room:{number}")), 0);
        connection
            .send(Lane::Subscription(number), &encode_delimited(&publication(number.into(), 10)))
            .unwrap();
    }
    let (header, mut live) = client.accept_lane().await;
    assert_eq!(header.channel, "room:1");
    assert_eq!(live.next().await, Some(publication(1, 10)));
    assert_eq!(client.control.next().await, Some(publication(2, 10)));
    assert_eq!(client.control.next().await, Some(publication(3, 10)));

    // Credit comes: a new lane gets a stream at once, room:2 when it looks again.
    client.connection.set_max_concurrent_uni_streams(VarInt::from_u32(10));
    client.say(&pong_frame(1)).await;
    assert_eq!(frames(&mut connection).await, [pong_frame(1)]);
    connection.send(Lane::Subscription(2), &encode_delimited(&publication(4, 10))).unwrap();
    assert_eq!(client.control.next().await, Some(publication(4, 10)));
    connection.open_lane(4, &channel("room:4"), 0);
    connection.send(Lane::Subscription(4), &encode_delimited(&publication(5, 10))).unwrap();
    assert_eq!(client.accept_lane().await.0.channel, "room:4");
    for offset in 5..=20 {
        connection.send(Lane::Subscription(2), &encode_delimited(&publication(offset, 10))).unwrap();
    }
    let (header, mut live) = client.accept_lane().await;
    assert_eq!(header.channel, "room:2");
    for offset in 5..=18 {
        assert_eq!(client.control.next().await, Some(publication(offset, 10)));
    }
    for offset in 19..=20 {
        assert_eq!(live.next().await, Some(publication(offset, 10)));
    }
}

#[tokio::test]
async fn another_epoch_has_other_streams_and_ends_those_of_the_one_before() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(small_windows()).await;
    connection.open_lane(1, &channel("room:1"), 0);
    connection.begin_epoch(1, &Epoch::new("e1"));
    connection.send(Lane::Subscription(1), &encode_delimited(&publication(1, 100))).unwrap();
    let (header, mut first) = client.accept_lane().await;
    assert_eq!((header.epoch.as_str(), header.catch_up), ("e1", false));
    // The same once more is nothing new.
    connection.begin_epoch(1, &Epoch::new("e1"));
    connection.send(Lane::CatchUp(1), &encode_delimited(&publication(2, 100_000))).unwrap();
    let (header, mut catch_up) = client.accept_lane().await;
    assert_eq!((header.epoch.as_str(), header.catch_up), ("e1", true));
    assert!(connection.buffered() > 0, "the client has not taken all of it");

    connection.begin_epoch(1, &Epoch::new("e2"));
    assert_eq!(connection.buffered(), 0, "what was left over is dropped");
    assert_eq!(first.next().await, Some(publication(1, 100)));
    assert_eq!(first.next().await, None, "what QUIC had still arrives");
    let reset = async {
        let mut chunk = [0; 4096];
        loop {
            match catch_up.recv.read(&mut chunk).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended as if that were all"),
                Err(error) => break error,
            }
        }
    };
    assert!(matches!(reset.await, quinn::ReadError::Reset(_)));
    connection.send(Lane::Subscription(1), &encode_delimited(&publication(1, 10))).unwrap();
    let (header, mut second) = client.accept_lane().await;
    assert_eq!((header.epoch.as_str(), header.catch_up), ("e2", false));
    assert_eq!(second.next().await, Some(publication(1, 10)));
    connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
    assert_eq!(client.control.next().await, Some(ping_frame()));
}

#[tokio::test]
async fn a_stream_that_the_client_stopped_swallows_what_comes_for_it() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(small_windows()).await;
    connection.open_lane(1, &channel("room:1"), 0);
    connection.send(Lane::Subscription(1), &encode_delimited(&publication(1, 100_000))).unwrap();
    let (_, mut live) = client.accept_lane().await;
    live.recv.stop(VarInt::from_u32(9)).unwrap();
    client.say(&pong_frame(1)).await;
    assert_eq!(frames(&mut connection).await, [pong_frame(1)]);
    ready(&mut connection, Lane::Subscription(1)).await;
    assert_eq!(connection.buffered(), 0);
    for _ in 0..10 {
        let bytes = encode_delimited(&publication(2, 100_000));
        assert_eq!(connection.send(Lane::Subscription(1), &bytes).unwrap(), Sent::Taken);
    }
    assert_eq!(connection.buffered(), 0);
    connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
    assert_eq!(client.control.next().await, Some(ping_frame()));
}

#[tokio::test]
async fn a_client_that_stops_control_is_out_of_order() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    client.control.recv.stop(VarInt::from_u32(9)).unwrap();
    client.say(&pong_frame(1)).await;
    assert_eq!(frames(&mut connection).await, [pong_frame(1)]);
    let error = connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap_err();
    assert!(matches!(error, RecvError::Protocol { code: CloseCode::OutOfOrder, .. }), "{error}");
}

#[tokio::test]
async fn an_oversized_frame_is_refused_by_its_length_alone() {
    let config = QuicConfig { frame_limit: 1000, ..QuicConfig::default() };
    let server = Server::with(config, 1);
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    client.send.write_all(&[0xe9, 0x07]).await.unwrap(); // 1,001
    assert_eq!(protocol_error(&mut connection).await, CloseCode::FrameTooLarge);
    assert!(matches!(recv(&mut connection).await, Err(RecvError::Lost(_))));
}

#[tokio::test]
async fn garbage_is_refused_after_the_frames_before_it() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    let bytes = [&encode_delimited(&pong_frame(3))[..], &[0x03, 0xff, 0xff, 0xff]].concat();
    client.send.write_all(&bytes).await.unwrap();
    assert_eq!(frames(&mut connection).await, [pong_frame(3)]);
    assert_eq!(protocol_error(&mut connection).await, CloseCode::BadFrame);
}

#[tokio::test]
async fn a_control_stream_that_ends_inside_a_frame_is_malformed() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    client.send.write_all(&[0x05, 0x08]).await.unwrap();
    client.send.finish().unwrap();
    assert_eq!(protocol_error(&mut connection).await, CloseCode::BadFrame);
}

#[tokio::test]
async fn a_malformed_datagram_is_refused() {
    for bytes in [&[0x05, 0x08][..], &[0x02, 0xff, 0xff]] {
        let server = Server::start();
        let (mut connection, client) = server.native(TransportConfig::default()).await;
        client.connection.send_datagram(Bytes::copy_from_slice(bytes)).unwrap();
        assert_eq!(protocol_error(&mut connection).await, CloseCode::BadFrame);
    }
}

#[tokio::test]
async fn further_streams_are_out_of_order() {
    let server = Server::start();
    let (mut connection, client) = server.native(TransportConfig::default()).await;
    let (mut send, _recv) = client.connection.open_bi().await.unwrap();
    send.write_all(b"x").await.unwrap();
    assert_eq!(protocol_error(&mut connection).await, CloseCode::OutOfOrder);

    let (mut connection, client) = server.native(TransportConfig::default()).await;
    let mut send = client.connection.open_uni().await.unwrap();
    send.write_all(b"x").await.unwrap();
    assert_eq!(protocol_error(&mut connection).await, CloseCode::OutOfOrder);
}

#[tokio::test]
async fn the_clients_close_code_comes_after_its_last_frames() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    client.say(&pong_frame(1)).await;
    // Acknowledged, so that the close does not overtake it.
    client.send.finish().unwrap();
    client.send.stopped().await.unwrap();
    client.connection.close(VarInt::from_u32(4000), b"bye");
    server.endpoints[0].wait_idle().await;
    assert_eq!(frames(&mut connection).await, [pong_frame(1)]);
    let closed = recv(&mut connection).await;
    assert!(matches!(closed, Ok(Inbound::Closed { code: Some(4000) })), "{closed:?}");
}

#[tokio::test]
async fn the_end_of_control_is_an_orderly_close_and_its_reset_one_with_a_code() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    client.send.finish().unwrap();
    assert!(matches!(recv(&mut connection).await, Ok(Inbound::Closed { code: None })));

    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    client.send.reset(VarInt::from_u32(4003)).unwrap();
    assert!(matches!(recv(&mut connection).await, Ok(Inbound::Closed { code: Some(4003) })));
}

#[tokio::test]
async fn a_silent_client_is_lost_at_the_idle_timeout() {
    let config = QuicConfig { idle_timeout: Duration::from_millis(200), ..QuicConfig::default() };
    let server = Server::with(config, 1);
    let (mut connection, _client) = server.native(TransportConfig::default()).await;
    let lost = recv(&mut connection).await;
    assert!(matches!(lost, Err(RecvError::Lost(_))), "{lost:?}");
    // Nothing is left to wait for.
    assert_eq!(connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap(), Sent::Taken);
    close(&mut connection, CloseCode::ConnectionLost, "").await;
}

#[tokio::test]
async fn the_servers_close_reaches_a_slow_reader_whole() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(small_windows()).await;
    let reason = "x".repeat(200);
    let write = async {
        for offset in 1..=20 {
            send_all(&mut connection, Lane::Control, &encode_delimited(&publication(offset, 10_000))).await;
        }
        close(&mut connection, CloseCode::Shutdown, &reason).await;
    };
    let read = async {
        for offset in 1..=20 {
            assert_eq!(client.control.next().await, Some(publication(offset, 10_000)));
        }
        let Some(ServerFrame { body: Some(ServerBody::Close(close)), .. }) = client.control.next().await
        else {
            panic!("no close frame")
        };
        assert_eq!((close.code, close.reason), (4100, "x".repeat(120)));
        assert_eq!(client.control.next().await, None);
        client.connection.closed().await
    };
    let ((), end) = tokio::join!(write, read);
    let ConnectionError::ApplicationClosed(end) = end else { panic!("{end}") };
    assert_eq!(end.error_code, VarInt::from_u32(4100));
    assert_eq!(end.reason, "x".repeat(120));
}

#[tokio::test]
async fn closing_ends_early_when_the_client_hangs_up() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(small_windows()).await;
    // Control is blocked: there is no end to wait for but the client's.
    connection.send(Lane::Control, &encode_delimited(&publication(1, 500_000))).unwrap();
    let closing = Closing { code: CloseCode::Shutdown, reason: String::new() };
    let mut closed = pin!(poll_fn(|cx| connection.poll_close(cx, &closing)));
    assert!(poll_now(closed.as_mut()).is_none());
    let hang_up = async {
        assert!(client.control.read().await);
        client.connection.close(VarInt::from_u32(0), b"");
    };
    tokio::join!(closed, hang_up);
}

#[tokio::test]
async fn dropping_closes_with_the_code_that_was_begun_or_shutdown() {
    let server = Server::start();
    let (connection, client) = server.native(TransportConfig::default()).await;
    drop(connection);
    assert_eq!(closed_with(&client.connection).await, CloseCode::Shutdown.number());

    let (mut connection, client) = server.native(small_windows()).await;
    connection.send(Lane::Control, &encode_delimited(&publication(1, 500_000))).unwrap();
    let closing = Closing { code: CloseCode::SlowConsumer, reason: "slow".into() };
    assert!(poll_now(poll_fn(|cx| connection.poll_close(cx, &closing))).is_none());
    drop(connection);
    assert_eq!(closed_with(&client.connection).await, CloseCode::SlowConsumer.number());
}

#[tokio::test]
async fn dropping_what_is_pending_closes_it() {
    let server = Server::start();
    let (pending, client) =
        tokio::join!(server.native_pending(), server.dial(ALPN_NATIVE, TransportConfig::default()));
    let mut accept = Box::pin(pending.accept());
    assert!(poll_now(accept.as_mut()).is_none());
    drop(accept);
    assert_eq!(closed_with(&client).await, CloseCode::ConnectTimeout.number());

    let (pending, client) =
        tokio::join!(server.native_pending(), server.dial(ALPN_NATIVE, TransportConfig::default()));
    assert_eq!(pending.remote_address().ip(), server.address.ip());
    pending.close(CloseCode::Overloaded, "full");
    assert_eq!(closed_with(&client).await, CloseCode::Overloaded.number());
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_ends_at_its_timeout() {
    let limit = Duration::from_millis(100);
    let server = Server::with(QuicConfig { handshake_timeout: limit, ..QuicConfig::default() }, 1);
    // Between the two stands somebody who passes on the client's first packets and no answer.
    let between = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (endpoint, config) = server.client(ALPN_NATIVE, TransportConfig::default());
    let dialling = endpoint.connect_with(config, between.local_addr().unwrap(), "localhost").unwrap();
    let relay = async {
        let mut packet = vec![0; 2048];
        loop {
            let (length, _) = between.recv_from(&mut packet).await.unwrap();
            between.send_to(&packet[..length], server.address).await.unwrap();
        }
    };
    let pending = tokio::select! {
        pending = server.pending() => pending,
        () = relay => unreachable!(),
    };
    assert!(matches!(pending, Err(QuicError::HandshakeTimeout(after)) if after == limit), "{pending:?}");
    drop(dialling);
    server.endpoints[0].wait_idle().await;
}

#[tokio::test]
async fn clients_are_refused_or_made_to_prove_their_address() {
    let server = Server::start();
    let (endpoint, config) = server.client(ALPN_NATIVE, TransportConfig::default());
    let dial = endpoint.connect_with(config.clone(), server.address, "localhost").unwrap();
    let refuse = async { server.endpoints[0].accept().await.unwrap().refuse() };
    let ((), dialled) = tokio::join!(refuse, dial);
    assert!(matches!(dialled, Err(ConnectionError::ConnectionClosed(_))), "{dialled:?}");

    let dial = endpoint.connect_with(config, server.address, "localhost").unwrap();
    let retry = async {
        let first = server.endpoints[0].accept().await.unwrap();
        assert!(!first.is_validated());
        first.retry();
        let second = server.endpoints[0].accept().await.unwrap();
        assert!(second.is_validated());
        second.handshake().await.unwrap()
    };
    let (pending, dialled) = tokio::join!(retry, dial);
    assert!(matches!(pending, Pending::Quic(_)) && dialled.is_ok());
}

#[tokio::test]
async fn an_unknown_alpn_is_refused_by_tls() {
    let server = Server::start();
    let (endpoint, config) = server.client(b"h2", TransportConfig::default());
    let dial = endpoint.connect_with(config, server.address, "localhost").unwrap();
    let (pending, dialled) = tokio::join!(server.pending(), dial);
    assert!(matches!(pending, Err(QuicError::Lost(_))) && dialled.is_err());
}

#[tokio::test]
async fn closing_the_endpoint_ends_connections_and_accepting() {
    let server = Server::start();
    let (_connection, client) = server.native(TransportConfig::default()).await;
    assert_eq!(server.endpoints[0].open_connections(), 1);
    assert_eq!(server.endpoints[0].local_address().unwrap(), server.address);
    server.endpoints[0].close(CloseCode::Shutdown, "going");
    assert_eq!(closed_with(&client.connection).await, CloseCode::Shutdown.number());
    server.endpoints[0].wait_idle().await;
    assert!(server.endpoints[0].accept().await.is_none());
}

#[tokio::test]
async fn keys_are_updated_under_traffic_from_either_side() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(TransportConfig::default()).await;
    // quinn's server updates by itself within its first thousand packets.
    for round in 0..1200 {
        if round % 100 == 50 {
            client.connection.force_key_update();
        }
        client.say(&pong_frame(round)).await;
        assert_eq!(frames(&mut connection).await, [pong_frame(round)]);
        connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
        assert_eq!(client.control.next().await, Some(ping_frame()));
    }
    assert!(client.connection.close_reason().is_none());
}

#[tokio::test]
async fn a_handshake_survives_loss_and_repetition() {
    let server = Server::start();
    // Between the two stands somebody who swallows a client's first Finished and says everything else twice.
    let between = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (endpoint, config) = server.client(ALPN_NATIVE, TransportConfig::default());
    let client_address = endpoint.local_addr().unwrap();
    let relay = async {
        let mut packet = vec![0; 2048];
        let mut from_client = 0;
        loop {
            let (length, from) = between.recv_from(&mut packet).await.unwrap();
            let to = if from == client_address { server.address } else { client_address };
            from_client += usize::from(from == client_address);
            if from == client_address && (2..=4).contains(&from_client) {
                continue;
            }
            for _ in 0..2 {
                between.send_to(&packet[..length], to).await.unwrap();
            }
        }
    };
    let client = async {
        let dial = endpoint.connect_with(config, between.local_addr().unwrap(), "localhost").unwrap();
        let connection = dial.await.unwrap();
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&encode_delimited(&connect_frame())).await.unwrap();
        (Client { connection, send, control: Frames::new(recv) }, endpoint)
    };
    let accept = async { server.native_pending().await.accept().await.unwrap() };
    let talk = async {
        let (mut connection, (mut client, _endpoint)) = tokio::join!(accept, client);
        assert_eq!(frames(&mut connection).await, [connect_frame()]);
        for round in 0..20 {
            client.say(&pong_frame(round)).await;
            assert_eq!(frames(&mut connection).await, [pong_frame(round)]);
        }
    };
    tokio::select! {
        () = talk => {}
        () = relay => unreachable!(),
    }
}

async fn closed_with(connection: &quinn::Connection) -> u32 {
    match connection.closed().await {
        ConnectionError::ApplicationClosed(close) => u32::try_from(close.error_code.into_inner()).unwrap(),
        other => panic!("{other}"),
    }
}
