//! Real loopback connections: hyper serves the handshake, tokio-tungstenite is the client.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response};
use http_body_util::{Empty, Full};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_certs::{CertStore, DevCertificates, client_config_pinned, server_config};
use tidegate_protocol::frame::codec::{encode_delimited, encode_text};
use tidegate_protocol::frame::shared::Framing;
use tidegate_protocol::frame::{
    ClientBody, ClientFrame, CloseCode, Empty as NoFields, Publication, Publish, ServerBody, ServerFrame,
};
use tidegate_transport::{Closing, Connection, Inbound, Lane, RecvError, Sent, TransportKind, clock};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::*;

type Client<S> = WebSocketStream<S>;

/// Listens with buffers that are small enough for partial writes.
fn listen() -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_send_buffer_size(8 * 1024).expect("a small buffer");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    socket.listen(16).expect("listening")
}

async fn dial(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(8 * 1024).expect("a small buffer");
    let address = listener.local_addr().expect("bound");
    let (client, server) = tokio::join!(socket.connect(address), listener.accept());
    (server.expect("accepted").0, client.expect("connected"))
}

/// Where the service leaves the upgrade for the test.
type Slot = Arc<Mutex<Option<(OnUpgrade, Subprotocol)>>>;

fn answer<B>(slot: &Slot, mut request: Request<B>) -> Response<Full<Bytes>> {
    match upgrade(&request) {
        Ok(accepted) => {
            let upgrade = hyper::upgrade::on(&mut request);
            *slot.lock().expect("not poisoned") = Some((upgrade, accepted.subprotocol));
            accepted.response.map(|()| Full::default())
        }
        Err(error) => error.response().map(Full::new),
    }
}

async fn serve_http1<S>(stream: S) -> Option<WebSocketConnection>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let slot = Slot::default();
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&slot, request))));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    served.with_upgrades().await.ok()?;
    let (upgrade, subprotocol) = slot.lock().expect("not poisoned").take()?;
    let (io, read_ahead) = downcast(upgrade.await.expect("upgraded"));
    Some(WebSocketConnection::new(io, &read_ahead, subprotocol, LIMITS))
}

fn request(subprotocol: Option<&'static str>) -> Request<()> {
    let mut request = "ws://localhost/v1/connect".into_client_request().expect("a request");
    if let Some(name) = subprotocol {
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(name));
    }
    request
}

async fn pair(subprotocol: Subprotocol) -> (WebSocketConnection, Client<TcpStream>) {
    let (server, client) = dial(&listen()).await;
    let request = request(Some(subprotocol.name()));
    let (server, client) =
        tokio::join!(serve_http1(server), tokio_tungstenite::client_async(request, client));
    let server = server.expect("an upgrade");
    assert!(matches!(server.io_kind(), "Plain"));
    assert_eq!(server.subprotocol(), subprotocol);
    (server, client.expect("an upgrade").0)
}

async fn recv(server: &mut WebSocketConnection) -> Result<Inbound, RecvError> {
    poll_fn(|cx| server.poll_recv(cx)).await
}

async fn recv_frames(server: &mut WebSocketConnection) -> Vec<ClientFrame> {
    match recv(server).await {
        Ok(Inbound::Frames(frames)) => frames,
        other => panic!("{other:?}"),
    }
}

async fn has_nothing(server: &mut WebSocketConnection) -> bool {
    poll_fn(|cx| Poll::Ready(server.poll_recv(cx))).await.is_pending()
}

async fn send(server: &mut WebSocketConnection, bytes: &Bytes) {
    while server.send(Lane::Control, bytes).expect("open") == Sent::Full {
        poll_fn(|cx| server.poll_ready(cx, Lane::Control)).await.expect("open");
    }
}

async fn close(server: &mut WebSocketConnection, code: CloseCode, reason: &str) {
    let closing = Closing { code, reason: reason.to_owned() };
    poll_fn(|cx| server.poll_close(cx, &closing)).await;
}

/// Reads on to the close frame; what comes after it must be the end.
async fn read_close<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>) -> Option<CloseFrame> {
    let mut close = None;
    while let Some(message) = client.next().await {
        match message {
            Ok(Message::Close(frame)) => close = frame,
            Ok(_) => assert_eq!(close, None),
            Err(Error::ConnectionClosed) => break,
            Err(error) => panic!("{error}"),
        }
    }
    close
}

fn publish(id: u64, length: usize) -> ClientFrame {
    let data = Some(Bytes::from(format!("\"{}\"", "é".repeat(length / 2))));
    ClientFrame::new(id, ClientBody::Publish(Publish { channel: "a".to_owned(), data, ..Publish::default() }))
}

fn publication(offset: u64, length: usize) -> ServerFrame {
    let letter = char::from(b'a' + (offset % 26) as u8).to_string();
    let data = Some(Bytes::from(format!("\"{}\"", letter.repeat(length))));
    let publication = Publication { channel: "a".to_owned(), offset, data, ..Publication::default() };
    ServerFrame::new(0, ServerBody::Publication(publication))
}

/// A client's frame as RFC 6455 wants it, or not: `first` is taken as it is.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    let mut frame = vec![first, 0x80 | payload.len() as u8, 1, 2, 3, 4];
    frame.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

#[tokio::test]
async fn both_subprotocols_carry_frames_both_ways() {
    for subprotocol in Subprotocol::ALL {
        let (mut server, mut client) = pair(subprotocol).await;
        assert_eq!(server.kind(), TransportKind::WebSocket);
        assert_eq!(server.framing(), subprotocol.framing());
        let frames = [publish(1, 10), publish(2, 50_000), ClientFrame::new(0, ClientBody::Pong(NoFields {}))];
        let messages = match subprotocol {
            Subprotocol::Json => {
                let texts: Vec<_> = frames.iter().map(|frame| encode_text(frame).to_vec()).collect();
                let array = [b" [", &texts[0][..], b",", &texts[2][..], b"]"].concat();
                [texts[1].clone(), array].map(|text| Message::text(String::from_utf8(text).expect("JSON")))
            }
            Subprotocol::Proto => {
                let bytes: Vec<_> = frames.iter().map(|frame| encode_delimited(frame).to_vec()).collect();
                [bytes[1].clone(), [&bytes[0][..], &bytes[2][..]].concat()].map(Message::binary)
            }
        };
        let sending = async {
            for message in messages {
                client.send(message).await.expect("sent");
            }
        };
        let receiving = async {
            assert_eq!(recv_frames(&mut server).await, [frames[1].clone()]);
            assert_eq!(recv_frames(&mut server).await, [frames[0].clone(), frames[2].clone()]);
        };
        tokio::join!(sending, receiving);

        let reply = publication(7, 300);
        send(&mut server, &subprotocol.framing().encode(&reply)).await;
        match (subprotocol, client.next().await.expect("open").expect("valid")) {
            (Subprotocol::Json, Message::Text(text)) => assert_eq!(text.as_bytes(), &encode_text(&reply)[..]),
            (Subprotocol::Proto, Message::Binary(bytes)) => assert_eq!(bytes, encode_delimited(&reply)),
            other => panic!("{other:?}"),
        }
        assert_eq!(server.buffered(), 0);
        assert!(has_nothing(&mut server).await);
        assert_eq!(server.reader_capacity(), 0);
    }
}

#[test]
fn an_idle_connection_is_small() {
    // With tokio's own 256 bytes and allocator overhead this leaves most of 1.2 KiB to the session.
    assert!(size_of::<WebSocketConnection>() <= 256, "{}", size_of::<WebSocketConnection>());
}

#[tokio::test]
async fn fragments_are_put_together_and_pings_in_between_answered() {
    let (mut server, mut client) = pair(Subprotocol::Json).await;
    let text = encode_text(&publish(3, 20));
    let mut wire = raw(0x01, &text[..10]);
    wire.extend(raw(0x89, b"are you there"));
    wire.extend(raw(0x00, b""));
    wire.extend(raw(0x80, &text[10..]));
    // In single bytes: every cut is met.
    let writing = async {
        for byte in wire {
            client.get_mut().write_all(&[byte]).await.expect("written");
        }
    };
    let (frames, ()) = tokio::join!(recv_frames(&mut server), writing);
    assert_eq!(frames, [publish(3, 20)]);
    let pong = client.next().await.expect("open").expect("valid");
    assert_eq!(pong, Message::Pong(Bytes::from_static(b"are you there")));
}

#[tokio::test]
async fn bytes_behind_the_handshake_are_not_lost() {
    let (server, mut client) = dial(&listen()).await;
    let handshake = "GET /v1/connect HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut wire = handshake.as_bytes().to_vec();
    wire.extend(raw(0x81, br#"{"id":1,"connect":{}}"#));
    client.write_all(&wire).await.expect("written");
    let mut server = serve_http1(server).await.expect("an upgrade");
    assert_eq!(server.subprotocol(), Subprotocol::Json);
    assert_eq!(recv_frames(&mut server).await.len(), 1);
}

#[tokio::test]
async fn unknown_subprotocols_are_refused_with_400() {
    let (server, client) = dial(&listen()).await;
    let request = request(Some("chat, graphql-ws"));
    let (server, client) =
        tokio::join!(serve_http1(server), tokio_tungstenite::client_async(request, client));
    assert!(server.is_none());
    match client.expect_err("refused") {
        Error::Http(response) => assert_eq!(response.status(), 400),
        other => panic!("{other}"),
    }
}

/// Floods a client that does not read, then lets it read: everything must arrive whole and in order, with pongs only
/// between messages. tungstenite fails on anything else.
async fn push_a_mebibyte<S: AsyncRead + AsyncWrite + Unpin>(
    mut server: WebSocketConnection,
    mut client: Client<S>,
) {
    const MESSAGES: u64 = 70;
    let length = |offset: u64| 15_000 + 37 * offset as usize;
    let frames: Vec<Bytes> = (0..MESSAGES)
        .map(|offset| Framing::WebSocketText.encode(&publication(offset, length(offset))))
        .collect();
    assert!(frames.iter().map(Bytes::len).sum::<usize>() > 1024 * 1024);

    let mut sent = 0;
    while server.send(Lane::Control, &frames[sent]).expect("open") == Sent::Taken {
        sent += 1;
    }
    assert!(server.buffered() > 0);
    let sending = async {
        for frame in &frames[sent..] {
            while server.send(Lane::Subscription(1), frame).expect("open") == Sent::Full {
                poll_fn(|cx| {
                    assert!(server.poll_recv(cx).is_pending());
                    server.poll_ready(cx, Lane::Control)
                })
                .await
                .expect("open");
            }
        }
        close(&mut server, CloseCode::Shutdown, "enough").await;
    };
    let receiving = async {
        let (mut next, mut pongs) = (0, 0);
        loop {
            match client.next().await.expect("open").expect("valid") {
                Message::Text(text) => {
                    let expected = encode_text(&publication(next, length(next)));
                    assert!(text.as_bytes() == &expected[..], "message {next}");
                    next += 1;
                    client.send(Message::Ping(Bytes::from(next.to_string()))).await.expect("sent");
                }
                Message::Pong(_) => pongs += 1,
                Message::Close(close) => {
                    assert_eq!(close.map(|close| u16::from(close.code)), Some(4100));
                    break;
                }
                other => panic!("{other}"),
            }
        }
        assert_eq!(next, MESSAGES);
        assert!(pongs > 0);
        while client.next().await.is_some_and(|message| message.is_ok()) {}
    };
    tokio::join!(sending, receiving);
}

#[tokio::test]
async fn partial_writes_to_a_slow_reader_never_interleave() {
    let (server, client) = pair(Subprotocol::Json).await;
    push_a_mebibyte(server, client).await;
}

#[tokio::test]
async fn partial_writes_under_tls_never_interleave() {
    let (server, client) = tls_pair().await;
    push_a_mebibyte(server, client).await;
}

#[tokio::test]
async fn what_a_send_left_is_pushed_by_the_reading_task_alone() {
    let (mut server, mut client) = pair(Subprotocol::Json).await;
    assert!(has_nothing(&mut server).await);
    let large = Framing::WebSocketText.encode(&publication(1, 500_000));
    assert_eq!(server.send(Lane::Control, &large).expect("open"), Sent::Taken);
    assert!(server.buffered() > 0);
    // The client's answer shows that it has the whole message; nobody asks `poll_ready`.
    let reading = async {
        let message = client.next().await.expect("open").expect("valid");
        client.send(Message::text(encode_to_string(&publish(1, 2)))).await.expect("sent");
        message
    };
    let (frames, message) = tokio::join!(recv_frames(&mut server), reading);
    assert_eq!(frames.len(), 1);
    assert!(message.len() > 500_000);
}

fn encode_to_string(frame: &ClientFrame) -> String {
    String::from_utf8(encode_text(frame).to_vec()).expect("JSON")
}

#[tokio::test]
async fn a_flood_of_pings_is_answered_with_few_pongs() {
    let (mut server, mut client) = pair(Subprotocol::Json).await;
    let mut flood = Vec::new();
    for number in 0..2_000u32 {
        flood.extend(raw(0x89, &number.to_be_bytes()));
    }
    flood.extend(raw(0x81, br#"{"pong":{}}"#));
    let (written, frames) = tokio::join!(client.get_mut().write_all(&flood), recv_frames(&mut server));
    written.expect("written");
    assert_eq!(frames.len(), 1);
    send(&mut server, &Framing::WebSocketText.encode(&publication(1, 1))).await;
    let mut pongs = Vec::new();
    while let Message::Pong(payload) = client.next().await.expect("open").expect("valid") {
        pongs.push(payload);
    }
    assert!((1..500).contains(&pongs.len()), "{}", pongs.len());
    assert_eq!(pongs.last().map(|payload| &payload[..]), Some(&1_999u32.to_be_bytes()[..]));
}

#[tokio::test]
async fn a_client_that_pings_and_never_reads_costs_one_pong() {
    let (mut server, mut client) = pair(Subprotocol::Json).await;
    let large = Framing::WebSocketText.encode(&publication(1, 500_000));
    send(&mut server, &large).await;
    assert_eq!(server.send(Lane::Control, &large).expect("open"), Sent::Full);
    let rest = server.buffered();
    for _ in 0..50 {
        let flood = raw(0x89, &[7; 100]).repeat(20);
        client.get_mut().write_all(&flood).await.expect("written");
        assert!(has_nothing(&mut server).await);
        assert!(server.buffered() <= rest + 102);
    }
}

#[tokio::test]
async fn a_client_that_closes_gets_its_code_back() {
    let (mut server, mut client) = pair(Subprotocol::Json).await;
    let close_frame = CloseFrame { code: 4000.into(), reason: "done".into() };
    client.close(Some(close_frame)).await.expect("sent");
    match recv(&mut server).await {
        Ok(Inbound::Closed { code }) => assert_eq!(code, Some(4000)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(recv(&mut server).await, Err(RecvError::Lost(_))));
    assert!(server.send(Lane::Control, &Bytes::from_static(b"x")).is_err());
    let ((), answer) = tokio::join!(close(&mut server, CloseCode::Done, "done"), read_close(&mut client));
    assert_eq!(answer.map(|frame| u16::from(frame.code)), Some(4000));

    let (mut server, mut client) = pair(Subprotocol::Proto).await;
    client.close(None).await.expect("sent");
    assert!(matches!(recv(&mut server).await, Ok(Inbound::Closed { code: None })));
    let ((), answer) = tokio::join!(close(&mut server, CloseCode::Done, "done"), read_close(&mut client));
    assert_eq!(answer, None);
}

#[tokio::test]
async fn a_client_that_is_closed_gets_code_and_reason() {
    for (reason, length) in [("come back later".to_owned(), 15), ("é".repeat(200), 120)] {
        let (mut server, mut client) = pair(Subprotocol::Json).await;
        send(&mut server, &Framing::WebSocketText.encode(&publication(1, 10))).await;
        // What the client still says is passed over.
        client.send(Message::text(encode_to_string(&publish(1, 10)))).await.expect("sent");
        let closing = close(&mut server, CloseCode::Overloaded, &reason);
        let ((), frame) = tokio::join!(closing, read_close(&mut client));
        let frame = frame.expect("a close frame");
        assert_eq!(u16::from(frame.code), 4101);
        assert_eq!(frame.reason.len(), length);
    }
}

#[tokio::test]
async fn a_client_that_vanishes_is_lost() {
    let (mut server, client) = pair(Subprotocol::Json).await;
    drop(client);
    assert!(matches!(recv(&mut server).await, Err(RecvError::Lost(_))));
    // Closing ends at once all the same.
    close(&mut server, CloseCode::ConnectionLost, "").await;
}

#[tokio::test]
async fn bad_input_ends_with_its_code_and_a_close_frame_that_arrives() {
    let two_large: Vec<u8> = {
        let mut header = vec![0x01, 0xfe];
        header.extend((60_000u16).to_be_bytes());
        header.extend([0; 4]);
        let fragment = [header, vec![b' '; 60_000]].concat();
        let mut second = fragment.clone();
        second[0] = 0x80;
        [fragment, second].concat()
    };
    let json: &[(&str, Vec<u8>, CloseCode)] = &[
        ("not JSON", raw(0x81, b"{"), CloseCode::BadFrame),
        ("empty", raw(0x81, b""), CloseCode::BadFrame),
        ("unknown frame", raw(0x81, br#"{"bogus":{}}"#), CloseCode::BadFrame),
        ("no body", raw(0x81, br#"{"id":1}"#), CloseCode::BadFrame),
        ("bad UTF-8", raw(0x81, b"{\"rpc\":{\"x\":\"\xff\"}}"), CloseCode::BadFrame),
        ("binary", raw(0x82, b"{}"), CloseCode::Unsupported),
        ("unmasked", vec![0x81, 2, b'{', b'}'], CloseCode::BadFrame),
        ("reserved opcode", raw(0x83, b"{}"), CloseCode::BadFrame),
        ("reserved control opcode", raw(0x8b, b""), CloseCode::BadFrame),
        ("compressed", raw(0xc1, b"{}"), CloseCode::BadFrame),
        ("continuation of nothing", raw(0x80, b"{}"), CloseCode::BadFrame),
        ("fragmented ping", raw(0x09, b""), CloseCode::BadFrame),
        ("close of one byte", raw(0x88, &[3]), CloseCode::BadFrame),
        ("forbidden close code", raw(0x88, &1005u16.to_be_bytes()), CloseCode::BadFrame),
        (
            "oversized",
            [&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0x86, 0xa1][..], &[0; 4]].concat(),
            CloseCode::FrameTooLarge,
        ),
        ("oversized in fragments", two_large, CloseCode::FrameTooLarge),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), CloseCode::BadFrame),
    ];
    let proto: &[(&str, Vec<u8>, CloseCode)] = &[
        ("text", raw(0x81, b"{}"), CloseCode::Unsupported),
        ("cut off", raw(0x82, &[5, 1]), CloseCode::BadFrame),
        ("bad length", raw(0x82, &[0xff; 8]), CloseCode::BadFrame),
        ("not Protobuf", raw(0x82, &[2, 0xff, 0xff]), CloseCode::BadFrame),
        ("no body", raw(0x82, &[2, 8, 1]), CloseCode::BadFrame),
    ];
    for (subprotocol, cases) in [(Subprotocol::Json, json), (Subprotocol::Proto, proto)] {
        for (name, bytes, expected) in cases {
            let (mut server, mut client) = pair(subprotocol).await;
            // Something unread behind the bad frame must not cost the client its close frame.
            let wire = [&bytes[..], &raw(0x81, b"more")].concat();
            let (written, result) = tokio::join!(client.get_mut().write_all(&wire), recv(&mut server));
            written.expect("written");
            let (code, reason) = match result {
                Err(RecvError::Protocol { code, reason }) => (code, reason),
                other => panic!("{name}: {other:?}"),
            };
            assert_eq!(code, *expected, "{name}: {reason}");
            // The session still says why in a frame of its own.
            send(&mut server, &subprotocol.framing().encode(&publication(1, 10))).await;
            let ((), frame) =
                tokio::join!(close(&mut server, code, &reason), async { read_and_hang_up(client).await });
            assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(expected.number() as u16), "{name}");
        }
    }
}

/// As a browser does: reads the close frame, answers it, hangs up.
async fn read_and_hang_up(mut client: Client<TcpStream>) -> Option<CloseFrame> {
    read_close(&mut client).await
}

#[tokio::test]
async fn a_frame_of_exactly_the_limit_passes() {
    for subprotocol in Subprotocol::ALL {
        let (mut server, mut client) = pair(subprotocol).await;
        let overhead = match subprotocol {
            Subprotocol::Json => encode_text(&publish(1, 0)).len(),
            // The data's own length takes three bytes instead of one.
            Subprotocol::Proto => encode_delimited(&publish(1, 60_000)).len() - 3 - 60_000,
        };
        let largest = LIMITS.frame_bytes - overhead;
        for (length, passes) in [(largest & !1, true), ((largest & !1) + 2, false)] {
            let message = match subprotocol {
                Subprotocol::Json => Message::text(encode_to_string(&publish(1, length))),
                Subprotocol::Proto => Message::binary(encode_delimited(&publish(1, length))),
            };
            let (sent, received) = tokio::join!(client.send(message), recv(&mut server));
            match received {
                Ok(Inbound::Frames(frames)) => assert!(passes && frames == [publish(1, length)]),
                Err(RecvError::Protocol { code: CloseCode::FrameTooLarge, .. }) => assert!(!passes),
                other => panic!("{other:?}"),
            }
            drop(sent);
        }
    }
}

async fn tls_pair() -> (WebSocketConnection, Client<tokio_rustls::client::TlsStream<TcpStream>>) {
    let dev = DevCertificates::ephemeral(&["localhost".to_owned()], clock::wall()).expect("a certificate");
    let store = Arc::new(CertStore::from_dev(dev));
    let client_config = client_config_pinned([store.hash()], &[b"http/1.1"]).expect("a hash");
    let acceptor = TlsAcceptor::from(Arc::new(server_config(store, &[b"http/1.1"])));
    let connector = TlsConnector::from(Arc::new(client_config));
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");

    let (server, client) = dial(&listen()).await;
    let (server, client) = tokio::join!(acceptor.accept(server), connector.connect(name, client));
    let request = request(Some("tidegate.v1.json"));
    let (server, client) = tokio::join!(
        serve_http1(server.expect("a handshake")),
        tokio_tungstenite::client_async(request, client.expect("a handshake")),
    );
    let server = server.expect("an upgrade");
    assert!(matches!(server.io_kind(), "Tls"));
    (server, client.expect("an upgrade").0)
}

#[tokio::test]
async fn tls_carries_frames_and_closes_in_order() {
    let (mut server, mut client) = tls_pair().await;
    client.send(Message::text(encode_to_string(&publish(1, 40_000)))).await.expect("sent");
    assert_eq!(recv_frames(&mut server).await, [publish(1, 40_000)]);
    let frame = publication(1, 100);
    send(&mut server, &Framing::WebSocketText.encode(&frame)).await;
    let message = client.next().await.expect("open").expect("valid");
    assert_eq!(message.into_data(), encode_text(&frame));
    let ((), frame) =
        tokio::join!(close(&mut server, CloseCode::TokenExpired, "expired"), read_close(&mut client));
    assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(4005));
}

#[tokio::test]
async fn the_auto_builder_gives_its_socket_back() {
    let (server, client) = dial(&listen()).await;
    let slot = Slot::default();
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&slot, request))));
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(server), service);
    let (served, client) = tokio::join!(serving, tokio_tungstenite::client_async(request(None), client));
    served.expect("served");
    let (mut client, _) = client.expect("an upgrade");
    let (upgrade, subprotocol) = slot.lock().expect("not poisoned").take().expect("an upgrade");
    let (io, read_ahead) = downcast(upgrade.await.expect("upgraded"));
    assert!(matches!(io, WebSocketIo::Plain(_)));
    let mut server = WebSocketConnection::new(io, &read_ahead, subprotocol, LIMITS);
    client.send(Message::text(r#"{"pong":{}}"#)).await.expect("sent");
    assert_eq!(recv_frames(&mut server).await.len(), 1);
}

#[tokio::test]
async fn an_extended_connect_over_http2_carries_frames_and_closes() {
    let (server, client) = dial(&listen()).await;
    let slot = Slot::default();
    let in_service = slot.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let service =
            service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&in_service, request))));
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.enable_connect_protocol();
        // Ends with an error where the client goes first: the streams tell what matters.
        drop(builder.serve_connection(TokioIo::new(server), service).await);
    });
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client))
            .await
            .expect("a handshake");
    tasks.spawn(async move { drop(connection.await) });

    // An ordinary request first: its answer brings the server's settings along.
    let get = Request::get("http://localhost/v1/connect").body(Empty::<Bytes>::new()).expect("a request");
    assert_eq!(sender.send_request(get).await.expect("an answer").status(), 426);

    let mut connect = Request::connect("http://localhost/v1/connect")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "tidegate.v1.proto")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    connect.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    let response = sender.send_request(connect).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "tidegate.v1.proto");
    let client = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;

    let (upgrade, subprotocol) = slot.lock().expect("not poisoned").take().expect("an upgrade");
    let (io, read_ahead) = downcast(upgrade.await.expect("upgraded"));
    assert!(matches!(io, WebSocketIo::Other(_)));
    let mut server = WebSocketConnection::new(io, &read_ahead, subprotocol, LIMITS);

    client.send(Message::binary(encode_delimited(&publish(1, 60_000)))).await.expect("sent");
    assert_eq!(recv_frames(&mut server).await, [publish(1, 60_000)]);
    let frames: Vec<_> = (0..20).map(|offset| publication(offset, 20_000)).collect();
    let sending = async {
        for frame in &frames {
            send(&mut server, &Framing::WebSocketBinary.encode(frame)).await;
        }
        close(&mut server, CloseCode::Shutdown, "bye").await;
    };
    let receiving = async {
        for frame in &frames {
            let message = client.next().await.expect("open").expect("valid");
            assert!(message.into_data() == encode_delimited(frame));
        }
        read_close(&mut client).await
    };
    let ((), frame) = tokio::join!(sending, receiving);
    assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(4100));
}

const LIMITS: WebSocketLimits = WebSocketLimits { frame_bytes: 100_000 };
