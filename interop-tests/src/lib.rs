//! Clusters, scenarios and invariants for Tidegate's tests, and its benchmarks.

pub mod bench;
pub mod checker;
pub mod clients;
pub mod cluster;
pub mod faults;
pub mod gateway;
pub mod http;
pub mod lab;
pub mod middle;
pub mod nats;
mod ports;
mod process;
pub mod programs;
pub mod raw;
pub mod slow_link;
pub mod storm;
pub mod topology;
pub mod wait;
