//! Long poll against a server that loses answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tidegate_protocol::frame::{ClientBody, ClientFrame, ServerFrame};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Gateway, bytes, disconnected, next, next_publication, soon};
use crate::{Client, State, SubscriptionEvent, Transport};

/// A long-poll server by the book, which loses the answers that it is told to lose.
#[derive(Default)]
struct Server {
    state: Mutex<Session>,
    changed: Notify,
}

#[derive(Default)]
struct Session {
    gateway: Gateway,
    outbox: VecDeque<ServerFrame>,
    batch: u64,
    last: Vec<ServerFrame>,
    /// The newest poll: older ones return.
    poll: u64,
    /// Ids of requests whose answer is to be lost.
    lose: Vec<u64>,
    lost: Vec<Value>,
    /// Bodies, in order.
    seen: Vec<Value>,
    /// Sessions of others are unknown.
    generation: u32,
}

impl Server {
    async fn handle(self: Arc<Self>, body: Value) -> Result<(StatusCode, Value), Infallible> {
        let ack = body["ack"].as_u64().unwrap();
        let frames: Vec<ClientFrame> = serde_json::from_value(body["frames"].clone()).unwrap();
        let poll = {
            let mut state = self.state.lock().unwrap();
            state.seen.push(body.clone());
            let session = state.session();
            if body.get("session").is_some_and(|known| *known != session) {
                let close =
                    json!({"close": {"code": 4200, "reason": "elsewhere", "reconnect": {"policy": "now"}}});
                return Ok((StatusCode::NOT_FOUND, json!({"batch": 0, "frames": [close]})));
            }
            if body.get("session").is_none() {
                assert!(matches!(frames[0].body, Some(ClientBody::Connect(_))), "{body}");
                state.batch = 0;
                state.outbox.clear();
            }
            if ack < state.batch {
                return Ok((StatusCode::OK, state.answer()));
            }
            for frame in frames {
                let (answer, live) = state.gateway.handle(frame);
                state.outbox.extend(answer.into_iter().chain(live));
            }
            state.poll += 1;
            state.poll
        };
        self.changed.notify_waiters();
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock().unwrap();
                if state.poll != poll {
                    return Ok((
                        StatusCode::OK,
                        json!({"session": state.session(), "batch": ack, "frames": []}),
                    ));
                }
                if !state.outbox.is_empty() {
                    state.batch += 1;
                    state.last = state.outbox.drain(..).collect();
                    return Ok((StatusCode::OK, state.answer()));
                }
            }
            changed.await;
        }
    }

    fn publish(&self, text: &str) {
        let frame = self.state.lock().unwrap().gateway.append(Bytes::from(text.to_owned()));
        self.send(frame);
    }

    fn send(&self, frame: ServerFrame) {
        self.state.lock().unwrap().outbox.push_back(frame);
        self.changed.notify_waiters();
    }
}

impl Session {
    fn answer(&self) -> Value {
        let frames: Vec<Value> = self.last.iter().map(|frame| serde_json::to_value(frame).unwrap()).collect();
        json!({"session": self.session(), "batch": self.batch, "frames": frames})
    }

    fn session(&self) -> Value {
        json!(format!("session-{}", self.generation))
    }
}

/// Serves until the guard is dropped.
async fn start() -> (Arc<Server>, String, tokio_util::sync::DropGuard) {
    let server = Arc::new(Server::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tracker = TaskTracker::new();
    let stop = CancellationToken::new();
    let (accepting, token) = (Arc::clone(&server), stop.clone());
    let connections = tracker.clone();
    tracker.spawn(stop.clone().run_until_cancelled_owned(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let server = Arc::clone(&accepting);
            let service = service_fn(move |request: Request<Incoming>| answer(Arc::clone(&server), request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connections.spawn(token.clone().run_until_cancelled_owned(async move { drop(connection.await) }));
        }
    }));
    (server, url, stop.drop_guard())
}

/// An error of the service ends the connection without an answer.
async fn answer(
    server: Arc<Server>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    assert_eq!(request.uri().path(), "/v1/poll");
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let body: Value = serde_json::from_slice(&body)?;
    let (status, answer) = server.clone().handle(body.clone()).await.expect("infallible");
    {
        let mut state = server.state.lock().unwrap();
        let carries = |id: &u64| body["frames"].as_array().unwrap().iter().any(|frame| frame["id"] == *id);
        if let Some(index) = state.lose.iter().position(carries) {
            state.lose.remove(index);
            state.lost.push(body);
            return Err(std::io::Error::other("the answer is lost"));
        }
    }
    let body = Full::new(Bytes::from(answer.to_string()));
    Ok(Response::builder().status(status).body(body).expect("a response"))
}

#[tokio::test]
async fn requests_and_publications_cross_without_loss_or_repetition() {
    let (server, url, _guard) = start().await;
    let client = Client::builder(url).connect().await.unwrap();
    assert_eq!(client.state(), State::Connected { transport: Transport::LongPoll });
    let mut room = soon(client.subscribe("room")).await.unwrap();
    assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { .. }));
    for number in 0..50_u64 {
        server.publish(&format!("backend {number}"));
        let position = soon(client.publish("room", bytes(&format!("client {number}")))).await.unwrap();
        assert_eq!(position.offset.0, 2 * number + 2);
    }
    for number in 0..50 {
        assert_eq!(next_publication(&mut room).await, (2 * number + 1, format!("backend {number}")));
        assert_eq!(next_publication(&mut room).await, (2 * number + 2, format!("client {number}")));
    }
    soon(client.close()).await;
    assert_eq!(server.state.lock().unwrap().gateway.head(), 100);
}

#[tokio::test]
async fn the_answer_to_a_ping_goes_with_the_next_request() {
    let (server, url, _guard) = start().await;
    let client = Client::builder(url).connect().await.unwrap();
    let mut room = soon(client.subscribe("room")).await.unwrap();
    assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { .. }));
    server.send(serde_json::from_value(json!({"ping": {}})).unwrap());
    let has_pong =
        |body: &Value| body["frames"].as_array().unwrap().iter().any(|frame| frame["pong"].is_object());
    soon(async {
        loop {
            let changed = server.changed.notified();
            if server.state.lock().unwrap().seen.iter().any(has_pong) {
                break;
            }
            changed.await;
        }
    })
    .await;
    let seen = server.state.lock().unwrap().seen.clone();
    let pong = seen.iter().find(|body| has_pong(body)).unwrap();
    let after = seen.iter().filter(|body| body["ack"] == pong["ack"]);
    assert_eq!(after.count(), 1, "a request by itself would need a second connection: {seen:?}");
    soon(client.close()).await;
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_request() {
    let (server, url, _guard) = start().await;
    let client = Client::builder(url).connect().await.unwrap();
    let mut room = soon(client.subscribe("room")).await.unwrap();
    assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { .. }));
    // connect and subscribe had the ids before.
    let id = server.state.lock().unwrap().gateway.seen.iter().map(|frame| frame.id).max().unwrap() + 1;
    server.state.lock().unwrap().lose.push(id);
    assert_eq!(soon(client.publish("room", bytes("one"))).await.unwrap().offset.0, 1);
    assert_eq!(next_publication(&mut room).await, (1, "one".to_owned()));
    soon(client.close()).await;
    let state = server.state.lock().unwrap();
    assert_eq!(state.lost.len(), 1);
    // By whichever poll it came; what it carried was done once.
    let same = state.seen.iter().filter(|body| **body == state.lost[0]).count();
    assert_eq!(same, 2, "the same request, once more");
    assert_eq!(state.gateway.head(), 1, "its frames were not done twice");
}

#[tokio::test]
async fn a_server_that_does_not_know_the_session_gets_a_new_one() {
    let (server, url, _guard) = start().await;
    let client = Client::builder(url).connect().await.unwrap();
    let mut events = client.take_events().unwrap();
    let mut room = soon(client.subscribe("room")).await.unwrap();
    assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { .. }));
    server.publish("one");
    assert_eq!(next_publication(&mut room).await, (1, "one".to_owned()));
    server.state.lock().unwrap().generation += 1;
    assert_eq!(soon(client.publish("room", bytes("two"))).await.unwrap().offset.0, 2);
    assert_eq!(disconnected(&mut events).await, (4200, "elsewhere".to_owned()));
    assert_eq!(next_publication(&mut room).await, (2, "two".to_owned()));
    soon(client.close()).await;
}

#[tokio::test]
async fn a_request_that_waits_elsewhere_does_not_hold_up_the_end() {
    let (server, url, _guard) = start().await;
    let client = Client::builder(url).connect().await.unwrap();
    let mut events = client.take_events().unwrap();
    let mut room = soon(client.subscribe("room")).await.unwrap();
    assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { .. }));
    // A request waits there; another one leads to whoever does not know the session.
    let polls = server.state.lock().unwrap().poll;
    server.publish("one");
    assert_eq!(next_publication(&mut room).await, (1, "one".to_owned()));
    soon(async {
        loop {
            let changed = server.changed.notified();
            if server.state.lock().unwrap().poll > polls {
                break;
            }
            changed.await;
        }
    })
    .await;
    server.state.lock().unwrap().generation += 1;
    assert_eq!(soon(client.publish("room", bytes("two"))).await.unwrap().offset.0, 2);
    assert_eq!(disconnected(&mut events).await, (4200, "elsewhere".to_owned()));
    soon(client.close()).await;
}
