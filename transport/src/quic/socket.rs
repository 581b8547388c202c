//! The UDP socket as quinn sees it: tokio's, sending fewer datagrams in one call, watched for datagrams that belong
//! elsewhere and for clients' first packets, and sending no more than it may where nobody has proved to be.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

use super::credits::{Credits, Waiting};
use super::ids::{IdKey, Place, place_in_datagram};
use super::initials::{Initial, Initials};
use crate::clock;

/// Datagrams with an id of ours that came to another socket than the id names. None should: what is counted here was
/// lost to its connection, unless that is gone.
#[derive(Debug, Clone, Default)]
pub struct Strays(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    workers: AtomicU64,
    processes: AtomicU64,
}

impl Strays {
    /// Of another worker of this process.
    pub fn of_workers(&self) -> u64 {
        self.0.workers.load(Ordering::Relaxed)
    }

    /// Of a process before or after this one; of one that has ended, once it has.
    pub fn of_processes(&self) -> u64 {
        self.0.processes.load(Ordering::Relaxed)
    }
}

/// What should arrive at a socket.
#[derive(Debug)]
pub(crate) struct Arrivals {
    key: IdKey,
    place: Place,
    strays: Strays,
    /// One thread uses the socket.
    initials: Mutex<Initials>,
    credits: Mutex<Credits>,
    /// How many accounts there are: most of the time none.
    accounts: AtomicUsize,
}

impl Arrivals {
    /// `handshake`: no handshake takes longer.
    pub(crate) fn new(key: IdKey, place: Place, strays: Strays, handshake: Duration) -> Self {
        let initials = Mutex::new(Initials::new(INITIALS));
        let credits = Mutex::new(Credits::new(ACCOUNTS, handshake.saturating_add(LAST_PACKETS)));
        Self { key, place, strays, initials, credits, accounts: AtomicUsize::new(0) }
    }

    /// The ids of the first packet of a client that wrote to `first`.
    pub(super) fn find_initial(&self, remote: SocketAddr, first: &[u8]) -> Option<Initial> {
        self.initials().find(remote, first)
    }

    /// The client that wrote to `first` is going to be answered, and has not proved its address. False where there are too
    /// many such.
    pub(super) fn open_account(&self, remote: SocketAddr, first: &[u8]) -> bool {
        let client = self.initials().take_received(remote, first);
        let mut credits = self.credits();
        let opened = credits.open(clock::now(), remote, client);
        self.accounts.store(credits.len(), Ordering::Relaxed);
        opened
    }

    /// Whether there will be an account for an address that has not been proved, once it is decided about.
    pub(super) fn has_room(&self, remote: SocketAddr) -> bool {
        if self.has_no_accounts() {
            return true;
        }
        let mut credits = self.credits();
        let has_room = credits.has_room(clock::now(), remote);
        self.accounts.store(credits.len(), Ordering::Relaxed);
        has_room
    }

    /// What may be sent to `remote` now that this has come.
    fn look(&self, remote: SocketAddr, datagram: &[u8]) -> Option<Waiting> {
        let (counted, waiting) = self.count(remote, datagram);
        if let Some(initial) = Initial::of(datagram) {
            self.initials().note(remote, initial, if counted { 0 } else { datagram.len() as u64 });
        }
        if let Some(place) = place_in_datagram(self.key, datagram) {
            let counts = &self.strays.0;
            if place.generation != self.place.generation {
                counts.processes.fetch_add(1, Ordering::Relaxed);
            } else if place.worker != self.place.worker {
                counts.workers.fetch_add(1, Ordering::Relaxed);
            }
        }
        waiting
    }

    fn count(&self, remote: SocketAddr, datagram: &[u8]) -> (bool, Option<Waiting>) {
        if self.has_no_accounts() {
            return (false, None);
        }
        let mut credits = self.credits();
        let counted = credits.handle_datagram(remote, datagram);
        self.accounts.store(credits.len(), Ordering::Relaxed);
        counted
    }

    fn has_no_accounts(&self) -> bool {
        self.accounts.load(Ordering::Relaxed) == 0
    }

    fn initials(&self) -> MutexGuard<'_, Initials> {
        self.initials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn credits(&self) -> MutexGuard<'_, Credits> {
        self.credits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `socket` on the current tokio runtime, with at most `segments` datagrams a send.
///
/// quinn would take ten, and every connection that once had so much to send would keep a buffer of that size.
pub(crate) fn wrap(socket: UdpSocket, segments: usize, arrivals: Arc<Arrivals>) -> io::Result<Arc<Frugal>> {
    Ok(Arc::new(Frugal {
        socket: TokioRuntime.wrap_udp_socket(socket)?,
        segments: segments.max(1),
        arrivals,
    }))
}

/// A client's `socket` on the current tokio runtime, which receives each datagram by itself.
///
/// Where the kernel joins datagrams (GRO), quinn keeps a buffer for 32 times 64 of them for each endpoint: 3 MB. Every dial
/// makes an endpoint, and from the second on the allocator clears that memory, which costs a millisecond and stays.
pub(crate) fn wrap_client(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let handle = socket.try_clone()?;
    // It asks the kernel to join.
    let socket = TokioRuntime.wrap_udp_socket(socket)?;
    Ok(if is_told_not_to_join(&handle) { Arc::new(Single(socket)) } else { socket })
}

#[cfg(target_os = "linux")]
fn is_told_not_to_join(socket: &UdpSocket) -> bool {
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::UdpGroSegment, &false).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn is_told_not_to_join(_socket: &UdpSocket) -> bool {
    false
}

#[derive(Debug)]
struct Single(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Single {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

/// What [`wrap`] makes.
#[derive(Debug)]
pub(crate) struct Frugal {
    socket: Arc<dyn AsyncUdpSocket>,
    segments: usize,
    arrivals: Arc<Arrivals>,
}

impl Frugal {
    /// Sends what names the server as the client did: who answers to that name has not read it.
    pub(super) fn try_send_echo(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.try_send_as(transmit, Naming::Echo)
    }

    fn try_send_as(&self, transmit: &Transmit<'_>, naming: Naming) -> io::Result<()> {
        if self.arrivals.has_no_accounts() {
            self.socket.try_send(transmit)
        } else {
            self.try_send_counted(transmit, naming)
        }
    }

    /// What is sent to an address that may be somebody else's counts.
    fn try_send_counted(&self, transmit: &Transmit<'_>, naming: Naming) -> io::Result<()> {
        let Transmit { contents, src_ip, .. } = *transmit;
        let mut credits = self.arrivals.credits();
        let Some(account) = credits.account(transmit.destination, contents) else {
            drop(credits);
            return self.socket.try_send(transmit);
        };
        let segment = transmit.segment_size.unwrap_or(contents.len()).max(1);
        let goes = account.allowance(contents, segment);
        if goes > 0 {
            let contents = &contents[..goes];
            self.socket.try_send(&Transmit { contents, ..transmit.clone() })?;
        }
        if naming == Naming::Own {
            account.handle_named(contents);
        }
        account.handle_sent(contents, segment, goes, src_ip);
        Ok(())
    }
}

impl AsyncUdpSocket for Frugal {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.try_send_as(transmit, Naming::Own)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.socket.poll_recv(cx, buffers, meta))?;
        for (buffer, meta) in buffers.iter().zip(&*meta).take(received) {
            // One buffer holds several datagrams of one size where the kernel joined them (GRO).
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                if let Some(Waiting { contents, source: src_ip }) = self.arrivals.look(meta.addr, datagram) {
                    let (destination, contents) = (meta.addr, &*contents);
                    let late = Transmit { destination, ecn: None, contents, segment_size: None, src_ip };
                    // Not sent: as lost on the way.
                    let _lost = self.socket.try_send(&late);
                }
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments().min(self.segments)
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

/// Who chose the id that packets are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    Own,
    Echo,
}

/// First packets that are remembered, for as long as it takes to decide about their clients. Beyond it, a client is refused
/// without a reason.
const INITIALS: usize = 8_192;
/// Addresses of handshakes that are not validated. Beyond it, a client is asked to prove its address.
const ACCOUNTS: usize = 16_384;
/// How long quinn may answer packets of a connection that was given up: three PTOs of a path that nobody measured.
const LAST_PACKETS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn long(to: &[u8], from: &[u8]) -> Vec<u8> {
        let head = [&[0xc0, 0, 0, 0, 1, to.len() as u8], to, &[from.len() as u8], from].concat();
        [head, vec![0; 1200]].concat()
    }

    #[tokio::test]
    async fn who_answers_to_a_name_that_he_chose_has_proved_nothing() {
        let [client, server] = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let remote = client.local_addr().unwrap();
        let place = Place { worker: 0, generation: 0 };
        let arrivals = Arrivals::new(IdKey(7), place, Strays::default(), Duration::from_secs(10));
        let arrivals = Arc::new(arrivals);
        let socket = wrap(server, 1, Arc::clone(&arrivals)).unwrap();
        let mut poller = Arc::clone(&socket).create_io_poller();
        poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        arrivals.look(remote, &long(b"chosen", b"client"));
        assert!(arrivals.open_account(remote, b"chosen") && arrivals.has_room(remote));

        let answer = |contents| Transmit {
            destination: remote,
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        };
        let [refusal, flight] = [&b"chosen"[..], b"server"].map(|from| long(b"client", from));
        socket.try_send_echo(&answer(&refusal)).unwrap();
        arrivals.look(remote, &long(b"chosen", b"client"));
        assert!(!arrivals.has_no_accounts(), "a refusal says nothing new");
        socket.try_send(&answer(&flight)).unwrap();
        arrivals.look(remote, &long(b"server", b"client"));
        assert!(arrivals.has_no_accounts(), "who read the answer is there");
    }
}
