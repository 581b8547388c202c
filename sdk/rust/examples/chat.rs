//! A chat in a terminal: `cargo run -p tidegate-client --example chat -- quic://localhost:4433 room:1 [certificate hash]`.
//! Lines of the standard input are published; what others publish is printed.

use std::error::Error;

use tidegate_client::{Client, Payload, SubscriptionEvent};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(channel)) = (arguments.next(), arguments.next()) else {
        return Err("usage: chat <url> <channel> [certificate hash]".into());
    };
    let mut builder = Client::builder(url);
    if let Some(hash) = arguments.next() {
        builder = builder.with_certificate_hash(hash);
    }
    if let Ok(token) = std::env::var("TIDEGATE_TOKEN") {
        builder = builder.with_token(token);
    }
    let client = builder.connect().await?;
    let mut room = client.subscribe(&channel).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(text) => {
                    let payload = serde_json::to_vec(&serde_json::json!({ "text": text }))?;
                    client.publish(&channel, Payload::Json(payload.into())).await?;
                }
                None => break,
            },
            event = room.next() => match event {
                Some(SubscriptionEvent::Publication(publication)) => {
                    let (Payload::Json(bytes) | Payload::Binary(bytes)) = publication.payload;
                    println!("{} {}", publication.position.offset, String::from_utf8_lossy(&bytes));
                }
                Some(SubscriptionEvent::Subscribed { position, recovered }) => {
                    println!("-- at {} (recovered: {recovered})", position.offset);
                }
                Some(SubscriptionEvent::Rebased { position }) => println!("-- missed something, at {}", position.offset),
                Some(SubscriptionEvent::Unsubscribed { error }) => println!("-- the server ended it: {error:?}"),
                Some(_) => {}
                None => break,
            },
        }
    }
    client.close().await;
    Ok(())
}
