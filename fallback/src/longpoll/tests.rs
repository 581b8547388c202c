//! Both sides of a session on one thread, without HTTP.

use std::task::Poll;

use serde_json::Value;
use tidegate_protocol::frame::{ClientBody, CloseCode, Connect, Empty, ServerBody};
use tokio::select;

use super::*;

const LIMITS: LongPollLimits = LongPollLimits { mailbox_bytes: 400, expiry: Duration::from_secs(60) };
const SESSION: &str = "0123456789abcdef0123456789abcdef";

fn open(limits: LongPollLimits) -> (LongPollConnection, LongPollHandle) {
    LongPollConnection::open(SESSION.parse().expect("an id"), limits)
}

fn request(ack: u64, frames: Vec<ClientFrame>, wait_ms: u64) -> PollRequest {
    PollRequest { session: None, ack, frames, wait: Duration::from_millis(wait_ms) }
}

fn connect() -> Vec<ClientFrame> {
    vec![ClientFrame::new(1, ClientBody::Connect(Connect::default()))]
}

fn pong() -> Vec<ClientFrame> {
    vec![ClientFrame::new(0, ClientBody::Pong(Empty {}))]
}

/// A frame that can be told from others.
fn frame(number: u64) -> Bytes {
    Framing::Text
        .encode(&ServerFrame::new(number, ServerBody::Ping(tidegate_protocol::frame::Ping::default())))
}

fn close_frame(code: CloseCode) -> Bytes {
    Framing::Text.encode(&ServerFrame::new(0, ServerBody::Close(code.frame("why"))))
}

async fn recv(connection: &mut LongPollConnection) -> Result<Inbound, RecvError> {
    poll_fn(|cx| connection.poll_recv(cx)).await
}

async fn recv_frames(connection: &mut LongPollConnection) -> Vec<ClientFrame> {
    match recv(connection).await {
        Ok(Inbound::Frames(frames)) => frames,
        other => panic!("{other:?}"),
    }
}

async fn has_nothing(connection: &mut LongPollConnection) -> bool {
    poll_fn(|cx| Poll::Ready(connection.poll_recv(cx))).await.is_pending()
}

fn send(connection: &mut LongPollConnection, bytes: Bytes) {
    assert_eq!(connection.send(Lane::Control, &bytes).expect("open"), Sent::Taken);
}

/// Status, batch, ids of the frames.
fn read(response: &PollResponse) -> (u16, u64, Vec<u64>) {
    let body: Value = serde_json::from_slice(&response.body).expect("JSON");
    let ids =
        body["frames"].as_array().expect("frames").iter().map(|frame| frame["id"].as_u64().unwrap_or(0));
    (response.status.as_u16(), body["batch"].as_u64().expect("a number"), ids.collect())
}

fn close_code(response: &PollResponse) -> Option<u64> {
    let body: Value = serde_json::from_slice(&response.body).expect("JSON");
    body["frames"].as_array()?.last()?["close"]["code"].as_u64()
}

#[tokio::test]
async fn polls_carry_frames_both_ways_and_wait_for_the_first() {
    let (mut connection, handle) = open(LIMITS);
    assert_eq!(connection.kind(), TransportKind::LongPoll);
    let driver = async {
        assert_eq!(recv_frames(&mut connection).await, connect());
        send(&mut connection, frame(1));
        send(&mut connection, frame(2));
    };
    let ((), answer) = tokio::join!(driver, handle.poll(request(0, connect(), 60_000)));
    assert_eq!(read(&answer), (200, 1, vec![1, 2]));
    assert!(String::from_utf8_lossy(&answer.body).contains(SESSION));

    send(&mut connection, frame(3));
    assert_eq!(read(&handle.poll(request(1, vec![], 60_000)).await), (200, 2, vec![3]));
    assert_eq!(read(&handle.poll(request(2, vec![], 1)).await), (200, 2, vec![]), "nothing in time");
    assert!(!connection.send_datagram(&frame(4)));
    assert_eq!(connection.buffered(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_when_the_time_is_over_may_have_something_a_little_later() {
    let (mut connection, handle) = open(LIMITS);
    #[expect(clippy::disallowed_methods, reason = "virtual time")]
    let began = tokio::time::Instant::now();
    let longer = || Duration::from_millis(300);
    let driver = async {
        sleep(Duration::from_millis(1_200)).await;
        send(&mut connection, frame(1));
    };
    let (answer, ()) = tokio::join!(handle.poll_longer(request(0, vec![], 1_000), longer), driver);
    assert_eq!((read(&answer), began.elapsed().as_millis()), ((200, 1, vec![1]), 1_200));
    assert!(answer.has_frames());

    // Nothing came: asked once.
    let answer = handle.poll_longer(request(1, vec![], 1_000), longer).await;
    assert_eq!((read(&answer), began.elapsed().as_millis()), ((200, 1, vec![]), 2_500));
    assert!(!answer.has_frames());

    // What is there does not wait, and nobody is asked.
    send(&mut connection, frame(2));
    let answer = handle.poll_longer(request(1, vec![], 1_000), || panic!("asked")).await;
    assert_eq!(read(&answer), (200, 2, vec![2]));
}

#[tokio::test]
async fn a_lost_answer_is_given_again_and_its_frames_count_once() {
    let (mut connection, handle) = open(LIMITS);
    send(&mut connection, frame(1));
    let lost = handle.poll(request(0, connect(), 0)).await;
    assert_eq!(recv_frames(&mut connection).await, connect());
    send(&mut connection, frame(2));

    let again = handle.poll(request(0, connect(), 0)).await;
    assert_eq!(again, lost);
    assert!(has_nothing(&mut connection).await);
    assert_eq!(read(&handle.poll(request(1, pong(), 0)).await), (200, 2, vec![2]));
    assert_eq!(recv_frames(&mut connection).await, pong());

    let beyond = handle.poll(request(9, pong(), 0)).await;
    assert_eq!((beyond.status.as_u16(), close_code(&beyond)), (400, Some(4003)));
    assert!(has_nothing(&mut connection).await);
    // The session is none the worse for it.
    assert_eq!(read(&handle.poll(request(2, vec![], 0)).await), (200, 2, vec![]));
}

#[tokio::test]
async fn a_newer_poll_makes_the_older_return() {
    let (mut connection, handle) = open(LIMITS);
    let older = handle.poll(request(0, vec![], 60_000));
    let newer = async {
        // `join!` polls in order: the older one waits already.
        let answer = handle.poll(request(0, pong(), 60_000));
        let driver = async {
            assert_eq!(recv_frames(&mut connection).await, pong());
            send(&mut connection, frame(1));
        };
        tokio::join!(answer, driver).0
    };
    let (older, newer) = tokio::join!(older, newer);
    assert_eq!(read(&older), (200, 0, vec![]));
    assert_eq!(read(&newer), (200, 1, vec![1]));
}

#[tokio::test]
async fn a_session_that_is_not_polled_expires() {
    let limits = LongPollLimits { expiry: Duration::from_millis(400), ..LIMITS };
    let (mut connection, handle) = open(limits);
    // While a poll waits, for longer than that, it does not.
    select! {
        biased;
        result = recv(&mut connection) => panic!("{result:?}"),
        answer = handle.poll(request(0, vec![], 1_000)) => assert_eq!(read(&answer), (200, 0, vec![])),
    }
    // A poll that was given up counts until then.
    let given_up = Box::pin(handle.poll(request(0, vec![], 60_000)));
    select! {
        biased;
        _ = given_up => panic!("no frame came"),
        () = std::future::ready(()) => {}
    }
    assert!(matches!(recv(&mut connection).await, Err(RecvError::Lost(_))));
    let late = handle.poll(request(0, vec![], 60_000)).await;
    assert_eq!((late.status.as_u16(), close_code(&late)), (404, Some(4200)));
    assert!(connection.send(Lane::Control, &frame(1)).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_goes_on_elsewhere_is_not_waited_for() {
    let (mut connection, handle) = open(LIMITS);
    let patience = sleep(Duration::from_secs(50));
    select! {
        biased;
        result = recv(&mut connection) => panic!("{result:?}"),
        () = patience => connection.supersede(),
    }
    // While it polls it is there.
    let patience = sleep(Duration::from_secs(10));
    select! {
        biased;
        _ = handle.poll(request(0, vec![], 25_000)) => panic!("no frame came"),
        result = recv(&mut connection) => panic!("{result:?}"),
        () = patience => {}
    }
    let last = clock::now();
    assert!(matches!(recv(&mut connection).await, Err(RecvError::Lost(_))));
    assert_eq!((clock::now() - last).as_secs(), 5);
}

#[tokio::test]
async fn a_full_mailbox_takes_frames_again_once_the_client_has_some() {
    let (mut connection, handle) = open(LIMITS);
    let mut sent = 0;
    while connection.send(Lane::Subscription(1), &frame(sent + 1)).expect("open") == Sent::Taken {
        sent += 1;
    }
    assert!(sent > 1 && connection.buffered() < 400 + 100);
    let (_, batch, ids) = read(&handle.poll(request(0, vec![], 0)).await);
    assert_eq!((batch, ids), (1, (1..=sent).collect()));
    let ready = poll_fn(|cx| connection.poll_ready(cx, Lane::Control));
    let (ready, _) = tokio::join!(ready, handle.poll(request(1, vec![], 1)));
    ready.expect("open");
    send(&mut connection, frame(99));
    assert_eq!(read(&handle.poll(request(1, vec![], 0)).await), (200, 2, vec![99]));
}

#[tokio::test]
async fn a_session_that_does_not_take_its_frames_refuses_more() {
    let (mut connection, handle) = open(LIMITS);
    for _ in 0..MAX_REQUESTS {
        assert_eq!(handle.poll(request(0, pong(), 0)).await.status, 200);
    }
    let refused = handle.poll(request(0, pong(), 0)).await;
    assert_eq!((refused.status.as_u16(), close_code(&refused)), (429, Some(4105)));
    assert_eq!(handle.poll(request(0, vec![], 0)).await.status, 200, "it may still listen");
    for _ in 0..MAX_REQUESTS {
        assert_eq!(recv_frames(&mut connection).await, pong());
    }
    assert!(has_nothing(&mut connection).await);
    assert_eq!(handle.poll(request(0, pong(), 0)).await.status, 200);
}

async fn close(connection: &mut LongPollConnection, code: CloseCode) {
    let closing = Closing { code, reason: "why".to_owned() };
    poll_fn(|cx| connection.poll_close(cx, &closing)).await;
}

#[tokio::test]
async fn the_close_frame_comes_last_and_once() {
    for session_says_it in [true, false] {
        let (mut connection, handle) = open(LIMITS);
        send(&mut connection, frame(1));
        let first = handle.poll(request(0, vec![], 0)).await;
        assert_eq!(read(&first), (200, 1, vec![1]));
        send(&mut connection, frame(2));
        if session_says_it {
            send(&mut connection, close_frame(CloseCode::Shutdown));
        }
        let polling = async {
            let last = handle.poll(request(1, vec![], 60_000)).await;
            // Its answer may be lost too.
            assert_eq!(handle.poll(request(1, vec![], 60_000)).await, last);
            last
        };
        let ((), last) = tokio::join!(close(&mut connection, CloseCode::Shutdown), polling);
        assert_eq!(read(&last), (200, 2, vec![2, 0]));
        assert_eq!(close_code(&last), Some(4100));
        let after = handle.poll(request(2, vec![], 60_000)).await;
        assert_eq!((after.status.as_u16(), close_code(&after)), (404, Some(4200)));
    }
}

#[tokio::test]
async fn a_session_that_never_came_to_be_is_told_by_status() {
    for (code, status) in
        [(CloseCode::Unauthorized, 401), (CloseCode::BadOrigin, 403), (CloseCode::Overloaded, 503)]
    {
        let (mut connection, handle) = open(LIMITS);
        let driver = async {
            recv_frames(&mut connection).await;
            send(&mut connection, close_frame(code));
            close(&mut connection, code).await;
        };
        let ((), answer) = tokio::join!(driver, handle.poll(request(0, connect(), 60_000)));
        assert_eq!(read(&answer), (status, 0, vec![0]));
        assert_eq!(close_code(&answer), Some(u64::from(code.number())));
    }
}

#[tokio::test]
async fn a_dropped_connection_ends_the_poll_that_waits() {
    let (connection, handle) = open(LIMITS);
    let (answer, ()) = tokio::join!(handle.poll(request(0, vec![], 60_000)), async { drop(connection) });
    assert_eq!((answer.status.as_u16(), close_code(&answer)), (404, Some(4200)));
}

#[test]
fn an_idle_session_is_small() {
    let shared = size_of::<RefCell<Shared>>() + 2 * size_of::<usize>();
    let all = shared + size_of::<Sleep>() + size_of::<LongPollConnection>() + size_of::<LongPollHandle>();
    assert!(all <= 1024, "{all}");
}
