//! Tidegate client for Rust: channels over QUIC, WebSocket or long poll, in order and without gap or duplicate across
//! reconnects.
//!
//! ```no_run
//! use tidegate_client::{Client, Payload, SubscriptionEvent};
//!
//! # async fn run() -> Result<(), tidegate_client::ClientError> {
//! let client = Client::builder("quic://localhost:4433")
//!     .with_url("wss://localhost:4433") // where UDP does not get through
//!     .with_ca_file("certs/ca.pem")
//!     .with_token("eyJhbGciOi...")
//!     .connect()
//!     .await?;
//!
//! let mut room = client.subscribe("room:1").await?;
//! let position = client.publish("room:1", Payload::Json("{\"text\":\"hello\"}".into())).await?;
//! println!("kept at {}", position.offset);
//!
//! while let Some(event) = room.next().await {
//!     match event {
//!         SubscriptionEvent::Publication(publication) => println!("{:?}", publication.payload),
//!         SubscriptionEvent::Rebased { position } => println!("missed something; going on after {}", position.offset),
//!         _ => {}
//!     }
//! }
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! The client reconnects by itself, as the server's close codes and full jitter say, and takes up every subscription from
//! its last position. [`Client::take_events`] tells what happens meanwhile.

mod builder;
mod client;
mod driver;
mod endpoint;
mod error;
mod tls;
mod transport;

#[cfg(test)]
mod tests;

pub use builder::Builder;
pub use client::{
    Client, ClientEvent, Ephemeral, Events, History, Publication, State, Subscription, SubscriptionEvent,
};
pub use error::ClientError;
pub use tidegate_protocol::frame::Payload;
pub use tidegate_protocol::{Epoch, Offset, Position};
pub use transport::Transport;
