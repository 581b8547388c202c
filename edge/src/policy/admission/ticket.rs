//! Sans-io: slot tickets, 20 bytes that say for whom and when a place is kept.
//!
//! So short because of where they must be readable before any cryptography is spent on their holder: a client may choose
//! the destination connection id of its first QUIC packet, of up to 20 bytes (RFC 9000 §7.2). As text they are 27
//! characters, which fit a WebSocket close beside a time.
//!
//! ```text
//!  0      1                   9      11           15              20
//!  │ kind │ MAC               │ node │ slot, ms   │ serial        │    HMAC-SHA256 over holder and all the rest
//! ```
//!
//! The holder of a slot is the address that was refused: what the door knows before it spends anything. A place of a lease
//! is whoever's has the ticket: the node that grants it does not know who will come, and the ticket travels on encrypted
//! connections alone. Both serve once.
//!
//! The kind's three high bits are set: as a connection id a ticket is one that balancers cannot read (QUIC-LB), and of
//! another length than those that servers here give out, so it is never taken for one of theirs. The byte behind it, by
//! which the kernel spreads such ids over a node's workers, is one of the MAC.

use std::net::IpAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tidegate_protocol::NodeId;

/// A node, as tickets name it: two bytes of a hash. Two nodes of one name in a fleet of hundreds do no harm: a ticket is
/// looked up by its serial then, and found nowhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Issuer(pub(super) [u8; 2]);

impl Issuer {
    /// Of a node.
    pub fn of(node: &NodeId) -> Self {
        let hash = digest(&SHA256, node.as_str().as_bytes());
        Self([hash.as_ref()[0], hash.as_ref()[1]])
    }
}

/// A ticket as it travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SlotTicket([u8; Self::BYTES]);

impl SlotTicket {
    /// Its length.
    pub const BYTES: usize = 20;

    /// From bytes of this length, whatever they say.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// From its text. No input makes it panic.
    pub fn from_text(text: &str) -> Option<Self> {
        if text.len() != TEXT {
            return None;
        }
        Self::from_bytes(&URL_SAFE_NO_PAD.decode(text).ok()?)
    }

    /// As base64url.
    pub fn to_text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

impl std::fmt::Debug for SlotTicket {
    /// Not its content: whoever has it can use it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SlotTicket(..)")
    }
}

/// The keys that make and check tickets, the same on all nodes of a fleet. Two, so that they can be rotated.
pub struct SlotKeys {
    current: hmac::Key,
    previous: Option<hmac::Key>,
}

impl SlotKeys {
    /// `previous` is taken, and not used for new tickets.
    pub fn new(current: &[u8; 32], previous: Option<&[u8; 32]>) -> Self {
        let key = |bytes: &[u8; 32]| hmac::Key::new(HMAC_SHA256, bytes);
        Self { current: key(current), previous: previous.map(key) }
    }

    /// `holder` counts for nothing where it is the ticket of a lease.
    pub(crate) fn seal(&self, claims: &Claims, holder: IpAddr) -> SlotTicket {
        let mut bytes = [0; SlotTicket::BYTES];
        bytes[0] = claims.kind.number();
        bytes[ISSUER..SLOT].copy_from_slice(&claims.issuer.0);
        bytes[SLOT..SERIAL].copy_from_slice(&claims.slot.0.to_be_bytes());
        bytes[SERIAL..].copy_from_slice(&claims.serial.0.to_be_bytes()[3..]);
        let mac = mac(&self.current, &bytes, claims.kind.holder(holder));
        bytes[MAC..ISSUER].copy_from_slice(&mac);
        SlotTicket(bytes)
    }

    /// Of a place of a lease: good for whoever has it.
    pub(crate) fn seal_lease(&self, issuer: Issuer, slot: SlotTime, serial: Serial) -> SlotTicket {
        self.seal(&Claims { kind: Kind::Lease, issuer, slot, serial }, NOBODY)
    }

    /// What a ticket says, if it is genuine, and of a lease or `holder`'s.
    pub(crate) fn open(&self, ticket: &SlotTicket, holder: IpAddr) -> Option<Claims> {
        let bytes = &ticket.0;
        let kind = Kind::from_number(bytes[0])?;
        let holder = kind.holder(holder);
        let genuine = |key| verify_slices_are_equal(&mac(key, bytes, holder), &bytes[MAC..ISSUER]).is_ok();
        if !genuine(&self.current) && !self.previous.as_ref().is_some_and(genuine) {
            return None;
        }
        let mut slot = [0; 4];
        slot.copy_from_slice(&bytes[SLOT..SERIAL]);
        let mut serial = [0; 8];
        serial[3..].copy_from_slice(&bytes[SERIAL..]);
        Some(Claims {
            kind,
            issuer: Issuer([bytes[ISSUER], bytes[ISSUER + 1]]),
            slot: SlotTime(u32::from_be_bytes(slot)),
            serial: Serial(u64::from_be_bytes(serial)),
        })
    }
}

impl std::fmt::Debug for SlotKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotKeys").field("previous", &self.previous.is_some()).finish_non_exhaustive()
    }
}

fn mac(key: &hmac::Key, ticket: &[u8; SlotTicket::BYTES], holder: Holder) -> [u8; ISSUER - MAC] {
    let mut context = hmac::Context::with_key(key);
    context.update(b"tidegate slot");
    context.update(&holder.0);
    context.update(&ticket[..MAC]);
    context.update(&ticket[ISSUER..]);
    let mut short = [0; ISSUER - MAC];
    short.copy_from_slice(&context.sign().as_ref()[..ISSUER - MAC]);
    short
}

/// For whom a ticket is: an IPv4 address, the /64 of an IPv6 address, or all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Holder([u8; 9]);

impl Holder {
    const ANYBODY: Self = Self([0; 9]);

    pub(super) fn of(address: IpAddr) -> Self {
        let mut bytes = [0; 9];
        match address.to_canonical() {
            IpAddr::V4(address) => {
                bytes[0] = 4;
                bytes[1..5].copy_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                bytes[0] = 6;
                bytes[1..].copy_from_slice(&address.octets()[..8]);
            }
        }
        Self(bytes)
    }
}

/// What a ticket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) kind: Kind,
    pub(crate) issuer: Issuer,
    pub(crate) slot: SlotTime,
    pub(crate) serial: Serial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Given to who was refused.
    Slot,
    /// Given to who came too late to a slot.
    Renewed,
    /// Given to who was asked to move.
    Lease,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Slot => 0xe1,
            Self::Renewed => 0xe2,
            Self::Lease => 0xe3,
        }
    }

    fn holder(self, address: IpAddr) -> Holder {
        match self {
            Self::Slot | Self::Renewed => Holder::of(address),
            Self::Lease => Holder::ANYBODY,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Slot, Self::Renewed, Self::Lease].into_iter().find(|kind| kind.number() == number)
    }
}

/// Milliseconds of Unix time, the low 32 bits: a turn takes 49 days, a ticket two minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotTime(u32);

impl SlotTime {
    pub(crate) fn at(unix_ms: u64) -> Self {
        Self((unix_ms & u64::from(u32::MAX)) as u32)
    }

    /// Milliseconds from `unix_ms` to it; negative where it is over.
    pub(crate) fn from(self, unix_ms: u64) -> i64 {
        i64::from(self.0.wrapping_sub(Self::at(unix_ms).0).cast_signed())
    }
}

/// 40 bits that tell the tickets of a node apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Serial(u64);

impl Serial {
    pub(crate) fn new(number: u64) -> Self {
        Self(number & ((1 << 40) - 1))
    }

    /// Of the `index`-th place of a lease.
    pub(crate) fn of_lease(lease: u32, index: u16) -> Self {
        Self::new(u64::from(lease) << 16 | u64::from(index))
    }

    pub(crate) fn lease(self) -> (u32, u16) {
        ((self.0 >> 16) as u32, (self.0 & 0xffff) as u16)
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// Where things begin.
const MAC: usize = 1;
const ISSUER: usize = 9;
const SLOT: usize = 11;
const SERIAL: usize = 15;
const NOBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const TEXT: usize = 27;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn claims() -> Claims {
        Claims {
            kind: Kind::Slot,
            issuer: Issuer::of(&NodeId::new("edge-1")),
            slot: SlotTime::at(1_790_000_000_123),
            serial: Serial::new(77),
        }
    }

    #[test]
    fn keys_are_rotated_without_losing_tickets() {
        let (old, new, other) = ([1; 32], [2; 32], [3; 32]);
        let ticket = SlotKeys::new(&old, None).seal(&claims(), ALICE);
        assert_eq!(SlotKeys::new(&new, Some(&old)).open(&ticket, ALICE), Some(claims()));
        assert_eq!(SlotKeys::new(&other, Some(&new)).open(&ticket, ALICE), None);
    }

    #[test]
    fn it_fits_a_connection_id_and_a_close_reason() {
        let text = SlotKeys::new(&[1; 32], None).seal(&claims(), ALICE).to_text();
        assert_eq!((text.len(), SlotTicket::BYTES), (27, 20));
        assert!(format!("ra=120000;t={text}").len() <= 120);
        assert!(SlotTicket::from_text(&"x".repeat(28)).is_none());
        assert!(SlotTicket::from_text("?").is_none());
        assert!(SlotTicket::from_bytes(&[0; 19]).is_none());
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_by_its_holder_alone(slot: u64, serial: u64, holder: [u8; 4], thief: [u8; 4], kind in 0..3_usize) {
            let keys = SlotKeys::new(&[9; 32], None);
            let kind = [Kind::Slot, Kind::Renewed, Kind::Lease][kind];
            let claims = Claims { kind, slot: SlotTime::at(slot), serial: Serial::new(serial), ..claims() };
            let ticket = keys.seal(&claims, holder.into());
            let again = SlotTicket::from_text(&ticket.to_text()).expect("our own");
            prop_assert_eq!(keys.open(&again, holder.into()), Some(claims));
            let mapped = std::net::Ipv4Addr::from(holder).to_ipv6_mapped();
            prop_assert_eq!(keys.open(&again, mapped.into()), Some(claims));
            if thief != holder {
                let expected = (kind == Kind::Lease).then_some(claims);
                prop_assert_eq!(keys.open(&again, thief.into()), expected, "a lease is whoever's has it");
            }
        }

        #[test]
        fn an_ipv6_network_is_one_holder(address: u128, host: u64, other: u128) {
            let keys = SlotKeys::new(&[9; 32], None);
            let holder = std::net::Ipv6Addr::from(address | 1 << 127);
            let ticket = keys.seal(&claims(), holder.into());
            let neighbour = std::net::Ipv6Addr::from(u128::from(holder) >> 64 << 64 | u128::from(host));
            prop_assert_eq!(keys.open(&ticket, neighbour.into()), Some(claims()));
            let other = std::net::Ipv6Addr::from(other);
            if u128::from(other) >> 64 != u128::from(holder) >> 64 {
                prop_assert_eq!(keys.open(&ticket, other.into()), None);
            }
        }

        #[test]
        fn no_ticket_is_taken_for_a_connection_id_of_ours(key: u32, slot: u64, serial: u64, kind in 0..3_usize) {
            let kind = [Kind::Slot, Kind::Renewed, Kind::Lease][kind];
            let claims = Claims { kind, slot: SlotTime::at(slot), serial: Serial::new(serial), ..claims() };
            let ticket = SlotKeys::new(&[9; 32], None).seal(&claims, ALICE);
            let datagram = [&[0xc0, 0, 0, 0, 1, SlotTicket::BYTES as u8][..], ticket.as_bytes(), &[0; 8]].concat();
            let key = tidegate_transport::quic::IdKey(key);
            prop_assert_eq!(tidegate_transport::quic::place_in_datagram(key, &datagram), None);
        }

        #[test]
        fn a_changed_bit_is_found(position in 0..SlotTicket::BYTES * 8) {
            let keys = SlotKeys::new(&[9; 32], None);
            let mut bytes = *keys.seal(&claims(), ALICE).as_bytes();
            bytes[position / 8] ^= 1 << (position % 8);
            let forged = SlotTicket::from_bytes(&bytes).expect("the right length");
            prop_assert_eq!(keys.open(&forged, ALICE), None);
        }

        #[test]
        fn slot_times_survive_the_turn(now in 0..u64::MAX / 2, offset in -2_000_000_i64..2_000_000) {
            let slot = SlotTime::at(now.wrapping_add_signed(offset));
            prop_assert_eq!(slot.from(now), offset);
        }
    }
}
