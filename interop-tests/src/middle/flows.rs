//! The way to one UDP address, flow by flow: a flow is all that comes from one address. It can be cut, whole or by flows,
//! and lose some of what it carries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use tidegate_transport::clock;
use tokio::net::UdpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Carries UDP to one address, for anybody.
#[derive(Debug)]
pub struct Flows {
    /// Where others find the server.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    outside: UdpSocket,
    server: SocketAddr,
    state: Mutex<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    flows: BTreeMap<SocketAddr, Flow>,
    is_cut: bool,
    /// Those that are cut, where not all are.
    cut: BTreeSet<SocketAddr>,
    /// The share that is lost, and what decides.
    loss: Option<(f64, ChaCha8Rng)>,
    lost: u64,
}

#[derive(Debug)]
struct Flow {
    /// What the server sees it come from.
    inside: Arc<UdpSocket>,
    heard: Instant,
}

impl Flows {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When there is no socket.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let outside = UdpSocket::bind("127.0.0.1:0").await?;
        let address = outside.local_addr()?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            outside,
            server,
            state: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        let run = Arc::clone(&shared);
        shared.tasks.spawn(stop.clone().run_until_cancelled_owned(async move { run.forward().await }));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Who has sent something lately, in an order that stays.
    pub fn senders(&self) -> Vec<SocketAddr> {
        let now = clock::now();
        let state = self.shared.state();
        let lately = |flow: &Flow| now.saturating_duration_since(flow.heard) < LATELY;
        state.flows.iter().filter(|(_, flow)| lately(flow)).map(|(sender, _)| *sender).collect()
    }

    /// Nothing gets through any more, in either direction.
    pub fn cut(&self) {
        self.shared.state().is_cut = true;
    }

    /// Nothing of this sender's gets through, and nothing to it.
    pub fn cut_off(&self, sender: SocketAddr) {
        self.shared.state().cut.insert(sender);
    }

    /// From now on this share of all packets is lost, in either direction.
    pub fn lose(&self, share: f64, rng: ChaCha8Rng) {
        self.shared.state().loss = Some((share, rng));
    }

    /// Everything gets through again.
    pub fn heal(&self) {
        let mut state = self.shared.state();
        state.is_cut = false;
        state.cut.clear();
        state.loss = None;
    }

    /// Packets that did not get through so far.
    pub fn lost(&self) -> u64 {
        self.shared.state().lost
    }
}

impl Shared {
    async fn forward(self: &Arc<Self>) {
        let mut buffer = vec![0; LARGEST];
        loop {
            // An error is that of an earlier packet whose receiver is gone.
            let Ok((length, sender)) = self.outside.recv_from(&mut buffer).await else { continue };
            let Some(inside) = self.inside(sender).await else { continue };
            if self.state().lets_through(sender) {
                let _lost = inside.send(&buffer[..length]).await;
            }
        }
    }

    /// The socket that stands for a sender.
    async fn inside(self: &Arc<Self>, sender: SocketAddr) -> Option<Arc<UdpSocket>> {
        if let Some(flow) = self.state().flows.get_mut(&sender) {
            flow.heard = clock::now();
            return Some(Arc::clone(&flow.inside));
        }
        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.ok()?);
        inside.connect(self.server).await.ok()?;
        let (shared, socket) = (Arc::clone(self), Arc::clone(&inside));
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(async move {
            let mut buffer = vec![0; LARGEST];
            loop {
                // Nobody may listen there for a while.
                let Ok(length) = socket.recv(&mut buffer).await else { continue };
                if shared.state().lets_through(sender) {
                    let _lost = shared.outside.send_to(&buffer[..length], sender).await;
                }
            }
        }));
        let flow = Flow { inside: Arc::clone(&inside), heard: clock::now() };
        self.state().flows.insert(sender, flow);
        Some(inside)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lets_through(&mut self, sender: SocketAddr) -> bool {
        let is_cut = self.is_cut || self.cut.contains(&sender);
        let is_lost = is_cut || self.loss.as_mut().is_some_and(|(share, rng)| rng.random_bool(*share));
        self.lost += u64::from(is_lost);
        !is_lost
    }
}

/// Whoever is connected says something more often.
const LATELY: Duration = Duration::from_secs(3);
const LARGEST: usize = 65_536;

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::wait::{PATIENCE, within};

    struct Ends {
        server: UdpSocket,
        client: UdpSocket,
        flows: Flows,
    }

    impl Ends {
        async fn new() -> Result<Self> {
            let server = UdpSocket::bind("127.0.0.1:0").await?;
            let flows = Flows::to(server.local_addr()?).await?;
            let client = UdpSocket::bind("127.0.0.1:0").await?;
            client.connect(flows.address).await?;
            Ok(Self { server, client, flows })
        }

        /// Sends numbers until one arrives, and says which.
        async fn first_that_arrives(&self) -> Result<u8> {
            let mut buffer = [0; 1];
            for number in 0..=u8::MAX {
                self.client.send(&[number]).await?;
                let arrived = tokio::time::timeout(Duration::from_millis(100), self.server.recv(&mut buffer));
                if let Ok(length) = arrived.await {
                    assert_eq!(length?, 1);
                    return Ok(buffer[0]);
                }
            }
            anyhow::bail!("nothing arrives")
        }
    }

    #[tokio::test]
    async fn a_flow_that_is_cut_carries_nothing_until_it_is_healed() -> Result<()> {
        let ends = Ends::new().await?;
        ends.first_that_arrives().await?;
        let senders = ends.flows.senders();
        assert_eq!(senders, [ends.client.local_addr()?]);
        ends.flows.cut_off(senders[0]);
        ends.client.send(&[200]).await?;
        let other = UdpSocket::bind("127.0.0.1:0").await?;
        other.send_to(&[100], ends.flows.address).await?;
        let mut buffer = [0; 1];
        within(PATIENCE, "the other flow", ends.server.recv(&mut buffer)).await??;
        assert_eq!(buffer, [100], "what was cut is lost, and others are not");
        ends.flows.heal();
        ends.first_that_arrives().await?;
        assert_eq!(ends.flows.lost(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn a_share_of_all_packets_is_lost() -> Result<()> {
        let ends = Ends::new().await?;
        ends.first_that_arrives().await?;
        ends.flows.lose(0.5, ChaCha8Rng::seed_from_u64(1));
        let mut lost = 0;
        for _ in 0..20 {
            lost += u32::from(ends.first_that_arrives().await?);
        }
        assert!((5..80).contains(&lost), "{lost} beside 20 that arrived");
        assert_eq!(ends.flows.lost(), u64::from(lost));
        Ok(())
    }
}
