//! Where faults happen: a cluster whose nodes find each other through us.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::TryStreamExt as _;
use futures_util::future::try_join_all;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tidegate_client::Client;

use super::schedule::{Fault, FaultKind};
use crate::cluster::{Cluster, ClusterSpec, HOME, Paths};
use crate::gateway::Gateway;
use crate::middle::{Flows, Pipe};
use crate::wait::until;

/// Three cores, three NATS servers, two edges in two regions, and everything between them.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) cluster: Cluster,
    between: Between,
}

/// What stands between nodes.
#[derive(Debug, Default)]
struct Between {
    /// By core, then by server.
    engine: Vec<Vec<Pipe>>,
    /// By core.
    links: Vec<Flows>,
}

impl Paths for Between {
    async fn nats_urls(&mut self, _core: usize, real: &[String]) -> Result<Vec<String>> {
        let addresses = real.iter().map(|url| {
            let address = url.strip_prefix("nats://").context("a URL of NATS")?;
            address.parse::<SocketAddr>().with_context(|| url.clone())
        });
        let addresses: Vec<SocketAddr> = addresses.collect::<Result<_>>()?;
        let pipes = try_join_all(addresses.into_iter().map(Pipe::to)).await?;
        let urls = pipes.iter().map(|pipe| format!("nats://{}", pipe.address)).collect();
        self.engine.push(pipes);
        Ok(urls)
    }

    async fn core_address(&mut self, _core: usize, real: SocketAddr) -> Result<SocketAddr> {
        let flows = Flows::to(real).await?;
        let address = flows.address;
        self.links.push(flows);
        Ok(address)
    }
}

impl Stage {
    /// Starts everything.
    pub(super) async fn start(partitions: u32) -> Result<Self> {
        let mut between = Between::default();
        let spec = ClusterSpec {
            nats: SERVERS,
            cores: CORES,
            edges: vec![HOME, "us"],
            partitions,
            replicas: SERVERS,
            config: CONFIG.to_owned(),
            ..ClusterSpec::default()
        };
        let cluster = Cluster::start_through(spec, &mut between).await?;
        Ok(Self { cluster, between })
    }

    /// A client of an edge, which comes back soon after whatever happens.
    pub(super) async fn client(&self, edge: usize, scheme: &str) -> Result<Client> {
        let edge = &self.cluster.edges[edge];
        let builder = Client::builder(edge.url(scheme)).with_ca_file(edge.ca_file());
        let (base, cap) = (Duration::from_millis(20), Duration::from_millis(250));
        Ok(builder.with_subscription_queue(QUEUE).with_backoff(base, cap).connect().await?)
    }

    /// Begins.
    pub(super) async fn inject(&mut self, fault: &Fault) -> Result<()> {
        if fault.with_loss || fault.kind == FaultKind::LoseLinks {
            for (number, links) in (0u64..).zip(&self.between.links) {
                links.lose(LOSS, ChaCha8Rng::seed_from_u64(fault.seed ^ number));
            }
        }
        let core = fault.victim % CORES;
        match fault.kind {
            FaultKind::KillCore => self.cluster.cores[core].kill().await,
            FaultKind::KillNats => self.server(fault)?.kill().await,
            FaultKind::PauseCore => self.cluster.cores[core].pause().await,
            FaultKind::CutEngine => {
                self.between.engine[core].iter().for_each(Pipe::cut);
                Ok(())
            }
            FaultKind::CutLink => {
                let links = &self.between.links[core];
                let senders = links.senders();
                ensure!(!senders.is_empty(), "no edge is linked to core {core}");
                links.cut_off(senders[fault.edge % senders.len()]);
                Ok(())
            }
            FaultKind::LoseLinks => Ok(()),
            FaultKind::RestartAll => self.restart_all().await,
            FaultKind::HandOver => {
                let core = &mut self.cluster.cores[core];
                let status = core.terminate().await?;
                ensure!(status.success(), "{} ended with {status}: {}", core.name(), core.log());
                Ok(())
            }
        }
    }

    /// Ends, and waits until everything is as it was before.
    pub(super) async fn heal(&mut self, fault: &Fault) -> Result<()> {
        let core = fault.victim % CORES;
        self.between.links.iter().for_each(Flows::heal);
        match fault.kind {
            FaultKind::KillCore | FaultKind::HandOver => self.cluster.cores[core].start_again().await?,
            FaultKind::KillNats => {
                self.server(fault)?.restart().await?;
                self.until_replicated().await?;
            }
            FaultKind::PauseCore => self.wake(core).await?,
            FaultKind::CutEngine => {
                self.between.engine[core].iter().for_each(Pipe::heal);
            }
            FaultKind::RestartAll => self.until_replicated().await?,
            FaultKind::CutLink | FaultKind::LoseLinks => {}
        }
        self.cluster.until_served().await
    }

    /// Lets a core go on, and looks whether it noticed that it had been taken for gone.
    async fn wake(&self, core: usize) -> Result<()> {
        let core = &self.cluster.cores[core];
        let times = |said: &str| core.log().matches(said).count();
        let (fenced, back) = (times(FENCED), times(BACK));
        core.go_on()?;
        until("a core that was stopped finds itself fenced", || async {
            ensure!(times(FENCED) > fenced && times(BACK) > back, "it does not say so");
            Ok(())
        })
        .await
    }

    async fn restart_all(&mut self) -> Result<()> {
        let Cluster { edges, cores, nats, .. } = &mut self.cluster;
        let nats = nats.as_mut().context("the stage has servers")?;
        tokio::try_join!(
            try_join_all(edges.iter_mut().map(Gateway::kill)),
            try_join_all(cores.iter_mut().map(crate::cluster::Core::kill)),
            try_join_all(nats.servers.iter_mut().map(crate::nats::NatsServer::kill)),
        )?;
        try_join_all(nats.servers.iter_mut().map(crate::nats::NatsServer::restart)).await?;
        try_join_all(cores.iter_mut().map(crate::cluster::Core::start_again)).await?;
        try_join_all(edges.iter_mut().map(Gateway::start_again)).await.map(drop)
    }

    /// Waits until every stream is on every server again: the next one may be killed.
    async fn until_replicated(&self) -> Result<()> {
        let urls = self.cluster.nats.as_ref().context("the stage has servers")?.urls();
        until("every stream is on every server", || async {
            let jetstream = async_nats::jetstream::new(async_nats::connect(&urls).await?);
            let streams: Vec<_> = jetstream.streams().try_collect().await?;
            ensure!(!streams.is_empty(), "there are no streams");
            for stream in streams {
                let cluster = stream.cluster.context("a stream without a cluster")?;
                let current = cluster.replicas.iter().filter(|peer| peer.current && !peer.offline).count();
                let whole = cluster.leader.is_some() && current + 1 == SERVERS;
                ensure!(whole, "{}: {:?}", stream.config.name, cluster.replicas);
            }
            Ok(())
        })
        .await
    }

    fn server(&mut self, fault: &Fault) -> Result<&mut crate::nats::NatsServer> {
        let nats = self.cluster.nats.as_mut().context("the stage has servers")?;
        nats.servers.get_mut(fault.victim % SERVERS).context("three servers")
    }
}

const CORES: usize = 3;
const SERVERS: usize = 3;
const LOSS: f64 = 0.05;
/// Events of one subscription that may wait for the recorder.
const QUEUE: usize = 4096;
const CONFIG: &str = "\
[namespaces.default]
history_count = 20000
history_bytes = \"64MiB\"
history_age = \"6h\"
";
const FENCED: &str = "this node cannot prove to be alive";
const BACK: &str = "joined the cluster again";
