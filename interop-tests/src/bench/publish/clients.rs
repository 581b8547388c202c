//! The gateway's clients: WebSockets without TLS. Some publish through one edge; on every edge one subscribes to all
//! channels.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use memchr::memmem::{self, Finder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::books::{Done, What};
use crate::bench::ledger::{Stopwatch, payload};
use crate::bench::load::UPGRADE;
use crate::bench::load::scan::{self, Publications};
use crate::bench::publisher::CHANNEL;
use crate::gateway::Gateway;
use crate::wait::{PATIENCE, within};

/// Publishers on the first edge, a subscriber on each.
#[derive(Debug)]
pub(super) struct Clients {
    publishers: Vec<mpsc::Sender<Vec<u8>>>,
    done: mpsc::Receiver<Result<Done>>,
    _stop: DropGuard,
}

impl Clients {
    /// Connects and subscribes all.
    pub(super) async fn connect(
        edges: &[Gateway],
        publishers: usize,
        channels: usize,
        watch: Stopwatch,
    ) -> Result<Self> {
        let (sender, done) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let open = async |edge: &Gateway, role: Role| -> Result<mpsc::Sender<Vec<u8>>> {
            let mut socket = Socket::open(edge.addresses.plain).await?;
            if let Role::Subscriber { .. } = role {
                socket.subscribe(channels).await?;
            }
            let (writer, frames) = mpsc::channel(QUEUE);
            let listener = Listener {
                role,
                writer: writer.clone(),
                done: sender.clone(),
                watch,
                publications: Publications::new(),
                id: Finder::new(ID),
            };
            let (reading, writing) = socket.stream.into_split();
            let tasks = TaskTracker::new();
            tasks.spawn(stop.clone().run_until_cancelled_owned(write(writing, frames)));
            tasks.spawn(stop.clone().run_until_cancelled_owned(listener.run(reading, socket.carry)));
            Ok(writer)
        };
        let first = edges.first().context("no edge")?;
        let mut all = Vec::new();
        for _ in 0..publishers {
            all.push(open(first, Role::Publisher).await?);
        }
        for (index, edge) in edges.iter().enumerate() {
            open(edge, Role::Subscriber { edge: index }).await?;
        }
        Ok(Self { publishers: all, done, _stop: stop.drop_guard() })
    }

    /// Publishes; each channel by the same client.
    pub(super) fn publish(
        &self,
        (number, channel): (u64, usize),
        sent: u64,
        size: usize,
        publishers: usize,
    ) -> Result<()> {
        let data = payload(number, sent, size);
        // 0 would ask for no reply.
        let id = number + 1;
        let text =
            format!("{{\"id\":{id},\"publish\":{{\"channel\":\"{CHANNEL}{channel}\",\"data\":{data}}}}}");
        let publisher = &self.publishers[channel % publishers.clamp(1, self.publishers.len())];
        publisher.try_send(scan::masked_text(&text)).context("the publisher cannot keep up, or has ended")
    }

    /// What comes next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Done> {
        self.done.recv().await.context("all clients have ended")?
    }
}

#[derive(Debug, Clone, Copy)]
enum Role {
    Publisher,
    Subscriber { edge: usize },
}

/// A WebSocket until it is ready.
struct Socket {
    stream: TcpStream,
    /// Read, not handled.
    carry: Vec<u8>,
}

impl Socket {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connecting to an edge")?;
        stream.set_nodelay(true)?;
        let mut this = Self { stream, carry: Vec::new() };
        this.stream.write_all(UPGRADE.as_bytes()).await?;
        let end = loop {
            if let Some(end) = memmem::find(&this.carry, b"\r\n\r\n") {
                break end;
            }
            this.read().await?;
        };
        let head = String::from_utf8_lossy(&this.carry[..end]).into_owned();
        ensure!(head.starts_with("HTTP/1.1 101"), "no WebSocket: {head}");
        this.carry.drain(..end + 4);
        this.stream.write_all(&scan::masked_text("{\"id\":1,\"connect\":{}}")).await?;
        this.until(b"\"connected\":{", 1).await?;
        Ok(this)
    }

    async fn subscribe(&mut self, channels: usize) -> Result<()> {
        for (id, channel) in (2..).zip(0..channels) {
            let text = format!("{{\"id\":{id},\"subscribe\":{{\"channel\":\"{CHANNEL}{channel}\"}}}}");
            self.stream.write_all(&scan::masked_text(&text)).await?;
            // Some at a time: requests in flight have a bound.
            self.until(SUBSCRIBED, 1).await?;
        }
        Ok(())
    }

    /// Reads until so many frames of this kind came.
    async fn until(&mut self, kind: &[u8], mut count: usize) -> Result<()> {
        let reading = async {
            while count > 0 {
                while let Some((_, range)) = scan::websocket(&self.carry)? {
                    let text = &self.carry[range.clone()];
                    refuse_bad_news(text)?;
                    count = count.saturating_sub(memmem::find_iter(text, kind).count());
                    self.carry.drain(..range.end);
                }
                if count > 0 {
                    self.read().await?;
                }
            }
            Ok(())
        };
        within(PATIENCE, String::from_utf8_lossy(kind), reading).await?
    }

    async fn read(&mut self) -> Result<()> {
        ensure!(self.stream.read_buf(&mut self.carry).await? > 0, "an edge closed the connection");
        Ok(())
    }
}

/// Tells what comes over a connection.
struct Listener {
    role: Role,
    writer: mpsc::Sender<Vec<u8>>,
    done: mpsc::Sender<Result<Done>>,
    watch: Stopwatch,
    publications: Publications,
    id: Finder<'static>,
}

impl Listener {
    async fn run(self, mut reading: OwnedReadHalf, mut carry: Vec<u8>) {
        let error = loop {
            let at = self.watch.nanos();
            let told = match self.tell(&mut carry, at).await {
                Ok(()) => reading.read_buf(&mut carry).await.context("reading from an edge"),
                Err(error) => Err(error),
            };
            match told {
                Ok(0) => break anyhow::anyhow!("an edge closed the connection"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        // Nobody takes it where the measurement is over.
        let _ = self.done.send(Err(error)).await;
    }

    /// Handles all messages that are whole.
    async fn tell(&self, carry: &mut Vec<u8>, at: u64) -> Result<()> {
        let mut found = Vec::new();
        let mut used = 0;
        while let Some((opcode, range)) = scan::websocket(&carry[used..])? {
            let text = &carry[used + range.start..used + range.end];
            match opcode {
                1 => self.read(text, at, &mut found)?,
                // Pings of the protocol; those of ours are frames.
                9 | 10 => {}
                _ => bail!("an edge sent opcode {opcode}: {}", String::from_utf8_lossy(text)),
            }
            used += range.end;
        }
        carry.drain(..used);
        for done in found {
            self.done.send(Ok(done)).await.context("nobody listens")?;
        }
        Ok(())
    }

    fn read(&self, text: &[u8], at: u64, found: &mut Vec<Done>) -> Result<()> {
        if memmem::find(text, b"{\"ping\"").is_some() {
            self.writer.try_send(scan::masked_text("{\"pong\":{}}")).context("a pong has no room")?;
        }
        match self.role {
            Role::Subscriber { edge } => {
                if memmem::find(text, b"\"publication\":{").is_none() {
                    let lost = memmem::find(text, SUBSCRIBED).is_some();
                    ensure!(!lost, "continuity was lost: {}", String::from_utf8_lossy(text));
                    return refuse_bad_news(text);
                }
                self.publications.find(text, |delivery| {
                    let what = What::Delivered { edge, offset: delivery.offset };
                    found.push(Done { number: delivery.number, what, at });
                })
            }
            Role::Publisher => {
                refuse_bad_news(text)?;
                for place in self.id.find_iter(text) {
                    let digits = text[place + ID.len()..].iter().take_while(|byte| byte.is_ascii_digit());
                    let id =
                        digits.fold(0, |value: u64, digit| value.wrapping_mul(10) + u64::from(digit - b'0'));
                    found.push(Done { number: id.wrapping_sub(1), what: What::Acknowledged, at });
                }
                Ok(())
            }
        }
    }
}

async fn write(mut writing: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    let mut waiting = Vec::new();
    while frames.recv_many(&mut waiting, 64).await > 0 {
        let bytes = waiting.concat();
        waiting.clear();
        // Whoever reads finds out that it is over.
        if writing.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Errors and closes.
fn refuse_bad_news(text: &[u8]) -> Result<()> {
    for word in [&b"\"error\":{"[..], b"\"close\":{"] {
        ensure!(memmem::find(text, word).is_none(), "an edge said {}", String::from_utf8_lossy(text));
    }
    Ok(())
}

const SUBSCRIBED: &[u8] = b"\"subscribed\":{";
/// Before the number of a reply, one more than the publication's.
const ID: &[u8] = b"{\"id\":";
/// More than any window, and several seconds of any rate.
const QUEUE: usize = 1 << 15;
