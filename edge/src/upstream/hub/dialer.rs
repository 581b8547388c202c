//! What the hub needs of a network: connections to cores, and links over them. QUIC, or memory in tests.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_protocol::link::{Directory, Hello, Welcome};
use tidegate_transport::link::EdgeLink;
use tidegate_transport::link::quic::Condition;

use super::region::OpenFailure;

/// What [`Dialer`]'s and [`Uplink`]'s methods return.
pub type UplinkFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Connects to cores.
pub trait Dialer: Send + Sync + Debug {
    /// Dials `host:port` and says hello. The error is for people.
    fn dial(&self, address: Arc<str>, hello: Hello) -> UplinkFuture<'_, Result<Arc<dyn Uplink>, String>>;
}

/// A connection to a core. Dropping the last of its handles closes it.
pub trait Uplink: Send + Sync + Debug {
    /// Who is there.
    fn welcome(&self) -> &Welcome;

    /// Asks for a partition's link. May wait as long as the core does; dropping the future takes the request back.
    fn open(&self, partition: u16) -> UplinkFuture<'_, Result<OpenedLink, OpenFailure>>;

    /// The next directory that this has not returned yet; `None` once the connection is over. Cancel-safe.
    fn next_directory(&self) -> UplinkFuture<'_, Option<Arc<Directory>>>;

    /// Asks the core something; `None` where it does not answer.
    fn ask(&self, what: Bytes) -> UplinkFuture<'_, Option<Bytes>>;

    /// How the connection does; `None` where nobody measures.
    fn condition(&self) -> Option<Condition> {
        None
    }

    /// Waits for the end of the connection; why, for people.
    fn closed(&self) -> UplinkFuture<'_, String>;

    /// Ends the connection and its links at once.
    fn close(&self, reason: &str);
}

/// A partition's link, and what the core said first on it.
#[derive(Debug)]
pub struct OpenedLink {
    /// Of the owner.
    pub term: u64,
    /// For frames.
    pub link: EdgeLink,
}
