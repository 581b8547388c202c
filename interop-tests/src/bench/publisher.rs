//! Publishes, on a thread of its own: to the gateway's backend API in batches, or to the raw loop.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tidegate_transport::clock;

use super::ledger::{Stopwatch, payload};
use super::shape::Transport;

/// Takes orders; ends when dropped.
#[derive(Debug)]
pub(super) struct Publisher {
    orders: SyncSender<Vec<(u32, u64)>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Where publications go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outlet {
    /// `POST /v1/publish` of the gateway.
    Api(SocketAddr),
    /// The raw loop, which is to send what the gateway would send on this transport.
    Limit(SocketAddr, Transport),
}

impl Publisher {
    pub(super) fn start(outlet: Outlet, payload: usize, watch: Stopwatch) -> Result<Self> {
        let (Outlet::Api(address) | Outlet::Limit(address, _)) = outlet;
        let stream = TcpStream::connect(address).context("cannot connect the publisher")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let (orders, receiver) = sync_channel(ORDERS);
        let thread = thread::spawn(move || match outlet {
            Outlet::Api(_) => Api { stream, payload, watch }.serve(&receiver),
            Outlet::Limit(_, transport) => {
                Raw { stream, payload, watch, transport, offsets: Vec::new() }.serve(&receiver)
            }
        });
        Ok(Self { orders, thread: Some(thread) })
    }

    /// Publishes a number on a channel as soon as the request under way is answered. The clock in the payload begins
    /// when the request that carries it is sent.
    pub(super) fn publish(&mut self, order: (u32, u64)) -> Result<()> {
        self.publish_all(vec![order])
    }

    /// Publishes several in one request.
    pub(super) fn publish_all(&mut self, orders: Vec<(u32, u64)>) -> Result<()> {
        if self.orders.send(orders).is_ok() { Ok(()) } else { self.failure() }
    }

    /// Fails where publishing has failed.
    pub(super) fn check(&mut self) -> Result<()> {
        let works = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if works { Ok(()) } else { self.failure() }
    }

    fn failure(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { bail!("publishing failed before") };
        let outcome = thread.join().map_err(|_| anyhow!("the publisher panicked"))?;
        outcome.context("publishing failed")?;
        bail!("the publisher stopped")
    }
}

struct Api {
    stream: TcpStream,
    payload: usize,
    watch: Stopwatch,
}

impl Api {
    fn serve(&mut self, orders: &Receiver<Vec<(u32, u64)>>) -> Result<()> {
        let mut answer = vec![0; 1 << 20];
        while let Ok(first) = orders.recv() {
            let mut body = String::from("{\"publications\":[");
            let sent = self.watch.nanos();
            for (channel, number) in std::iter::once(first).chain(orders.try_iter().take(BATCH)).flatten() {
                let data = payload(number, sent, self.payload);
                write!(body, "{{\"channel\":\"{CHANNEL}{channel}\",\"data\":{data}}},")?;
            }
            body.pop();
            body.push_str("]}");
            let request = format!(
                "POST /v1/publish HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            self.stream.write_all(request.as_bytes())?;
            let length = self.read_answer(&mut answer)?;
            let text = String::from_utf8_lossy(&answer[..length]);
            ensure!(
                text.starts_with("HTTP/1.1 200") && !text.contains("\"error\""),
                "the gateway answered: {text:.600}"
            );
        }
        Ok(())
    }

    fn read_answer(&mut self, answer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        loop {
            let bytes = self.stream.read(&mut answer[filled..]).context("no answer from the gateway")?;
            ensure!(bytes > 0, "the gateway closed the publisher's connection");
            filled += bytes;
            if super::load::scan::response(&answer[..filled])?.is_some() {
                return Ok(filled);
            }
        }
    }
}

struct Raw {
    stream: TcpStream,
    payload: usize,
    watch: Stopwatch,
    transport: Transport,
    /// By channel.
    offsets: Vec<u64>,
}

impl Raw {
    fn serve(&mut self, orders: &Receiver<Vec<(u32, u64)>>) -> Result<()> {
        for (channel, number) in orders.iter().flatten() {
            let place = channel as usize;
            if self.offsets.len() <= place {
                self.offsets.resize(place + 1, 0);
            }
            self.offsets[place] += 1;
            let bytes = self.bytes(channel, self.offsets[place], number);
            let length = u32::try_from(bytes.len())?;
            let mut message = Vec::with_capacity(bytes.len() + 8);
            message.extend_from_slice(&channel.to_le_bytes());
            message.extend_from_slice(&length.to_le_bytes());
            message.extend_from_slice(&bytes);
            self.stream.write_all(&message)?;
        }
        Ok(())
    }

    /// As many bytes as the gateway sends for it, and readable by the same code.
    fn bytes(&self, channel: u32, offset: u64, number: u64) -> Vec<u8> {
        let sent = self.watch.nanos();
        let data = payload(number, sent, self.payload);
        if self.transport.is_udp() {
            let mut datagram = vec![0; 4];
            for word in [offset, number, sent] {
                datagram.extend_from_slice(&word.to_le_bytes());
            }
            datagram.resize((self.payload + QUIC_OVERHEAD).max(datagram.len()), b'x');
            return datagram;
        }
        let time = clock::unix_ms();
        let frame = format!(
            "{{\"publication\":{{\"channel\":\"{CHANNEL}{channel}\",\"offset\":{offset},\"data\":{data},\"time_ms\":{time}}}}}"
        );
        let text = if self.transport == Transport::LongPoll {
            // Its answer has a header block and names session and batch.
            format!("{frame:<width$}", width = frame.len() + LONGPOLL_OVERHEAD)
        } else {
            frame
        };
        websocket_text(text.as_bytes())
    }
}

/// A server's text message in one WebSocket frame (RFC 6455 §5.2).
fn websocket_text(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match (u8::try_from(text.len()), u16::try_from(text.len())) {
        (Ok(length @ 0..=125), _) => frame.push(length),
        (_, Ok(length)) => {
            frame.push(126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(text.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(text);
    frame
}

/// Before a channel's index.
pub(super) const CHANNEL: &str = "bench:";
/// Further orders that one request takes: it must stay below what the gateway takes at once.
const BATCH: usize = 500;
/// Orders that wait; far more than any window.
const ORDERS: usize = 1 << 16;
const ANSWER: Duration = Duration::from_secs(10);
/// Beside the payload: our frame (about 24 bytes), a QUIC stream frame (6), a short header with its tag (27).
const QUIC_OVERHEAD: usize = 57;
/// Status line, headers, `{"session":..,"batch":..,"frames":[..]}`.
const LONGPOLL_OVERHEAD: usize = 190;
