//! What is published anywhere comes out everywhere.

use anyhow::{Result, ensure};
use serde_json::json;
use tidegate_interop_tests::clients::{Collector, Payload, from_heads, native};
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec};
use tidegate_interop_tests::wait::until;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_on_either_edge_reaches_subscribers_of_both_in_one_order() -> Result<()> {
    const ROUNDS: usize = 20;
    let cluster = Cluster::start(ClusterSpec::default()).await?;
    let channels: Vec<String> = (0..16).map(|n| format!("room:{n}")).collect();
    let wishes = from_heads(&channels);
    let mut collectors = Vec::new();
    for edge in &cluster.edges {
        for scheme in ["quic", "wss", "https"] {
            collectors.push(Collector::begin(native(edge, scheme, None, &wishes).await?, &wishes).await?);
        }
    }
    for round in 0..ROUNDS {
        for (index, edge) in cluster.edges.iter().enumerate() {
            for channel in &channels {
                edge.publish(channel, json!({ "round": round, "edge": index })).await?;
            }
        }
    }
    for collector in &mut collectors {
        collector.collect(channels.len() * ROUNDS * cluster.edges.len()).await?;
    }
    let expected: Vec<_> = (0..ROUNDS)
        .flat_map(|round| [0, 1].map(|edge| Payload::Json(json!({ "round": round, "edge": edge }))))
        .collect();
    for collector in &collectors {
        for channel in &channels {
            let payloads: Vec<_> = collector.received[channel].iter().map(|(_, payload)| payload).collect();
            ensure!(payloads.iter().copied().eq(&expected), "{}: {channel}: {payloads:?}", collector.name());
        }
    }
    until("both cores have a part in it", || async {
        let mut owners: Vec<_> = cluster.owners().await?.into_iter().flatten().collect();
        owners.sort_unstable();
        owners.dedup();
        ensure!(owners == ["core-1", "core-2"], "{owners:?}");
        Ok(())
    })
    .await
}
