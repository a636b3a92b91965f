//! The two keyed hashes of Borg 1.x, and plain SHA-256 for repositories without keys.

use blake2b_simd::{Params, State, many};
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// A hash with its key already worked in.
pub(super) enum Keyed {
    Sha256,
    Hmac(Box<Hmac<Sha256>>),
    /// BLAKE2b-256 over key and data; the key is a prefix, not BLAKE2's own key parameter.
    Blake2(Box<State>),
}

impl Keyed {
    /// Keys are 32 bytes for HMAC and 128 bytes for BLAKE2b.
    pub fn new(blake2: bool, key: &[u8]) -> Option<Self> {
        if blake2 {
            let mut state = Params::new().hash_length(32).to_state();
            state.update(key);
            (key.len() == 128).then(|| Self::Blake2(Box::new(state)))
        } else {
            let mac = Hmac::new_from_slice(key).ok()?;
            (key.len() == 32).then(|| Self::Hmac(Box::new(mac)))
        }
    }

    pub fn hash(&self, data: &[u8]) -> [u8; 32] {
        match self {
            Self::Sha256 => Sha256::digest(data).into(),
            Self::Hmac(mac) => mac
                .as_ref()
                .clone()
                .chain_update(data)
                .finalize()
                .into_bytes()
                .into(),
            Self::Blake2(state) => to_array(&state.as_ref().clone().update(data).finalize()),
        }
    }

    /// Hashes several inputs at once in SIMD lanes where the hash can.
    pub fn hash_many(&self, data: &[&[u8]]) -> Vec<[u8; 32]> {
        match self {
            Self::Blake2(state) if data.len() > 1 => {
                let mut states = vec![state.as_ref().clone(); data.len()];
                many::update_many(states.iter_mut().zip(data));
                states.iter().map(|state| to_array(&state.finalize())).collect()
            }
            _ => data.iter().map(|data| self.hash(data)).collect(),
        }
    }
}

fn to_array(hash: &blake2b_simd::Hash) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lanes_agree_with_single_hashes(inputs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..9)) {
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            for keyed in [Keyed::Sha256, Keyed::new(false, &[7; 32]).unwrap(), Keyed::new(true, &[7; 128]).unwrap()] {
                let single: Vec<_> = inputs.iter().map(|data| keyed.hash(data)).collect();
                prop_assert_eq!(keyed.hash_many(&inputs), single);
            }
        }
    }

    #[test]
    fn the_blake2_key_is_a_prefix() {
        let keyed = Keyed::new(true, &[3; 128]).unwrap().hash(b"data");
        let whole = Params::new()
            .hash_length(32)
            .hash(&[&[3; 128][..], b"data"].concat());
        assert_eq!(&keyed[..], whole.as_bytes());
        assert!(Keyed::new(true, &[0; 32]).is_none() && Keyed::new(false, &[0; 128]).is_none());
    }
}
