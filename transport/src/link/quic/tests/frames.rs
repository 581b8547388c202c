//! What travels: frames in order, held back where nobody reads, and what is said beside them.

use tidegate_protocol::link::{Directory, DirectoryNode, DirectoryPartition};

use super::*;
use crate::link::TrySendError;

/// Frames each way of each partition.
const FRAMES: u64 = 3_000;

#[tokio::test]
async fn partitions_keep_order_and_do_not_wait_for_one_that_is_not_read() {
    let pair = Pair::new(LinkConfig::default()).await;
    let (stalled_edge, stalled_core) = pair.open(0).await;
    // Until there is no room left, at the other end, in QUIC, or here.
    let mut told = 0;
    let fill = async {
        loop {
            match stalled_core.sender.try_send(publication(told + 1, 100_000)) {
                Ok(()) => told += 1,
                Err(TrySendError::Full(frame)) => break frame,
                Err(TrySendError::Closed) => panic!("closed"),
            }
        }
    };
    let waiting = fill.await;

    let mut tasks = JoinSet::new();
    for partition in 1..PARTITIONS {
        let (mut edge, mut core) = pair.open(partition).await;
        let (to_edge, to_core) = (core.sender, edge.sender);
        tasks.spawn(async move {
            for offset in 1..=FRAMES {
                // Small and large ones.
                to_edge.send(publication(offset, if offset % 10 == 0 { 5_000 } else { 100 })).await.unwrap();
            }
        });
        tasks.spawn(async move {
            for request in 1..=FRAMES {
                to_core.send(publish(request, 200)).await.unwrap();
            }
        });
        tasks.spawn(async move { in_order(&mut edge.receiver, offset_of).await });
        tasks.spawn(async move { in_order(&mut core.receiver, request_of).await });
    }
    soon(async { while tasks.join_next().await.transpose().unwrap().is_some() {} }).await;

    // The one that stalled has lost nothing, and its sender goes on when it is read.
    let sender = stalled_core.sender;
    let mut receiver = stalled_edge.receiver;
    let (sent, received) = soon(async {
        tokio::join!(
            async {
                sender.send(waiting).await.unwrap();
                drop(sender);
                told + 1
            },
            async {
                let mut offset = 0;
                loop {
                    let frames = recv(&mut receiver).await;
                    if frames.is_empty() {
                        break offset;
                    }
                    for frame in &frames {
                        offset += 1;
                        assert_eq!(offset_of(frame), offset);
                    }
                }
            }
        )
    })
    .await;
    assert_eq!(sent, received);
    // Bounded: the queue and a frame, and what QUIC and the other end hold.
    let config = LinkConfig::default();
    let bound = config.send_queue + config.send_window as usize + config.stream_window as usize + 200_000;
    assert!(usize::try_from(sent).unwrap() * 100_000 <= bound, "{sent}");
}

#[tokio::test]
async fn the_queue_is_bounded_by_bytes() {
    let config = LinkConfig { send_queue: 10_000, stream_window: 4_096, ..LinkConfig::default() };
    let pair = Pair::new(config).await;
    let (mut edge, core) = pair.open(0).await;
    // Nothing is written in between: nothing is awaited here.
    let taken = (1..).take_while(|offset| core.sender.try_send(publication(*offset, 1_000)).is_ok()).count();
    assert_eq!(taken, 10, "the tenth begins below the bound");
    let (mut waiter, mut reader) = (Box::pin(core.sender.send(publication(11, 1_000))), 0);
    tokio::select! { biased;
        sent = &mut waiter => sent.unwrap(),
        () = async {
            while reader < 10 {
                reader += recv(&mut edge.receiver).await.len();
            }
        } => waiter.await.unwrap(),
    }
    while reader < 11 {
        reader += soon(recv(&mut edge.receiver)).await.len();
    }
}

#[tokio::test]
async fn the_newest_directory_wins() {
    let config = LinkConfig { directory_pace: Duration::from_millis(100), ..LinkConfig::default() };
    let pair = Pair::new(config).await;
    let mut watch = pair.edge.directory();
    assert_eq!(*watch.current(), Directory::default());
    let directory = |term| {
        let owner = NodeId::new("core-1");
        let node = DirectoryNode { id: owner.clone(), address: "core-1:7400".into() };
        let partition = DirectoryPartition { owner: Some(owner), term };
        Arc::new(Directory { nodes: vec![node], partitions: vec![partition; 64] })
    };
    pair.core.send_directory(directory(1));
    assert_eq!(soon(watch.changed()).await, Some(directory(1)));
    let mut seen = Vec::new();
    for term in 2..=500 {
        pair.core.send_directory(directory(term));
        tokio::task::yield_now().await;
    }
    while seen.last() != Some(&500) {
        seen.push(soon(watch.changed()).await.unwrap().partitions[0].term);
    }
    assert!(seen.len() < 20 && seen.is_sorted(), "not each of them was sent: {seen:?}");
    assert_eq!(watch.current(), directory(500));
    // Somebody who comes later has it at once.
    assert_eq!(soon(pair.edge.directory().changed()).await, Some(directory(500)));
    pair.core.close("");
    assert_eq!(soon(watch.changed()).await, None);
}

#[tokio::test]
async fn questions_are_answered() {
    let Pair { edge, core, _listener } = Pair::new(LinkConfig::default()).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(question) = core.next_question().await {
            match &question.what()[..] {
                b"nothing" => drop(question),
                b"too much" => question.answer(vec![1; MAX_ANSWER_BYTES + 1].into()),
                b"much" => question.answer(vec![1; MAX_ANSWER_BYTES].into()),
                b"the end" => return,
                other => {
                    let answer = [b"re: ", other].concat();
                    question.answer(answer.into());
                }
            }
        }
    });
    let ask = |what: &'static str| edge.ask(Bytes::from_static(what.as_bytes()));
    assert_eq!(soon(ask("status")).await, Ok(Bytes::from_static(b"re: status")));
    assert_eq!(soon(ask("nothing")).await, Err(AskError::Unanswered));
    assert_eq!(soon(ask("too much")).await, Err(AskError::Unanswered));
    assert_eq!(soon(ask("much")).await.map(|answer| answer.len()), Ok(MAX_ANSWER_BYTES));
    let long = edge.ask(vec![1; MAX_QUESTION_BYTES + 1].into());
    assert_eq!(soon(long).await, Err(AskError::Unanswered));

    // Far more than may be under way, and some whose asker does not wait.
    let mut askers = JoinSet::new();
    for number in 0..300 {
        let edge = edge.clone();
        let asker = askers.spawn(async move {
            let answer = edge.ask(Bytes::from(number.to_string())).await.unwrap();
            assert_eq!(answer, format!("re: {number}"));
        });
        if number % 7 == 0 {
            asker.abort();
        }
    }
    soon(async {
        while let Some(asked) = askers.join_next().await {
            assert!(asked.is_ok() || asked.unwrap_err().is_cancelled());
        }
    })
    .await;
    assert_eq!(soon(ask("the end")).await, Err(AskError::Closed));
    assert_eq!(soon(ask("status")).await, Err(AskError::Closed));
}

fn offset_of(frame: &CoreFrame) -> u64 {
    let CoreFrame::Publication(delivery) = frame else { panic!("{frame:?}") };
    delivery.offset.0
}

fn request_of(frame: &EdgeFrame) -> u64 {
    let EdgeFrame::Publish { request, .. } = frame else { panic!("{frame:?}") };
    *request
}

/// All frames, each once, in order.
async fn in_order<F>(receiver: &mut Box<dyn LinkReceiver<F>>, number: impl Fn(&F) -> u64) {
    let mut expected = 0;
    while expected < FRAMES {
        let frames = recv(receiver).await;
        assert!(!frames.is_empty(), "the end at {expected}");
        for frame in &frames {
            expected += 1;
            assert_eq!(number(frame), expected);
        }
    }
}
