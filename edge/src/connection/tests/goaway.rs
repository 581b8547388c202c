//! Sessions that are asked to move, and those who hear of it.

use tidegate_protocol::frame::{CloseCode, Connect, Goaway, ServerFrame};
use tidegate_protocol::session::resume::Told;
use tokio::sync::mpsc;

use super::bench::Bench;
use super::*;
use crate::sessions::{EndKind, SessionEnd, SessionInfo, SessionKey, SessionNews};

fn goaway(deadline: Duration) -> Goaway {
    let deadline_ms = u64::try_from(deadline.as_millis()).expect("short");
    Goaway { endpoint: Some("https://edge-2".to_owned()), deadline_ms, ..Goaway::default() }
}

fn only(bench: &Bench) -> SessionInfo {
    let [info] = bench.worker().list()[..] else { panic!("{:?}", bench.worker().list()) };
    info
}

async fn ended(told: &mut mpsc::Receiver<SessionNews>) -> SessionEnd {
    match told.recv().await {
        Some(SessionNews::End(end)) => end,
        other => panic!("{other:?}"),
    }
}

fn asked(client: &Client) -> usize {
    let is_goaway = |frame: &&ServerFrame| matches!(frame.body, Some(ServerBody::Goaway(_)));
    client.frames().iter().filter(is_goaway).count()
}

#[test]
fn a_session_is_listed_asked_served_and_its_end_is_told() {
    simulate(Limits::default(), async |bench| {
        let (news, mut told) = mpsc::channel(1);
        bench.worker().watch(news);
        let silent = bench.connect(TransportKind::Quic);
        settle().await;
        assert_eq!(bench.worker().list(), [], "it has not said `connect`");
        silent.hang_up();
        silent.ended().await;
        settle().await;
        assert_eq!(ended(&mut told).await.kind, EndKind::Done);

        let client = bench.open(TransportKind::Quic).await;
        client.live(bench, 2, "room", 0).await;
        let info = only(bench);
        assert_eq!((info.transport, info.moves, info.leaving), (TransportKind::Quic, false, false));
        let other = SessionKey { serial: info.key.serial.wrapping_add(1), ..info.key };
        assert!(
            !bench.worker().goaway(other, goaway(Duration::from_secs(9))),
            "it was there before, or is to come"
        );
        assert!(bench.worker().goaway(info.key, goaway(Duration::from_secs(9))));
        until(|| asked(&client) == 1).await;
        bench.publish("room", 1);
        until(|| client.offsets("room") == [1]).await;
        client.ended().await;
        assert_eq!(client.close_code(), Some(4100));
        let end = ended(&mut told).await;
        assert_eq!((end.key, end.kind), (info.key, EndKind::Closed(CloseCode::Shutdown)));
        assert_eq!(bench.metrics().goaways.get(), 1);
        assert_eq!(bench.worker().list(), []);
    });
}

#[test]
fn a_session_that_moved_is_asked_again_until_it_leaves() {
    simulate(Limits::default(), async |bench| {
        let (news, mut told) = mpsc::channel(1);
        bench.worker().watch(news);
        let client = bench.connect(TransportKind::WebSocket);
        client.say(1, ClientBody::Connect(Connect { moves: true, ..Connect::default() }));
        until(|| client.connected().is_some()).await;
        let info = only(bench);
        assert!(info.moves);
        assert!(bench.worker().goaway(info.key, goaway(Duration::from_secs(30))));
        let session = client.connected().expect("just seen").session.parse().expect("an id");
        bench.send(CoreFrame::SessionMoved { session, generation: 1, told: Told::Resumed });
        until(|| only(bench).leaving).await;
        // Where it went may be gone.
        assert!(bench.worker().goaway(info.key, goaway(Duration::from_secs(30))));
        until(|| asked(&client) == 2).await;
        client.say(0, ClientBody::Done(Empty {}));
        client.ended().await;
        assert_eq!(ended(&mut told).await.kind, EndKind::Moved);
        assert_eq!(bench.metrics().moves.get(), 1);
        assert!(!bench.worker().goaway(info.key, goaway(Duration::from_secs(30))));
    });
}

#[test]
fn ends_that_nobody_takes_are_counted() {
    simulate(Limits::default(), async |bench| {
        let (news, told) = mpsc::channel(1);
        bench.worker().watch(news);
        for _ in 0..3 {
            let client = bench.open(TransportKind::WebSocket).await;
            client.hang_up();
            client.ended().await;
        }
        settle().await;
        assert_eq!(bench.metrics().ends_untold.get(), 2);
        drop(told);
        let client = bench.open(TransportKind::WebSocket).await;
        client.hang_up();
        client.ended().await;
        settle().await;
        assert_eq!(bench.metrics().ends_untold.get(), 2, "nobody watches any more");
    });
}
