//! Who is there, seen over two edges in two regions, while cores and edges die.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec};
use tidegate_interop_tests::raw::Carrier;
use tidegate_interop_tests::wait::until;
use tidegate_protocol::ChannelName;
use tidegate_protocol::placement::partition_of;
use tidegate_transport::clock;

use super::real::presence::{CONFIG, Person, listed, presence};

const ROOM: &str = "room:1";

fn spec() -> ClusterSpec {
    ClusterSpec {
        partitions: 4,
        config: CONFIG.to_owned(),
        settings: vec!["core.presence_grace=3s".to_owned()],
        ..ClusterSpec::default()
    }
}

/// Reads until somebody was told that joins or leaves were missed, and of nobody's.
async fn hears_of_a_gap(person: &mut Person) -> Result<()> {
    while person.gaps == 0 {
        person.hear().await?;
    }
    ensure!(person.told.is_empty(), "told of {:?}", person.told);
    Ok(())
}

/// Kills the core that has the channel; its place in the cluster.
async fn kill_owner(cluster: &mut Cluster, channel: &str) -> Result<String> {
    let owners = cluster.owners().await?;
    let partition = partition_of(&ChannelName::new(channel)?, u16::try_from(owners.len())?);
    let owner = owners[usize::from(partition)].clone().context("somebody owns it")?;
    cluster.core(&owner)?.kill().await?;
    Ok(owner)
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_two_edges_are_one_room_and_survive_its_owner() -> Result<()> {
    let mut cluster = Cluster::start(spec()).await?;
    let [eu, us] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    let mut ann = Person::join(eu, Carrier::Quic, Some("ann"), ROOM, true).await?;
    ann.hears(&["+ann"]).await?;
    let mut kim = Person::join(us, Carrier::WebSocket, Some("kim"), ROOM, true).await?;
    ann.hears(&["+kim"]).await?;
    kim.hears(&["+kim"]).await?;
    // Per user: a second session, at another edge, is no news; nor is the end of one of two.
    let second = Person::join(us, Carrier::LongPoll, Some("ann"), ROOM, false).await?;
    let bo = Person::join(us, Carrier::WebSocket, Some("bo"), ROOM, false).await?;
    let cy = Person::join(eu, Carrier::WebSocket, Some("cy"), ROOM, false).await?;
    for watcher in [&mut ann, &mut kim] {
        watcher.hears(&["+bo", "+cy"]).await?;
    }
    let all = presence(ROOM, &[("ann", 2), ("bo", 1), ("cy", 1), ("kim", 1)], 5);
    for edge in [eu, us] {
        ensure!(listed(edge, ROOM).await? == all, "{}", listed(edge, ROOM).await?);
    }
    ensure!(ann.list(ROOM).await? == all && kim.list(ROOM).await? == all);

    // Its owner dies, and somebody leaves before there is another.
    (ann.gaps, kim.gaps) = (0, 0);
    let dead = kill_owner(&mut cluster, ROOM).await?;
    let [eu, us] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    bo.leave().await?;
    let left = presence(ROOM, &[("ann", 2), ("cy", 1), ("kim", 1)], 4);
    until("the next owner lists", || async {
        let listed = listed(us, ROOM).await?;
        if listed["error"].is_null() {
            // Whoever is listed is listed with all others: never a part of them.
            ensure!(listed == left, "{listed}");
        }
        ensure!(listed == left, "{listed}");
        Ok(())
    })
    .await?;
    // Nobody came or went, as far as anybody was told. But that something was missed is told: bo has left.
    for watcher in [&mut ann, &mut kim] {
        hears_of_a_gap(watcher).await?;
        let listed = watcher.list(ROOM).await?;
        ensure!(listed == left, "{listed}");
    }
    let dee = Person::join(eu, Carrier::WebSocket, Some("dee"), ROOM, false).await?;
    for watcher in [&mut ann, &mut kim] {
        watcher.hears(&["+dee"]).await?;
    }
    second.leave().await?;
    cy.leave().await?;
    dee.leave().await?;
    for watcher in [&mut ann, &mut kim] {
        watcher.hears(&["-cy", "-dee"]).await?;
    }
    cluster.core(&dead)?.start_again().await
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_an_edge_that_died_leave_after_a_grace() -> Result<()> {
    let mut cluster = Cluster::start(spec()).await?;
    let [eu, us] = &cluster.edges[..] else { anyhow::bail!("two edges") };
    let mut ann = Person::join(eu, Carrier::Quic, Some("ann"), ROOM, true).await?;
    ann.hears(&["+ann"]).await?;
    let both = [
        Person::join(eu, Carrier::WebSocket, Some("bo"), ROOM, false).await?,
        Person::join(us, Carrier::WebSocket, Some("bo"), ROOM, false).await?,
    ];
    let cy = Person::join(us, Carrier::WebSocket, Some("cy"), ROOM, false).await?;
    ann.hears(&["+bo", "+cy"]).await?;
    // Exact up to the bound, and counted beyond it, whichever edge they are at.
    let mut crowd = Vec::new();
    for n in 0..6 {
        let edge = [eu, us][n % 2];
        let user = format!("user-{n}");
        crowd.push(Person::join(edge, Carrier::WebSocket, Some(&user), "room:crowd", false).await?);
    }
    for edge in [eu, us] {
        let listed = until("all of them", || async {
            let listed = listed(edge, "room:crowd").await?;
            ensure!(listed["sessions"] == 6, "{listed}");
            Ok(listed)
        })
        .await?;
        let counts = (&listed["users_total"], &listed["exact"], listed["users"].as_array().map(Vec::len));
        ensure!(counts == (&json!(6), &json!(false), Some(4)), "{listed}");
    }

    let killed = clock::now();
    cluster.edges[1].kill().await?;
    ann.hears(&["-cy"]).await?;
    let after = clock::now() - killed;
    ensure!(after >= Duration::from_secs(3), "they may come back: {after:?}");
    let eu = &cluster.edges[0];
    ensure!(ann.list(ROOM).await? == presence(ROOM, &[("ann", 1), ("bo", 1)], 2));
    until("those of the other edge", || async {
        let listed = listed(eu, "room:crowd").await?;
        ensure!(listed["sessions"] == 3 && listed["users_total"] == 3, "{listed}");
        Ok(())
    })
    .await?;
    drop((both, cy, crowd));
    ann.hears(&["-bo"]).await
}
