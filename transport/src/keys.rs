//! Keys that every node of a fleet derives from the same secrets: TLS tickets, address validation; and, each node for
//! itself, stateless resets and connection ids. A process has them from the process before it, and a client of one node
//! resumes its TLS session at another without a signature.
//!
//! From each secret a root is extracted (HKDF-SHA256), from that the keys are expanded, each under a label of its own. The
//! first secret's keys are used, those of all are accepted: secrets are exchanged one after the other. Ticket keys also
//! change by themselves, with each [`TICKET_EPOCH`]; the epochs beside the present one are accepted, for tickets that were
//! given out before it and for clocks that are ahead.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::aead::{
    AES_256_GCM, AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, RandomizedNonceKey, UnboundKey,
};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use aws_lc_rs::hmac;
use quinn_proto::crypto::{AeadKey, CryptoError, HandshakeTokenKey, HmacKey};
use rustls::server::ProducesTickets;

use crate::clock;
use crate::quic::IdKey;

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;

/// How long a key for TLS tickets is used; tickets are good for at least as long.
pub const TICKET_EPOCH: Duration = Duration::from_secs(6 * 60 * 60);

/// What is derived from a fleet's secrets, now.
pub struct SharedKeys {
    roots: RwLock<Arc<[Root]>>,
    /// Counts how often they were replaced.
    version: AtomicU64,
}

impl SharedKeys {
    /// From at least one secret, the one that is used first.
    ///
    /// # Panics
    /// Without one.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8; SECRET_BYTES]>) -> Self {
        Self { roots: RwLock::new(roots(secrets)), version: AtomicU64::new(0) }
    }

    /// Other secrets from now on. Keys of connection ids and of resets stay, where they are in use.
    ///
    /// # Panics
    /// Without one.
    pub fn replace<'a>(&self, secrets: impl IntoIterator<Item = &'a [u8; SECRET_BYTES]>) {
        *self.roots.write().unwrap_or_else(PoisonError::into_inner) = roots(secrets);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Another number whenever secrets were replaced.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// For tickets of slots: the key that makes them, and the one that is taken besides, of the second secret.
    pub fn slot_keys(&self) -> ([u8; 32], Option<[u8; 32]>) {
        let roots = self.roots();
        let key = |root: &Root| root.expand(b"slot tickets", b"");
        (key(&roots[0]), roots.get(1).map(key))
    }

    /// What masks the connection ids of a node.
    pub fn id_key(&self, node: &str) -> IdKey {
        IdKey(u32::from_be_bytes(self.roots()[0].expand(b"connection ids", node.as_bytes())))
    }

    /// For TLS without early data: tickets that say everything themselves.
    pub fn ticketer(self: &Arc<Self>) -> Arc<dyn ProducesTickets> {
        Arc::new(Ticketer { keys: Arc::clone(self) })
    }

    /// For tokens by which clients prove their address, of Retry and NEW_TOKEN.
    pub(crate) fn token_key(self: &Arc<Self>) -> Arc<dyn HandshakeTokenKey> {
        Arc::new(TokenKey { keys: Arc::clone(self) })
    }

    /// For the stateless resets of a node. Of no other: a node that answered for another's connections would let anybody
    /// end them (RFC 9000 §10.3.2).
    pub(crate) fn reset_key(&self, node: &str) -> Arc<dyn HmacKey> {
        let key: [u8; 32] = self.roots()[0].expand(b"stateless reset", node.as_bytes());
        Arc::new(ResetKey(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// A TLS session as a ticket. `purpose` keeps tickets for one kind of server from others.
    pub(crate) fn seal(&self, purpose: &[u8], session: &[u8]) -> Option<Vec<u8>> {
        self.seal_in(epoch(clock::unix_ms()), purpose, session)
    }

    /// The TLS session in a ticket, if it is ours and not too old. No input makes it panic.
    pub(crate) fn open(&self, purpose: &[u8], ticket: &[u8]) -> Option<Vec<u8>> {
        self.open_in(epoch(clock::unix_ms()), purpose, ticket)
    }

    fn seal_in(&self, epoch: u32, purpose: &[u8], session: &[u8]) -> Option<Vec<u8>> {
        let roots = self.roots();
        let root = &roots[0];
        let head = [&epoch.to_be_bytes()[..], &root.name].concat();
        let mut sealed = session.to_vec();
        let nonce = root.ticket_key(epoch, purpose).seal_in_place_append_tag(Aad::from(&head), &mut sealed);
        Some([&head[..], nonce.ok()?.as_ref(), &sealed].concat())
    }

    fn open_in(&self, now: u32, purpose: &[u8], ticket: &[u8]) -> Option<Vec<u8>> {
        let (head, rest) = ticket.split_at_checked(EPOCH_BYTES + NAME_BYTES)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_BYTES)?;
        let epoch = u32::from_be_bytes(head[..EPOCH_BYTES].try_into().ok()?);
        if epoch.abs_diff(now) > 1 {
            return None;
        }
        let roots = self.roots();
        let root = roots.iter().find(|root| root.name == head[EPOCH_BYTES..])?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut session = sealed.to_vec();
        let key = root.ticket_key(epoch, purpose);
        let length = key.open_in_place(nonce, Aad::from(head), &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }

    fn roots(&self) -> Arc<[Root]> {
        Arc::clone(&self.roots.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for SharedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKeys").field("secrets", &self.roots().len()).finish_non_exhaustive()
    }
}

/// What one secret became.
struct Root {
    prk: Prk,
    /// By which tickets say that it sealed them.
    name: [u8; NAME_BYTES],
}

impl Root {
    fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        let prk = Salt::new(HKDF_SHA256, b"tidegate shared keys 1").extract(secret);
        let mut root = Self { prk, name: [0; NAME_BYTES] };
        root.name = root.expand(b"name", b"");
        root
    }

    fn expand<const N: usize>(&self, label: &[u8], context: &[u8]) -> [u8; N] {
        let mut key = [0; N];
        // The length keeps a label that another begins with apart.
        let length = [label.len() as u8];
        let info = [&length[..], label, context];
        let okm = self.prk.expand(&info, Length(N)).expect("shorter than 255 hashes");
        okm.fill(&mut key).expect("as long as was asked for");
        key
    }

    fn ticket_key(&self, epoch: u32, purpose: &[u8]) -> RandomizedNonceKey {
        let context = [&epoch.to_be_bytes()[..], purpose].concat();
        let key: [u8; 32] = self.expand(b"tls tickets", &context);
        RandomizedNonceKey::new(&AES_256_GCM_SIV, &key).expect("the key is as long as it must be")
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

struct Ticketer {
    keys: Arc<SharedKeys>,
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_EPOCH.as_secs() as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.seal(TCP, plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.keys.open(TCP, cipher)
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.keys.fmt(f)
    }
}

struct TokenKey {
    keys: Arc<SharedKeys>,
}

impl HandshakeTokenKey for TokenKey {
    fn aead_from_hkdf(&self, random_bytes: &[u8]) -> Box<dyn AeadKey> {
        let key = |root: &Root| {
            let key: [u8; 32] = root.expand(b"address tokens", random_bytes);
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("as long as it must be"))
        };
        Box::new(TokenAead(self.keys.roots().iter().map(key).collect()))
    }
}

/// Good for one token, so its nonce can be zero.
struct TokenAead(Vec<LessSafeKey>);

impl AeadKey for TokenAead {
    fn seal(&self, data: &mut Vec<u8>, additional_data: &[u8]) -> Result<(), CryptoError> {
        let nonce = Nonce::assume_unique_for_key([0; NONCE_BYTES]);
        self.0[0].seal_in_place_append_tag(nonce, Aad::from(additional_data), data).map_err(|_| CryptoError)
    }

    fn open<'a>(&self, data: &'a mut [u8], additional_data: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        let mut opened = None;
        for key in &self.0 {
            // A key that fails leaves nothing behind that another could open.
            let mut copy = data.to_vec();
            let nonce = Nonce::assume_unique_for_key([0; NONCE_BYTES]);
            if let Ok(plain) = key.open_in_place(nonce, Aad::from(additional_data), &mut copy) {
                opened = Some(plain.to_vec());
                break;
            }
        }
        let plain = opened.ok_or(CryptoError)?;
        let data = &mut data[..plain.len()];
        data.copy_from_slice(&plain);
        Ok(data)
    }
}

struct ResetKey(hmac::Key);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(hmac::sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        hmac::verify(&self.0, data, signature).map_err(|_| CryptoError)
    }
}

fn roots<'a>(secrets: impl IntoIterator<Item = &'a [u8; SECRET_BYTES]>) -> Arc<[Root]> {
    let roots: Arc<[Root]> = secrets.into_iter().map(Root::new).collect();
    assert!(!roots.is_empty(), "keys are made from at least one secret");
    roots
}

fn epoch(unix_ms: u64) -> u32 {
    u32::try_from(unix_ms / 1000 / TICKET_EPOCH.as_secs()).unwrap_or(u32::MAX)
}

const TCP: &[u8] = b"tcp";
const EPOCH_BYTES: usize = 4;
const NAME_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: [u8; 32] = [1; 32];
    const NEW: [u8; 32] = [2; 32];

    #[test]
    fn tickets_are_good_in_their_epoch_and_the_next_for_their_purpose_alone() {
        let keys = SharedKeys::new([&OLD]);
        let ticket = keys.seal_in(10, b"tcp", b"session").unwrap();
        for (now, good) in [(8, false), (9, true), (10, true), (11, true), (12, false)] {
            assert_eq!(keys.open_in(now, b"tcp", &ticket).is_some(), good, "{now}");
        }
        assert_eq!(SharedKeys::new([&OLD]).open_in(10, b"tcp", &ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(keys.open_in(10, b"quic", &ticket), None);
        assert_eq!(SharedKeys::new([&NEW]).open_in(10, b"tcp", &ticket), None);
    }

    #[test]
    fn secrets_are_exchanged_one_after_the_other() {
        let keys = Arc::new(SharedKeys::new([&OLD]));
        let ticket = keys.seal(b"", b"session").unwrap();
        let mut token = b"token".to_vec();
        keys.token_key().aead_from_hkdf(b"random").seal(&mut token, b"data").unwrap();
        let opens = |keys: &Arc<SharedKeys>, token: &[u8]| {
            let mut token = token.to_vec();
            let aead = keys.token_key().aead_from_hkdf(b"random");
            aead.open(&mut token, b"data").is_ok_and(|plain| plain == b"token")
        };
        // Known, then used, then the old one forgotten.
        keys.replace([&OLD, &NEW]);
        assert!(keys.open(b"", &ticket).is_some() && opens(&keys, &token));
        keys.replace([&NEW, &OLD]);
        assert!(keys.open(b"", &ticket).is_some() && opens(&keys, &token));
        let newer = keys.seal(b"", b"session").unwrap();
        keys.replace([&NEW]);
        assert!(keys.open(b"", &ticket).is_none() && !opens(&keys, &token));
        assert!(keys.open(b"", &newer).is_some());
    }

    #[test]
    fn slot_keys_are_of_the_first_two_secrets_and_a_change_is_noticed() {
        let keys = SharedKeys::new([&OLD]);
        let (old, none) = keys.slot_keys();
        assert!(none.is_none() && old == SharedKeys::new([&OLD]).slot_keys().0);
        let before = keys.version();
        keys.replace([&NEW, &OLD]);
        let (new, previous) = keys.slot_keys();
        assert!(new != old && previous == Some(old) && keys.version() != before);
    }

    #[test]
    fn resets_and_ids_are_each_node_s_own_and_the_same_after_a_restart() {
        let (before, after) = (SharedKeys::new([&OLD]), SharedKeys::new([&OLD, &NEW]));
        let sign = |keys: &SharedKeys, node: &str| {
            let key = keys.reset_key(node);
            let mut signature = vec![0; key.signature_len()];
            key.sign(b"an id", &mut signature);
            assert!(key.verify(b"an id", &signature).is_ok() && key.verify(b"other", &signature).is_err());
            signature
        };
        assert_eq!(sign(&before, "edge-1"), sign(&after, "edge-1"));
        assert_ne!(sign(&before, "edge-1"), sign(&before, "edge-2"));
        assert_eq!(before.id_key("edge-1"), after.id_key("edge-1"));
        assert_ne!(before.id_key("edge-1"), before.id_key("edge-2"));
    }

    proptest! {
        #[test]
        fn no_ticket_is_too_strange(bytes: Vec<u8>, at in 0..64_usize, bit in 0..8_u8) {
            let keys = SharedKeys::new([&OLD]);
            prop_assert_eq!(keys.open(b"", &bytes), None);
            let mut ticket = keys.seal(b"", b"a session of some length, so that there is much to change").unwrap();
            ticket[at] ^= 1 << bit;
            prop_assert_eq!(keys.open(b"", &ticket), None);
        }
    }
}
