//! The lease table in the memory of a process: nodes, owners of partitions, and those who follow both.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;
use tidegate_transport::clock;
use tokio::sync::watch;

use super::{
    AppendError, ClusterEvent, EngineFuture, JoinError, Membership, NodeRecord, PartitionId, PartitionRecord,
    RenewError, Watch,
};

/// Shared by all handles of an engine in this process.
#[derive(Debug, Clone)]
pub(super) struct Leases {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lease: Duration,
    table: Mutex<Table>,
    /// The table's version, for those who wait for another one.
    version: watch::Sender<u64>,
}

impl Leases {
    /// No nodes, and `partitions` as they were.
    pub(super) fn new(lease: Duration, partitions: Vec<PartitionRecord>) -> Self {
        let partitions =
            partitions.into_iter().map(|record| Versioned { version: 1, value: record }).collect();
        let table = Table { version: 1, nodes: BTreeMap::new(), partitions };
        Self { shared: Arc::new(Shared { lease, table: Mutex::new(table), version: watch::Sender::new(1) }) }
    }

    /// How long a membership lasts.
    pub(super) fn lease(&self) -> Duration {
        self.shared.lease
    }

    /// Enters a node that nobody alive shares the name of.
    pub(super) fn join(&self, node: NodeRecord) -> Result<Box<dyn Membership>, JoinError> {
        let id = node.id.clone();
        let mut table = self.table();
        if table.nodes.get(&id).is_some_and(|entry| entry.value.is_some()) {
            return Err(JoinError::NameTaken(id));
        }
        let version = table.bump();
        let lease = NodeLease { record: node, ends: clock::now() + self.shared.lease, joined: version };
        table.nodes.insert(id.clone(), Versioned { version, value: Some(lease) });
        self.tell(table);
        Ok(Box::new(LocalMembership { leases: self.clone(), id, joined: version, declines: None }))
    }

    /// Begins with everything.
    pub(super) fn watch(&self) -> Box<dyn Watch> {
        Box::new(LocalWatch {
            leases: self.clone(),
            version: self.shared.version.subscribe(),
            seen: 0,
            synced: false,
        })
    }

    /// A partition's record as it is now.
    pub(super) fn partition(&self, partition: PartitionId) -> Option<PartitionRecord> {
        self.table().partitions.get(usize::from(partition.0)).map(|entry| entry.value.clone())
    }

    /// Puts another record in the place of a partition's.
    pub(super) fn set_partition(&self, partition: PartitionId, record: PartitionRecord) {
        let mut table = self.table();
        let version = table.bump();
        if let Some(entry) = table.partitions.get_mut(usize::from(partition.0)) {
            *entry = Versioned { version, value: record };
        }
        self.tell(table);
    }

    /// Locked, and without leases that have ended.
    fn table(&self) -> MutexGuard<'_, Table> {
        // No method of `Table` leaves it half changed.
        let mut table = self.shared.table.lock().unwrap_or_else(PoisonError::into_inner);
        let before = table.version;
        table.expire(clock::now());
        if table.version != before {
            self.shared.version.send_replace(table.version);
        }
        table
    }

    fn tell(&self, table: MutexGuard<'_, Table>) {
        let version = table.version;
        drop(table);
        self.shared.version.send_modify(|told| *told = version.max(*told));
    }
}

/// What the transitions of a record have in common for all engines.
impl PartitionRecord {
    /// `node` takes it; the log's epoch and tail are as given.
    pub(super) fn claimed(&self, node: &NodeId, epoch: u64, tail: u64) -> Self {
        Self {
            owner: Some(node.clone()),
            next: None,
            ready: false,
            released: false,
            term: self.term + 1,
            epoch,
            high_water: tail,
        }
    }

    /// The owner of `term` wants `next` to prepare.
    pub(super) fn proposed(&self, term: u64, next: Option<&NodeId>) -> Result<Self, AppendError> {
        if self.term != term || self.released {
            return Err(AppendError::Fenced);
        }
        Ok(Self { next: next.cloned(), ready: false, ..self.clone() })
    }

    /// `node` has read the log of `term`'s owner.
    pub(super) fn readied(&self, term: u64, node: &NodeId) -> Result<Self, AppendError> {
        if self.term != term || self.next.as_ref() != Some(node) {
            return Err(AppendError::Fenced);
        }
        Ok(Self { ready: true, ..self.clone() })
    }

    /// The log of `term`'s owner certainly reaches to `tail`.
    pub(super) fn noted(&self, term: u64, tail: u64) -> Result<Self, AppendError> {
        if self.term != term {
            return Err(AppendError::Fenced);
        }
        Ok(Self { high_water: tail.max(self.high_water), ..self.clone() })
    }

    /// The owner of `term` has stopped at `tail`; `None`: it was not the owner any more.
    pub(super) fn given_up(&self, term: u64, tail: u64, to: Option<NodeId>) -> Option<Self> {
        if self.term != term {
            return None;
        }
        let released = to.is_some();
        Some(Self {
            owner: if released { self.owner.clone() } else { None },
            ready: self.ready && self.next == to,
            next: to,
            released,
            high_water: tail.max(self.high_water),
            ..self.clone()
        })
    }
}

#[derive(Debug)]
struct Table {
    /// Of the newest change.
    version: u64,
    /// Nodes that went stay, as `None`, so that they are told of. Whoever shares the process is an operator's choice:
    /// there are few names.
    nodes: BTreeMap<NodeId, Versioned<Option<NodeLease>>>,
    partitions: Vec<Versioned<PartitionRecord>>,
}

#[derive(Debug)]
struct Versioned<T> {
    version: u64,
    value: T,
}

#[derive(Debug)]
struct NodeLease {
    record: NodeRecord,
    ends: Instant,
    /// Tells a membership from an earlier one of the same name.
    joined: u64,
}

impl Table {
    fn bump(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn expire(&mut self, now: Instant) {
        for entry in self.nodes.values_mut() {
            if entry.value.as_ref().is_some_and(|lease| lease.ends <= now) {
                self.version += 1;
                *entry = Versioned { version: self.version, value: None };
            }
        }
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.nodes.values().filter_map(|entry| Some(entry.value.as_ref()?.ends)).min()
    }

    fn member(&mut self, id: &NodeId, joined: u64) -> Option<&mut Versioned<Option<NodeLease>>> {
        let entry = self.nodes.get_mut(id)?;
        if entry.value.as_ref()?.joined == joined { Some(entry) } else { None }
    }

    /// The oldest change after version `seen`.
    fn after(&self, seen: u64) -> Option<(u64, ClusterEvent)> {
        let node = self.nodes.iter().filter(|(_, entry)| entry.version > seen).min_by_key(|(_, e)| e.version);
        let node = node.map(|(id, entry)| {
            let record = entry.value.as_ref().map(|lease| lease.record.clone());
            (entry.version, ClusterEvent::Node { id: id.clone(), record })
        });
        let partitions = (0..).map(PartitionId).zip(&self.partitions);
        let partition = partitions.filter(|(_, entry)| entry.version > seen).min_by_key(|(_, e)| e.version);
        let partition = partition.map(|(partition, entry)| {
            (entry.version, ClusterEvent::Partition { partition, record: entry.value.clone() })
        });
        [node, partition].into_iter().flatten().min_by_key(|(version, _)| *version)
    }
}

#[derive(Debug)]
struct LocalMembership {
    leases: Leases,
    id: NodeId,
    joined: u64,
    /// To be told.
    declines: Option<Vec<u16>>,
}

impl Membership for LocalMembership {
    fn renew(&mut self) -> EngineFuture<'_, Result<(), RenewError>> {
        Box::pin(async {
            let ends = clock::now() + self.leases.lease();
            let mut table = self.leases.table();
            let version = table.version + 1;
            let entry = table.member(&self.id, self.joined).ok_or(RenewError::Lost)?;
            let lease = entry.value.as_mut().ok_or(RenewError::Lost)?;
            lease.ends = ends;
            let declines = self.declines.take().filter(|declines| *declines != lease.record.declines);
            // Nobody is told where the node says of itself what it said before.
            if let Some(declines) = declines {
                lease.record.declines = declines;
                entry.version = version;
                table.bump();
                self.leases.tell(table);
            }
            Ok(())
        })
    }

    fn set_declines(&mut self, declines: Vec<u16>) {
        self.declines = Some(declines);
    }

    fn leave(self: Box<Self>) -> EngineFuture<'static, ()> {
        Box::pin(async move {
            let mut table = self.leases.table();
            let version = table.bump();
            if let Some(entry) = table.member(&self.id, self.joined) {
                *entry = Versioned { version, value: None };
            }
            self.leases.tell(table);
        })
    }
}

/// Follows by comparing versions: one that is slow sees the newest state of each entry, and nothing queues up.
#[derive(Debug)]
struct LocalWatch {
    leases: Leases,
    version: watch::Receiver<u64>,
    seen: u64,
    synced: bool,
}

impl Watch for LocalWatch {
    fn next(&mut self) -> EngineFuture<'_, Option<ClusterEvent>> {
        Box::pin(async {
            loop {
                let expiry = {
                    let table = self.leases.table();
                    self.version.borrow_and_update();
                    if let Some((version, event)) = table.after(self.seen) {
                        self.seen = version;
                        // Who is not there need not be told at the beginning.
                        if !self.synced && matches!(event, ClusterEvent::Node { record: None, .. }) {
                            continue;
                        }
                        return Some(event);
                    }
                    table.next_expiry()
                };
                if !std::mem::replace(&mut self.synced, true) {
                    return Some(ClusterEvent::Synced);
                }
                let changed = self.version.changed();
                match expiry {
                    Some(expiry) => {
                        let _ = tokio::time::timeout_at(expiry.into(), changed).await;
                    }
                    None => changed.await.ok()?,
                }
            }
        })
    }
}
