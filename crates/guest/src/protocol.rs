//! What the host and the throwaway VM say to each other: JSON, one value a line, over a serial port.
//!
//! The VM begins with [`Message::Hello`]. The host answers with one [`Order`], and from then on only listens: [`Message::Step`],
//! [`Message::Progress`] and [`Message::Alive`] come and go, [`Message::Done`] or [`Message::Failed`] is the last word. Both sides refuse
//! another version. The host believes nothing: lines are bounded, a word out of its turn is an error ([`Listener`]), and
//! [`Report::check`] looks at every byte before any other code does.

use serde::{Deserialize, Serialize};

/// The version of this protocol. Host and appliance must have the same.
pub const VERSION: u32 = 1;

/// The longest line, in bytes, without its end.
pub const MAX_LINE: usize = 128 << 10;

/// The longest text about a failure that is kept, in bytes.
pub const MAX_TEXT: usize = 1024;

/// The largest ciphertext of a recovery secret, in bytes. One for a 16384-bit RSA key has 4 KiB.
pub const MAX_CIPHERTEXT: usize = 16 << 10;

/// The name of the virtio-serial port on which the protocol is spoken.
pub const PORT: &str = "org.strongroom.provision";

/// Where a machine that makes backups has the key that it signs with, from the root on, and whose signatures it trusts.
pub const SIGNING_KEY: &str = "etc/strongroom/signing";
/// See [`SIGNING_KEY`].
pub const ALLOWED_SIGNERS: &str = "etc/strongroom/allowed_signers";
/// The name of the port on which a passphrase is typed.
pub const PASSPHRASE_PORT: &str = "org.strongroom.passphrase";

/// Serial numbers of the disks.
pub const TEMPLATE_DISK: &str = "template";
/// The blank system disk's serial number.
pub const SYSTEM_DISK: &str = "system";
/// The blank swap disk's serial number. A disk whose serial number starts with `swap` is never backed up.
pub const SWAP_DISK: &str = "swap";

/// Type of the LUKS2 token (LUKS2 On-Disk Format Specification 1.1, section 3.4) that names the recovery secret's slot.
pub const RECOVERY_TOKEN: &str = "strongroom-recovery";

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// [`VERSION`].
    pub version: u32,
    /// Host name of the new machine.
    pub hostname: String,
    /// Whether there is a swap disk.
    pub swap: bool,
    /// Whether discards pass through the encryption.
    pub discard: bool,
    /// How keys are derived from passphrases. Forced: what a machine can do in some time must not set it.
    pub kdf: Kdf,
    /// What opens the disk at boot.
    pub unlock: Unlock,
    /// To whom the recovery secret is encrypted: an age recipient or an SSH public key. Without one none is made.
    pub recovery: Option<String>,
    /// SSH public keys that may log in as root.
    pub authorized_keys: Vec<String>,
    /// What a machine gets that makes backups. Programs of this version that do not know it take orders without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups: Option<Backups>,
}

/// What a machine is told that makes backups. Nothing of it is secret; its keys it makes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backups {
    /// `/etc/strongroom/strongroom.toml`.
    pub configuration: String,
    /// `/root/.ssh/known_hosts`: the keys of the hosts that it talks to.
    pub known_hosts: String,
}

/// Parameters of Argon2id (RFC 9106).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kdf {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory; cryptsetup takes 4 and more.
    pub iterations: u32,
    /// Lanes; cryptsetup takes 1 to 4.
    pub parallel: u32,
}

/// What opens the disk at boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Unlock {
    /// A passphrase that comes in on [`PASSPHRASE_PORT`].
    Passphrase {
        /// You type it: it is asked for, twice. Otherwise one line is read.
        asked: bool,
    },
    /// Tang servers.
    Tang {
        /// How many of them are needed.
        threshold: u8,
        /// All of them.
        servers: Vec<Tang>,
    },
}

/// A Tang server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tang {
    /// Where it is, as the new machine will reach it.
    pub url: String,
    /// The thumbprint of a key that has to have signed the advertisement (RFC 7638, SHA-256, base64url).
    pub thumbprint: String,
    /// What it advertises: a JWS (RFC 7515) over its public keys. Checked inside, against the thumbprint.
    pub advertisement: String,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The system starts.
    Start,
    /// A passphrase is asked for.
    Passphrase,
    /// The disks are divided.
    Partition,
    /// The LUKS2 volume is made.
    Encrypt,
    /// The recovery secret is made and encrypted.
    Recovery,
    /// The volume is bound to Tang.
    Bind,
    /// The template is copied.
    Copy,
    /// Name, keys and tables of the new machine are written.
    Configure,
    /// The boot loaders are installed.
    Loader,
    /// Unused space is given back, everything is closed, and what opens the volume is tried.
    Finish,
}

/// What the throwaway VM says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// It is there.
    Hello {
        /// Its [`VERSION`].
        version: u32,
    },
    /// A step begins.
    Step(Step),
    /// So far has the step come.
    Progress {
        /// Bytes done.
        done: u64,
        /// Bytes to do.
        total: u64,
    },
    /// It still works. Said every few seconds.
    Alive,
    /// Everything is done and closed.
    Done(Report),
    /// It is given up.
    Failed {
        /// What was being done.
        step: Step,
        /// What went wrong.
        message: String,
    },
}

/// What the host gets to know: nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// UUID of the LUKS2 volume.
    pub luks_uuid: String,
    /// The recovery secret, encrypted by age, armored.
    pub recovery: Option<String>,
    /// The SSH host key's public part, as in a `.pub` file.
    pub ssh_host_key: String,
    /// Its fingerprint, as `ssh-keygen -l` prints it (`SHA256:…`).
    pub ssh_fingerprint: String,
    /// What a machine has made for itself that makes backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups: Option<BackupKeys>,
}

/// The public side of what a machine has made that makes backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupKeys {
    /// Public part of the SSH key by which it reaches the hypervisor and the repositories, as in a `.pub` file.
    pub ssh_key: String,
    /// Public part of the SSH key by which it signs restore points.
    #[serde(default)]
    pub signing_key: String,
    /// The passphrase of the repositories, encrypted by age to whom the recovery secret is encrypted, armored.
    pub passphrase: String,
}

/// Why what was said is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A line that does not end.
    #[error("it says more than {MAX_LINE} bytes in one line")]
    TooLong,
    /// Not one of the words.
    #[error("it says something that is not understood")]
    Unknown,
    /// Another version.
    #[error(
        "it speaks version {0} of the protocol and this program version {VERSION}: build the template anew"
    )]
    Version(u32),
    /// A word at the wrong time.
    #[error("it speaks out of turn")]
    Turn,
    /// A report that cannot be true.
    #[error("its report is invalid: {0}")]
    Report(&'static str),
}

impl Report {
    /// Whether this can be a report about what was ordered.
    pub fn check(&self, with_recovery: bool, with_backups: bool) -> Result<(), ProtocolError> {
        let plausible = |good: bool, what| {
            if good {
                Ok(())
            } else {
                Err(ProtocolError::Report(what))
            }
        };
        let is_base64 = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
        };
        let uuid = self.luks_uuid.as_bytes();
        plausible(
            uuid.len() == 36
                && uuid.iter().enumerate().all(|(at, byte)| match at {
                    8 | 13 | 18 | 23 => *byte == b'-',
                    _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
                }),
            "the LUKS UUID",
        )?;
        let is_key = |text: &str| {
            text.split_once(' ').is_some_and(|(kind, key)| {
                kind == "ssh-ed25519" && (1..=200).contains(&key.len()) && is_base64(key)
            })
        };
        let is_ciphertext = |text: &str| {
            let body = text
                .strip_prefix("-----BEGIN AGE ENCRYPTED FILE-----\n")
                .and_then(|rest| rest.strip_suffix("-----END AGE ENCRYPTED FILE-----\n"));
            text.len() <= MAX_CIPHERTEXT
                && body.is_some_and(|body| !body.is_empty() && body.lines().all(is_base64))
        };
        plausible(is_key(&self.ssh_host_key), "the SSH host key")?;
        plausible(
            self.ssh_fingerprint
                .strip_prefix("SHA256:")
                .is_some_and(|hash| hash.len() == 43 && is_base64(hash)),
            "the SSH fingerprint",
        )?;
        plausible(self.recovery.is_some() == with_recovery, "the recovery secret")?;
        plausible(
            self.recovery.as_deref().is_none_or(is_ciphertext),
            "the encrypted recovery secret",
        )?;
        plausible(self.backups.is_some() == with_backups, "the keys for backups")?;
        let keys = self.backups.as_ref();
        plausible(
            keys.is_none_or(|keys| {
                is_key(&keys.ssh_key) && is_key(&keys.signing_key) && is_ciphertext(&keys.passphrase)
            }),
            "the keys for backups",
        )
    }
}

/// Turns bytes from the throwaway VM into words, in their order, within bounds.
#[derive(Debug, Default)]
pub struct Listener {
    line: Vec<u8>,
    greeted: bool,
    over: bool,
}

impl Listener {
    /// Takes bytes; returns the messages that they complete. After an error nothing more is to be heard.
    pub fn hear(&mut self, bytes: &[u8]) -> Result<Vec<Message>, ProtocolError> {
        let mut words = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() == MAX_LINE {
                    return Err(ProtocolError::TooLong);
                }
                self.line.push(*byte);
                continue;
            }
            let word = serde_json::from_slice(&self.line).map_err(|_| ProtocolError::Unknown);
            self.line.clear();
            words.push(self.in_turn(word?)?);
        }
        Ok(words)
    }

    fn in_turn(&mut self, word: Message) -> Result<Message, ProtocolError> {
        match &word {
            _ if self.over => return Err(ProtocolError::Turn),
            Message::Hello { version } if *version != VERSION => {
                return Err(ProtocolError::Version(*version));
            }
            Message::Hello { .. } if self.greeted => return Err(ProtocolError::Turn),
            Message::Hello { .. } => self.greeted = true,
            // It may fail before it can greet.
            Message::Failed { .. } => self.over = true,
            _ if !self.greeted => return Err(ProtocolError::Turn),
            Message::Done(_) => self.over = true,
            Message::Step(_) | Message::Progress { .. } | Message::Alive => {}
        }
        Ok(match word {
            Message::Failed { step, message } => Message::Failed {
                step,
                message: printable(&message),
            },
            word => word,
        })
    }
}

/// A text from the other side as it may be shown: short, and without anything that moves a cursor.
pub fn printable(text: &str) -> String {
    let mut short: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_TEXT)
        .collect();
    while short.len() > MAX_TEXT {
        short.pop();
    }
    short.trim().to_owned()
}

/// A value as a line.
pub fn line(value: &impl Serialize) -> Vec<u8> {
    // Plain structures with string keys: JSON can hold all of them.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            luks_uuid: "0f7ae4c8-32e4-4e4e-a5c8-000000000001".into(),
            recovery: Some(
                "-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\nLWVu==\n-----END AGE ENCRYPTED FILE-----\n".into(),
            ),
            ssh_host_key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==".into(),
            ssh_fingerprint: format!("SHA256:{}", "a".repeat(43)),
            backups: None,
        }
    }

    #[test]
    fn words_arrive_whole_however_they_are_cut() {
        let said = [
            Message::Hello { version: VERSION },
            Message::Step(Step::Copy),
            Message::Progress { done: 1, total: 2 },
            Message::Alive,
            Message::Done(report()),
        ];
        let bytes: Vec<u8> = said.iter().flat_map(line).collect();
        for size in [1, 7, 100, bytes.len()] {
            let mut listener = Listener::default();
            let heard: Vec<Message> = bytes
                .chunks(size)
                .flat_map(|piece| listener.hear(piece).unwrap())
                .collect();
            assert_eq!(heard, said);
        }
    }

    #[test]
    fn what_is_out_of_turn_is_refused() {
        let hello = line(&Message::Hello { version: VERSION });
        let failed = line(&Message::Failed {
            step: Step::Start,
            message: "no\x1b[2Jdisk\n".into(),
        });
        let mut listener = Listener::default();
        assert_eq!(listener.hear(&line(&Message::Alive)), Err(ProtocolError::Turn));
        assert_eq!(
            listener.hear(&line(&Message::Hello { version: 7 })),
            Err(ProtocolError::Version(7))
        );
        listener.hear(&hello).unwrap();
        assert_eq!(listener.hear(&hello), Err(ProtocolError::Turn));
        let Message::Failed { message, .. } = &listener.hear(&failed).unwrap()[0] else {
            panic!("another word");
        };
        assert_eq!(message, "no [2Jdisk");
        assert_eq!(listener.hear(&line(&Message::Alive)), Err(ProtocolError::Turn));
    }

    #[test]
    fn a_line_has_an_end() {
        let mut listener = Listener::default();
        assert_eq!(
            listener.hear(&vec![b'x'; MAX_LINE + 1]),
            Err(ProtocolError::TooLong)
        );
        let mut listener = Listener::default();
        for nonsense in ["\n", "{}\n", "[1]\n", "\"alive\" 1\n", "{\"step\":\"fly\"}\n"] {
            assert_eq!(listener.hear(nonsense.as_bytes()), Err(ProtocolError::Unknown));
        }
    }

    #[test]
    fn a_report_is_plausible_or_nothing() {
        type Spoil = fn(&mut Report);
        report().check(true, false).unwrap();
        assert!(report().check(false, false).is_err());
        let none = Report {
            recovery: None,
            ..report()
        };
        none.check(false, false).unwrap();
        assert!(none.check(true, false).is_err());
        let spoils: [Spoil; 8] = [
            |report| report.luks_uuid = "../../etc/passwd".into(),
            |report| report.luks_uuid = "0F7ae4c8-32e4-4e4e-a5c8-000000000001".into(),
            |report| report.ssh_host_key = "ssh-rsa AAAA".into(),
            |report| report.ssh_host_key = "ssh-ed25519 AAAA\nssh-ed25519 BBBB".into(),
            |report| report.ssh_fingerprint = "SHA256:short".into(),
            |report| report.recovery = Some("AGE-SECRET-KEY-1".into()),
            |report| {
                report.recovery = Some(
                    "-----BEGIN AGE ENCRYPTED FILE-----\nthe secret\n-----END AGE ENCRYPTED FILE-----\n"
                        .into(),
                );
            },
            |report| {
                report.recovery = Some(format!(
                    "-----BEGIN AGE ENCRYPTED FILE-----\n{}\n-----END AGE ENCRYPTED FILE-----\n",
                    "A".repeat(MAX_CIPHERTEXT)
                ));
            },
        ];
        for spoil in spoils {
            let mut bad = report();
            spoil(&mut bad);
            assert!(bad.check(true, false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_for_backups_are_public_or_ciphertext() {
        let keys = BackupKeys {
            ssh_key: report().ssh_host_key,
            signing_key: report().ssh_host_key,
            passphrase: report().recovery.unwrap(),
        };
        let with = |keys: BackupKeys| Report {
            backups: Some(keys),
            ..report()
        };
        with(keys.clone()).check(true, true).unwrap();
        assert!(with(keys.clone()).check(true, false).is_err());
        assert!(report().check(true, true).is_err());
        for bad in [
            BackupKeys {
                passphrase: "the passphrase".into(),
                ..keys.clone()
            },
            BackupKeys {
                signing_key: String::new(),
                ..keys.clone()
            },
            BackupKeys {
                ssh_key: "-----BEGIN OPENSSH PRIVATE KEY-----".into(),
                ..keys
            },
        ] {
            assert!(with(bad).check(true, true).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_said_is_more_than_an_error(bytes: Vec<u8>, size in 1..64_usize) {
            let mut listener = Listener::default();
            for piece in bytes.chunks(size) {
                if listener.hear(piece).is_err() {
                    break;
                }
            }
        }
    }
}
