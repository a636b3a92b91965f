//! Tang servers: what they advertise, and the thumbprints by which they are recognised.
//!
//! A Tang server answers `GET /adv` with a JWS (RFC 7515) over a set of public keys (RFC 7517), signed by those of them that
//! can verify. To bind a disk to it, you have to know one of these from elsewhere, by its thumbprint (RFC 7638). Only the
//! thumbprints are told here; whether the keys have signed is checked by Clevis in the throwaway VM.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use strongroom_base::cancel::Cancel;
use strongroom_base::exec::{self, Call, ExecError, Needs};

/// The largest advertisement that is read, in bytes. With ten keys one has 4 KiB.
pub const MAX_ADVERTISEMENT: usize = 48 << 10;
/// How long a server may take.
const TIME: Duration = Duration::from_secs(20);

/// What a server advertises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// As it came.
    pub text: String,
    /// Thumbprints (SHA-256, base64url) of the keys that have signed it, or say so.
    pub thumbprints: Vec<String>,
}

/// Why a server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TangError {
    /// Not the address of one.
    #[error("use {0:?} as a Tang server: http://HOST, http://HOST:PORT or https://… is needed")]
    Url(String),
    /// It was not asked.
    #[error("ask Tang server {url}: {source}")]
    Exec {
        /// Its address.
        url: String,
        /// Why.
        #[source]
        source: ExecError,
    },
    /// The file is not there.
    #[error("read the advertisement {}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It does not answer.
    #[error("reach Tang server {url}: {reason}")]
    Unreachable {
        /// Its address.
        url: String,
        /// The tool's words.
        reason: String,
    },
    /// Its answer is no advertisement.
    #[error("understand what Tang server {url} advertises: {reason}")]
    Answer {
        /// Its address.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// It has not the key that you named.
    #[error("trust Tang server {url}: it has no key {wanted}, only {}", found.join(", "))]
    Unknown {
        /// Its address.
        url: String,
        /// The thumbprint that was asked for.
        wanted: String,
        /// Those that it has.
        found: Vec<String>,
    },
}

/// Checks an address; gives it without a slash at its end.
pub fn url(text: &str) -> Result<String, TangError> {
    let wrong = || TangError::Url(text.to_owned());
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .ok_or_else(wrong)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]/~".contains(c);
    if rest.is_empty() || rest.starts_with(['/', ':', '-']) || text.len() > 255 || !rest.chars().all(plain) {
        return Err(wrong());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Asks a server (by `curl`).
pub fn fetch(url: &str, cancel: &Cancel) -> Result<Advertisement, TangError> {
    let place = format!("{url}/adv");
    let arguments = [
        "--silent",
        "--show-error",
        "--fail",
        "--noproxy",
        "*",
        "--max-time",
        "15",
        "--proto",
        "=http,https",
        "--",
        &place,
    ];
    let output = exec::run(
        &Call {
            program: OsStr::new("curl"),
            needs: Needs::Nothing,
            arguments: arguments.map(OsStr::new).to_vec(),
            input: b"",
            time: TIME,
            limit: MAX_ADVERTISEMENT as u64,
        },
        cancel,
    )
    .map_err(|source| TangError::Exec {
        url: url.to_owned(),
        source,
    })?;
    if !output.status.success() {
        return Err(TangError::Unreachable {
            url: url.to_owned(),
            reason: exec::words(&output),
        });
    }
    understand(&output.out).map_err(|reason| TangError::Answer {
        url: url.to_owned(),
        reason,
    })
}

/// Reads what a server advertises from a file, where this host does not reach it.
pub fn read(url: &str, file: &Path) -> Result<Advertisement, TangError> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|file| file.take(MAX_ADVERTISEMENT as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| TangError::File {
            file: file.to_owned(),
            source,
        })?;
    understand(&bytes).map_err(|reason| TangError::Answer {
        url: url.to_owned(),
        reason,
    })
}

impl Advertisement {
    /// Whether the key that you named is among those that have signed.
    pub fn pin(&self, url: &str, thumbprint: &str) -> Result<(), TangError> {
        if self.thumbprints.iter().any(|found| found == thumbprint) {
            Ok(())
        } else {
            Err(TangError::Unknown {
                url: url.to_owned(),
                wanted: thumbprint.to_owned(),
                found: self.thumbprints.clone(),
            })
        }
    }
}

#[derive(Deserialize)]
struct Jws {
    payload: String,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<BTreeMap<String, Value>>,
}

/// Reads an advertisement. It comes over a network that an attacker may be on.
pub fn understand(bytes: &[u8]) -> Result<Advertisement, &'static str> {
    if bytes.len() > MAX_ADVERTISEMENT {
        return Err("it is too long");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
    let jws: Jws = serde_json::from_str(text).map_err(|_| "it is no JWS")?;
    let payload = BASE64_URL_SAFE_NO_PAD
        .decode(&jws.payload)
        .map_err(|_| "its payload is not base64url")?;
    let set: Keys = serde_json::from_slice(&payload).map_err(|_| "its payload is no set of keys")?;
    let can = |key: &BTreeMap<String, Value>, operation: &str| {
        key.get("key_ops")
            .and_then(Value::as_array)
            .is_some_and(|operations| operations.iter().any(|known| known == operation))
    };
    if !set.keys.iter().any(|key| can(key, "deriveKey")) {
        return Err("it has no key to exchange keys with");
    }
    let thumbprints: Vec<String> = set
        .keys
        .iter()
        .filter(|key| can(key, "verify"))
        .filter_map(thumbprint)
        .collect();
    if thumbprints.is_empty() {
        return Err("it has no key that can have signed it");
    }
    Ok(Advertisement {
        text: text.to_owned(),
        thumbprints,
    })
}

/// The thumbprint of a key: the hash of its required members, in the order of their names, without spaces (RFC 7638,
/// section 3).
fn thumbprint(key: &BTreeMap<String, Value>) -> Option<String> {
    let required: &[&str] = match key.get("kty")?.as_str()? {
        "EC" => &["crv", "kty", "x", "y"],
        "RSA" => &["e", "kty", "n"],
        _ => return None,
    };
    let mut members = serde_json::Map::new();
    for name in required {
        let text = key.get(*name)?.as_str()?;
        members.insert((*name).to_owned(), Value::String(text.to_owned()));
    }
    let bytes = serde_json::to_vec(&members).ok()?;
    Some(BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(bytes)))
}

/// Whether this can be a thumbprint as `tang-show-keys` prints it (SHA-256).
pub fn is_thumbprint(text: &str) -> bool {
    text.len() == 43
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_of_the_standard_s_example() {
        // RFC 7638, section 3.1.
        let key = serde_json::from_str(
            r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#,
        )
        .unwrap();
        assert_eq!(
            thumbprint(&key).unwrap(),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }

    fn advertisement(keys: &str) -> Vec<u8> {
        let payload = BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"keys":[{keys}]}}"#));
        format!(r#"{{"payload":"{payload}","protected":"x","signature":"y"}}"#).into_bytes()
    }

    const SIGNS: &str =
        r#"{"kty":"EC","crv":"P-521","x":"AAA","y":"BBB","alg":"ES512","key_ops":["verify"]}"#;
    const DERIVES: &str =
        r#"{"kty":"EC","crv":"P-521","x":"CCC","y":"DDD","alg":"ECMR","key_ops":["deriveKey"]}"#;

    #[test]
    fn only_keys_that_sign_are_told_by_their_thumbprints() {
        let known = understand(&advertisement(&format!("{SIGNS},{DERIVES}"))).unwrap();
        assert_eq!(known.thumbprints.len(), 1);
        assert!(is_thumbprint(&known.thumbprints[0]));
        known.pin("http://tang", &known.thumbprints[0]).unwrap();
        let wrong = known.pin("http://tang", &"A".repeat(43)).unwrap_err();
        assert!(wrong.to_string().contains(&known.thumbprints[0]), "{wrong}");
    }

    #[test]
    fn what_is_no_advertisement_is_refused() {
        for bad in [
            b"".to_vec(),
            b"<html>".to_vec(),
            b"{}".to_vec(),
            br#"{"payload":"!"}"#.to_vec(),
            br#"{"payload":"e30"}"#.to_vec(),
            advertisement(""),
            advertisement(SIGNS),
            advertisement(DERIVES),
            advertisement(r#"{"kty":"oct","key_ops":["verify","deriveKey"]}"#),
            vec![b' '; MAX_ADVERTISEMENT + 1],
            vec![0xff],
        ] {
            understand(&bad).unwrap_err();
        }
    }

    #[test]
    fn an_address_is_one() {
        assert_eq!(url("http://tang1:7500/").unwrap(), "http://tang1:7500");
        url("https://tang.example.org/one").unwrap();
        url("http://[fd00::1]:80").unwrap();
        for bad in [
            "tang1",
            "ftp://tang1",
            "http://",
            "http:///adv",
            "http://-x",
            "http://a b",
            "http://a\"b",
            "http://a?b",
            "file:///etc/passwd",
        ] {
            url(bad).unwrap_err();
        }
    }
}
