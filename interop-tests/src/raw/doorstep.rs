//! Native QUIC as far as the door: who is let in, and what the others are told before TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;
use quinn_proto::{ConnectionId, TransportErrorCode};
use rand::Rng as _;
use tidegate_protocol::hint::Hint;
use tidegate_transport::clock;

use crate::gateway::Gateway;
use crate::wait::{PATIENCE, within};

/// Clients at one address, of one socket.
#[derive(Debug, Clone)]
pub struct Doorstep {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    gateway: SocketAddr,
}

/// What became of one of them.
#[derive(Debug)]
pub enum Attempt {
    /// It has shaken hands.
    LetIn(quinn::Connection),
    /// It was refused before that.
    Refused(Hint),
}

impl Doorstep {
    /// At an address of this machine.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn new(gateway: &Gateway, from: Ipv4Addr) -> Result<Self> {
        let tls = gateway.tls(&[b"tidegate/1"]).as_ref().clone();
        Ok(Self {
            endpoint: quinn::Endpoint::client((from, 0).into())?,
            config: quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)),
            gateway: gateway.addresses.quic,
        })
    }

    /// One more client, which shows a ticket or something random.
    ///
    /// # Errors
    /// When it is neither let in nor told why.
    pub async fn attempt(&self, ticket: Option<&str>) -> Result<Attempt> {
        let shown = match ticket {
            Some(text) => BASE64_URL_SAFE_NO_PAD.decode(text)?,
            None => random_id().to_vec(),
        };
        let mut config = self.config.clone();
        config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&shown)));
        let name = IpAddr::from(Ipv4Addr::LOCALHOST).to_string();
        let connecting = self.endpoint.connect_with(config, self.gateway, &name)?;
        match within(PATIENCE, "an answer at the door", connecting).await? {
            Ok(connection) => Ok(Attempt::LetIn(connection)),
            Err(ConnectionError::ConnectionClosed(close))
                if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
            {
                let hint = Hint::parse_bytes(&close.reason);
                Ok(Attempt::Refused(hint.with_context(|| format!("refused with {:?}", close.reason))?))
            }
            Err(error) => bail!("{error}"),
        }
    }
}

/// What a native client without a ticket chooses.
pub fn random_id() -> [u8; 20] {
    let mut id = [0; 20];
    clock::rng().fill_bytes(&mut id);
    id[0] = 0xe0;
    id
}
