//! Everything that can go wrong, and what to do about it.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::{ChunkId, Encryption, Name};

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a repository failed.
///
/// Messages are fragments that fit behind "failed to …: "; [`Error::hint`] says what can be done about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no repository location.
    #[error("invalid repository location {text:?}: {reason}")]
    Location {
        /// The text as given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A setting cannot be used.
    #[error("invalid setting {name}: {reason}")]
    Setting {
        /// Name of the setting or environment variable.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// `borg init` failed.
    #[error("cannot create the repository: {message}")]
    Init {
        /// What Borg printed.
        message: String,
    },
    /// A local file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// "read", "write", …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// The server closed the connection or died.
    #[error("connection to the Borg server lost while {doing}{}{}", display_status(status.as_ref()), display_tail(message))]
    ServerGone {
        /// The request it was busy with.
        doing: String,
        /// How the local child (`borg serve` or ssh) ended, if it did.
        status: Option<ExitStatus>,
        /// The last lines it wrote to its error output.
        message: String,
    },
    /// The operation was cancelled through a [`crate::Canceller`].
    #[error("cancelled while {doing}")]
    Cancelled {
        /// The request that was interrupted.
        doing: String,
    },
    /// The peer does not speak Borg's protocol, or breaks it.
    #[error("protocol violation by the Borg server: {0}")]
    Protocol(String),
    /// The server reported an error that has no variant of its own.
    #[error("the Borg server reported {class} while {doing}: {message}")]
    Remote {
        /// Name of the exception class.
        class: String,
        /// Its text.
        message: String,
        /// The request it answers.
        doing: String,
    },

    /// Another client holds the repository's lock.
    #[error("the repository is locked by another client: {message}")]
    LockTimeout {
        /// The server's text.
        message: String,
    },
    /// The lock cannot be made, for example on read-only storage.
    #[error("the repository cannot be locked: {message}")]
    LockFailed {
        /// The server's text.
        message: String,
    },
    /// There is no repository at this place.
    #[error("repository {location} does not exist")]
    NotFound {
        /// Where it should be.
        location: String,
    },
    /// What is there is no Borg 1.x repository.
    #[error("{location} is not a Borg 1.x repository: {message}")]
    NotARepository {
        /// Where it is.
        location: String,
        /// The server's text.
        message: String,
    },
    /// The server's policy forbids the path (`--restrict-to-path`, `--restrict-to-repository`).
    #[error("the server does not allow access to {location}")]
    PathNotAllowed {
        /// Where it is.
        location: String,
    },
    /// The server process lacks the right to read or write the repository.
    #[error("permission denied on the repository while {doing}: {message}")]
    PermissionDenied {
        /// The request.
        doing: String,
        /// The server's text.
        message: String,
    },
    /// The repository's storage quota is used up.
    #[error("the repository's storage quota is exceeded: {message}")]
    QuotaExceeded {
        /// The server's text.
        message: String,
    },
    /// The repository's file system is full.
    #[error("not enough free space for the repository: {message}")]
    NoSpace {
        /// The server's text.
        message: String,
    },
    /// The server itself found its storage damaged.
    #[error("the repository is damaged: {message}")]
    RepositoryDamaged {
        /// The server's text.
        message: String,
    },
    /// The repository does not have this object.
    #[error("object {0} is missing in the repository")]
    ObjectNotFound(ChunkId),
    /// The repository is empty of its manifest.
    #[error("the repository has no manifest")]
    NoManifest,

    /// An object's content does not verify or does not parse.
    #[error("object {object} is damaged: {reason}")]
    Damaged {
        /// Which object: a chunk id, "manifest", or an archive.
        object: String,
        /// What is wrong.
        reason: String,
    },
    /// The repository needs something this client does not know.
    #[error("the repository needs {0}, which is not supported")]
    Unsupported(String),

    /// The passphrase is wrong.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// A passphrase is needed and none was given.
    #[error("the repository key needs a passphrase and none was given")]
    NoPassphrase,
    /// The passphrase could not be had from the configured source.
    #[error("cannot get the passphrase from {source_name}: {reason}")]
    PassphraseSource {
        /// The environment variable.
        source_name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The key blob cannot be used.
    #[error("the repository key in {place} is unusable: {reason}")]
    Key {
        /// "the repository" or the path of the key file.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// No key file for this repository.
    #[error("no key file for repository {repository} in {}", place.display())]
    NoKeyFile {
        /// The repository's id in hexadecimal.
        repository: String,
        /// The directory (or file) searched.
        place: PathBuf,
    },

    /// The manifest is older than the one seen before.
    #[error("the repository's manifest of {found} is older than the one last seen, of {expected}")]
    Replay {
        /// Time of the manifest in the repository.
        found: String,
        /// Time of the newest manifest this client knows.
        expected: String,
    },
    /// The repository was at another place when last seen.
    #[error("the repository at {current} was previously at {previous}")]
    Relocated {
        /// Where it is now.
        current: String,
        /// Where it was.
        previous: String,
    },
    /// The repository's kind of encryption changed since it was last seen.
    #[error("the repository's encryption changed to {found} since it was last used")]
    EncryptionChanged {
        /// What it is now.
        found: Encryption,
    },
    /// The server offers a key without a passphrase for a repository whose key took one.
    #[error("the server offers a key without a passphrase, and the key of this repository took one")]
    SecretGone,
    /// First contact with a repository without encryption.
    #[error("the repository is not encrypted and was never used from here before")]
    UnknownUnencrypted,

    /// No archive of this name.
    #[error("archive {0} does not exist")]
    ArchiveNotFound(Name),
    /// There is an archive of this name already.
    #[error("archive {0} exists already")]
    ArchiveExists(Name),
    /// The name cannot be an archive's.
    #[error("archive name {name:?} is not usable: {reason}")]
    ArchiveName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The server, or the way to it, hangs.
    #[error("{doing}: the repository's server has given no sign of life for {} s", .time.as_secs())]
    Silent {
        /// What it was asked for.
        doing: String,
        /// How long it was waited for.
        time: std::time::Duration,
    },
    /// Writing needs [`crate::Access::Write`].
    #[error("the repository is open for reading only")]
    NotWritable,
    /// Something is larger than Borg can store.
    #[error("{what} of {size} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Sealing needs a reservation made before ([`crate::ArchiveWriter::reserve`]).
    #[error("the reserved encryption counters are used up")]
    NonceReservation,
    /// The encryption counter's state is unusable.
    #[error("unusable state of the encryption counter: {0}")]
    NonceState(String),
    /// An item refers to a chunk that is neither written nor adopted.
    #[error("item {item} refers to chunk {chunk}, which was neither written nor adopted")]
    UnknownChunk {
        /// Path of the item.
        item: Name,
        /// The chunk.
        chunk: ChunkId,
    },
    /// An earlier error ended this writer.
    #[error("the archive was given up after an earlier error")]
    Doomed,
}

const NOT_INSTALLED: &str = "install borgbackup 1.x, here for a local repository, on the host for a remote one (BORG_REMOTE_PATH says where); and the OpenSSH client here";
const TOO_MANY_FILES: &str =
    "more files may have to be open at once: `ulimit -n`, or LimitNOFILE= of the service";

/// EMFILE, ENFILE.
fn no_more_files(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23))
}

impl Error {
    /// What the user can do about it, when something general can be said.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Location { .. } => "use /path, ssh://user@host:port/path or user@host:path",
            Self::Spawn { source, .. } if no_more_files(source) => TOO_MANY_FILES,
            Self::File { source, .. } if no_more_files(source) => TOO_MANY_FILES,
            Self::Spawn { .. } => NOT_INSTALLED,
            Self::Silent { .. } => {
                "its storage or its network hangs, or the server itself; what was not committed is rolled back. A repository that really takes longer: raise `limits.repository_s`"
            }
            // What a shell ends with when it does not find the program.
            Self::ServerGone { status, .. } if status.is_some_and(|status| status.code() == Some(127)) => {
                NOT_INSTALLED
            }
            Self::ServerGone { message, .. } if message.contains("Too many open files") => TOO_MANY_FILES,
            Self::ServerGone { .. } => {
                "check that the host can be reached, that borg 1.x is installed there, and that BORG_RSH and BORG_REMOTE_PATH are right; what was not committed is rolled back, so the operation can be repeated"
            }
            Self::Protocol(_) => {
                "something other than `borg serve` answers; a login script that prints text does this too"
            }
            Self::LockTimeout { .. } => {
                "wait for the other client, or raise the lock wait; `borg break-lock` only when no other client can be running"
            }
            Self::LockFailed { .. } => {
                "the server cannot write to the repository directory; reading without a lock is possible"
            }
            Self::NotFound { .. } => "check the location, or create the repository first",
            Self::NotARepository { .. } => {
                "Borg 2 and Attic repositories cannot be used; create a Borg 1.x repository"
            }
            Self::PathNotAllowed { .. } => "see the forced command in authorized_keys on the server",
            Self::QuotaExceeded { .. } => {
                "prune and compact, or raise the storage quota; nothing was committed"
            }
            Self::NoSpace { .. } => "free space on the repository's file system; nothing was committed",
            Self::RepositoryDamaged { .. } | Self::Damaged { .. } | Self::ObjectNotFound(_) => {
                "run `borg check` on the repository; other data stays readable"
            }
            Self::NoManifest => "run `borg check --repair`, which rebuilds the manifest",
            Self::Unsupported(_) => "a newer Borg wrote this repository",
            Self::WrongPassphrase => "check BORG_PASSPHRASE, BORG_PASSCOMMAND or BORG_PASSPHRASE_FD",
            Self::NoPassphrase => "set BORG_PASSPHRASE or BORG_PASSCOMMAND",
            Self::NoKeyFile { .. } => "restore the key file from its backup with `borg key import`",
            Self::Replay { .. } => {
                "an old state of the repository may have been put back; if you did that yourself, remove the file manifest-timestamp in Borg's security directory for this repository"
            }
            Self::Relocated { .. } => {
                "if you moved the repository yourself, set BORG_RELOCATED_REPO_ACCESS_IS_OK=yes once"
            }
            Self::EncryptionChanged { .. } => "the repository may have been replaced by another one",
            Self::SecretGone => {
                "an attacker may have put another key in its place, to read what is written from now on; if you removed the passphrase yourself, remove the file strongroom-secret in Borg's security directory for this repository"
            }
            Self::UnknownUnencrypted => {
                "if this is right, set BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes once"
            }
            Self::ArchiveExists(_) => "choose another name",
            _ => return None,
        })
    }

    /// True if the connection is unusable after this error.
    pub fn is_connection_lost(&self) -> bool {
        matches!(
            self,
            Self::ServerGone { .. } | Self::Cancelled { .. } | Self::Silent { .. } | Self::Protocol(_)
        )
    }

    #[allow(clippy::needless_pass_by_value, reason = "callers read better")]
    pub(crate) fn damaged(object: impl Display, reason: impl Display) -> Self {
        Self::Damaged {
            object: object.to_string(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn file(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

fn display_status(status: Option<&ExitStatus>) -> String {
    status.map(|status| format!(" ({status})")).unwrap_or_default()
}

fn display_tail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A17.
    #[test]
    fn too_many_open_files_is_not_a_missing_borg() {
        let error = |number| Error::Spawn {
            program: "borg".to_owned(),
            source: std::io::Error::from_raw_os_error(number),
        };
        assert_eq!(error(24).hint(), Some(TOO_MANY_FILES));
        assert_eq!(error(2).hint(), Some(NOT_INSTALLED));
    }
}
