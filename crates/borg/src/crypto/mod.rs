//! Borg 1.x keys: object ids, message authentication, encryption, and the authentication of metadata (TAM).

mod blob;
mod cpu;
mod encryption;
mod envelope;
mod hash;
mod tam;

use std::fmt;

use zeroize::Zeroizing;

use crate::ChunkId;

pub use blob::parse_blob;
pub use encryption::Encryption;
pub(crate) use envelope::{Blob, HEADROOM, NONCE_OFFSET};
pub use tam::Context;

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
