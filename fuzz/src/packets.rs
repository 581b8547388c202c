//! What is read off a packet before it is anybody's, and TLS tickets.

use std::sync::{Arc, OnceLock};

use tidegate_transport::keys::SharedKeys;
use tidegate_transport::quic::{IdKey, Steering, place_in_datagram};

/// A datagram from anywhere: it belongs to one of the sockets that are there, whatever is in it.
pub fn connection_id(input: &[u8]) {
    let Some((byte, datagram)) = input.split_first() else { return };
    let key = IdKey(u32::from(*byte));
    let alone = Steering::new(usize::from(byte % 64) + 1, key).expect("a possible number");
    let joined = alone.joined(3).expect("two processes");
    for steering in [&alone, &joined] {
        let socket = steering.socket_of(datagram);
        assert!(socket < steering.members());
        if let Some(place) = place_in_datagram(key, datagram).filter(|_| datagram.len() >= 26) {
            let set = steering.sets().iter().find(|set| set.generation == place.generation);
            if let Some(set) = set.filter(|set| place.worker < set.workers) {
                assert_eq!(socket, usize::from(set.first) + usize::from(place.worker));
            }
        }
    }
}

/// A TLS ticket from anywhere: none that was not sealed here opens.
pub fn tls_ticket(input: &[u8]) {
    static KEYS: OnceLock<Arc<SharedKeys>> = OnceLock::new();
    let ticketer = KEYS.get_or_init(|| Arc::new(SharedKeys::new([&[7; 32]]))).ticketer();
    assert!(ticketer.decrypt(input).is_none());
    let ticket = ticketer.encrypt(input).expect("anything can be sealed");
    assert_eq!(ticketer.decrypt(&ticket).as_deref(), Some(input));
}
