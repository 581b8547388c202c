//! Ports for servers whose addresses others must know before they start, and that keep them while they are down.

use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

/// Free for TCP and UDP, and below the ports that the kernel gives to sockets that ask for any. No other process that
/// asks here gets it while this one lives.
pub(crate) fn free() -> Result<SocketAddr> {
    let folder = std::env::temp_dir().join("tidegate-test-ports");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    // Processes that run at the same time begin apart.
    let begin = std::process::id().wrapping_mul(APART) % COUNT;
    for _ in 0..COUNT {
        let port = u16::try_from(FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)?;
        let path = folder.join(port.to_string());
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error).context(path.display().to_string()),
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            HELD.lock().expect("nobody panics here").push(file);
            return Ok(address);
        }
    }
    bail!("there is no port that is free for both TCP and UDP")
}

static NEXT: AtomicU32 = AtomicU32::new(0);
/// Locked until this process ends.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
const FIRST: u32 = 10_000;
/// Up to where Linux begins (`net.ipv4.ip_local_port_range`).
const COUNT: u32 = 22_000;
/// About what a process takes.
const APART: u32 = 64;
