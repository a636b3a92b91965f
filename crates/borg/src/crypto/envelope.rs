//! The envelope of a stored object.
//!
//! Encrypted: type (1), MAC (32), nonce (8, big endian), AES-256-CTR ciphertext; the MAC covers nonce and ciphertext,
//! and the counter block is eight zero bytes followed by the nonce. Otherwise: type (1), payload.
//! The payload is a compression header with compressed data.

use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use subtle::ConstantTimeEq;

use super::{Encryption, Keys};
use crate::compress::{self, Compression};
use crate::{ChunkId, Error, Result};

/// Where the nonce of an encrypted object starts.
pub(crate) const NONCE_OFFSET: usize = 33;
/// Where the payload of an encrypted object starts.
const PAYLOAD_OFFSET: usize = NONCE_OFFSET + 8;
/// AES block size, the unit of nonces.
const BLOCK: usize = 16;

/// A compressed object that waits for its nonces: room for the envelope's head, then the payload.
#[derive(Debug)]
pub struct Plain {
    blob: Vec<u8>,
    head: usize,
}

impl Plain {
    /// AES blocks to encrypt, which is how many nonces the object uses up.
    pub fn blocks(&self) -> u64 {
        (self.blob.len() - self.head).div_ceil(BLOCK) as u64
    }
}

impl Keys {
    /// Compresses an object.
    pub fn compress(&self, compression: Compression, data: &[u8]) -> Plain {
        let head = if self.encryption.is_encrypted() {
            PAYLOAD_OFFSET
        } else {
            1
        };
        let mut blob = Vec::with_capacity(head + 2 + data.len());
        blob.push(self.encryption.type_byte());
        blob.resize(head, 0);
        compress::compress_into(compression, data, &mut blob);
        Plain { blob, head }
    }

    /// Encrypts compressed objects, each from its nonce on, and authenticates them. Nonces must never be used again.
    pub(crate) fn seal(&self, plain: Vec<(Plain, u64)>) -> Vec<Vec<u8>> {
        let encrypted = self.encryption.is_encrypted();
        let mut blobs: Vec<Vec<u8>> = Vec::with_capacity(plain.len());
        for (Plain { mut blob, .. }, nonce) in plain {
            if encrypted && let Some((head, payload)) = blob.split_at_mut_checked(PAYLOAD_OFFSET) {
                head.iter_mut()
                    .skip(NONCE_OFFSET)
                    .zip(nonce.to_be_bytes())
                    .for_each(|(to, from)| *to = from);
                self.apply_cipher(nonce, payload);
            }
            blobs.push(blob);
        }
        if encrypted {
            let parts: Vec<&[u8]> = blobs
                .iter()
                .map(|blob| blob.get(NONCE_OFFSET..).unwrap_or_default())
                .collect();
            let macs = self.mac.hash_many(&parts);
            for (blob, mac) in blobs.iter_mut().zip(macs) {
                blob.iter_mut().skip(1).zip(mac).for_each(|(to, from)| *to = from);
            }
        }
        blobs
    }

    fn apply_cipher(&self, nonce: u64, data: &mut [u8]) {
        let iv = u128::from(nonce).to_be_bytes();
        Ctr128BE::<Aes256>::new((&*self.aes).into(), &iv.into()).apply_keystream(data);
    }

    /// Verifies, decrypts and decompresses an object. Its id is verified except for the manifest, whose id is fixed.
    ///
    /// `expected` is the likely size of the content, or 0.
    pub fn open(&self, id: &ChunkId, object: &[u8], expected: usize) -> Result<Vec<u8>> {
        let error = |reason| Error::damaged(describe(id), reason);
        let type_byte = object.first().copied().ok_or_else(|| error("it is empty"))?;
        if Encryption::from_type_byte(type_byte) != Some(self.encryption) {
            return Err(error("its type is not that of the repository's key"));
        }
        let data = if self.encryption.is_encrypted() {
            let (mac, rest) = object
                .get(1..)
                .and_then(|rest| rest.split_first_chunk::<32>())
                .ok_or_else(|| error("it is too short"))?;
            let (nonce, ciphertext) = rest
                .split_first_chunk::<8>()
                .ok_or_else(|| error("it is too short"))?;
            if !bool::from(self.mac.hash(rest).ct_eq(mac)) {
                return Err(error("its authentication code does not verify"));
            }
            let mut payload = ciphertext.to_vec();
            self.apply_cipher(u64::from_be_bytes(*nonce), &mut payload);
            match payload.first_chunk::<2>() {
                Some([0, 0]) if payload.len() <= crate::chunk::MAX_PLAIN_SIZE => {
                    payload.drain(..2);
                    payload
                }
                _ => compress::decompress(&payload, expected).map_err(error)?,
            }
        } else {
            compress::decompress(object.get(1..).unwrap_or_default(), expected).map_err(error)?
        };
        if *id != ChunkId::MANIFEST && !bool::from(self.id(&data).0.ct_eq(&id.0)) {
            return Err(error("its content does not match its id"));
        }
        Ok(data)
    }
}

fn describe(id: &ChunkId) -> String {
    if *id == ChunkId::MANIFEST {
        "manifest".to_owned()
    } else {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::super::Secrets;
    use super::*;

    fn keys(encryption: Encryption) -> Keys {
        if encryption == Encryption::None {
            return Keys::plaintext();
        }
        let len = if encryption.is_blake2() { 128 } else { 32 };
        let secrets = Secrets {
            enc: Zeroizing::new(vec![1; 32]),
            mac: Zeroizing::new(vec![2; len]),
            id: Zeroizing::new(vec![3; len]),
        };
        Keys::new(encryption, secrets, Some(true)).unwrap()
    }

    #[test]
    fn objects_round_trip_and_every_changed_byte_is_noticed() {
        for encryption in Encryption::ALL {
            let keys = keys(encryption);
            let data = b"some content that is long enough for several blocks of AES".repeat(3);
            let id = keys.id(&data);
            for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
                let plain = keys.compress(compression, &data);
                let blob = keys.seal(vec![(plain, 77)]).remove(0);
                assert_eq!(keys.open(&id, &blob, 0).unwrap(), data);
                for at in 0..blob.len() {
                    let mut changed = blob.clone();
                    changed[at] ^= 0x40;
                    assert!(keys.open(&id, &changed, 0).is_err(), "{encryption} byte {at}");
                }
                for len in 0..blob.len() {
                    assert!(keys.open(&id, &blob[..len], 0).is_err());
                }
            }
        }
    }

    #[test]
    fn batches_equal_single_seals() {
        for encryption in Encryption::ALL {
            let keys = keys(encryption);
            let plain = |n: u64| {
                (
                    keys.compress(Compression::None, &vec![n as u8; 1000 * n as usize]),
                    n * 1000,
                )
            };
            let batch = keys.seal((1..6).map(plain).collect());
            let single: Vec<_> = (1..6).flat_map(|n| keys.seal(vec![plain(n)])).collect();
            assert_eq!(batch, single);
        }
    }

    #[test]
    fn blocks_cover_the_ciphertext() {
        let plain = keys(Encryption::Repokey).compress(Compression::None, &[1; 15]);
        assert_eq!(plain.blocks(), 2);
    }
}
