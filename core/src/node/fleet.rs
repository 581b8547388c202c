//! The driver around what this node knows of edges: words in, lists out, payloads passed on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::drain::{DrainFrame, DrainQuestion};
use tidegate_protocol::link::fleet::{EdgeState, FleetEntry, RelayError, Relayed};
use tidegate_transport::clock;
use tidegate_transport::link::quic::{CoreEnd, EdgeWord, RelayRequest};
use tidegate_transport::link::{DrainAnswer, DrainCalls};
use tokio::sync::{Notify, watch};
use tokio::time::sleep_until;

use super::Inner;
use crate::fleet::FleetDesk;
use crate::metrics::CoreMetrics;

/// What all links of edges share.
#[derive(Debug)]
pub(super) struct Fleet {
    /// Locked for as long as a list takes to be copied.
    desk: Mutex<FleetDesk>,
    list: watch::Sender<Arc<Vec<FleetEntry>>>,
    /// Something is due at another time.
    timer: Notify,
    /// What this node asks of edges.
    calls: DrainCalls,
}

impl Fleet {
    pub(super) fn new() -> Self {
        let desk = Mutex::new(FleetDesk::new(clock::now()));
        Self { desk, list: watch::Sender::default(), timer: Notify::new(), calls: DrainCalls::default() }
    }

    /// Lists for edges, as they come.
    pub(super) fn lists(&self) -> watch::Receiver<Arc<Vec<FleetEntry>>> {
        self.list.subscribe()
    }

    /// What an edge that has just come is told.
    pub(super) fn all(&self) -> Arc<Vec<FleetEntry>> {
        Arc::new(self.desk().all(clock::now()))
    }

    /// Edges that are there.
    pub(super) fn there(&self) -> Vec<FleetEntry> {
        self.desk().there(clock::now())
    }

    /// Makes lists, until it is dropped.
    pub(super) async fn run(&self, metrics: &CoreMetrics) {
        loop {
            let now = clock::now();
            let (list, due) = {
                let mut desk = self.desk();
                (desk.handle_timeout(now), desk.poll_timeout())
            };
            if let Some(list) = list {
                metrics.set_edges(&list);
                self.list.send_replace(Arc::new(list));
            }
            let sleep = async {
                match due {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            // Biased: neither is ready for ever.
            tokio::select! {
                biased;
                () = self.timer.notified() => {}
                () = sleep => {}
            }
        }
    }

    fn announce(&self, state: EdgeState) {
        self.desk().handle_state(clock::now(), state);
        self.timer.notify_one();
    }

    fn desk(&self) -> MutexGuard<'_, FleetDesk> {
        // It decides, and waits for nobody.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What an edge says of itself, or has for another one.
    pub(super) fn hear(&self, edge: &NodeId, word: EdgeWord) {
        match word {
            EdgeWord::Announce(state) => self.fleet.announce(state),
            EdgeWord::Relay(request) => self.pass_on(edge, request),
        }
    }

    /// Asks an edge about its drain, or to do something about it.
    pub(super) async fn ask_edge(&self, edge: &NodeId, question: DrainQuestion) -> DrainAnswer {
        let send = |payload| std::future::ready(self.relay(edge, self.name.clone(), payload));
        self.fleet.calls.ask(edge, question, send).await
    }

    fn pass_on(&self, from: &NodeId, request: RelayRequest) {
        if !self.fleet.desk().allow_relay(clock::now(), from) {
            return request.busy();
        }
        if *request.to() == self.name {
            // Only answers are for cores.
            if let Ok(frame) = DrainFrame::decode(request.payload()) {
                self.fleet.calls.handle_answer(from, frame);
            }
            return request.passed();
        }
        match self.relay(request.to(), from.clone(), request.payload().clone()) {
            Ok(()) => request.passed(),
            // Dropped: the sender is told that there is no such edge.
            Err(RelayError::NoSuchEdge) => {}
            Err(_) => request.busy(),
        }
    }

    fn relay(&self, to: &NodeId, from: NodeId, payload: Bytes) -> Result<(), RelayError> {
        let end = self.end_of(to).filter(|end| end.takes_fleet()).ok_or(RelayError::NoSuchEdge)?;
        if end.try_relay(Relayed { from, payload }) { Ok(()) } else { Err(RelayError::Busy) }
    }

    /// Its newest connection, where it has several.
    fn end_of(&self, edge: &NodeId) -> Option<Arc<CoreEnd>> {
        let connected = self.connected();
        let target = connected.values().rev().find(|connected| connected.node == *edge);
        target.and_then(|connected| connected.end.upgrade())
    }
}
