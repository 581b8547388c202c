//! Nothing is lost, doubled or disordered while processes die, stop, and cannot reach each other.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidegate_client::{Client, Epoch, Offset, Position};
use tidegate_interop_tests::checker::{Bounds, Load, Recorder};
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec};
use tidegate_interop_tests::faults::{FaultKind, Plan, hand_everything_over, run};
use tidegate_interop_tests::wait;

/// One round of each kind. `cargo xtask bench faults` has more of them, and longer ones.
#[tokio::test(flavor = "multi_thread")]
async fn one_round_of_each_fault_loses_doubles_and_disorders_nothing() -> Result<()> {
    let plan = Plan {
        rounds: FaultKind::ALL.len() as u32,
        seed: 1,
        channels: 48,
        rate: 80.0,
        partitions: 6,
        quick: true,
        ..Plan::default()
    };
    let rounds =
        run(&plan, |round| println!("{}: {:?} {:?}", round.what, round.took, round.violations)).await?;
    ensure!(rounds.len() == FaultKind::ALL.len(), "broken off after {}", rounds.len());
    for round in &rounds {
        ensure!(round.violations.is_empty(), "seed {}, {}: {:#?}", round.seed, round.what, round.violations);
        ensure!(round.acknowledged > 0 && round.acknowledged == round.published, "{round:?}");
        ensure!(round.resumed_ms.len() == 2 * plan.channels, "{round:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_partition_is_handed_over_under_load_and_no_publish_is_refused() -> Result<()> {
    let handed = hand_everything_over(6, 120.0, 1).await?;
    println!("{} moves, {} publishes, gaps {:?} ms", handed.moves.len(), handed.published, handed.gaps_ms);
    ensure!(handed.violations.is_empty(), "{:#?}", handed.violations);
    ensure!(handed.refusals == 0, "{} of {} publishes were refused", handed.refusals, handed.published);
    Ok(())
}

/// A core whose engine forgets everything comes back behind edges that stay.
#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_ends_behind_an_edge_is_told_before_anything_of_the_next_one() -> Result<()> {
    let spec = ClusterSpec {
        nats: 0,
        engine: "memory",
        cores: 1,
        config: ROOMY.to_owned(),
        ..ClusterSpec::default()
    };
    let mut cluster = Cluster::start(spec).await?;
    let recorder = Recorder::new();
    let channels: Vec<String> = (0..6).map(|number| format!("room:{number}")).collect();
    let (mut clients, mut readers, mut writers) = (Vec::new(), Vec::new(), Vec::new());
    for (number, (edge, scheme)) in
        (0u32..).zip(cluster.edges.iter().flat_map(|edge| SCHEMES.map(|scheme| (edge, scheme))))
    {
        let client = Client::builder(edge.url(scheme)).with_ca_file(edge.ca_file()).connect().await?;
        let name = format!("{scheme} of {}", edge.addresses.quic);
        for (index, channel) in channels.iter().enumerate() {
            let beginning = Position::new(Epoch::default(), Offset(0));
            let asked = (index % 2 == 0).then_some(beginning);
            readers.push(recorder.subscribe(&name, &client, channel, asked).await?);
        }
        let load = Load { channels: channels.clone(), rate: 60.0, size: 100, in_flight: 50 };
        writers.push(recorder.publish(&name, number, &client, load));
        clients.push(client);
    }
    let acknowledged = async |more: u64| {
        let wanted = recorder.report(&BOUNDS).acknowledged + more;
        let so_many = || async {
            let now = recorder.report(&BOUNDS).acknowledged;
            ensure!(now >= wanted, "{now}");
            Ok(())
        };
        wait::until(format!("{wanted} acknowledgements"), so_many).await
    };
    acknowledged(200).await?;
    for is_told in [false, true] {
        let core = &mut cluster.cores[0];
        if is_told {
            core.terminate().await?;
        } else {
            core.kill().await?;
        }
        core.start_again().await?;
        acknowledged(200).await?;
    }
    for writer in writers {
        writer.stop(Duration::from_secs(60)).await?;
    }
    let late = recorder.settle(&clients[0], &channels, &readers).await?;
    let report = recorder.report(&BOUNDS).into_result()?;
    ensure!(late.is_empty(), "{late:?}");
    // Each channel began anew twice, and everybody was told, by a connection that lived through it.
    ensure!(report.epoch_changes == 2 * channels.len() as u64, "{report}");
    ensure!(report.rebased >= readers.len() as u64, "{report}");
    for client in &clients {
        ensure!(client.session().is_some(), "a session ended");
    }
    Ok(())
}

const SCHEMES: [&str; 3] = ["quic", "wss", "https"];
const ROOMY: &str = "[namespaces.default]\nhistory_count = 10000\nhistory_bytes = \"64MiB\"\n";
/// What the `memory` engine promises: a channel's keys are lost with its epoch.
const BOUNDS: Bounds = Bounds { kept: 10_000, keys_outlive_epochs: false };
