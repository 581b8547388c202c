//! WebSocket against a server of a few lines.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use tidegate_certs::{CertStore, DevCertificates, server_config};
use tidegate_protocol::frame::codec::{decode_message, encode_delimited};
use tidegate_protocol::frame::{ClientFrame, CloseCode, ErrorCode, ServerBody, ServerFrame};
use tidegate_transport::clock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::{Gateway, bytes, disconnected, next, next_publication, soon};
use crate::{Client, ClientError, State, SubscriptionEvent, Transport};

pub(super) struct Server {
    listener: TcpListener,
    pub(super) gateway: Gateway,
}

impl Server {
    pub(super) async fn new() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        (Self { listener, gateway: Gateway::default() }, url)
    }

    pub(super) async fn accept(&self) -> WebSocketStream<TcpStream> {
        let (stream, _) = self.listener.accept().await.unwrap();
        Self::upgrade(stream).await
    }

    async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
        #[expect(clippy::result_large_err, reason = "the library's own signature")]
        let check = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            assert_eq!(request.uri().path(), "/v1/connect");
            let protocol = request.headers().get("sec-websocket-protocol").expect("a subprotocol").clone();
            assert_eq!(protocol, "tidegate.v1.proto");
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        };
        tokio_tungstenite::accept_hdr_async(stream, check).await.unwrap()
    }

    /// Answers until `last` says that a frame was the last, or the client is gone.
    pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut WebSocketStream<S>,
        last: impl Fn(&ClientFrame) -> bool,
    ) {
        while let Some(Ok(message)) = socket.next().await {
            let Message::Binary(message) = message else { continue };
            for frame in decode_message::<ClientFrame>(message, 1 << 20).unwrap() {
                let is_last = last(&frame);
                let (answer, live) = self.gateway.handle(frame);
                for frame in answer.into_iter().chain(live) {
                    socket.send(Message::Binary(encode_delimited(&frame))).await.unwrap();
                }
                if is_last {
                    return;
                }
            }
        }
    }
}

fn is_publish(frame: &ClientFrame) -> bool {
    matches!(frame.body, Some(tidegate_protocol::frame::ClientBody::Publish(_)))
}

fn is_subscribe(frame: &ClientFrame) -> bool {
    matches!(frame.body, Some(tidegate_protocol::frame::ClientBody::Subscribe(_)))
}

#[tokio::test]
async fn a_lost_connection_is_made_again_and_what_was_missed_arrives() {
    let (mut server, url) = Server::new().await;
    let serve = async {
        let mut socket = server.accept().await;
        server.serve(&mut socket, is_publish).await;
        // Gone without a word; the channel moves on meanwhile.
        drop(socket);
        server.gateway.append("two".into());
        server.gateway.append("three".into());
        let mut socket = server.accept().await;
        server.serve(&mut socket, |_| false).await;
    };
    let client = async {
        let client = Client::builder(url).connect().await.unwrap();
        assert_eq!(client.state(), State::Connected { transport: Transport::WebSocket });
        let mut events = client.take_events().unwrap();
        let mut room = client.subscribe("room").await.unwrap();
        assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { recovered: false, .. }));
        let position = soon(client.publish("room", bytes("one"))).await.unwrap();
        assert_eq!((position.epoch.as_str(), position.offset.0), ("e", 1));
        assert_eq!(next_publication(&mut room).await, (1, "one".to_owned()));
        assert_eq!(disconnected(&mut events).await.0, 4108);
        assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { recovered: true, .. }));
        assert_eq!(next_publication(&mut room).await, (2, "two".to_owned()));
        assert_eq!(next_publication(&mut room).await, (3, "three".to_owned()));
        assert_eq!(soon(client.publish("room", bytes("four"))).await.unwrap().offset.0, 4);
        drop(room);
        // The old one's end is not the new one's.
        let mut room = client.subscribe("room").await.unwrap();
        assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { .. }));
        assert_eq!(
            client.subscribe("room").await.unwrap_err(),
            ClientError::Invalid("already subscribed".to_owned())
        );
        soon(client.close()).await;
        assert_eq!(soon(room.next()).await, None);
    };
    tokio::join!(serve, client);
}

#[tokio::test]
async fn a_subscription_that_is_not_read_holds_the_network_not_memory() {
    const COUNT: u64 = 2_000;
    let (mut server, url) = Server::new().await;
    let serve = async {
        let mut socket = server.accept().await;
        server.serve(&mut socket, is_publish).await;
        for number in 1..COUNT {
            let frame = server.gateway.append(number.to_string().into());
            socket.feed(Message::Binary(encode_delimited(&frame))).await.unwrap();
        }
        socket.flush().await.unwrap();
        server.serve(&mut socket, |_| false).await;
    };
    let client = async {
        let client = Client::builder(url).with_subscription_queue(2).connect().await.unwrap();
        let mut room = client.subscribe("room").await.unwrap();
        // Its answer must not wait for the channel to be read beyond what its queue holds.
        let publish =
            tokio::time::timeout(std::time::Duration::from_secs(20), client.publish("room", bytes("0")));
        assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { .. }));
        assert_eq!(publish.await.unwrap().unwrap().offset.0, 1);
        for number in 0..COUNT {
            assert_eq!(next_publication(&mut room).await, (number + 1, number.to_string()));
        }
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}

#[tokio::test]
async fn a_refusal_of_the_session_is_an_error_of_connect() {
    let (server, url) = Server::new().await;
    let serve = async {
        let mut socket = server.accept().await;
        let close = CloseCode::Unauthorized.frame("no valid token");
        socket
            .send(Message::Binary(encode_delimited(&ServerFrame::new(0, ServerBody::Close(close)))))
            .await
            .unwrap();
        let mut socket = server.accept().await;
        // Without the frame, the close of the transport says it.
        let frame = CloseFrame { code: 4006.into(), reason: "origin".into() };
        socket.close(Some(frame)).await.unwrap();
    };
    let client = async {
        let error = Client::builder(&url).with_token("bad").connect().await.unwrap_err();
        assert_eq!(error, ClientError::Closed { code: 4004, reason: "no valid token".to_owned() });
        let error = Client::builder(&url).connect().await.unwrap_err();
        assert_eq!(error, ClientError::Closed { code: 4006, reason: "origin".to_owned() });
    };
    tokio::join!(serve, client);
}

#[tokio::test]
async fn a_token_provider_is_asked_again_when_its_token_is_refused() {
    let (mut server, url) = Server::new().await;
    let serve = async {
        let mut socket = server.accept().await;
        server.serve(&mut socket, is_publish).await;
        let close = CloseCode::TokenExpired.frame("expired");
        socket
            .send(Message::Binary(encode_delimited(&ServerFrame::new(0, ServerBody::Close(close)))))
            .await
            .unwrap();
        let mut socket = server.accept().await;
        server.serve(&mut socket, |_| false).await;
        server.gateway.seen
    };
    let client = async {
        let count = std::sync::atomic::AtomicU32::new(0);
        let provider = move || {
            let token = format!("token-{}", count.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
            async move { Ok::<_, String>(token) }
        };
        let client = Client::builder(url).with_token_provider(provider).connect().await.unwrap();
        let mut events = client.take_events().unwrap();
        soon(client.publish("room", bytes("x"))).await.unwrap();
        assert_eq!(disconnected(&mut events).await.0, 4005);
        soon(client.publish("room", bytes("y"))).await.unwrap();
        soon(client.close()).await;
    };
    let (seen, ()) = tokio::join!(serve, client);
    let tokens: Vec<_> = seen
        .into_iter()
        .filter_map(|frame| match frame.body {
            Some(tidegate_protocol::frame::ClientBody::Connect(connect)) => connect.token,
            _ => None,
        })
        .collect();
    assert_eq!(tokens, ["token-0", "token-1"]);
}

#[tokio::test]
async fn urls_are_tried_in_order_and_refused_requests_are_errors() {
    // A port that nobody listens on: it was free a moment ago and is closed again.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = Client::builder(format!("ws://{closed}")).connect().await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");

    let (server, url) = Server::new().await;
    let serve = async {
        let mut socket = server.accept().await;
        let mut gateway = Gateway::default();
        while let Some(Ok(message)) = socket.next().await {
            let Message::Binary(message) = message else { continue };
            for frame in decode_message::<ClientFrame>(message, 1 << 20).unwrap() {
                let answer = if is_publish(&frame) {
                    Some(ServerFrame::new(frame.id, ServerBody::Error(ErrorCode::Forbidden.reply("no"))))
                } else {
                    gateway.handle(frame).0
                };
                if let Some(answer) = answer {
                    socket.send(Message::Binary(encode_delimited(&answer))).await.unwrap();
                }
            }
        }
    };
    let client = async {
        let client = Client::builder(format!("ws://{closed}")).with_url(url).connect().await.unwrap();
        let error = soon(client.publish("room", bytes("x"))).await.unwrap_err();
        assert_eq!(error, ClientError::Refused { code: 403, message: "no".to_owned(), retry: false });
        let error = client.publish("a b", bytes("x")).await.unwrap_err();
        assert!(matches!(error, ClientError::Channel(_)));
        // Dropping the last handle ends the session in order.
        drop(client);
    };
    tokio::join!(serve, client);
}

#[tokio::test]
async fn tls_trusts_a_ca_file_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let dev = DevCertificates::load_or_create(directory.path(), &[], clock::wall()).unwrap();
    let ca_file = dev.ca_file().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(
        Arc::new(CertStore::from_dev(dev)),
        &[b"http/1.1"],
    )));
    let (mut server, url) = Server::new().await;
    let url = url.replace("ws://", "wss://");
    let serve = async {
        let (stream, _) = server.listener.accept().await.unwrap();
        let mut socket = Server::upgrade(acceptor.accept(stream).await.unwrap()).await;
        server.serve(&mut socket, |_| false).await;
        let (stream, _) = server.listener.accept().await.unwrap();
        assert!(acceptor.accept(stream).await.is_err());
    };
    let client = async {
        let client = Client::builder(&url).with_ca_file(ca_file).connect().await.unwrap();
        assert_eq!(soon(client.publish("room", bytes("x"))).await.unwrap().offset.0, 1);
        soon(client.close()).await;
        let other = DevCertificates::ephemeral(&[], clock::wall()).unwrap().hash();
        let error =
            Client::builder(&url).with_certificate_hash(other.to_string()).connect().await.unwrap_err();
        assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    };
    tokio::join!(serve, client);
}

#[tokio::test]
async fn tls_goes_on_where_it_left_off_when_the_client_comes_back() {
    let dev = DevCertificates::ephemeral(&[], clock::wall()).unwrap();
    let hash = dev.hash();
    let mut tls = server_config(Arc::new(CertStore::from_dev(dev)), &[b"http/1.1"]);
    tls.session_storage = rustls::server::ServerSessionMemoryCache::new(64);
    tls.send_tls13_tickets = 1;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let (mut server, url) = Server::new().await;
    let serve = async {
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let (stream, _) = server.listener.accept().await.unwrap();
            let stream = acceptor.accept(stream).await.unwrap();
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
            let mut socket = Server::upgrade(stream).await;
            // Ends without a word, but for the last.
            let is_last = kinds.len() == 3;
            server.serve(&mut socket, |frame| !is_last && is_subscribe(frame)).await;
        }
        use rustls::HandshakeKind::{Full, Resumed};
        assert_eq!(kinds, [Full, Resumed, Resumed]);
    };
    let client = async {
        let client = Client::builder(url.replace("ws://", "wss://")).with_certificate_hash(hash.to_string());
        let client = client.connect().await.unwrap();
        let mut events = client.take_events().unwrap();
        let _room = client.subscribe("room").await.unwrap();
        for _ in 0..2 {
            disconnected(&mut events).await;
        }
        assert_eq!(soon(client.publish("room", bytes("x"))).await.unwrap().offset.0, 1);
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}
