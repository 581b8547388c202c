//! How a client is configured.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidegate_certs::CertificateHash;
use tidegate_fallback::ladder::{LadderConfig, LadderMemory};
use tidegate_protocol::backoff::Backoff;

use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::tls::{Trust, TrustOptions};
use crate::{ClientError, Transport, driver};

/// Gets a token from the app.
pub(crate) type TokenProvider = Arc<dyn Fn() -> TokenFuture + Send + Sync>;

pub(crate) type TokenFuture = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// Where a client connects and whom it trusts. Made by [`Client::builder`].
#[must_use]
#[derive(Clone)]
pub struct Builder {
    urls: Vec<String>,
    token: Option<String>,
    provider: Option<TokenProvider>,
    trust: TrustOptions,
    bad_hash: Option<String>,
    queue: usize,
    transports: Vec<Transport>,
    ladder: LadderConfig,
    memory: LadderMemory,
    network_key: Option<String>,
    quic: QuicOptions,
    backoff: (Duration, Duration),
}

impl Builder {
    pub(crate) fn new(url: String) -> Self {
        Self {
            urls: vec![url],
            token: None,
            provider: None,
            trust: TrustOptions::default(),
            bad_hash: None,
            queue: DEFAULT_QUEUE,
            transports: Vec::new(),
            ladder: LadderConfig::default(),
            memory: LadderMemory::default(),
            network_key: None,
            quic: QuicOptions::default(),
            backoff: (Backoff::BASE, Backoff::CAP),
        }
    }

    /// Another URL. URLs of another transport are the rungs of the ladder, in their order; URLs of the same transport are
    /// tried one after the other.
    pub fn with_url(mut self, url: impl Into<String>) -> Self {
        self.urls.push(url.into());
        self
    }

    /// The transports to use, best first. Where no URL was given for one, it is the first URL's host and port.
    pub fn with_transports(mut self, transports: impl IntoIterator<Item = Transport>) -> Self {
        self.transports = transports.into_iter().collect();
        self
    }

    /// How patient the client is with each transport.
    pub fn with_ladder(mut self, config: LadderConfig) -> Self {
        self.ladder = config;
        self
    }

    /// What [`Client::ladder_memory`] told in an earlier run.
    pub fn with_ladder_memory(mut self, memory: LadderMemory) -> Self {
        self.memory = memory;
        self
    }

    /// A name for the network that the client is in: what works is remembered by it. Where nothing is said, it is the
    /// prefix of the client's own address.
    pub fn with_network_key(mut self, key: impl Into<String>) -> Self {
        self.network_key = Some(key.into());
        self
    }

    /// How native QUIC connections are kept.
    pub fn with_quic(mut self, options: QuicOptions) -> Self {
        self.quic = options;
        self
    }

    /// How long the client waits before it connects again: evenly distributed between zero and a bound that doubles from
    /// `base` to `cap` with each attempt, until a connection has held for 30 s. 1 s and 60 s where nothing is said. Less is
    /// for tests and local networks: many clients that come back at once are what a server does not survive.
    pub fn with_backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.backoff = (base, cap);
        self
    }

    /// A token that the client keeps; when it expires, the session ends.
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Where tokens come from: asked before the first connection, before a token expires, and after one was refused.
    pub fn with_token_provider<F, E>(mut self, provider: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, E>> + Send + 'static,
        E: fmt::Display,
    {
        self.provider = Some(Arc::new(move || {
            let token = provider();
            Box::pin(async move { token.await.map_err(|error| error.to_string()) })
        }));
        self
    }

    /// Trusts the CA in this PEM file too, beside the system's.
    pub fn with_ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.trust.ca_files.push(path.into());
        self
    }

    /// Trusts exactly the certificates with such SHA-256 hashes (base64, or hexadecimal with or without colons), instead
    /// of any CA and name.
    pub fn with_certificate_hash(mut self, hash: impl AsRef<str>) -> Self {
        match hash.as_ref().parse::<CertificateHash>() {
            Ok(hash) => self.trust.hashes.push(hash),
            Err(error) => self.bad_hash = Some(error.to_string()),
        }
        self
    }

    /// How many events wait in a [`crate::Subscription`] that the app does not read, 256 where nothing is said. At the
    /// bound the client stops reading from the network, for all its channels.
    pub fn with_subscription_queue(mut self, events: usize) -> Self {
        self.queue = events.max(1);
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// When the configuration cannot be used, no URL leads to a server, or the server refuses the session. Later losses
    /// are no errors: the client reconnects by itself. Nor is a server that is busy and keeps a place for the client: this
    /// waits for it.
    pub async fn connect(self) -> Result<Client, ClientError> {
        if let Some(reason) = self.bad_hash {
            return Err(ClientError::Tls(reason));
        }
        let mut endpoints =
            self.urls.iter().map(|url| Endpoint::parse(url)).collect::<Result<Vec<_>, _>>()?;
        let transports = rungs(&mut endpoints, self.transports)?;
        let trust =
            if endpoints.iter().any(|endpoint| endpoint.tls) { self.trust.load()? } else { Trust::Nothing };
        let token = match (&self.provider, self.token) {
            (_, Some(token)) => Some(token),
            (Some(provider), None) => Some(provider().await.map_err(ClientError::Token)?),
            (None, None) => None,
        };
        driver::start(driver::Options {
            endpoints,
            transports,
            trust,
            token,
            provider: self.provider,
            queue: self.queue,
            ladder: self.ladder,
            memory: self.memory,
            network_key: self.network_key,
            quic: self.quic,
            backoff: self.backoff,
        })
        .await
    }
}

/// The transports in order, each with an endpoint.
fn rungs(endpoints: &mut Vec<Endpoint>, wanted: Vec<Transport>) -> Result<Vec<Transport>, ClientError> {
    let mut transports: Vec<Transport> = Vec::new();
    if wanted.is_empty() {
        for endpoint in endpoints.iter() {
            if !transports.contains(&endpoint.transport) {
                transports.push(endpoint.transport);
            }
        }
        return Ok(transports);
    }
    for transport in wanted {
        if !transports.contains(&transport) {
            transports.push(transport);
        }
        if !endpoints.iter().any(|endpoint| endpoint.transport == transport)
            && let Some(first) = endpoints.first()
        {
            endpoints.push(first.by(transport)?);
        }
    }
    endpoints.retain(|endpoint| transports.contains(&endpoint.transport));
    Ok(transports)
}

/// How native QUIC connections are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicOptions {
    /// Between packets on an idle connection, give or take a fifth; below the 30 s after which many NATs forget.
    pub keep_alive: Duration,
    /// A connection without a packet for so long is dead.
    pub idle_timeout: Duration,
    /// What a round trip is taken for until one was measured; `None` for what is remembered of the network, or 150 ms.
    pub initial_rtt: Option<Duration>,
    /// Whether a session is resumed in the first flight, by 0-RTT.
    pub early_data: bool,
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(25),
            idle_timeout: Duration::from_secs(60),
            initial_rtt: None,
            early_data: true,
        }
    }
}

impl QuicOptions {
    pub(crate) fn initial_rtt(&self, known: Option<Duration>) -> Duration {
        // Three of it pass before the first packet is sent again: not at every hiccup of a fast network.
        let known = known.map(|rtt| rtt.clamp(Duration::from_millis(25), Duration::from_secs(1)));
        self.initial_rtt.or(known).unwrap_or(Duration::from_millis(150))
    }
}

impl fmt::Debug for Builder {
    /// Without URLs and token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("trust", &self.trust)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

const DEFAULT_QUEUE: usize = 256;
