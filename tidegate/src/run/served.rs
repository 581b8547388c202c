//! A node while it serves: signals, the end of processes before it, and the one that takes over.

use std::cell::RefCell;
use std::time::Duration;

use tidegate_edge::resume::KEY_BYTES;
use tokio::task::JoinSet;
use tracing::{error, info};

use super::Refresher;
use super::api::ServingApi;
use super::handover::{Before, Door, Estate, Successor, hand_over};
use super::node::Node;
use super::signals::{Signal, Signals};

/// A node that serves.
pub(super) struct Served<'a> {
    node: &'a Node,
    api: Option<&'a ServingApi>,
    secret: Option<[u8; KEY_BYTES]>,
    /// Processes that have handed over, but not ended.
    before: RefCell<Vec<Before>>,
}

impl<'a> Served<'a> {
    pub(super) fn new(
        node: &'a Node,
        api: Option<&'a ServingApi>,
        secret: Option<[u8; KEY_BYTES]>,
        before: Vec<Before>,
    ) -> Self {
        Self { node, api, secret, before: RefCell::new(before) }
    }

    /// Until a signal says so, or another process takes over: that one.
    pub(super) async fn until_the_end(
        &self,
        signals: &mut Signals,
        refresher: &Refresher,
        door: Option<&Door>,
    ) -> anyhow::Result<Option<Successor>> {
        let mut ends = JoinSet::new();
        for before in &*self.before.borrow() {
            let before = before.try_clone()?;
            ends.spawn(async move {
                let generations = (before.quic, before.http3);
                before.ended().await;
                generations
            });
        }
        let undo = || self.node.take_over().unwrap_or_else(|error| error!(%error, "packets may go astray"));
        let handing = async {
            match door {
                Some(door) => hand_over(door, || self.estate(), undo).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(handing);
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Reload => refresher.reload(),
                    Signal::End(name) => {
                        info!(signal = name, "ending; once more ends at once");
                        return Ok(None);
                    }
                },
                successor = &mut handing => {
                    info!("another process has taken over");
                    return Ok(Some(successor));
                }
                Some(Ok((quic, http3))) = ends.join_next() => {
                    info!("the process before has ended");
                    self.before.borrow_mut().retain(|before| (before.quic, before.http3) != (quic, http3));
                    if let Err(error) = self.node.forget(quic, http3) {
                        error!(%error, "packets for the process that ended go nowhere");
                    }
                }
            }
        }
    }

    fn estate(&self) -> anyhow::Result<Estate> {
        Ok(Estate {
            listeners: self.node.handover()?,
            api: self.api.map(ServingApi::listener).transpose()?,
            secret: self.secret,
            before: self.before.borrow().iter().map(Before::try_clone).collect::<Result<_, _>>()?,
        })
    }
}

/// What is left to do for a process once another has taken over: everything that is new goes there, and so do the clients
/// that are here, while they are still served. Those that are left after `grace`, or as long as the other needs to let
/// them in, are told as by SIGTERM.
pub(super) async fn leave(node: &Node, api: Option<&ServingApi>, signals: &mut Signals, grace: Duration) {
    node.hand_over();
    if let Some(api) = api {
        api.hand_over();
    }
    let moved = async {
        // For what is in the sockets still, and for handshakes under way.
        tokio::time::sleep(LAST_ARRIVALS).await;
        if let Some(api) = api {
            api.end_connections();
        }
        node.move_to_successor(grace).await;
    };
    tokio::select! {
        () = moved => {}
        () = signals.end() => info!("not waiting for clients to move"),
    }
    if let Some(api) = api {
        api.end_connections();
    }
}

/// From a hand-over to the beginning of the drain.
const LAST_ARRIVALS: Duration = Duration::from_secs(1);
