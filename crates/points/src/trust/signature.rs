//! Signatures in OpenSSH's format (SSHSIG), made and verified by `ssh-keygen -Y`: agents, hardware keys and certificates
//! work, and everybody has the verifier already. Nothing of a signature is parsed here.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use strongroom_base::cancel::Cancel;
use strongroom_base::exec::{self, Call, ExecError, Needs, Output};

use super::settings::Signing;

/// What a manifest's signature is made for: it stands for nothing else, and no other signature stands for it.
pub const NAMESPACE: &str = "strongroom-manifest@v1";

/// What signs and verifies.
const PROGRAM: &str = "ssh-keygen";

/// The largest signature that is looked at, in bytes. Those of 16384-bit RSA keys have 6 KiB.
pub const MAX_BYTES: u64 = 64 << 10;

/// How long signing may take: you may have to type a passphrase or touch a token.
const SIGN_TIME: Duration = Duration::from_mins(5);
/// How long verifying may take.
const VERIFY_TIME: Duration = Duration::from_mins(1);
/// What `ssh-keygen` may say.
const WORDS: u64 = 1 << 20;
/// How many identities in `allowed_signers` are tried for one signature.
const MAX_PRINCIPALS: usize = 64;

/// Why nothing could be signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// `ssh-keygen` did not run.
    #[error("sign: {0}")]
    Exec(#[from] ExecError),
    /// `ssh-keygen` refused.
    #[error("sign with {}: {words}", key.display())]
    Refused {
        /// The key.
        key: PathBuf,
        /// The tool's words.
        words: String,
    },
    /// Whom to trust cannot be read.
    #[error("read who is trusted in {}: {source}", file.display())]
    Signers {
        /// The file of allowed signers.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// What was made would not be accepted when it is verified.
    #[error("sign with {}: {source}; the restore point could never be verified", key.display())]
    Useless {
        /// The key.
        key: PathBuf,
        /// Why.
        source: Untrusted,
    },
}

/// Why a signature does not make its content trusted.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// There is none.
    #[error("it is not signed")]
    Missing,
    /// Larger than a signature can be.
    #[error("its signature has {0} bytes, at most {MAX_BYTES} are expected")]
    TooLarge(u64),
    /// The configuration does not say whom to trust.
    #[error("no key is trusted: the configuration names no [signing] allowed_signers")]
    NoSigners,
    /// Unknown signer, other content, other namespace, expired or revoked key.
    #[error("its signature is not accepted: {0}")]
    Rejected(String),
    /// It could not be looked at. Nothing is trusted then.
    #[error("its signature cannot be verified: {0}")]
    Exec(#[from] ExecError),
    /// A temporary file could not be made. Nothing is trusted then.
    #[error("its signature cannot be verified: {0}")]
    Io(#[from] std::io::Error),
}

/// Who vouches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signer {
    /// The identity in `allowed_signers`.
    pub identity: String,
    /// The key as `ssh-keygen` tells it (`ED25519 key SHA256:…`).
    pub key: String,
}

/// What is signed to see whether it can be: no manifest, and nothing that is read as one.
const TRIAL: &[u8] = b"a trial of the key\n";

/// Whether signatures can be made and verified as it is configured, seen by making one. Nothing of it is kept.
pub fn check_key(signing: &Signing, cancel: &Cancel) -> Result<(), SigningError> {
    if let Some(key) = &signing.key {
        return sign(signing, key, NAMESPACE, TRIAL, Timestamp::now(), cancel).map(drop);
    }
    exec::find(OsStr::new(PROGRAM)).map_err(|source| {
        SigningError::Exec(ExecError::Spawn {
            program: PROGRAM.to_owned(),
            source,
        })
    })?;
    let Some(file) = &signing.allowed_signers else {
        return Ok(());
    };
    std::fs::File::open(file)
        .map(drop)
        .map_err(|source| SigningError::Signers {
            file: file.clone(),
            source,
        })
}

/// Signs content; returns the armored signature. With `allowed_signers` configured, the signature is verified at once: one
/// that will not be accepted is no signature.
pub fn sign(
    signing: &Signing,
    key: &Path,
    namespace: &str,
    content: &[u8],
    at: Timestamp,
    cancel: &Cancel,
) -> Result<Vec<u8>, SigningError> {
    let output = ssh_keygen(
        &["-Y", "sign", "-q", "-n", namespace, "-f"].map(OsStr::new),
        &[key.as_os_str()],
        content,
        SIGN_TIME,
        cancel,
    )?;
    if !output.status.success() || output.out.is_empty() {
        return Err(SigningError::Refused {
            key: key.to_owned(),
            words: exec::words(&output),
        });
    }
    if signing.allowed_signers.is_some() {
        check(signing, namespace, Some(&output.out), content, at, cancel).map_err(|source| {
            SigningError::Useless {
                key: key.to_owned(),
                source,
            }
        })?;
    }
    Ok(output.out)
}

/// Verifies a signature as of the time `at` (of the content, so that restore points outlive their keys): by the
/// configured identity, or by any in `allowed_signers`; `revoked_keys` go first.
pub fn check(
    signing: &Signing,
    namespace: &str,
    signature: Option<&[u8]>,
    content: &[u8],
    at: Timestamp,
    cancel: &Cancel,
) -> Result<Signer, Untrusted> {
    let signers = signing.allowed_signers.as_deref().ok_or(Untrusted::NoSigners)?;
    let signature = signature.ok_or(Untrusted::Missing)?;
    if signature.len() as u64 > MAX_BYTES {
        return Err(Untrusted::TooLarge(signature.len() as u64));
    }
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(signature)?;
    let time = OsString::from(format!("verify-time={}", at.strftime("%Y%m%d%H%M%SZ")));
    let common: Vec<&OsStr> = vec![
        OsStr::new("-f"),
        signers.as_os_str(),
        OsStr::new("-s"),
        file.path().as_os_str(),
        OsStr::new("-O"),
        &time,
    ];
    let identities = match &signing.identity {
        Some(identity) => vec![identity.clone()],
        None => principals(&common, cancel)?,
    };
    let mut words = String::from("no identity in allowed_signers has its key");
    for identity in identities {
        let mut rest = common.clone();
        rest.extend(["-n", namespace, "-I", &identity].map(OsStr::new));
        if let Some(revoked) = &signing.revoked_keys {
            rest.extend([OsStr::new("-r"), revoked.as_os_str()]);
        }
        let output = ssh_keygen(
            &["-Y", "verify"].map(OsStr::new),
            &rest,
            content,
            VERIFY_TIME,
            cancel,
        )?;
        if output.status.success() {
            let said = String::from_utf8_lossy(&output.out);
            let key = said.trim().rsplit_once(" with ").map_or("", |(_, key)| key);
            return Ok(Signer {
                identity,
                key: key.to_owned(),
            });
        }
        words = exec::words(&output);
    }
    Err(Untrusted::Rejected(words))
}

/// The identities whose key made a signature. Which of them may be believed is told by verifying.
fn principals(common: &[&OsStr], cancel: &Cancel) -> Result<Vec<String>, Untrusted> {
    let output = ssh_keygen(
        &["-Y", "find-principals"].map(OsStr::new),
        common,
        b"",
        VERIFY_TIME,
        cancel,
    )?;
    if !output.status.success() {
        return Err(Untrusted::Rejected(exec::words(&output)));
    }
    Ok(listed(&String::from_utf8_lossy(&output.out)))
}

/// The identities in a list of lines and commas: each once, and not more than can be tried.
fn listed(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in text.split(['\n', ',']).map(str::trim) {
        if !name.is_empty() && found.len() < MAX_PRINCIPALS && !found.iter().any(|known| known == name) {
            found.push(name.to_owned());
        }
    }
    found
}

fn ssh_keygen(
    first: &[&OsStr],
    rest: &[&OsStr],
    input: &[u8],
    time: Duration,
    cancel: &Cancel,
) -> Result<Output, ExecError> {
    let call = Call {
        program: OsStr::new(PROGRAM),
        needs: Needs::Keys,
        arguments: first.iter().chain(rest).copied().collect(),
        input,
        time,
        limit: WORDS,
    };
    exec::run(&call, cancel)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &[u8] = b"{\"format\":1}\n";

    /// Two keys and a file of allowed signers.
    struct Keys {
        directory: tempfile::TempDir,
        signing: Signing,
    }

    impl Keys {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            for name in ["one", "two"] {
                strongroom_testkit::ssh_keygen(&directory.path().join(name), name);
            }
            let mut keys = Self {
                signing: Signing {
                    allowed_signers: Some(directory.path().join("allowed")),
                    ..Signing::default()
                },
                directory,
            };
            keys.allow(&[("me@host", "", "one")]);
            keys.signing.key = Some(keys.path("one"));
            keys
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn allow(&self, signers: &[(&str, &str, &str)]) {
            let line = |(identity, options, key): &(&str, &str, &str)| {
                let public = std::fs::read_to_string(self.path(&format!("{key}.pub"))).unwrap();
                format!("{identity} {options} {public}")
            };
            let text: String = signers.iter().map(line).collect();
            std::fs::write(self.path("allowed"), text).unwrap();
        }

        /// Signs without a look at who is allowed.
        fn sign(&self, key: &str, namespace: &str) -> Vec<u8> {
            let at = Timestamp::now();
            let key = self.path(key);
            sign(&Signing::default(), &key, namespace, CONTENT, at, &Cancel::new()).unwrap()
        }

        fn check(&self, signature: &[u8], content: &[u8], at: &str) -> Result<Signer, Untrusted> {
            let at = at.parse().unwrap();
            check(
                &self.signing,
                NAMESPACE,
                Some(signature),
                content,
                at,
                &Cancel::new(),
            )
        }
    }

    const NOW: &str = "2026-11-23T12:00:00Z";

    #[test]
    fn a_trusted_signature_names_its_signer() {
        let mut keys = Keys::new();
        let signature = keys.sign("one", NAMESPACE);
        let signer = keys.check(&signature, CONTENT, NOW).unwrap();
        assert_eq!(signer.identity, "me@host");
        assert!(signer.key.starts_with("ED25519 key SHA256:"), "{signer:?}");
        keys.signing.identity = Some("me@host".into());
        keys.check(&signature, CONTENT, NOW).unwrap();
        keys.signing.identity = Some("you@host".into());
        keys.check(&signature, CONTENT, NOW).unwrap_err();
    }

    #[test]
    fn everything_else_is_a_failure() {
        let mut keys = Keys::new();
        let good = keys.sign("one", NAMESPACE);
        let fails = |keys: &Keys, signature: &[u8], why: &str| {
            let error = keys.check(signature, CONTENT, NOW).unwrap_err();
            assert!(matches!(error, Untrusted::Rejected(_)), "{why}: {error}");
        };
        fails(&keys, &keys.sign("two", NAMESPACE), "an unknown signer");
        fails(
            &keys,
            &keys.sign("one", "strongroom-template@v1"),
            "another namespace",
        );
        fails(&keys, &keys.sign("one", "file"), "another namespace");
        keys.check(&good, b"{\"format\":2}\n", NOW).unwrap_err();
        // Cut short, or with any byte changed.
        for cut in [0, 1, 40, good.len() / 2, good.len() - 20] {
            fails(&keys, &good[..cut], "cut short");
        }
        for at in (30..good.len() - 30).step_by(7) {
            let mut bad = good.clone();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            if bad != good {
                fails(&keys, &bad, "altered");
            }
        }
        // Trusted for something else only, expired, not valid yet.
        for options in [
            "namespaces=\"git\"",
            "valid-before=\"20261101Z\"",
            "valid-after=\"20261201Z\"",
        ] {
            keys.allow(&[("me@host", options, "one")]);
            fails(&keys, &good, options);
        }
        keys.allow(&[("me@host", "namespaces=\"strongroom-*\"", "one")]);
        keys.check(&good, CONTENT, NOW).unwrap();
        // No list at all, or none that can be read.
        keys.signing.allowed_signers = Some(keys.path("absent"));
        fails(&keys, &good, "no file");
        keys.signing.allowed_signers = None;
        assert!(matches!(
            keys.check(&good, CONTENT, NOW),
            Err(Untrusted::NoSigners)
        ));
        let keys = Keys::new();
        let none = check(
            &keys.signing,
            NAMESPACE,
            None,
            CONTENT,
            NOW.parse().unwrap(),
            &Cancel::new(),
        );
        assert!(matches!(none, Err(Untrusted::Missing)));
        fails(&keys, &vec![b'A'; MAX_BYTES as usize], "as large as can be");
        let huge = vec![b'A'; MAX_BYTES as usize + 1];
        assert!(matches!(
            keys.check(&huge, CONTENT, NOW),
            Err(Untrusted::TooLarge(_))
        ));
    }

    #[test]
    fn a_revoked_key_is_out_whenever_it_signed() {
        let mut keys = Keys::new();
        let good = keys.sign("one", NAMESPACE);
        keys.signing.revoked_keys = Some(keys.path("revoked"));
        // A file that is configured and cannot be read trusts no key.
        keys.check(&good, CONTENT, NOW).unwrap_err();
        std::fs::write(keys.path("revoked"), "").unwrap();
        keys.check(&good, CONTENT, NOW).unwrap();
        std::fs::copy(keys.path("one.pub"), keys.path("revoked")).unwrap();
        keys.check(&good, CONTENT, NOW).unwrap_err();
    }

    #[test]
    fn keys_are_rotated_without_losing_what_the_old_one_signed() {
        let keys = Keys::new();
        let (old, new) = (keys.sign("one", NAMESPACE), keys.sign("two", NAMESPACE));
        keys.allow(&[
            ("me@host", "valid-before=\"20261201Z\"", "one"),
            ("me@host", "valid-after=\"20261201Z\"", "two"),
        ]);
        keys.check(&old, CONTENT, "2026-11-30T23:59:59Z").unwrap();
        keys.check(&new, CONTENT, "2026-12-01T00:00:01Z").unwrap();
        keys.check(&old, CONTENT, "2026-12-02T00:00:00Z").unwrap_err();
        keys.check(&new, CONTENT, "2026-11-30T00:00:00Z").unwrap_err();
    }

    /// K7.
    #[test]
    fn a_key_that_cannot_sign_is_known_before() {
        let mut keys = Keys::new();
        let says = |signing: &Signing| check_key(signing, &Cancel::new());
        says(&keys.signing).unwrap();
        let protected = keys.path("protected");
        strongroom_testkit::ssh_keygen(&protected, "protected");
        let mut keygen = std::process::Command::new(PROGRAM);
        keygen
            .args(["-q", "-p", "-P", "", "-N", "a passphrase", "-f"])
            .arg(&protected);
        strongroom_testkit::run(&mut keygen);
        for (key, word) in [
            (keys.path("absent"), "No such file"),
            (keys.path("two"), "could never be verified"),
            (protected, "passphrase"),
        ] {
            keys.signing.key = Some(key);
            let error = says(&keys.signing).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        // Who only verifies needs the list.
        keys.signing.key = None;
        says(&keys.signing).unwrap();
        std::fs::remove_file(keys.path("allowed")).unwrap();
        assert!(matches!(says(&keys.signing), Err(SigningError::Signers { .. })));
    }

    #[test]
    fn a_signature_that_nobody_accepts_is_not_made() {
        let mut keys = Keys::new();
        let now = Timestamp::now();
        let make = |keys: &Keys, key: &str| {
            sign(
                &keys.signing,
                &keys.path(key),
                NAMESPACE,
                CONTENT,
                now,
                &Cancel::new(),
            )
        };
        make(&keys, "one").unwrap();
        assert!(matches!(make(&keys, "two"), Err(SigningError::Useless { .. })));
        assert!(matches!(make(&keys, "absent"), Err(SigningError::Refused { .. })));
        keys.signing.allowed_signers = None;
        make(&keys, "two").unwrap();
    }

    #[test]
    fn each_identity_is_tried_once_and_not_too_many() {
        assert_eq!(
            listed("a@host,b@host\na@host, c@host\n\n"),
            ["a@host", "b@host", "c@host"]
        );
        assert_eq!(listed("\n"), [""; 0]);
        let many: Vec<String> = (0..=MAX_PRINCIPALS).map(|number| number.to_string()).collect();
        assert_eq!(listed(&many.join("\n")), many[..MAX_PRINCIPALS]);
    }
}
