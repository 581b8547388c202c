//! Sans-io: what a middlebox reads and rewrites of an IPv4 packet (RFC 791, 768, 9293, 792), checksums by difference
//! (RFC 1624).

use std::net::Ipv4Addr;

/// What a NAT keeps mappings for. Everything else does not pass it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// UDP, by port.
    Udp,
    /// TCP, by port.
    Tcp,
    /// ICMP echo, by identifier.
    Echo,
}

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Over what.
    pub transport: Transport,
    /// The sender's address.
    pub source: Ipv4Addr,
    /// The sender's port; of an echo reply 0.
    pub source_port: u16,
    /// The receiver's address.
    pub destination: Ipv4Addr,
    /// The receiver's port; of an echo request 0.
    pub destination_port: u16,
}

/// Reads the addresses of a packet. `None` for what has none that a NAT could use: not IPv4, cut short, a fragment, another
/// protocol.
pub(super) fn flow(packet: &[u8]) -> Option<Flow> {
    let layout = Layout::of(packet)?;
    let source = address(packet, SOURCE)?;
    let destination = address(packet, DESTINATION)?;
    let (source_port, destination_port) = match layout.transport {
        Transport::Udp | Transport::Tcp => (word(packet, layout.body)?, word(packet, layout.body + 2)?),
        Transport::Echo => {
            let id = word(packet, layout.body + ECHO_ID)?;
            if packet[layout.body] == ECHO_REQUEST { (id, 0) } else { (0, id) }
        }
    };
    Some(Flow { transport: layout.transport, source, source_port, destination, destination_port })
}

/// Which end of a packet is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Source,
    Destination,
}

/// Rewrites one end and corrects the checksums by the difference. Call only for what [`flow`] could read.
pub(super) fn rewrite(packet: &mut [u8], which: Which, to: Ipv4Addr, port: u16) {
    let Some(layout) = Layout::of(packet) else { return };
    let (at, port_at) = match (which, layout.transport) {
        (Which::Source, Transport::Echo) => (SOURCE, layout.body + ECHO_ID),
        (Which::Destination, Transport::Echo) => (DESTINATION, layout.body + ECHO_ID),
        (Which::Source, _) => (SOURCE, layout.body),
        (Which::Destination, _) => (DESTINATION, layout.body + 2),
    };
    let octets = to.octets();
    let new = [u16::from_be_bytes([octets[0], octets[1]]), u16::from_be_bytes([octets[2], octets[3]])];
    for (index, new) in new.into_iter().enumerate() {
        let place = at + 2 * index;
        let Some(old) = word(packet, place) else { return };
        put(packet, place, new);
        adjust(packet, HEADER_CHECKSUM, old, new);
        // The pseudo header of UDP and TCP holds the addresses; ICMP has none.
        layout.adjust_body(packet, old, new, layout.transport != Transport::Echo);
    }
    if let Some(old) = word(packet, port_at) {
        put(packet, port_at, port);
        layout.adjust_body(packet, old, port, true);
    }
}

/// Where things lie in one packet.
#[derive(Clone, Copy)]
struct Layout {
    transport: Transport,
    /// Where the IPv4 header ends.
    body: usize,
    /// Where the body's checksum lies.
    checksum: usize,
}

impl Layout {
    fn of(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let body = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || body < 20 || packet.len() < body {
            return None;
        }
        if word(packet, 6)? & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
            return None;
        }
        let (transport, checksum, least) = match *packet.get(9)? {
            UDP => (Transport::Udp, 6, 8),
            TCP => (Transport::Tcp, 16, 20),
            ICMP if matches!(packet.get(body)?, &ECHO_REQUEST | &ECHO_REPLY) => (Transport::Echo, 2, 8),
            _ => return None,
        };
        (packet.len() >= body + least).then_some(Self { transport, body, checksum: body + checksum })
    }

    fn adjust_body(&self, packet: &mut [u8], old: u16, new: u16, covered: bool) {
        // A UDP checksum of zero says that there is none; one that becomes zero is written as ones.
        let absent = self.transport == Transport::Udp && word(packet, self.checksum) == Some(0);
        if covered && !absent {
            adjust(packet, self.checksum, old, new);
            if self.transport == Transport::Udp && word(packet, self.checksum) == Some(0) {
                put(packet, self.checksum, 0xffff);
            }
        }
    }
}

/// RFC 1624, equation 3: HC' = ~(~HC + ~m + m').
fn adjust(packet: &mut [u8], at: usize, old: u16, new: u16) {
    let Some(checksum) = word(packet, at) else { return };
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    put(packet, at, !(sum as u16));
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    if let Some(place) = packet.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

fn address(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

const HEADER_CHECKSUM: usize = 10;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ECHO_ID: usize = 4;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

#[cfg(test)]
pub(super) mod tests;
