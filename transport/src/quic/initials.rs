//! Sans-io: clients' first packets, and answering one with nothing but a refusal that says when to come back.
//!
//! quinn refuses with an empty reason, and tells of a client's first packet neither the id that the client gave itself nor,
//! after a Retry, the id that the packet was sent to. Both are in the clear (RFC 9000 §17.2): they are read off datagrams
//! as they arrive, and kept for a moment.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes};

use super::crypto::QUIC_V1;

/// A connection id.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id {
    length: u8,
    bytes: [u8; MAX_ID],
}

impl Id {
    pub(super) const EMPTY: Self = Self { length: 0, bytes: [0; MAX_ID] };

    pub(super) fn new(id: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_ID];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(Self { length: id.len() as u8, bytes })
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Id").field(&self.as_bytes()).finish()
    }
}

/// The ids of an Initial packet of QUIC 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Initial {
    /// Whom it is sent to.
    pub(super) to: Id,
    /// What the client calls itself.
    pub(super) from: Id,
}

impl Initial {
    /// Of a client's datagram; `None` for any other. No input makes it panic.
    pub(super) fn of(datagram: &[u8]) -> Option<Self> {
        let (&first, rest) = datagram.split_first()?;
        if first & 0xf0 != INITIAL || datagram.len() < LEAST_INITIAL {
            return None;
        }
        let (version, rest) = rest.split_first_chunk()?;
        if u32::from_be_bytes(*version) != QUIC_V1 {
            return None;
        }
        let (to, rest) = id(rest)?;
        let (from, _) = id(rest)?;
        Some(Self { to, from })
    }

    /// A datagram that ends the attempt: CONNECTION_CLOSE in an Initial packet (RFC 9000 §10.2.3). `protect` is given the
    /// packet, where its number is, and where its payload; `tag` bytes behind the payload are for it. The reason is cut at
    /// 127 bytes.
    pub(super) fn refuse(
        &self,
        reason: &[u8],
        tag: usize,
        protect: impl FnOnce(&mut [u8], usize, usize),
    ) -> Bytes {
        let reason = &reason[..reason.len().min(MAX_REASON)];
        let mut frame = vec![CONNECTION_CLOSE, CONNECTION_REFUSED, 0];
        frame.put_u16(VARINT_OF_TWO | reason.len() as u16);
        frame.extend_from_slice(reason);
        let mut packet = vec![INITIAL | (PACKET_NUMBER_BYTES - 1)];
        packet.put_u32(QUIC_V1);
        for id in [&self.from, &self.to] {
            packet.put_u8(id.length);
            packet.extend_from_slice(id.as_bytes());
        }
        // No token.
        packet.put_u8(0);
        packet.put_u16(VARINT_OF_TWO | (usize::from(PACKET_NUMBER_BYTES) + frame.len() + tag) as u16);
        let number_at = packet.len();
        packet.put_bytes(0, PACKET_NUMBER_BYTES.into());
        let header = packet.len();
        packet.extend_from_slice(&frame);
        packet.put_bytes(0, tag);
        protect(&mut packet, number_at, header);
        packet.into()
    }
}

/// The newest of those that arrived.
#[derive(Debug)]
pub(super) struct Initials {
    bound: usize,
    /// What clients call themselves, by whom they wrote to.
    names: HashMap<(SocketAddr, Id), Name>,
    /// Whom they wrote to last, by what they call themselves.
    latest: HashMap<(SocketAddr, Id), Id>,
    by_age: VecDeque<(SocketAddr, Initial)>,
}

/// What a client calls itself, and bytes that came from it by that and are counted nowhere else.
#[derive(Debug)]
struct Name {
    from: Id,
    received: u64,
}

impl Initials {
    pub(super) fn new(bound: usize) -> Self {
        Self { bound, names: HashMap::new(), latest: HashMap::new(), by_age: VecDeque::new() }
    }

    /// One came, of so many bytes that are counted nowhere else.
    pub(super) fn note(&mut self, remote: SocketAddr, initial: Initial, bytes: u64) {
        let Initial { to, from } = initial;
        let name = self.names.entry((remote, to)).or_insert(Name { from, received: 0 });
        name.received += bytes;
        let known = std::mem::replace(&mut name.from, from) == from;
        if known && self.latest.get(&(remote, from)) == Some(&to) {
            return;
        }
        self.latest.insert((remote, from), to);
        self.by_age.push_back((remote, initial));
        while self.by_age.len() > self.bound {
            let Some((remote, Initial { to, from })) = self.by_age.pop_front() else { break };
            if self.names.get(&(remote, to)).is_some_and(|name| name.from == from) {
                self.names.remove(&(remote, to));
            }
            if self.latest.get(&(remote, from)) == Some(&to) {
                self.latest.remove(&(remote, from));
            }
        }
    }

    /// Of the client that wrote to `first` at first: the ids of its last one. Another after a Retry. `None` where so many
    /// came since that it is forgotten.
    pub(super) fn find(&self, remote: SocketAddr, first: &[u8]) -> Option<Initial> {
        let from = self.names.get(&(remote, Id::new(first)?))?.from;
        let to = *self.latest.get(&(remote, from))?;
        Some(Initial { to, from })
    }

    /// What a client calls itself that wrote to `first`, and the bytes that came from it by that since this was asked.
    pub(super) fn take_received(&mut self, remote: SocketAddr, first: &[u8]) -> Option<(Id, u64)> {
        let name = self.names.get_mut(&(remote, Id::new(first)?))?;
        Some((name.from, std::mem::take(&mut name.received)))
    }
}

fn id(bytes: &[u8]) -> Option<(Id, &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (id, rest) = rest.split_at_checked(length.into())?;
    Some((Id::new(id)?, rest))
}

const MAX_ID: usize = 20;
/// Long header, fixed bit, type 0.
const INITIAL: u8 = 0xc0;
/// A client's datagram with one is padded to it (RFC 9000 §14.1).
pub(super) const LEAST_INITIAL: usize = 1200;
const PACKET_NUMBER_BYTES: u8 = 1;
const CONNECTION_CLOSE: u8 = 0x1c;
const CONNECTION_REFUSED: u8 = 0x02;
/// The high bits of a number in two bytes.
const VARINT_OF_TWO: u16 = 0x4000;
const MAX_REASON: usize = 127;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn remote(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn id(byte: u8, length: usize) -> Id {
        Id::new(&vec![byte; length]).expect("short enough")
    }

    fn initial(to: u8, from: u8) -> Initial {
        Initial { to: id(to, 20), from: id(from, 8) }
    }

    fn datagram(initial: &Initial, length: usize) -> Vec<u8> {
        let mut bytes = vec![0xc3, 0, 0, 0, 1];
        for id in [&initial.to, &initial.from] {
            bytes.push(id.length);
            bytes.extend_from_slice(id.as_bytes());
        }
        bytes.resize(length, 0);
        bytes
    }

    #[test]
    fn only_a_client_s_first_packets_are_read() {
        let first = initial(1, 2);
        let bytes = datagram(&first, 1200);
        assert_eq!(Initial::of(&bytes), Some(first));
        assert_eq!(Initial::of(&datagram(&first, 1199)), None, "too short to be one");
        for (at, byte) in [(0, 0xe3), (0, 0x43), (4, 2), (5, 21), (26, 21)] {
            let mut other = bytes.clone();
            other[at] = byte;
            assert_eq!(Initial::of(&other), None, "byte {at}");
        }
        let nameless = Initial { to: id(1, 8), from: id(0, 0) };
        assert_eq!(Initial::of(&datagram(&nameless, 1200)), Some(nameless));
    }

    #[test]
    fn a_client_is_found_by_whom_it_wrote_to_first_also_after_a_retry() {
        let mut initials = Initials::new(8);
        initials.note(remote(1), initial(1, 7), 1200);
        initials.note(remote(2), initial(1, 8), 1200);
        assert_eq!(initials.find(remote(1), &[1; 20]), Some(initial(1, 7)));
        assert_eq!(initials.find(remote(2), &[1; 20]), Some(initial(1, 8)), "another's, of the same id");
        initials.note(remote(1), initial(5, 7), 1200);
        assert_eq!(initials.find(remote(1), &[1; 20]), Some(initial(5, 7)));
        assert_eq!(initials.find(remote(3), &[1; 20]), None);
        assert_eq!(initials.find(remote(1), &[1; 21]), None);
    }

    #[test]
    fn what_came_is_counted_once() {
        let mut initials = Initials::new(8);
        assert_eq!(initials.take_received(remote(1), &[1; 20]), None);
        for bytes in [1200, 1300, 0] {
            initials.note(remote(1), initial(1, 7), bytes);
            initials.note(remote(2), initial(1, 8), 9);
        }
        assert_eq!(initials.take_received(remote(1), &[1; 20]), Some((id(7, 8), 2500)));
        assert_eq!(initials.take_received(remote(1), &[1; 20]), Some((id(7, 8), 0)));
    }

    #[test]
    fn the_oldest_make_room() {
        let mut initials = Initials::new(8);
        for number in 0..100 {
            initials.note(remote(1), initial(number, 1), 1200);
            initials.note(remote(2), initial(3, number), 1200);
            initials.note(remote(2), initial(3, number), 1200);
        }
        assert!(initials.by_age.len() <= 8 && initials.names.len() <= 8 && initials.latest.len() <= 8);
        assert_eq!(initials.find(remote(1), &[99; 20]), Some(initial(99, 1)));
        assert_eq!(initials.find(remote(1), &[3; 20]), None);
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_too_strange(bytes: Vec<u8>, length in 0..1300_usize) {
            let mut bytes = [&[0xc0, 0, 0, 0, 1][..], &bytes].concat();
            bytes.resize(length, 9);
            Initial::of(&bytes);
        }
    }
}
