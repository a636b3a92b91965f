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
