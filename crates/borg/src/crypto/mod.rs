//! Borg 1.x keys: object ids, message authentication, encryption, and the authentication of metadata (TAM).

mod blob;
mod cpu;
mod envelope;
mod hash;
mod tam;

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::{ChunkId, Error, Result};

pub use blob::parse_blob;
pub(crate) use envelope::{Blob, HEADROOM, NONCE_OFFSET};
pub use tam::Context;

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

    fn name(self) -> &'static str {
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

impl FromStr for Encryption {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| Error::Setting {
                name: "encryption",
                reason: format!("{text:?} is no mode of Borg 1.x"),
            })
    }
}

/// The secret part of a key.
pub(crate) struct Secrets {
    pub enc: Zeroizing<Vec<u8>>,
    pub mac: Zeroizing<Vec<u8>>,
    pub id: Zeroizing<Vec<u8>>,
}

/// The keys of an open repository.
pub struct Keys {
    encryption: Encryption,
    secrets: Secrets,
    id_hash: hash::Keyed,
    mac: hash::Keyed,
    aes: Zeroizing<[u8; 32]>,
    tam_required: Option<bool>,
}

impl Keys {
    /// The keys of a repository without any.
    pub fn plaintext() -> Self {
        let none = || Zeroizing::new(Vec::new());
        Self {
            encryption: Encryption::None,
            secrets: Secrets {
                enc: none(),
                mac: none(),
                id: none(),
            },
            id_hash: hash::Keyed::Sha256,
            mac: hash::Keyed::Sha256,
            aes: Zeroizing::new([0; 32]),
            tam_required: Some(false),
        }
    }

    pub(crate) fn new(encryption: Encryption, secrets: Secrets, tam_required: Option<bool>) -> Option<Self> {
        Some(Self {
            encryption,
            id_hash: hash::Keyed::new(encryption.is_blake2(), &secrets.id)?,
            mac: hash::Keyed::new(encryption.is_blake2(), &secrets.mac)?,
            aes: Zeroizing::new(secrets.enc.as_slice().try_into().ok()?),
            secrets,
            tam_required,
        })
    }

    /// The mode these keys are for.
    pub fn encryption(&self) -> Encryption {
        self.encryption
    }

    /// Whether the key says that manifests must be authenticated; keys from before Borg 1.0.9 do not say.
    pub(crate) fn tam_required(&self) -> Option<bool> {
        self.tam_required
    }

    /// The id of content.
    pub fn id(&self, data: &[u8]) -> ChunkId {
        ChunkId(self.id_hash.hash(data))
    }

    /// The ids of several contents; faster than one by one for BLAKE2b.
    pub fn ids(&self, data: &[&[u8]]) -> Vec<ChunkId> {
        self.id_hash.hash_many(data).into_iter().map(ChunkId).collect()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("encryption", &self.encryption)
            .finish_non_exhaustive()
    }
}
