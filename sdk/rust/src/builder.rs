//! How a client is configured.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tidegate_certs::CertificateHash;

use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::tls::{Trust, TrustOptions};
use crate::{ClientError, driver};

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
        }
    }

    /// Another URL, tried after those before it. The first that works is used for the client's whole life.
    pub fn with_url(mut self, url: impl Into<String>) -> Self {
        self.urls.push(url.into());
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
    /// are no errors: the client reconnects by itself.
    pub async fn connect(self) -> Result<Client, ClientError> {
        if let Some(reason) = self.bad_hash {
            return Err(ClientError::Tls(reason));
        }
        let endpoints = self.urls.iter().map(|url| Endpoint::parse(url)).collect::<Result<Vec<_>, _>>()?;
        let trust =
            if endpoints.iter().any(|endpoint| endpoint.tls) { self.trust.load()? } else { Trust::Nothing };
        let token = match (&self.provider, self.token) {
            (_, Some(token)) => Some(token),
            (Some(provider), None) => Some(provider().await.map_err(ClientError::Token)?),
            (None, None) => None,
        };
        driver::start(driver::Options { endpoints, trust, token, provider: self.provider, queue: self.queue })
            .await
    }
}

impl fmt::Debug for Builder {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("trust", &self.trust)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

const DEFAULT_QUEUE: usize = 256;
