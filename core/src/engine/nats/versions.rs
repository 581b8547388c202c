//! Which servers are new enough: all that the client may be led to, not the one that answered first.

use std::time::Duration;

use async_nats::Client;
use futures_util::future::join_all;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::Unavailable;
use super::config::{MIN_VERSION, NatsError};
use super::wire::unavailable;

/// Asks all servers that the client was told of, by the configuration or by others of their cluster. One that does not
/// answer is looked at when the client gets there: [`check_connected`].
pub(super) async fn check(client: &Client) -> Result<(), NatsError> {
    check_connected(client)?;
    let pool = client.server_pool().await.unwrap_or_default();
    let asked = pool.iter().map(|server| {
        let address = &server.addr;
        async move { (address.host(), address.port(), greeted(address.host(), address.port()).await) }
    });
    for (host, port, version) in join_all(asked).await {
        match version {
            Some(found) if !new_enough(&found) => {
                return Err(NatsError::TooOld { server: format!("{host}:{port}"), found });
            }
            Some(_) => {}
            None => tracing::debug!(host, port, "a NATS server does not answer: its version is not known"),
        }
    }
    Ok(())
}

/// The server that the client is connected to now.
pub(super) fn check_connected(client: &Client) -> Result<(), NatsError> {
    let info = client.server_info();
    if new_enough(&info.version) {
        return Ok(());
    }
    let server = format!("{}:{}", info.host, info.port);
    Err(NatsError::TooOld { server, found: info.version })
}

/// The same after another connection: a server that is too old is left for another one.
pub(super) async fn leave_old_server(client: &Client) -> Result<(), Unavailable> {
    let Err(error) = check_connected(client) else { return Ok(()) };
    tracing::error!(%error, "another server is looked for");
    // The library has ended: then nothing answers any more.
    let _ = client.force_reconnect().await;
    Err(unavailable(error))
}

/// What a server says before anything else, to anybody and in plain text, also where TLS follows: its version.
async fn greeted(host: &str, port: u16) -> Option<String> {
    let greeting = async {
        let socket = TcpStream::connect((host, port)).await.ok()?;
        let mut line = String::new();
        BufReader::new(socket.take(GREETING_BYTES)).read_line(&mut line).await.ok()?;
        let greeting: Greeting = serde_json::from_str(line.strip_prefix("INFO ")?).ok()?;
        Some(greeting.version)
    };
    timeout(GREETING, greeting).await.ok().flatten()
}

fn new_enough(version: &str) -> bool {
    let numbers = |text: &str| {
        let mut parts = text.split(['.', '-']).map(|part| part.parse::<u32>().ok());
        Some((parts.next()??, parts.next()??))
    };
    numbers(version).is_some_and(|found| Some(found) >= numbers(MIN_VERSION))
}

#[derive(Deserialize)]
struct Greeting {
    version: String,
}

const GREETING: Duration = Duration::from_secs(1);
/// Long lists of servers are in it.
const GREETING_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for version in ["2.11.0", "2.11", "2.15.1", "3.0.0", "2.12.0-RC.1", "10.0.0-beta"] {
            assert!(new_enough(version), "{version}");
        }
        for version in ["2.10.29", "2.9.10", "1.99.0", "", "x.y", "2"] {
            assert!(!new_enough(version), "{version}");
        }
    }
}
