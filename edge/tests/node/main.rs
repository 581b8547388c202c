//! A whole edge on loopback, in front of a core that the test plays.

mod quic;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_edge::auth::{AuthConfig, Authenticator};
use tidegate_edge::config::{Config, Limits, MAX_QUIC_WORKERS, MAX_WORKERS};
use tidegate_edge::policy::admission::AdmissionConfig;
use tidegate_edge::{EdgeNode, ListenError, Parts};
use tidegate_fallback::http::OriginPolicy;
use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::frame::{Publication, ServerBody};
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame, Recovery};
use tidegate_protocol::namespace::{Access, Namespace, Namespaces};
use tidegate_protocol::{Epoch, NodeId, Offset, Position, Region};
use tidegate_transport::link::{CoreLink, EdgeLink, memory};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_long_poll_finds_its_session_from_any_worker() {
    let (edge, address) = start(2, Limits::default());
    let first = poll(address, &json!({"frames": [{"id": 1, "connect": {}}]})).await;
    let session = first["session"].as_str().expect("a session").to_owned();
    let mut ack = first["batch"].as_u64().expect("a batch");
    // Each by a connection of its own: the kernel spreads them over both workers.
    for id in 2..=25 {
        let publish = json!({"id": id, "publish": {"channel": "room", "data": id}});
        let answer = poll(address, &json!({"session": session, "ack": ack, "frames": [publish]})).await;
        assert_eq!(answer["frames"][0]["id"], id, "{answer}");
        assert_eq!(answer["frames"][0]["published"]["channel"], "room", "{answer}");
        ack = answer["batch"].as_u64().expect("a batch");
    }
    let end = poll(address, &json!({"session": session, "ack": ack, "frames": [{"done": {}}]})).await;
    assert_eq!(end["frames"][0]["close"]["code"], 4000);
    edge.shutdown(GRACE).await;
}

#[tokio::test]
async fn a_session_goes_on_whatever_became_of_the_token_that_opened_it() {
    let (edge, address) = start(1, Limits { close: Duration::from_millis(50), ..Limits::default() });
    let first = poll(address, &json!({"frames": [{"id": 1, "connect": {}}]})).await;
    let publish = json!({"id": 2, "publish": {"channel": "room", "data": 1}});
    let body = json!({"session": first["session"], "ack": first["batch"], "frames": [publish]}).to_string();
    // The session's id is the secret now; the token in the header may have been refreshed since.
    let head = format!(
        "POST /v1/poll HTTP/1.1\r\nauthorization: Bearer stale\r\ncontent-length: {}\r\n",
        body.len()
    );
    let answer = exchange(address, &head, &body).await;
    assert_eq!(answer["frames"][0]["id"], 2, "{answer}");
    edge.shutdown(GRACE).await;
}

#[tokio::test]
async fn a_channel_poll_answers_with_the_head_and_with_what_comes_after_it() {
    let (edge, address) = start(1, Limits::default());
    let head = get(address, "/v1/channels/room/poll").await;
    assert_eq!((&head["position"]["offset"], &head["recovered"]), (&json!(0), &json!(false)));
    // This core publishes as soon as somebody subscribes at a position.
    let answer = get(address, "/v1/channels/room/poll?offset=0&epoch=e").await;
    assert_eq!(answer["publications"][0]["offset"], 1, "{answer}");
    edge.shutdown(GRACE).await;
}

#[tokio::test]
async fn at_the_bound_a_connection_is_refused_and_let_in_when_one_is_gone() {
    let (edge, address) = start(1, Limits { connections: 1, ..Limits::default() });
    let mut first = TcpStream::connect(address).await.expect("a connection");
    // Answered, so that it was accepted before the second comes.
    first.write_all(b"GET /v1/nothing HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    assert!(first.read(&mut [0; 4096]).await.expect("an answer") > 0);
    let mut second = TcpStream::connect(address).await.expect("the kernel accepts it");
    assert!(matches!(second.read(&mut [0]).await, Ok(0) | Err(_)), "closed without a word");
    drop(first);
    // Its place is free as soon as the edge has noticed.
    loop {
        let mut next = TcpStream::connect(address).await.expect("the kernel accepts it");
        let asked = next.write_all(b"GET /v1/nothing HTTP/1.1\r\nhost: x\r\n\r\n").await;
        if asked.is_ok() && matches!(next.read(&mut [0; 4096]).await, Ok(1..)) {
            break;
        }
    }
    edge.shutdown(GRACE).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_gives_its_place_back() {
    let limits = Limits { handshake: Duration::from_millis(50), ..Limits::default() };
    let (edge, address) = start(1, limits);
    let mut silent = TcpStream::connect(address).await.expect("a connection");
    assert!(matches!(silent.read(&mut [0]).await, Ok(0) | Err(_)));
    edge.shutdown(GRACE).await;
}

#[tokio::test]
async fn shutdown_waits_neither_for_silent_nor_for_idle_connections() {
    let (edge, address) = start(2, Limits::default());
    let mut silent = TcpStream::connect(address).await.expect("a connection");
    let mut idle = TcpStream::connect(address).await.expect("a connection");
    idle.write_all(b"GET /v1/nothing HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    assert!(idle.read(&mut [0; 4096]).await.expect("an answer") > 0);
    tokio::time::timeout(GRACE / 2, edge.shutdown(GRACE)).await.expect("nothing to wait for");
    for connection in [&mut silent, &mut idle] {
        assert!(matches!(connection.read(&mut [0]).await, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn a_long_poll_between_two_polls_is_told_of_the_shutdown() {
    let (edge, address) = start(2, Limits::default());
    let mut kept = TcpStream::connect(address).await.expect("a connection");
    let connect = json!({"frames": [{"id": 1, "connect": {}}]});
    let on_kept = ask(&mut kept, &connect).await;
    let on_new = poll(address, &connect).await;
    let next = |connected: &Value| json!({"session": connected["session"], "ack": connected["batch"]});
    // The drain begins with the first look at `shutdown`, which is the first that `join` takes.
    let ((), told, told_too) = {
        let (kept_next, new_next) = (next(&on_kept), next(&on_new));
        tokio::join!(biased; edge.shutdown(GRACE), ask(&mut kept, &kept_next), poll(address, &new_next))
    };
    for told in [told, told_too] {
        assert_eq!(told["frames"][0]["close"]["code"], 4100, "{told}");
    }
}

#[tokio::test]
async fn what_is_left_after_the_grace_is_cut() {
    let (edge, address) = start(1, Limits { close: 2 * GRACE, ..Limits::default() });
    let mut socket = upgrade(address).await;
    // It answers no close frame, and is not waited for.
    edge.shutdown(Duration::ZERO).await;
    let mut rest = Vec::new();
    // The end of the stream, or a reset: not an open socket that nobody serves.
    let _how = socket.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn a_panic_on_a_worker_does_not_hold_up_its_end() {
    let (links, _cores) = links(1);
    let routes: tidegate_edge::Routes = Arc::new(|_| panic!("a route that fails"));
    let parts = Parts { routes: Some(routes), ..parts(links) };
    let edge = EdgeNode::start(config(1, Limits::default()), parts).expect("an edge");
    let address = edge.addresses().plain.expect("the plain listener");
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    assert!(matches!(socket.read(&mut [0]).await, Ok(0) | Err(_)), "its connection is gone");
    tokio::time::timeout(GRACE / 2, edge.shutdown(GRACE)).await.expect("nothing to wait for");
}

#[tokio::test]
async fn without_a_core_requests_are_refused_and_sessions_told() {
    let (links, cores) = links(1);
    let limits = Limits { close: Duration::from_millis(50), ..Limits::default() };
    let (edge, address) = start_with(config(1, limits), links);
    let mut socket = upgrade(address).await;
    drop(cores);
    let mut told = Vec::new();
    let _how = socket.read_to_end(&mut told).await;
    assert!(told.windows(4).any(|bytes| bytes == b"4107"), "{}", String::from_utf8_lossy(&told));
    assert!(
        TcpStream::connect(address)
            .await
            .expect("the kernel")
            .read(&mut [0])
            .await
            .is_ok_and(|read| read == 0)
    );
    edge.shutdown(GRACE).await;
}

#[tokio::test]
async fn too_many_workers_are_refused_by_their_number() {
    for (quic, limit) in [(None, MAX_WORKERS), (Some(LOOPBACK), MAX_QUIC_WORKERS)] {
        let config = Config { quic, ..config(limit + 1, Limits::default()) };
        let error = EdgeNode::start(config, parts(Vec::new())).expect_err("too many");
        assert!(
            matches!(error, ListenError::TooManyWorkers { limit: named, .. } if named == limit),
            "{error}"
        );
    }
}

fn start(workers: usize, limits: Limits) -> (EdgeNode, SocketAddr) {
    let (links, cores) = links(workers);
    for core in cores {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(play_core(core));
        });
    }
    start_with(config(workers, limits), links)
}

fn start_with(config: Config, links: Vec<EdgeLink>) -> (EdgeNode, SocketAddr) {
    let edge = EdgeNode::start(config, parts(links)).expect("an edge");
    let address = edge.addresses().plain.expect("the plain listener");
    (edge, address)
}

fn links(workers: usize) -> (Vec<EdgeLink>, Vec<CoreLink>) {
    (0..workers).map(|_| memory(64)).unzip()
}

fn config(workers: usize, limits: Limits) -> Config {
    let open = Namespace { publish: Access::Anyone, subscribe: Access::Anyone, ..Namespace::default() };
    Config {
        node: NodeId::new("edge-1"),
        region: Region::new("here"),
        workers: NonZeroUsize::new(workers).expect("some workers"),
        quic: None,
        tls: None,
        plain: Some(LOOPBACK),
        http3: None,
        alternatives: Vec::new(),
        namespaces: Namespaces::new(open, BTreeMap::new(), false),
        anonymous: true,
        resume: None,
        admission: AdmissionConfig::for_rate(1e5),
        limits,
    }
}

fn parts(links: Vec<EdgeLink>) -> Parts {
    let auth = AuthConfig {
        keys: Vec::new(),
        jwks_files: Vec::new(),
        issuer: None,
        audience: None,
        leeway: Duration::ZERO,
        max_token_bytes: 1024,
        max_subscriptions: 16,
    };
    Parts {
        tls: None,
        authenticator: Arc::new(Authenticator::new(auth).expect("no keys to be wrong")),
        tickets: None,
        origins: OriginPolicy::default(),
        routes: None,
        links,
        sockets: None,
        waits: false,
    }
}

/// Takes every publish; a subscriber at a position soon gets a publication.
async fn play_core(mut core: CoreLink) {
    let mut frames = Vec::new();
    while poll_fn(|cx| core.receiver.poll_recv_many(cx, &mut frames, 16)).await > 0 {
        for frame in frames.drain(..) {
            let answers = match frame {
                EdgeFrame::Publish { request, .. } => {
                    vec![CoreFrame::Published { request, result: Ok(Some(position(1))) }]
                }
                EdgeFrame::Subscribe { request, channel, position: asked } => {
                    let recovery = Recovery {
                        position: position(0),
                        recovered: asked.is_some(),
                        publications: Vec::new(),
                    };
                    let mut answers = vec![CoreFrame::Recovered { request, result: Ok(recovery) }];
                    if asked.is_some() {
                        let body = ServerBody::Publication(Publication {
                            channel: channel.as_str().to_owned(),
                            offset: 1,
                            ..Publication::default()
                        });
                        let frame = Arc::new(SharedFrame::new(body));
                        answers.push(CoreFrame::Publication(Delivery { channel, offset: Offset(1), frame }));
                    }
                    answers
                }
                EdgeFrame::Unsubscribe { .. }
                | EdgeFrame::History { .. }
                | EdgeFrame::Presence { .. }
                | EdgeFrame::Watch { .. }
                | EdgeFrame::Members { .. }
                | EdgeFrame::Spend { .. } => Vec::new(),
            };
            for answer in answers {
                // The edge may be gone by now.
                let _ = core.sender.send(answer).await;
            }
        }
    }
}

fn position(offset: u64) -> Position {
    Position::new(Epoch::new("e"), Offset(offset))
}

async fn poll(address: SocketAddr, body: &Value) -> Value {
    let body = body.to_string();
    exchange(address, &format!("POST /v1/poll HTTP/1.1\r\ncontent-length: {}\r\n", body.len()), &body).await
}

async fn get(address: SocketAddr, path: &str) -> Value {
    exchange(address, &format!("GET {path} HTTP/1.1\r\n"), "").await
}

/// One request on a connection of its own.
async fn exchange(address: SocketAddr, head: &str, body: &str) -> Value {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("{head}host: edge\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("a response");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{response}");
    serde_json::from_str(body).expect("JSON")
}

/// One poll on a connection that stays open.
async fn ask(connection: &mut TcpStream, body: &Value) -> Value {
    let body = body.to_string();
    let request =
        format!("POST /v1/poll HTTP/1.1\r\nhost: edge\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    connection.write_all(request.as_bytes()).await.expect("written");
    let mut response = String::new();
    loop {
        let body = response.split_once("\r\n\r\n").map(|(_, body)| serde_json::from_str(body));
        if let Some(Ok(body)) = body {
            return body;
        }
        let byte = connection.read_u8().await.expect("a response");
        response.push(char::from(byte));
    }
}

/// A WebSocket, up to the server's 101.
async fn upgrade(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = "GET /v1/connect HTTP/1.1\r\nhost: edge\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        response.push(stream.read_u8().await.expect("a response"));
    }
    assert!(response.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&response));
    stream
}

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Far more than an orderly end takes.
const GRACE: Duration = Duration::from_secs(20);
