//! Everything that can go wrong with a repository.

use std::io;

use crate::Id;

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a repository failed.
///
/// Messages are fragments that fit behind "failed to …: ".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory is no Borg repository.
    #[error("there is no Borg repository at this place")]
    NotARepository,
    /// The repository's `config` cannot be used.
    #[error("the repository's configuration cannot be used: {0}")]
    Config(String),
    /// Another process uses the repository.
    #[error("the repository is locked{}", display_holders(holders))]
    Locked {
        /// Who holds it, as far as the lock's files say.
        holders: Vec<String>,
    },
    /// The lock was held and is no more: nothing may be written.
    #[error("another process has broken the repository's lock")]
    LockLost,
    /// The caller asked for an end.
    #[error("cancelled while waiting for the repository's lock")]
    Cancelled,
    /// Something was to be written, and the repository was opened for reading.
    #[error("the repository is open for reading only")]
    ReadOnly,
    /// There is no such object.
    #[error("the repository holds no object {0}")]
    NotFound(Id),
    /// A file does not hold what it must hold.
    #[error("{file} is damaged: {reason}")]
    Damaged {
        /// The file, relative to the repository.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The files do not fit together; only stock Borg can tell more.
    #[error("the repository is inconsistent: {0}; run `borg check`")]
    CheckNeeded(String),
    /// The repository uses something that this program does not know.
    #[error("the repository uses {0}, which is not supported")]
    Unsupported(String),
    /// An object is larger than Borg's format allows.
    #[error("an object of {0} bytes is larger than Borg allows")]
    TooBig(usize),
    /// The transaction would exceed the storage quota.
    #[error("the storage quota of {quota} bytes is exceeded: {used} bytes are used")]
    QuotaExceeded {
        /// The limit.
        quota: u64,
        /// What would be used.
        used: u64,
    },
    /// There is not enough room to commit safely.
    #[error("not enough free space to complete the transaction: {needed} bytes are needed, {free} are free")]
    NoSpace {
        /// Bytes that have to be free.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The nonce is not what the caller believes.
    #[error("the repository's nonce was changed by another process")]
    NonceMoved,
    /// An earlier write of the transaction failed; only a rollback is possible.
    #[error("an earlier write of this transaction failed")]
    Doomed,
    /// The transaction is committed; what follows a commit failed. The next opening makes up for it.
    #[error("the transaction is committed, but the index could not be written: {0}")]
    AfterCommit(Box<Error>),
    /// It is not known whether the transaction is committed. The next opening tells.
    #[error("it is not known whether the transaction is committed: {0}")]
    CommitUnknown(Box<Error>),
    /// The file system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// "read", "write", …
        action: &'static str,
        /// The file, relative to the repository.
        path: String,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn damaged(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged {
            file: file.into(),
            reason: reason.into(),
        }
    }

    /// True if the file system says that it is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::AfterCommit(inner) | Self::CommitUnknown(inner) => inner.is_full(),
            _ => false,
        }
    }

    /// True if a file is not there.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Says what was being done to which file.
pub(crate) trait Doing<T> {
    fn doing(self, action: &'static str, path: &str) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, action: &'static str, path: &str) -> Result<T> {
        self.map_err(|source| Error::Io {
            action,
            path: path.to_owned(),
            source,
        })
    }
}

fn display_holders(holders: &[String]) -> String {
    if holders.is_empty() {
        String::new()
    } else {
        format!(" by {}", holders.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_errors() {
        let full = |kind: io::ErrorKind| Err::<(), _>(io::Error::from(kind)).doing("write", "data/0/1");
        assert!(full(io::ErrorKind::StorageFull).unwrap_err().is_full());
        assert!(!full(io::ErrorKind::NotFound).unwrap_err().is_full());
        assert!(full(io::ErrorKind::NotFound).unwrap_err().is_absent());
        assert!(Error::AfterCommit(Box::new(Error::NoSpace { needed: 2, free: 1 })).is_full());
    }

    #[test]
    fn the_holders_of_a_lock_are_named() {
        let error = Error::Locked {
            holders: vec!["vm@1.7-0".to_owned()],
        };
        assert_eq!(error.to_string(), "the repository is locked by vm@1.7-0");
        let error = Error::Locked { holders: Vec::new() };
        assert_eq!(error.to_string(), "the repository is locked");
    }
}
