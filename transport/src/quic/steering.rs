//! One UDP port, one socket per worker: which socket a datagram belongs to is written into the connection id.
//!
//! All sockets are bound with `SO_REUSEPORT`, in worker order. A classic BPF program on their group reads one byte
//! of the destination connection id and answers with the worker's number, so that a connection stays at its worker
//! when the client's address changes (RFC 9000 §9). Ids that clients choose for their first packets are random: they
//! spread connections, and the id that the chosen worker answers with names that same worker.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use quinn::ConnectionIdGenerator;
use quinn_proto::{ConnectionId, InvalidCid};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use socket2::{Domain, Protocol, Socket, Type};

/// How connection ids name workers: shared by the sockets' program and by the workers' id generators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steering {
    workers: u8,
    /// Keeps the worker's number from being read off an id at a glance.
    key: u8,
}

/// The sockets of one address, one per worker.
#[derive(Debug)]
pub struct BoundSockets {
    /// In worker order, not blocking.
    pub sockets: Vec<UdpSocket>,
    /// What [`super::QuicServer::new`] wants.
    pub steering: Steering,
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
    /// No worker, or more than one byte of a connection id can name.
    #[error("{0} workers: between 1 and {MAX_WORKERS} can share a UDP port")]
    Workers(usize),
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

/// The most workers that share a port.
pub const MAX_WORKERS: usize = 64;

impl Steering {
    /// Among `workers` workers, with a new key.
    ///
    /// # Errors
    /// When `workers` is 0 or over [`MAX_WORKERS`].
    pub fn new(workers: usize, rng: &mut ChaCha8Rng) -> Result<Self, BindError> {
        match u8::try_from(workers) {
            Ok(count @ 1..) if workers <= MAX_WORKERS => {
                Ok(Self { workers: count, key: rng.next_u32() as u8 })
            }
            _ => Err(BindError::Workers(workers)),
        }
    }

    /// How many workers there are.
    pub fn workers(self) -> usize {
        usize::from(self.workers)
    }

    fn worker_of(self, byte: u8) -> u8 {
        (byte ^ self.key) % self.workers
    }

    /// A byte that names `worker`, otherwise random.
    fn byte_for(self, worker: u8, random: u8) -> u8 {
        // The largest multiple of `workers` in a byte: every value below it is as likely, and none overflows.
        let choices = u16::from(u8::MAX) + 1;
        let groups = choices / u16::from(self.workers);
        let group = (u16::from(random) % groups) as u8;
        (group * self.workers + worker) ^ self.key
    }

    /// The classic BPF program. Its data begin at the UDP payload: a long header has flags, version, length of the
    /// id, id (RFC 9000 §17.2); a short one flags, id (§17.3).
    fn program(self) -> [Instruction; 8] {
        let worker = if self.workers.is_power_of_two() {
            (BPF_AND_K, 0, 0, u32::from(self.workers - 1))
        } else {
            (BPF_MOD_K, 0, 0, u32::from(self.workers))
        };
        [
            (BPF_LOAD_BYTE, 0, 0, 0),
            (BPF_JUMP_IF_SET, 2, 0, LONG_HEADER),
            (BPF_LOAD_BYTE, 0, 0, 1),
            (BPF_JUMP, 0, 0, 1),
            (BPF_LOAD_BYTE, 0, 0, 6),
            (BPF_XOR_K, 0, 0, u32::from(self.key)),
            worker,
            (BPF_RETURN_A, 0, 0, 0),
        ]
    }
}

/// `code, jt, jf, k` of a classic BPF instruction.
type Instruction = (u16, u8, u8, u32);

/// Binds `address` once per worker. Port 0: the first takes a free port, the others the same.
///
/// An IPv6 wildcard address takes IPv4 too.
///
/// # Errors
/// When the address is taken, or the kernel steers no datagrams (`workers` over 1 needs Linux 4.6).
pub fn bind(address: SocketAddr, workers: usize, rng: &mut ChaCha8Rng) -> Result<BoundSockets, BindError> {
    let steering = Steering::new(workers, rng)?;
    let mut bound = BoundSockets {
        sockets: Vec::new(),
        steering,
        address,
        receive_buffer: usize::MAX,
        send_buffer: usize::MAX,
    };
    for _ in 0..workers {
        let socket =
            bind_one(bound.address, workers > 1).map_err(|source| BindError::Bind { address, source })?;
        let granted = |read: io::Result<usize>| read.map_err(|source| BindError::Bind { address, source });
        // Linux keeps twice what was asked for, for its own book-keeping, and says so.
        bound.receive_buffer = bound.receive_buffer.min(granted(socket.recv_buffer_size())? / 2);
        bound.send_buffer = bound.send_buffer.min(granted(socket.send_buffer_size())? / 2);
        if bound.sockets.is_empty() {
            let local = granted_address(&socket).map_err(|source| BindError::Bind { address, source })?;
            bound.address.set_port(local.port());
            // Before the second socket joins: from then on every datagram has its worker.
            if workers > 1 {
                attach(&socket, steering).map_err(|source| BindError::Steer { address, workers, source })?;
            }
        }
        bound.sockets.push(socket.into());
    }
    Ok(bound)
}

/// Makes ids that name one worker.
pub(crate) struct WorkerIds {
    steering: Steering,
    worker: u8,
    rng: ChaCha8Rng,
}

impl WorkerIds {
    pub(crate) fn new(steering: Steering, worker: usize, rng: ChaCha8Rng) -> Self {
        assert!(worker < steering.workers(), "worker {worker} of {}", steering.workers);
        Self { steering, worker: worker as u8, rng }
    }
}

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        self.rng.fill_bytes(&mut id);
        id[0] = self.steering.byte_for(self.worker, id[0]);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.first() {
            Some(&byte) if self.steering.worker_of(byte) == self.worker => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn bind_one(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    // What is granted is read back: neither call fails where less is.
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn granted_address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no IP address"))
}

#[cfg(target_os = "linux")]
fn attach(socket: &Socket, steering: Steering) -> io::Result<()> {
    use nix::libc::{sock_filter, sock_fprog};
    use nix::sys::socket::{setsockopt, sockopt};

    let mut program = steering.program().map(|(code, jt, jf, k)| sock_filter { code, jt, jf, k });
    // The kernel copies the program during the call.
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
}

#[cfg(not(target_os = "linux"))]
fn attach(_socket: &Socket, steering: Steering) -> io::Result<()> {
    let _program = steering.program();
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux steers datagrams by their content"))
}

const ID_BYTES: usize = 8;

const LONG_HEADER: u32 = 0x80;
const BPF_LOAD_BYTE: u16 = 0x30;
const BPF_JUMP_IF_SET: u16 = 0x45;
const BPF_JUMP: u16 = 0x05;
const BPF_XOR_K: u16 = 0xa4;
const BPF_AND_K: u16 = 0x54;
const BPF_MOD_K: u16 = 0x94;
const BPF_RETURN_A: u16 = 0x16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn ids_name_their_worker_and_no_other() {
        for workers in [1, 2, 3, 4, 5, 7, 8, MAX_WORKERS] {
            let steering = Steering::new(workers, &mut clock::rng()).unwrap();
            for worker in 0..workers {
                let mut ids = WorkerIds::new(steering, worker, clock::rng());
                for _ in 0..300 {
                    let id = ids.generate_cid();
                    assert_eq!(id.len(), ids.cid_len());
                    for other in 0..workers {
                        let accepted = WorkerIds::new(steering, other, clock::rng()).validate(&id).is_ok();
                        assert_eq!(accepted, other == worker, "{workers} workers, id of {worker} at {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn worker_counts_out_of_range_are_refused() {
        for workers in [0, MAX_WORKERS + 1, 256, 1000] {
            assert!(
                matches!(Steering::new(workers, &mut clock::rng()), Err(BindError::Workers(n)) if n == workers)
            );
        }
    }

    #[test]
    fn all_sockets_share_the_port_that_the_first_one_got() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let bound = bind(address.parse().unwrap(), 3, &mut clock::rng()).unwrap();
            assert_ne!(bound.address.port(), 0);
            for socket in &bound.sockets {
                assert_eq!(socket.local_addr().unwrap(), bound.address);
            }
            assert!(bound.receive_buffer > 0 && bound.send_buffer > 0);
        }
    }

    #[test]
    fn a_single_worker_does_not_share_its_port() {
        let bound = bind("127.0.0.1:0".parse().unwrap(), 1, &mut clock::rng()).unwrap();
        let again = bind(bound.address, 1, &mut clock::rng()).unwrap_err();
        assert!(matches!(again, BindError::Bind { .. }), "{again}");
    }

    /// Datagrams as they are on the wire, through the kernel's own interpreter: also for a number that is no power of two.
    #[test]
    fn the_kernel_hands_each_datagram_to_the_worker_that_its_id_names() {
        for workers in [2, 3, 4] {
            let bound = bind("127.0.0.1:0".parse().unwrap(), workers, &mut clock::rng()).unwrap();
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            for worker in 0..workers {
                let mut ids = WorkerIds::new(bound.steering, worker, clock::rng());
                for long in [true, false] {
                    let mut datagram = if long { vec![0xc3, 0, 0, 0, 1, ID_BYTES as u8] } else { vec![0x43] };
                    datagram.extend_from_slice(&ids.generate_cid());
                    client.send_to(&datagram, bound.address).unwrap();
                    let socket = &bound.sockets[worker];
                    socket.set_nonblocking(false).unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    let mut buffer = [0; 64];
                    let (length, _) = socket.recv_from(&mut buffer).expect("it came to this worker");
                    assert_eq!(buffer[..length], datagram[..]);
                }
            }
        }
    }
}
