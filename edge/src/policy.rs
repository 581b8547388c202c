//! Decisions of the edge, sans-io.

pub(crate) mod repeats;
pub(crate) mod slow_consumer;
