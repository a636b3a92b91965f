//! What is chosen about a repository: where it is, and how what goes into it is protected and compressed.

use std::fmt;
use std::str::FromStr;

use strongroom_borg as client;

use crate::store::StoreError;

/// Bytes that the client's sealer wants before content.
pub const HEADROOM: usize = client::Sealer::HEADROOM;

/// How new chunks are compressed: `none`, `lz4` or `zstd[,LEVEL]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Compression(pub(super) client::Compression);

impl FromStr for Compression {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        Ok(Self(text.parse()?))
    }
}

/// How a repository's content is protected, as in `borg init --encryption`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encryption(pub(super) client::Encryption);

impl Encryption {
    /// What new repositories have: encrypted, with the key in the repository under a passphrase.
    pub const STANDARD: Self = Self(client::Encryption::RepokeyBlake2);

    /// Whether the key is in the repository, under a passphrase.
    pub fn has_key_inside(self) -> bool {
        matches!(
            self.0,
            client::Encryption::Repokey | client::Encryption::RepokeyBlake2
        )
    }

    /// For each algorithm that content goes through, the fastest instructions that the processor has for it.
    pub fn instructions(self) -> Vec<String> {
        self.0.instructions()
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Encryption {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        Ok(Self(text.parse()?))
    }
}

/// Where a repository is.
#[derive(Clone, Debug)]
pub struct Location(client::Location);

impl Location {
    /// Whether it depends on where the program is started, or by whom.
    pub fn is_relative(&self) -> bool {
        self.0.is_relative()
    }

    /// One text for one place, however it is written.
    pub fn canonical(&self) -> String {
        self.0.canonical()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Location {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        Ok(Self(text.parse()?))
    }
}

/// A passphrase. Its memory is wiped.
#[derive(Clone)]
pub struct Passphrase(pub(super) client::Passphrase);

impl Passphrase {
    /// Takes a text over.
    pub fn new(text: String) -> Self {
        Self(client::Passphrase::new(text))
    }
}
