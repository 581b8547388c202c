//! Decisions of the edge, sans-io. What storms and drains need of them is public: the simulator runs the same machines.

pub mod admission;
pub mod drain;
pub mod plan;

pub(crate) mod repeats;
pub(crate) mod slow_consumer;
