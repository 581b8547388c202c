//! The channel tier: numbers publications, keeps them, and sends each once to every edge that is interested.
//!
//! A channel belongs to one partition ([`partition_of`]); one task owns a partition's channels and its log, so nothing
//! here is locked. What a partition decides is in the sans-io `channel` modules; `partition` only waits.

mod channel;
mod config;
mod fleet;
mod link;
mod metrics;
mod partition;
mod placement;
mod presence;
mod session;

pub mod engine;
pub mod node;
pub mod publish;

pub use channel::LogFrameError;
#[doc(hidden)]
pub use channel::fuzz_log_frame;
pub use config::CoreConfig;
pub use metrics::CoreMetrics;
pub use node::{CoreNode, Lifecycle, StartError};
pub use placement::partition_of;
pub use publish::{BackendAccess, BackendApi, BackendConfig};
