//! What happens to clients on the move, and how long it takes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tidegate_client::{LadderConfig, Transport};
use tidegate_transport::clock;

use super::stage::{Follower, INTERVAL, Stage};
use crate::bench::unix_us;

const LADDER: [Transport; 2] = [Transport::Quic, Transport::WebSocket];

/// What a scenario measured: durations, and connections that were lost meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// How long it took, each time.
    pub times: Vec<Duration>,
    /// Connections that ended without another to go on with.
    pub losses: u32,
}

/// Time to a connected client over WebSocket alone.
pub(super) async fn websocket_alone(stage: Stage, rounds: u32) -> Result<Measured> {
    let mut measured = Measured::default();
    for _ in 0..rounds {
        measured.times.push(connect(stage.client(&[Transport::WebSocket])).await?.0);
    }
    Ok(measured)
}

/// The same with QUIC first on a network that lets no UDP through, by a client that was never here.
pub(super) async fn blocked(stage: Stage, rounds: u32) -> Result<Measured> {
    stage.control.block_udp(true);
    let mut measured = Measured::default();
    for _ in 0..rounds {
        let (time, transport) = connect(stage.client(&LADDER)).await?;
        ensure!(transport == Some(Transport::WebSocket), "connected by {transport:?}");
        measured.times.push(time);
    }
    Ok(measured)
}

/// The same by a client that remembers it.
pub(super) async fn remembered(stage: Stage, rounds: u32) -> Result<Measured> {
    stage.control.block_udp(true);
    let first = stage.client(&LADDER).connect().await?;
    let memory = first.ladder_memory().await?;
    first.close().await;
    let mut measured = Measured::default();
    for _ in 0..rounds {
        let builder = stage.client(&LADDER).with_ladder_memory(memory.clone());
        let (time, transport) = connect(builder).await?;
        ensure!(transport == Some(Transport::WebSocket), "connected by {transport:?}");
        measured.times.push(time);
    }
    Ok(measured)
}

/// UDP goes dark after the connection was made: the longest time without a delivery until it goes on over WebSocket. Then
/// UDP comes back: the longest one until it is on QUIC again.
pub(super) async fn black_hole(stage: Stage, rounds: u32) -> Result<(Measured, Measured)> {
    let (mut away, mut back) = (Measured::default(), Measured::default());
    for _ in 0..rounds {
        // The climb begins after a minute by default; what is measured is how it goes.
        let quick = LadderConfig { climb_base: Duration::from_secs(2), ..LadderConfig::default() };
        let mut follower = Follower::start(stage.client(&LADDER).with_ladder(quick)).await?;
        ensure!(follower.transport() == Some(Transport::Quic), "not on QUIC at first");
        follower.run(SETTLED).await?;
        let dark = unix_us();
        stage.control.black_hole_udp();
        follower
            .until("the move to WebSocket", |follower| {
                follower.transport() == Some(Transport::WebSocket)
                    && follower.sent_between(dark, u64::MAX).count() > 20
            })
            .await?;
        away.times.push(follower.longest_gap(dark));
        let light = unix_us();
        stage.control.block_udp(false);
        follower
            .until("the way back to QUIC", |follower| {
                follower.transport() == Some(Transport::Quic)
                    && follower.sent_between(light, u64::MAX).count() > 20
            })
            .await?;
        follower.run(SETTLED).await?;
        back.times.push(follower.longest_gap(light));
        back.losses += follower.losses;
        follower.client.close().await;
    }
    Ok((away, back))
}

/// The NAT forgets the client: for each time, how much longer than usual the publications around it took, at worst.
pub(super) async fn rebindings(stage: Stage, rounds: u32, one_way: Duration) -> Result<Measured> {
    let mut follower = Follower::start(stage.client(&[Transport::Quic])).await?;
    follower.run(SETTLED).await?;
    let mut measured = Measured::default();
    for round in 0..rounds {
        // At another place between two publications each time.
        let into = INTERVAL.mul_f64(f64::from(round % 10) / 10.0);
        follower.run(Duration::from_millis(500) + into).await?;
        let at = unix_us();
        stage.control.rebind_nat_udp();
        follower.run(Duration::from_secs(1)).await?;
        let late = follower.sent_between(at.saturating_sub(LOOK_BACK_US), at + LOOK_AHEAD_US);
        let worst = late.map(|delivery| delivery.latency().saturating_sub(one_way)).max();
        measured.times.push(worst.unwrap_or_default());
    }
    measured.losses = follower.losses;
    Ok(measured)
}

/// Nothing passes for a while, either way: how long after its end the stream is up to date again.
pub(super) async fn outage(stage: Stage, rounds: u32, length: Duration) -> Result<Measured> {
    let mut follower = Follower::start(stage.client(&LADDER)).await?;
    let mut measured = Measured::default();
    for _ in 0..rounds {
        follower.run(SETTLED).await?;
        stage.control.outage(length);
        let end = unix_us() + u64::try_from(length.as_micros())?;
        follower
            .until("the end of the outage", |follower| follower.sent_between(end, u64::MAX).next().is_some())
            .await?;
        let arrived = follower.sent_between(end, u64::MAX).next().map_or(end, |delivery| delivery.arrived_us);
        measured.times.push(Duration::from_micros(arrived - end));
        ensure!(follower.transport() == Some(Transport::Quic), "it left QUIC");
    }
    measured.losses = follower.losses;
    Ok(measured)
}

/// The client's public address becomes another one and the app says so: the longest time without a delivery.
pub(super) async fn address_changes(stage: Stage, rounds: u32) -> Result<Measured> {
    let mut follower = Follower::start(stage.client(&LADDER)).await?;
    let mut measured = Measured::default();
    for _ in 0..rounds {
        follower.run(SETTLED).await?;
        let at = unix_us();
        stage.control.change_address();
        follower.client.network_changed().await;
        follower.run(Duration::from_secs(2)).await?;
        measured.times.push(follower.longest_gap(at));
        ensure!(follower.transport() == Some(Transport::Quic), "it left QUIC");
    }
    measured.losses = follower.losses;
    Ok(measured)
}

async fn connect(builder: tidegate_client::Builder) -> Result<(Duration, Option<Transport>)> {
    let begun: Instant = clock::now();
    let client = builder.connect().await?;
    let time = clock::now().duration_since(begun);
    let transport = client.transport();
    client.close().await;
    Ok((time, transport))
}

/// Slow start is over, round trips are measured.
const SETTLED: Duration = Duration::from_secs(2);
/// Publications that may have been under way when it happened, and those that it can have delayed.
const LOOK_BACK_US: u64 = 500_000;
const LOOK_AHEAD_US: u64 = 900_000;
