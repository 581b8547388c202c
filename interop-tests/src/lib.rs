//! Clusters, scenarios and invariants for Tidegate's tests, and its benchmarks.

pub mod bench;
