//! Small UDP packets with a number in them, timed at both ends.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tidegate_interop_tests::lab::{Lab, LabCounters};
use tidegate_interop_tests::wait::PATIENCE;
use tidegate_transport::clock;
use tidegate_transport::netem::Counters;

/// A UDP socket at an end.
pub(super) fn client_socket(lab: &Lab) -> Result<UdpSocket> {
    bound(lab.client().run(|| UdpSocket::bind("0.0.0.0:0"))??)
}

pub(super) fn server_socket(lab: &Lab) -> Result<UdpSocket> {
    bound(lab.server().run(|| UdpSocket::bind("0.0.0.0:7000"))??)
}

pub(super) fn server_address(lab: &Lab) -> SocketAddr {
    (lab.server().address(), 7_000).into()
}

fn bound(socket: UdpSocket) -> Result<UdpSocket> {
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends numbered packets from the client to the server and notes when they arrive.
pub(super) struct Probe<'a> {
    lab: &'a Lab,
    socket: UdpSocket,
    seen: Arc<Seen>,
    receiver: Option<JoinHandle<()>>,
    pub(super) sent: Vec<Instant>,
}

#[derive(Default)]
struct Seen {
    count: AtomicU64,
    stop: AtomicBool,
    arrivals: Mutex<BTreeMap<u64, Instant>>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(lab: &'a Lab) -> Result<Self> {
        let (socket, server) = (client_socket(lab)?, server_socket(lab)?);
        server.set_read_timeout(Some(Duration::from_millis(20)))?;
        socket.connect(server_address(lab))?;
        let seen = Arc::new(Seen::default());
        let receiver = std::thread::spawn({
            let seen = Arc::clone(&seen);
            move || seen.receive(&server)
        });
        Ok(Self { lab, socket, seen, receiver: Some(receiver), sent: Vec::new() })
    }

    /// Sends the next number in a payload of `len` bytes, at least 8.
    pub(super) fn send(&mut self, len: usize) -> Result<()> {
        let mut payload = vec![0; len];
        payload[..8].copy_from_slice(&(self.sent.len() as u64).to_be_bytes());
        self.sent.push(clock::now());
        self.socket.send(&payload)?;
        Ok(())
    }

    pub(super) fn received(&self) -> u64 {
        self.seen.count.load(Ordering::Acquire)
    }

    /// Until fewer than `window` packets are neither received nor dropped: no buffer of the kernel overflows.
    pub(super) fn until_in_flight_below(&self, window: u64) -> Result<()> {
        let deadline = clock::now() + PATIENCE;
        loop {
            let dropped = dropped(&self.lab.control().counters().up);
            let sent = self.sent.len() as u64;
            if sent < self.received() + dropped + window {
                return Ok(());
            }
            ensure!(clock::now() < deadline, "{} of {sent} received, {dropped} dropped", self.received());
            std::thread::yield_now();
        }
    }

    /// Waits for the last, then gives the arrivals by number.
    pub(super) fn finish(mut self) -> Result<(Vec<Instant>, BTreeMap<u64, Instant>, LabCounters)> {
        self.until_in_flight_below(1)?;
        let sent = std::mem::take(&mut self.sent);
        self.stop().context("the receiver panicked")?;
        let arrivals =
            std::mem::take(&mut *self.seen.arrivals.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((sent, arrivals, self.lab.control().counters()))
    }

    fn stop(&mut self) -> Option<()> {
        self.seen.stop.store(true, Ordering::Release);
        self.receiver.take()?.join().ok()
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Seen {
    fn receive(&self, socket: &UdpSocket) {
        let mut buffer = [0; 2_048];
        while !self.stop.load(Ordering::Acquire) {
            // The timeout only looks at `stop`.
            let Ok(len) = socket.recv(&mut buffer) else { continue };
            let at = clock::now();
            let Some(number) = buffer[..len].first_chunk() else { continue };
            let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            arrivals.entry(u64::from_be_bytes(*number)).or_insert(at);
            drop(arrivals);
            self.count.fetch_add(1, Ordering::Release);
        }
    }
}

fn dropped(link: &Counters) -> u64 {
    link.lost + link.queue_full + link.too_big + link.outage
}

/// Waits until `what` holds.
pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = clock::now() + PATIENCE;
    while !holds() {
        ensure!(clock::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
    Ok(())
}
