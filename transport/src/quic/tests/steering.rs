//! Connections stay with their worker.

use quinn::TransportConfig;

use super::*;

#[tokio::test]
async fn connections_stay_at_their_worker_when_clients_move() {
    const CLIENTS: usize = 20;
    const CONNECTIONS: usize = 10;
    let server = Server::with(QuicConfig::default(), 2);
    let mut dialled = Vec::new();
    let dial = async {
        for _ in 0..CLIENTS {
            let (endpoint, config) = server.client(ALPN_NATIVE, TransportConfig::default());
            for _ in 0..CONNECTIONS {
                let dial = endpoint.connect_with(config.clone(), server.address, "localhost").unwrap();
                let connection = dial.await.unwrap();
                let (mut send, recv) = connection.open_bi().await.unwrap();
                send.write_all(&encode_delimited(&connect_frame())).await.unwrap();
                dialled.push((endpoint.clone(), Client { connection, send, control: Frames::new(recv) }));
            }
        }
    };
    let mut accepted = Vec::new();
    let accept = async {
        while accepted.len() < CLIENTS * CONNECTIONS {
            let (worker, incoming) = tokio::select! {
                incoming = server.endpoints[0].accept() => (0, incoming),
                incoming = server.endpoints[1].accept() => (1, incoming),
            };
            let Pending::Quic(pending) = incoming.unwrap().handshake().await.unwrap() else { panic!() };
            let mut connection = pending.accept().await.unwrap();
            assert_eq!(frames(&mut connection).await, [connect_frame()]);
            accepted.push((worker, connection));
        }
    };
    tokio::join!(dial, accept);
    let at_first = accepted.iter().filter(|(worker, _)| *worker == 0).count();
    // Far off half of 200 by luck alone: less than one run in a million.
    assert!((60..=140).contains(&at_first), "{at_first} of 200 at the first worker");

    for round in 1..=3 {
        for index in (0..dialled.len()).step_by(CONNECTIONS) {
            dialled[index].0.rebind(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        }
        for ((endpoint, client), (worker, connection)) in dialled.iter_mut().zip(&mut accepted) {
            let echo = async {
                client.say(&pong_frame(round)).await;
                assert_eq!(frames(connection).await, [pong_frame(round)]);
                connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
                assert_eq!(client.control.next().await, Some(ping_frame()));
            };
            let in_time = tokio::time::timeout(Duration::from_secs(5), echo).await;
            assert!(in_time.is_ok(), "round {round}: a connection of worker {worker} is cut off");
            assert_eq!(connection.remote_address(), endpoint.local_addr().unwrap());
        }
    }
    let open: Vec<usize> = server.endpoints.iter().map(QuicEndpoint::open_connections).collect();
    assert_eq!(open, [at_first, CLIENTS * CONNECTIONS - at_first]);
}
