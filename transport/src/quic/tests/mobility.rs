//! Clients that move: a new address of their own accord, and a NAT that forgets them.

use super::relay::Relay;
use super::*;

/// Streams publications on one lane, a few milliseconds apart. Never ready: what is under way has to be driven.
async fn publish(connection: &mut QuicConnection, count: u64) {
    connection.open_lane(1, &channel("room:1"), 0);
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    for offset in 1..=count {
        let bytes = encode_delimited(&publication(offset, 500));
        send_all(connection, Lane::Subscription(1), &bytes).await;
        // Also reads, as a driver does.
        tokio::select! { biased;
            _ = tick.tick() => {}
            came = recv(connection) => panic!("{came:?}"),
        }
    }
    panic!("{:?}", recv(connection).await);
}

async fn connected(
    server: &Server,
    address: SocketAddr,
) -> (usize, QuicConnection, QuicClient, quinn::SendStream) {
    let dialer = server.dialer();
    let client = async {
        let client = dialer.dial(address, "localhost", false).await.unwrap();
        let (mut send, _recv) = client.connection().open_bi().await.unwrap();
        send.write_all(&encode_delimited(&connect_frame())).await.unwrap();
        (client, send)
    };
    let serve = async {
        let (worker, incoming) = tokio::select! {
            incoming = server.endpoints[0].accept() => (0, incoming),
            incoming = server.endpoints[1].accept() => (1, incoming),
        };
        let Pending::Quic(pending) = incoming.unwrap().handshake().await.unwrap() else { panic!() };
        let mut connection = pending.accept().await.unwrap();
        assert_eq!(frames(&mut connection).await, [connect_frame()]);
        (worker, connection)
    };
    let ((client, send), (worker, connection)) = tokio::join!(client, serve);
    (worker, connection, client, send)
}

async fn lane(client: &QuicClient) -> Frames {
    let mut frames = Frames::new(client.connection().accept_uni().await.unwrap());
    assert_eq!(frames.header().await.channel, "room:1");
    frames
}

#[tokio::test]
async fn nothing_is_lost_when_a_client_changes_its_address_under_way() {
    const PUBLICATIONS: u64 = 1000;
    let server = Server::with(QuicConfig::default(), 2);
    let (worker, mut connection, client, _control) = connected(&server, server.address).await;
    let id = client.connection().stable_id();
    let read = async {
        let mut lane = lane(&client).await;
        for offset in 1..=PUBLICATIONS {
            let next = tokio::time::timeout(Duration::from_secs(10), lane.next()).await;
            assert_eq!(next.expect("cut off"), Some(publication(offset, 500)));
            if offset % 100 == 50 {
                client.rebind().unwrap();
            }
        }
    };
    tokio::select! { biased;
        () = read => {}
        () = publish(&mut connection, PUBLICATIONS) => {}
    }
    assert!(client.connection().close_reason().is_none() && client.connection().stable_id() == id);
    let port = client.local_address().unwrap().port();
    assert_eq!(connection.remote_address().port(), port, "the server has followed");
    let open: Vec<usize> = server.endpoints.iter().map(QuicEndpoint::open_connections).collect();
    assert_eq!((open[worker], open[1 - worker]), (1, 0));
}

/// A client that watches its path while it reads.
struct Watching {
    client: QuicClient,
    lane: Frames,
    watch: PathWatch,
    events: Vec<PathEvent>,
}

impl Watching {
    async fn new(client: QuicClient) -> Self {
        let lane = lane(&client).await;
        Self { client, lane, watch: PathWatch::new(), events: Vec::new() }
    }

    /// Reads one publication, whatever it takes. `before` is told of each event before it is acted on.
    async fn read(&mut self, offset: u64, mut before: impl FnMut(PathEvent)) {
        let Self { client, lane, watch, events } = self;
        let mut next = Box::pin(tokio::time::timeout(Duration::from_secs(20), lane.next()));
        let next = loop {
            let far = clock::now() + Duration::from_secs(3600);
            let due = watch.poll_timeout().unwrap_or(far);
            let next = tokio::select! { biased;
                next = &mut next => Some(next),
                () = tokio::time::sleep_until(due.into()) => None,
            };
            let (now, pto) = (clock::now(), client.pto());
            watch.handle_received(now, client.received_datagrams(), pto);
            watch.handle_timeout(now);
            while let Some(event) = watch.poll_event() {
                before(event);
                events.push(event);
                match event {
                    PathEvent::Probe => assert!(client.probe()),
                    PathEvent::Suspect => {}
                    PathEvent::Rebind => {
                        client.rebind().unwrap();
                        assert!(client.probe());
                    }
                }
            }
            if let Some(next) = next {
                break next;
            }
        };
        let Ok(next) = next else { panic!("cut off at {offset}: {watch:?}, {events:?}") };
        assert_eq!(next, Some(publication(offset, 500)));
    }

    /// It would notice.
    fn is_flowing(&self) -> bool {
        self.watch.poll_timeout().is_some()
    }

    fn count(&self, event: PathEvent) -> usize {
        self.events.iter().filter(|one| **one == event).count()
    }
}

/// Client and server know nothing of it: only what the client sends opens the way again, and it has nothing to say.
#[tokio::test]
async fn a_client_that_only_listens_finds_out_that_its_nat_forgot_it() {
    const PUBLICATIONS: u64 = 2000;
    const EVERY: u64 = 200;
    let server = Server::with(QuicConfig::default(), 2);
    let relay = Relay::start(server.address).await;
    let (_worker, mut connection, client, _control) = connected(&server, relay.address).await;
    let read = async {
        let mut watching = Watching::new(client).await;
        let (mut moves, mut moved) = (0, 0);
        for offset in 1..=PUBLICATIONS {
            watching.read(offset, |_| {}).await;
            moves += u64::from(offset % EVERY == EVERY / 2);
            if moved < moves && watching.is_flowing() {
                moved += 1;
                // Acknowledgements on their way are lost, too: it is up to the probe.
                relay.set(|rules| (rules.rebind, rules.lose_below) = (true, Some(PROBE_BYTES)));
            }
        }
        assert!(watching.client.connection().close_reason().is_none());
        assert_eq!(moved, PUBLICATIONS / EVERY);
        assert!(watching.count(PathEvent::Probe) >= moved as usize, "{:?}", watching.events);
        assert_eq!(watching.count(PathEvent::Suspect), 0);
    };
    tokio::select! { biased;
        () = read => {}
        () = publish(&mut connection, PUBLICATIONS) => {}
    }
    assert!(relay.rules().lose_below.is_none());
}

#[tokio::test]
async fn a_new_socket_brings_a_connection_back_as_soon_as_its_path_is() {
    const PUBLICATIONS: u64 = 300;
    let server = Server::with(QuicConfig::default(), 2);
    let relay = Relay::start(server.address).await;
    let (_worker, mut connection, client, _control) = connected(&server, relay.address).await;
    let read = async {
        let mut watching = Watching::new(client).await;
        let (mut rebindings, mut back) = (0, None);
        for offset in 1..=PUBLICATIONS {
            if offset > PUBLICATIONS / 2 && rebindings == 0 && watching.is_flowing() {
                relay.set(|rules| rules.outage = true);
            }
            // Five seconds: by now the server waits for more than one second until it tries again.
            let before = |event| {
                if event == PathEvent::Rebind {
                    rebindings += 1;
                    // The new socket has a port of its own on the way, too.
                    relay.set(|rules| (rules.rebind, rules.outage) = (true, rebindings < 3));
                    back = (rebindings == 3).then(clock::now);
                }
            };
            watching.read(offset, before).await;
            if let Some(back) = back.take() {
                let stall = clock::now() - back;
                assert!(stall < Duration::from_secs(1), "{stall:?}");
            }
        }
        assert_eq!((rebindings, watching.count(PathEvent::Suspect)), (3, 1));
    };
    tokio::select! { biased;
        () = read => {}
        () = publish(&mut connection, PUBLICATIONS) => {}
    }
}

#[tokio::test]
async fn probes_are_skipped() {
    let server = Server::start();
    let (mut connection, mut client) = server.native(quinn::TransportConfig::default()).await;
    let limit = client.connection.max_datagram_size();
    client.connection.send_datagram(probe_datagram(limit).unwrap()).unwrap();
    client.connection.send_datagram(encode_delimited(&pong_frame(3))).unwrap();
    assert_eq!(datagram(&mut connection).await, [pong_frame(3)]);
    client.say(&pong_frame(4)).await;
    assert_eq!(frames(&mut connection).await, [pong_frame(4)]);
}
