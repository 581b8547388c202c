//! Ticket keys and the files that hold them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM_SIV, RandomizedNonceKey};
use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::auth::KeyError;

/// A key, and the name by which tickets say that it sealed them.
pub(super) struct Key {
    bytes: [u8; KEY_BYTES],
    id: [u8; ID_BYTES],
    aead: RandomizedNonceKey,
}

impl Key {
    pub(super) fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"tidegate ticket key id");
        context.update(bytes);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&context.finish().as_ref()[..ID_BYTES]);
        let aead =
            RandomizedNonceKey::new(&AES_256_GCM_SIV, bytes).expect("the key is as long as it must be");
        Self { bytes: *bytes, id, aead }
    }

    pub(super) fn id(&self) -> &[u8; ID_BYTES] {
        &self.id
    }

    /// What the fleet's other keys are made from.
    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }

    pub(super) fn aead(&self) -> &RandomizedNonceKey {
        &self.aead
    }
}

/// Why ticket keys cannot be used. For the operator; each text is whole and holds no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TicketKeyError {
    /// The file is missing, forbidden or too large.
    #[error(transparent)]
    Unreadable(#[from] KeyError),
    /// A line that is no key.
    #[error(
        "{} line {line} is no ticket key: 32 bytes in base64 or hexadecimal are expected; make one with `openssl rand -base64 32`",
        path.display()
    )]
    BadKey {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// No line at all.
    #[error("{} holds no ticket key: make one with `openssl rand -base64 32`", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// More than anybody rotates through.
    #[error("{} holds more than {MAX_KEYS} ticket keys: remove those that no ticket is of any more", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
    },
}

/// One key a line; empty lines and those that begin with `#` are passed over.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Arc<Key>>, TicketKeyError> {
    let mut keys = Vec::new();
    for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let text = text.trim_ascii();
        if text.is_empty() || text.starts_with(b"#") {
            continue;
        }
        let key = key(text).ok_or_else(|| TicketKeyError::BadKey { path: path.to_owned(), line })?;
        keys.push(Arc::new(Key::new(&key)));
    }
    match keys.len() {
        0 => Err(TicketKeyError::NoKey { path: path.to_owned() }),
        count if count > MAX_KEYS => Err(TicketKeyError::TooMany { path: path.to_owned() }),
        _ => Ok(keys),
    }
}

fn key(text: &[u8]) -> Option<[u8; KEY_BYTES]> {
    if text.len() == 2 * KEY_BYTES {
        let mut key = [0; KEY_BYTES];
        for (byte, digits) in key.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        return Some(key);
    }
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Bytes of a ticket key.
pub const KEY_BYTES: usize = 32;
pub(super) const ID_BYTES: usize = 8;
/// In one file.
const MAX_KEYS: usize = 16;
