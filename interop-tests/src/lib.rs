//! Clusters, scenarios and invariants for Tidegate's tests, and its benchmarks.

pub mod bench;
pub mod clients;
pub mod gateway;
pub mod http;
pub mod programs;
pub mod raw;
pub mod wait;
