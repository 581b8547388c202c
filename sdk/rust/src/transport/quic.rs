//! Native QUIC: control on one bidirectional stream, each subscription on streams that the server opens, ephemeral
//! data in datagrams (PROTOCOL §6.1).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, RecvStream, SendStream, TransportConfig, VarInt};
use tidegate_protocol::frame::codec::{DecodeError, Decoder, decode_message, encode_delimited};
use tidegate_protocol::frame::{CloseCode, StreamHeader};
use tidegate_protocol::session::client::Transmit;
use tokio::sync::mpsc;

use crate::endpoint::Endpoint;

use super::{Connection, Dial, Dialer, Ends, Inbound, Lost, MAX_FRAME, Transport};

pub(super) struct Quic;

impl Dial for Quic {
    async fn dial(dialer: &Dialer, endpoint: &Endpoint) -> Result<Connection, Lost> {
        let tls = dialer.trust.config(&[b"tidegate/1"]).map_err(|error| Lost::new(error.to_string()))?;
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| Lost::new(error.to_string()))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport_config()));

        let addresses = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(|error| Lost::new(error.to_string()))?;
        let mut last = Lost::new("the name has no address");
        for address in addresses {
            match connect(address, config.clone(), &endpoint.host).await {
                Ok((connection, send, recv)) => {
                    let (handle, ends) = dialer.queues(Transport::Quic, true);
                    run(connection, send, recv, ends);
                    return Ok(handle);
                }
                Err(lost) => last = lost,
            }
        }
        Err(last)
    }
}

fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_MS).into()))
        // One per subscription and catch-up; the control stream is ours to open.
        .max_concurrent_uni_streams(VarInt::from_u32(1024))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(256 << 10))
        .receive_window(VarInt::from_u32(4 << 20))
        .datagram_receive_buffer_size(Some(64 << 10))
        .datagram_send_buffer_size(64 << 10);
    config
}

async fn connect(
    address: SocketAddr,
    config: ClientConfig,
    name: &str,
) -> Result<(quinn::Connection, SendStream, RecvStream), Lost> {
    let local: SocketAddr =
        if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let mut endpoint = quinn::Endpoint::client(local).map_err(|error| Lost::new(error.to_string()))?;
    endpoint.set_default_client_config(config);
    let connecting = endpoint.connect(address, name).map_err(|error| Lost::new(error.to_string()))?;
    let connection = connecting.await.map_err(lost)?;
    let (send, recv) = connection.open_bi().await.map_err(lost)?;
    Ok((connection, send, recv))
}

/// Spawns the connection's tasks.
fn run(connection: quinn::Connection, send: SendStream, recv: RecvStream, mut ends: Ends) {
    let (_, never) = mpsc::channel(1);
    let outbound = std::mem::replace(&mut ends.outbound, never);
    ends.spawn(write_control(connection.clone(), send, outbound, ends.control.clone()));
    ends.spawn(read_control(connection.clone(), recv, ends.control.clone()));
    ends.spawn(read_datagrams(connection.clone(), ends.lanes.clone()));
    let abort = ends.abort.clone();
    let tracker = ends.tracker.clone();
    tracker.spawn(async move {
        tokio::select! { biased;
            () = abort.cancelled() => {}
            () = accept_streams(&connection, &ends) => {}
        }
        connection.close(VarInt::from_u32(CloseCode::Done.number()), b"");
    });
}

async fn write_control(
    connection: quinn::Connection,
    mut send: SendStream,
    mut outbound: mpsc::Receiver<Transmit>,
    control: mpsc::Sender<Inbound>,
) {
    while let Some(Transmit { frame, datagram }) = outbound.recv().await {
        let bytes = encode_delimited(&frame);
        if datagram && connection.max_datagram_size().is_some_and(|limit| bytes.len() <= limit) {
            // At most once: what the connection cannot take now is lost.
            let _lost = connection.send_datagram(bytes);
            continue;
        }
        if let Err(error) = send.write_all(&bytes).await {
            let reason = match connection.close_reason() {
                Some(closed) => lost(closed),
                None => Lost::new(error.to_string()),
            };
            let _gone = control.send(Inbound::Lost(reason)).await;
            return;
        }
    }
}

async fn read_control(connection: quinn::Connection, recv: RecvStream, control: mpsc::Sender<Inbound>) {
    let end = read_frames(recv, Decoder::new(MAX_FRAME), &control).await;
    let reason = match (end, connection.close_reason()) {
        (Err(error), _) => error,
        (Ok(()), Some(closed)) => lost(closed),
        // The transport's own close is on its way and names the code.
        (Ok(()), None) => tokio::time::timeout(CLOSE_GRACE, connection.closed())
            .await
            .map_or_else(|_| Lost::new("the server ended the control stream"), lost),
    };
    let _gone = control.send(Inbound::Lost(reason)).await;
}

/// The server opens one stream per subscription, and one for what it missed.
async fn accept_streams(connection: &quinn::Connection, ends: &Ends) {
    while let Ok(recv) = connection.accept_uni().await {
        let lanes = ends.lanes.clone();
        let control = ends.control.clone();
        ends.spawn(async move {
            if let Err(lost) = read_lane(recv, &lanes).await {
                let _gone = control.send(Inbound::Lost(lost)).await;
            }
        });
    }
    // Why, the control stream's reader tells.
    ends.abort.cancelled().await;
}

async fn read_lane(mut recv: RecvStream, lanes: &mpsc::Sender<Inbound>) -> Result<(), Lost> {
    let mut decoder = Decoder::new(MAX_FRAME);
    // Frames name their channel themselves; the header must be there all the same.
    while decoder.next_message::<StreamHeader>().map_err(undecodable)?.is_none() {
        match recv.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            // Reset or over: the session notices what is missing.
            Ok(None) | Err(_) => return Ok(()),
        }
    }
    read_frames(recv, decoder, lanes).await
}

/// Reads until the stream ends. Only what cannot be decoded is an error: the connection's own end is told elsewhere.
async fn read_frames(
    mut recv: RecvStream,
    mut decoder: Decoder,
    queue: &mpsc::Sender<Inbound>,
) -> Result<(), Lost> {
    loop {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next().map_err(undecodable)? {
            frames.push(frame);
        }
        if !frames.is_empty() && queue.send(Inbound::Frames(frames)).await.is_err() {
            return Ok(());
        }
        match recv.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) | Err(_) => return Ok(()),
        }
    }
}

async fn read_datagrams(connection: quinn::Connection, lanes: mpsc::Sender<Inbound>) {
    while let Ok(datagram) = connection.read_datagram().await {
        match decode_message(datagram, MAX_FRAME) {
            // At most once: dropped where the driver does not keep up.
            Ok(frames) => drop(lanes.try_send(Inbound::Frames(frames))),
            Err(error) => tracing::debug!(%error, "a datagram that cannot be decoded"),
        }
    }
}

fn lost(error: ConnectionError) -> Lost {
    match error {
        ConnectionError::ApplicationClosed(closed) => Lost {
            code: u32::try_from(closed.error_code.into_inner()).ok(),
            reason: String::from_utf8_lossy(&closed.reason).into_owned(),
        },
        other => Lost::new(other.to_string()),
    }
}

fn undecodable(error: DecodeError) -> Lost {
    Lost::new(format!("what the server sent cannot be decoded: {error}"))
}

/// Below the 30 s after which many NATs forget a UDP flow.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const IDLE_MS: u32 = 60_000;

/// From the end of the control stream to the close that explains it.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

const CHUNK: usize = 64 << 10;
