//! The lease table: a key per live node, which ends by itself, and a key per partition, which changes by comparing.

use std::time::Duration;

use async_nats::{HeaderMap, header};
use bytes::Bytes;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tidegate_transport::clock;
use tokio::time::sleep;

use super::super::{
    AppendError, EngineFuture, JoinError, Membership, NodeRecord, PartitionId, PartitionRecord, RenewError,
    Unavailable,
};
use super::names::Names;
use super::wire::{Expected, OPERATION, PublishError, Stored, Wire};

/// The table, on the servers.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) wire: Wire,
    pub(super) names: Names,
    /// Of this process, as its nodes' entries bear it.
    pub(super) process: u64,
}

/// What is stored of a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    pub(super) record: PartitionRecord,
    /// The first position of this epoch.
    #[serde(default)]
    pub(super) begins: u64,
    /// The sequence of the claim before it.
    #[serde(default)]
    pub(super) start: u64,
    /// By how much positions lag behind sequences since the newest claim, or less.
    #[serde(default)]
    pub(super) lag: u64,
    /// The snapshot that is complete.
    #[serde(default)]
    pub(super) snapshot: Option<Pieces>,
}

/// A snapshot whose pieces are all stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pieces {
    /// The last position that is in it.
    pub(super) at: u64,
    pub(super) count: u32,
    /// Who wrote it.
    pub(super) term: u64,
}

impl Entry {
    /// To be changed by the owner of `term`, if it is the newest.
    pub(super) fn of(&self, term: u64) -> Result<Self, AppendError> {
        if self.record.term == term { Ok(self.clone()) } else { Err(AppendError::Fenced) }
    }
}

impl Table {
    /// What is stored of a partition, and as which sequence; 0: nothing.
    pub(super) async fn entry(&self, partition: PartitionId) -> Result<(Entry, u64), ReadError> {
        let (stream, subject) = (self.names.lease_stream(), self.names.partition(partition));
        match self.wire.last_of(&stream, &subject).await.map_err(ReadError::Unavailable)? {
            Some(stored) if stored.tombstone => Ok((Entry::default(), stored.sequence)),
            Some(stored) => {
                let entry = serde_json::from_slice(&stored.payload);
                let entry =
                    entry.map_err(|error| ReadError::Damaged(format!("{subject} in {stream}: {error}")))?;
                Ok((entry, stored.sequence))
            }
            None => Ok((Entry::default(), 0)),
        }
    }

    /// Puts what `change` makes of the entry in its place, unless somebody was quicker: then again. An outcome that is
    /// unknown is looked at by another round, so `change` must bear to be applied to what it made.
    pub(super) async fn change(
        &self,
        partition: PartitionId,
        change: impl Fn(&Entry) -> Result<Entry, AppendError> + Send + Sync,
    ) -> Result<Entry, AppendError> {
        let subject = self.names.partition(partition);
        let deadline = clock::now() + PATIENCE;
        loop {
            let reason = match self.entry(partition).await {
                Ok((entry, sequence)) => {
                    let changed = change(&entry)?;
                    if changed == entry {
                        return Ok(entry);
                    }
                    let expected = Expected::LastOfSubject(sequence);
                    match self
                        .wire
                        .publish(&subject, expected, HeaderMap::new(), json(&changed), ATTEMPT)
                        .await
                    {
                        Ok(_) => return Ok(changed),
                        Err(PublishError::Unexpected) => "others change the partition's record".to_owned(),
                        Err(PublishError::Refused(reason)) => return Err(AppendError::Refused(reason)),
                        Err(PublishError::Unheard(reason) | PublishError::Unknown(reason)) => reason,
                    }
                }
                Err(ReadError::Unavailable(error)) => error.0,
                Err(ReadError::Damaged(reason)) => return Err(AppendError::Refused(reason)),
            };
            if clock::now() + PAUSE >= deadline {
                return Err(AppendError::Unavailable(reason));
            }
            sleep(PAUSE).await;
        }
    }

    /// Enters a node.
    pub(super) async fn join(&self, node: NodeRecord, lease: Duration) -> Result<NatsMembership, JoinError> {
        let (stream, subject) = (self.names.lease_stream(), self.names.node(&node.id));
        let id = node.id.clone();
        let entry = NodeEntry { node, membership: clock::rng().next_u64(), process: self.process };
        let mut membership = NatsMembership { table: self.clone(), subject, entry, sequence: 0, lease };
        let deadline = clock::now() + PATIENCE;
        loop {
            let reason = match membership.publish().await {
                Ok(()) => return Ok(membership),
                Err(PublishError::Unexpected) => {
                    match self.wire.last_of(&stream, &membership.subject).await {
                        Ok(None) => {
                            membership.sequence = 0;
                            continue;
                        }
                        // Its lease has ended, or it left, or an answer to us was lost; or it was ours before, and was
                        // given up: nobody has to wait for its end, which is long where servers elect.
                        Ok(Some(stored)) if stored.tombstone || membership.is_of_this_process(&stored) => {
                            membership.sequence = stored.sequence;
                            continue;
                        }
                        Ok(Some(_)) => return Err(JoinError::NameTaken(id)),
                        Err(error) => error.0,
                    }
                }
                Err(
                    PublishError::Refused(reason)
                    | PublishError::Unheard(reason)
                    | PublishError::Unknown(reason),
                ) => reason,
            };
            if clock::now() + PAUSE >= deadline {
                return Err(Unavailable(reason).into());
            }
            sleep(PAUSE).await;
        }
    }
}

/// Why an entry is not known.
#[derive(Debug)]
pub(super) enum ReadError {
    Unavailable(Unavailable),
    Damaged(String),
}

/// What is stored of a node.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodeEntry {
    #[serde(flatten)]
    pub(super) node: NodeRecord,
    /// Tells it from an earlier membership of the same node.
    membership: u64,
    /// Tells it from another process of the same name.
    #[serde(default)]
    process: u64,
}

/// A node's key, which ends unless it is written again.
#[derive(Debug)]
pub(super) struct NatsMembership {
    table: Table,
    subject: String,
    entry: NodeEntry,
    /// Of what we wrote last.
    sequence: u64,
    lease: Duration,
}

impl NatsMembership {
    async fn publish(&mut self) -> Result<(), PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_TTL, ttl(self.lease));
        let expected = Expected::LastOfSubject(self.sequence);
        let value = json(&self.entry);
        self.sequence = self.table.wire.publish(&self.subject, expected, headers, value, RENEWAL).await?;
        Ok(())
    }

    /// By this membership: whatever it says of its node.
    fn wrote(&self, stored: &Stored) -> bool {
        serde_json::from_slice::<NodeEntry>(&stored.payload)
            .is_ok_and(|entry| entry.membership == self.entry.membership)
    }

    fn is_of_this_process(&self, stored: &Stored) -> bool {
        serde_json::from_slice::<NodeEntry>(&stored.payload)
            .is_ok_and(|entry| entry.process == self.entry.process)
    }

    async fn renew_once(&mut self) -> Result<(), RenewError> {
        let stream = self.table.names.lease_stream();
        let deadline = clock::now() + self.lease / 2;
        loop {
            let reason = match self.publish().await {
                Ok(()) => return Ok(()),
                Err(PublishError::Unexpected) => {
                    match self.table.wire.last_of(&stream, &self.subject).await {
                        // An earlier renewal whose answer was lost. Its time counts from then: once more.
                        Ok(Some(stored)) if !stored.tombstone && self.wrote(&stored) => {
                            self.sequence = stored.sequence;
                            "the lease table is busy".to_owned()
                        }
                        Ok(_) => return Err(RenewError::Lost),
                        Err(error) => error.0,
                    }
                }
                Err(PublishError::Refused(reason)) => match self.stands(&stream).await {
                    Ok(true) => {
                        tracing::warn!(
                            reason,
                            "the lease table takes nothing: the entry that is there counts"
                        );
                        return Ok(());
                    }
                    Ok(false) => return Err(RenewError::Lost),
                    Err(error) => error.0,
                },
                Err(PublishError::Unheard(reason) | PublishError::Unknown(reason)) => reason,
            };
            if clock::now() + PAUSE >= deadline {
                return Err(Unavailable(reason).into());
            }
            sleep(PAUSE).await;
        }
    }

    /// Where there is no room, entries do not end either: their end would have to be stored (nats-server 2.15.1). So nobody
    /// is told that this node is gone, and nobody can claim, until there is room; then this entry ends at once, or is
    /// renewed. Should a node claim in that second, the log fences what this one writes; what it says may be as old.
    async fn stands(&self, stream: &str) -> Result<bool, Unavailable> {
        let stored = self.table.wire.last_of(stream, &self.subject).await?;
        Ok(stored.is_some_and(|stored| !stored.tombstone && self.wrote(&stored)))
    }

    async fn leave_once(&mut self) {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_TTL, ttl(self.lease));
        headers.insert(OPERATION, "DEL");
        for _ in 0..3 {
            let (headers, expected) = (headers.clone(), Expected::LastOfSubject(self.sequence));
            let told = self.table.wire.publish(&self.subject, expected, headers, Bytes::new(), RENEWAL).await;
            if !matches!(told, Err(PublishError::Unheard(_) | PublishError::Unknown(_))) {
                return;
            }
        }
        tracing::warn!(subject = self.subject, "could not say that this node leaves: its lease will end");
    }
}

impl Membership for NatsMembership {
    fn renew(&mut self) -> EngineFuture<'_, Result<(), RenewError>> {
        Box::pin(self.renew_once())
    }

    fn set_declines(&mut self, declines: Vec<u16>) {
        self.entry.node.declines = declines;
    }

    fn leave(mut self: Box<Self>) -> EngineFuture<'static, ()> {
        Box::pin(async move { self.leave_once().await })
    }
}

fn ttl(lease: Duration) -> String {
    format!("{}s", lease.as_secs())
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("numbers and text have JSON").into()
}

/// Elections take longer: callers try again.
const PATIENCE: Duration = Duration::from_secs(4);
const ATTEMPT: Duration = Duration::from_secs(1);
/// Several fit into a lease.
const RENEWAL: Duration = Duration::from_millis(600);
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use tidegate_protocol::NodeId;

    use super::*;

    #[test]
    fn what_is_stored_is_the_record_and_more() {
        let record =
            PartitionRecord { owner: Some(NodeId::new("a")), term: 3, epoch: u64::MAX, ..Default::default() };
        let pieces = Pieces { at: 9, count: 2, term: 3 };
        let entry = Entry { record: record.clone(), begins: 4, start: 5, lag: 1, snapshot: Some(pieces) };
        let stored = json(&entry);
        assert_eq!(serde_json::from_slice::<Entry>(&stored).expect("ours"), entry);
        assert_eq!(serde_json::from_slice::<PartitionRecord>(&stored).expect("part of it"), record);
    }
}
