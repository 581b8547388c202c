//! Sans-io: the whole path of IPv4 packets between a client and a server: gate, NAT and the two links.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::gate::UdpGate;
use super::ipv4::flow;
use super::link::{Counters, Link};
use super::nat::{Nat, NatConfig, NatCounters};
use super::profile::Profile;
use super::wire::{End, Wire};

/// The path. Gate and NAT stand at the client's end: what comes out of the client meets them before its link, what comes
/// in after it, so that rebinding kills what is on its way to the old port.
#[derive(Debug)]
pub struct Path {
    gate: UdpGate,
    nat: Option<Nat>,
    wire: Wire<Vec<u8>>,
    counters: PathCounters,
}

/// What the middleboxes dropped, packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PathCounters {
    /// UDP that was blocked, both ways together.
    pub blocked: u64,
    /// What no middlebox understands: fragments, IPv6, other protocols.
    pub foreign: u64,
    /// What the NAT did.
    pub nat: NatCounters,
}

impl Path {
    /// A path; without a NAT both ends see each other's own addresses.
    pub fn new(seed: u64, up: Profile, down: Profile, nat: Option<NatConfig>) -> Self {
        Self {
            gate: UdpGate::Open,
            nat: nat.map(Nat::new),
            wire: Wire::new(seed, up, down),
            counters: PathCounters::default(),
        }
    }

    /// An end sends a packet.
    pub fn handle_packet(&mut self, now: Instant, from: End, mut packet: Vec<u8>) {
        let Some(flow) = flow(&packet) else {
            self.counters.foreign += 1;
            return;
        };
        if from == End::Client {
            if !self.gate.passes(&flow, flow.destination_port) {
                self.counters.blocked += 1;
                return;
            }
            if let Some(nat) = &mut self.nat {
                nat.translate_out(now, &flow, &mut packet);
            }
        }
        self.wire.handle_packet(now, from, packet.len(), packet);
    }

    /// When [`Path::poll_transmit`] has the next packet.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wire.poll_timeout()
    }

    /// A packet that arrives, and the end that it arrives at.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(End, Vec<u8>)> {
        while let Some((to, mut packet)) = self.wire.poll_transmit(now) {
            if to == End::Server || self.enters(now, &mut packet) {
                return Some((to, packet));
            }
        }
        None
    }

    /// Changes what happens to UDP.
    pub fn set_udp(&mut self, gate: UdpGate) {
        self.gate = gate;
    }

    /// Forgets the NAT's mappings, all or UDP's only: the server sees another port from the next packet on.
    pub fn rebind(&mut self, udp_only: bool) {
        if let Some(nat) = &mut self.nat {
            nat.rebind(udp_only);
        }
    }

    /// The server sees another address from the next packet on; nothing without a NAT.
    pub fn change_address(&mut self, public: Ipv4Addr) {
        if let Some(nat) = &mut self.nat {
            nat.change_address(public);
        }
    }

    /// The address that the server sees, where there is a NAT.
    pub fn public_address(&self) -> Option<Ipv4Addr> {
        self.nat.as_ref().map(Nat::public)
    }

    /// How long an unused UDP mapping lives from now on.
    pub fn set_udp_expiry(&mut self, expiry: Option<Duration>) {
        if let Some(nat) = &mut self.nat {
            nat.set_udp_expiry(expiry);
        }
    }

    /// Nothing passes either way for so long.
    pub fn outage(&mut self, now: Instant, duration: Duration) {
        self.wire.outage(now, duration);
    }

    /// Changes the link that this end sends into.
    pub fn set_profile(&mut self, from: End, profile: Profile) {
        self.wire.link_mut(from).set_profile(profile);
    }

    /// The link that this end sends into.
    pub fn link(&self, from: End) -> &Link<Vec<u8>> {
        self.wire.link(from)
    }

    /// What happened to what this end sent, once past the middleboxes.
    pub fn link_counters(&self, from: End) -> Counters {
        self.wire.counters(from)
    }

    /// What the middleboxes did.
    pub fn counters(&self) -> PathCounters {
        let nat = self.nat.as_ref().map(Nat::counters).unwrap_or_default();
        PathCounters { nat, ..self.counters }
    }

    /// The client's end of the way down.
    fn enters(&mut self, now: Instant, packet: &mut [u8]) -> bool {
        let Some(flow) = flow(packet) else { return false };
        if !self.gate.passes(&flow, flow.source_port) {
            self.counters.blocked += 1;
            return false;
        }
        self.nat.as_mut().is_none_or(|nat| nat.translate_in(now, &flow, packet))
    }
}

#[cfg(test)]
mod tests;
