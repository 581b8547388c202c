//! Files of keys, which are read again when they change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::auth::{KeyError, Secret};

/// A file and the keys that its last usable content gave.
pub(crate) struct KeyFile<K, E> {
    path: PathBuf,
    parse: Parse<K, E>,
    /// What was tried last, usable or not: one report for each mistake.
    tried: Content,
    keys: Vec<Arc<K>>,
}

/// What the bytes of a file mean; its name is for the error.
pub(crate) type Parse<K, E> = fn(&Path, &[u8]) -> Result<Vec<Arc<K>>, E>;

#[derive(PartialEq, Eq)]
enum Content {
    Bytes(Secret),
    Unreadable(io::ErrorKind),
}

impl<K, E: From<KeyError>> KeyFile<K, E> {
    pub(crate) fn load(path: &Path, parse: Parse<K, E>) -> Result<Self, E> {
        let content = Secret::read(path)?;
        let keys = parse(path, content.expose())?;
        Ok(Self { path: path.to_owned(), parse, tried: Content::Bytes(content), keys })
    }

    pub(crate) fn keys(&self) -> &[Arc<K>] {
        &self.keys
    }

    /// True where other keys are in force now. What cannot be used is told once, and leaves the keys as they are.
    pub(crate) fn refresh(&mut self) -> Result<bool, E> {
        let read = Secret::read(&self.path);
        let content = match &read {
            Ok(bytes) => Content::Bytes(bytes.clone()),
            Err(KeyError::Unreadable { cause, .. }) => Content::Unreadable(cause.kind()),
            Err(_) => Content::Unreadable(io::ErrorKind::Other),
        };
        if content == self.tried {
            return Ok(false);
        }
        self.tried = content;
        self.keys = (self.parse)(&self.path, read?.expose())?;
        Ok(true)
    }
}
