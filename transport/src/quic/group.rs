//! The sockets of one UDP port: bound for the workers of this process, shared with the processes before and after it.
//!
//! The kernel numbers the sockets of a group as they are bound, and moves the last one into the hole where one is closed:
//! every id that was given out would then name another socket. So none is closed. A process that takes over is
//! given all of them (as file descriptors), and holds on to them whatever becomes of the others; it binds what it needs
//! behind them, or takes those that an ended process left. Where datagrams go changes by one system call then, the program
//! of [`Steering`].

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::ids::IdKey;
use super::steering::{Steering, SteeringError, WorkerSet};

/// All sockets of an address, in the kernel's order, with how datagrams find theirs.
#[derive(Debug)]
pub struct SocketGroup {
    address: SocketAddr,
    /// Not blocking.
    members: Vec<UdpSocket>,
    steering: Steering,
}

/// The sockets of one address, one per worker.
#[derive(Debug)]
pub struct BoundSockets {
    /// In worker order, not blocking.
    pub sockets: Vec<UdpSocket>,
    /// To hand over, and to take over with.
    pub group: SocketGroup,
    /// Where they are bound; the port is real where 0 was asked for.
    pub address: SocketAddr,
    /// Bytes of receive buffer granted to each; below [`SOCKET_BUFFER`] where `net.core.rmem_max` says so.
    pub receive_buffer: usize,
    /// Bytes of send buffer granted to each; below [`SOCKET_BUFFER`] where `net.core.wmem_max` says so.
    pub send_buffer: usize,
}

/// Why an address could not be shared out to workers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Too many workers or processes, or a description of sockets that cannot be.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// A socket could not be made or bound.
    #[error("cannot bind UDP {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the OS says.
        source: io::Error,
    },
    /// The program could not be attached.
    #[error(
        "the kernel refused the BPF program that steers UDP {address} to {workers} workers: {source} (an old \
         kernel, or a sandbox that filters setsockopt): run with one worker"
    )]
    Steer {
        /// Where.
        address: SocketAddr,
        /// Among how many.
        workers: usize,
        /// What the OS says.
        source: io::Error,
    },
}

/// What is asked for as `SO_RCVBUF` and `SO_SNDBUF`, bytes. A burst of handshakes or acknowledgements overruns the
/// usual 208 KiB at once.
pub const SOCKET_BUFFER: usize = 8 * 1024 * 1024;

/// Binds `address` once per worker, for a process that nobody shares it with yet. Port 0: the first takes a free port, the
/// others the same. `key` masks what ids say.
///
/// An IPv6 wildcard address takes IPv4 too.
///
/// # Errors
/// When the address is taken, or the kernel steers no datagrams (`workers` over 1 needs Linux 4.6).
pub fn bind(address: SocketAddr, workers: usize, key: IdKey) -> Result<BoundSockets, BindError> {
    let steering = Steering::new(workers, key)?;
    let failed = |source| BindError::Bind { address, source };
    if address.port() != 0 {
        // SO_REUSEPORT would join the sockets of another gateway of the same user in silence.
        bind_one(address, false).map_err(failed)?;
    }
    let mut group = SocketGroup { address, members: Vec::with_capacity(workers), steering };
    for index in 0..workers {
        group.add().map_err(failed)?;
        // Before the second socket joins: from then on every datagram has its worker.
        if index == 0 && workers > 1 {
            group.attach()?;
        }
    }
    group.into_bound()
}

impl SocketGroup {
    /// As another process handed it over: `members` in its order.
    ///
    /// # Errors
    /// When there are fewer sockets than `steering` speaks of, or they have no address.
    pub fn of(members: Vec<UdpSocket>, steering: Steering) -> Result<Self, BindError> {
        let first = members.first().ok_or(SteeringError::Malformed)?;
        if members.len() < steering.members() {
            return Err(SteeringError::Malformed.into());
        }
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = first.local_addr().map_err(|source| BindError::Bind { address: unknown, source })?;
        Ok(Self { address, members, steering })
    }

    /// The same sockets once more, for another process.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let members = self.members.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { address: self.address, members, steering: self.steering.clone() })
    }

    /// Where they are bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every socket, those of ended processes included.
    pub fn members(&self) -> &[UdpSocket] {
        &self.members
    }

    /// Where datagrams go once [`SocketGroup::attach`] was called.
    pub fn steering(&self) -> &Steering {
        &self.steering
    }

    /// Sockets for `workers` workers of this process beside those that are there. Nothing comes to them before
    /// [`SocketGroup::attach`].
    ///
    /// # Errors
    /// When there are too many workers or processes, or a socket cannot be had.
    pub fn join(mut self, workers: usize) -> Result<BoundSockets, BindError> {
        self.steering = self.steering.joined(workers)?;
        let WorkerSet { first, .. } = self.steering.serving();
        // What came for a process that is gone is nobody's.
        for socket in self.members.iter().skip(usize::from(first)).take(workers) {
            while socket.recv(&mut [0]).is_ok() {}
        }
        while self.members.len() < self.steering.members() {
            self.add().map_err(|source| BindError::Bind { address: self.address, source })?;
        }
        self.into_bound()
    }

    /// From now on datagrams go where [`SocketGroup::steering`] says: new connections to the process that serves. At once
    /// and for all processes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&self) -> Result<(), BindError> {
        let workers = usize::from(self.steering.serving().workers);
        let refused = |source| BindError::Steer { address: self.address, workers, source };
        let socket = self.members.first().ok_or(SteeringError::Malformed)?;
        attach(socket, &self.steering).map_err(refused)
    }

    /// A process before this one has ended: its sockets are there for the next. [`SocketGroup::attach`] does the rest.
    pub fn forget(&mut self, generation: u8) {
        self.steering = self.steering.without(generation);
    }

    fn add(&mut self) -> io::Result<()> {
        let socket = bind_one(self.address, true)?;
        if self.members.is_empty() {
            let local = socket.local_addr()?.as_socket();
            let local = local.ok_or_else(|| io::Error::other("the socket has no IP address"))?;
            self.address.set_port(local.port());
        }
        self.members.push(socket.into());
        Ok(())
    }

    fn into_bound(self) -> Result<BoundSockets, BindError> {
        let address = self.address;
        let failed = |source| BindError::Bind { address, source };
        let WorkerSet { first, workers, .. } = self.steering.serving();
        let own = self.members.iter().skip(usize::from(first)).take(usize::from(workers));
        let sockets: Vec<UdpSocket> =
            own.map(UdpSocket::try_clone).collect::<io::Result<_>>().map_err(failed)?;
        let (mut receive_buffer, mut send_buffer) = (usize::MAX, usize::MAX);
        for socket in &sockets {
            let socket = socket2::SockRef::from(socket);
            // Linux keeps twice what was asked for, for its own book-keeping, and says so.
            receive_buffer = receive_buffer.min(socket.recv_buffer_size().map_err(failed)? / 2);
            send_buffer = send_buffer.min(socket.send_buffer_size().map_err(failed)? / 2);
        }
        Ok(BoundSockets { sockets, group: self, address, receive_buffer, send_buffer })
    }
}

fn bind_one(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_port(shared)?;
    // What is granted is read back: neither call fails where less is.
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn attach(socket: &UdpSocket, steering: &Steering) -> io::Result<()> {
    use nix::libc::{sock_filter, sock_fprog};
    use nix::sys::socket::{setsockopt, sockopt};

    let program = steering.program().into_iter();
    let mut program: Vec<_> = program.map(|(code, jt, jf, k)| sock_filter { code, jt, jf, k }).collect();
    // The kernel copies the program during the call.
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
}

#[cfg(not(target_os = "linux"))]
fn attach(_socket: &UdpSocket, steering: &Steering) -> io::Result<()> {
    let _program = steering.program();
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux steers datagrams by their content"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;
    use crate::quic::ids::{Place, encode};

    const KEY: IdKey = IdKey(0x1234_5678);

    #[test]
    fn all_sockets_share_the_port_that_the_first_one_got() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let bound = bind(address.parse().unwrap(), 3, KEY).unwrap();
            assert_ne!(bound.address.port(), 0);
            for socket in bound.sockets.iter().chain(bound.group.members()) {
                assert_eq!(socket.local_addr().unwrap(), bound.address);
            }
            assert!(bound.receive_buffer > 0 && bound.send_buffer > 0);
        }
    }

    #[test]
    fn a_port_that_somebody_has_is_joined_by_nobody_who_was_not_let_in() {
        for workers in [1, 3] {
            let bound = bind("127.0.0.1:0".parse().unwrap(), workers, KEY).unwrap();
            let again = bind(bound.address, workers, KEY).unwrap_err();
            assert!(matches!(again, BindError::Bind { .. }), "{again}");
        }
    }

    #[test]
    fn fewer_sockets_than_were_spoken_of_are_refused() {
        let bound = bind("127.0.0.1:0".parse().unwrap(), 3, KEY).unwrap();
        let SocketGroup { mut members, steering, .. } = bound.group;
        members.pop();
        assert!(SocketGroup::of(members, steering.clone()).is_err());
        assert!(SocketGroup::of(Vec::new(), steering).is_err());
    }

    /// Datagrams as they are on the wire, through the kernel's own interpreter, to every worker of every process, as
    /// processes of changing size take over and end.
    #[test]
    fn the_kernel_hands_each_datagram_to_the_worker_of_the_process_that_its_id_names() {
        let mut bound = bind("127.0.0.1:0".parse().unwrap(), 2, KEY).unwrap();
        check(&bound.group);
        for (workers, ended) in
            [(2, false), (3, true), (1, false), (4, true), (2, true), (2, true), (5, true)]
        {
            let before = bound.group.steering().clone();
            // What the other process is given: its own copies, which outlive those that gave them.
            let copies = bound.group.members().iter().map(|socket| socket.try_clone().unwrap()).collect();
            let next = SocketGroup::of(copies, before.clone()).unwrap().join(workers).unwrap();
            // Nothing has changed yet.
            check(&bound.group);
            next.group.attach().unwrap();
            check(&next.group);
            bound = next;
            if ended {
                for set in before.sets() {
                    bound.group.forget(set.generation);
                }
                bound.group.attach().unwrap();
                check(&bound.group);
            }
        }
        assert!(bound.group.members().len() < 20, "sockets of ended processes are used again");
    }

    fn check(group: &SocketGroup) {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for set in group.steering().sets() {
            for worker in 0..set.workers {
                let place = Place { generation: set.generation, worker };
                let (id, length) = encode(group.steering().key(), place, None, &mut clock::rng());
                for header in [&[0xc3, 0, 0, 0, 1, length as u8][..], &[0x43]] {
                    let datagram = [header, &id[..length], &[0; 20]].concat();
                    let number = usize::from(set.first) + usize::from(worker);
                    arrives(group, &client, &datagram, number);
                }
            }
        }
        // An id that a client made up.
        let datagram = [&[0xc3, 0, 0, 0, 1, 8][..], &[9; 40]].concat();
        arrives(group, &client, &datagram, group.steering().socket_of(&datagram));
    }

    fn arrives(group: &SocketGroup, client: &UdpSocket, datagram: &[u8], number: usize) {
        client.send_to(datagram, group.address()).unwrap();
        let socket = &group.members()[number];
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 64];
        let (length, _) = socket.recv_from(&mut buffer).expect("it came to this socket");
        assert_eq!(buffer[..length], datagram[..]);
        socket.set_nonblocking(true).unwrap();
    }
}
