//! Resume tickets as clients carry them: sealed with keys that the fleet shares.
//!
//! A ticket's text is base64url of: version (1 byte), id of the key (8), nonce (12), ciphertext and tag. AES-256-GCM-SIV:
//! nonces are random and many nodes seal with one key, and it loses nothing but the equality of two tickets should a
//! nonce ever come twice. TLS tickets and the like are of keys derived from the same ([`TicketKeys::shared`]). The keys' files are read again as those of tokens are ([`TicketKeys::refresh`]).

mod keys;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use aws_lc_rs::aead::{Aad, Nonce};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use tidegate_protocol::frame::CloseCode;
use tidegate_protocol::session::resume::{AttemptKey, Ticket};
use tidegate_transport::keys::SharedKeys;

use self::keys::{ID_BYTES, Key};
use crate::key_file::KeyFile;

pub use self::keys::{KEY_BYTES, TicketKeyError};

/// The keys that seal and open tickets. Shared by all workers.
pub struct TicketKeys {
    /// The first seals, all open.
    ring: RwLock<Arc<[Arc<Key>]>>,
    /// Made from the same.
    shared: Arc<SharedKeys>,
    // Makes refreshes take turns; never locked by a session.
    files: Mutex<Vec<TicketKeyFile>>,
}

impl TicketKeys {
    /// Reads the files, in this order: the first key of the first one seals. Blocks for as long as small files take.
    ///
    /// # Errors
    /// When a file cannot be read, or holds something else than keys: the first such problem.
    pub fn read(paths: &[PathBuf]) -> Result<Self, TicketKeyError> {
        let files =
            paths.iter().map(|path| TicketKeyFile::load(path, keys::parse)).collect::<Result<Vec<_>, _>>()?;
        let ring = ring(&files);
        Ok(Self { shared: shared(&ring), ring: RwLock::new(ring), files: Mutex::new(files) })
    }

    /// A key that nobody else has: tickets are good in this process alone.
    pub fn random(rng: &mut impl Rng) -> Self {
        let mut bytes = [0; KEY_BYTES];
        rng.fill_bytes(&mut bytes);
        Self::of(&bytes)
    }

    /// One key, given.
    pub fn of(key: &[u8; KEY_BYTES]) -> Self {
        let ring = Arc::from([Arc::new(Key::new(key))]);
        Self { shared: shared(&ring), ring: RwLock::new(ring), files: Mutex::default() }
    }

    /// The text of a ticket; `None` where it would be over [`MAX_TICKET_BYTES`].
    pub fn seal(&self, ticket: &Ticket) -> Option<String> {
        let ring = self.ring();
        let key = ring.first()?;
        let mut content = ticket.encode();
        if content.len() > MAX_TICKET_BYTES / 4 * 3 - HEAD_BYTES - NONCE_BYTES - TAG_BYTES {
            return None;
        }
        let head = head(key);
        let nonce = key.aead().seal_in_place_append_tag(Aad::from(&head), &mut content).ok()?;
        Some(URL_SAFE_NO_PAD.encode([&head[..], nonce.as_ref(), &content].concat()))
    }

    /// The ticket of a text, if it is ours and not too old. No input makes it panic.
    ///
    /// # Errors
    /// When it is not to be honoured.
    pub fn open(&self, text: &str, unix_ms: u64) -> Result<Ticket, OpenError> {
        if text.len() > MAX_TICKET_BYTES {
            return Err(OpenError::Malformed);
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| OpenError::Malformed)?;
        let (head, rest) = bytes.split_at_mut_checked(HEAD_BYTES).ok_or(OpenError::Malformed)?;
        let (nonce, sealed) = rest.split_at_mut_checked(NONCE_BYTES).ok_or(OpenError::Malformed)?;
        if sealed.len() < TAG_BYTES {
            return Err(OpenError::Malformed);
        }
        if head[0] != VERSION {
            return Err(OpenError::Foreign);
        }
        let ring = self.ring();
        let key = ring.iter().find(|key| key.id() == &head[1..]).ok_or(OpenError::Foreign)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError::Malformed)?;
        let content =
            key.aead().open_in_place(nonce, Aad::from(&*head), sealed).map_err(|_| OpenError::Malformed)?;
        let ticket = Ticket::decode(content).map_err(|_| OpenError::Malformed)?;
        if ticket.is_expired(unix_ms) { Err(OpenError::Expired) } else { Ok(ticket) }
    }

    /// Reads the files again where their content changed. A broken file keeps the keys it gave before, and is reported
    /// once, not at every call. Reads small files, so not on a thread that moves packets.
    pub fn refresh(&self) -> TicketKeyRefresh {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refresh = TicketKeyRefresh::default();
        for file in files.iter_mut() {
            match file.refresh() {
                Ok(changed) => refresh.changed |= changed,
                Err(problem) => refresh.problems.push(problem),
            }
        }
        if refresh.changed {
            let ring = ring(&files);
            self.shared.replace(ring.iter().map(|key| key.bytes()));
            *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
        }
        refresh
    }

    /// What else the nodes of a fleet derive from these keys.
    pub fn shared(&self) -> &Arc<SharedKeys> {
        &self.shared
    }

    fn ring(&self) -> Arc<[Arc<Key>]> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketKeys").field("keys", &self.ring().len()).finish_non_exhaustive()
    }
}

/// What [`TicketKeys::refresh`] found.
#[derive(Debug, Default)]
pub struct TicketKeyRefresh {
    /// Other keys are in force now.
    pub changed: bool,
    /// Files that cannot be used; their old keys stay.
    pub problems: Vec<TicketKeyError>,
}

/// Why a text is no ticket for us. Sent to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Forged, cut off, changed, or something else altogether.
    #[error("the ticket is not genuine")]
    Malformed,
    /// Of a key, or a layout, that this node does not have.
    #[error("the ticket is of another fleet")]
    Foreign,
    /// Its life is over.
    #[error("the ticket is too old")]
    Expired,
}

impl OpenError {
    /// What the connection ends with.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::Malformed => CloseCode::BadResume,
            Self::Foreign => CloseCode::ResumeForeign,
            Self::Expired => CloseCode::ResumeExpired,
        }
    }
}

/// What a client's `key` becomes on its way to the core.
pub(crate) fn attempt_key(key: &str) -> AttemptKey {
    let hash = digest(&SHA256, key.as_bytes());
    let mut short = [0; 16];
    short.copy_from_slice(&hash.as_ref()[..16]);
    AttemptKey(short)
}

fn head(key: &Key) -> [u8; HEAD_BYTES] {
    let mut head = [VERSION; HEAD_BYTES];
    head[1..].copy_from_slice(key.id());
    head
}

/// A key on each line.
type TicketKeyFile = KeyFile<Key, TicketKeyError>;

fn ring(files: &[TicketKeyFile]) -> Arc<[Arc<Key>]> {
    files.iter().flat_map(KeyFile::keys).cloned().collect()
}

fn shared(ring: &[Arc<Key>]) -> Arc<SharedKeys> {
    Arc::new(SharedKeys::new(ring.iter().map(|key| key.bytes())))
}

/// The longest text of a ticket: what a token grants is in it, and it is no longer than the token. For what a token over
/// the usual limit grants, none is issued.
pub const MAX_TICKET_BYTES: usize = 8 << 10;
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + ID_BYTES;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

#[cfg(test)]
mod tests;
