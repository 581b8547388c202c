//! The hub's connections over QUIC.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::fleet::{EdgeState, FleetEntry, RelayError, Relayed};
use tidegate_protocol::link::{Directory, Hello, Welcome};
use tidegate_transport::link::quic::{
    Condition, DirectoryWatch, EdgeEnd, FleetWatch, LinkDialer, OpenError, Opened,
};
use tokio::sync::Mutex;

use super::dialer::{Dialer, OpenedLink, Uplink, UplinkFuture};
use super::region::OpenFailure;

impl Dialer for LinkDialer {
    fn dial(&self, address: Arc<str>, hello: Hello) -> UplinkFuture<'_, Result<Arc<dyn Uplink>, String>> {
        Box::pin(async move {
            let end = Self::dial(self, &address, hello).await.map_err(|error| error.to_string())?;
            let (directories, fleets) = (Mutex::new(end.directory()), Mutex::new(end.fleet()));
            Ok(Arc::new(QuicUplink { end, directories, fleets }) as Arc<dyn Uplink>)
        })
    }
}

#[derive(Debug)]
struct QuicUplink {
    end: EdgeEnd,
    directories: Mutex<DirectoryWatch>,
    fleets: Mutex<FleetWatch>,
}

impl Uplink for QuicUplink {
    fn welcome(&self) -> &Welcome {
        self.end.welcome()
    }

    fn open(&self, partition: u16) -> UplinkFuture<'_, Result<OpenedLink, OpenFailure>> {
        Box::pin(async move {
            match self.end.open(partition).await {
                Ok(Opened { term, link, .. }) => Ok(OpenedLink { term, link }),
                Err(OpenError::NotOwner) => Err(OpenFailure::NotOwner),
                Err(_) => Err(OpenFailure::Lost),
            }
        })
    }

    fn next_directory(&self) -> UplinkFuture<'_, Option<Arc<Directory>>> {
        Box::pin(async { self.directories.lock().await.changed().await })
    }

    fn ask(&self, what: Bytes) -> UplinkFuture<'_, Option<Bytes>> {
        Box::pin(async { self.end.ask(what).await.ok() })
    }

    fn announce(&self, state: EdgeState) -> UplinkFuture<'_, ()> {
        Box::pin(self.end.announce(state))
    }

    fn next_fleet(&self) -> UplinkFuture<'_, Option<Arc<Vec<FleetEntry>>>> {
        Box::pin(async { self.fleets.lock().await.changed().await })
    }

    fn relay(&self, to: NodeId, payload: Bytes) -> UplinkFuture<'_, Result<(), RelayError>> {
        Box::pin(self.end.relay(to, payload))
    }

    fn next_relayed(&self) -> UplinkFuture<'_, Option<Relayed>> {
        Box::pin(self.end.next_relayed())
    }

    fn condition(&self) -> Option<Condition> {
        Some(self.end.condition())
    }

    fn closed(&self) -> UplinkFuture<'_, String> {
        Box::pin(self.end.closed())
    }

    fn close(&self, reason: &str) {
        self.end.close(reason);
    }
}
