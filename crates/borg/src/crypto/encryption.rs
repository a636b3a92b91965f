//! Borg's encryption modes.

use std::fmt;

/// How a repository protects its content; the modes of `borg init --encryption`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encryption {
    /// Neither encrypted nor authenticated.
    None,
    /// AES-256-CTR and HMAC-SHA-256; the key is in the repository, protected by the passphrase.
    Repokey,
    /// As `Repokey`, but with the key in a local file.
    Keyfile,
    /// AES-256-CTR and BLAKE2b; the key is in the repository, protected by the passphrase.
    RepokeyBlake2,
    /// As `RepokeyBlake2`, but with the key in a local file.
    KeyfileBlake2,
    /// Not encrypted, ids are HMAC-SHA-256.
    Authenticated,
    /// Not encrypted, ids are keyed BLAKE2b.
    AuthenticatedBlake2,
}

impl Encryption {
    /// All modes.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Repokey,
        Self::Keyfile,
        Self::RepokeyBlake2,
        Self::KeyfileBlake2,
        Self::Authenticated,
        Self::AuthenticatedBlake2,
    ];

    /// The first byte of each stored object. `0x01` is a retired mode that counts as `repokey`.
    pub(crate) fn from_type_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x00 => Self::Keyfile,
            0x02 => Self::None,
            0x01 | 0x03 => Self::Repokey,
            0x04 => Self::KeyfileBlake2,
            0x05 => Self::RepokeyBlake2,
            0x06 => Self::AuthenticatedBlake2,
            0x07 => Self::Authenticated,
            _ => return None,
        })
    }

    pub(crate) fn type_byte(self) -> u8 {
        match self {
            Self::Keyfile => 0x00,
            Self::None => 0x02,
            Self::Repokey => 0x03,
            Self::KeyfileBlake2 => 0x04,
            Self::RepokeyBlake2 => 0x05,
            Self::AuthenticatedBlake2 => 0x06,
            Self::Authenticated => 0x07,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Keyfile => "keyfile",
            Self::None => "none",
            Self::Repokey => "repokey",
            Self::KeyfileBlake2 => "keyfile-blake2",
            Self::RepokeyBlake2 => "repokey-blake2",
            Self::AuthenticatedBlake2 => "authenticated-blake2",
            Self::Authenticated => "authenticated",
        }
    }

    /// True if ids (and MACs) are BLAKE2b, which is fastest in batches of four.
    pub fn is_blake2(self) -> bool {
        matches!(
            self,
            Self::RepokeyBlake2 | Self::KeyfileBlake2 | Self::AuthenticatedBlake2
        )
    }

    /// True if content is encrypted.
    pub fn is_encrypted(self) -> bool {
        matches!(
            self,
            Self::Repokey | Self::Keyfile | Self::RepokeyBlake2 | Self::KeyfileBlake2
        )
    }

    pub(crate) fn has_key_file(self) -> bool {
        matches!(self, Self::Keyfile | Self::KeyfileBlake2)
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
