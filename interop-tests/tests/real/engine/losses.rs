//! Servers that lost something, or have what is not ours: told, and never served as if nothing had happened.

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use tidegate_core::engine::{
    AppendError, ClaimError, Engine as _, LogPosition, NatsConfig, NatsEngine, ReplayError, Snapshot,
};
use tidegate_interop_tests::nats::NatsServer;
use tidegate_protocol::NodeId;

use super::{PARTITION, append, config, connect, frame, read};

/// Even when nobody noted how far the log went.
#[tokio::test]
async fn nats_a_stream_that_vanished_is_another_epoch() -> Result<()> {
    let server = NatsServer::start().await?;
    let engine = connect(&server, 1).await?;
    let mut claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
    engine.append(&mut claim, frame(1)).await?;
    engine.put_piece(&claim, LogPosition(1), 0, frame(1)).await?;
    engine.finish_snapshot(&claim, Snapshot { at: LogPosition(1), pieces: 1 }).await?;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    jetstream.delete_stream("tidegate-test-log-0").await?;

    let other = connect(&server, 1).await?;
    let mut again = other.claim(PARTITION, &NodeId::new("b")).await?;
    ensure!(again.epoch() != claim.epoch() && again.term() > claim.term(), "{again:?}");
    ensure!(other.snapshot(PARTITION).await == Ok(None), "it is of frames that are gone");
    other.append(&mut again, frame(7)).await?;
    ensure!(read(&other, again.first().0).await == vec![frame(7)]);
    // Whoever knew the old log is not left waiting for it.
    let stays = engine.claim(PARTITION, &NodeId::new("a")).await?;
    ensure!(stays.epoch() == again.epoch() && stays.tail() == again.tail(), "{stays:?}");
    Ok(())
}

/// Its owner is told, instead of trying for ever, and can go on in another epoch.
#[tokio::test]
async fn nats_a_stream_that_vanishes_under_its_owner_is_told_and_made_anew() -> Result<()> {
    let server = NatsServer::start().await?;
    let engine = connect(&server, 1).await?;
    let mut claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
    engine.append(&mut claim, frame(1)).await?;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    jetstream.delete_stream("tidegate-test-log-0").await?;

    let refused = engine.append(&mut claim, frame(2)).await;
    ensure!(
        matches!(&refused, Err(AppendError::Refused(reason)) if reason.contains("deleted the stream tidegate-test-log-0")),
        "{refused:?}"
    );
    ensure!(!engine.takes_frames(PARTITION).await);
    let mut again = engine.claim(PARTITION, &NodeId::new("a")).await?;
    ensure!(again.epoch() != claim.epoch() && again.first() == again.tail().next(), "{again:?}");
    engine.append(&mut again, frame(7)).await?;
    ensure!(read(&engine, again.first().0).await == vec![frame(7)]);
    let made = jetstream.get_stream("tidegate-test-log-0").await?;
    ensure!(made.cached_info().config.max_bytes == 64 << 20, "with all that it is to have");
    Ok(())
}

/// A message that is not ours in the middle of a log: replay stops there, and the next claim begins behind it.
#[tokio::test]
async fn nats_a_broken_chain_is_told_and_ends_the_epoch() -> Result<()> {
    let server = NatsServer::start().await?;
    let engine = connect(&server, 1).await?;
    let mut claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
    for n in 1..=3 {
        engine.append(&mut claim, frame(n)).await?;
    }
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    // The second frame once more: of this log, and out of place.
    let stream = jetstream.get_stream("tidegate-test-log-0").await?;
    let twice = stream.get_raw_message(3).await?.payload;
    jetstream.publish("tidegate-test.log.0", twice).await?.await?;
    let page = engine.replay(PARTITION, LogPosition(1)).await.context("what is sound comes first")?;
    ensure!(page.len() == 3, "{page:?}");
    let broken = engine.replay(PARTITION, LogPosition(4)).await;
    ensure!(broken == Err(ReplayError::Diverged { at: LogPosition(4) }), "{broken:?}");
    let again = engine.claim(PARTITION, &NodeId::new("a")).await?;
    ensure!(again.epoch() != claim.epoch() && again.first() == again.tail().next(), "{again:?}");
    ensure!(engine.replay(PARTITION, again.first()).await == Ok(vec![]));
    let old = engine.replay(PARTITION, LogPosition(1)).await;
    ensure!(old == Err(ReplayError::Truncated { first: again.first() }), "{old:?}");

    // Another node that comes later finds the same epoch.
    let other = connect(&server, 1).await?;
    let stays = other.claim(PARTITION, &NodeId::new("b")).await?;
    ensure!((stays.epoch(), stays.first()) == (again.epoch(), again.first()), "{stays:?}");
    Ok(())
}

/// All frames are too old: positions go on where they were, and the snapshot still fits.
#[tokio::test]
async fn nats_a_log_whose_frames_are_all_gone_goes_on() -> Result<()> {
    let server = NatsServer::start().await?;
    let engine = connect(&server, 1).await?;
    for term in 1..=3 {
        let mut claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
        engine.append(&mut claim, frame(term)).await?;
    }
    let claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
    engine.put_piece(&claim, LogPosition(3), 0, frame(3)).await?;
    engine.finish_snapshot(&claim, Snapshot { at: LogPosition(3), pieces: 1 }).await?;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    jetstream.get_stream("tidegate-test-log-0").await?.purge().await?;

    let other = connect(&server, 1).await?;
    let gone = other.replay(PARTITION, LogPosition(1)).await;
    ensure!(gone == Err(ReplayError::Truncated { first: LogPosition(4) }), "{gone:?}");
    ensure!(other.replay(PARTITION, LogPosition(4)).await == Ok(vec![]));
    let mut again = other.claim(PARTITION, &NodeId::new("b")).await?;
    ensure!(
        (again.epoch(), again.first(), again.tail()) == (claim.epoch(), LogPosition(4), LogPosition(3)),
        "{again:?}"
    );
    ensure!(other.append(&mut again, frame(4)).await == Ok(LogPosition(4)));
    ensure!(read(&other, 4).await == vec![frame(4)]);
    ensure!(other.snapshot(PARTITION).await == Ok(Some(Snapshot { at: LogPosition(3), pieces: 1 })));
    Ok(())
}

/// Somebody else's data fills the account: what cannot be stored is refused in words, and not acknowledged.
#[tokio::test]
async fn nats_without_room_takes_nothing_and_says_so() -> Result<()> {
    let mut server = NatsServer::start().await?;
    let small = NatsConfig { retain_bytes: 4 << 20, ..config(&server) };
    let engine = NatsEngine::connect(small, 1).await?;
    let mut claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
    engine.append(&mut claim, frame(1)).await?;
    server.restart_with_room(16 << 20).await?;
    append(&engine, &mut claim, frame(2)).await?;

    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    let other = jetstream::stream::Config {
        name: "other".to_owned(),
        subjects: vec!["other".to_owned()],
        ..Default::default()
    };
    let other = jetstream.create_stream(other).await?;
    let mut written = 0;
    while jetstream.publish("other", vec![7; 256 << 10].into()).await?.await.is_ok() {
        written += 1;
        ensure!(written < 100, "the server has no end");
    }
    ensure!(!engine.takes_frames(PARTITION).await);
    for _ in 0..2 {
        let refused = engine.append(&mut claim, frame(3)).await;
        ensure!(
            matches!(&refused, Err(AppendError::Refused(reason)) if reason.contains("make room")),
            "{refused:?}"
        );
    }
    ensure!(read(&engine, 1).await == [frame(1), frame(2)]);
    other.purge().await?;
    ensure!(
        engine.takes_frames(PARTITION).await && read(&engine, 1).await.len() == 2,
        "asking wrote something"
    );
    append(&engine, &mut claim, frame(4)).await?;
    ensure!(read(&engine, 1).await == [frame(1), frame(2), frame(4)]);
    Ok(())
}

/// A newer Tidegate was here: an older one does not write behind it.
#[tokio::test]
async fn nats_frames_of_the_future_are_left_alone() -> Result<()> {
    let server = NatsServer::start().await?;
    let engine = connect(&server, 1).await?;
    engine.claim(PARTITION, &NodeId::new("a")).await?;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    jetstream.publish("tidegate-test.log.0", b"TG\x02whatever".as_slice().into()).await?.await?;
    let refused = engine.claim(PARTITION, &NodeId::new("a")).await;
    ensure!(
        matches!(&refused, Err(ClaimError::Damaged { reason, .. }) if reason.contains("upgrade")),
        "{refused:?}"
    );
    Ok(())
}
