//! Where links and requests find the partitions of this node.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::partition::{Command, PartitionStatus};

/// What this node has of a partition.
#[derive(Debug, Clone)]
pub(crate) enum View {
    /// Nothing: another node has it, or nobody.
    Elsewhere,
    /// It will serve it soon, as far as it knows.
    Coming,
    /// It serves it.
    Serving(Served),
}

/// A partition that is served.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    /// Takes commands, until it is closed.
    pub(crate) queue: mpsc::Sender<Command>,
    /// Of the claim.
    pub(crate) term: u64,
    /// Of the log.
    pub(crate) epoch: u64,
    /// What the partition says of itself.
    pub(crate) status: Arc<PartitionStatus>,
}

/// All partitions of the cluster, as this node has them. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    slots: Arc<[watch::Sender<View>]>,
}

impl Slots {
    /// Nothing of any.
    pub(crate) fn new(partitions: u16) -> Self {
        Self { slots: (0..partitions).map(|_| watch::Sender::new(View::Elsewhere)).collect() }
    }

    /// How many there are in the cluster.
    pub(crate) fn len(&self) -> u16 {
        // Made for a u16.
        self.slots.len() as u16
    }

    /// The partition, where it is served here now.
    pub(crate) fn served(&self, partition: u16) -> Option<Served> {
        match &*self.slots.get(usize::from(partition))?.borrow() {
            View::Serving(served) if !served.queue.is_closed() => Some(served.clone()),
            View::Serving(_) | View::Coming | View::Elsewhere => None,
        }
    }

    /// Takes the partition's commands, where it is served here now.
    pub(crate) fn queue(&self, partition: u16) -> Option<mpsc::Sender<Command>> {
        Some(self.served(partition)?.queue)
    }

    /// Waits while the partition is coming; `None` where it does not come.
    pub(crate) async fn wait(&self, partition: u16) -> Option<Served> {
        let mut view = self.slots.get(usize::from(partition))?.subscribe();
        loop {
            match &*view.borrow_and_update() {
                View::Serving(served) if !served.queue.is_closed() => return Some(served.clone()),
                View::Coming => {}
                View::Serving(_) | View::Elsewhere => return None,
            }
            view.changed().await.ok()?;
        }
    }

    /// For whoever decides.
    pub(crate) fn set(&self, partition: u16, view: View) {
        if let Some(slot) = self.slots.get(usize::from(partition)) {
            slot.send_replace(view);
        }
    }

    /// For the partition itself.
    pub(crate) fn handle(&self, partition: u16) -> SlotHandle {
        SlotHandle { slots: self.clone(), partition }
    }
}

/// A partition's own place.
#[derive(Debug)]
pub(crate) struct SlotHandle {
    slots: Slots,
    partition: u16,
}

impl SlotHandle {
    /// Served on, under another claim.
    pub(crate) fn reclaimed(&self, term: u64, epoch: u64) {
        if let Some(slot) = self.slots.slots.get(usize::from(self.partition)) {
            slot.send_if_modified(|view| {
                let View::Serving(served) = view else { return false };
                (served.term, served.epoch) = (term, epoch);
                true
            });
        }
    }
}
