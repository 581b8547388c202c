//! What a core node can be told: every bound of the channel tier, with defaults that are safe for production.

use std::time::Duration;

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
    /// How long a partition waits for a full link before it cuts it. Everybody else on the partition waits too.
    pub link_wait: Duration,
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
            link_wait: Duration::from_secs(5),
            backend_in_flight: 4096,
            backend_wait: Duration::from_secs(10),
        }
    }
}
