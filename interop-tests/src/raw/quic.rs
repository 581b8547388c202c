//! Native QUIC, and WebTransport without a browser.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, TransportConfig, VarInt};
use quinn_proto::ConnectionId;
use rand::Rng as _;
use tidegate_protocol::frame::codec::{Decoder, decode_message};
use tidegate_protocol::frame::{ServerFrame, StreamHeader};
use tidegate_transport::clock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use web_transport_quinn::proto::{ConnectError, ConnectRequest};
use web_transport_quinn::{ClientError, ConnectError as Connecting, RecvStream, SendStream, Session};
use web_transport_quinn::{SessionError, WebTransportError};

use super::{Greeting, Pace, Received, Refused, spelled};
use crate::gateway::Gateway;

/// The control stream, and datagrams. A native connection is seen as a session without HTTP.
#[derive(Debug)]
pub(super) struct Sender {
    session: Session,
    control: SendStream,
}

impl Sender {
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.control.write_all(bytes).await?)
    }

    pub(super) fn datagram(&self, bytes: Bytes) -> Result<()> {
        Ok(self.session.send_datagram(bytes)?)
    }
}

pub(super) async fn dial(
    gateway: &Gateway,
    greeting: &Greeting,
    received: mpsc::Sender<Received>,
    stop: CancellationToken,
) -> Result<Sender> {
    let session = Session::raw(connect(gateway, b"tidegate/1").await?);
    run(session, greeting.pace.clone(), received, stop).await
}

pub(super) async fn dial_web_transport(
    gateway: &Gateway,
    greeting: &Greeting,
    received: mpsc::Sender<Received>,
    stop: CancellationToken,
) -> Result<Sender> {
    let mut url: url::Url = format!("https://{}/v1/connect", gateway.addresses.quic).parse()?;
    if let Some(token) = &greeting.query {
        url.query_pairs_mut().append_pair("token", token);
    }
    let mut request = ConnectRequest::from(url);
    let bearer =
        greeting.bearer.as_ref().map(|token| ("authorization".to_owned(), format!("Bearer {token}")));
    let origin = greeting.origin.as_ref().map(|origin| ("origin".to_owned(), origin.clone()));
    for (name, value) in bearer.into_iter().chain(origin).chain(greeting.header.clone()) {
        request = request.with_header(name.parse::<HeaderName>()?, HeaderValue::from_str(&value)?);
    }
    let connection = connect(gateway, b"h3").await?;
    let session = Session::connect(connection, request).await.map_err(|error| match error {
        ClientError::HttpError(Connecting::ProtoError(ConnectError::WrongStatus(Some(status)))) => {
            anyhow!(Refused { status, body: String::new() })
        }
        error => anyhow!(error),
    })?;
    run(session, greeting.pace.clone(), received, stop).await
}

async fn connect(gateway: &Gateway, alpn: &[u8]) -> Result<quinn::Connection> {
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(
        gateway.tls(&[alpn]).as_ref().clone(),
    )?));
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(256 << 10))
        .receive_window(VarInt::from_u32(512 << 10))
        .max_concurrent_uni_streams(VarInt::from_u32(1024));
    config.transport_config(Arc::new(transport));
    // As browsers: what is said to others before TLS is the matter of `Doorstep`.
    config.initial_dst_cid_provider(Arc::new(|| ConnectionId::new(&browser_id())));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let name = gateway.addresses.quic.ip().to_string();
    Ok(endpoint.connect_with(config, gateway.addresses.quic, &name)?.await?)
}

/// Opens the control stream, and reads everything.
async fn run(
    session: Session,
    pace: Option<Pace>,
    received: mpsc::Sender<Received>,
    stop: CancellationToken,
) -> Result<Sender> {
    let (control, answers) = session.open_bi().await?;
    let tasks = TaskTracker::new();
    let (reading, sender, stopped) = (session.clone(), received.clone(), stop.clone());
    tasks.spawn(async move {
        let all = async {
            read(answers, Decoder::new(MAX_FRAME), None, &sender).await;
            let (code, reason) = closed(&reading.closed().await);
            // A test that has seen enough has dropped its end.
            let _ = sender.send(Received::Closed { code, reason }).await;
        };
        if stopped.run_until_cancelled(all).await.is_none() {
            reading.close(4000, b"the test is over");
        }
    });
    let (accepting, sender, stopped) = (session.clone(), received.clone(), stop.clone());
    tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
        let lanes = TaskTracker::new();
        while let Ok(stream) = accepting.accept_uni().await {
            let (sender, stopped, pace) = (sender.clone(), stopped.clone(), pace.clone());
            lanes.spawn(stopped.run_until_cancelled_owned(async move { lane(stream, pace, &sender).await }));
        }
    }));
    let datagrams = session.clone();
    tasks.spawn(stop.run_until_cancelled_owned(async move {
        while let Ok(datagram) = datagrams.read_datagram().await {
            let frames = decode_message::<ServerFrame>(datagram, MAX_FRAME).unwrap_or_default();
            for frame in frames {
                let _ = received.send(Received::Frame(spelled(&frame))).await;
            }
        }
    }));
    Ok(Sender { session, control })
}

/// A stream that the server opened: a header, then frames.
async fn lane(mut stream: RecvStream, pace: Option<Pace>, received: &mpsc::Sender<Received>) {
    let mut decoder = Decoder::new(MAX_FRAME);
    let mut chunk = [0; 4096];
    loop {
        match decoder.next_message::<StreamHeader>() {
            Ok(Some(header)) => {
                let pace = pace.filter(|pace| pace.channel == header.channel);
                return read(stream, decoder, pace, received).await;
            }
            Ok(None) => {}
            Err(_) => return,
        }
        let Ok(Some(length)) = stream.read(&mut chunk).await else { return };
        decoder.push(&chunk[..length]);
    }
}

async fn read(
    mut stream: RecvStream,
    mut decoder: Decoder,
    pace: Option<Pace>,
    received: &mpsc::Sender<Received>,
) {
    let mut chunk = vec![0; 16 << 10];
    loop {
        while let Ok(Some(frame)) = decoder.next::<ServerFrame>() {
            if received.send(Received::Frame(spelled(&frame))).await.is_err() {
                return;
            }
        }
        let portion = pace.as_ref().map_or(chunk.len(), |pace| pace.portion(chunk.len()));
        let Ok(Some(length)) = stream.read(&mut chunk[..portion]).await else { return };
        decoder.push(&chunk[..length]);
        if let Some(pause) = pace.as_ref().and_then(|pace| pace.pause(length)) {
            tokio::time::sleep(pause).await;
        }
    }
}

fn closed(error: &SessionError) -> (u32, String) {
    match error {
        SessionError::WebTransportError(WebTransportError::Closed(code, reason)) => (*code, reason.clone()),
        SessionError::ConnectionError(ConnectionError::ApplicationClosed(close)) => {
            let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
            (code, String::from_utf8_lossy(&close.reason).into_owned())
        }
        error => (0, error.to_string()),
    }
}

/// A UDP datagram that begins a QUIC handshake which nobody will finish: a client's first flight, and no more.
///
/// # Errors
/// When it cannot be made.
pub fn first_flight(gateway: &Gateway) -> Result<Vec<u8>> {
    first_flight_to(gateway, &browser_id())
}

/// The same to a connection id of the client's choice.
///
/// # Errors
/// When it cannot be made.
pub fn first_flight_to(gateway: &Gateway, id: &[u8]) -> Result<Vec<u8>> {
    let id = ConnectionId::new(id);
    let crypto = QuicClientConfig::try_from(gateway.tls(&[b"tidegate/1"]).as_ref().clone())?;
    let mut config = quinn_proto::ClientConfig::new(Arc::new(crypto));
    config.initial_dst_cid_provider(Arc::new(move || id));
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, true, None);
    let now = clock::now();
    let (_, mut connection) = endpoint.connect(now, config, gateway.addresses.quic, "localhost")?;
    let mut datagram = Vec::new();
    let _sizes = connection.poll_transmit(now, 1, &mut datagram).context("a first flight")?;
    Ok(datagram)
}

/// Of eight bytes, as browsers choose them.
fn browser_id() -> [u8; 8] {
    let mut id = [0; 8];
    clock::rng().fill_bytes(&mut id);
    id
}

const MAX_FRAME: usize = 1 << 20;
