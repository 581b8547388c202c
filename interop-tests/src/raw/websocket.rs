//! WebSocket: over TLS with HTTP/1.1, and over HTTP/2.

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request, StatusCode, Version, header};
use http_body_util::Empty;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_protocol::frame::ServerFrame;
use tidegate_protocol::frame::codec::{decode_message, decode_text};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tungstenite::Message;
use tungstenite::handshake::client::generate_key;
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::{Carrier, Greeting, Pace, Received, Refused, paced, spelled};
use crate::gateway::Gateway;
use crate::http::{Stream, dial as dial_stream};

type Socket = WebSocketStream<Box<dyn Stream>>;

#[derive(Debug)]
pub(super) struct Sender(SplitSink<Socket, Message>);

impl Sender {
    /// As it is: also text that is none.
    pub(super) async fn send(&mut self, bytes: Bytes, text: bool) -> Result<()> {
        let kind = OpCode::Data(if text { Data::Text } else { Data::Binary });
        Ok(self.0.send(Message::Frame(Frame::message(bytes, kind, true))).await?)
    }
}

pub(super) async fn dial(
    gateway: &Gateway,
    carrier: Carrier,
    greeting: &Greeting,
    received: mpsc::Sender<Received>,
    stop: CancellationToken,
) -> Result<Sender> {
    let own = if carrier == Carrier::WebSocketProto { "tidegate.v1.proto" } else { "tidegate.v1.json" };
    let offered = greeting.subprotocols.clone().unwrap_or_else(|| own.to_owned());
    let mut request = Request::builder()
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_PROTOCOL, &offered);
    if let Some(token) = &greeting.bearer {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if let Some(origin) = &greeting.origin {
        request = request.header(header::ORIGIN, origin);
    }
    if let Some((name, value)) = &greeting.header {
        request = request.header(name, value);
    }
    let query = greeting.query.as_ref().map(|token| format!("?token={token}")).unwrap_or_default();
    let path = format!("/v1/connect{query}");
    let stream = if carrier == Carrier::WebSocketH2 {
        over_http2(gateway, request, &path).await?
    } else {
        over_http1(gateway, request, &path, greeting.pace.clone()).await?
    };
    let (sink, source) = WebSocketStream::from_raw_socket(stream, Role::Client, None).await.split();
    TaskTracker::new().spawn(stop.run_until_cancelled_owned(read(source, received)));
    Ok(Sender(sink))
}

async fn over_http1(
    gateway: &Gateway,
    request: http::request::Builder,
    path: &str,
    pace: Option<Pace>,
) -> Result<Box<dyn Stream>> {
    let (address, tls) = (gateway.addresses.tls, gateway.tls(&[b"http/1.1"]));
    let stream = match pace {
        Some(pace) => paced::dial(address, tls, pace).await?,
        None => dial_stream(address, Some(tls)).await?,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    TaskTracker::new().spawn(connection.with_upgrades());
    let request = request
        .uri(path)
        .header(header::HOST, gateway.addresses.tls.to_string())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .body(Empty::<Bytes>::new())?;
    upgraded(sender.send_request(request).await?, StatusCode::SWITCHING_PROTOCOLS).await
}

async fn over_http2(
    gateway: &Gateway,
    request: http::request::Builder,
    path: &str,
) -> Result<Box<dyn Stream>> {
    let stream = dial_stream(gateway.addresses.tls, Some(gateway.tls(&[b"h2"]))).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    TaskTracker::new().spawn(connection);
    let mut request = request
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(format!("https://{}{path}", gateway.addresses.tls))
        .body(Empty::<Bytes>::new())?;
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    // The server's settings say that it knows extended CONNECT; before they are there the request fails.
    let response = loop {
        match sender.send_request(request.clone()).await {
            Ok(response) => break response,
            Err(error) if error.is_user() => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    };
    upgraded(response, StatusCode::OK).await
}

async fn upgraded(
    response: http::Response<hyper::body::Incoming>,
    wanted: StatusCode,
) -> Result<Box<dyn Stream>> {
    if response.status() != wanted {
        let answer = crate::http::answer(response).await?;
        return Err(anyhow!(Refused { status: answer.status, body: answer.text() }));
    }
    let upgraded = hyper::upgrade::on(response).await.context("the upgrade")?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

async fn read(mut source: SplitStream<Socket>, received: mpsc::Sender<Received>) {
    loop {
        let closed = match source.next().await {
            Some(Ok(Message::Close(close))) => close.map_or_else(
                || (0, String::new()),
                |close| (u32::from(u16::from(close.code)), close.reason.to_string()),
            ),
            Some(Ok(message)) => {
                for frame in decode(message).unwrap_or_default() {
                    if received.send(Received::Frame(spelled(&frame))).await.is_err() {
                        return;
                    }
                }
                continue;
            }
            Some(Err(error)) => (0, error.to_string()),
            None => (0, "the stream ended".to_owned()),
        };
        let (code, reason) = closed;
        // A test that has seen enough has dropped its end.
        let _ = received.send(Received::Closed { code, reason }).await;
        return;
    }
}

fn decode(message: Message) -> Result<Vec<ServerFrame>> {
    match message {
        Message::Text(text) => Ok(decode_text(text.as_bytes(), MAX_MESSAGE)?),
        Message::Binary(bytes) => Ok(decode_message(bytes, MAX_MESSAGE)?),
        _ => bail!("no frames in it"),
    }
}

const MAX_MESSAGE: usize = 4 << 20;
