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
use crate::opener::Content;
use crate::{ChunkId, Error, Object, Result};

/// Where the nonce of an encrypted object starts.
pub(crate) const NONCE_OFFSET: usize = 33;
/// Where the payload of an encrypted object starts.
const PAYLOAD_OFFSET: usize = NONCE_OFFSET + 8;
/// AES block size, the unit of nonces.
const BLOCK: usize = 16;

/// Bytes that the longest envelope and the compression header take before the content.
pub const HEADROOM: usize = PAYLOAD_OFFSET + 2;

/// A compressed object that waits for its nonces: room for the envelope's head, then the payload.
#[derive(Debug)]
pub struct Plain {
    blob: Vec<u8>,
    /// Where the object starts in `blob`, and where its payload does.
    start: usize,
    payload: usize,
}

impl Plain {
    /// AES blocks to encrypt, which is how many nonces the object uses up.
    pub fn blocks(&self) -> u64 {
        (self.blob.len() - self.payload).div_ceil(BLOCK) as u64
    }
}

/// A finished object, behind bytes that mean nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Blob {
    bytes: Vec<u8>,
    start: usize,
}

impl Blob {
    /// The memory, to be used again.
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
    }
}

impl std::ops::Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

impl Keys {
    /// Compresses the content that a buffer holds behind [`HEADROOM`] bytes of any value.
    ///
    /// What does not get smaller stays where it is, and is encrypted there. Otherwise the buffer is given back too.
    pub fn compress(&self, compression: Compression, buffer: Vec<u8>) -> (Plain, Option<Vec<u8>>) {
        let head = if self.encryption.is_encrypted() {
            PAYLOAD_OFFSET
        } else {
            1
        };
        let content = buffer.get(HEADROOM..).unwrap_or_default();
        let mut blob = Vec::new();
        if compression != Compression::None {
            // Most of it is written to only if the content gets smaller.
            blob.reserve(head + content.len() / 2);
            blob.resize(head, 0);
        }
        let (mut blob, start, spare) = if compress::compress_into(compression, content, &mut blob) {
            (blob, 0, Some(buffer))
        } else {
            let mut buffer = buffer;
            buffer.resize(buffer.len().max(HEADROOM), 0);
            let uncompressed = buffer.iter_mut().take(HEADROOM).skip(PAYLOAD_OFFSET);
            uncompressed.for_each(|byte| *byte = 0);
            (buffer, PAYLOAD_OFFSET - head, None)
        };
        if let Some(first) = blob.get_mut(start) {
            *first = self.encryption.type_byte();
        }
        let payload = start + head;
        let plain = Plain { blob, start, payload };
        (plain, spare)
    }

    /// Encrypts compressed objects, each from its nonce on, and authenticates them. Nonces must never be used again.
    pub(crate) fn seal(&self, plain: Vec<(Plain, u64)>) -> Vec<Blob> {
        let encrypted = self.encryption.is_encrypted();
        let mut blobs: Vec<Blob> = Vec::with_capacity(plain.len());
        for (Plain { mut blob, start, .. }, nonce) in plain {
            if encrypted && let Some((head, payload)) = blob.split_at_mut_checked(PAYLOAD_OFFSET) {
                head.iter_mut()
                    .skip(NONCE_OFFSET)
                    .zip(nonce.to_be_bytes())
                    .for_each(|(to, from)| *to = from);
                self.apply_cipher(nonce, payload);
            }
            blobs.push(Blob { bytes: blob, start });
        }
        if encrypted {
            let parts: Vec<&[u8]> = blobs
                .iter()
                .map(|blob| blob.get(NONCE_OFFSET..).unwrap_or_default())
                .collect();
            let macs = self.mac.hash_many(&parts);
            for (blob, mac) in blobs.iter_mut().zip(macs) {
                let place = blob.bytes.iter_mut().skip(1);
                place.zip(mac).for_each(|(to, from)| *to = from);
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
        let opened = self.open_all(vec![(*id, object.to_vec().into(), expected)]).pop();
        opened
            .unwrap_or_else(|| Err(Error::damaged(describe(id), "it was lost")))
            .map(Content::into_vec)
    }

    /// The same for several objects, which are decrypted where they are; with BLAKE2b faster than one by one.
    pub fn open_all(&self, objects: Vec<(ChunkId, Object, usize)>) -> Vec<Result<Content>> {
        let verified = self.authentic(&objects);
        let opened: Vec<(ChunkId, std::result::Result<Content, &'static str>)> = objects
            .into_iter()
            .zip(verified)
            .map(|((id, object, expected), verified)| {
                (id, verified.and_then(|()| self.decrypt(object, expected)))
            })
            .collect();
        let contents: Vec<&[u8]> = opened
            .iter()
            .filter_map(|(_, content)| content.as_deref().ok())
            .collect();
        let mut ids = self.id_hash.hash_many(&contents).into_iter();
        opened
            .into_iter()
            .map(|(id, content)| {
                let error = |reason| Error::damaged(describe(&id), reason);
                let content = content.map_err(error)?;
                let found = ids.next().unwrap_or_default();
                if id != ChunkId::MANIFEST && !bool::from(found.ct_eq(&id.0)) {
                    return Err(error("its content does not match its id"));
                }
                Ok(content)
            })
            .collect()
    }

    /// Of each object, whether it is of our kind and its authentication code is right.
    fn authentic(&self, objects: &[(ChunkId, Object, usize)]) -> Vec<std::result::Result<(), &'static str>> {
        let mut authenticated: Vec<&[u8]> = Vec::new();
        let mut verified: Vec<std::result::Result<Option<&[u8; 32]>, &'static str>> = Vec::new();
        for (_, object, _) in objects {
            verified.push(match object.split_first() {
                None => Err("it is empty"),
                Some((kind, _)) if Encryption::from_type_byte(*kind) != Some(self.encryption) => {
                    Err("its type is not that of the repository's key")
                }
                Some(_) if !self.encryption.is_encrypted() => Ok(None),
                Some((_, rest)) => match rest.split_first_chunk::<32>() {
                    Some((mac, rest)) if rest.len() >= PAYLOAD_OFFSET - NONCE_OFFSET => {
                        authenticated.push(rest);
                        Ok(Some(mac))
                    }
                    _ => Err("it is too short"),
                },
            });
        }
        let mut macs = self.mac.hash_many(&authenticated).into_iter();
        verified
            .into_iter()
            .map(|stated| match stated? {
                Some(mac) if !bool::from(macs.next().unwrap_or_default().ct_eq(mac)) => {
                    Err("its authentication code does not verify")
                }
                _ => Ok(()),
            })
            .collect()
    }

    /// The content of a verified object.
    fn decrypt(&self, object: Object, expected: usize) -> std::result::Result<Content, &'static str> {
        if !self.encryption.is_encrypted() {
            let payload = object.get(1..).unwrap_or_default();
            return compress::decompress(payload, expected).map(Content::from);
        }
        let mut content = Content::behind(object, PAYLOAD_OFFSET);
        let nonce = content.before::<8>().map_or(0, u64::from_be_bytes);
        self.apply_cipher(nonce, &mut content);
        match content.first_chunk::<2>() {
            Some([0, 0]) if content.len() <= crate::chunk::MAX_PLAIN_SIZE => {
                content.skip(2);
                Ok(content)
            }
            _ => compress::decompress(&content, expected).map(Content::from),
        }
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

    /// Content behind whatever was in the memory before.
    fn buffer(content: &[u8]) -> Vec<u8> {
        [&[0xaa; HEADROOM], content].concat()
    }

    #[test]
    fn objects_are_opened_together_and_each_by_itself() {
        for encryption in Encryption::ALL {
            let keys = keys(encryption);
            let contents: Vec<Vec<u8>> = (0..7u8).map(|n| vec![n; 100 + usize::from(n)]).collect();
            let objects: Vec<(ChunkId, Object, usize)> = contents
                .iter()
                .enumerate()
                .map(|(number, content)| {
                    let compression = [Compression::None, Compression::Lz4][number % 2];
                    let (plain, _) = keys.compress(compression, buffer(content));
                    let mut object = keys.seal(vec![(plain, 100 * number as u64)]).remove(0).to_vec();
                    if number == 3 {
                        *object.last_mut().unwrap() ^= 1;
                    }
                    (keys.id(content), object.into(), content.len())
                })
                .collect();
            for (number, opened) in keys.open_all(objects).into_iter().enumerate() {
                match opened {
                    Ok(content) => assert_eq!(*content, *contents[number]),
                    Err(_) => assert_eq!(number, 3, "{encryption}"),
                }
            }
        }
    }

    #[test]
    fn objects_round_trip_and_every_changed_byte_is_noticed() {
        for encryption in Encryption::ALL {
            let keys = keys(encryption);
            let data = b"some content that is long enough for several blocks of AES".repeat(3);
            let id = keys.id(&data);
            for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
                let (plain, _) = keys.compress(compression, buffer(&data));
                let blob = keys.seal(vec![(plain, 77)]).remove(0).to_vec();
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
                let content = vec![n as u8; 1000 * n as usize];
                (keys.compress(Compression::None, buffer(&content)).0, n * 1000)
            };
            let batch = keys.seal((1..6).map(plain).collect());
            let single: Vec<_> = (1..6).flat_map(|n| keys.seal(vec![plain(n)])).collect();
            assert_eq!(batch, single);
        }
    }

    #[test]
    fn blocks_cover_the_ciphertext() {
        let (plain, _) = keys(Encryption::Repokey).compress(Compression::None, buffer(&[1; 15]));
        assert_eq!(plain.blocks(), 2);
    }
}
