//! The node that clients connect to: terminates TLS, authenticates, holds sessions, fans out. It knows connections,
//! never business meaning, and assigns no offset.

mod channel_poll;
mod connection;
mod door;
mod events;
mod fleet;
mod key_file;
mod listener;
mod metrics;
mod node;
mod plans;
pub mod policy;
mod presence;
mod registry;
mod sessions;
mod upstream;
mod worker;

pub mod auth;
pub mod config;
pub mod drain;
pub mod resume;

pub use door::Door;
pub use fleet::{About, Fleet, FleetView, FleetWatch};
pub use listener::{Handover, ListenError, Sockets};
pub use metrics::Metrics;
pub use node::{Addresses, EdgeNode, Parts};
pub use plans::Plans;
pub use sessions::{EndKind, PARTS, SessionEnd, SessionInfo, SessionKey, SessionNews, Sessions};
pub use upstream::hub::{
    Dialer, HomeRules, Hub, HubConfig, HubError, HubMetrics, OpenFailure, OpenedLink, Uplink, UplinkFuture,
};
pub use worker::Routes;
