//! Refusals before TLS, and who is known to be where it is.

use quinn::{ConnectionError, TransportConfig};
use quinn_proto::{ConnectionId, TransportErrorCode};
use tokio::task::JoinSet;

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
