//! The directory of development certificates: who may read it, and one writer at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;

use super::DevError;

/// A certificate as PEM text (RFC 7468 §5): rustls reads it but does not write it.
pub(crate) fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    let body = STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Who may read a file.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Access {
    Owner,
    Everyone,
}

/// Creates the directory for this user alone. One that exists is left as it is: it may be the user's own, and
/// the keys in it are protected by themselves.
pub(crate) fn create_directory(directory: &Path) -> Result<(), DevError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(|cause| DevError::Unwritable { path: directory.into(), cause })
}

/// Waits for other processes at work in the directory; the turn ends when the file is dropped.
pub(crate) fn lock(directory: &Path) -> Result<File, DevError> {
    let path = directory.join(LOCK);
    let open = || {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|cause| DevError::Unwritable { path: path.clone(), cause })
}

/// Replaces a file in one step, so that no reader sees half of it. The caller holds the lock.
pub(crate) fn write_file(path: &Path, text: &str, access: Access) -> Result<(), DevError> {
    let write = || {
        let temporary = path.with_extension("new");
        // A leftover of a process that died may have any mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if access == Access::Owner {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        #[cfg(not(unix))]
        let _ = access;
        let mut file = options.open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|cause| DevError::Unwritable { path: path.into(), cause })
}

/// Takes other users' rights on a key file that was copied or restored carelessly.
#[cfg(unix)]
pub(crate) fn restrict_to_owner(path: &Path) -> Result<(), DevError> {
    use std::os::unix::fs::PermissionsExt as _;
    let restrict = || {
        let mut permissions = fs::metadata(path)?.permissions();
        if permissions.mode() & 0o077 == 0 {
            return Ok(());
        }
        permissions.set_mode(0o600);
        fs::set_permissions(path, permissions)
    };
    restrict().map_err(|cause| DevError::Unwritable { path: path.into(), cause })
}

#[cfg(not(unix))]
pub(crate) fn restrict_to_owner(_path: &Path) -> Result<(), DevError> {
    Ok(())
}

/// Its lock is held by whoever reads or writes the other files.
pub(super) const LOCK: &str = "lock";
