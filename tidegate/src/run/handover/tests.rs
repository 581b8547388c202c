//! Both sides of a hand-over, in one process.

use std::cell::Cell;
use std::io::Write as _;
use std::net::TcpStream;

use tidegate_transport::quic::bind;

use super::*;

const KEY: IdKey = IdKey(9);

fn estate() -> Estate {
    let address = "127.0.0.1:0".parse().unwrap();
    let tcp = || TcpListener::bind("127.0.0.1:0").unwrap();
    let listeners = Handover {
        quic: Some(bind(address, 3, KEY).unwrap().group),
        http3: None,
        tls: vec![tcp(), tcp()],
        plain: vec![tcp()],
    };
    Estate { listeners, api: Some(tcp()), secret: Some([7; KEY_BYTES]), before: Vec::new() }
}

fn copy(estate: &Estate) -> anyhow::Result<Estate> {
    Ok(Estate {
        listeners: estate.listeners.try_clone()?,
        api: estate.api.as_ref().map(TcpListener::try_clone).transpose()?,
        secret: estate.secret,
        before: estate.before.iter().map(Before::try_clone).collect::<std::io::Result<_>>()?,
    })
}

#[tokio::test]
async fn everything_is_handed_over_and_the_end_of_every_process_before_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door");
    assert!(Predecessor::ask(&path).await.unwrap().is_none());

    let mut left = estate();
    let mut successors = Vec::new();
    for generation in 0..3 {
        let door = Door::open(&path).unwrap();
        let handing = hand_over(&door, || copy(&left), || panic!("nothing went wrong"));
        let taking = async {
            let (predecessor, estate) = Predecessor::ask(&path).await.unwrap().unwrap();
            predecessor.take().await.unwrap();
            (predecessor, estate)
        };
        let (successor, (_predecessor, estate)) = tokio::join!(handing, taking);
        successors.push(successor);
        let Handover { quic, http3, tls, plain } = &estate.listeners;
        let quic = quic.as_ref().unwrap();
        let was = left.listeners.quic.as_ref().unwrap();
        assert_eq!((quic.address(), quic.steering()), (was.address(), was.steering()));
        assert_eq!((quic.members().len(), http3.is_none()), (was.members().len(), true));
        assert_eq!((tls.len(), plain.len(), estate.secret), (2, 1, Some([7; KEY_BYTES])));
        assert_eq!(estate.before.len(), generation + 1);
        assert_eq!(estate.before.last().unwrap().quic, Some(generation as u8));
        let api = estate.api.as_ref().unwrap();
        TcpStream::connect(api.local_addr().unwrap()).unwrap().write_all(b"x").unwrap();
        api.accept().unwrap();

        let listeners = estate.listeners;
        let group = listeners.quic.unwrap().join(2).unwrap().group;
        left = Estate { listeners: Handover { quic: Some(group), ..listeners }, ..estate };
    }
    // The last one sees each of them end.
    for before in left.before {
        let ended = before.ended();
        tokio::pin!(ended);
        assert!(futures_poll(ended.as_mut()).await.is_pending(), "it has not ended");
        drop(successors.remove(0));
        timeout(Duration::from_secs(5), ended).await.expect("it has ended");
    }
}

#[tokio::test]
async fn who_goes_before_it_took_over_has_changed_nothing_and_the_next_one_can() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door");
    let (door, left, undone) = (Door::open(&path).unwrap(), estate(), Cell::new(0));
    let handing = hand_over(&door, || copy(&left), || undone.set(undone.get() + 1));
    let taking = async {
        drop(Predecessor::ask(&path).await.unwrap().unwrap());
        // One of a version that nobody knows here.
        let strange = Channel::connect(&path).unwrap().unwrap();
        strange.send(&json!({ "take_over": VERSION + 1 }), &[]).await.unwrap();
        assert!(strange.receive().await.unwrap().unwrap().text["refused"].is_string());
        let (predecessor, _) = Predecessor::ask(&path).await.unwrap().unwrap();
        predecessor.take().await.unwrap();
        predecessor
    };
    let (successor, predecessor) = tokio::join!(handing, taking);
    assert_eq!(undone.get(), 2);
    drop(successor);
    timeout(Duration::from_secs(5), predecessor.ended()).await.expect("the end is seen");
}

#[tokio::test]
async fn an_offer_that_cannot_be_is_refused() {
    for (offer, sockets) in [
        (json!({ "before": [{}] }), 0),
        (json!({ "before": [], "quic": { "key": 1, "sets": [[0, 0, 2]] } }), 1),
        (json!({ "before": [], "quic": { "key": 1, "sets": [[0, 0]] } }), 1),
        (json!({ "before": [], "quic": { "key": -1, "sets": [] } }), 1),
        (json!({ "before": [], "secret": [1, 2, 3] }), 0),
        (json!({}), 0),
    ] {
        let found = Found {
            quic: (0..sockets).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap().into()).collect(),
            ..Found::default()
        };
        assert!(found.estate(&offer).is_err(), "{offer}");
    }
    assert!(Found::default().add(&json!({ "sockets": "what" }), Vec::new()).is_err());
}

/// Polls once, after everything that is ready had its turn.
async fn futures_poll<F: Future<Output = ()>>(mut future: std::pin::Pin<&mut F>) -> std::task::Poll<()> {
    tokio::task::yield_now().await;
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx))).await
}
