//! What stands between clients and a gateway, or between nodes, in the test's own process: it carries, and it cuts.

mod flows;
mod pipe;
mod relay;
mod wire;

pub use flows::Flows;
pub use pipe::Pipe;
pub use relay::{Hole, Relay};
pub use wire::{Cut, Wire};
