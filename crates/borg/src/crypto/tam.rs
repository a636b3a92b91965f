//! TAM, the "tertiary authentication mechanism" of manifests and archives.
//!
//! The packed map holds a map `tam` of `type`, `salt` and `hmac`. The HMAC-SHA-512 is made over the packed map with 64
//! zero bytes in place of the HMAC itself; its key is derived with HKDF-SHA-512 from all keys of the repository.

use hkdf::Hkdf;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::Sha512;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Encryption, Keys};
use crate::msgpack::{Reader, Value};
use crate::{Error, Result};

const SUITE: &str = "HKDF_HMAC_SHA512";
const LEN: usize = 64;

/// What a TAM authenticates; it separates the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// The manifest.
    Manifest,
    /// An archive.
    Archive,
}

impl Context {
    fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Archive => "archive",
        }
    }
}

impl Keys {
    fn tam_key(&self, salt: &[u8], context: Context) -> Option<Zeroizing<Vec<u8>>> {
        if self.encryption == Encryption::None {
            return Some(Zeroizing::new([salt, context.name().as_bytes()].concat()));
        }
        let secrets = &self.secrets;
        let material: Zeroizing<Vec<u8>> =
            Zeroizing::new([&**secrets.id, &**secrets.enc, &**secrets.mac].concat());
        let info = format!("borg-metadata-authentication-{}", context.name());
        let mut key = Zeroizing::new(vec![0; LEN]);
        Hkdf::<Sha512>::new(Some(salt), &material)
            .expand(info.as_bytes(), &mut key)
            .ok()?;
        Some(key)
    }

    fn tam_hmac(&self, salt: &[u8], context: Context, parts: [&[u8]; 3]) -> Option<[u8; LEN]> {
        let key = self.tam_key(salt, context)?;
        let mut mac = Hmac::<Sha512>::new_from_slice(&key).ok()?;
        for part in parts {
            mac.update(part);
        }
        Some(mac.finalize().into_bytes().into())
    }

    /// Packs a map with its authentication, all keys sorted.
    pub(crate) fn authenticate(&self, mut map: Value, context: Context, salt: &[u8; LEN]) -> Result<Vec<u8>> {
        let tam = |hmac: &[u8]| {
            Value::map([
                ("type", SUITE.into()),
                ("hmac", hmac.into()),
                ("salt", salt.as_slice().into()),
            ])
        };
        map.set("tam", tam(&[0; LEN]));
        map.sort();
        let hmac = self
            .tam_hmac(salt, context, [&map.pack(), &[], &[]])
            .ok_or_else(|| Error::damaged(context.name(), "it cannot be authenticated"))?;
        map.set("tam", tam(&hmac));
        Ok(map.pack())
    }

    /// Unpacks a map and verifies its authentication, whose absence is an error if it is `required`.
    /// The map is returned without `tam`.
    pub fn verify(&self, data: &[u8], context: Context, required: bool) -> Result<Value> {
        let error = |reason: &str| Error::damaged(context.name(), reason);
        if data.starts_with(&[0xc1; 4]) {
            return Err(Error::Unsupported(
                "a newer Borg, as its manifest says".to_owned(),
            ));
        }
        let mut value = Value::unpack(data).map_err(|e| Error::damaged(context.name(), e))?;
        let Value::Map(pairs) = &mut value else {
            return Err(error("it is no map"));
        };
        let tam = pairs
            .iter()
            .position(|(key, _)| key.as_raw() == Some(b"tam"))
            .map(|at| pairs.remove(at).1);
        let Some(tam) = tam else {
            return if required {
                Err(error("it is not authenticated, but has to be"))
            } else {
                Ok(value)
            };
        };
        if tam.get("type").and_then(Value::as_str) != Some(SUITE) {
            return if required {
                Err(error("its authentication is of unknown type"))
            } else {
                Ok(value)
            };
        }
        let salt = tam
            .get("salt")
            .and_then(Value::as_raw)
            .ok_or_else(|| error("its authentication is incomplete"))?;
        let at = find_hmac(data).ok_or_else(|| error("its authentication is incomplete"))?;
        let (before, rest) = data
            .split_at_checked(at)
            .ok_or_else(|| error("its authentication is incomplete"))?;
        let (hmac, after) = rest
            .split_at_checked(LEN)
            .ok_or_else(|| error("its authentication is incomplete"))?;
        let computed = self.tam_hmac(salt, context, [before, &[0; LEN], after]);
        if computed.is_some_and(|computed| bool::from(computed.ct_eq(hmac))) {
            Ok(value)
        } else {
            Err(error("its authentication does not verify"))
        }
    }
}

/// Position of the 64 bytes under `tam`, `hmac` in a packed map.
fn find_hmac(data: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(data);
    enter(&mut reader, b"tam")?;
    enter(&mut reader, b"hmac")?;
    let hmac = reader.raw().ok()?;
    (hmac.len() == LEN).then(|| data.len() - reader.remaining().len() - LEN)
}

/// Moves into a map, up to the value of `key`.
fn enter(reader: &mut Reader<'_>, key: &[u8]) -> Option<()> {
    for _ in 0..reader.map_len().ok()? {
        if reader.clone().raw().is_ok_and(|found| found == key) {
            return reader.raw().ok().map(drop);
        }
        reader.skip().ok()?;
        reader.skip().ok()?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authentication_round_trips_and_notices_changes() {
        let keys = Keys::plaintext();
        let map = Value::map([("version", 1u64.into()), ("name", "x".into())]);
        let packed = keys
            .authenticate(map.clone(), Context::Archive, &[9; LEN])
            .unwrap();
        assert_eq!(
            keys.verify(&packed, Context::Archive, true).unwrap(),
            Value::map([("version", 1u64.into()), ("name", "x".into())])
        );
        assert!(keys.verify(&packed, Context::Manifest, true).is_err());
        for at in 0..packed.len() {
            let mut changed = packed.clone();
            changed[at] ^= 1;
            assert!(
                keys.verify(&changed, Context::Archive, true).is_err(),
                "byte {at}"
            );
        }
        assert!(keys.verify(&map.pack(), Context::Archive, true).is_err());
        assert_eq!(keys.verify(&map.pack(), Context::Archive, false).unwrap(), map);
    }
}
