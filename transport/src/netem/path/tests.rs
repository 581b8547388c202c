//! Gate and NAT, driven by hand.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::super::ipv4::tests::{sums_up, tcp, udp};
use super::super::ipv4::{Transport, flow};
use super::super::nat::NatConfig;
use super::super::{End, Profile, UdpGate};
use super::Path;
use crate::clock;

#[test]
fn the_server_sees_the_nat_and_answers_reach_the_client() {
    let (mut path, now) = path();
    let seen = goes_out(&mut path, now, &udp(CLIENT, SERVER, b"hi")).unwrap();
    assert_eq!(seen.0, Ipv4Addr::from(PUBLIC));
    assert_ne!(seen.1, CLIENT.1);
    assert_eq!(goes_out(&mut path, now, &udp(CLIENT, SERVER, b"again")), Some(seen), "one socket, one port");
    assert!(comes_in(&mut path, now, &udp(SERVER, (PUBLIC, seen.1), b"ho")));
    assert!(!comes_in(&mut path, now, &udp(SERVER, (PUBLIC, seen.1 + 1), b"nobody")));
    assert!(!comes_in(&mut path, now, &udp(SERVER, CLIENT, b"past the NAT")));
    assert_eq!(path.counters().nat.unmapped, 2);
}

#[test]
fn rebinding_takes_another_port_and_the_old_one_is_dead() {
    let (mut path, now) = path();
    let (_, udp_port) = goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")).unwrap();
    let (_, tcp_port) = goes_out(&mut path, now, &tcp(CLIENT, SERVER)).unwrap();
    path.rebind(true);
    assert!(!comes_in(&mut path, now, &udp(SERVER, (PUBLIC, udp_port), b"")));
    assert!(comes_in(&mut path, now, &tcp(SERVER, (PUBLIC, tcp_port))), "TCP was left alone");
    let (_, after) = goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")).unwrap();
    assert_ne!(after, udp_port);
    path.rebind(false);
    assert!(!comes_in(&mut path, now, &tcp(SERVER, (PUBLIC, tcp_port))));
    assert_eq!(path.counters().nat.rebound, 3);
}

#[test]
fn what_is_on_its_way_to_the_old_port_is_lost() {
    let mut path = Path::new(1, Profile::default(), Profile::delay(TEN), Some(NatConfig::new(PUBLIC.into())));
    let now = clock::now();
    let (_, port) = goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")).unwrap();
    path.handle_packet(now, End::Server, udp(SERVER, (PUBLIC, port), b""));
    path.rebind(false);
    assert!(path.poll_transmit(now + TEN).is_none());
}

#[test]
fn unused_udp_mappings_expire_and_used_ones_do_not() {
    let expiry = Duration::from_secs(30);
    let nat = NatConfig::new(PUBLIC.into()).with_udp_expiry(expiry);
    let mut path = Path::new(1, Profile::default(), Profile::default(), Some(nat));
    let start = clock::now();
    let first = goes_out(&mut path, start, &udp(CLIENT, SERVER, b"")).unwrap();
    let tcp_first = goes_out(&mut path, start, &tcp(CLIENT, SERVER)).unwrap();
    // Packets either way keep it.
    assert_eq!(goes_out(&mut path, start + expiry - TEN, &udp(CLIENT, SERVER, b"")), Some(first));
    let later = start + expiry * 2 - TEN * 2;
    assert!(comes_in(&mut path, later, &udp(SERVER, (PUBLIC, first.1), b"")));
    let dead = later + expiry;
    assert!(!comes_in(&mut path, dead, &udp(SERVER, (PUBLIC, first.1), b"")));
    assert_ne!(goes_out(&mut path, dead, &udp(CLIENT, SERVER, b"")), Some(first));
    assert_eq!(goes_out(&mut path, dead, &tcp(CLIENT, SERVER)), Some(tcp_first), "TCP does not expire");
    assert_eq!(path.counters().nat.expired, 1);
}

#[test]
fn another_address_is_seen_by_the_server() {
    let (mut path, now) = path();
    let (_, port) = goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")).unwrap();
    path.change_address(Ipv4Addr::new(10, 1, 0, 2));
    assert!(!comes_in(&mut path, now, &udp(SERVER, (PUBLIC, port), b"")));
    assert_eq!(goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")).unwrap().0, Ipv4Addr::new(10, 1, 0, 2));
    assert_eq!(path.public_address(), Some(Ipv4Addr::new(10, 1, 0, 2)));
}

#[test]
fn without_a_nat_everybody_has_his_own_address() {
    let mut path = Path::new(1, Profile::default(), Profile::default(), None);
    let now = clock::now();
    assert_eq!(goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")), Some((CLIENT.0.into(), CLIENT.1)));
    assert!(comes_in(&mut path, now, &udp(SERVER, CLIENT, b"")));
    assert_eq!(path.public_address(), None);
}

#[test]
fn mappings_are_bounded_and_the_oldest_goes() {
    let (mut path, start) = path();
    let mut now = start;
    let mut first = None;
    for client in 0..20_000_u32 {
        now += Duration::from_millis(1);
        let from = ([10, 0, (client / 250) as u8, (client % 250) as u8], 5_000);
        let seen = goes_out(&mut path, now, &udp(from, SERVER, b"")).unwrap();
        first.get_or_insert(seen.1);
    }
    assert_eq!(path.counters().nat.expired, 20_000 - 16_384);
    assert!(!comes_in(&mut path, now, &udp(SERVER, (PUBLIC, first.unwrap()), b"")));
}

#[test]
fn blocked_udp_leaves_tcp_alone() {
    let (mut path, now) = path();
    let (_, port) = goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")).unwrap();
    path.set_udp(UdpGate::Closed);
    assert_eq!(goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")), None);
    assert!(!comes_in(&mut path, now, &udp(SERVER, (PUBLIC, port), b"")));
    assert!(goes_out(&mut path, now, &tcp(CLIENT, SERVER)).is_some());
    assert_eq!(path.counters().blocked, 2);
    path.set_udp(UdpGate::Open);
    assert!(comes_in(&mut path, now, &udp(SERVER, (PUBLIC, port), b"")), "the mapping outlived the block");
}

#[test]
fn a_port_can_be_blocked_alone() {
    let (mut path, now) = path();
    path.set_udp(UdpGate::ClosedPorts(vec![SERVER.1]));
    assert_eq!(goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")), None);
    let other = (SERVER.0, SERVER.1 + 1);
    let (_, port) = goes_out(&mut path, now, &udp(CLIENT, other, b"")).unwrap();
    assert!(comes_in(&mut path, now, &udp(other, (PUBLIC, port), b"")));
    assert!(!comes_in(&mut path, now, &udp(SERVER, (PUBLIC, port), b"")));
}

#[test]
fn a_black_hole_lets_so_many_packets_pass() {
    let (mut path, now) = path();
    path.set_udp(UdpGate::ClosesAfter(3));
    let (_, port) = goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")).unwrap();
    assert!(comes_in(&mut path, now, &udp(SERVER, (PUBLIC, port), b"")));
    assert!(goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")).is_some());
    assert!(!comes_in(&mut path, now, &udp(SERVER, (PUBLIC, port), b"")));
    assert_eq!(goes_out(&mut path, now, &udp(CLIENT, SERVER, b"")), None);
    assert!(goes_out(&mut path, now, &tcp(CLIENT, SERVER)).is_some());
}

#[test]
fn what_no_middlebox_understands_goes_nowhere() {
    let (mut path, now) = path();
    path.handle_packet(now, End::Client, vec![0x60; 60]);
    assert!(path.poll_timeout().is_none());
    assert_eq!(path.counters().foreign, 1);
    assert_eq!(path.link_counters(End::Client).offered, 0, "it takes no index from the losses");
}

const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 1], 5_000);
const SERVER: ([u8; 4], u16) = ([10, 0, 0, 2], 443);
const PUBLIC: [u8; 4] = [10, 1, 0, 1];
const TEN: Duration = Duration::from_millis(10);

fn path() -> (Path, Instant) {
    let nat = NatConfig::new(PUBLIC.into());
    (Path::new(1, Profile::default(), Profile::default(), Some(nat)), clock::now())
}

/// Who the server thinks sent it; checks that the rest is untouched.
fn goes_out(path: &mut Path, now: Instant, packet: &[u8]) -> Option<(Ipv4Addr, u16)> {
    path.handle_packet(now, End::Client, packet.to_vec());
    let (to, arrived) = path.poll_transmit(now)?;
    assert_eq!(to, End::Server);
    assert!(sums_up(&arrived));
    let (sent, seen) = (flow(packet).unwrap(), flow(&arrived).unwrap());
    assert_eq!((sent.destination, sent.destination_port), (seen.destination, seen.destination_port));
    let headers = if sent.transport == Transport::Tcp { 40 } else { 28 };
    assert_eq!(arrived[headers..], packet[headers..]);
    Some((seen.source, seen.source_port))
}

/// Whether it reaches the client; checks that it is addressed to it.
fn comes_in(path: &mut Path, now: Instant, packet: &[u8]) -> bool {
    path.handle_packet(now, End::Server, packet.to_vec());
    let Some((to, arrived)) = path.poll_transmit(now) else { return false };
    assert_eq!(to, End::Client);
    assert!(sums_up(&arrived));
    let seen = flow(&arrived).unwrap();
    assert_eq!((seen.destination, seen.destination_port), (CLIENT.0.into(), CLIENT.1));
    assert!(matches!(seen.transport, Transport::Udp | Transport::Tcp));
    true
}
