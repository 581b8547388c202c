//! WebTransport clients over loopback.

use http::{HeaderName, HeaderValue, StatusCode};
use quinn::TransportConfig;
use tidegate_protocol::Epoch;
use web_transport_quinn::proto::{self, ConnectRequest};
use web_transport_quinn::{ClientError, ConnectError, Session, SessionError, WebTransportError};

use super::*;

impl Server {
    async fn request(&self) -> WebTransportPending {
        match self.pending().await.unwrap() {
            Pending::WebTransport(pending) => pending,
            other => panic!("{other:?}"),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    async fn dial_session(&self, request: ConnectRequest) -> Result<Session, ClientError> {
        let connection = self.dial(ALPN_WEBTRANSPORT, TransportConfig::default()).await;
        Session::connect(connection, request).await
    }

    /// A session whose `connect` frame was read, the client's end of it and of its control stream.
    async fn session(
        &self,
    ) -> (QuicConnection, Session, web_transport_quinn::SendStream, web_transport_quinn::RecvStream) {
        let server = async { self.request().await.accept().await.unwrap() };
        let client = async {
            let session = self.dial_session(request(&self.url("/v1/connect"))).await.unwrap();
            let (mut send, recv) = session.open_bi().await.unwrap();
            send.write_all(&encode_delimited(&connect_frame())).await.unwrap();
            (session, send, recv)
        };
        let (mut server, (session, send, recv)) = tokio::join!(server, client);
        assert_eq!(frames(&mut server).await, [connect_frame()]);
        (server, session, send, recv)
    }
}

fn request(url: &str) -> ConnectRequest {
    ConnectRequest::from(url.parse::<url::Url>().unwrap())
}

/// Below the session.
fn quic(session: &Session) -> &quinn::Connection {
    session
}

/// All that comes until the end of a stream.
async fn to_end(recv: &mut web_transport_quinn::RecvStream) -> Vec<u8> {
    recv.read_to_end(1 << 20).await.unwrap()
}

#[tokio::test]
async fn a_request_shows_what_it_asks_for_and_its_session_carries_frames() {
    let server = Server::start();
    let origin = (HeaderName::from_static("origin"), HeaderValue::from_static("https://app.example"));
    let request = request(&server.url("/v1/connect?token=a%20b&x=1"))
        .with_header(origin.0, origin.1)
        .with_protocol("tidegate");
    let serve = async {
        let pending = server.request().await;
        assert_eq!(pending.path(), "/v1/connect");
        assert_eq!(pending.query(), Some("token=a%20b&x=1"));
        assert_eq!(pending.origin(), Some("https://app.example"));
        assert_eq!(pending.headers().get("origin").unwrap(), "https://app.example");
        assert_eq!(pending.protocols(), ["tidegate"]);
        assert_eq!(pending.remote_address().ip(), server.address.ip());
        assert!(!format!("{pending:?}").contains("token"), "tokens are not for logs");
        let mut connection = pending.accept().await.unwrap();
        assert_eq!(connection.kind(), crate::TransportKind::WebTransport);
        assert_eq!(frames(&mut connection).await, [connect_frame()]);
        connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
        connection
    };
    let dial = async {
        let session = server.dial_session(request).await.unwrap();
        let (mut send, mut recv) = session.open_bi().await.unwrap();
        send.write_all(&encode_delimited(&connect_frame())).await.unwrap();
        let expected = encode_delimited(&ping_frame());
        let mut bytes = vec![0; expected.len()];
        recv.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, expected);
        (session, send)
    };
    let (_connection, _client) = tokio::join!(serve, dial);
}

#[tokio::test]
async fn a_rejected_request_sees_the_status() {
    let server = Server::start();
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
        let reject = async { server.request().await.reject(status).await };
        let url = server.url("/v1/connect");
        let ((), dialled) = tokio::join!(reject, server.dial_session(request(&url)));
        match dialled {
            Err(ClientError::HttpError(ConnectError::ProtoError(proto::ConnectError::WrongStatus(
                Some(seen),
            )))) => {
                assert_eq!(seen, status);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn lanes_are_streams_of_the_session() {
    let server = Server::start();
    let (mut connection, session, _send, _recv) = server.session().await;
    connection.open_lane(1, &channel("room:1"), 0);
    connection.begin_epoch(1, &Epoch::new("e1"));
    for offset in 1..=2 {
        connection.send(Lane::Subscription(1), &encode_delimited(&publication(offset, 100))).unwrap();
    }
    let mut live = session.accept_uni().await.unwrap();
    connection.send(Lane::CatchUp(1), &encode_delimited(&publication(3, 50_000))).unwrap();
    connection.finish_catch_up(1);
    let mut catch_up = session.accept_uni().await.unwrap();
    connection.close_lane(1);

    let mut decoder = Decoder::new(1 << 20);
    decoder.push(&to_end(&mut live).await);
    let header: StreamHeader = decoder.next_message().unwrap().unwrap();
    assert_eq!(header, StreamHeader { channel: "room:1".into(), catch_up: false, epoch: "e1".into() });
    for offset in 1..=2 {
        assert_eq!(decoder.next().unwrap(), Some(publication(offset, 100)));
    }
    assert!(decoder.is_empty());

    decoder.push(&to_end(&mut catch_up).await);
    let header: StreamHeader = decoder.next_message().unwrap().unwrap();
    assert_eq!(header, StreamHeader { channel: "room:1".into(), catch_up: true, epoch: "e1".into() });
    assert_eq!(decoder.next().unwrap(), Some(publication(3, 50_000)));
    assert!(decoder.is_empty());
}

#[tokio::test]
async fn datagrams_are_those_of_the_session() {
    let server = Server::start();
    let (mut connection, session, _send, _recv) = server.session().await;
    // Of a session that does not exist: dropped.
    quic(&session).send_datagram([&[4], &encode_delimited(&pong_frame(1))[..]].concat().into()).unwrap();
    session.send_datagram(encode_delimited(&pong_frame(2))).unwrap();
    assert_eq!(datagram(&mut connection).await, [pong_frame(2)]);
    assert!(connection.send_datagram(&encode_delimited(&ping_frame())));
    assert_eq!(session.read_datagram().await.unwrap(), encode_delimited(&ping_frame()));
    assert!(!connection.send_datagram(&encode_delimited(&publication(2, 4000))));
}

#[tokio::test]
async fn the_servers_close_is_seen_with_code_and_reason_after_its_frame() {
    let server = Server::start();
    let (mut connection, session, _send, mut recv) = server.session().await;
    let read = async {
        let bytes = to_end(&mut recv).await;
        let expected = ServerFrame::new(0, ServerBody::Close(CloseCode::TokenExpired.frame("expired")));
        assert_eq!(bytes, encode_delimited(&expected));
        session.closed().await
    };
    let ((), end) = tokio::join!(close(&mut connection, CloseCode::TokenExpired, "expired"), read);
    assert_closed(&end, CloseCode::TokenExpired, "expired");
}

#[tokio::test]
async fn dropping_closes_the_session_with_shutdown() {
    let server = Server::start();
    let (connection, session, _send, _recv) = server.session().await;
    drop(connection);
    assert_closed(&session.closed().await, CloseCode::Shutdown, "");
}

#[tokio::test]
async fn the_clients_close_code_is_seen() {
    let server = Server::start();
    let (mut connection, session, _send, _recv) = server.session().await;
    session.close(4000, b"bye");
    let closed = recv(&mut connection).await;
    assert!(matches!(closed, Ok(Inbound::Closed { code: Some(4000) })), "{closed:?}");
    close(&mut connection, CloseCode::Done, "").await;
}

#[tokio::test]
async fn further_streams_of_the_session_are_out_of_order_and_those_of_http3_are_not() {
    let server = Server::start();
    let (mut connection, session, mut control, _recv) = server.session().await;
    // QPACK's two, one that nobody knows, one whose type comes in two pieces.
    let mut open = Vec::new();
    for bytes in [&[2][..], &[3], &[0x21, 0xff, 0xff], &[0x40]] {
        let mut stream = quic(&session).open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        open.push(stream);
    }
    control.write_all(&encode_delimited(&pong_frame(1))).await.unwrap();
    assert_eq!(frames(&mut connection).await, [pong_frame(1)]);
    open[3].write_all(&[0x54]).await.unwrap();
    assert_eq!(protocol_error(&mut connection).await, CloseCode::OutOfOrder);

    let (mut connection, session, _send, _recv) = server.session().await;
    let (mut second, _recv) = session.open_bi().await.unwrap();
    second.write_all(b"x").await.unwrap();
    assert_eq!(protocol_error(&mut connection).await, CloseCode::OutOfOrder);
}

#[tokio::test]
async fn plain_http3_is_told_that_it_is_not_served() {
    let server = Server::start();
    let dial = async {
        let connection = server.dial(ALPN_WEBTRANSPORT, TransportConfig::default()).await;
        let mut control = connection.open_uni().await.unwrap();
        // A control stream with empty SETTINGS.
        control.write_all(&[0, 4, 0]).await.unwrap();
        connection.closed().await
    };
    let (pending, end) = tokio::join!(server.pending(), dial);
    assert!(matches!(pending, Err(QuicError::NotWebTransport(_))), "{pending:?}");
    let quinn::ConnectionError::ApplicationClosed(end) = end else { panic!("{end}") };
    assert_eq!(end.error_code, quinn::VarInt::from_u32(0x10b));
}

#[tokio::test]
async fn a_request_that_never_comes_ends_at_the_handshake_timeout() {
    let config = QuicConfig { handshake_timeout: Duration::from_millis(200), ..QuicConfig::default() };
    let server = Server::with(config, 1);
    let dial = server.dial(ALPN_WEBTRANSPORT, TransportConfig::default());
    let (pending, client) = tokio::join!(server.pending(), dial);
    assert!(matches!(pending, Err(QuicError::HandshakeTimeout(_))), "{pending:?}");
    client.closed().await;
}

#[tokio::test]
async fn dropping_a_session_that_waits_for_control_closes_it() {
    let server = Server::start();
    let (accept_sent, accepting) = tokio::sync::oneshot::channel();
    let serve = async {
        let pending = server.request().await;
        tokio::select! {
            accepted = pending.accept() => panic!("{accepted:?}"),
            _ = accepting => {}
        }
    };
    let dial = async {
        let session = server.dial_session(request(&server.url("/v1/connect"))).await.unwrap();
        accept_sent.send(()).unwrap();
        session.closed().await;
    };
    tokio::join!(serve, dial);
}

fn assert_closed(end: &SessionError, code: CloseCode, reason: &str) {
    match end {
        SessionError::WebTransportError(WebTransportError::Closed(number, text)) => {
            assert_eq!((*number, text.as_str()), (code.number(), reason));
        }
        other => panic!("{other:?}"),
    }
}
