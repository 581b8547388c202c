//! Clients over QUIC and WebTransport: quinn, on one single-threaded runtime, several connections to a UDP socket.

mod client;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use tidegate_transport::clock;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::client::Client;
use super::{Crowd, IN_FLIGHT, Load, STALLED};
use crate::bench::ledger::{Delivery, Ledger};
use crate::bench::limit::SOCKET_BUFFER;

/// Where to, and which of the two.
#[derive(Debug, Clone)]
pub(crate) struct QuicTarget {
    pub(crate) address: SocketAddr,
    pub(crate) webtransport: bool,
    /// Trusts the gateway's certificate.
    pub(crate) tls: rustls::ClientConfig,
}

/// Many clients.
#[derive(Debug)]
pub(crate) struct QuicClients {
    /// Before the runtime: it ends them.
    clients: JoinSet<()>,
    endpoints: Vec<Endpoint>,
    inbox: Arc<Inbox>,
    target: QuicTarget,
    crowd: Crowd,
    runtime: Runtime,
}

/// What clients tell.
#[derive(Debug, Default)]
struct Inbox {
    news: Mutex<News>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct News {
    live: usize,
    reads: usize,
    deliveries: Vec<(usize, Delivery, u64)>,
    failure: Option<anyhow::Error>,
}

impl Inbox {
    fn tell(&self, change: impl FnOnce(&mut News)) {
        change(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }

    fn take(&self) -> Result<News> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = news.failure.take() {
            return Err(failure);
        }
        let live = news.live;
        Ok(std::mem::replace(&mut *news, News { live, ..News::default() }))
    }
}

impl QuicClients {
    pub(crate) fn new(mut target: QuicTarget, crowd: Crowd, per_socket: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        target.tls.alpn_protocols =
            vec![if target.webtransport { b"h3".to_vec() } else { b"tidegate/1".to_vec() }];
        let crypto =
            QuicClientConfig::try_from(target.tls.clone()).context("no QUIC with these TLS settings")?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(120_000))));
        config.transport_config(Arc::new(transport));

        let mut endpoints = Vec::new();
        for _ in 0..crowd.connections.div_ceil(per_socket) {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind")?;
            let buffers = socket2::SockRef::from(&socket);
            buffers.set_recv_buffer_size(SOCKET_BUFFER)?;
            buffers.set_send_buffer_size(SOCKET_BUFFER)?;
            let _context = runtime.enter();
            let mut endpoint =
                Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
            endpoint.set_default_client_config(config.clone());
            endpoints.push(endpoint);
        }
        Ok(Self { clients: JoinSet::new(), endpoints, inbox: Arc::default(), target, crowd, runtime })
    }

    /// Runs the clients until there is news.
    fn turn(&self, wait: Duration) -> Result<News> {
        self.runtime.block_on(async {
            // Passing the time without news is as good.
            let _ = tokio::time::timeout(wait, self.inbox.wake.notified()).await;
        });
        self.inbox.take()
    }
}

impl Load for QuicClients {
    fn connect(&mut self, progress: &mut dyn FnMut(usize)) -> Result<()> {
        let (mut opened, mut live) = (0, 0);
        let mut last = clock::now();
        while live < self.crowd.connections {
            while opened < self.crowd.connections && opened - live < IN_FLIGHT {
                let client = Client {
                    index: opened,
                    channel: opened % self.crowd.channels,
                    target: self.target.address,
                    webtransport: self.target.webtransport,
                    inbox: Arc::clone(&self.inbox),
                    watch: self.crowd.watch,
                };
                let endpoint = self.endpoints[opened % self.endpoints.len()].clone();
                self.clients.spawn_on(client.run(endpoint), self.runtime.handle());
                opened += 1;
            }
            let news = self.turn(Duration::from_millis(100))?;
            if news.live > live {
                live = news.live;
                last = clock::now();
            } else if last.elapsed() > STALLED {
                bail!("only {live} of {} connections were subscribed", self.crowd.connections);
            }
            progress(live);
        }
        Ok(())
    }

    fn pump(&mut self, ledger: &mut Ledger, wait: Duration) -> Result<()> {
        let news = self.turn(wait)?;
        for _ in 0..news.reads {
            ledger.count_read();
        }
        for (index, delivery, now) in news.deliveries {
            ledger.delivered(index, delivery, now);
        }
        Ok(())
    }
}
