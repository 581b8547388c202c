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
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    outside: UdpSocket,
    server: SocketAddr,
    blocked: AtomicBool,
    /// Server-side sockets by the client's address, each with what ends it.
    mappings: Mutex<HashMap<SocketAddr, (Arc<UdpSocket>, DropGuard)>>,
    made: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Relay {
    pub(super) async fn new(server: SocketAddr) -> Result<Self> {
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
    pub(super) fn block(&self, blocked: bool) {
        self.shared.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Forgets all mappings: clients are seen from new ports, and what the server sends to the old ones is lost.
    pub(super) async fn forget(&self) {
        self.shared.mappings.lock().await.clear();
    }

    /// Mappings that were ever made.
    pub(super) fn made(&self) -> u64 {
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
            if let Ok(inside) = self.mapping(client).await {
                // Lost, like any datagram.
                let _lost = inside.send(&buffer[..length]).await;
            }
        }
    }

    async fn mapping(self: &Arc<Self>, client: SocketAddr) -> Result<Arc<UdpSocket>> {
        let mut mappings = self.mappings.lock().await;
        if let Some((inside, _)) = mappings.get(&client) {
            return Ok(Arc::clone(inside));
        }
        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        inside.connect(self.server).await?;
        self.made.fetch_add(1, Ordering::Relaxed);
        let stop = self.stop.child_token();
        let (shared, socket) = (Arc::clone(self), Arc::clone(&inside));
        self.tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                let Ok(length) = socket.recv(&mut buffer).await else { continue };
                if !shared.blocked.load(Ordering::Relaxed) {
                    let _lost = shared.outside.send_to(&buffer[..length], client).await;
                }
            }
        }));
        mappings.insert(client, (Arc::clone(&inside), stop.drop_guard()));
        Ok(inside)
    }
}
