//! Core nodes over one NATS server: two of them in this process, each with a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tidegate_core::engine::conformance::Setup as _;
use tidegate_core::engine::{Engine, NatsConfig, NatsEngine};
use tidegate_core::node::conformance::{
    PARTITIONS, a_node_crashes_and_the_others_go_on_from_its_last_acknowledgement,
    a_node_that_is_cut_off_stops_answering_before_others_take_over,
    one_node_after_the_other_joins_and_leaves_and_no_publish_is_refused,
    snapshots_keep_what_the_log_has_dropped, what_was_acknowledged_outlives_the_node,
};
use tidegate_interop_tests::nats::NatsServer;

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
