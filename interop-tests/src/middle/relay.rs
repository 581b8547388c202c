//! A NAT of the test: forwards UDP, forgets who is who when told, and can be a black hole.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Result;
use tokio::net::UdpSocket;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Between clients on this machine and one server.
#[derive(Debug)]
pub struct Relay {
    /// Where clients find the server.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// What of a connection disappears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// Everything.
    Both,
    /// What the server sends; it goes on hearing the client.
    Down,
    /// What the client sends; it goes on hearing the server.
    Up,
}

#[derive(Debug)]
struct Shared {
    outside: UdpSocket,
    server: SocketAddr,
    blocked: AtomicBool,
    /// By the client's address.
    mappings: Mutex<HashMap<SocketAddr, Mapping>>,
    made: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Mapping {
    /// The server-side socket.
    inside: Arc<UdpSocket>,
    /// What the server sent came through.
    answered: Arc<AtomicBool>,
    hole: Option<Hole>,
    /// Ends what comes back. A client's connection has a socket of its own, so nothing else is lost with it.
    deaf: Option<DropGuard>,
}

impl Relay {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When there is no socket.
    pub async fn new(server: SocketAddr) -> Result<Self> {
        let outside = UdpSocket::bind("127.0.0.1:0").await?;
        let address = outside.local_addr()?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            outside,
            server,
            blocked: AtomicBool::new(false),
            mappings: Mutex::default(),
            made: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        let run = Arc::clone(&shared);
        shared.tasks.spawn(stop.clone().run_until_cancelled_owned(async move { run.forward().await }));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Nothing gets through any more, in either direction; or everything again.
    pub fn block(&self, blocked: bool) {
        self.shared.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Forgets all mappings: clients are seen from new ports, and what the server sends to the old ones is lost.
    pub async fn forget(&self) {
        self.shared.mappings.lock().await.clear();
    }

    /// Kills the connections that there are, for good; new ones, from other ports, get through. Says how many the server
    /// had answered.
    pub async fn cut(&self, hole: Hole) -> usize {
        let mut cut = 0;
        let mut mappings = self.shared.mappings.lock().await;
        for mapping in mappings.values_mut().filter(|mapping| mapping.hole.is_none()) {
            cut += usize::from(mapping.answered.load(Ordering::Relaxed));
            mapping.hole = Some(hole);
            if hole != Hole::Up {
                mapping.deaf = None;
            }
        }
        cut
    }

    /// Mappings that were ever made.
    pub fn made(&self) -> u64 {
        self.shared.made.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn forward(self: &Arc<Self>) {
        let mut buffer = vec![0; 65_536];
        loop {
            let Ok((length, client)) = self.outside.recv_from(&mut buffer).await else { continue };
            if self.blocked.load(Ordering::Relaxed) {
                continue;
            }
            if let Ok(Some(inside)) = self.mapping(client).await {
                // Lost, like any datagram.
                let _lost = inside.send(&buffer[..length]).await;
            }
        }
    }

    /// The way to the server, if there is one.
    async fn mapping(self: &Arc<Self>, client: SocketAddr) -> Result<Option<Arc<UdpSocket>>> {
        let mut mappings = self.mappings.lock().await;
        if let Some(Mapping { inside, hole, .. }) = mappings.get(&client) {
            return Ok(matches!(hole, None | Some(Hole::Down)).then(|| Arc::clone(inside)));
        }
        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        inside.connect(self.server).await?;
        self.made.fetch_add(1, Ordering::Relaxed);
        let stop = self.stop.child_token();
        let answered = Arc::new(AtomicBool::new(false));
        let (shared, socket, came) = (Arc::clone(self), Arc::clone(&inside), Arc::clone(&answered));
        self.tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                let Ok(length) = socket.recv(&mut buffer).await else { continue };
                if !shared.blocked.load(Ordering::Relaxed) {
                    came.store(true, Ordering::Relaxed);
                    let _lost = shared.outside.send_to(&buffer[..length], client).await;
                }
            }
        }));
        let mapping =
            Mapping { inside: Arc::clone(&inside), answered, hole: None, deaf: Some(stop.drop_guard()) };
        mappings.insert(client, mapping);
        Ok(Some(inside))
    }
}
