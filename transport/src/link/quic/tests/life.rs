//! How links end: one alone, all together, in order or not.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

use super::*;
use crate::link::{LinkClosed, TrySendError};

#[tokio::test]
async fn a_connection_tells_how_it_does() {
    let config = LinkConfig::default();
    let pair = Pair::new(config.clone()).await;
    let (edge, core) = pair.open(0).await;
    while core.sender.try_send(publication(1, 100_000)).is_ok() {}
    let stalled = pair.core.condition();
    let queue = config.send_queue;
    assert!((queue..queue + 200_000).contains(&stalled.queued), "{stalled:?}");
    assert!(
        stalled.round_trip > Duration::ZERO && stalled.round_trip < Duration::from_secs(5),
        "{stalled:?}"
    );
    assert_eq!(pair.edge.condition().queued, 0);
    // With the link goes what waited for it.
    drop(edge);
    drop(core);
    soon(pair.core.flushed()).await;
    assert_eq!(pair.core.condition().queued, 0);
}

#[tokio::test]
async fn a_link_ends_alone_and_what_was_sent_arrives() {
    let pair = Pair::new(LinkConfig::default()).await;
    let (mut edge, core) = pair.open(1).await;
    let (mut other_edge, mut other_core) = pair.open(2).await;
    for offset in 1..=500 {
        core.sender.try_send(publication(offset, 1_000)).unwrap();
    }
    let moved = CoreFrame::Moved { partition: 1, to: Some(NodeId::new("core-2")) };
    core.sender.try_send(moved.clone()).unwrap();
    drop(core);
    let mut frames = Vec::new();
    loop {
        let more = soon(recv(&mut edge.receiver)).await;
        if more.is_empty() {
            break;
        }
        frames.extend(more);
    }
    assert_eq!((frames.len(), frames.last()), (501, Some(&moved)));
    // Whoever read on at the other end is gone too.
    soon(until_closed(&edge)).await;

    other_core.sender.try_send(publication(1, 10)).unwrap();
    other_edge.sender.try_send(publish(1, 10)).unwrap();
    assert_eq!(soon(recv(&mut other_edge.receiver)).await, [publication(1, 10)]);
    assert_eq!(soon(recv(&mut other_core.receiver)).await, [publish(1, 10)]);

    // The other way round.
    drop(other_edge);
    assert!(soon(recv(&mut other_core.receiver)).await.is_empty());
    soon(async { while other_core.sender.send(publication(2, 10)).await.is_ok() {} }).await;
    // And a partition can be opened again.
    pair.open(1).await;
}

#[tokio::test]
async fn what_was_sent_before_an_orderly_end_arrives() {
    let Pair { edge, core, _listener } = Pair::new(LinkConfig::default()).await;
    let pair = Pair { edge, core, _listener };
    let (mut edge, core) = pair.open(3).await;
    for offset in 1..=2_000 {
        core.sender.try_send(publication(offset, 1_000)).unwrap();
    }
    drop(core);
    let mut received = 0;
    let (all, ()) = soon(async {
        tokio::join!(
            async {
                loop {
                    match recv(&mut edge.receiver).await.len() {
                        0 => break received,
                        more => received += more,
                    }
                }
            },
            async {
                pair.core.flushed().await;
                pair.core.close("done");
            }
        )
    })
    .await;
    assert_eq!(all, 2_000);
}

#[tokio::test]
async fn a_close_is_seen_at_once() {
    let pair = Pair::new(LinkConfig::default()).await;
    let (mut edge, _core) = pair.open(1).await;
    let before = clock::now();
    pair.core.close("shutting down");
    assert_eq!(soon(pair.edge.closed()).await, "the other end closed it: shutting down");
    assert!(recv(&mut edge.receiver).await.is_empty());
    soon(until_closed(&edge)).await;
    assert!(clock::now() - before < Duration::from_secs(2), "long before the idle timeout");
    assert!(matches!(pair.edge.open(2).await, Err(OpenError::Closed)));
    assert!(soon(pair.core.accept()).await.is_none());
    assert!(soon(pair.core.next_question()).await.is_none());
}

#[tokio::test]
async fn dropping_an_end_closes_the_connection() {
    let Pair { edge, core, _listener } = Pair::new(LinkConfig::default()).await;
    let clone = edge.clone();
    drop(edge);
    assert_eq!(
        soon(async { tokio::join!(clone.open(1), refuse_one(&core)).0.unwrap_err() }).await,
        OpenError::NotOwner
    );
    drop(clone);
    assert_eq!(soon(core.closed()).await, "the other end closed it");

    let Pair { edge, core, _listener } = Pair::new(LinkConfig::default()).await;
    drop(core);
    assert_eq!(soon(edge.closed()).await, "the other end closed it");
}

#[tokio::test]
async fn a_dead_peer_is_noticed_within_the_idle_timeout() {
    let config = LinkConfig {
        idle_timeout: Duration::from_secs(1),
        keep_alive: Duration::from_millis(250),
        ..LinkConfig::default()
    };
    let cluster = Cluster::new();
    let listener = cluster.listener("core-1", config.clone());
    let relay = Relay::start(listener.local_address()).await;
    let address = relay.address.to_string();
    let pair = Pair::with(&cluster, listener, &address, config).await;
    let (mut edge, mut core) = pair.open(1).await;
    // Longer than the timeout, with nothing to say but keep-alives.
    let idle = tokio::time::timeout(Duration::from_millis(2_500), pair.edge.closed()).await;
    assert!(idle.is_err(), "an idle link lives");

    relay.is_dead.store(true, Ordering::Relaxed);
    let before = clock::now();
    let (at_edge, at_core) = soon(async { tokio::join!(pair.edge.closed(), pair.core.closed()) }).await;
    let took = clock::now() - before;
    assert_eq!([&*at_edge, &*at_core], ["nothing heard for too long"; 2]);
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(recv(&mut edge.receiver).await.is_empty());
    assert!(recv(&mut core.receiver).await.is_empty());
    assert_eq!(
        soon(async {
            loop {
                if let Err(error) = core.sender.send(publication(1, 1_000_000)).await {
                    break error;
                }
            }
        })
        .await,
        LinkClosed
    );
}

#[tokio::test]
async fn what_is_no_frame_ends_its_link_alone() {
    let cluster = Cluster::new();
    let listener = cluster.listener("core-1", LinkConfig::default());
    let (connection, core) = tokio::join!(
        async {
            let connection = raw(&cluster, &listener).await;
            let (mut send, recv) = connection.open_bi().await.unwrap();
            control::write(&mut send, &Control::Hello(hello("edge-1"))).await.unwrap();
            (connection, send, recv)
        },
        async { listener.accept().await.unwrap().greet(|_| Ok(greeting("core-1"))).await.unwrap() }
    );
    let (connection, _control_send, _control_recv) = connection;
    let mut streams = Vec::new();
    let mut links = Vec::new();
    for partition in [4, 5] {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        control::write(&mut send, &Control::Open { partition }).await.unwrap();
        let request = soon(core.accept()).await.unwrap();
        links.push(request.accept(1, 1));
        streams.push((send, recv));
    }
    streams[0].0.write_all(b"\x03\xff\xff\xff").await.unwrap();
    assert!(soon(recv(&mut links[0].receiver)).await.is_empty());
    assert!(recv(&mut links[0].receiver).await.is_empty(), "the end stays");
    soon(async { while links[0].sender.send(publication(1, 10)).await.is_ok() {} }).await;
    // Both directions say so.
    assert_eq!(soon(streams[0].0.stopped()).await.unwrap(), Some(code::PROTOCOL));
    soon(async {
        loop {
            match streams[0].1.read_chunk(1_000, true).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("an end in order"),
                Err(error) => break assert_eq!(error, quinn::ReadError::Reset(code::PROTOCOL)),
            }
        }
    })
    .await;

    let mut batch = tidegate_protocol::link::wire::Batch::default();
    batch.put(&publish(9, 10));
    streams[1].0.write_all_chunks(&mut batch.take()).await.unwrap();
    assert_eq!(soon(recv(&mut links[1].receiver)).await, [publish(9, 10)]);
}

#[tokio::test]
async fn a_partition_is_refused_or_given_up() {
    let pair = Pair::new(LinkConfig::default()).await;
    let (opened, ()) = soon(async { tokio::join!(pair.edge.open(1), refuse_one(&pair.core)) }).await;
    assert_eq!(opened.unwrap_err(), OpenError::NotOwner);
    // There is no such one.
    assert_eq!(soon(pair.edge.open(PARTITIONS)).await.unwrap_err(), OpenError::Protocol);

    // The core keeps it waiting until the edge has enough.
    let request = soon(async {
        tokio::select! {
            _ = pair.edge.open(2) => unreachable!("it is not answered"),
            request = pair.core.accept() => request.unwrap(),
        }
    })
    .await;
    soon(request.abandoned()).await;
    // Nobody is harmed by an answer that comes too late.
    let mut late = request.accept(1, 1);
    assert!(soon(recv(&mut late.receiver)).await.is_empty());
    soon(async { while late.sender.send(publication(1, 10)).await.is_ok() {} }).await;
}

#[tokio::test]
async fn a_closed_listener_accepts_nobody() {
    let cluster = Cluster::new();
    let listener = cluster.listener("core-1", LinkConfig::default());
    listener.close("");
    assert!(soon(listener.accept()).await.is_none());
    soon(listener.wait_idle()).await;
}

async fn refuse_one(core: &CoreEnd) {
    core.accept().await.unwrap().refuse();
}

async fn until_closed(edge: &EdgeLink) {
    loop {
        match edge.sender.try_send(publish(1, 10)) {
            Err(TrySendError::Closed) => return,
            Ok(()) | Err(TrySendError::Full(_)) => tokio::task::yield_now().await,
        }
    }
}

/// Passes datagrams on until it is dead.
struct Relay {
    address: SocketAddr,
    is_dead: Arc<AtomicBool>,
    _task: JoinSet<()>,
}

impl Relay {
    async fn start(server: SocketAddr) -> Self {
        let here = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let there = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        there.connect(server).await.unwrap();
        let address = here.local_addr().unwrap();
        let is_dead = Arc::new(AtomicBool::new(false));
        let mut task = JoinSet::new();
        let dead = Arc::clone(&is_dead);
        task.spawn(async move {
            let (mut up, mut down, mut client) = ([0; 65_536], [0; 65_536], None);
            loop {
                let (socket, datagram, to) = tokio::select! {
                    Ok((length, from)) = here.recv_from(&mut up) => {
                        client = Some(from);
                        (&there, &up[..length], server)
                    }
                    Ok(length) = there.recv(&mut down) => (&here, &down[..length], client.unwrap()),
                };
                if !dead.load(Ordering::Relaxed) {
                    // Lost, as on any path.
                    let _lost = match std::ptr::eq(socket, &there) {
                        true => socket.send(datagram).await,
                        false => socket.send_to(datagram, to).await,
                    };
                }
            }
        });
        Self { address, is_dead, _task: task }
    }
}
