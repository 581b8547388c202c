//! The real program over real sockets: everything through the surface that a user has. Run by `cargo xtask test`, which
//! says where the programs are that this needs (`interop-tests/src/programs.rs`).

mod admission;
mod api;
mod auth;
mod checker;
mod deliver;
mod demo;
mod engine;
mod hostile;
mod hub;
mod isolation;
mod kills;
mod lab;
mod ladder;
mod ladder_js;
mod legacy;
mod local;
mod mobile_js;
mod presence;
mod program;
mod recovery;
mod restart;
mod resume;
mod shutdown;
mod slow;
mod support;
mod take_over;
mod tls_resumption;
