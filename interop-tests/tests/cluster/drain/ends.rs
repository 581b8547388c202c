//! A process ends, or another takes its place: its clients are moved first.

use anyhow::{Context as _, Result, ensure};
use tidegate_interop_tests::cluster::ClusterSpec;
use tidegate_interop_tests::raw::Carrier;
use tidegate_interop_tests::wait::until;

use super::super::real::presence::Person;
use super::super::watch::Watch;
use super::{Load, ROOM, connections, crowd, have_all, spec, start};

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_moves_everybody_to_the_other_edge() -> Result<()> {
    let mut cluster = start(spec(2)).await?;
    let to = cluster.edges.pop().context("an edge")?;
    let mut from = cluster.edges.pop().context("an edge")?;
    let mut watcher = Person::join(&to, Carrier::WebSocket, Some("kim"), ROOM, true).await?;
    watcher.hears(&["+kim"]).await?;
    let mut crowd = crowd(&from).await?;
    let count = crowd.len();
    let watch = Watch::begin(watcher, count).await?;
    let load = Load::of(&mut crowd, &to);
    ensure!(from.terminate().await?.success(), "{}", from.log());
    until("all of them at the other edge", || async {
        let there = connections(&to).await?;
        ensure!(there == count as f64 + 1.0, "{there}");
        Ok(())
    })
    .await?;
    let published = load.end().await?;
    have_all(&mut crowd, published).await?;
    // Nobody lost a connection before the next was there, or was seen to go.
    watch.end(&to, ROOM).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_taken_over_from_moves_its_clients_to_the_next() -> Result<()> {
    let spec = spec(1);
    let config = format!("{}[node]\nhandover = \"handover\"\n", spec.config);
    let mut cluster = start(ClusterSpec { config, ..spec }).await?;
    let mut edge = cluster.edges.pop().context("an edge")?;
    let mut crowd = crowd(&edge).await?;
    let load = Load::of(&mut crowd, &edge);
    let before = edge.pid()?;
    let mut leaving = edge.take_over().await?;
    ensure!(edge.pid()? != before);
    ensure!(leaving.ended().await?.success(), "it did not end in order");
    let there = connections(&edge).await?;
    ensure!(there == crowd.len() as f64, "{there} at the new process");
    let published = load.end().await?;
    have_all(&mut crowd, published).await
}
