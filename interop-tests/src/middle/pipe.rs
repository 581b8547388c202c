//! The way to one TCP address. It can be cut without a word to either side: nothing moves any more, not even an end, and
//! what had been sent arrives once the cut is healed, late, as TCP does it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Carries TCP connections to one address.
#[derive(Debug)]
pub struct Pipe {
    /// Where others find the server.
    pub address: SocketAddr,
    is_open: Arc<watch::Sender<bool>>,
    _stop: DropGuard,
}

impl Pipe {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When there is no socket.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let is_open = Arc::new(watch::Sender::new(true));
        let stop = CancellationToken::new();
        let (tasks, opening, all) = (TaskTracker::new(), is_open.subscribe(), stop.clone());
        let connections = tasks.clone();
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                let carrying = carry(client, server, opening.clone());
                connections.spawn(all.clone().run_until_cancelled_owned(carrying));
            }
        }));
        Ok(Self { address, is_open, _stop: stop.drop_guard() })
    }

    /// Nothing moves any more, in either direction.
    pub fn cut(&self) {
        self.is_open.send_replace(false);
    }

    /// Everything moves again, first what was held up.
    pub fn heal(&self) {
        self.is_open.send_replace(true);
    }
}

async fn carry(client: TcpStream, server: SocketAddr, mut is_open: watch::Receiver<bool>) {
    open(&mut is_open).await;
    // Nobody listens there: the client's connection ends with this.
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _delayed = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Each direction ends by itself.
    tokio::join!(pump(from_client, to_server, is_open.clone()), pump(from_server, to_client, is_open));
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_open: watch::Receiver<bool>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        open(&mut is_open).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _ended = to.shutdown().await;
            return;
        }
    }
}

async fn open(is_open: &mut watch::Receiver<bool>) {
    if is_open.wait_for(|is_open| *is_open).await.is_err() {
        // Gone with the pipe itself.
        std::future::pending().await
    }
}

const BUFFER: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::ensure;

    use super::*;
    use crate::wait::{PATIENCE, within};

    #[tokio::test]
    async fn what_was_held_up_arrives_when_the_cut_is_healed_also_the_end() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let pipe = Pipe::to(listener.local_addr()?).await?;
        let mut client = TcpStream::connect(pipe.address).await?;
        let (mut server, _) = within(PATIENCE, "a connection", listener.accept()).await??;
        client.write_all(b"a").await?;
        let mut buffer = [0; 8];
        ensure!(within(PATIENCE, "a byte", server.read(&mut buffer)).await?? == 1);

        pipe.cut();
        client.write_all(b"bc").await?;
        client.shutdown().await?;
        let mut late = TcpStream::connect(pipe.address).await?;
        late.write_all(b"d").await?;
        let silence = tokio::time::timeout(Duration::from_millis(100), server.read(&mut buffer)).await;
        ensure!(silence.is_err(), "{silence:?}");
        pipe.heal();
        let mut rest = Vec::new();
        within(PATIENCE, "the rest", server.read_to_end(&mut rest)).await??;
        ensure!(rest == b"bc", "{rest:?}");
        let (mut server, _) = within(PATIENCE, "the late connection", listener.accept()).await??;
        ensure!(within(PATIENCE, "its byte", server.read(&mut buffer)).await?? == 1 && buffer[0] == b'd');
        Ok(())
    }
}
