//! A wire that is cut: carries TCP connections to one address, until they break in one of several ways.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Carries TCP connections to one address.
#[derive(Debug)]
pub struct Wire {
    /// Where clients find the server.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// How connections break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both ends are reset, at once, in the middle of whatever they carry.
    Both,
    /// Both ends end in order, as TCP goes.
    Orderly,
    /// The client's end is reset; the server goes on and knows nothing of it.
    Client,
    /// So many bytes of the server's still arrive, then both ends are reset: in the middle of an answer.
    After(usize),
    /// The server still gets what the client asks; its answer is lost, and both ends are reset.
    Answer,
}

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Vec<Arc<Line>>>,
    /// What clients sent first, a connection each.
    heads: Mutex<Vec<String>>,
}

/// One connection.
#[derive(Debug, Default)]
struct Line {
    state: Mutex<State>,
    /// Cancelled when the client's end is to break.
    broken: CancellationToken,
    /// Cancelled when the client's end is gone.
    gone: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Whole,
    After(usize),
    /// True: the client has sent something since.
    Answer(bool),
    Broken(Cut),
}

impl Wire {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When there is no socket.
    pub async fn to(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::<Shared>::default();
        let stop = CancellationToken::new();
        let (carrying, tasks) = (Arc::clone(&shared), TaskTracker::new());
        let (lines, all) = (tasks.clone(), stop.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                let line = Arc::<Line>::default();
                locked(&carrying.lines).push(Arc::clone(&line));
                let shared = Arc::clone(&carrying);
                lines.spawn(all.clone().run_until_cancelled_owned(async move {
                    carry(client, target, &shared, &line).await;
                }));
            }
        }));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Resets every connection at once, in the middle of whatever it carries. Says how many there were.
    pub fn cut(&self) -> usize {
        let lines = std::mem::take(&mut *locked(&self.shared.lines));
        lines.iter().filter(|line| line.break_off(Cut::Both)).count()
    }

    /// Breaks every connection that there is, and waits until all are gone. Says how many of them this broke: others may
    /// have ended before it came to that.
    pub async fn cut_by(&self, cut: Cut) -> usize {
        let mut lines = std::mem::take(&mut *locked(&self.shared.lines));
        lines.retain(|line| !line.gone.is_cancelled());
        let state = match cut {
            Cut::After(bytes) => Some(State::After(bytes)),
            Cut::Answer => Some(State::Answer(false)),
            Cut::Both | Cut::Orderly | Cut::Client => None,
        };
        if let Some(state) = state {
            for line in &lines {
                line.change(state);
            }
            let first = lines.iter().map(|line| Box::pin(line.gone.cancelled()));
            if !lines.is_empty() {
                // Where nothing is said, there is nothing to wait for.
                let _silent = tokio::time::timeout(SILENCE, futures_util::future::select_all(first)).await;
            }
        }
        let at_last = if state.is_some() { Cut::Both } else { cut };
        for line in &lines {
            line.break_off(at_last);
            line.gone.cancelled().await;
        }
        lines.iter().filter(|line| matches!(*locked(&line.state), State::Broken(_))).count()
    }

    /// What clients sent first.
    pub fn heads(&self) -> Vec<String> {
        locked(&self.shared.heads).clone()
    }
}

impl Line {
    fn change(&self, to: State) {
        let mut state = locked(&self.state);
        if *state == State::Whole {
            *state = to;
        }
    }

    /// False where it is broken already, or ended by itself.
    fn break_off(&self, cut: Cut) -> bool {
        let mut state = locked(&self.state);
        if self.gone.is_cancelled() || matches!(*state, State::Broken(_)) {
            return false;
        }
        *state = State::Broken(cut);
        self.broken.cancel();
        true
    }

    /// How many of these bytes of the server's arrive.
    fn allow(&self, length: usize) -> usize {
        let mut state = locked(&self.state);
        match *state {
            State::Whole => length,
            State::After(left) if left > length => {
                *state = State::After(left - length);
                length
            }
            State::After(left) => {
                *state = State::Broken(Cut::Both);
                left
            }
            State::Answer(asked) => {
                if asked {
                    *state = State::Broken(Cut::Both);
                }
                0
            }
            State::Broken(_) => 0,
        }
    }

    fn is_broken(&self) -> bool {
        matches!(*locked(&self.state), State::Broken(_))
    }
}

async fn carry(client: TcpStream, target: SocketAddr, shared: &Shared, line: &Line) {
    let gone = line.gone.clone().drop_guard();
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _delayed = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    tokio::select! {
        () = line.broken.cancelled() => {}
        // An end of either side ends both.
        () = up(from_client, &to_server, shared, line) => {}
        () = down(&mut from_server, &to_client, line) => {}
    }
    let cut = match *locked(&line.state) {
        State::Broken(cut) => cut,
        _ => Cut::Orderly,
    };
    end(to_client, cut);
    drop(gone);
    if cut == Cut::Client {
        // The server may talk as long as it likes.
        let mut ignored = vec![0; BUFFER];
        while from_server.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
    }
    end(to_server, cut);
}

async fn up(mut from: OwnedReadHalf, to: &OwnedWriteHalf, shared: &Shared, line: &Line) {
    let mut buffer = vec![0; BUFFER];
    let mut is_first = true;
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if std::mem::take(&mut is_first) {
            locked(&shared.heads).push(String::from_utf8_lossy(&buffer[..read]).to_lowercase());
        }
        if write(to, &buffer[..read]).await.is_err() {
            return;
        }
        if let asked @ State::Answer(false) = &mut *locked(&line.state) {
            *asked = State::Answer(true);
        }
    }
}

async fn down(from: &mut OwnedReadHalf, to: &OwnedWriteHalf, line: &Line) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let allowed = line.allow(read);
        if write(to, &buffer[..allowed]).await.is_err() || line.is_broken() {
            return;
        }
    }
}

async fn write(to: &OwnedWriteHalf, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The last half of a stream: it ends with RST, or in order.
fn end(half: OwnedWriteHalf, cut: Cut) {
    if cut != Cut::Orderly {
        let stream: &TcpStream = half.as_ref();
        let _ended = stream.set_zero_linger();
        // Without the FIN that it would send first.
        half.forget();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const BUFFER: usize = 16 << 10;

/// A connection that says nothing for so long is not in the middle of anything.
const SILENCE: Duration = Duration::from_millis(200);
