//! What Borg remembers about repositories on the client's side, and its protection against swapped repositories.
//!
//! The directory `<security dir>/<repository id>/` holds `location`, `key-type`, `manifest-timestamp`, `nonce` and,
//! once seen, `tam_required`. Stock Borg and this client share it. `strongroom-secret` is this client's alone: the key of
//! this repository took a passphrase, so one without is not the repository's.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::crypto::Encryption;
use crate::{Error, Location, RepositoryId, Result, Settings};

/// None of the files is longer than a path.
const MAX_FILE: u64 = 64 * 1024;

/// The security directory of one repository.
#[derive(Clone, Debug)]
pub(crate) struct SecurityDir {
    path: PathBuf,
    location: String,
    accept_relocated: bool,
    accept_unencrypted: bool,
}

/// A repository in an older state than was seen before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// Time of its manifest.
    pub found: String,
    /// Time of the newest manifest that was seen.
    pub expected: String,
}

/// What marks that a key took a passphrase.
const SECRET: &str = "strongroom-secret";

impl SecurityDir {
    pub fn new(settings: &Settings, id: RepositoryId, location: &Location) -> Self {
        Self {
            path: settings.security_dir.join(id.to_string()),
            location: location.canonical(),
            accept_relocated: settings.accept_relocated,
            accept_unencrypted: settings.accept_unencrypted,
        }
    }

    fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.path.join(name);
        match read_bounded(&path, MAX_FILE) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", &path, error)),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        write_durably(&path, text.as_bytes()).map_err(|error| Error::file("write", &path, error))
    }

    /// True if manifests of this repository were seen to be authenticated.
    pub fn tam_required(&self) -> bool {
        self.path.join("tam_required").exists()
    }

    /// Compares the repository with what is remembered, and remembers a new one.
    ///
    /// `secret` tells whether reading the repository needs more than the repository itself. A repository in an older
    /// state than before is given as such; nothing is remembered of it.
    pub fn check(
        &self,
        encryption: Encryption,
        secret: bool,
        manifest_time: &str,
    ) -> Result<Option<Replayed>> {
        let location = self.read("location")?;
        let key_type = self.read("key-type")?;
        let newest = self.read("manifest-timestamp")?;
        let known = location.is_some() && key_type.is_some() && newest.is_some();
        if !known && !secret && !self.accept_unencrypted {
            return Err(Error::UnknownUnencrypted);
        }
        if let Some(previous) = &location
            && *previous != self.location
        {
            if !self.accept_relocated {
                return Err(Error::Relocated {
                    current: self.location.clone(),
                    previous: previous.clone(),
                });
            }
            self.write("location", &self.location)?;
        }
        if known && key_type.is_some_and(|known| known.trim() != encryption.type_byte().to_string()) {
            return Err(Error::EncryptionChanged { found: encryption });
        }
        // Both are of one format, which sorts like the times it writes.
        if let Some(expected) = newest.filter(|newest| newest.as_str() > manifest_time) {
            return Ok(Some(Replayed {
                found: manifest_time.to_owned(),
                expected,
            }));
        }
        if !known {
            self.save(encryption, manifest_time)?;
        }
        Ok(None)
    }

    /// Whether the key of this repository was seen to take a passphrase.
    pub fn took_secret(&self) -> bool {
        self.path.join(SECRET).exists()
    }

    /// Remembers that the key took a passphrase.
    pub fn set_took_secret(&self) -> Result<()> {
        if self.took_secret() {
            return Ok(());
        }
        self.write(SECRET, "")
    }

    /// Remembers the repository's present state.
    pub fn save(&self, encryption: Encryption, manifest_time: &str) -> Result<()> {
        self.write("location", &self.location)?;
        self.write("key-type", &encryption.type_byte().to_string())?;
        self.write("manifest-timestamp", manifest_time)
    }

    /// Remembers whether manifests must be authenticated.
    pub fn set_tam_required(&self, required: bool) -> Result<()> {
        let path = self.path.join("tam_required");
        match (required, self.tam_required()) {
            (true, false) => self.write("tam_required", ""),
            (false, true) => fs::remove_file(&path).map_err(|error| Error::file("remove", &path, error)),
            _ => Ok(()),
        }
    }

    /// The first encryption counter that is not known to be used, as far as this machine knows.
    pub fn free_nonce(&self) -> Result<Option<u64>> {
        let Some(text) = self.read("nonce")? else {
            return Ok(None);
        };
        let text = text.trim();
        let nonce = if text.len() == 16 {
            u64::from_str_radix(text, 16).ok()
        } else {
            None
        };
        nonce.map(Some).ok_or_else(|| {
            Error::NonceState(format!(
                "{} does not hold 16 hexadecimal digits",
                self.path.join("nonce").display()
            ))
        })
    }

    /// Durably records that all counters below `next` may be used.
    pub fn set_free_nonce(&self, next: u64) -> Result<()> {
        self.write("nonce", &format!("{next:016x}"))
    }
}

/// Reads a file that has to be short.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        Err(std::io::Error::other("the file is too large"))
    } else {
        Ok(bytes)
    }
}

/// Numbers temporary files: two connections of one process may write the same file.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Replaces a file so that either the old or the new content survives a crash; the new one does after the return.
fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
    let result = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(dir)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}
