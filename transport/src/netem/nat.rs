//! Sans-io: a NAT: one public address, a port for each of the client's sockets.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::ipv4::{Flow, Transport, Which, rewrite};

/// How the NAT behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatConfig {
    /// The address that the server sees.
    pub public: Ipv4Addr,
    /// A UDP or echo mapping that no packet used for so long, either way, is forgotten. `None`: never.
    pub udp_expiry: Option<Duration>,
}

impl NatConfig {
    /// Mappings that stay.
    pub fn new(public: Ipv4Addr) -> Self {
        Self { public, udp_expiry: None }
    }

    /// Mappings that expire; 30 s is what mobile carriers do.
    #[must_use]
    pub fn with_udp_expiry(self, expiry: Duration) -> Self {
        Self { udp_expiry: Some(expiry), ..self }
    }
}

/// Endpoint-independent mapping and filtering (RFC 4787 §4.1, §5), a fresh port for every mapping.
///
/// ```text
///             first packet out                         unused for udp_expiry (UDP, echo)
///  (no mapping) ───────────────► (mapping, public port) ───────────────► (no mapping)
///                                        │  rebind, change_address            ▲
///                                        └────────────────────────────────────┘
/// ```
///
/// What comes in for a port without a mapping is dropped.
#[derive(Debug)]
pub(super) struct Nat {
    config: NatConfig,
    outward: BTreeMap<(Transport, Ipv4Addr, u16), Mapping>,
    /// Public port to the key of `outward`.
    inward: BTreeMap<(Transport, u16), (Ipv4Addr, u16)>,
    next_port: u16,
    counters: NatCounters,
}

/// What the NAT did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct NatCounters {
    /// Mappings made.
    pub mapped: u64,
    /// Mappings that expired.
    pub expired: u64,
    /// Mappings dropped by rebinding or a new address.
    pub rebound: u64,
    /// Packets from outside that had no mapping.
    pub unmapped: u64,
}

#[derive(Debug, Clone, Copy)]
struct Mapping {
    port: u16,
    used: Instant,
}

impl Nat {
    pub(super) fn new(config: NatConfig) -> Self {
        Self {
            config,
            outward: BTreeMap::new(),
            inward: BTreeMap::new(),
            next_port: FIRST_PORT,
            counters: NatCounters::default(),
        }
    }

    /// Translates a packet on its way out, with a new mapping where there is none.
    pub(super) fn translate_out(&mut self, now: Instant, flow: &Flow, packet: &mut [u8]) {
        let key = (flow.transport, flow.source, flow.source_port);
        self.expire(now, key);
        let public = self.config.public;
        let mapping = match self.outward.get_mut(&key) {
            Some(mapping) => {
                mapping.used = now;
                *mapping
            }
            None => self.map(now, key),
        };
        rewrite(packet, Which::Source, public, mapping.port);
    }

    /// Translates a packet on its way in; false when nobody is mapped there.
    pub(super) fn translate_in(&mut self, now: Instant, flow: &Flow, packet: &mut [u8]) -> bool {
        let inside = (flow.destination == self.config.public)
            .then(|| self.inward.get(&(flow.transport, flow.destination_port)).copied())
            .flatten();
        if let Some((address, port)) = inside {
            let key = (flow.transport, address, port);
            self.expire(now, key);
            if let Some(mapping) = self.outward.get_mut(&key) {
                mapping.used = now;
                rewrite(packet, Which::Destination, address, port);
                return true;
            }
        }
        self.counters.unmapped += 1;
        false
    }

    /// Forgets mappings: the next packet out gets another port, the old port is dead. All of them, or UDP's only.
    pub(super) fn rebind(&mut self, udp_only: bool) {
        let keeps = |transport: Transport| udp_only && transport != Transport::Udp;
        let before = self.outward.len();
        self.outward.retain(|key, _| keeps(key.0));
        self.inward.retain(|key, _| keeps(key.0));
        self.counters.rebound += (before - self.outward.len()) as u64;
    }

    /// Another public address; every mapping of the one before is dead.
    pub(super) fn change_address(&mut self, public: Ipv4Addr) {
        self.rebind(false);
        self.config.public = public;
    }

    pub(super) fn public(&self) -> Ipv4Addr {
        self.config.public
    }

    pub(super) fn set_udp_expiry(&mut self, expiry: Option<Duration>) {
        self.config.udp_expiry = expiry;
    }

    pub(super) fn counters(&self) -> NatCounters {
        self.counters
    }

    fn expire(&mut self, now: Instant, key: (Transport, Ipv4Addr, u16)) {
        let Some(expiry) = self.config.udp_expiry.filter(|_| key.0 != Transport::Tcp) else { return };
        if self.outward.get(&key).is_some_and(|mapping| now.saturating_duration_since(mapping.used) >= expiry)
        {
            self.forget(key);
            self.counters.expired += 1;
        }
    }

    fn map(&mut self, now: Instant, key: (Transport, Ipv4Addr, u16)) -> Mapping {
        if self.outward.len() >= MAPPINGS
            && let Some(oldest) =
                self.outward.iter().min_by_key(|(_, mapping)| mapping.used).map(|(key, _)| *key)
        {
            self.forget(oldest);
            self.counters.expired += 1;
        }
        // There are more ports than mappings, so one is free.
        while self.inward.contains_key(&(key.0, self.next_port)) {
            self.next_port = following(self.next_port);
        }
        let mapping = Mapping { port: self.next_port, used: now };
        self.next_port = following(self.next_port);
        self.inward.insert((key.0, mapping.port), (key.1, key.2));
        self.outward.insert(key, mapping);
        self.counters.mapped += 1;
        mapping
    }

    fn forget(&mut self, key: (Transport, Ipv4Addr, u16)) {
        if let Some(mapping) = self.outward.remove(&key) {
            self.inward.remove(&(key.0, mapping.port));
        }
    }
}

fn following(port: u16) -> u16 {
    if port >= LAST_PORT { FIRST_PORT } else { port + 1 }
}

const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 59_999;
/// At most so many mappings; a new one then replaces the one that was unused for longest.
const MAPPINGS: usize = 16_384;
