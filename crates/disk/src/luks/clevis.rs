//! What a Clevis token takes to open its slot.
//!
//! Clevis keeps a JWE (RFC 7516) in the token; its protected header, in base64url, says how the key was wrapped
//! (`clevis-encrypt-tang(1)`, `clevis-encrypt-tpm2(1)`, `clevis-encrypt-sss(1)`). Nothing is decrypted.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::cut;

/// Longest protected header that is looked at, in bytes. Clevis' own has some hundred a share.
const MAX_HEADER: usize = 256 * 1024;
/// Deepest nesting of shares.
const MAX_DEPTH: usize = 4;
/// Most shares of one threshold.
const MAX_SHARES: usize = 32;

/// What it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pin {
    /// A Tang server.
    Tang {
        /// Where it is.
        url: String,
    },
    /// A TPM, which the host emulates for a VM.
    Tpm2 {
        /// The registers it is bound to (`0,7`); empty for none.
        pcrs: String,
    },
    /// So many of these (Shamir's secret sharing).
    Threshold {
        /// How many it takes.
        of: u64,
        /// The shares.
        pins: Vec<Pin>,
    },
    /// Something else, by its name.
    Other(String),
}

impl Pin {
    /// Reads a JWE: an object with `protected`, or the compact form as a text.
    pub(super) fn of_jwe(jwe: &Value) -> Option<Self> {
        Self::nested(jwe, 0)
    }

    fn nested(jwe: &Value, depth: usize) -> Option<Self> {
        let protected = match jwe {
            Value::String(compact) => compact.split('.').next()?,
            object => object.get("protected")?.as_str()?,
        };
        if protected.len() > MAX_HEADER || depth > MAX_DEPTH {
            return None;
        }
        let header = URL_SAFE_NO_PAD.decode(protected.trim_end_matches('=')).ok()?;
        let header: Value = serde_json::from_slice(&header).ok()?;
        let clevis = header.get("clevis")?;
        let text = |pointer: &str| clevis.pointer(pointer).and_then(Value::as_str).map(cut);
        Some(match text("/pin")?.as_str() {
            "tang" => Self::Tang {
                url: text("/tang/url").unwrap_or_default(),
            },
            "tpm2" => Self::Tpm2 {
                pcrs: text("/tpm2/pcr_ids").unwrap_or_default(),
            },
            "sss" => {
                let shares = clevis.pointer("/sss/jwe").and_then(Value::as_array);
                let shares = shares.into_iter().flatten().take(MAX_SHARES);
                Self::Threshold {
                    of: clevis.pointer("/sss/t").and_then(Value::as_u64).unwrap_or(0),
                    pins: shares
                        .map(|share| {
                            Self::nested(share, depth + 1).unwrap_or(Self::Other("unreadable".into()))
                        })
                        .collect(),
                }
            }
            other => Self::Other(other.to_owned()),
        })
    }

    /// Whether the host alone has all that it takes: a TPM that it emulates.
    pub fn host_alone(&self) -> bool {
        match self {
            Self::Tpm2 { .. } => true,
            Self::Threshold { of, pins } => {
                *of == 0 || pins.iter().filter(|pin| pin.host_alone()).count() as u64 >= *of
            }
            Self::Tang { .. } | Self::Other(_) => false,
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tang { url } => write!(out, "tang {url}"),
            Self::Tpm2 { pcrs } if pcrs.is_empty() => write!(out, "tpm2"),
            Self::Tpm2 { pcrs } => write!(out, "tpm2 with PCRs {pcrs}"),
            Self::Threshold { of, pins } => {
                let pins: Vec<String> = pins.iter().map(ToString::to_string).collect();
                write!(out, "{of} of {} ({})", pins.len(), pins.join("; "))
            }
            Self::Other(name) => write!(out, "{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn protected(header: &Value) -> String {
        URL_SAFE_NO_PAD.encode(header.to_string())
    }

    fn tang(url: &str) -> String {
        // The compact form, as Clevis nests it.
        let header = json!({"alg": "ECDH-ES", "clevis": {"pin": "tang", "tang": {"url": url, "adv": {}}}});
        format!("{}..iv.ciphertext.tag", protected(&header))
    }

    #[test]
    fn pins_are_told() {
        let sss = json!({"clevis": {"pin": "sss", "sss": {"t": 2, "p": "…", "jwe": [
            tang("http://a"), tang("http://b"),
            format!("{}.....", protected(&json!({"clevis": {"pin": "tpm2", "tpm2": {"pcr_ids": "7"}}}))),
        ]}}});
        let pin = Pin::of_jwe(&json!({"protected": protected(&sss)})).unwrap();
        assert_eq!(
            pin.to_string(),
            "2 of 3 (tang http://a; tang http://b; tpm2 with PCRs 7)"
        );
        assert!(!pin.host_alone());
        let alone = json!({"clevis": {"pin": "tpm2", "tpm2": {}}});
        assert!(
            Pin::of_jwe(&json!({"protected": protected(&alone)}))
                .unwrap()
                .host_alone()
        );
        assert_eq!(Pin::of_jwe(&json!({"protected": "e30"})), None);
    }

    #[test]
    fn shares_within_shares_end() {
        let mut share = tang("http://deep");
        for _ in 0..20 {
            let header = json!({"clevis": {"pin": "sss", "sss": {"t": 1, "jwe": [share]}}});
            share = format!("{}....", protected(&header));
        }
        let pin = Pin::of_jwe(&Value::String(share)).unwrap();
        assert!(pin.to_string().contains("unreadable"), "{pin}");
    }

    proptest! {
        #[test]
        fn hostile_headers_give_a_pin_or_none(header in "\\PC{0,80}", wrap in any::<bool>()) {
            let protected = if wrap { URL_SAFE_NO_PAD.encode(&header) } else { header };
            let _ = Pin::of_jwe(&json!({"protected": protected}));
        }
    }
}
