//! Clusters of the real program: cores, edges and NATS servers as processes, over real sockets. Run by
//! `cargo xtask test`, which says where the programs are that this needs (`interop-tests/src/programs.rs`).
//!
//! The tests of sessions, transports, SDKs and the demo page are those of `tests/real`, unchanged: here the gateway that
//! they start is an edge of a cluster with two cores (`interop-tests/src/topology.rs`). Not among them:
//! - `restart`, `checker`: what a process alone forgets with its end. An edge forgets nothing of channels: the `restart`
//!   of this folder.
//! - `engine`, `hub`, `lab`, `local`: they start no gateway, or none of its transports are meant.
//! - `kills`: 500 cuts of connections take minutes; `resume` is here, and `faults` does worse to a cluster.
//! - `program`: what the command line prints.

mod drain;
mod everywhere;
mod faults;
mod fleet;
mod ownership;
mod plan;
mod presence;
mod restart;
mod watch;

use self::real::support;

#[path = "../real"]
mod real {
    mod api;
    mod auth;
    mod deliver;
    mod demo;
    mod hostile;
    mod isolation;
    mod ladder;
    mod ladder_js;
    mod legacy;
    mod mobile_js;
    pub(crate) mod presence;
    mod recovery;
    mod resume;
    mod shutdown;
    mod slow;
    pub(crate) mod support;
}
