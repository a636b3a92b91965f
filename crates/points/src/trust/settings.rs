//! Who signs, whom signatures are believed of, and who remembers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Who signs, and whose signatures are trusted. All of it is OpenSSH's: see `ssh-keygen(1)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signing {
    /// The key to sign with: a private key's file, or the file of a public key whose private part is in an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The identity in `allowed_signers` that has to have signed; any in there if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Whose signatures are trusted: `ssh-keygen`'s file of allowed signers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_signers: Option<PathBuf>,
    /// Keys that are trusted no more: a key revocation list, or public keys one a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_keys: Option<PathBuf>,
}

impl Signing {
    /// Whether it makes sense; if not, why not.
    pub fn check(&self) -> Result<(), String> {
        let files = [
            ("key", &self.key),
            ("allowed_signers", &self.allowed_signers),
            ("revoked_keys", &self.revoked_keys),
        ];
        for (name, path) in files {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(format!("signing.{name}: a path from the root on is needed"));
            }
        }
        if self.allowed_signers.is_none() && (self.revoked_keys.is_some() || self.identity.is_some()) {
            return Err("signing: identity and revoked_keys mean nothing without allowed_signers".into());
        }
        let plain = |identity: &String| {
            !identity.is_empty() && !identity.starts_with('-') && !identity.contains(char::is_whitespace)
        };
        if self.identity.as_ref().is_some_and(|identity| !plain(identity)) {
            return Err("signing.identity: one word, such as backup@host".into());
        }
        Ok(())
    }
}

/// Who remembers the newest restore points: a file, a command, or both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// A file that gets a line of JSON for each restore point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Program and arguments that take such a line on standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Program and arguments that print all lines that `command` got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_command: Option<Vec<String>>,
}

impl Witness {
    /// Whether it makes sense; if not, why not.
    pub fn check(&self) -> Result<(), String> {
        if self.file.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err("witness.file: a path from the root on is needed".into());
        }
        let commands = [&self.command, &self.read_command].into_iter().flatten();
        if commands
            .into_iter()
            .any(|words| words.first().is_none_or(String::is_empty))
        {
            return Err("witness: a command is a list of words, the program first".into());
        }
        if self.file.is_none() && self.command.is_none() && self.read_command.is_none() {
            return Err("witness: name a file or a command".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_signing_that_make_no_sense_are_refused() {
        let good = Signing {
            key: Some("/key".into()),
            identity: Some("backup@host".into()),
            allowed_signers: Some("/signers".into()),
            revoked_keys: Some("/revoked".into()),
        };
        assert_eq!(good.check(), Ok(()));
        assert_eq!(Signing::default().check(), Ok(()));
        let refused = |change: fn(&mut Signing)| {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(bad.check().is_err(), "{bad:?}");
        };
        refused(|bad| bad.key = Some("key".into()));
        refused(|bad| bad.allowed_signers = Some("signers".into()));
        refused(|bad| bad.revoked_keys = Some("revoked".into()));
        refused(|bad| (bad.allowed_signers, bad.identity) = (None, None));
        refused(|bad| (bad.allowed_signers, bad.revoked_keys) = (None, None));
        // What `ssh-keygen` would take for an option, or for more than one word.
        for identity in ["", "-r", "a b", "a\n"] {
            let bad = Signing {
                identity: Some(identity.into()),
                ..good.clone()
            };
            assert!(bad.check().is_err(), "{identity:?}");
        }
    }

    #[test]
    fn a_witness_is_a_file_or_a_command() {
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let none = Witness::default;
        for good in [
            Witness {
                file: Some("/file".into()),
                ..none()
            },
            Witness {
                command: words(&["sh", ""]),
                ..none()
            },
            Witness {
                read_command: words(&["sh"]),
                ..none()
            },
        ] {
            assert_eq!(good.check(), Ok(()));
        }
        for bad in [
            none(),
            Witness {
                file: Some("file".into()),
                ..none()
            },
            Witness {
                command: words(&[]),
                ..none()
            },
            Witness {
                command: words(&["", "word"]),
                ..none()
            },
            Witness {
                read_command: words(&[]),
                command: words(&["sh"]),
                ..none()
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
