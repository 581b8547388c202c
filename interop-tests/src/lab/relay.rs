//! The thread between the two devices: moves packets in and out of `netem::Path` at their times.
//!
//! A thread that sleeps in `ppoll` is some 60 µs late on an idle machine, where a timer of tokio is up to 1 ms; it runs at
//! real-time priority where it may, so that the programs under test do not delay the network.

use std::io::{ErrorKind, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use nix::unistd::gettid;
use tidegate_transport::clock;
use tidegate_transport::netem::{End, Path};
use tun_rs::SyncDevice;

use super::control::Control;

/// Runs until it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    control: Control,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    pub(super) fn start(path: Path, client: SyncDevice, server: SyncDevice) -> Result<Self> {
        let (wake, woken) = UnixStream::pair().context("a pair of sockets")?;
        for socket in [&wake, &woken] {
            socket.set_nonblocking(true).context("a pair of sockets")?;
        }
        let control = Control::new(path, wake);
        let stop = Arc::new(AtomicBool::new(false));
        let devices = Devices { client, server, woken };
        let thread = thread::Builder::new().name("lab-link".to_owned()).spawn({
            let (control, stop) = (control.clone(), Arc::clone(&stop));
            move || {
                take_priority();
                while !stop.load(Ordering::Acquire) {
                    let next = devices.deliver(&control);
                    if let Err(errno) = devices.wait(next) {
                        eprintln!("the laboratory's link ends: {errno}");
                        return;
                    }
                    devices.collect(&control, End::Client);
                    devices.collect(&control, End::Server);
                }
            }
        })?;
        Ok(Self { control, stop, thread: Some(thread) })
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.control.wake();
        if let Some(thread) = self.thread.take() {
            // If it panicked, it said so itself.
            let _ = thread.join();
        }
    }
}

struct Devices {
    client: SyncDevice,
    server: SyncDevice,
    woken: UnixStream,
}

impl Devices {
    /// Hands over all that has arrived; says when the next packet will have.
    fn deliver(&self, control: &Control) -> Option<Instant> {
        loop {
            // Locked anew for each packet: nobody who counts has to wait for a burst.
            let mut path = control.lock();
            let Some((to, packet)) = path.poll_transmit(clock::now()) else { return path.poll_timeout() };
            drop(path);
            // Refused by a device that is going down, or by a kernel that thinks it no packet: lost, as on any wire.
            let _ = self.device(to).send(&packet);
        }
    }

    /// Until a packet comes, a deadline passes, or somebody wakes us.
    fn wait(&self, next: Option<Instant>) -> Result<(), Errno> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut polled = [self.client.as_fd(), self.server.as_fd(), self.woken.as_fd()].map(readable);
        let timeout = next.map(|next| TimeSpec::from(next.saturating_duration_since(clock::now())));
        match ppoll(&mut polled, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        // Only there to end the wait.
        while matches!((&self.woken).read(&mut [0; 64]), Ok(read) if read > 0) {}
        Ok(())
    }

    /// Takes what an end has sent, a batch at most: the other end and the deadlines must not wait for a flood.
    fn collect(&self, control: &Control, from: End) {
        let mut buffer = [0; LARGEST];
        for _ in 0..BATCH {
            match self.device(from).recv(&mut buffer) {
                Ok(len) => control.lock().handle_packet(clock::now(), from, buffer[..len].to_vec()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn device(&self, end: End) -> &SyncDevice {
        match end {
            End::Client => &self.client,
            End::Server => &self.server,
        }
    }
}

/// Real-time priority for the calling thread, where the system grants it. Where not, the counters' `late` tells what it
/// costs.
fn take_priority() {
    let _ = Command::new("chrt")
        .args(["--fifo", "--pid", "10", &gettid().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

const BATCH: usize = 32;
const LARGEST: usize = 65_536;
