//! What stands between clients and a gateway, in the test's own process: it carries, and it cuts.

mod relay;
mod wire;

pub use relay::{Hole, Relay};
pub use wire::{Cut, Wire};
