//! Why a repository cannot be used.

use std::fmt;

/// What callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no repository.
    NotFound,
    /// It is in an older state than was seen before.
    Replayed,
    /// The connection is gone: nothing more can be asked.
    Lost,
    /// The transaction has failed before.
    Doomed,
    /// What is stored is not what was written.
    Damaged,
    /// An object is not there.
    Missing,
    /// Something is larger than it can be.
    TooLarge,
    /// Something that this version does not know.
    Unsupported,
    /// Something else.
    Other,
}

/// Why a repository cannot be used: what happened, in words that fit "use the repository: …".
#[derive(Debug)]
pub struct StoreError {
    kind: Kind,
    text: String,
    hint: Option<&'static str>,
}

impl StoreError {
    /// An error of this kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            hint: None,
        }
    }

    /// Of a transaction that has failed before.
    pub fn doomed() -> Self {
        Self::new(Kind::Doomed, "the archive was given up after an earlier error")
    }

    /// The same, with advice.
    #[must_use]
    pub fn with_hint(self, hint: Option<&'static str>) -> Self {
        Self { hint, ..self }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        self.hint
    }

    /// Whether nothing more can be asked.
    pub fn is_connection_lost(&self) -> bool {
        self.kind == Kind::Lost
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for StoreError {}

/// What a call of a repository gives.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
