//! The link laboratory: two network namespaces joined by one seeded user-space link. What it emulates, how it is used and
//! where its limits are: `docs/LAB.md`.
//!
//! ```text
//!  namespace "client"                  this process                    namespace "server"
//!  any program ── kernel ── TUN ── relay thread: netem::Path ── TUN ── kernel ── any program
//!  10.77.0.1                gate, NAT (10.77.1.x), two links                      10.77.0.2
//! ```

pub mod cli;
mod control;
mod namespace;
mod relay;
mod setup;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use tidegate_transport::netem::{End, NatConfig, Path, Profile};

pub use self::control::{Control, LabCounters};
pub use self::namespace::Namespace;
use self::relay::Relay;

/// What the laboratory looks like at first. Everything but the MTU of the devices can change while it runs ([`Control`]).
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Decides which packets are lost, held back, duplicated, and by how much they jitter.
    pub seed: u64,
    /// The way from the client to the server.
    pub up: Profile,
    /// The way from the server to the client.
    pub down: Profile,
    /// The NAT in front of the client; without one the server sees the client's own address.
    pub nat: Option<NatConfig>,
    /// MTU of both TUN devices, so of what programs see; [`Profile::mtu`] is the hidden one of the path.
    pub mtu: u16,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            up: Profile::default(),
            down: Profile::default(),
            nat: Some(NatConfig::new(PUBLIC)),
            mtu: 1500,
        }
    }
}

impl LabConfig {
    /// The same profile both ways.
    pub fn symmetric(seed: u64, profile: Profile) -> Self {
        Self { seed, up: profile.clone(), down: profile, ..Self::default() }
    }
}

/// A running laboratory. Dropping it kills the programs that still run inside and removes the namespaces.
#[derive(Debug)]
pub struct Lab {
    // In the order in which they must go: the relay holds the devices, the namespaces come last.
    relay: Relay,
    client: Namespace,
    server: Namespace,
}

impl Lab {
    /// Makes the namespaces, the devices and the link between them. Blocks for some 100 ms.
    ///
    /// # Errors
    /// Without root's rights, `ip` or TUN devices; the message says what to do.
    pub fn start(config: LabConfig) -> Result<Self> {
        setup::check_rights()?;
        setup::sweep();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut client = Namespace::create(setup::name(number, "client"), CLIENT)?;
        let mut server = Namespace::create(setup::name(number, "server"), SERVER)?;
        let client_device = client.open_device(config.mtu)?;
        let server_device = server.open_device(config.mtu)?;
        let path = Path::new(config.seed, config.up, config.down, config.nat);
        let relay = Relay::start(path, client_device, server_device).context("starting the link")?;
        Ok(Self { relay, client, server })
    }

    /// The client's side of the world.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// The server's.
    pub fn server(&self) -> &Namespace {
        &self.server
    }

    /// One of them.
    pub fn end(&self, end: End) -> &Namespace {
        match end {
            End::Client => &self.client,
            End::Server => &self.server,
        }
    }

    /// Changes and watches the link.
    pub fn control(&self) -> &Control {
        self.relay.control()
    }

    /// Gives the client's device another address of its own and takes away the one before, as when a phone changes
    /// networks: sockets bound to the old address are dead, unbound UDP sockets send from the new one. Behind the NAT
    /// the server sees a new port; together with [`Control::change_address`] it is the whole swap.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn move_client(&mut self, address: Ipv4Addr) -> Result<()> {
        self.client.change_address(address)
    }
}

/// The client's address at first.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The address that the server sees at first, unless the configuration says another.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);

static NUMBER: AtomicU32 = AtomicU32::new(1);
