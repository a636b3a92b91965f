//! What a header says of its key slots, tokens and data.

use std::fmt;

use super::Pin;

/// A key slot in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// Its number.
    pub number: u32,
    /// Size of the volume key in it, in bits.
    pub key_bits: u32,
    /// How a passphrase becomes its key.
    pub kdf: Kdf,
}

/// A key derivation: what each guess costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kdf {
    /// PBKDF2: no memory needed, cheap on graphics cards.
    Pbkdf2 {
        /// The hash (`sha256`).
        hash: String,
        /// Rounds.
        iterations: u64,
    },
    /// Argon2.
    Argon2 {
        /// `argon2i` or `argon2id`.
        variant: String,
        /// Passes.
        time: u64,
        /// Memory in KiB.
        memory: u64,
        /// Lanes.
        cpus: u64,
    },
    /// Something else, by its name.
    Other(String),
}

impl fmt::Display for Kdf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pbkdf2 { hash, iterations } => write!(out, "pbkdf2-{hash}, {iterations} iterations"),
            Self::Argon2 {
                variant,
                time,
                memory,
                cpus,
            } => write!(out, "{variant}, {} MiB, time {time}, {cpus} lanes", memory / 1024),
            Self::Other(name) => write!(out, "{name}"),
        }
    }
}

/// A token: how a slot is opened without a passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its type (`clevis`, `systemd-tpm2` …).
    pub kind: String,
    /// The slots that it opens.
    pub slots: Vec<u32>,
    /// Of a Clevis token: what it takes.
    pub pin: Option<Pin>,
}

/// A part of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts, counted from the header, in bytes.
    pub offset: u64,
    /// Its length in bytes; `None` is all that follows.
    pub length: Option<u64>,
    /// How it is encrypted (`aes-xts-plain64`); `None` if it is not.
    pub cipher: Option<String>,
}
