//! What the hub needs of a network: connections to cores, and links over them. QUIC, or memory in tests.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::fleet::{EdgeState, FleetEntry, RelayError, Relayed};
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

    /// Tells the core how this edge is. What is asked after it is answered after it was heard.
    fn announce(&self, state: EdgeState) -> UplinkFuture<'_, ()>;

    /// The next list of all edges that this has not returned yet; `None` once the connection is over. Cancel-safe.
    fn next_fleet(&self) -> UplinkFuture<'_, Option<Arc<Vec<FleetEntry>>>>;

    /// Has the core pass something on to another edge.
    fn relay(&self, to: NodeId, payload: Bytes) -> UplinkFuture<'_, Result<(), RelayError>>;

    /// What another edge sent; `None` once the connection is over. Cancel-safe.
    fn next_relayed(&self) -> UplinkFuture<'_, Option<Relayed>>;

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
