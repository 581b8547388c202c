//! Early data (0-RTT): who may say something in the first flight, and that a recorded one is worth nothing.

use std::task::Poll;

use quinn::VarInt;

use super::relay::{Relay, socket_to};
use super::*;

/// Dials, says `connect` and has an answer: by then the ticket is there, too. Hangs up.
async fn meet(server: &Server, dialer: &QuicDialer) {
    let client = async {
        let mut client = dialer.dial(server.address, "localhost", true).await.unwrap();
        assert!(!client.is_early() && client.established().await.unwrap() == EarlyData::Unsent);
        let (_send, mut control) = say_connect(&client).await;
        assert_eq!(control.next().await, Some(ping_frame()));
        client.connection().close(VarInt::from_u32(0), b"");
    };
    let serve = async {
        let mut connection = server.native_pending().await.accept().await.unwrap();
        assert_eq!(frames(&mut connection).await, [connect_frame()]);
        assert!(!connection.is_early());
        connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
        assert!(matches!(recv(&mut connection).await, Ok(Inbound::Closed { .. })));
    };
    tokio::join!(client, serve);
}

pub(super) async fn say_connect(client: &QuicClient) -> (quinn::SendStream, Frames) {
    let (mut send, recv) = client.connection().open_bi().await.unwrap();
    send.write_all(&encode_delimited(&connect_frame())).await.unwrap();
    (send, Frames::new(recv))
}

async fn established(connection: &mut QuicConnection) -> Result<(), RecvError> {
    poll_fn(|cx| connection.poll_established(cx)).await
}

fn impatient() -> QuicConfig {
    QuicConfig {
        handshake_timeout: Duration::from_millis(200),
        // A connection is forgotten after three PTOs.
        initial_rtt: Duration::from_millis(10),
        ..QuicConfig::default()
    }
}

#[tokio::test]
async fn a_client_that_was_here_before_is_heard_before_its_handshake_is_complete() {
    let server = Server::start();
    let dialer = server.dialer();
    meet(&server, &dialer).await;

    let relay = Relay::start(server.address).await;
    relay.set(|rules| rules.hold_server = true);
    let mut client = dialer.dial(relay.address, "localhost", true).await.unwrap();
    assert!(client.is_early(), "not one datagram of the server's came");
    let (_send, mut control) = say_connect(&client).await;
    let mut connection = server.native_pending().await.accept().await.unwrap();
    assert_eq!(frames(&mut connection).await, [connect_frame()]);
    assert!(connection.is_early() && poll_now(established(&mut connection)).is_none());
    assert!(poll_now(recv(&mut connection)).is_none() && connection.is_early());

    relay.set(|rules| rules.hold_server = false);
    let (theirs, ours) = tokio::join!(client.established(), established(&mut connection));
    assert_eq!((theirs.unwrap(), ours.unwrap()), (EarlyData::Accepted, ()));
    assert!(!connection.is_early() && !client.is_early());
    connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
    assert_eq!(control.next().await, Some(ping_frame()));
}

#[tokio::test]
async fn a_task_that_only_receives_is_told_too() {
    let server = Server::start();
    let dialer = server.dialer();
    meet(&server, &dialer).await;
    let relay = Relay::start(server.address).await;
    relay.set(|rules| rules.hold_server = true);
    let client = dialer.dial(relay.address, "localhost", true).await.unwrap();
    let _control = say_connect(&client).await;
    let mut connection = server.native_pending().await.accept().await.unwrap();
    assert_eq!(frames(&mut connection).await, [connect_frame()]);
    relay.set(|rules| rules.hold_server = false);
    poll_fn(|cx| {
        assert!(connection.poll_recv(cx).is_pending());
        if connection.is_early() { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

#[tokio::test]
async fn a_recorded_first_flight_is_taken_once() {
    let server = Server::with(impatient(), 1);
    let dialer = server.dialer();
    meet(&server, &dialer).await;
    let relay = Relay::start(server.address).await;
    relay.set(|rules| rules.hold_server = true);
    let client = dialer.dial(relay.address, "localhost", true).await.unwrap();
    let _control = say_connect(&client).await;
    let mut connection = server.native_pending().await.accept().await.unwrap();
    assert_eq!(frames(&mut connection).await, [connect_frame()]);
    assert!(connection.is_early());
    let flight = relay.rules().recorded.clone();

    // The server must have forgotten the connection: until then the same first id is the same connection.
    drop((client, connection, relay));
    server.endpoints[0].wait_idle().await;
    for _ in 0..10 {
        let mut sockets = Vec::new();
        for _ in 0..10 {
            let socket = socket_to(server.address).await;
            for datagram in &flight {
                socket.send(datagram).await.unwrap();
            }
            sockets.push(socket);
        }
        // Answered with a handshake that only the client could go on with; early data does not come of it.
        let ended = server.pending().await;
        assert!(matches!(ended, Err(QuicError::HandshakeTimeout(_))), "{ended:?}");
        let answered = sockets[0].try_recv(&mut [0; 2048]).unwrap();
        assert!(answered >= 1200, "the server's hello: {answered} bytes");
        server.endpoints[0].wait_idle().await;
        assert!(poll_now(server.endpoints[0].accept()).is_none(), "one first id is one connection");
    }
}

#[tokio::test]
async fn a_replay_that_overtakes_the_client_stays_early_and_the_client_is_told() {
    let server = Server::with(impatient(), 1);
    let dialer = server.dialer();
    meet(&server, &dialer).await;
    let relay = Relay::start(server.address).await;
    relay.set(|rules| rules.hold_client = true);
    let mut client = dialer.dial(relay.address, "localhost", true).await.unwrap();
    let (mut early, _control) = say_connect(&client).await;
    // Nothing of it has reached the server: the thief has it all.
    let thief = socket_to(server.address).await;
    let mut sent = 0;
    let pending = server.native_pending();
    let mut pending = pin!(pending);
    let pending = poll_fn(|cx| {
        let recorded = relay.rules().recorded.clone();
        for datagram in &recorded[sent..] {
            thief.try_send(datagram).unwrap();
        }
        sent = recorded.len();
        cx.waker().wake_by_ref();
        pending.as_mut().poll(cx)
    })
    .await;
    let mut connection = pending.accept().await.unwrap();
    assert_eq!(frames(&mut connection).await, [connect_frame()]);
    assert!(connection.is_early());
    // It cannot complete the handshake, and is not waited for.
    assert!(matches!(established(&mut connection).await, Err(RecvError::Lost(_))));
    assert!(matches!(recv(&mut connection).await, Err(RecvError::Lost(_))));
    assert!(connection.is_early() && established(&mut connection).await.is_err());
    drop(connection);
    server.endpoints[0].wait_idle().await;

    relay.set(|rules| rules.hold_client = false);
    let serve = async {
        let mut connection = server.native_pending().await.accept().await.unwrap();
        assert_eq!(frames(&mut connection).await, [connect_frame()]);
        assert!(!connection.is_early());
    };
    let again = async {
        assert_eq!(client.established().await.unwrap(), EarlyData::Rejected);
        assert!(matches!(early.write(b"more").await, Err(quinn::WriteError::ZeroRttRejected)));
        say_connect(&client).await
    };
    tokio::join!(serve, again);
}

#[tokio::test]
async fn early_data_can_be_switched_off() {
    let server = Server::with(QuicConfig { early_data: false, ..QuicConfig::default() }, 1);
    let dialer = server.dialer();
    for _ in 0..3 {
        meet(&server, &dialer).await;
    }
}

/// Of the same fleet: the ticket is read there, and what is said early is not. So there is nothing to be gained by it.
#[tokio::test]
async fn at_another_node_a_client_says_again_what_it_said_early() {
    let [server, other] = Server::two();
    for _ in 0..10 {
        let dialer = server.dialer();
        meet(&server, &dialer).await;
        let client = async {
            let mut client = dialer.dial(other.address, "localhost", true).await.unwrap();
            assert!(client.is_early());
            let (_early, _recv) = say_connect(&client).await;
            assert_eq!(client.established().await.unwrap(), EarlyData::Rejected);
            let (_send, mut control) = say_connect(&client).await;
            assert_eq!(control.next().await, Some(ping_frame()));
            client.connection().close(VarInt::from_u32(0), b"");
        };
        let serve = async {
            let mut connection = other.native_pending().await.accept().await.unwrap();
            assert_eq!(frames(&mut connection).await, [connect_frame()]);
            assert!(!connection.is_early());
            connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
            assert!(matches!(recv(&mut connection).await, Ok(Inbound::Closed { .. })));
        };
        tokio::join!(client, serve);
    }
}
