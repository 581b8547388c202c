//! The engine of a cluster against real NATS servers: the suite that every engine passes, and what only servers can do
//! to it.

mod cluster;
mod losses;
mod nodes;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use tidegate_core::engine::conformance::{self, PARTITIONS, Setup};
use tidegate_core::engine::{
    AppendError, Claim, ClaimError, Engine, LogPosition, NatsConfig, NatsEngine, NatsError, PartitionId,
};
use tidegate_interop_tests::nats::NatsServer;
use tidegate_interop_tests::wait::until;
use tidegate_protocol::NodeId;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

#[tokio::test]
async fn nats_conforms() -> Result<()> {
    let server = NatsServer::start().await?;
    conformance::run(&mut OneServer::new(server, None).await?).await;
    Ok(())
}

#[tokio::test]
async fn nats_conforms_where_old_frames_are_dropped() -> Result<()> {
    let server = NatsServer::start().await?;
    conformance::run(&mut OneServer::new(server, Some(4 << 20)).await?).await;
    Ok(())
}

/// A writer that pipelined, expecting 11, 12, 13 .., would have all but the first let in behind a claim. With one in
/// flight there is only the first; and what arrives late, behind what the new owner wrote, is rejected as well.
#[tokio::test]
async fn nats_lets_no_zombie_write_behind_a_claim() -> Result<()> {
    let server = NatsServer::start().await?;
    let (old, new) = (connect(&server, 1).await?, connect(&server, 1).await?);
    let mut zombie = old.claim(PARTITION, &NodeId::new("old")).await?;
    for n in 1..=10 {
        old.append(&mut zombie, frame(n)).await?;
    }
    let mut owner = new.claim(PARTITION, &NodeId::new("new")).await?;
    ensure!(owner.tail() == LogPosition(10) && owner.epoch() == zombie.epoch(), "{owner:?}");
    for n in 11..=30 {
        let refused = old.append(&mut zombie, frame(n)).await;
        ensure!(refused == Err(AppendError::Fenced), "{refused:?}");
        new.append(&mut owner, frame(100 + n)).await?;
    }
    // What the zombie would have sent without waiting for answers: the claim stands behind 11.
    let raw = async_nats::connect(server.url()).await?;
    for expected in 11..=31_u64 {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Expected-Last-Sequence", expected.to_string());
        let request = async_nats::Request::new().headers(headers).payload("zombie".into());
        let answer = raw.send_request("tidegate-test.log.0", request).await?;
        ensure!(String::from_utf8_lossy(&answer.payload).contains("10071"), "{expected}: {answer:?}");
    }
    let read = read(&new, 1).await;
    let written: Vec<_> = (1..=10).chain(111..=130).map(frame).collect();
    ensure!(read == written, "{} frames", read.len());
    Ok(())
}

/// The server goes away under an append: its outcome is unknown until it is sent again, and it is stored once.
#[tokio::test]
async fn nats_outages_are_told_and_end() -> Result<()> {
    let mut server = NatsServer::start().await?;
    let engine = connect(&server, 1).await?;
    let mut claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
    engine.append(&mut claim, frame(1)).await?;
    server.pause().await?;
    let unknown = engine.append(&mut claim, frame(2)).await;
    ensure!(matches!(unknown, Err(AppendError::Unavailable(_))), "{unknown:?}");
    ensure!(engine.replay(PARTITION, LogPosition(1)).await.is_err());
    ensure!(engine.watch().await.is_err());
    let claimed = engine.claim(PARTITION, &NodeId::new("b")).await;
    ensure!(matches!(claimed, Err(ClaimError::Unavailable(_))), "{claimed:?}");
    server.resume()?;
    // The claim that was not answered may have been made: then this is its zombie.
    let mut claim = engine.claim(PARTITION, &NodeId::new("a")).await?;
    let tail = claim.tail().0;
    ensure!(tail == 1 || tail == 2, "{claim:?}");
    server.kill().await?;
    server.restart().await?;
    append(&engine, &mut claim, frame(9)).await?;
    let read = read(&engine, 1).await;
    ensure!(read.len() as u64 == tail + 1 && read.last() == Some(&frame(9)), "{read:?}");
    Ok(())
}

#[tokio::test]
async fn nats_servers_that_do_not_fit_are_refused_with_advice() -> Result<()> {
    let server = NatsServer::start().await?;
    drop(connect(&server, 4).await?);
    let error = connect(&server, 8).await.err().context("another number of partitions was taken")?;
    let text = error.to_string();
    ensure!(text.contains("4 partitions") && text.contains('8'), "{text}");

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let old = NatsConfig { servers: vec![format!("nats://{address}")], ..config(&server) };
    let refused = tokio::select! {
        refused = NatsEngine::connect(old, 4) => refused,
        served = server_of_version(listener, "2.9.10") => return served,
    };
    let error = refused.err().context("an old server was taken")?;
    ensure!(matches!(&error, NatsError::TooOld { found, .. } if found == "2.9.10"), "{error}");
    ensure!(error.to_string().contains("2.11"), "{error}");

    // One of several, which the client would come to later.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let servers = vec![server.url(), format!("nats://{}", listener.local_addr()?)];
    let mixed = NatsConfig { servers, ..config(&server) };
    let refused = tokio::select! {
        refused = NatsEngine::connect(mixed, 4) => refused,
        served = server_of_version(listener, "2.10.29") => return served,
    };
    let error = refused.err().context("an old server among others was taken")?;
    ensure!(matches!(&error, NatsError::TooOld { found, .. } if found == "2.10.29"), "{error}");

    let nobody = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let servers = vec![format!("nats://{nobody}")];
    let absent = NatsConfig { servers, connect_timeout: Duration::from_secs(1), ..config(&server) };
    let error = NatsEngine::connect(absent, 4).await.err().context("nobody listens")?;
    ensure!(matches!(&error, NatsError::Connect { .. }), "{error}");
    Ok(())
}

/// One that is too old comes up once another one is gone: nothing is begun there.
#[tokio::test]
async fn nats_servers_that_are_too_old_are_left_again() -> Result<()> {
    let mut server = NatsServer::start().await?;
    let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let servers = vec![server.url(), format!("nats://{address}")];
    let engine = NatsEngine::connect(NatsConfig { servers, ..config(&server) }, 1).await?;
    server.kill().await?;
    let listener = TcpListener::bind(address).await?;
    let refused = until("a refusal", || async {
        let refused = engine.watch().await.err().context("an old server was taken")?.to_string();
        ensure!(refused.contains("2.9.10"), "{refused}");
        Ok(())
    });
    tokio::select! {
        refused = refused => refused?,
        served = server_of_version(listener, "2.9.10") => return served,
    }
    server.restart().await?;
    until("a watch", || async { Ok(engine.watch().await?) }).await?;
    Ok(())
}

/// Greets as NATS does, and knows no more than ping.
async fn server_of_version(listener: TcpListener, version: &'static str) -> Result<()> {
    loop {
        let (mut socket, _) = listener.accept().await?;
        let info = serde_json::json!({
            "server_id": "OLD", "server_name": "old", "version": version, "proto": 1, "headers": true,
            "host": "127.0.0.1", "port": listener.local_addr()?.port(), "max_payload": 1_048_576, "jetstream": true,
        });
        socket.write_all(format!("INFO {info}\r\n").as_bytes()).await?;
        let (reader, mut writer) = socket.split();
        let mut lines = BufReader::new(reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with("PING") && writer.write_all(b"PONG\r\n").await.is_err() {
                break;
            }
        }
    }
}

/// What the suite runs on.
struct OneServer {
    server: NatsServer,
    retained: Option<usize>,
    handles: [Arc<NatsEngine>; 2],
}

impl OneServer {
    async fn new(server: NatsServer, retained: Option<usize>) -> Result<Self> {
        let handles = Self::handles(&server, retained).await?;
        Ok(Self { server, retained, handles })
    }

    async fn handles(server: &NatsServer, retained: Option<usize>) -> Result<[Arc<NatsEngine>; 2]> {
        let mut config = config(server);
        if let Some(bytes) = retained {
            config.retain_bytes = bytes as u64;
        }
        let connect =
            async || Ok::<_, NatsError>(Arc::new(NatsEngine::connect(config.clone(), PARTITIONS).await?));
        Ok([connect().await?, connect().await?])
    }
}

impl Setup for OneServer {
    fn engine(&self) -> Arc<dyn Engine> {
        self.handles[0].clone()
    }

    fn second(&self) -> Arc<dyn Engine> {
        self.handles[1].clone()
    }

    async fn reopen(&mut self) {
        self.server.kill().await.expect("it ran");
        self.server.restart().await.expect("it runs again");
        self.handles = Self::handles(&self.server, self.retained).await.expect("connected");
    }

    async fn lose_tail(&mut self, partition: PartitionId, keep: LogPosition) -> bool {
        lose_tail(&self.server, partition, keep).await.expect("the stream is made anew");
        self.handles = Self::handles(&self.server, self.retained).await.expect("connected");
        true
    }

    fn retained(&self) -> Option<usize> {
        self.retained
    }
}

/// Makes a partition's stream anew with its first messages: a claim, and one per frame.
async fn lose_tail(server: &NatsServer, partition: PartitionId, keep: LogPosition) -> Result<()> {
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    let name = format!("tidegate-test-log-{}", partition.0);
    let old = jetstream.get_stream(&name).await?;
    let mut kept = Vec::new();
    for sequence in 1..=keep.0 + 1 {
        kept.push(old.get_raw_message(sequence).await?.payload);
    }
    let config: stream::Config = old.cached_info().config.clone();
    jetstream.delete_stream(&name).await?;
    jetstream.create_stream(config).await?;
    for message in kept {
        jetstream.publish(format!("tidegate-test.log.{}", partition.0), message).await?.await?;
    }
    Ok(())
}

fn config(server: &NatsServer) -> NatsConfig {
    NatsConfig {
        servers: vec![server.url()],
        region: "test".to_owned(),
        replicas: 1,
        // The servers set it aside for each stream, and test machines have small disks.
        retain_bytes: 64 << 20,
        ..NatsConfig::default()
    }
}

async fn connect(server: &NatsServer, partitions: u16) -> Result<NatsEngine, NatsError> {
    NatsEngine::connect(config(server), partitions).await
}

/// As an owner does: the same bytes until the outcome is known.
async fn append(engine: &NatsEngine, claim: &mut Claim, frame: Bytes) -> Result<LogPosition> {
    loop {
        match engine.append(claim, frame.clone()).await {
            Err(AppendError::Unavailable(_)) => {}
            outcome => return Ok(outcome?),
        }
    }
}

/// All of the log from `from` on.
async fn read(engine: &NatsEngine, from: u64) -> Vec<Bytes> {
    let (mut next, mut frames) = (LogPosition(from), Vec::new());
    loop {
        // The servers may be electing still.
        let page = until("a page of the log", || async { Ok(engine.replay(PARTITION, next).await?) });
        let page = page.await.expect("readable");
        if page.is_empty() {
            return frames;
        }
        for (position, frame) in page {
            assert_eq!(position, next);
            next = next.next();
            frames.push(frame);
        }
    }
}

fn frame(n: u64) -> Bytes {
    format!("frame {n}").into()
}

const PARTITION: PartitionId = PartitionId(0);
