//! What edges say of themselves and send each other, over a core.

use std::pin::pin;
use std::task::Poll;

use tidegate_protocol::link::fleet::{
    EdgeCondition, EdgeState, FleetEntry, MAX_RELAY_BYTES, RelayError, Relayed,
};

use super::*;

#[tokio::test]
async fn a_core_hears_what_an_edge_says_in_its_order_and_tells_it_of_others() {
    let Pair { edge, core, _listener } = Pair::new(LinkConfig::default()).await;
    for sequence in 1..=3 {
        edge.announce(state("edge-1", sequence)).await;
    }
    let (asked, ()) = tokio::join!(edge.ask(Bytes::from_static(b"x")), async {
        let question = core.next_question().await.unwrap();
        // What was said before it has been taken before it.
        for sequence in 1..=3 {
            let Some(EdgeWord::Announce(said)) = core.next_word().await else { panic!("a word") };
            assert_eq!(said, state("edge-1", sequence));
        }
        question.answer(Bytes::new());
    });
    assert_eq!(asked, Ok(Bytes::new()));

    let entry =
        |sequence| FleetEntry { state: state("edge-2", sequence), age: Duration::from_millis(sequence) };
    let mut fleet = edge.fleet();
    core.send_fleet(Arc::new(vec![entry(5)]));
    assert_eq!(soon(fleet.changed()).await.unwrap()[..], [entry(5)]);
    // Of several the latest comes in any case.
    (6..=40).for_each(|sequence| core.send_fleet(Arc::new(vec![entry(sequence)])));
    let latest = async { while fleet.changed().await.unwrap()[0] != entry(40) {} };
    soon(latest).await;
    core.close("it ends");
    assert!(soon(fleet.changed()).await.is_none());
}

#[tokio::test]
async fn an_edge_that_speaks_for_another_one_is_cut() {
    let Pair { edge, core, _listener } = Pair::new(LinkConfig::default()).await;
    edge.announce(state("edge-2", 1)).await;
    assert!(soon(core.next_word()).await.is_none(), "nobody hears it");
    let reason = soon(edge.closed()).await;
    assert!(reason.contains("an announcement of another node"), "{reason}");
}

#[tokio::test]
async fn payloads_reach_another_edge_or_the_sender_is_told() {
    let Pair { edge, core, _listener } = Pair::new(LinkConfig::default()).await;
    let to = NodeId::new("edge-2");
    let send = || edge.relay(to.clone(), Bytes::from_static(b"lease"));
    let (sent, ()) = tokio::join!(async { [send().await, send().await, send().await] }, async {
        for n in 0..3 {
            let Some(EdgeWord::Relay(request)) = core.next_word().await else { panic!("a payload") };
            assert_eq!((request.to(), &request.payload()[..]), (&to, &b"lease"[..]));
            match n {
                0 => request.passed(),
                1 => request.busy(),
                _ => drop(request),
            }
        }
    });
    assert_eq!(sent, [Ok(()), Err(RelayError::Busy), Err(RelayError::NoSuchEdge)]);
    let long = edge.relay(to.clone(), vec![1; MAX_RELAY_BYTES + 1].into()).await;
    assert_eq!(long, Err(RelayError::TooLong));

    let from_it = Relayed { from: to.clone(), payload: Bytes::from_static(b"granted") };
    assert!(core.try_relay(from_it.clone()));
    assert_eq!(soon(edge.next_relayed()).await, Some(from_it.clone()));
    // Nobody writes meanwhile: this test does not wait.
    let taken = (0..10_000).take_while(|_| core.try_relay(from_it.clone())).count();
    assert!((1..10_000).contains(&taken), "{taken}");

    let (lost, ()) = tokio::join!(send(), async {
        core.next_word().await.unwrap();
        core.close("it ends");
    });
    assert!(matches!(lost, Err(RelayError::Unknown | RelayError::NoSuchEdge)), "{lost:?}");
    assert_eq!(soon(send()).await, Err(RelayError::Unknown));
}

#[tokio::test]
async fn the_release_before_is_told_nothing_that_it_does_not_know() {
    let cluster = Cluster::new();
    let listener = cluster.listener("core-1", LinkConfig::default());
    let dialer = cluster.dialer("edge-1", LinkConfig::default());
    let address = listener.local_address().to_string();
    let hello = Hello { versions: 1..=1, ..hello("edge-1") };
    let (edge, core) = tokio::join!(dialer.dial(&address, hello), async {
        listener.accept().await.unwrap().greet(|_| Ok(greeting("core-1"))).await
    });
    let (edge, core) = (edge.unwrap(), core.unwrap());
    assert_eq!(edge.welcome().version, 1);
    assert!(!core.takes_fleet());
    core.send_fleet(Arc::default());
    let relayed = Relayed { from: NodeId::new("edge-2"), payload: Bytes::new() };
    assert!(!core.try_relay(relayed));
    edge.announce(state("edge-1", 1)).await;
    assert_eq!(edge.relay(NodeId::new("edge-2"), Bytes::new()).await, Err(RelayError::NoSuchEdge));
    // The connection goes on, and nothing else came over it.
    let (answer, ()) = tokio::join!(edge.ask(Bytes::from_static(b"x")), async {
        core.next_question().await.unwrap().answer(Bytes::from_static(b"y"));
    });
    assert_eq!(answer, Ok(Bytes::from_static(b"y")));
    let mut fleet = edge.fleet();
    let mut changed = pin!(fleet.changed());
    assert!(poll_fn(|cx| Poll::Ready(changed.as_mut().poll(cx).is_pending())).await);
}

fn state(node: &str, sequence: u64) -> EdgeState {
    EdgeState {
        node: NodeId::new(node),
        region: Region::new("eu"),
        endpoints: vec!["quic://edge:4433".to_owned()],
        sessions: 5,
        rate: 100,
        slack: 90,
        condition: EdgeCondition::Serve,
        started_unix_ms: 7,
        sequence,
    }
}
