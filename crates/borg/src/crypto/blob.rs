//! The key blob: a repository's keys under a passphrase.
//!
//! Base64 of a map `{version: 1, algorithm: "sha256", iterations, salt, hash, data}`; `data` is AES-256-CTR (counter from
//! zero) under PBKDF2-HMAC-SHA-256 of the passphrase, `hash` the HMAC-SHA-256 of the plain data, which is a map
//! `{version: 1, repository_id, enc_key, enc_hmac_key, id_key, chunk_seed, tam_required}`.

use aes::Aes256;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Encryption, Keys, Secrets};
use crate::Passphrase;
use crate::msgpack::{Reader, Value};

/// A key blob is about 700 bytes; this is far more.
const MAX_BLOB: usize = 64 * 1024;

/// Borg uses 100,000. More than this is a blob made to keep us busy.
const MAX_ITERATIONS: u64 = 20_000_000;

/// A parsed key blob, still locked.
#[derive(Debug, Clone)]
pub struct KeyBlob {
    iterations: u32,
    salt: Vec<u8>,
    hash: Vec<u8>,
    data: Vec<u8>,
}

/// Why a blob cannot be used; a description.
pub type BlobError = &'static str;

/// Parses the base64 text of a key blob.
pub fn parse_blob(text: &[u8]) -> Result<KeyBlob, BlobError> {
    if text.len() > MAX_BLOB {
        return Err("it is too large");
    }
    let text: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let bytes = STANDARD.decode(text).map_err(|_| "it is not valid base64")?;
    let value = Reader::new(&bytes)
        .value()
        .map_err(|_| "it is not valid msgpack")?;
    if value.get("version").and_then(Value::as_u64) != Some(1) {
        return Err("its version is not supported");
    }
    if value.get("algorithm").and_then(Value::as_str) != Some("sha256") {
        return Err("its algorithm is not supported");
    }
    let raw = |key| value.get(key).and_then(Value::as_raw).map(<[u8]>::to_vec);
    let iterations = value
        .get("iterations")
        .and_then(Value::as_u64)
        .filter(|n| (1..=MAX_ITERATIONS).contains(n));
    Ok(KeyBlob {
        iterations: iterations.ok_or("its number of iterations is out of range")? as u32,
        salt: raw("salt").ok_or("it has no salt")?,
        hash: raw("hash").ok_or("it has no hash")?,
        data: raw("data").ok_or("it has no data")?,
    })
}

impl KeyBlob {
    /// Unlocks the keys; `Ok(None)` if the passphrase is wrong.
    pub(crate) fn unlock(
        &self,
        encryption: Encryption,
        passphrase: &Passphrase,
    ) -> Result<Option<Keys>, BlobError> {
        let mut kek = Zeroizing::new([0; 32]);
        pbkdf2::pbkdf2_hmac::<Sha256>(passphrase.as_bytes(), &self.salt, self.iterations, kek.as_mut());
        let mut data = Zeroizing::new(self.data.clone());
        Ctr128BE::<Aes256>::new((&*kek).into(), &[0; 16].into()).apply_keystream(&mut data);
        let mac = Hmac::<Sha256>::new_from_slice(kek.as_ref()).map_err(|_| "no HMAC")?;
        if mac.chain_update(&*data).verify_slice(&self.hash).is_err() {
            return Ok(None);
        }
        parse_keys(encryption, &data).map(Some)
    }
}

fn parse_keys(encryption: Encryption, data: &[u8]) -> Result<Keys, BlobError> {
    let mut reader = Reader::new(data);
    let mut fields: [Option<Zeroizing<Vec<u8>>>; 3] = [None, None, None];
    let (mut version, mut tam_required) = (0, None);
    let invalid = |_| "its content is not valid msgpack";
    for _ in 0..reader.map_len().map_err(invalid)? {
        let at = match reader.raw().map_err(invalid)? {
            b"version" => {
                version = reader.unsigned().map_err(invalid)?;
                continue;
            }
            b"tam_required" => {
                tam_required = reader.value().map_err(invalid)?.as_bool();
                continue;
            }
            b"enc_key" => 0,
            b"enc_hmac_key" => 1,
            b"id_key" => 2,
            _ => {
                reader.skip().map_err(invalid)?;
                continue;
            }
        };
        if let Some(field) = fields.get_mut(at) {
            *field = Some(Zeroizing::new(reader.raw().map_err(invalid)?.to_vec()));
        }
    }
    let [enc, mac, id] = fields;
    if version != 1 {
        return Err("the version of its content is not supported");
    }
    let (Some(enc), Some(mac), Some(id)) = (enc, mac, id) else {
        return Err("it is incomplete");
    };
    Keys::new(encryption, Secrets { enc, mac, id }, tam_required).ok_or("its keys have a wrong length")
}
