//! Sans-io: a network made of arithmetic. Links that lose, delay, reorder and queue by a seed, and the middleboxes of a
//! path.
//!
//! ```text
//! client ── gate ── NAT ── Link up ───────────► server      Path: IPv4 packets, what the laboratory's TUN devices carry
//! client ◄─ gate ── NAT ◄─────── Link down ──── server      Wire: the two links alone, packets opaque: simulations
//! ```
//!
//! Everything is a function of the seed, the profile and the packets handed in with their instants: [`Link`] decides,
//! its driver (a simulation's loop, or the laboratory of `interop-tests`) waits.

mod gate;
mod ipv4;
mod link;
mod nat;
mod path;
mod profile;
mod wire;

pub use gate::UdpGate;
pub use ipv4::{Flow, Transport};
pub use link::{Counters, Link};
pub use nat::{NatConfig, NatCounters};
pub use path::{Path, PathCounters};
pub use profile::{Loss, Profile, ProfileError, Reorder};
pub use wire::{End, Wire};
