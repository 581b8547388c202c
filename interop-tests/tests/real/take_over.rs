//! A process takes over from the one before while clients come, stay and listen: nobody is refused, nothing is lost.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use serde_json::{Value, json};
use tidegate_interop_tests::clients::{Collector, Event, Subscriber, from_heads, native};
use tidegate_interop_tests::cluster::{Cluster, ClusterSpec, HOME};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::http::{dial, get, post, send};
use tidegate_interop_tests::wait::{PATIENCE, until, within};
use tidegate_transport::quic::{DialConfig, QuicDialer};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_is_taken_over_again_and_again_and_nobody_is_refused() -> Result<()> {
    let mut cluster = cluster().await?;
    let mut edge = cluster.edges.pop().context("an edge")?;
    let mut collectors = subscribers(&edge).await?;
    let load = Load::begin(&edge)?;
    let mut leaving = Vec::new();
    for round in 0..4 {
        load.goes_on().await?;
        leaving.push(edge.take_over().await?);
        // The second and the third begin while the process before still ends.
        if round != 0 && round != 1 {
            for mut leaving in leaving.drain(..) {
                ensure!(leaving.ended().await?.success(), "it did not end in order");
            }
        }
    }
    load.goes_on().await?;
    let published = load.end().await?;
    for collector in &mut collectors {
        collect(collector, published).await?;
    }
    // What each of the processes that left counted, and the one that serves: no packet of a connection went astray.
    let ends = logged(&edge, r#""message":"ended""#)?;
    ensure!(ends.len() == 4, "{ends:?}");
    for end in ends {
        ensure!(end["fields"]["workers"] == 0 && end["fields"]["processes"] == 0, "{end}");
    }
    // Everybody went by themselves, also those whose new connections do not lead to the process that they leave.
    for drained in logged(&edge, "the drain is over")? {
        let counts = drained["fields"]["counts"].as_str().context("counts")?;
        ensure!(counts.contains(" forced: 0,"), "{counts}");
    }
    let strays = edge.metrics().await?.get("tidegate_edge_quic_worker_strays_total").copied();
    ensure!(strays == Some(0.0), "packets went astray: {strays:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_crashes_while_it_leaves_is_missed_by_nobody() -> Result<()> {
    let mut cluster = cluster().await?;
    let mut edge = cluster.edges.pop().context("an edge")?;
    let mut collectors = subscribers(&edge).await?;
    let load = Load::begin_before_a_crash(&edge)?;
    load.goes_on().await?;
    edge.take_over().await?.kill().await?;
    load.goes_on().await?;
    // Everything of the one before is free for the next.
    ensure!(edge.take_over().await?.ended().await?.success(), "it did not end in order");
    load.goes_on().await?;
    let published = load.end().await?;
    for collector in &mut collectors {
        collect(collector, published).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_serve_takes_nothing_over() -> Result<()> {
    let mut cluster = cluster().await?;
    let mut edge = cluster.edges.pop().context("an edge")?;
    let load = Load::begin(&edge)?;
    load.goes_on().await?;
    let core = cluster.cores.first_mut().context("a core")?;
    core.pause().await?;
    // It waits for its cores, and is killed while it does.
    drop(edge.begin_to_take_over().await?);
    core.go_on()?;
    until("the first process goes on", || async {
        ensure!(!logged(&edge, "nobody took over")?.is_empty(), "not yet");
        Ok(())
    })
    .await?;
    load.goes_on().await?;
    load.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_channels_of_its_own_hands_over_its_store_as_well() -> Result<()> {
    let config = "[auth]\nanonymous = true\n[namespaces.default]\nsubscribe = \"anyone\"\npublish = \"anyone\"\n\
                  history_count = 100000\n[node]\nhandover = \"handover\"\n";
    let mut gateway = Gateway::serve_alone(config, &[]).await?;
    let mut collectors = subscribers(&gateway).await?;
    let load = Load::begin(&gateway)?;
    for _ in 0..2 {
        load.goes_on().await?;
        let mut leaving = gateway.take_over().await?;
        ensure!(leaving.ended().await?.success(), "it did not end in order");
    }
    load.goes_on().await?;
    let published = load.end().await?;
    for collector in &mut collectors {
        collect(collector, published).await?;
        ensure!(collector.rebased.is_empty(), "{} began anew", collector.name());
    }
    Ok(())
}

async fn cluster() -> Result<Cluster> {
    let config = "[node]\nhandover = \"handover\"\nworkers = 2\n[namespaces.default]\nhistory_count = 100000\n\
                  history_bytes = \"64MiB\"\n";
    let spec = ClusterSpec {
        nats: 0,
        engine: "memory",
        cores: 1,
        edges: vec![HOME],
        config: config.to_owned(),
        ..ClusterSpec::default()
    };
    Cluster::start(spec).await
}

type Collectors = Vec<Collector<Box<dyn Subscriber>>>;

async fn subscribers(gateway: &Gateway) -> Result<Collectors> {
    let wishes = from_heads(&[CHANNEL]);
    let mut collectors: Collectors = Vec::new();
    for scheme in ["quic", "quic", "quic", "quic", "wss", "https"] {
        let client: Box<dyn Subscriber> = Box::new(native(gateway, scheme, None, &wishes).await?);
        collectors.push(Collector::begin(client, &wishes).await?);
    }
    Ok(collectors)
}

/// All of them, each once, whatever happens to the connection meanwhile.
async fn collect(collector: &mut Collector<Box<dyn Subscriber>>, published: usize) -> Result<()> {
    while collector.count() < published {
        if let Event::Subscribed { recovered, .. } = collector.next().await? {
            ensure!(recovered, "{} began anew", collector.name());
        }
    }
    ensure!(collector.count() == published, "{} has more than was published", collector.name());
    Ok(())
}

/// Clients that come and go, and somebody who publishes, by every listener there is.
struct Load {
    stop: CancellationToken,
    tasks: JoinSet<Result<usize>>,
    done: tokio::sync::watch::Receiver<usize>,
}

impl Load {
    fn begin(gateway: &Gateway) -> Result<Self> {
        Self::with_tries(gateway, 1)
    }

    /// What the process that crashes was about to answer is asked for again, by everybody.
    fn begin_before_a_crash(gateway: &Gateway) -> Result<Self> {
        Self::with_tries(gateway, 2)
    }

    fn with_tries(gateway: &Gateway, tries: u32) -> Result<Self> {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let addresses = gateway.addresses;
        let (progress, done) = tokio::sync::watch::channel(0);

        let ended = stop.clone();
        tasks.spawn(async move {
            let mut published = 0;
            while !ended.is_cancelled() {
                // By its key a publication that is sent again is one.
                let body = json!({ "channel": CHANNEL, "data": published, "key": published.to_string() });
                let publish = || async {
                    let answer = send(addresses.api, None, post("/v1/publish", body.to_string())).await?;
                    ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
                    Ok(())
                };
                repeated(tries, publish).await?;
                published += 1;
                progress.send_replace(published);
                tokio::time::sleep(PACE).await;
            }
            Ok(published)
        });
        // TCP, with TLS and without.
        for (address, tls) in [(addresses.tls, Some(gateway.tls(&[b"http/1.1"]))), (addresses.plain, None)] {
            let ended = stop.clone();
            tasks.spawn(async move {
                while !ended.is_cancelled() {
                    let ask = || async {
                        within(PATIENCE, "a handshake", dial(address, tls.clone())).await??;
                        let answer = send(address, tls.clone(), get("/v1/nothing")).await?;
                        ensure!(answer.status == StatusCode::NOT_FOUND, "{}", answer.status);
                        Ok(())
                    };
                    repeated(tries, ask).await?;
                    tokio::time::sleep(PACE).await;
                }
                Ok(0)
            });
        }
        let ended = stop.clone();
        let tls = Arc::unwrap_or_clone(gateway.tls(&[b"tidegate/1"]));
        tasks.spawn(async move {
            let dialer = QuicDialer::new(tls, DialConfig::default())?;
            while !ended.is_cancelled() {
                let connect = || async {
                    let mut client = dialer.dial(addresses.quic, "localhost", false).await?;
                    Ok(client.established().await.map(drop)?)
                };
                repeated(tries, connect).await?;
                tokio::time::sleep(PACE).await;
            }
            Ok(0)
        });
        Ok(Self { stop, tasks, done })
    }

    /// Waits until some more was published.
    async fn goes_on(&self) -> Result<()> {
        let mut done = self.done.clone();
        let enough = *done.borrow() + SOME;
        let reached = done.wait_for(|published| *published >= enough);
        within(PATIENCE, "publications", reached).await?.context("nobody publishes any more").map(drop)
    }

    /// How much was published; an error where anybody was refused.
    async fn end(mut self) -> Result<usize> {
        self.stop.cancel();
        let mut published = 0;
        while let Some(ended) = self.tasks.join_next().await {
            published += ended??;
        }
        Ok(published)
    }
}

async fn repeated<F>(tries: u32, attempt: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    for _ in 1..tries {
        if attempt().await.is_ok() {
            return Ok(());
        }
    }
    attempt().await
}

/// The lines of all processes of a gateway that hold a text.
fn logged(gateway: &Gateway, text: &str) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(gateway.folder())? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with("stderr.txt") {
            let log = fs::read_to_string(path)?;
            for line in log.lines().filter(|line| line.contains(text)) {
                lines.push(serde_json::from_str(line)?);
            }
        }
    }
    Ok(lines)
}

const CHANNEL: &str = "room:1";
/// Between two of a kind.
const PACE: Duration = Duration::from_millis(5);
/// What is published between two events.
const SOME: usize = 60;
