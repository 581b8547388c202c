//! Changing and watching the link while it runs.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_transport::clock;
use tidegate_transport::netem::{Counters, End, Path, PathCounters, Profile, UdpGate};

/// Changes and watches the link; every change counts from the next packet on. Clones are the same laboratory.
#[derive(Debug, Clone)]
pub struct Control {
    path: Arc<Mutex<Path>>,
    /// Wakes the relay, whose next deadline may have changed.
    wake: Arc<UnixStream>,
}

/// What happened so far.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LabCounters {
    /// On the way from the client to the server.
    pub up: Counters,
    /// On the way from the server to the client.
    pub down: Counters,
    /// At the middleboxes.
    pub path: PathCounters,
}

impl Control {
    pub(super) fn new(path: Path, wake: UnixStream) -> Self {
        Self { path: Arc::new(Mutex::new(path)), wake: Arc::new(wake) }
    }

    /// Changes the way that this end sends into.
    pub fn set_profile(&self, from: End, profile: Profile) {
        self.lock().set_profile(from, profile);
    }

    /// Changes both ways.
    pub fn set_profiles(&self, up: Profile, down: Profile) {
        let mut path = self.lock();
        path.set_profile(End::Client, up);
        path.set_profile(End::Server, down);
    }

    /// The NAT forgets all mappings: what the client sends next comes from another port, what the server sends to the old
    /// port is dropped. TCP connections die of it.
    pub fn rebind_nat(&self) {
        self.lock().rebind(false);
    }

    /// The same for UDP alone.
    pub fn rebind_nat_udp(&self) {
        self.lock().rebind(true);
    }

    /// How long an unused UDP mapping lives from now on.
    pub fn set_udp_expiry(&self, expiry: Option<Duration>) {
        self.lock().set_udp_expiry(expiry);
    }

    /// The client gets another public address, which is returned: all mappings die. `None` without a NAT.
    pub fn change_address(&self) -> Option<Ipv4Addr> {
        let mut path = self.lock();
        let [a, b, c, d] = path.public_address()?.octets();
        let next = if d >= 254 { [a, b, c.wrapping_add(1), 1] } else { [a, b, c, d + 1] };
        path.change_address(next.into());
        Some(next.into())
    }

    /// The address that the server sees, where there is a NAT.
    pub fn public_address(&self) -> Option<Ipv4Addr> {
        self.lock().public_address()
    }

    /// Drops all UDP, silently, or lets all pass again.
    pub fn block_udp(&self, blocked: bool) {
        self.lock().set_udp(if blocked { UdpGate::Closed } else { UdpGate::Open });
    }

    /// Drops UDP to and from these ports of the server; other UDP passes.
    pub fn block_udp_ports(&self, ports: Vec<u16>) {
        self.lock().set_udp(UdpGate::ClosedPorts(ports));
    }

    /// Drops all UDP from now on: a network that lets the handshake pass and then nothing. Undone by
    /// [`Control::block_udp`].
    pub fn black_hole_udp(&self) {
        self.lock().set_udp(UdpGate::Closed);
    }

    /// The same after so many more UDP packets, both ways together.
    pub fn black_hole_udp_after(&self, packets: u64) {
        self.lock().set_udp(UdpGate::ClosesAfter(packets));
    }

    /// Nothing passes either way for so long, beginning now: the elevator.
    pub fn outage(&self, duration: Duration) {
        self.lock().outage(clock::now(), duration);
    }

    /// What happened so far.
    pub fn counters(&self) -> LabCounters {
        let path = self.lock();
        LabCounters {
            up: path.link_counters(End::Client),
            down: path.link_counters(End::Server),
            path: path.counters(),
        }
    }

    /// The indices, from 0, of the packets that the loss model dropped of what this end sent; the first 65,536 of them.
    pub fn dropped(&self, from: End) -> Vec<u64> {
        self.lock().link(from).dropped().to_vec()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Path> {
        // Arithmetic that panicked half way leaves a path that still forwards packets.
        self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the relay's wait.
    pub(super) fn wake(&self) {
        // A full pipe wakes as well.
        let _ = (&*self.wake).write(&[0]);
    }
}
