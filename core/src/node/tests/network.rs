//! Edges that dial over the loopback device, with real certificates.

use std::net::SocketAddr;

use tidegate_certs::{CertStore, ClusterAuthority, link_client_config, link_server_config};
use tidegate_protocol::link::{Directory, Hello};
use tidegate_transport::link::quic::{ALPN_LINK, EdgeEnd, LinkConfig, LinkDialer, LinkListener, OpenError};

use super::*;
use crate::placement::partition_of;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_follows_a_partition_from_node_to_node() {
    let region = Region::new("eu");
    let authority = ClusterAuthority::ephemeral(clock::wall()).expect("made");
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(1, PARTITIONS, 1 << 20));
    let dialer = dialer(&authority, "edge-1");
    let (first, first_address) = node(&authority, &engine, "core-1", &region).await;
    let dial = async |address: SocketAddr| {
        let hello = Hello::new(NodeId::new("edge-1"), Region::new("us"), "9.9.9");
        dialer.dial(&address.to_string(), hello).await.expect("welcomed")
    };
    let to_first = dial(first_address).await;
    assert_eq!((to_first.welcome().partitions, &to_first.welcome().region), (PARTITIONS, &region));
    told(&to_first, |directory| {
        directory.partitions.len() == usize::from(PARTITIONS)
            && directory.partitions.iter().all(|held| held.owner.as_ref() == Some(&NodeId::new("core-1")))
    })
    .await;

    // A channel that moves when another node comes.
    let names = [NodeId::new("core-1"), NodeId::new("core-2")];
    let moves = |channel: &ChannelName| {
        let partition = partition_of(channel, PARTITIONS);
        crate::placement::rendezvous::winner(&names, partition) == Some(&names[1])
    };
    let channel = (0..).map(|n| name(&format!("room:{n}"))).find(moves).expect("some do");
    let partition = partition_of(&channel, PARTITIONS);
    let mut opened = to_first.open(partition).await.expect("its owner");
    let subscribe = |position| EdgeFrame::Subscribe { request: 1, channel: channel.clone(), position };
    opened.link.sender.send(subscribe(None)).await.expect("open");
    assert!(matches!(next(&mut opened.link).await, Some(CoreFrame::Recovered { .. })));
    let position = first.publish(durable(&channel, "1")).await.expect("stored").expect("durable");
    assert!(matches!(next(&mut opened.link).await, Some(CoreFrame::Publication(_))));

    let (second, second_address) = node(&authority, &engine, "core-2", &region).await;
    let to_second = dial(second_address).await;
    let Some(CoreFrame::Moved { partition: moved, to }) = next(&mut opened.link).await else {
        panic!("handed over without a word")
    };
    assert_eq!((moved, to.as_ref()), (partition, Some(&names[1])));
    // It may still be on its way there: the edge waits at its door.
    let mut next_opened = to_second.open(partition).await.expect("its next owner");
    assert!(next_opened.term > opened.term);
    assert_eq!(next_opened.epoch, opened.epoch);
    next_opened.link.sender.send(subscribe(Some(position.clone()))).await.expect("open");
    match next(&mut next_opened.link).await {
        Some(CoreFrame::Recovered { result, .. }) => {
            let recovery = result.expect("allowed");
            assert_eq!((recovery.recovered, recovery.position), (true, position));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(to_first.open(partition).await, Err(OpenError::NotOwner)));
    told(&to_first, |directory| {
        directory.owner(partition) == Some(&names[1])
            && directory.address(&names[1]) == Some(&*second_address.to_string())
    })
    .await;

    let status = to_second.ask(Bytes::from_static(b"status")).await.expect("answered");
    let status: serde_json::Value = serde_json::from_slice(&status).expect("JSON");
    assert_eq!((&status["region"], &status["links"][0]["node"]), (&"eu".into(), &"edge-1".into()));
    assert_eq!(
        (&status["links"][0]["region"], &status["links"][0]["version"]),
        (&"us".into(), &"9.9.9".into())
    );

    // The second leaves: what it says last arrives.
    let lifecycle = second.inner.lifecycle.clone();
    second.leave(Duration::from_secs(20)).await;
    lifecycle.drain.cancel();
    assert!(matches!(next(&mut next_opened.link).await, Some(CoreFrame::Moved { .. })));
    assert!(to_first.open(partition).await.is_ok());
    lifecycle.tracker.close();
    lifecycle.tracker.wait().await;
}

async fn node(
    authority: &ClusterAuthority,
    engine: &Arc<dyn Engine>,
    name: &str,
    region: &Region,
) -> (CoreNode, SocketAddr) {
    let store = store(authority, name);
    let tls = link_server_config(store, authority.roots().expect("read"), &[ALPN_LINK]).expect("made");
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = LinkListener::bind(loopback, Arc::new(tls), LinkConfig::default()).expect("bound");
    let address = listener.local_address();
    let config = CoreConfig { partitions: PARTITIONS, ..CoreConfig::default() };
    let id = NodeId::new(name);
    let (address_text, version) = (address.to_string(), "0".to_owned());
    let record = NodeRecord { id, address: address_text, version, started_ms: 0, declines: Vec::new() };
    let (engine, metrics) = (Arc::clone(engine), CoreMetrics::new());
    let node =
        CoreNode::join(config, engine, namespaces(), metrics, lifecycle(), record).await.expect("joined");
    node.serve_links(listener, region.clone());
    (node, address)
}

fn dialer(authority: &ClusterAuthority, name: &str) -> LinkDialer {
    let store = store(authority, name);
    let tls = link_client_config(store, authority.roots().expect("read"), &[ALPN_LINK]).expect("made");
    LinkDialer::new(Arc::new(tls), LinkConfig::default()).expect("made")
}

fn store(authority: &ClusterAuthority, name: &str) -> Arc<CertStore> {
    let day = Duration::from_secs(86_400);
    let issued = authority.issue(name, &["127.0.0.1".to_owned()], day, clock::wall()).expect("issued");
    Arc::new(CertStore::fixed(issued.certificate()))
}

/// Waits until the edge's directory is so.
async fn told(edge: &EdgeEnd, is_so: impl Fn(&Directory) -> bool) {
    let mut watch = edge.directory();
    while !is_so(&watch.current()) {
        watch.changed().await.expect("connected");
    }
}

async fn next(link: &mut EdgeLink) -> Option<CoreFrame> {
    let mut frames = Vec::new();
    poll_fn(|cx| link.receiver.poll_recv_many(cx, &mut frames, 1)).await;
    frames.pop()
}

const PARTITIONS: u16 = 8;
