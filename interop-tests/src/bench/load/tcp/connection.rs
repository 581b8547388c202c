//! One client over TCP: what it has to say until it is subscribed, and what it does with what it reads.

use std::fmt;
use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, bail, ensure};
use memchr::memmem;
use mio::net::TcpStream;
use rustls::ClientConnection;

use super::super::scan::{self, Publications};
use super::TcpKind;
use crate::bench::ledger::Delivery;
use crate::bench::limit::WELCOME;
use crate::bench::publisher::CHANNEL;

/// A client.
pub(super) struct Connection {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    kind: TcpKind,
    channel: usize,
    stage: Stage,
    /// The beginning of something that has not come whole.
    carry: Vec<u8>,
    /// Long poll's.
    session: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// TCP, perhaps TLS.
    Opening,
    /// The first thing was said.
    Greeting,
    /// Frames were exchanged; not subscribed yet.
    Subscribing,
    Live,
}

/// What handling input needs beside the connection.
pub(super) struct Incoming<'a> {
    pub(super) publications: &'a Publications,
    pub(super) deliver: &'a mut dyn FnMut(Delivery),
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        tls: Option<Box<ClientConnection>>,
        kind: TcpKind,
        channel: usize,
    ) -> Self {
        let stage = Stage::Opening;
        Self { stream, tls, kind, channel, stage, carry: Vec::new(), session: String::new() }
    }

    pub(super) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    pub(super) fn is_live(&self) -> bool {
        self.stage == Stage::Live
    }

    /// The first time, TCP is connected.
    pub(super) fn on_writable(&mut self) -> Result<()> {
        if self.stage != Stage::Opening {
            return Ok(());
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error).context("cannot connect");
        }
        if self.stream.peer_addr().is_err() {
            return Ok(());
        }
        self.stage = Stage::Greeting;
        let greeting = match self.kind {
            TcpKind::Raw => u32::try_from(self.channel)?.to_le_bytes().to_vec(),
            TcpKind::WebSocket => UPGRADE.as_bytes().to_vec(),
            TcpKind::LongPoll => {
                let frames = format!("{{\"id\":1,\"connect\":{{}}}},{}", self.subscribe());
                poll_request(&format!("{{\"frames\":[{frames}],\"wait_ms\":25000}}"))
            }
        };
        self.write(&greeting)
    }

    /// Everything that one read brought.
    pub(super) fn on_bytes(&mut self, bytes: &[u8], incoming: &mut Incoming<'_>) -> Result<()> {
        if self.tls.is_none() {
            return self.on_plain(bytes, incoming);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let tls = self.tls.as_mut().context("no TLS")?;
            tls.read_tls(&mut rest)?;
            let state = tls.process_new_packets()?;
            let ready = state.plaintext_bytes_to_read();
            let mut plain = vec![0; ready];
            tls.reader().read_exact(&mut plain)?;
            self.flush_tls()?;
            if ready > 0 {
                self.on_plain(&plain, incoming)?;
            }
        }
        Ok(())
    }

    fn on_plain(&mut self, bytes: &[u8], incoming: &mut Incoming<'_>) -> Result<()> {
        if self.carry.is_empty() {
            let used = self.parse(bytes, incoming)?;
            self.carry.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut carry = std::mem::take(&mut self.carry);
        carry.extend_from_slice(bytes);
        let used = self.parse(&carry, incoming)?;
        carry.drain(..used);
        self.carry = carry;
        Ok(())
    }

    /// Handles all that is whole; tells how many bytes that was.
    fn parse(&mut self, bytes: &[u8], incoming: &mut Incoming<'_>) -> Result<usize> {
        let mut used = 0;
        while used < bytes.len() {
            let rest = &bytes[used..];
            let taken = match (self.kind, self.stage) {
                (TcpKind::Raw, Stage::Greeting) => {
                    ensure!(rest.starts_with(WELCOME), "the raw loop did not welcome");
                    self.stage = Stage::Live;
                    Some(WELCOME.len())
                }
                (TcpKind::LongPoll, _) => self.response(rest, incoming)?,
                (TcpKind::WebSocket, Stage::Greeting) => self.upgraded(rest)?,
                (TcpKind::WebSocket | TcpKind::Raw, _) => self.websocket(rest, incoming)?,
            };
            let Some(taken) = taken else { break };
            used += taken;
        }
        Ok(used)
    }

    fn upgraded(&mut self, bytes: &[u8]) -> Result<Option<usize>> {
        let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
        let head = String::from_utf8_lossy(&bytes[..end]);
        ensure!(head.starts_with("HTTP/1.1 101"), "no WebSocket: {head}");
        let mut frames = scan::masked_text("{\"id\":1,\"connect\":{}}");
        frames.extend_from_slice(&scan::masked_text(&self.subscribe()));
        self.write(&frames)?;
        self.stage = Stage::Subscribing;
        Ok(Some(end + 4))
    }

    fn websocket(&mut self, bytes: &[u8], incoming: &mut Incoming<'_>) -> Result<Option<usize>> {
        let Some((opcode, payload)) = scan::websocket(bytes)? else { return Ok(None) };
        let end = payload.end;
        let text = &bytes[payload];
        match opcode {
            1 if text.starts_with(PUBLICATION) => incoming.publications.find(text, &mut *incoming.deliver)?,
            1 => self.other_text(text, incoming)?,
            // A protocol-level ping; ours are frames.
            9 | 10 => {}
            _ => bail!("the server sent opcode {opcode}: {}", String::from_utf8_lossy(text)),
        }
        Ok(Some(end))
    }

    /// A message that is no single publication.
    fn other_text(&mut self, text: &[u8], incoming: &mut Incoming<'_>) -> Result<()> {
        self.check(text)?;
        if memmem::find(text, b"{\"ping\"").is_some() {
            self.write(&scan::masked_text("{\"pong\":{}}"))?;
        }
        if memmem::find(text, PUBLICATION).is_some() {
            incoming.publications.find(text, &mut *incoming.deliver)?;
        }
        Ok(())
    }

    fn response(&mut self, bytes: &[u8], incoming: &mut Incoming<'_>) -> Result<Option<usize>> {
        let Some((status, body)) = scan::response(bytes)? else { return Ok(None) };
        let end = body.end;
        let body = &bytes[body];
        ensure!(status == 200, "a poll was answered {status}: {}", String::from_utf8_lossy(body));
        if self.stage != Stage::Live {
            self.check(body)?;
            let text = std::str::from_utf8(body)?;
            self.session = scan::field(text, "session").context("no session")?.to_owned();
        } else {
            incoming.publications.find(body, &mut *incoming.deliver)?;
        }
        // Numbers stand before the frames.
        let head = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        let batch = scan::field(&head, "batch").context("no batch")?;
        let next = format!("{{\"session\":\"{}\",\"ack\":{batch},\"wait_ms\":25000}}", self.session);
        self.write(&poll_request(&next))?;
        Ok(Some(end))
    }

    /// Looks for what decides while subscribing, and for what must never come.
    fn check(&mut self, text: &[u8]) -> Result<()> {
        let has = |what: &[u8]| memmem::find(text, what).is_some();
        if has(b"\"close\":{") || has(b"\"error\":{") {
            bail!("the server said {}", String::from_utf8_lossy(text));
        }
        if has(b"\"subscribed\":{") {
            ensure!(self.stage != Stage::Live, "continuity was lost: {}", String::from_utf8_lossy(text));
            self.stage = Stage::Live;
        }
        Ok(())
    }

    fn subscribe(&self) -> String {
        format!("{{\"id\":2,\"subscribe\":{{\"channel\":\"{CHANNEL}{}\"}}}}", self.channel)
    }

    /// Requests are short, and few are under way: they fit in the socket.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.tls {
            Some(tls) => {
                tls.writer().write_all(bytes)?;
                self.flush_tls()
            }
            None => self.stream.write_all(bytes).context("cannot write"),
        }
    }

    fn flush_tls(&mut self) -> Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            tls.write_tls(&mut self.stream).context("cannot write")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("channel", &self.channel)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

/// `POST /v1/poll`.
pub(crate) fn poll_request(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /v1/poll HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

const PUBLICATION: &[u8] = b"{\"publication\":";
/// Asks for a WebSocket. The key is RFC 6455's own example: nobody checks that it is random.
pub(crate) const UPGRADE: &str = "GET /v1/connect HTTP/1.1\r\nhost: bench\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: tidegate.v1.json\r\n\r\n";
