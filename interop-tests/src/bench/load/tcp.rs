//! Clients over TCP on one epoll loop: of the raw loop, WebSocket with and without TLS, long poll.

mod connection;

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tidegate_transport::clock;

use self::connection::{Connection, Incoming};
pub(crate) use self::connection::{UPGRADE, poll_request};
use super::scan::Publications;
use super::{Crowd, IN_FLIGHT, Load, STALLED};
use crate::bench::ledger::{Delivery, Ledger};

/// What the clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TcpKind {
    /// To the raw loop.
    Raw,
    WebSocket,
    LongPoll,
}

/// Many clients.
#[derive(Debug)]
pub(crate) struct TcpClients {
    poll: Poll,
    events: Events,
    target: SocketAddr,
    kind: TcpKind,
    tls: Option<Arc<ClientConfig>>,
    crowd: Crowd,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    publications: Publications,
}

impl TcpClients {
    pub(crate) fn new(
        target: SocketAddr,
        kind: TcpKind,
        tls: Option<Arc<ClientConfig>>,
        crowd: Crowd,
    ) -> Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            target,
            kind,
            tls,
            crowd,
            connections: Vec::with_capacity(crowd.connections),
            buffer: vec![0; 1 << 16],
            publications: Publications::new(),
        })
    }

    fn open(&mut self) -> Result<()> {
        let index = self.connections.len();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        // No TIME_WAIT is left behind.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        if self.crowd.connections > PER_SOURCE {
            // A source address has some 28,000 ports, which others use too.
            let source = Ipv4Addr::new(127, 0, 0, u8::try_from(1 + index / PER_SOURCE)?);
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        match socket.connect(&self.target.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => {}
            Err(error) => return Err(error).context("cannot connect"),
        }
        let mut stream = TcpStream::from_std(socket.into());
        self.poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        let tls = match &self.tls {
            Some(config) => {
                let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
                Some(Box::new(rustls::ClientConnection::new(Arc::clone(config), name)?))
            }
            None => None,
        };
        self.connections.push(Connection::new(stream, tls, self.kind, index % self.crowd.channels));
        Ok(())
    }

    /// Handles what has come; tells how many connections became live.
    fn turn(&mut self, mut ledger: Option<&mut Ledger>, wait: Duration) -> Result<usize> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(0),
            outcome => outcome?,
        }
        let mut live = 0;
        for event in &self.events {
            let index = event.token().0;
            let Some(connection) = self.connections.get_mut(index) else { continue };
            let was_live = connection.is_live();
            if event.is_writable() {
                connection.on_writable().with_context(|| format!("connection {index}"))?;
            }
            if !event.is_readable() {
                continue;
            }
            loop {
                let length = match connection.stream().read(&mut self.buffer) {
                    Ok(0) => bail!("the server closed connection {index}"),
                    Ok(length) => length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).with_context(|| format!("connection {index}")),
                };
                let now = self.crowd.watch.nanos();
                if let Some(ledger) = ledger.as_deref_mut() {
                    ledger.count_read();
                }
                let mut deliver = |delivery: Delivery| {
                    if let Some(ledger) = ledger.as_deref_mut() {
                        ledger.delivered(index, delivery, now);
                    }
                };
                let mut incoming = Incoming { publications: &self.publications, deliver: &mut deliver };
                connection
                    .on_bytes(&self.buffer[..length], &mut incoming)
                    .with_context(|| format!("connection {index}"))?;
                // Edge-triggered: a short read has emptied the socket (epoll(7)).
                if length < self.buffer.len() {
                    break;
                }
            }
            if !was_live && connection.is_live() {
                live += 1;
                self.poll.registry().reregister(connection.stream(), Token(index), Interest::READABLE)?;
            }
        }
        Ok(live)
    }
}

impl Load for TcpClients {
    fn connect(&mut self, progress: &mut dyn FnMut(usize)) -> Result<()> {
        let mut live = 0;
        let mut last = clock::now();
        while live < self.crowd.connections {
            while self.connections.len() < self.crowd.connections && self.connections.len() - live < IN_FLIGHT
            {
                self.open()?;
            }
            let more = self.turn(None, Duration::from_millis(100))?;
            live += more;
            if more > 0 {
                last = clock::now();
            } else if last.elapsed() > STALLED {
                bail!("only {live} of {} connections were subscribed", self.crowd.connections);
            }
            progress(live);
        }
        Ok(())
    }

    fn pump(&mut self, ledger: &mut Ledger, wait: Duration) -> Result<()> {
        self.turn(Some(ledger), wait).map(drop)
    }
}

/// Connections from one loopback address.
const PER_SOURCE: usize = 8_000;
