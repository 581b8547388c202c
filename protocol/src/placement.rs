//! Sans-io: which partition a channel is in. Edges and cores must agree on it.

use crate::{ChannelName, SessionId};

/// The partition of `channel` among `partitions` (at least 1).
///
/// FNV-1a over the name's bytes (64 bits), then the finalizer of MurmurHash3 (its low bits alone are weak), modulo
/// `partitions`. Logs are laid out by it: it never changes.
pub fn partition_of(channel: &ChannelName, partitions: u16) -> u16 {
    place(channel.as_str().bytes(), partitions)
}

/// The partition that remembers which tickets of `session` were spent: as [`partition_of`], of its 16 bytes.
pub fn partition_of_session(session: SessionId, partitions: u16) -> u16 {
    place(session.to_bytes().into_iter(), partitions)
}

/// The hash behind both, for whoever places other things.
pub fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    let mut hash = FNV_OFFSET;
    for byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn place(bytes: impl Iterator<Item = u8>, partitions: u16) -> u16 {
    // Below `partitions`, by the modulo.
    (hash(bytes) % u64::from(partitions.max(1))) as u16
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> u16 {
        partition_of(&ChannelName::new(name).expect("valid"), 16)
    }

    #[test]
    fn placement_never_changes() {
        let placed: Vec<u16> = ["room:1", "room:2", "chat", "user:456", "ü"].into_iter().map(of).collect();
        assert_eq!(placed, PLACED);
    }

    #[test]
    fn channels_spread_evenly() {
        let mut counts = [0u32; 16];
        for n in 0..16_000 {
            counts[usize::from(of(&format!("room:{n}")))] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    const PLACED: [u16; 5] = [4, 6, 6, 13, 1];
}
