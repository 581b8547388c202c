//! What a core node can be told: every bound of the channel tier, with defaults that are safe for production.

use std::time::Duration;

use crate::presence::Bounds;

/// Bounds of the channel tier. All of them are per node unless they say otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreConfig {
    /// Partitions. Fixed once the engine's logs exist: another number puts channels elsewhere.
    pub partitions: u16,
    /// Commands that wait in one partition's queue; beyond it links and backend requests wait.
    pub partition_queue: usize,
    /// Frames that wait on a link, each way.
    pub link_queue: usize,
    /// The most commands that a partition takes at once, and so the most records of one log frame.
    pub batch_commands: usize,
    /// A log frame is closed once it holds so many bytes.
    pub batch_bytes: usize,
    /// The largest payload, bytes.
    pub max_payload: usize,
    /// How long idempotency keys are remembered.
    pub key_age: Duration,
    /// How many of them per channel; the oldest go first.
    pub keys_per_channel: usize,
    /// A channel without history, keys and interest is forgotten this long after it was last asked for. It comes
    /// back with another epoch.
    pub forget_after: Duration,
    /// Channels per partition; beyond it new ones are refused.
    pub max_channels: usize,
    /// Sessions per partition of which spent resume tickets are remembered; beyond it further sessions are not resumed,
    /// and their clients connect with their tokens.
    pub max_resumed: usize,
    /// Users that a channel knows one by one; those beyond it are counted.
    pub presence_users: usize,
    /// Users of a link on a channel, and channels that a link watches, per partition; beyond it nobody new is counted.
    pub presence_entries: usize,
    /// What a link said of who is there counts so long after its end.
    pub presence_grace: Duration,
    /// How long a partition waits for a full link before it cuts it. Everybody else on the partition waits too.
    pub link_wait: Duration,
    /// Partitions that this node hands over at once, where it is one of several; four times as many when it leaves.
    pub handovers: usize,
    /// Logs that are read at once, after claims and ahead of them.
    pub replays: usize,
    /// How long an edge that asks for a partition waits until this node serves it, where it is about to.
    pub open_wait: Duration,
    /// Edges' requests for partitions that wait so; beyond it they are sent away.
    pub opening: usize,
    /// A partition whose log grew is snapshot this often: less is to be read when another node takes it.
    pub snapshot_every: Duration,
    /// And after so many log frames.
    pub snapshot_frames: u64,
    /// How long publications are collected into one log frame while frames are many, the engine is replicated and several
    /// have come already; zero for never.
    pub linger: Duration,
    /// Frames are many beyond this rate, per second and node.
    pub linger_above: u32,
    /// Publications and history reads of the backend API in flight; beyond it they are refused as unavailable.
    pub backend_in_flight: usize,
    /// After this long a backend request is answered as unavailable, its outcome unknown.
    pub backend_wait: Duration,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            partitions: 16,
            partition_queue: 4096,
            link_queue: 1024,
            batch_commands: 512,
            batch_bytes: 256 << 10,
            max_payload: 64 << 10,
            key_age: Duration::from_secs(300),
            keys_per_channel: 1024,
            forget_after: Duration::from_secs(300),
            max_channels: 1 << 20,
            max_resumed: 1 << 17,
            presence_users: 1000,
            presence_entries: 1 << 18,
            presence_grace: Duration::from_secs(10),
            link_wait: Duration::from_secs(5),
            handovers: 2,
            replays: 4,
            open_wait: Duration::from_secs(5),
            opening: 2048,
            snapshot_every: Duration::from_secs(600),
            snapshot_frames: 100_000,
            linger: Duration::from_millis(1),
            linger_above: 500,
            backend_in_flight: 4096,
            backend_wait: Duration::from_secs(10),
        }
    }
}

impl CoreConfig {
    /// What bounds who is there, in one partition.
    pub(crate) fn presence(&self) -> Bounds {
        Bounds {
            users: self.presence_users,
            entries: self.presence_entries,
            grace_ms: u64::try_from(self.presence_grace.as_millis()).unwrap_or(u64::MAX >> 1),
        }
    }
}
