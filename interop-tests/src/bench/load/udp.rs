//! Clients of the raw UDP loop.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};
use tidegate_transport::clock;

use super::{Crowd, IN_FLIGHT, Load, STALLED};
use crate::bench::ledger::{Delivery, Ledger};
use crate::bench::limit::SOCKET_BUFFER;

/// Many clients, several to a socket.
#[derive(Debug)]
pub(crate) struct UdpClients {
    poll: Poll,
    events: Events,
    sockets: Vec<UdpSocket>,
    crowd: Crowd,
    per_socket: usize,
}

impl UdpClients {
    pub(crate) fn new(target: SocketAddr, crowd: Crowd, per_socket: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut sockets = Vec::new();
        for index in 0..crowd.connections.div_ceil(per_socket) {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind")?;
            socket2::SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER)?;
            socket.set_nonblocking(true)?;
            socket.connect(target)?;
            let mut socket = UdpSocket::from_std(socket);
            poll.registry().register(&mut socket, Token(index), Interest::READABLE)?;
            sockets.push(socket);
        }
        Ok(Self { poll, events: Events::with_capacity(1024), sockets, crowd, per_socket })
    }

    /// Every datagram that has come, with how many reads it took.
    fn receive(&mut self, wait: Duration, mut each: impl FnMut(&[u8])) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            outcome => outcome?,
        }
        let mut datagram = [0; 1 << 16];
        for event in &self.events {
            let socket = &self.sockets[event.token().0];
            loop {
                match socket.recv(&mut datagram) {
                    Ok(length) => each(&datagram[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("reading from the raw loop failed"),
                }
            }
        }
        Ok(())
    }
}

impl Load for UdpClients {
    fn connect(&mut self, progress: &mut dyn FnMut(usize)) -> Result<()> {
        let (mut asked, mut answered) = (0, 0);
        let mut last = clock::now();
        while answered < self.crowd.connections {
            while asked < self.crowd.connections && asked - answered < IN_FLIGHT {
                let mut hello = Vec::with_capacity(8);
                hello.extend_from_slice(&u32::try_from(asked)?.to_le_bytes());
                hello.extend_from_slice(&u32::try_from(asked % self.crowd.channels)?.to_le_bytes());
                self.sockets[asked / self.per_socket].send(&hello)?;
                asked += 1;
            }
            let before = answered;
            self.receive(Duration::from_millis(100), |_| answered += 1)?;
            if answered > before {
                last = clock::now();
            } else if last.elapsed() > STALLED {
                bail!("only {answered} clients of the raw loop were answered");
            }
            progress(answered);
        }
        Ok(())
    }

    fn pump(&mut self, ledger: &mut Ledger, wait: Duration) -> Result<()> {
        let watch = self.crowd.watch;
        self.receive(wait, |datagram| {
            ledger.count_read();
            if let Some((client, delivery)) = parse(datagram) {
                ledger.delivered(client, delivery, watch.nanos());
            }
        })
    }
}

fn parse(datagram: &[u8]) -> Option<(usize, Delivery)> {
    let (client, rest) = datagram.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (sent, _) = rest.split_first_chunk()?;
    let delivery = Delivery {
        offset: u64::from_le_bytes(*offset),
        number: u64::from_le_bytes(*number),
        sent: u64::from_le_bytes(*sent),
    };
    Some((u32::from_le_bytes(*client) as usize, delivery))
}
