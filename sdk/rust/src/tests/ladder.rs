//! Which transport is used, and how a session comes from one to another.

use std::time::Duration;

use tidegate_protocol::frame::codec::encode_delimited;
use tidegate_protocol::frame::{ClientBody, ServerFrame};
use tokio::net::UdpSocket;

use super::quic::Peer;
use super::websocket::Server;
use super::{bytes, next, next_publication, quic, soon};
use crate::{
    Client, ClientError, ClientEvent, LadderConfig, State, SubscribeOptions, SubscriptionEvent, Transport,
};

#[tokio::test]
async fn a_black_hole_is_left_to_the_websocket_and_remembered() {
    let hole = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let quic = format!("quic://{}", hole.local_addr().unwrap());
    let (mut server, url) = Server::new().await;
    let serve = async {
        for _ in 0..2 {
            let mut socket = server.accept().await;
            server.serve(&mut socket, |frame| matches!(frame.body, Some(ClientBody::Done(_)))).await;
        }
    };
    let client = async {
        let hash = "00".repeat(32);
        let builder = Client::builder(quic).with_url(url).with_certificate_hash(hash);
        let client = soon(builder.clone().connect()).await.unwrap();
        assert_eq!(client.transport(), Some(Transport::WebSocket));
        assert_eq!(client.session(), Some("0".repeat(32)));
        let memory = client.ladder_memory().await.unwrap();
        soon(client.close()).await;
        let mut packet = [0; 2_000];
        assert!(hole.try_recv(&mut packet).is_ok(), "QUIC was not tried");
        while hole.try_recv(&mut packet).is_ok() {}
        let client = soon(builder.with_ladder_memory(memory).connect()).await.unwrap();
        assert_eq!(client.transport(), Some(Transport::WebSocket));
        assert!(hole.try_recv(&mut packet).is_err(), "QUIC was tried");
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}

#[tokio::test]
async fn a_session_moves_when_the_app_says_so() {
    let (endpoint, quic, hash) = quic::server();
    let (mut server, url) = Server::new().await;
    let serve = async {
        let mut socket = server.accept().await;
        // What the app asks goes here, until the session is on the other connection and has said so.
        server.serve(&mut socket, |frame| matches!(frame.body, Some(ClientBody::Publish(_)))).await;
        let mut peer = Peer::accept(&endpoint).await;
        let mut live = None;
        while let Some(frame) = peer.next().await {
            let (answer, publication) = server.gateway.handle(frame);
            if let Some(frame) = publication {
                if live.is_none() {
                    live = Some(peer.lane(false).await);
                }
                send(live.as_mut().unwrap(), &frame).await;
            }
            if let Some(answer) = answer {
                peer.answer(answer).await;
            }
        }
    };
    let client = async {
        let client = Client::builder(url).with_url(quic).with_certificate_hash(hash.to_string());
        let client = soon(client.connect()).await.unwrap();
        assert_eq!(client.state(), State::Connected { transport: Transport::WebSocket }, "the URLs' order");
        let mut events = client.take_events().unwrap();
        let options = SubscribeOptions { rank: 7, ..SubscribeOptions::default() };
        let mut room = client.subscribe_with("room", options).await.unwrap();
        assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { .. }));
        soon(client.publish("room", bytes("one"))).await.unwrap();
        assert_eq!(next_publication(&mut room).await, (1, "one".to_owned()));
        let nowhere = soon(client.move_to(Transport::LongPoll)).await;
        assert!(matches!(nowhere, Err(ClientError::NotMoved(_))), "{nowhere:?}");
        soon(client.move_to(Transport::Quic)).await.unwrap();
        assert_eq!(client.transport(), Some(Transport::Quic));
        soon(client.publish("room", bytes("two"))).await.unwrap();
        assert_eq!(next_publication(&mut room).await, (2, "two".to_owned()));
        assert!(matches!(
            soon(events.next()).await,
            Some(ClientEvent::Connected { transport: Transport::WebSocket, resumed: false, .. })
        ));
        assert!(matches!(soon(events.next()).await, Some(ClientEvent::Moved { transport: Transport::Quic })));
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
    let ranks = server.gateway.seen.iter().filter_map(|frame| match &frame.body {
        Some(ClientBody::Subscribe(subscribe)) => Some(subscribe.rank),
        _ => None,
    });
    assert_eq!(ranks.collect::<Vec<_>>(), [7, 7]);
}

async fn send(lane: &mut quinn::SendStream, frame: &ServerFrame) {
    lane.write_all(&encode_delimited(frame)).await.unwrap();
}

#[tokio::test]
async fn one_url_serves_all_transports() {
    let (mut server, url) = Server::new().await;
    let serve = async {
        let mut socket = server.accept().await;
        server.serve(&mut socket, |_| false).await;
    };
    let client = async {
        // Nobody listens there by UDP, and nothing ever comes back.
        let ladder = LadderConfig { head_start_min: Duration::ZERO, ..LadderConfig::default() };
        let builder = Client::builder(url)
            .with_transports([Transport::Quic, Transport::WebSocket, Transport::LongPoll])
            .with_certificate_hash("00".repeat(32))
            .with_ladder(ladder)
            .with_network_key("lab");
        let client = soon(builder.connect()).await.unwrap();
        assert_eq!(client.transport(), Some(Transport::WebSocket));
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}
