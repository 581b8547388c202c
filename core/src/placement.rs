//! Sans-io: which node has a partition. Which partition a channel is in: `tidegate_protocol::placement`.

pub(crate) mod ownership;
pub(crate) mod rendezvous;

pub use tidegate_protocol::placement::partition_of;
pub(crate) use tidegate_protocol::placement::{hash, partition_of_session};
