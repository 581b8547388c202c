//! Real endpoints on loopback: clients are bare quinn and `web-transport-quinn`.

mod early;
mod lanes;
mod mobility;
mod native;
mod refusals;
mod relay;
mod remembered;
mod steering;
mod webtransport;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use tidegate_certs::{CertStore, DevCertificates, client_config_pinned, server_config};
use tidegate_protocol::ChannelName;
use tidegate_protocol::frame::codec::{Decoder, encode_delimited};
use tidegate_protocol::frame::{
    ClientBody, ClientFrame, CloseCode, Connect, Empty, Publication, ServerBody, ServerFrame, StreamHeader,
};

use super::*;
use crate::keys::SharedKeys;
use crate::{Closing, Connection, Inbound, Lane, RecvError, Sent, clock};

/// A server's endpoints, one per worker, and what a client needs to come in.
struct Server {
    endpoints: Vec<QuicEndpoint>,
    address: SocketAddr,
    store: Arc<CertStore>,
}

impl Server {
    fn start() -> Self {
        Self::with(QuicConfig::default(), 1)
    }

    /// Two nodes of a fleet, of one name.
    fn two() -> [Self; 2] {
        let store = certificates();
        [0, 1].map(|_| Self::of(QuicConfig::default(), 1, Arc::clone(&store)))
    }

    fn with(config: QuicConfig, workers: usize) -> Self {
        Self::of(config, workers, certificates())
    }

    fn of(config: QuicConfig, workers: usize, store: Arc<CertStore>) -> Self {
        let tls = Arc::new(server_config(store.clone(), &[ALPN_NATIVE, ALPN_WEBTRANSPORT]));
        let bound = bind("127.0.0.1:0".parse().unwrap(), workers, IdKey(7)).unwrap();
        let keys = Arc::new(SharedKeys::new([&[1; 32]]));
        let server = QuicServer::new(tls, bound.group.steering(), config, &keys, "node").unwrap();
        let endpoints = bound.sockets.into_iter().enumerate();
        let endpoints = endpoints.map(|(worker, socket)| server.endpoint(socket, worker).unwrap()).collect();
        Self { endpoints, address: bound.address, store }
    }

    /// A client that remembers this server.
    fn dialer(&self) -> QuicDialer {
        let tls = client_config_pinned([self.store.hash()], &[ALPN_NATIVE]).unwrap();
        QuicDialer::new(tls, DialConfig::default()).unwrap()
    }

    /// A client's endpoint and the settings to dial with.
    fn client(
        &self,
        alpn: &[u8],
        transport: quinn::TransportConfig,
    ) -> (quinn::Endpoint, quinn::ClientConfig) {
        let tls = client_config_pinned([self.store.hash()], &[alpn]).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(Arc::new(transport));
        (quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap(), config)
    }

    async fn dial(&self, alpn: &[u8], transport: quinn::TransportConfig) -> quinn::Connection {
        let (endpoint, config) = self.client(alpn, transport);
        endpoint.connect_with(config, self.address, "localhost").unwrap().await.unwrap()
    }

    async fn pending(&self) -> Result<Pending, QuicError> {
        self.endpoints[0].accept().await.unwrap().handshake().await
    }

    async fn native_pending(&self) -> QuicPending {
        match self.pending().await.unwrap() {
            Pending::Quic(pending) => pending,
            other => panic!("{other:?}"),
        }
    }

    /// A native connection whose `connect` frame was read.
    async fn native(&self, transport: quinn::TransportConfig) -> (QuicConnection, Client) {
        let server = async { self.native_pending().await.accept().await.unwrap() };
        let client = async {
            let connection = self.dial(ALPN_NATIVE, transport).await;
            let (mut send, recv) = connection.open_bi().await.unwrap();
            send.write_all(&encode_delimited(&connect_frame())).await.unwrap();
            Client { connection, send, control: Frames::new(recv) }
        };
        let (mut server, client) = tokio::join!(server, client);
        assert_eq!(frames(&mut server).await, [connect_frame()]);
        (server, client)
    }
}

fn certificates() -> Arc<CertStore> {
    Arc::new(CertStore::from_dev(DevCertificates::ephemeral(&[], clock::wall()).unwrap()))
}

struct Client {
    connection: quinn::Connection,
    send: quinn::SendStream,
    control: Frames,
}

impl Client {
    async fn say(&mut self, frame: &ClientFrame) {
        self.send.write_all(&encode_delimited(frame)).await.unwrap();
    }

    async fn accept_lane(&self) -> (StreamHeader, Frames) {
        let mut frames = Frames::new(self.connection.accept_uni().await.unwrap());
        (frames.header().await, frames)
    }
}

/// Reads server frames off a stream.
struct Frames {
    recv: quinn::RecvStream,
    decoder: Decoder,
    waiting: VecDeque<ServerFrame>,
}

impl Frames {
    fn new(recv: quinn::RecvStream) -> Self {
        Self { recv, decoder: Decoder::new(1 << 20), waiting: VecDeque::new() }
    }

    async fn header(&mut self) -> StreamHeader {
        loop {
            if let Some(header) = self.decoder.next_message().unwrap() {
                return header;
            }
            assert!(self.read().await, "the stream ended before its header");
        }
    }

    /// `None` at the end of the stream.
    async fn next(&mut self) -> Option<ServerFrame> {
        loop {
            while let Some(frame) = self.decoder.next().unwrap() {
                self.waiting.push_back(frame);
            }
            if let Some(frame) = self.waiting.pop_front() {
                return Some(frame);
            }
            if !self.read().await {
                assert!(self.decoder.is_empty(), "the stream ended inside a frame");
                return None;
            }
        }
    }

    async fn read(&mut self) -> bool {
        match self.recv.read_chunk(64 * 1024, true).await.unwrap() {
            Some(chunk) => {
                self.decoder.push(&chunk.bytes);
                true
            }
            None => false,
        }
    }
}

async fn recv(connection: &mut QuicConnection) -> Result<Inbound, RecvError> {
    poll_fn(|cx| connection.poll_recv(cx)).await
}

async fn frames(connection: &mut QuicConnection) -> Vec<ClientFrame> {
    match recv(connection).await {
        Ok(Inbound::Frames(frames)) => frames,
        other => panic!("{other:?}"),
    }
}

async fn datagram(connection: &mut QuicConnection) -> Vec<ClientFrame> {
    match recv(connection).await {
        Ok(Inbound::Datagram(frames)) => frames,
        other => panic!("{other:?}"),
    }
}

async fn protocol_error(connection: &mut QuicConnection) -> CloseCode {
    loop {
        match recv(connection).await {
            Ok(Inbound::Frames(_)) => {}
            Err(RecvError::Protocol { code, .. }) => return code,
            other => panic!("{other:?}"),
        }
    }
}

async fn ready(connection: &mut QuicConnection, lane: Lane) {
    poll_fn(|cx| connection.poll_ready(cx, lane)).await.unwrap();
}

/// Sends, waiting as long as it takes.
async fn send_all(connection: &mut QuicConnection, lane: Lane, bytes: &Bytes) {
    while connection.send(lane, bytes).unwrap() == Sent::Full {
        ready(connection, lane).await;
    }
}

async fn close(connection: &mut QuicConnection, code: CloseCode, reason: &str) {
    let frame = ServerFrame::new(0, ServerBody::Close(code.frame(reason)));
    send_all(connection, Lane::Control, &encode_delimited(&frame)).await;
    let closing = Closing { code, reason: reason.into() };
    poll_fn(|cx| connection.poll_close(cx, &closing)).await;
}

/// Polls once, with nobody to wake.
fn poll_now<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

fn connect_frame() -> ClientFrame {
    ClientFrame { id: 1, body: Some(ClientBody::Connect(Connect::default())) }
}

fn pong_frame(id: u64) -> ClientFrame {
    ClientFrame { id, body: Some(ClientBody::Pong(Empty {})) }
}

fn ping_frame() -> ServerFrame {
    ServerFrame::new(0, ServerBody::Ping(tidegate_protocol::frame::Ping::default()))
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

fn publication(offset: u64, bytes: usize) -> ServerFrame {
    // Every publication has bytes of its own, so that a mix-up cannot go unseen.
    let fill = |index: usize| (index as u64).wrapping_mul(31).wrapping_add(offset) as u8;
    ServerFrame::new(
        0,
        ServerBody::Publication(Publication {
            channel: "room:1".into(),
            offset,
            data_base64: Some((0..bytes).map(fill).collect()),
            ..Publication::default()
        }),
    )
}
