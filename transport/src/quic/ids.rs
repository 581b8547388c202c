//! Sans-io: connection ids of a server, and what can be read off them by whom.
//!
//! ```text
//! unroutable, 10 bytes:   first octet │ random, 6                             │ place │ check, 2
//! routable, 20 bytes:     first octet │ AES-128-ECB(server id ‖ nonce), 16    │ place │ check, 2
//! ```
//!
//! The first octet is QUIC-LB's (draft-ietf-quic-load-balancers): its three high bits are the rotation of the balancers'
//! configuration, 0b111 where there is none, the others are random. Balancers read the 17 bytes that begin a routable id
//! and nothing behind them; only they and the server can.
//!
//! The place is ours: which process of those that share the port (its generation), and which worker of it. The kernel
//! reads it (`steering.rs`), by arithmetic that its classic filter language has: place and check are masked with a hash of
//! the four bytes before them. The check tells our ids from those that clients invent for their first packets: one in
//! 65,536 of the same length and kind passes for ours. Nothing rests on any of this being secret.

use std::fmt;

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};
use rand::Rng;

/// A worker of one of the processes that share a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of the process: below [`GENERATIONS`], counted up from process to process, and around.
    pub generation: u8,
    /// Below [`super::MAX_WORKERS`].
    pub worker: u8,
}

/// Masks places: the same in all processes that share a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdKey(pub u32);

/// What balancers in front of this server know of it (QUIC-LB): one of the seven configurations that may be in force at
/// once. Ids of an older one stay good: where a packet goes inside the server is written beside it.
#[derive(Clone)]
pub struct Routing {
    rotation: u8,
    server_id: Box<[u8]>,
    key: [u8; ROUTING_KEY_BYTES],
}

/// Why a routing cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// 7 says "unroutable", and there are three bits.
    #[error("a rotation of {0}: 0 to 6 can be used")]
    Rotation(u8),
    /// Empty, or so long that too little is left for the nonce.
    #[error("a server id of {0} bytes: 1 to {MAX_SERVER_ID} can be used")]
    ServerId(usize),
}

/// What balancers and server tell servers apart by. Of bytes; the longest leaves eight for the nonce.
pub const MAX_SERVER_ID: usize = 8;
/// Of bytes.
pub const ROUTING_KEY_BYTES: usize = 16;
/// Processes that can share a port: one that serves, and those before it that still end.
pub const GENERATIONS: u8 = 4;

impl Routing {
    /// With a configuration's number, this server's id in it, and its key.
    ///
    /// # Errors
    /// When the number or the id's length is out of range.
    pub fn new(rotation: u8, server_id: &[u8], key: [u8; ROUTING_KEY_BYTES]) -> Result<Self, RoutingError> {
        if rotation >= UNROUTABLE {
            return Err(RoutingError::Rotation(rotation));
        }
        if server_id.is_empty() || server_id.len() > MAX_SERVER_ID {
            return Err(RoutingError::ServerId(server_id.len()));
        }
        Ok(Self { rotation, server_id: server_id.into(), key })
    }

    /// The server id in a connection id, as a balancer reads it; `None` where the id is of another configuration or none.
    pub fn server_id(&self, id: &[u8]) -> Option<Vec<u8>> {
        let (first, rest) = id.split_first()?;
        let mut block: [u8; BLOCK] = rest.get(..BLOCK)?.try_into().ok()?;
        if first >> 5 != self.rotation {
            return None;
        }
        let key = DecryptingKey::ecb(self.cipher()).expect("AES has this mode");
        key.decrypt(&mut block, DecryptionContext::None).expect("one block");
        Some(block[..self.server_id.len()].to_vec())
    }

    /// `nonce` gives way to the server's id and is encrypted with it.
    fn encrypt(&self, nonce: &mut [u8; BLOCK]) {
        nonce[..self.server_id.len()].copy_from_slice(&self.server_id);
        let key = EncryptingKey::ecb(self.cipher()).expect("AES has this mode");
        key.encrypt(nonce).expect("one block");
    }

    fn cipher(&self) -> UnboundCipherKey {
        UnboundCipherKey::new(&AES_128, &self.key).expect("the key is as long as it must be")
    }
}

impl fmt::Debug for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routing")
            .field("rotation", &self.rotation)
            .field("server_id", &self.server_id)
            .finish_non_exhaustive()
    }
}

/// The bytes of a new id.
pub(crate) fn encode(
    key: IdKey,
    place: Place,
    routing: Option<&Routing>,
    rng: &mut impl Rng,
) -> ([u8; LONG], usize) {
    let mut id = [0; LONG];
    rng.fill_bytes(&mut id);
    let length = length(routing);
    let rotation = routing.map_or(UNROUTABLE, |routing| routing.rotation);
    id[0] = rotation << 5 | id[0] & 0x1f;
    if let Some(routing) = routing {
        let mut block: [u8; BLOCK] = id[1..=BLOCK].try_into().expect("a block");
        routing.encrypt(&mut block);
        id[1..=BLOCK].copy_from_slice(&block);
    }
    let tail = length - TAIL;
    let hash = hash(key, &id[tail - WORD..tail]);
    id[tail] = pack(place) ^ mask(hash);
    id[tail + 1..length].copy_from_slice(&check(hash).to_be_bytes());
    (id, length)
}

/// How long ids are.
pub(crate) fn length(routing: Option<&Routing>) -> usize {
    if routing.is_some() { LONG } else { SHORT }
}

/// The place in an id of ours; `None` for any other. Of what follows the id nothing is looked at.
pub fn place(key: IdKey, id: &[u8]) -> Option<Place> {
    let length = if id.first()? >> 5 == UNROUTABLE { SHORT } else { LONG };
    let id = id.get(..length)?;
    let tail = length - TAIL;
    let hash = hash(key, &id[tail - WORD..tail]);
    let genuine = id[tail + 1..] == check(hash).to_be_bytes();
    genuine.then(|| unpack(id[tail] ^ mask(hash)))
}

/// The place in the id that a datagram is sent to; `None` where that is none of ours (RFC 9000 §17.2, §17.3).
pub fn place_in_datagram(key: IdKey, datagram: &[u8]) -> Option<Place> {
    if datagram.first()? & LONG_HEADER == 0 {
        return place(key, &datagram[1..]);
    }
    let length = usize::from(*datagram.get(5)?);
    let id = datagram.get(6..6 + length)?;
    let expected = if id.first()? >> 5 == UNROUTABLE { SHORT } else { LONG };
    if length == expected { place(key, id) } else { None }
}

/// Of the four bytes before the place: every step is one of the filter's.
fn hash(key: IdKey, word: &[u8]) -> u32 {
    let word = u32::from_be_bytes(word.try_into().expect("four bytes"));
    let mixed = (word ^ key.0).wrapping_mul(FACTORS[0]);
    (mixed ^ mixed >> 15).wrapping_mul(FACTORS[1])
}

fn check(hash: u32) -> u16 {
    (hash >> 16) as u16
}

fn mask(hash: u32) -> u8 {
    (hash >> 8) as u8
}

fn pack(place: Place) -> u8 {
    place.generation << WORKER_BITS | place.worker
}

fn unpack(byte: u8) -> Place {
    Place { generation: byte >> WORKER_BITS, worker: byte & ((1 << WORKER_BITS) - 1) }
}

/// In the first octet's high bits, of an id that balancers cannot read.
pub(super) const UNROUTABLE: u8 = 0b111;
/// Bytes of an unroutable id. Ten, which no browser takes for the ids of its first packets.
pub(super) const SHORT: usize = 1 + 6 + TAIL;
/// Bytes of a routable id: all that QUIC allows.
pub(super) const LONG: usize = 1 + BLOCK + TAIL;
/// Place and check.
pub(super) const TAIL: usize = 3;
/// What is hashed, right before them.
pub(super) const WORD: usize = 4;
pub(super) const WORKER_BITS: u8 = 6;
pub(super) const LONG_HEADER: u8 = 0x80;
/// Odd, and with many bits.
pub(super) const FACTORS: [u32; 2] = [0x9e37_79b1, 0x85eb_ca77];
const BLOCK: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// A test vector of the draft: configuration 2, ids that encode their length in the first octet.
    const KEY: [u8; 16] =
        [0x8f, 0x95, 0xf0, 0x92, 0x45, 0x76, 0x5f, 0x80, 0x25, 0x69, 0x34, 0xe5, 0x0c, 0x66, 0x20, 0x7f];
    const SERVER: [u8; 8] = [0xed, 0x79, 0x3a, 0x51, 0xd4, 0x9b, 0x8f, 0x5f];
    const ID: [u8; 17] = [
        0x50, 0x4d, 0xd2, 0xd0, 0x5a, 0x7b, 0x0d, 0xe9, 0xb2, 0xb9, 0x90, 0x7a, 0xfb, 0x5e, 0xcf, 0x8c, 0xc3,
    ];

    fn routing(rotation: u8, server: &[u8], key: u8) -> Routing {
        Routing::new(rotation, server, [key; 16]).unwrap()
    }

    #[test]
    fn the_draft_s_vector_is_read_and_written() {
        let ours = Routing::new(2, &SERVER, KEY).unwrap();
        assert_eq!(ours.server_id(&ID).as_deref(), Some(&SERVER[..]));
        let mut block = [0; 16];
        block[8..].copy_from_slice(&[0xee, 0x08, 0x0d, 0xbf, 0x48, 0xc0, 0xd1, 0xe5]);
        ours.encrypt(&mut block);
        assert_eq!(block, ID[1..]);
    }

    #[test]
    fn a_routing_out_of_range_is_refused() {
        assert_eq!(Routing::new(7, b"x", KEY).unwrap_err(), RoutingError::Rotation(7));
        for length in [0, 9, 16] {
            assert_eq!(Routing::new(0, &vec![1; length], KEY).unwrap_err(), RoutingError::ServerId(length));
        }
    }

    #[test]
    fn each_configuration_reads_its_own_ids_while_keys_rotate() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (old, new) = (routing(0, b"edge1", 1), routing(1, b"edge1", 2));
        let place_of = Place { generation: 1, worker: 3 };
        let (id, length) = encode(IdKey(7), place_of, Some(&old), &mut rng);
        assert_eq!(old.server_id(&id[..length]).unwrap(), b"edge1");
        assert_eq!(new.server_id(&id[..length]), None, "the other's key is for another rotation");
        // The server itself finds its way by neither.
        let (renewed, length) = encode(IdKey(7), place_of, Some(&new), &mut rng);
        assert_eq!(place(IdKey(7), &id[..length]), place(IdKey(7), &renewed[..length]));
        assert_eq!(new.server_id(&renewed).unwrap(), b"edge1");
    }

    #[test]
    fn ids_that_clients_invent_hardly_ever_pass_for_ours() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut passed = 0;
        for _ in 0..1_000_000 {
            let mut id = [0; SHORT];
            rng.fill_bytes(&mut id);
            passed += u32::from(place(IdKey(99), &id).is_some());
        }
        // An eighth of them looks unroutable: two by chance.
        assert!(passed < 12, "{passed} of a million");
    }

    proptest! {
        #[test]
        fn what_is_written_into_an_id_is_read_off_it(
            key: u32, generation in 0..GENERATIONS, worker in 0..64_u8, seed: u64,
            server in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..=MAX_SERVER_ID)),
            rotation in 0..7_u8, secret: [u8; 16],
        ) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let routing = server.as_ref().map(|server| Routing::new(rotation, server, secret).unwrap());
            let here = Place { generation, worker };
            let (id, length) = encode(IdKey(key), here, routing.as_ref(), &mut rng);
            prop_assert_eq!(length, super::length(routing.as_ref()));
            let id = &id[..length];
            prop_assert_eq!(place(IdKey(key), id), Some(here));
            prop_assert_eq!(routing.and_then(|routing| routing.server_id(id)), server);
            for header in [vec![0x43], vec![0xe3, 0, 0, 0, 1, length as u8]] {
                let datagram = [&header[..], id, &[0; 20]].concat();
                prop_assert_eq!(place_in_datagram(IdKey(key), &datagram), Some(here));
            }
        }

        #[test]
        fn nothing_that_comes_is_too_strange(key: u32, bytes: Vec<u8>) {
            place(IdKey(key), &bytes);
            place_in_datagram(IdKey(key), &bytes);
            routing(0, b"edge1", 1).server_id(&bytes);
        }
    }
}
