//! The machine's limit: one thread that holds plain sockets and makes one `send` per socket and publication, no more.
//!
//! A process of its own, as the gateway is. What clients and publisher say to it is as little as can be:
//! - TCP client: 4 bytes, its channel; the answer is [`WELCOME`]. Then it only reads.
//! - UDP client: 8 bytes, its index and its channel; the answer is its index. One socket may hold many clients.
//! - publisher: `channel, length` (4 bytes each), then the bytes to send. In UDP the index is put over the first four.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

use super::cli::LimitArgs;

/// What a TCP client is answered.
pub(super) const WELCOME: &[u8] = b"ok\r\n";

/// Serves until its publisher goes. The first line on stdout tells both ports.
pub(super) fn run(arguments: &LimitArgs) -> Result<()> {
    let raw = RawLoop::bind(arguments.udp)?;
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{} {}", raw.clients_port, raw.control.local_addr()?.port())?;
        out.flush()?;
    }
    raw.serve()
}

/// The raw loop, bound.
struct RawLoop {
    control: TcpListener,
    clients_port: u16,
    clients: Clients,
}

impl RawLoop {
    fn bind(udp: bool) -> Result<Self> {
        let control = TcpListener::bind(LOOPBACK).context("cannot listen")?;
        let (clients_port, clients) = if udp { Clients::udp()? } else { Clients::tcp()? };
        Ok(Self { control, clients_port, clients })
    }

    fn serve(&self) -> Result<()> {
        let (publisher, _) = self.control.accept().context("no publisher came")?;
        self.clients.serve(publisher)
    }
}

enum Clients {
    Tcp(Registered<TcpStream>),
    Udp(UdpSocket, Registered<(u32, SocketAddr)>),
}

/// By channel.
type Registered<T> = Arc<Mutex<Vec<Vec<T>>>>;

impl Clients {
    fn tcp() -> Result<(u16, Self)> {
        // More clients come at once than the 128 that std's own listeners queue.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(LOOPBACK).into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let port = listener.local_addr()?.port();
        let clients = Registered::default();
        let registered = Arc::clone(&clients);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                // One that goes before it said anything is none.
                let _ = register_tcp(client, &registered);
            }
        });
        Ok((port, Self::Tcp(clients)))
    }

    fn udp() -> Result<(u16, Self)> {
        let socket = UdpSocket::bind(LOOPBACK).context("cannot bind")?;
        let buffers = socket2::SockRef::from(&socket);
        buffers.set_send_buffer_size(SOCKET_BUFFER)?;
        buffers.set_recv_buffer_size(SOCKET_BUFFER)?;
        let port = socket.local_addr()?.port();
        let clients = Registered::default();
        let (registered, receiver) = (Arc::clone(&clients), socket.try_clone()?);
        thread::spawn(move || {
            let mut datagram = [0; 8];
            while let Ok((8, address)) = receiver.recv_from(&mut datagram) {
                let (index, channel) = halves(datagram);
                add(&registered, channel, (index, address));
                let _ = receiver.send_to(&index.to_le_bytes(), address);
            }
        });
        Ok((port, Self::Udp(socket, clients)))
    }

    fn serve(&self, mut publisher: TcpStream) -> Result<()> {
        let mut header = [0; 8];
        let mut bytes = Vec::new();
        while publisher.read_exact(&mut header).is_ok() {
            let (channel, length) = halves(header);
            bytes.resize(length as usize, 0);
            publisher.read_exact(&mut bytes)?;
            match self {
                Self::Tcp(clients) => {
                    let clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
                    for mut client in clients.get(channel as usize).into_iter().flatten() {
                        client.write_all(&bytes)?;
                    }
                }
                Self::Udp(socket, clients) => {
                    let clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
                    for (index, address) in clients.get(channel as usize).into_iter().flatten() {
                        let Some(place) = bytes.first_chunk_mut() else {
                            bail!("a datagram without room for an index")
                        };
                        *place = index.to_le_bytes();
                        socket.send_to(&bytes, address)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn register_tcp(mut client: TcpStream, registered: &Registered<TcpStream>) -> std::io::Result<()> {
    let mut channel = [0; 4];
    client.set_nodelay(true)?;
    client.read_exact(&mut channel)?;
    client.write_all(WELCOME)?;
    add(registered, u32::from_le_bytes(channel), client);
    Ok(())
}

fn add<T>(registered: &Registered<T>, channel: u32, client: T) {
    let mut channels = registered.lock().unwrap_or_else(PoisonError::into_inner);
    let channel = channel as usize;
    if channels.len() <= channel {
        channels.resize_with(channel + 1, Vec::new);
    }
    channels[channel].push(client);
}

fn halves(bytes: [u8; 8]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const BACKLOG: i32 = 4096;
/// As much as the kernel gives.
pub(super) const SOCKET_BUFFER: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::ledger::{Faults, Ledger, Stopwatch};
    use crate::bench::load::{Crowd, Load, TcpClients, TcpKind, UdpClients};
    use crate::bench::publisher::{Outlet, Publisher};
    use crate::bench::shape::Transport;

    /// Six clients on two channels, ten publications: everyone gets what is theirs.
    fn deliver(udp: bool, transport: Transport) {
        let raw = RawLoop::bind(udp).expect("free ports");
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (clients, control) = (local(raw.clients_port), raw.control.local_addr().expect("bound"));
        let server = thread::spawn(move || raw.serve());
        let crowd = Crowd { connections: 6, channels: 2, watch: Stopwatch::start() };
        let mut load: Box<dyn Load> = if udp {
            Box::new(UdpClients::new(clients, crowd, 4).expect("sockets"))
        } else {
            Box::new(TcpClients::new(clients, TcpKind::Raw, None, crowd).expect("a poll"))
        };
        let mut live = 0;
        load.connect(&mut |now| live = now).expect("all connect");
        assert_eq!(live, 6);

        let mut ledger = Ledger::new(6, 2).expect("a histogram");
        let outlet = Outlet::Limit(control, transport);
        let mut publisher = Publisher::start(outlet, 64, crowd.watch).expect("a publisher");
        ledger.measure(true);
        publisher.publish_all((0..10).map(|_| ledger.publish()).collect()).expect("published");
        while ledger.outstanding() > 0 {
            load.pump(&mut ledger, Duration::from_secs(10)).expect("readable");
        }
        assert_eq!((ledger.deliveries(), ledger.faults()), (30, Faults::default()));
        drop(publisher);
        server.join().expect("no panic").expect("an orderly end");
    }

    #[test]
    fn everyone_on_tcp_gets_what_is_theirs() {
        deliver(false, Transport::Ws);
        deliver(false, Transport::LongPoll);
    }

    #[test]
    fn everyone_on_udp_gets_what_is_theirs() {
        deliver(true, Transport::Quic);
    }
}
