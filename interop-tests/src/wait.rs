//! Waiting with an end: no test sleeps and hopes.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tidegate_transport::clock;

/// Long enough for anything on a loaded machine; a test that waits for so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The result of `future`, or an error that names what was waited for.
///
/// # Errors
/// When it takes longer than `within`.
pub async fn within<T>(within: Duration, what: impl Display, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(within, future).await.map_err(|_| anyhow!("{what}: not within {within:?}"))
}

/// Asks until there is an answer.
///
/// # Errors
/// When there is none within [`PATIENCE`]; with what `probe` said last.
pub async fn until<T, F, Fut>(what: impl Display, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let deadline = clock::now() + PATIENCE;
    loop {
        let error = match probe().await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if clock::now() >= deadline {
            return Err(error.context(format!("{what}: not within {PATIENCE:?}")));
        }
        tokio::time::sleep(BETWEEN_PROBES).await;
    }
}

const BETWEEN_PROBES: Duration = Duration::from_millis(15);
