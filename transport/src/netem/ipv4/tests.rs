//! Packets made byte by byte; checksums summed anew.

use proptest::prelude::*;

use super::*;

#[test]
fn flows_are_read() {
    let packet = udp(([10, 0, 0, 1], 1_000), ([10, 0, 0, 2], 53), b"hello");
    let wanted = Flow {
        transport: Transport::Udp,
        source: Ipv4Addr::new(10, 0, 0, 1),
        source_port: 1_000,
        destination: Ipv4Addr::new(10, 0, 0, 2),
        destination_port: 53,
    };
    assert_eq!(flow(&packet), Some(wanted));
    let echo = flow(&packet_of(ICMP, ([1, 2, 3, 4], 0), ([5, 6, 7, 8], 0), &[0; 8])).unwrap();
    assert_eq!((echo.transport, echo.source_port, echo.destination_port), (Transport::Echo, 0, 0x0102));
}

#[test]
fn what_has_no_ports_is_none() {
    let packet = udp(([10, 0, 0, 1], 1), ([10, 0, 0, 2], 2), b"x");
    assert!(flow(&packet).is_some());
    for cut in 0..28 {
        assert_eq!(flow(&packet[..cut]), None, "{cut} bytes");
    }
    for (at, value, why) in [
        (0, 0x65, "IPv6"),
        (0, 0x44, "header too short"),
        (6, 0x20, "first fragment"),
        (7, 1, "a later one"),
        (9, 47, "GRE"),
    ] {
        let mut other = packet.clone();
        other[at] = value;
        assert_eq!(flow(&other), None, "{why}");
    }
}

#[test]
fn a_udp_packet_without_checksum_stays_without() {
    let mut packet = udp(([10, 0, 0, 1], 1_000), ([10, 0, 0, 2], 53), b"hello");
    packet[26..28].copy_from_slice(&[0, 0]);
    rewrite(&mut packet, Which::Source, Ipv4Addr::new(10, 9, 9, 9), 7);
    assert_eq!(packet[26..28], [0, 0]);
}

proptest! {
    /// Checksums by difference are those of a packet that was made so.
    #[test]
    fn rewriting_keeps_checksums_right(
        protocol in prop::sample::select(vec![UDP, TCP, ICMP]),
        from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16,
        new: [u8; 4], new_port: u16, source: bool,
        body in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut packet = packet_of(protocol, (from, from_port), (to, to_port), &body);
        prop_assert!(sums_up(&packet));
        let which = if source { Which::Source } else { Which::Destination };
        rewrite(&mut packet, which, new.into(), new_port);
        prop_assert!(sums_up(&packet));
        let after = flow(&packet).unwrap();
        let end = if source { (after.source, after.source_port) } else { (after.destination, after.destination_port) };
        prop_assert_eq!(end.0, Ipv4Addr::from(new));
        // An echo reply, which this is, has its identifier at its destination.
        if protocol != ICMP || !source {
            prop_assert_eq!(end.1, new_port);
        }
    }

    /// Nothing that travels makes it panic.
    #[test]
    fn any_bytes_are_fine(mut bytes in prop::collection::vec(any::<u8>(), 0..80), source: bool) {
        if let Some(first) = bytes.first_mut() {
            *first = 0x40 | (*first & 0x0f);
        }
        let _ = flow(&bytes);
        rewrite(&mut bytes, if source { Which::Source } else { Which::Destination }, Ipv4Addr::LOCALHOST, 1);
    }
}

/// A UDP packet with right checksums.
pub(in crate::netem) fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    packet_of(UDP, from, to, payload)
}

/// A TCP segment with right checksums.
pub(in crate::netem) fn tcp(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    packet_of(TCP, from, to, &[])
}

fn packet_of(protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    match protocol {
        UDP => {
            body.extend(from.1.to_be_bytes());
            body.extend(to.1.to_be_bytes());
            body.extend((8 + payload.len() as u16).to_be_bytes());
            body.extend([0, 0]);
        }
        TCP => {
            body.extend(from.1.to_be_bytes());
            body.extend(to.1.to_be_bytes());
            body.extend([0; 16]);
            body[12] = 5 << 4;
        }
        // An echo reply of identifier 0x0102.
        _ => body.extend([ECHO_REPLY, 0, 0, 0, 1, 2, 0, 1]),
    }
    body.extend(payload);
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(from.0);
    packet.extend(to.0);
    packet[2..4].copy_from_slice(&(20 + body.len() as u16).to_be_bytes());
    let header = !sum(0, &packet);
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    let at = match protocol {
        UDP => 6,
        TCP => 16,
        _ => 2,
    };
    let mut checksum = !sum(pseudo(&packet, body.len()), &body);
    if protocol == UDP && checksum == 0 {
        checksum = 0xffff;
    }
    body[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(body);
    packet
}

/// Whether header and body checksums are right.
pub(in crate::netem) fn sums_up(packet: &[u8]) -> bool {
    let body = &packet[20..];
    sum(0, &packet[..20]) == 0xffff && sum(pseudo(packet, body.len()), body) == 0xffff
}

fn pseudo(packet: &[u8], len: usize) -> u32 {
    if packet[9] == ICMP {
        return 0;
    }
    u32::from(sum(0, &packet[12..20])) + u32::from(packet[9]) + len as u32
}

fn sum(first: u32, bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = first + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
