//! The sockets of a node: bound, or taken over from the process that was there before.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
use tidegate_transport::quic::{BoundSockets, IdKey, SocketGroup, bind};
use tracing::warn;

use super::ListenError;
use crate::config::Config;
use crate::node::Addresses;

/// What clients connect to, in a form that another process can be given.
#[derive(Debug, Default)]
pub struct Handover {
    /// UDP: QUIC and WebTransport.
    pub quic: Option<SocketGroup>,
    /// UDP: HTTP/3.
    pub http3: Option<SocketGroup>,
    /// TCP with TLS. All of them are on one address, and the kernel spreads connections over them.
    pub tls: Vec<TcpListener>,
    /// TCP without.
    pub plain: Vec<TcpListener>,
}

impl Handover {
    /// The same sockets once more.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let group = |group: &Option<SocketGroup>| group.as_ref().map(SocketGroup::try_clone).transpose();
        let tcp = |listeners: &[TcpListener]| {
            listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()
        };
        Ok(Self {
            quic: group(&self.quic)?,
            http3: group(&self.http3)?,
            tls: tcp(&self.tls)?,
            plain: tcp(&self.plain)?,
        })
    }

    /// From now on new QUIC connections come to the process that these sockets say serves.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&self) -> Result<(), ListenError> {
        let groups = [("quic", &self.quic), ("http3", &self.http3)];
        for (what, group) in groups {
            let Some(group) = group else { continue };
            group.attach().map_err(|error| ListenError::bind_quic(what, group.address(), error))?;
        }
        Ok(())
    }
}

/// Every socket of a node: its own, and those that it can hand on.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) addresses: Addresses,
    pub(crate) handover: Handover,
    pub(crate) workers: WorkersOf,
}

/// By worker.
#[derive(Debug, Default)]
pub(crate) struct WorkersOf {
    pub(super) quic: Vec<UdpSocket>,
    pub(super) http3: Vec<UdpSocket>,
    pub(super) tls: Vec<Vec<TcpListener>>,
    pub(super) plain: Vec<Vec<TcpListener>>,
}

impl Sockets {
    /// Opens everything or nothing; what `inherited` has at the same address is taken from there. Nothing comes to
    /// QUIC sockets that were added to inherited ones before [`Handover::attach`]. `key` masks what connection ids say,
    /// where nothing is inherited.
    ///
    /// # Errors
    /// When there are too many workers, or a socket cannot be had: which one, and why.
    pub fn open(config: &Config, key: IdKey, inherited: Handover) -> Result<Self, ListenError> {
        config.check_workers()?;
        let count = config.workers.get();
        let mut sockets = Self {
            addresses: Addresses::default(),
            handover: Handover::default(),
            workers: WorkersOf::default(),
        };
        let Self { addresses, handover, workers } = &mut sockets;
        let udp = |what, address, inherited: Option<SocketGroup>| {
            let bound = match inherited.filter(|group| is_same(address, group.address())) {
                Some(group) => group.join(count),
                None => bind(address, count, key),
            };
            bound.map_err(|error| ListenError::bind_quic(what, address, error))
        };
        let tcp =
            |what, address, inherited| {
                bind_tcp(address, count, config.limits.tcp_unsent, inherited)
                    .map_err(|error| ListenError::Bind { what, address, error })
            };
        if let Some(address) = config.quic {
            let BoundSockets { sockets, group, address, receive_buffer, .. } =
                udp("quic", address, inherited.quic)?;
            if receive_buffer < QUIC_BUFFER {
                warn!(
                    granted = receive_buffer,
                    "the UDP receive buffer is small: bursts of handshakes will lose datagrams; raise net.core.rmem_max to 8388608"
                );
            }
            (addresses.quic, handover.quic, workers.quic) = (Some(address), Some(group), sockets);
        }
        if let Some(address) = config.tls {
            let (address, listeners) = tcp("tls", address, inherited.tls)?;
            workers.tls = shared_out(&listeners, count).map_err(|error| ListenError::Bind {
                what: "tls",
                address,
                error,
            })?;
            (addresses.tls, handover.tls) = (Some(address), listeners);
        }
        if let Some(address) = config.plain {
            let (address, listeners) = tcp("plain", address, inherited.plain)?;
            workers.plain = shared_out(&listeners, count).map_err(|error| ListenError::Bind {
                what: "plain",
                address,
                error,
            })?;
            (addresses.plain, handover.plain) = (Some(address), listeners);
        }
        if let Some(address) = config.http3 {
            let bound = udp("http3", address, inherited.http3)?;
            (addresses.http3, handover.http3, workers.http3) =
                (Some(bound.address), Some(bound.group), bound.sockets);
        }
        Ok(sockets)
    }

    /// What another process would be given.
    pub fn handover(&self) -> &Handover {
        &self.handover
    }
}

/// Whether what is asked for is what is there; any port is as good as another where none was named.
fn is_same(asked: SocketAddr, there: SocketAddr) -> bool {
    asked.ip() == there.ip() && (asked.port() == 0 || asked.port() == there.port())
}

/// Every worker gets one, and none is left out: with fewer workers than listeners some get several, with more some
/// share one.
fn shared_out(listeners: &[TcpListener], workers: usize) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut shares: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for index in 0..workers.max(listeners.len()) {
        shares[index % workers].push(listeners[index % listeners.len()].try_clone()?);
    }
    Ok(shares)
}

/// One listener a worker on the same address; the kernel spreads connections over them. Of each connection the kernel
/// takes at most `unsent` bytes ahead of what it can send.
fn bind_tcp(
    address: SocketAddr,
    count: usize,
    unsent: usize,
    inherited: Vec<TcpListener>,
) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let unsent = u32::try_from(unsent).unwrap_or(u32::MAX);
    if let Some(first) = inherited.first() {
        let there = first.local_addr()?;
        if is_same(address, there) {
            for listener in &inherited {
                socket2::SockRef::from(listener).set_tcp_notsent_lowat(unsent)?;
            }
            return Ok((there, inherited));
        }
    }
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for index in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if index == 0 && address.port() != 0 {
            // SO_REUSEPORT would join the listeners of another gateway of the same user in silence.
            probe(address)?;
        }
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        // Accepted sockets have it from their listener.
        socket.set_tcp_notsent_lowat(unsent)?;
        socket.listen(TCP_BACKLOG)?;
        let listener = TcpListener::from(socket);
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((address, listeners))
}

/// Fails where anybody listens there.
fn probe(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// Connections that the kernel holds until they are accepted.
const TCP_BACKLOG: i32 = 4096;
/// Below this a burst of handshakes loses datagrams (measured).
const QUIC_BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn listeners_are_shared_out_whatever_the_number_of_workers_was() {
        for (before, workers) in [(1, 1), (2, 5), (5, 2), (3, 3)] {
            let (address, listeners) =
                bind_tcp("127.0.0.1:0".parse().unwrap(), before, 1 << 14, Vec::new()).unwrap();
            let copies = listeners.iter().map(|listener| listener.try_clone().unwrap()).collect();
            let (there, inherited) = bind_tcp(address, workers, 1 << 14, copies).unwrap();
            assert_eq!((there, inherited.len()), (address, before));
            let shares = shared_out(&inherited, workers).unwrap();
            assert_eq!(shares.len(), workers);
            assert!(shares.iter().all(|share| !share.is_empty()));
            // The process that bound them is gone; connections go on coming.
            drop((listeners, inherited));
            let clients: Vec<_> = (0..32).map(|_| TcpStream::connect(address).unwrap()).collect();
            let accept = |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).count();
            let accepted: usize = shares.iter().flatten().map(accept).sum();
            assert_eq!(accepted, clients.len());
        }
    }

    #[test]
    fn listeners_of_another_address_are_not_taken() {
        let elsewhere = bind_tcp("127.0.0.2:0".parse().unwrap(), 1, 1 << 14, Vec::new()).unwrap();
        let (address, _) = bind_tcp("127.0.0.1:0".parse().unwrap(), 1, 1 << 14, elsewhere.1).unwrap();
        assert_ne!(address.ip(), elsewhere.0.ip());
    }
}
