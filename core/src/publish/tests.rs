//! The backend API over a real connection.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tidegate_protocol::namespace::{Access, Namespace, Namespaces};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::engine::MemoryEngine;
use crate::{CoreConfig, CoreMetrics, CoreNode, Lifecycle};

#[tokio::test]
async fn a_publication_is_stored_and_read_back() {
    let server = Server::start(open()).await;
    let published = server.post(r#"{"channel":"room:1","data":{"a": [1, null]}}"#, "").await;
    assert_eq!(published.status, 200);
    assert!(published.head.contains("content-type: application/json"), "{}", published.head);
    let epoch = published.body["position"]["epoch"].as_str().expect("an epoch").to_owned();
    assert_eq!(published.body, json!({"position": {"epoch": epoch, "offset": 1}}));
    let binary = server.post(r#"{"channel":"room:1","data_base64":"AAEC"}"#, "").await;
    assert_eq!(binary.body["position"]["offset"], 2);
    let null = server.post(r#"{"channel":"room:1","data":null}"#, "").await;
    assert_eq!(null.body["position"]["offset"], 3);
    let ephemeral = server.post(r#"{"channel":"room:1","data":1,"ephemeral":true}"#, "").await;
    assert_eq!((ephemeral.status, ephemeral.body), (200, json!({})));

    let all = server.get("/v1/channels/room%3A1/history").await;
    assert_eq!(all.body["position"], json!({"epoch": epoch, "offset": 3}));
    assert_eq!(all.body["recovered"], false);
    let publications = all.body["publications"].as_array().expect("a list");
    assert_eq!(publications.len(), 3);
    assert_eq!(publications[0]["data"], json!({"a": [1, null]}));
    assert_eq!(publications[1]["data_base64"], "AAEC");
    assert_eq!(publications[2]["data"], Value::Null);
    assert_eq!(publications[0]["channel"], "room:1");
    assert!(publications[0]["time_ms"].as_u64().expect("a time") > 1_600_000_000_000);

    let since = server.get(&format!("/v1/channels/room:1/history?epoch={epoch}&offset=1&limit=5")).await;
    assert_eq!(since.body["recovered"], true);
    assert_eq!(since.body["publications"].as_array().map(Vec::len), Some(2));
    let other = server.get("/v1/channels/room:1/history?epoch=other&offset=1").await;
    assert_eq!((other.status, &other.body["recovered"]), (200, &json!(false)));
    let unknown = server.get("/v1/channels/room:unused/history").await;
    assert_eq!(unknown.body["position"]["offset"], 0);
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_position() {
    let server = Server::start(open()).await;
    let first = server.post(r#"{"channel":"a","data":1,"key":"k"}"#, "").await.body;
    assert_eq!(server.post(r#"{"channel":"a","data":2,"key":"k"}"#, "").await.body, first);
    assert_eq!(server.post(r#"{"channel":"a","data":2}"#, "Idempotency-Key: k\r\n").await.body, first);
    // The body's own key counts before the header.
    let own = server.post(r#"{"channel":"a","data":2,"key":"l"}"#, "Idempotency-Key: k\r\n").await.body;
    assert_eq!(own["position"]["offset"], 2);

    let batch = r#"{"publications":[{"channel":"b","data":1},{"channel":"b","data":2}]}"#;
    let sent = server.post(batch, "Idempotency-Key: batch\r\n").await.body;
    assert_eq!(sent["results"][1]["position"]["offset"], 2);
    assert_eq!(server.post(batch, "Idempotency-Key: batch\r\n").await.body, sent);
    assert_eq!(server.get("/v1/channels/b/history").await.body["position"]["offset"], 2);
}

#[tokio::test]
async fn a_batch_keeps_its_order_and_answers_each() {
    let server = Server::start(open()).await;
    let mut items: Vec<Value> =
        (0..300).map(|n| json!({"channel": format!("c:{}", n % 3), "data": n})).collect();
    items[7] = json!({"channel": "bad name", "data": 1});
    items[8] = json!({"channel": "cursor:1", "data": 1});
    items[9] = json!({"channel": "c:0"});
    items[10] = json!({"channel": "c:1", "data": 10, "ephemeral": true});
    items[11] = json!(5);
    let answer = server.post(&json!({ "publications": items }).to_string(), "").await;
    assert_eq!(answer.status, 200);
    let results = answer.body["results"].as_array().expect("results");
    assert_eq!(results.len(), 300);
    let mut heads = [0u64; 3];
    for (n, result) in results.iter().enumerate() {
        match n {
            7 | 9 | 11 => assert_eq!(result["error"]["code"], 400, "{result}"),
            8 => assert_eq!(result["error"]["code"], 403, "{result}"),
            10 => assert_eq!(result, &json!({})),
            _ => {
                heads[n % 3] += 1;
                assert_eq!(result["position"]["offset"], heads[n % 3], "{n}");
            }
        }
    }
    let kept = server.get("/v1/channels/c:0/history?limit=3").await.body;
    let data: Vec<u64> = kept["publications"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|publication| publication["data"].as_u64().expect("a number"))
        .collect();
    assert_eq!(data, vec![291, 294, 297]);
    let empty = server.post(r#"{"publications":[]}"#, "").await;
    assert_eq!((empty.status, empty.body), (200, json!({"results": []})));
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let config = BackendConfig { max_body: 2_000, max_batch: 2, ..open() };
    let server = Server::start(config).await;
    let long_key = json!({"channel": "a", "data": 1, "key": "k".repeat(129)}).to_string();
    let large = json!({"channel": "a", "data": "x".repeat(1_500)}).to_string();
    for (body, status, problem) in [
        ("", 400, "no valid JSON"),
        ("{\"channel\":\"a\",", 400, "no valid JSON"),
        ("[1,2,3]", 400, "no valid JSON"),
        ("\u{0}", 400, "no valid JSON"),
        ("{}", 400, "channel"),
        (r#"{"channel":"","data":1}"#, 400, "channel"),
        (r#"{"channel":"a"}"#, 400, "data_base64"),
        (r#"{"channel":"a","data":1,"data_base64":"AA=="}"#, 400, "data_base64"),
        (r#"{"channel":"a","data_base64":"?"}"#, 400, "data_base64"),
        (r#"{"channel":"a","data":1,"key":""}"#, 400, "key"),
        (r#"{"channel":"a","data":1,"key":5}"#, 400, "invalid type"),
        (r#"{"channel":"a","publications":[]}"#, 400, "not both"),
        (r#"{"publications":[1,2,3]}"#, 413, "over the limit of 2"),
        (r#"{"channel":"cursor:1","data":1}"#, 403, "ephemeral"),
        (r#"{"channel":"nowhere:1","data":1}"#, 404, "nowhere"),
        (&long_key, 413, "key"),
        (&large, 413, "over the limit of 1000"),
    ] {
        let answer = server.post(body, "").await;
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert_eq!(answer.body["error"]["code"], status);
        assert_eq!(answer.body["error"]["retry"], false);
        let message = answer.body["error"]["message"].as_str().expect("a message");
        assert!(message.contains(problem), "{body}: {message}");
    }
    let bad_query = server.get("/v1/channels/a/history?offset=x").await;
    assert_eq!((bad_query.status, &bad_query.body["error"]["code"]), (400, &json!(400)));
}

#[tokio::test]
async fn who_is_there_is_told_where_presence_is_kept() {
    let server = Server::start(open()).await;
    let nobody = server.get("/v1/channels/lobby%3A1/presence").await;
    let expected = json!({"channel": "lobby:1", "users": [], "users_total": 0, "sessions": 0, "exact": true});
    assert_eq!((nobody.status, nobody.body), (200, expected));
    let silent = server.get("/v1/channels/room:1/presence").await;
    assert_eq!((silent.status, &silent.body["error"]["retry"]), (501, &json!(false)));
    assert_eq!(server.get("/v1/channels/%ff/presence").await.status, 400);
    let keys = BackendAccess::Keys(vec!["secret".to_owned()]);
    let closed = Server::start(BackendConfig { access: keys, ..open() }).await;
    assert_eq!(closed.get("/v1/channels/lobby:1/presence").await.status, 401);
}

#[tokio::test]
async fn paths_and_methods_are_checked() {
    let server = Server::start(open()).await;
    for path in ["/", "/v1/publish/", "/v1/channels/a/b/history", "/v1/channels/history"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
        assert!(!server.api.matches(path), "{path}");
    }
    let get = server.get("/v1/publish").await;
    assert_eq!((get.status, get.head.contains("allow: POST")), (405, true));
    let request = "POST /v1/channels/a/history HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    let post = server.raw(request.as_bytes()).await;
    assert_eq!((post.status, post.head.contains("allow: GET")), (405, true));
    assert!(server.api.matches("/v1/publish") && server.api.matches("/v1/channels/a/history"));
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused() {
    let server = Server::start(BackendConfig { max_body: 100, ..open() }).await;
    let body = json!({"channel": "a", "data": "x".repeat(100)}).to_string();
    let announced = server.post(&body, "").await;
    assert_eq!((announced.status, &announced.body["error"]["code"]), (413, &json!(413)));
    let chunked = format!(
        "POST /v1/publish HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let chunked = server.raw(chunked.as_bytes()).await;
    assert_eq!((chunked.status, &chunked.body["error"]["code"]), (413, &json!(413)));
    assert_eq!(server.get("/v1/channels/a/history").await.body["position"]["offset"], 0);
}

#[tokio::test]
async fn keys_are_required_where_configured() {
    let keys = BackendAccess::Keys(vec!["first".to_owned(), "second".to_owned()]);
    assert_eq!(format!("{keys:?}"), "Keys(2)");
    let server = Server::start(BackendConfig { access: keys, ..open() }).await;
    let body = r#"{"channel":"a","data":1}"#;
    for (headers, status) in [
        ("", 401),
        ("Authorization: Bearer wrong\r\n", 401),
        ("Authorization: Basic first\r\n", 401),
        ("Authorization: Bearer \r\n", 401),
        ("X-API-Key: firs\r\n", 401),
        ("X-API-Key: seconf\r\n", 401),
        ("Authorization: Bearer first\r\n", 200),
        ("Authorization: bearer second\r\n", 200),
        ("X-API-Key: second\r\n", 200),
    ] {
        let answer = server.post(body, headers).await;
        assert_eq!(answer.status, status, "{headers}");
        assert_eq!(answer.head.contains("www-authenticate"), status == 401);
    }
    assert_eq!(server.get("/v1/channels/a/history").await.status, 401);

    let nobody = Server::start(BackendConfig::default()).await;
    assert_eq!(nobody.post(body, "X-API-Key: \r\n").await.status, 401);
}

#[tokio::test]
async fn a_node_that_is_gone_is_unavailable() {
    let server = Server::start(open()).await;
    server.lifecycle.abort.cancel();
    server.lifecycle.tracker.close();
    server.lifecycle.tracker.wait().await;
    let answer = server.post(r#"{"channel":"a","data":1}"#, "").await;
    assert_eq!((answer.status, &answer.body["error"]["retry"]), (503, &json!(true)));
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let (api, _lifecycle) = api(open()).await;
    let request = Request::post("/v1/publish").body(Endless).expect("valid");
    assert_eq!(api.handle(request).await.status(), StatusCode::REQUEST_TIMEOUT);
}

/// A body of which nothing ever comes.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}

/// The API on a loopback socket.
struct Server {
    api: BackendApi,
    lifecycle: Lifecycle,
    address: std::net::SocketAddr,
    _connections: TaskTracker,
}

struct Answer {
    status: u16,
    /// In lower case but for values.
    head: String,
    body: Value,
}

impl Server {
    async fn start(config: BackendConfig) -> Self {
        let (api, lifecycle) = api(config).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let connections = TaskTracker::new();
        let (tasks, served) = (connections.clone(), api.clone());
        connections.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let api = served.clone();
                tasks.spawn(async move {
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let api = api.clone();
                        async move { Ok::<_, std::convert::Infallible>(api.handle(request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { api, lifecycle, address, _connections: connections }
    }

    async fn post(&self, body: &str, headers: &str) -> Answer {
        let length = body.len();
        let request = format!(
            "POST /v1/publish HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        self.raw(request.as_bytes()).await
    }

    async fn get(&self, target: &str) -> Answer {
        self.raw(format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await
    }

    async fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.expect("listening");
        stream.write_all(request).await.expect("written");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answered");
        let answer = String::from_utf8(answer).expect("UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let body = serde_json::from_str(body).expect("JSON");
        Answer { status, head: head.to_owned(), body }
    }
}

async fn api(config: BackendConfig) -> (BackendApi, Lifecycle) {
    let lifecycle = Lifecycle {
        tracker: TaskTracker::new(),
        drain: CancellationToken::new(),
        abort: CancellationToken::new(),
    };
    let cursor = Namespace { ephemeral_only: true, ..Namespace::default() };
    let names = ["", "a", "b", "c", "room"].map(|name| (name.to_owned(), Namespace::default()));
    let lobby = Namespace { presence: Some(Access::Granted), ..Namespace::default() };
    let others = [("cursor".to_owned(), cursor), ("lobby".to_owned(), lobby)];
    let named = BTreeMap::from_iter(names.into_iter().chain(others));
    let namespaces = Arc::new(Namespaces::new(Namespace::default(), named, true));
    let engine = Arc::new(MemoryEngine::new(5, 16, 0));
    let core = CoreConfig { max_payload: 1_000, ..CoreConfig::default() };
    let node = CoreNode::start(core, engine, namespaces, CoreMetrics::new(), lifecycle.clone()).await;
    (BackendApi::new(Arc::new(node.expect("started")), config), lifecycle)
}

fn open() -> BackendConfig {
    BackendConfig { access: BackendAccess::Open, ..BackendConfig::default() }
}
