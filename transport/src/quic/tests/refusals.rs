//! Refusals before TLS, and who is known to be where it is.

use std::task::Poll;

use quinn::{ConnectionError, TransportConfig};
use quinn_proto::{ConnectionId, TransportErrorCode};
use tokio::task::JoinSet;

use super::early::say_connect;
use super::relay::{Relay, socket_to};
use super::*;

/// Shows 20 bytes, the last of which is `number`.
fn showing(mut config: quinn::ClientConfig, number: u8) -> quinn::ClientConfig {
    config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&ticket(number))));
    config
}

fn ticket(number: u8) -> [u8; 20] {
    let mut ticket = [0xe1; 20];
    ticket[19] = number;
    ticket
}

fn reason(number: u8) -> String {
    format!("ra={number}00;t=4QJ0000000000000000000000{number:02}")
}

async fn refused(connecting: quinn::Connecting) -> String {
    match connecting.await.expect_err("refused") {
        ConnectionError::ConnectionClosed(close) => {
            assert_eq!(close.error_code, TransportErrorCode::CONNECTION_REFUSED);
            String::from_utf8(close.reason.to_vec()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_client_of_a_socket_is_told_its_own_reason() {
    let server = Server::start();
    let (endpoint, config) = server.client(ALPN_NATIVE, TransportConfig::default());
    let mut clients = JoinSet::new();
    for number in 0..40 {
        let config = showing(config.clone(), number);
        let client = endpoint.connect_with(config, server.address, "localhost").unwrap();
        clients.spawn(async move { (number, refused(client).await) });
    }
    for _ in 0..40 {
        let incoming = server.endpoints[0].accept().await.unwrap();
        let number = incoming.chosen_id()[19];
        assert_eq!(*incoming.chosen_id(), ticket(number));
        incoming.refuse_with(&reason(number));
    }
    while let Some(told) = clients.join_next().await {
        let (number, told) = told.unwrap();
        assert_eq!(told, reason(number));
    }
    assert_eq!(server.endpoints[0].open_connections(), 0);
}

#[tokio::test]
async fn what_a_client_shows_and_is_told_survives_a_retry() {
    let server = Server::start();
    let (endpoint, config) = server.client(ALPN_NATIVE, TransportConfig::default());
    let client = endpoint.connect_with(showing(config, 7), server.address, "localhost").unwrap();
    let mut clients = JoinSet::new();
    clients.spawn(refused(client));
    let incoming = server.endpoints[0].accept().await.unwrap();
    assert!(!incoming.is_validated());
    incoming.retry();
    let incoming = server.endpoints[0].accept().await.unwrap();
    assert!(incoming.is_validated());
    assert_eq!(*incoming.chosen_id(), ticket(7));
    incoming.refuse_with(&"x".repeat(200));
    assert_eq!(clients.join_next().await.unwrap().unwrap(), "x".repeat(127));
}

#[tokio::test]
async fn who_is_ignored_asks_again() {
    let server = Server::start();
    let (endpoint, config) = server.client(ALPN_NATIVE, TransportConfig::default());
    let client = endpoint.connect_with(showing(config, 7), server.address, "localhost").unwrap();
    let mut clients = JoinSet::new();
    clients.spawn(refused(client));
    server.endpoints[0].accept().await.unwrap().ignore();
    let incoming = server.endpoints[0].accept().await.unwrap();
    assert_eq!(*incoming.chosen_id(), ticket(7));
    incoming.refuse_with("elsewhere");
    assert_eq!(clients.join_next().await.unwrap().unwrap(), "elsewhere");
}

#[tokio::test]
async fn who_was_here_before_is_known_to_be_where_it_is() {
    let server = Server::start();
    let (endpoint, config) = server.client(ALPN_NATIVE, TransportConfig::default());
    for before in [false, true] {
        let serve = async {
            let incoming = server.endpoints[0].accept().await.unwrap();
            let validated = incoming.is_validated();
            let Pending::Quic(pending) = incoming.handshake().await.unwrap() else { panic!("not native") };
            (validated, pending.accept().await.unwrap())
        };
        let client = async {
            let connecting = endpoint.connect_with(config.clone(), server.address, "localhost").unwrap();
            let connection = connecting.await.unwrap();
            let (mut send, recv) = connection.open_bi().await.unwrap();
            send.write_all(&encode_delimited(&connect_frame())).await.unwrap();
            (connection, send, recv)
        };
        let ((validated, mut connection), (client, _send, recv)) = tokio::join!(serve, client);
        assert_eq!(validated, before);
        assert_eq!(frames(&mut connection).await, [connect_frame()]);
        // Its tokens come before this does.
        connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
        assert_eq!(Frames::new(recv).next().await, Some(ping_frame()));
        client.close(0_u32.into(), b"");
    }
}

/// quinn's own limit lets the datagram pass that oversteps: the first probe behind an answer of two and a bit.
#[tokio::test]
async fn an_address_that_proves_nothing_gets_three_times_what_came_from_it_and_no_more() {
    let config = QuicConfig {
        handshake_timeout: Duration::from_millis(500),
        // Many probes before that.
        initial_rtt: Duration::from_millis(5),
        ..QuicConfig::default()
    };
    let server = Server::with(config, 1);
    let relay = Relay::start(server.address).await;
    relay.set(|rules| rules.hold_client = true);
    let (endpoint, config) = server.client(ALPN_NATIVE, TransportConfig::default());
    let _client = endpoint.connect_with(config, relay.address, "localhost").unwrap();
    let flight = poll_fn(|cx| {
        cx.waker().wake_by_ref();
        relay.rules().recorded.first().cloned().map_or(Poll::Pending, Poll::Ready)
    })
    .await;

    let victims = [socket_to(server.address).await, socket_to(server.address).await];
    let mut received = [0, 0];
    for (times, (victim, received)) in victims.iter().zip(&mut received).enumerate() {
        for _ in 0..=times {
            victim.send(&flight).await.unwrap();
        }
        let ended = server.pending().await;
        assert!(matches!(ended, Err(QuicError::HandshakeTimeout(_))), "{ended:?}");
        server.endpoints[0].wait_idle().await;
        while let Ok(bytes) = victim.try_recv(&mut [0; 2048]) {
            *received += bytes;
        }
        let sent = flight.len() * (times + 1);
        assert!(*received <= 3 * sent, "{received} bytes for {sent}");
    }
    // It was answered, and again when more had come.
    assert!(received[0] > 2 * 1200 && received[1] > received[0], "{received:?}");
}

#[tokio::test]
async fn a_lost_answer_does_not_hold_up_who_asks_again() {
    let server = Server::start();
    let relay = Relay::start(server.address).await;
    relay.set(|rules| rules.lose_answers = 2);
    let dialer = server.dialer();
    let serve = async { server.native_pending().await.accept().await.unwrap() };
    let client = async {
        let client = dialer.dial(relay.address, "localhost", false).await.unwrap();
        (say_connect(&client).await, client)
    };
    let (mut connection, _client) = tokio::join!(serve, client);
    assert_eq!(frames(&mut connection).await, [connect_frame()]);
    assert_eq!(relay.rules().lose_answers, 0);
}
