//! Core nodes over one NATS server: two of them in this process, each with a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_nats::jetstream;
use tidegate_core::engine::conformance::Setup as _;
use tidegate_core::engine::{Engine, NatsConfig, NatsEngine};
use tidegate_core::node::conformance::{
    PARTITIONS, a_full_engine_refuses_what_it_cannot_keep_and_goes_on,
    a_log_that_was_deleted_is_told_and_begun_anew,
    a_node_crashes_and_the_others_go_on_from_its_last_acknowledgement,
    a_node_that_is_cut_off_stops_answering_before_others_take_over,
    one_node_after_the_other_joins_and_leaves_and_no_publish_is_refused,
    snapshots_keep_what_the_log_has_dropped, what_was_acknowledged_outlives_the_node,
};
use tidegate_interop_tests::nats::{NatsCluster, NatsServer};

use super::{OneServer, config};

#[tokio::test(flavor = "multi_thread")]
async fn nats_nodes_come_and_go() -> Result<()> {
    let server = NatsServer::start().await?;
    let engines = async |prefix| engines(&server, prefix).await;
    one_node_after_the_other_joins_and_leaves_and_no_publish_is_refused(engines("planned").await?).await;
    a_node_crashes_and_the_others_go_on_from_its_last_acknowledgement(engines("crash").await?).await;
    a_node_that_is_cut_off_stops_answering_before_others_take_over(engines("zombie").await?).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_keeps_what_outlives_a_node() -> Result<()> {
    let mut setup = OneServer::new(NatsServer::start().await?, None).await?;
    what_was_acknowledged_outlives_the_node(&mut setup).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_snapshots_keep_what_the_log_has_dropped() -> Result<()> {
    let setup = OneServer::new(NatsServer::start().await?, Some(4 << 20)).await?;
    snapshots_keep_what_the_log_has_dropped(&setup.engine(), &setup.second(), 30_000).await;
    Ok(())
}

/// Somebody else's data fills the account.
#[tokio::test(flavor = "multi_thread")]
async fn nats_nodes_without_room_refuse_publishes_and_go_on() -> Result<()> {
    let mut server = NatsServer::start().await?;
    server.restart_with_account(ROOM).await?;
    fill_and_free(&server, engines(&server, "full").await?, 1).await
}

/// Replicas look at limits in another order.
#[tokio::test(flavor = "multi_thread")]
async fn nats_nodes_without_room_on_three_servers_refuse_publishes_and_go_on() -> Result<()> {
    let mut cluster = NatsCluster::start().await?;
    for server in &mut cluster.servers {
        server.restart_with_account(3 * ROOM).await?;
    }
    let first = &cluster.servers[0];
    let config = NatsConfig {
        servers: cluster.urls(),
        replicas: 3,
        lease: Duration::from_secs(2),
        retain_bytes: 4 << 20,
        connect_timeout: Duration::from_secs(25),
        ..config(first)
    };
    let mut handles = Vec::<Arc<dyn Engine>>::new();
    for _ in 0..2 {
        handles.push(Arc::new(NatsEngine::connect(config.clone(), PARTITIONS).await?));
    }
    fill_and_free(first, handles, 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_nodes_go_on_in_another_epoch_where_a_log_was_deleted() -> Result<()> {
    let server = NatsServer::start().await?;
    let engines = engines(&server, "deleted").await?;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    let delete = async |partition| {
        jetstream.delete_stream(format!("deleted-test-log-{partition}")).await.expect("deleted");
    };
    a_log_that_was_deleted_is_told_and_begun_anew(engines, delete).await;
    Ok(())
}

async fn fill_and_free(server: &NatsServer, engines: Vec<Arc<dyn Engine>>, replicas: usize) -> Result<()> {
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    let other = jetstream::stream::Config {
        name: "other".to_owned(),
        subjects: vec!["other".to_owned()],
        num_replicas: replicas,
        ..Default::default()
    };
    let other = jetstream.create_stream(other).await?;
    let fill = async || {
        for size in [256 << 10, 1 << 10, 1] {
            let mut written = 0;
            while jetstream.publish("other", vec![7; size].into()).await.expect("sent").await.is_ok() {
                written += 1;
                assert!(written < 1_000, "the server has no end");
            }
        }
    };
    let free = async || {
        other.purge().await.expect("purged");
    };
    a_full_engine_refuses_what_it_cannot_keep_and_goes_on(engines, fill, free).await;
    Ok(())
}

/// For logs of all partitions, and somebody else's data.
const ROOM: u64 = 96 << 20;

/// Two handles on logs of their own.
async fn engines(server: &NatsServer, prefix: &str) -> Result<Vec<Arc<dyn Engine>>> {
    let config = NatsConfig {
        prefix: prefix.to_owned(),
        lease: Duration::from_secs(2),
        retain_bytes: 4 << 20,
        ..config(server)
    };
    let mut handles = Vec::<Arc<dyn Engine>>::new();
    for _ in 0..2 {
        handles.push(Arc::new(NatsEngine::connect(config.clone(), PARTITIONS).await?));
    }
    Ok(handles)
}
