//! Real sockets on the loopback device, and real certificates.

mod fleet;
mod frames;
mod life;
mod trust;

use std::future::poll_fn;

use bytes::Bytes;
use quinn::EndpointConfig;
use quinn::crypto::rustls::QuicClientConfig;
use tidegate_certs::{CertStore, ClusterAuthority, link_client_config, link_server_config};
use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::frame::{Payload, Publication, ServerBody};
use tidegate_protocol::link::wire::Control;
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame, Hello, Publish};
use tidegate_protocol::{ChannelName, Offset, Region};
use tokio::task::JoinSet;

use super::super::{CoreLink, EdgeLink, LinkReceiver};
use super::*;
use crate::clock;

/// A CA, and what its nodes show and trust.
struct Cluster(ClusterAuthority);

impl Cluster {
    fn new() -> Self {
        Self(ClusterAuthority::ephemeral(clock::wall()).unwrap())
    }

    fn store(&self, node: &str) -> Arc<CertStore> {
        let certificate = self.0.issue(node, &["127.0.0.1".to_owned()], DAY, clock::wall()).unwrap();
        Arc::new(CertStore::fixed(certificate.certificate()))
    }

    fn listener(&self, node: &str, config: LinkConfig) -> LinkListener {
        let tls = link_server_config(self.store(node), self.0.roots().unwrap(), &[ALPN_LINK]).unwrap();
        LinkListener::bind("127.0.0.1:0".parse().unwrap(), Arc::new(tls), config).unwrap()
    }

    fn dialer(&self, node: &str, config: LinkConfig) -> LinkDialer {
        let tls = link_client_config(self.store(node), self.0.roots().unwrap(), &[ALPN_LINK]).unwrap();
        LinkDialer::new(Arc::new(tls), config).unwrap()
    }
}

/// Both ends of a connection between `edge-1` and `core-1`, which has [`PARTITIONS`].
struct Pair {
    edge: EdgeEnd,
    core: CoreEnd,
    _listener: LinkListener,
}

impl Pair {
    async fn new(config: LinkConfig) -> Self {
        let cluster = Cluster::new();
        let listener = cluster.listener("core-1", config.clone());
        let address = listener.local_address().to_string();
        Self::with(&cluster, listener, &address, config).await
    }

    async fn with(cluster: &Cluster, listener: LinkListener, address: &str, config: LinkConfig) -> Self {
        let dialer = cluster.dialer("edge-1", config);
        let (edge, core) = tokio::join!(dialer.dial(address, hello("edge-1")), async {
            listener.accept().await.unwrap().greet(|_| Ok(greeting("core-1"))).await
        });
        Self { edge: edge.unwrap(), core: core.unwrap(), _listener: listener }
    }

    /// The link of a partition: the edge's end, the core's.
    async fn open(&self, partition: u16) -> (EdgeLink, CoreLink) {
        let (opened, core) = tokio::join!(self.edge.open(partition), async {
            let request = self.core.accept().await.unwrap();
            assert_eq!(request.partition(), partition);
            request.accept(u64::from(partition) + 1, 77)
        });
        let Opened { term, epoch, link } = opened.unwrap();
        assert_eq!((term, epoch), (u64::from(partition) + 1, 77));
        (link, core)
    }
}

fn hello(node: &str) -> Hello {
    Hello::new(NodeId::new(node), Region::new("eu"), "0.1.0")
}

fn greeting(node: &str) -> Greeting {
    Greeting { node: NodeId::new(node), region: Region::new("eu"), partitions: PARTITIONS }
}

/// A connection of `edge-1` that says what a test wants; a hello is for the first stream. It keeps its endpoint.
async fn raw(cluster: &Cluster, listener: &LinkListener) -> quinn::Connection {
    let tls = link_client_config(cluster.store("edge-1"), cluster.0.roots().unwrap(), &[ALPN_LINK]).unwrap();
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = quinn::Endpoint::new(EndpointConfig::default(), None, socket, runtime).unwrap();
    endpoint.connect_with(client, listener.local_address(), "core-1").unwrap().await.unwrap()
}

/// A publication of so many bytes.
fn publication(offset: u64, bytes: usize) -> CoreFrame {
    let channel = ChannelName::new("room:1").unwrap();
    let body = ServerBody::Publication(Publication {
        channel: channel.as_str().to_owned(),
        offset,
        data_base64: Some(vec![7; bytes].into()),
        ..Publication::default()
    });
    let frame = Arc::new(SharedFrame::new(body));
    CoreFrame::Publication(Delivery { channel, offset: Offset(offset), frame })
}

fn publish(request: u64, bytes: usize) -> EdgeFrame {
    let publish = Publish {
        channel: ChannelName::new("room:1").unwrap(),
        payload: Payload::Binary(vec![7; bytes].into()),
        key: None,
        user: None,
        ephemeral: false,
    };
    EdgeFrame::Publish { request, publish }
}

/// What comes next, at least one frame; nothing at the end.
async fn recv<F>(receiver: &mut Box<dyn LinkReceiver<F>>) -> Vec<F> {
    let mut frames = Vec::new();
    let count = poll_fn(|cx| receiver.poll_recv_many(cx, &mut frames, 64)).await;
    assert_eq!(count, frames.len());
    frames
}

/// Bounds what a test waits for.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it happens soon")
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const PARTITIONS: u16 = 16;
