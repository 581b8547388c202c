//! QUIC, native and under WebTransport: control on one bidirectional stream, each subscription on streams that the server
//! opens, ephemeral data in datagrams (PROTOCOL §6.1, §6.2).

mod mapping;
mod path;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use quinn::{ConnectionError, RecvStream, SendStream, TransportErrorCode, VarInt};
use tidegate_protocol::Epoch;
use tidegate_protocol::frame::codec::{DecodeError, Decoder, decode_message, encode_delimited};
use tidegate_protocol::frame::{ClientBody, CloseCode, StreamHeader};
use tidegate_protocol::session::client::{Carrier, Transmit};
use tidegate_transport::quic::{EarlyData, QuicClient, QuicError, WebTransportClient, is_probe};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::endpoint::Endpoint;

use self::mapping::Mapping;
use super::{
    Cause, Connection, Dialed, Dialer, Ends, Established, Inbound, Lost, MAX_FRAME, Path, PathNews, Transport,
};

/// Dials all addresses of the name, one shortly after the other (RFC 8305). `heard` is called when something came back.
/// Where the server was met before, the first address is taken, and early data can be sent at once.
pub(super) async fn dial(
    dialer: &Dialer,
    endpoint: &Endpoint,
    heard: &(impl Fn() + Sync),
) -> Result<Dialed, Lost> {
    let of_transport = match endpoint.transport {
        Transport::WebTransport => &dialer.web_transport,
        _ => &dialer.quic,
    };
    let quic = of_transport.clone().ok_or_else(|| Lost::new("QUIC is not set up"))?.with_slot(dialer.slot);
    let quic = &quic;
    let addresses = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port))
        .await
        .map_err(|error| Lost::new(error.to_string()))?;
    let addresses: Vec<SocketAddr> = addresses.take(MAX_ADDRESSES).collect();
    // Early data says nothing of whether the address is the right one: only where there is no choice.
    let early = dialer.early && addresses.len() == 1 && endpoint.transport == Transport::Quic;
    let mut attempts: FuturesUnordered<_> = addresses
        .into_iter()
        .enumerate()
        .map(|(index, address)| async move {
            tokio::time::sleep(STAGGER * index as u32).await;
            quic.dial_watched(address, &endpoint.host, early, heard).await.map_err(not_dialed)
        })
        .collect();
    let mut last = Lost::new("the name has no address");
    while let Some(result) = attempts.next().await {
        match result {
            Ok(client) => return begin(dialer, endpoint, client).await,
            Err(lost) => last = lost,
        }
    }
    Err(last)
}

async fn begin(dialer: &Dialer, endpoint: &Endpoint, client: QuicClient) -> Result<Dialed, Lost> {
    let code = match endpoint.transport {
        Transport::WebTransport => WebTransportClient::close_code(CloseCode::Done.number()),
        _ => VarInt::from_u32(CloseCode::Done.number()),
    };
    let close = Arc::new(CloseOnDrop(client.connection().clone(), code));
    let native = Mapping::Native(client.connection().clone());
    if !client.is_early() {
        let mapping = match endpoint.transport {
            Transport::WebTransport => Mapping::request(client.connection(), endpoint).await?,
            _ => native,
        };
        let (connection, watcher) = run(dialer, mapping, close).await?;
        let path = watcher.watch(client);
        return Ok(Dialed::Open(Connection { path: Some(path), ..connection }));
    }
    let (connection, watcher) = run(dialer, native, Arc::clone(&close)).await?;
    let dialer = dialer.clone();
    let establishing = async move {
        let mut client = client;
        match client.established().await.map_err(not_dialed)? {
            EarlyData::Unsent | EarlyData::Accepted => Ok(Established::Accepted(watcher.watch(client))),
            EarlyData::Rejected => {
                let native = Mapping::Native(client.connection().clone());
                let (connection, watcher) = run(&dialer, native, close).await?;
                let path = watcher.watch(client);
                Ok(Established::Rejected(Connection { path: Some(path), ..connection }))
            }
        }
    };
    Ok(Dialed::Early(connection, Box::pin(establishing)))
}

/// Closes a connection when nobody needs it any more.
#[derive(Debug)]
pub(super) struct CloseOnDrop(quinn::Connection, VarInt);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(self.1, b"");
    }
}

/// Opens the control stream and spawns the tasks of a connection.
async fn run(
    dialer: &Dialer,
    mapping: Mapping,
    close: Arc<CloseOnDrop>,
) -> Result<(Connection, Watcher), Lost> {
    let (send, recv) = mapping.open().await?;
    let (mut handle, mut ends) = dialer.queues(mapping.transport(), true);
    handle._close = Some(close);
    let (_, never) = mpsc::channel(1);
    let outbound = std::mem::replace(&mut ends.outbound, never);
    let received = Arc::new(Notify::new());
    let watcher = Watcher {
        control: ends.control.clone(),
        received: Arc::clone(&received),
        abort: ends.abort.clone(),
        tracker: ends.tracker.clone(),
    };
    ends.spawn(write_control(mapping.clone(), send, outbound, ends.control.clone()));
    ends.spawn(read_control(mapping.clone(), recv, ends.control.clone(), Arc::clone(&received)));
    ends.spawn(read_datagrams(mapping.clone(), ends.lanes.clone(), Arc::clone(&received)));
    let (abort, tracker) = (ends.abort.clone(), ends.tracker.clone());
    tracker.spawn(async move {
        abort.run_until_cancelled_owned(accept_streams(&mapping, &ends, &received)).await;
    });
    Ok((handle, watcher))
}

/// What is needed to watch the path of a connection.
struct Watcher {
    control: mpsc::Sender<Inbound>,
    received: Arc<Notify>,
    abort: CancellationToken,
    tracker: TaskTracker,
}

impl Watcher {
    fn watch(self, client: QuicClient) -> Path {
        let Self { control, received, abort, tracker } = self;
        let path = Path { client: Arc::new(client), probe: Arc::new(Notify::new()) };
        let watching = path::watch(path.clone(), received, control);
        tracker.spawn(async move {
            abort.run_until_cancelled_owned(watching).await;
        });
        path
    }
}

fn not_dialed(error: QuicError) -> Lost {
    match error {
        QuicError::Status(status) => Lost::from_status(status),
        QuicError::Lost(error) => match error.downcast::<ConnectionError>() {
            Ok(error) => lost(*error),
            Err(error) => Lost::new(error.to_string()),
        },
        error => Lost::new(error.to_string()),
    }
}

async fn write_control(
    mapping: Mapping,
    mut send: SendStream,
    mut outbound: mpsc::Receiver<Transmit>,
    control: mpsc::Sender<Inbound>,
) {
    while let Some(Transmit { mut frame, datagram, .. }) = outbound.recv().await {
        if let Some(ClientBody::Connect(connect)) = &mut frame.body {
            // What is read from datagrams goes the same way as what streams bring.
            connect.repeats = true;
        }
        let bytes = encode_delimited(&frame);
        if datagram && mapping.send_datagram(&bytes) {
            continue;
        }
        if let Err(error) = send.write_all(&bytes).await {
            let reason = mapping.close_reason().await.unwrap_or_else(|| Lost::new(error.to_string()));
            let _gone = control.send(Inbound::Lost(reason)).await;
            return;
        }
    }
}

async fn read_control(
    mapping: Mapping,
    recv: RecvStream,
    control: mpsc::Sender<Inbound>,
    received: Arc<Notify>,
) {
    let end = read_frames(recv, Decoder::new(MAX_FRAME), Carrier::Control, &control, &received).await;
    let reason = match end {
        Err(error) => error,
        // The transport's own close has come, or is on its way, and names the code.
        Ok(()) => tokio::time::timeout(CLOSE_GRACE, mapping.closed())
            .await
            .unwrap_or_else(|_| Lost::new("the server ended the control stream")),
    };
    let _gone = control.send(Inbound::Lost(reason)).await;
}

/// The server opens one stream per subscription, and one for what it missed.
async fn accept_streams(mapping: &Mapping, ends: &Ends, received: &Arc<Notify>) {
    while let Ok(mut recv) = mapping.connection().accept_uni().await {
        let lanes = ends.lanes.clone();
        let mapping = mapping.clone();
        let control = ends.control.clone();
        let received = Arc::clone(received);
        ends.spawn(async move {
            if !mapping.is_ours(&mut recv).await {
                // One of HTTP/3's own, which stays open as long as the connection.
                mapping.connection().closed().await;
                return;
            }
            if let Err(lost) = read_lane(recv, &lanes, &received).await {
                let _gone = control.send(Inbound::Lost(lost)).await;
            }
        });
    }
    // Why, the control stream's reader tells.
    ends.abort.cancelled().await;
}

async fn read_lane(
    mut recv: RecvStream,
    lanes: &mpsc::Sender<Inbound>,
    received: &Notify,
) -> Result<(), Lost> {
    let mut decoder = Decoder::new(MAX_FRAME);
    // Frames name their channel themselves; the epoch is the header's to tell.
    let epoch = loop {
        if let Some(header) = decoder.next_message::<StreamHeader>().map_err(undecodable)? {
            break Epoch::new(&header.epoch);
        }
        match recv.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            // Reset or over: the session notices what is missing.
            Ok(None) | Err(_) => return Ok(()),
        }
    };
    read_frames(recv, decoder, Carrier::Stream(epoch), lanes, received).await
}

/// Reads until the stream ends. Only what cannot be decoded is an error: the connection's own end is told elsewhere.
async fn read_frames(
    mut recv: RecvStream,
    mut decoder: Decoder,
    carrier: Carrier,
    queue: &mpsc::Sender<Inbound>,
    received: &Notify,
) -> Result<(), Lost> {
    loop {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next().map_err(undecodable)? {
            frames.push(frame);
        }
        if !frames.is_empty() && queue.send(Inbound::Frames(carrier.clone(), frames)).await.is_err() {
            return Ok(());
        }
        match recv.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) | Err(_) => return Ok(()),
        }
        received.notify_one();
    }
}

async fn read_datagrams(mapping: Mapping, lanes: mpsc::Sender<Inbound>, received: Arc<Notify>) {
    while let Ok(datagram) = mapping.connection().read_datagram().await {
        received.notify_one();
        let Some(datagram) = mapping.payload(datagram) else { continue };
        if is_probe(&datagram) {
            continue;
        }
        match decode_message(datagram, MAX_FRAME) {
            // At most once: dropped where the driver does not keep up.
            Ok(frames) => drop(lanes.try_send(Inbound::Frames(Carrier::Datagram, frames))),
            Err(error) => tracing::debug!(%error, "a datagram that cannot be decoded"),
        }
    }
}

fn lost(error: ConnectionError) -> Lost {
    match error {
        ConnectionError::ApplicationClosed(closed) => Lost {
            code: u32::try_from(closed.error_code.into_inner()).ok(),
            reason: String::from_utf8_lossy(&closed.reason).into_owned(),
            cause: Cause::Server,
        },
        // It was restarted, and knows nothing of us.
        ConnectionError::Reset => {
            Lost { cause: Cause::Server, ..Lost::new("the server forgot the connection") }
        }
        // Before TLS: the reason says when to come back (PROTOCOL §9.3).
        ConnectionError::ConnectionClosed(closed)
            if closed.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            Lost::closed(CloseCode::Overloaded.number(), String::from_utf8_lossy(&closed.reason))
        }
        other => Lost::new(other.to_string()),
    }
}

fn undecodable(error: DecodeError) -> Lost {
    Lost::new(format!("what the server sent cannot be decoded: {error}"))
}

/// From the end of the control stream to the close that explains it.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

const CHUNK: usize = 64 << 10;

/// Addresses of one name that are dialled.
const MAX_ADDRESSES: usize = 4;

/// Between the dials of two addresses.
const STAGGER: Duration = Duration::from_millis(250);
