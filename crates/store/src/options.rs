//! How a repository is opened.

use crate::lock::Patience;

/// For what a repository is opened. A process has one handle with a lock at a time, which all its threads share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Reading without a lock: for what cannot be written to, or is known to be at rest.
    Unlocked,
    /// Reading, beside other readers.
    #[default]
    Read,
    /// Writing, alone.
    Write,
}

/// How a repository is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For what.
    pub access: Access,
    /// How long its lock is waited for.
    pub patience: Patience,
    /// Nothing may be freed, even if the repository's own configuration allows it.
    pub append_only: bool,
    /// How many bytes may be stored, instead of what the repository's configuration says.
    pub storage_quota: Option<u64>,
    /// What this host is called in locks; [`crate::host_id`] if it is not given.
    pub host_id: Option<String>,
}

impl Options {
    /// For reading, beside other readers.
    pub fn read() -> Self {
        Self::default()
    }

    /// For writing, alone.
    pub fn write() -> Self {
        Self {
            access: Access::Write,
            ..Self::default()
        }
    }
}
