//! Tidegate client for Rust: channels over QUIC, WebTransport, WebSocket or long poll, in order and without gap or duplicate across
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
//! The client reconnects by itself, as the server's close codes and full jitter say, resumes its session where the server
//! gave it a ticket, and takes up every subscription from its last position. [`Client::take_events`] tells what happens
//! meanwhile.
//!
//! # Transports
//!
//! Each transport is a rung of a ladder, in the order of the URLs or of [`Builder::with_transports`]. QUIC has a head start
//! of a quarter to half a second; then the WebSocket joins, and long poll behind it; the first that opens serves. What did
//! not work on a network is remembered for a while, and tried again beside the connection that works: the session moves
//! without a break. A connection on which nothing comes back any more is left in the same way.
//!
//! ```no_run
//! use tidegate_client::{Client, Transport};
//!
//! # async fn run(saved: Option<String>) -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("quic://gateway.example:4433")
//!     .with_transports([Transport::Quic, Transport::WebSocket, Transport::LongPoll])
//!     // What an earlier run learned of networks.
//!     .with_ladder_memory(saved.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
//!     .connect()
//!     .await?;
//!
//! // When the OS says that the network changed: QUIC goes on from the new address.
//! client.network_changed().await;
//!
//! let keep = serde_json::to_string(&client.ladder_memory().await?)?;
//! # drop(keep);
//! # Ok(())
//! # }
//! ```

mod builder;
mod client;
mod driver;
mod endpoint;
mod error;
mod tls;
mod transport;

#[cfg(test)]
mod tests;

pub use builder::{Builder, QuicOptions};
pub use client::{
    Client, ClientEvent, Ephemeral, Events, History, Presence, PresentUser, Publication, State,
    SubscribeOptions, Subscription, SubscriptionEvent,
};
pub use error::ClientError;
pub use tidegate_fallback::ladder::{LadderConfig, LadderMemory};
pub use tidegate_protocol::frame::Payload;
pub use tidegate_protocol::{Epoch, Offset, Position};
pub use transport::Transport;
