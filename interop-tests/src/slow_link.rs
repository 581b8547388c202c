//! A UDP link with a delay and a rate, in the test's own process: between a client and a gateway on loopback, where no
//! namespaces are to be had. Packets beyond its queue are dropped.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tidegate_transport::clock;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// A link in front of a server, for one client.
#[derive(Debug)]
pub struct SlowLink {
    /// Where the client finds the server.
    pub address: SocketAddr,
    #[expect(dead_code, reason = "ends the link")]
    stop: DropGuard,
}

impl SlowLink {
    /// Every packet takes `delay`, each way; towards the client `rate` bytes per second go, and `queue` bytes wait.
    ///
    /// # Errors
    /// When there is no socket.
    pub async fn start(server: SocketAddr, delay: Duration, rate: u64, queue: usize) -> Result<Self> {
        let outside = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let inside = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        inside.connect(server).await?;
        let address = outside.local_addr()?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (up, upwards) = mpsc::channel::<Packet>(4096);
        let (down, downwards) = mpsc::channel::<Packet>(4096);
        let (client_known, client) = tokio::sync::watch::channel(None);
        let (reader, stopped) = (Arc::clone(&outside), stop.clone());
        tasks.spawn(stopped.run_until_cancelled_owned(async move {
            let mut packet = [0; 2048];
            while let Ok((length, from)) = reader.recv_from(&mut packet).await {
                client_known.send_replace(Some(from));
                // Full: dropped, as on any link.
                let _dropped = up.try_send((clock::now() + delay, packet[..length].into()));
            }
        }));
        let (writer, stopped) = (Arc::clone(&inside), stop.clone());
        tasks.spawn(stopped.run_until_cancelled_owned(async move {
            deliver(upwards, |packet| {
                let _dropped = writer.try_send(&packet);
            })
            .await;
        }));
        let stopped = stop.clone();
        tasks.spawn(stopped.run_until_cancelled_owned(async move {
            let mut packet = [0; 2048];
            let mut shaper = Shaper { rate, queue, free_at: clock::now() };
            loop {
                // A connected socket also tells that nobody listens.
                let Ok(length) = inside.recv(&mut packet).await else { continue };
                if let Some(sent) = shaper.take(clock::now(), length) {
                    let _dropped = down.try_send((sent + delay, packet[..length].into()));
                }
            }
        }));
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            deliver(downwards, |packet| {
                if let Some(client) = *client.borrow() {
                    let _dropped = outside.try_send_to(&packet, client);
                }
            })
            .await;
        }));
        Ok(Self { address, stop: stop.drop_guard() })
    }
}

type Packet = (Instant, Box<[u8]>);

/// Hands packets on when they are due, in order.
async fn deliver(mut packets: mpsc::Receiver<Packet>, mut send: impl FnMut(Box<[u8]>)) {
    let mut waiting = Vec::new();
    while packets.recv_many(&mut waiting, 64).await > 0 {
        for (due, packet) in waiting.drain(..) {
            if due > clock::now() {
                tokio::time::sleep_until(due.into()).await;
            }
            send(packet);
        }
    }
}

struct Shaper {
    rate: u64,
    queue: usize,
    /// When the link has sent all that it took.
    free_at: Instant,
}

impl Shaper {
    /// When the last byte of a packet is on its way; `None` where it is dropped.
    fn take(&mut self, now: Instant, length: usize) -> Option<Instant> {
        let begins = self.free_at.max(now);
        let waiting = (begins - now).as_secs_f64() * self.rate as f64;
        if waiting > self.queue as f64 {
            return None;
        }
        self.free_at = begins + Duration::from_secs_f64(length as f64 / self.rate as f64);
        Some(self.free_at)
    }
}
