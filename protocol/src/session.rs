//! Sans-io: the session, both halves. It knows nothing of transports; drivers map its lanes to streams, datagrams
//! or one ordered pipe.

pub mod client;
pub mod resume;
pub mod server;
