//! Seals on images at rest: a signed statement of what a set of named files holds, and the check that they still do.
//!
//! A set is what belongs together: the disks of a shut-off VM and its UEFI variables ([`vm`]). (Templates carry a signature
//! of their own, [`crate::provision::template`].) The statement ([`Seal`], `docs/reference/formats/image-seal.md`) names each file's size and digest ([`tree`]);
//! the signature is SSHSIG in a namespace of its own, by the configured key.
//!
//! It fails closed: no seal, an unknown signer, a byte altered, a file longer, shorter, missing or more than there were:
//! each is an error.

pub mod machine;
mod store;
pub mod tree;
pub mod vm;

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strongroom_base::cancel::{Cancel, Cancelled};
use strongroom_hypervisor::HypervisorError;
use strongroom_points::trust::signature::{self, Signer, SigningError, Untrusted};
use uuid::Uuid;

pub use self::store::SealPath;
use crate::config::Signing;
use crate::run::event::Observer;

/// What a seal's signature is made for.
pub const NAMESPACE: &str = "strongroom-image@v1";

/// The format that this version writes and reads.
pub const FORMAT: u32 = 1;

/// The largest statement that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// The most files that one seal covers.
const MAX_FILES: usize = 1000;
/// The longest name, in bytes.
const MAX_NAME: usize = 255;

/// What is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The VM's name.
    pub name: String,
    /// Its UUID; a definition that was never defined may have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

/// A file of the set: what it is, and where it lies at present. Only the former is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// Its name in the seal, such as `disks/vda`.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
}

/// The statement that is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Version of this format.
    pub format: u32,
    /// What is sealed.
    pub subject: Subject,
    /// When.
    pub sealed: Timestamp,
    /// The files, in the order of their names.
    pub files: Vec<SealedFile>,
    /// The program that wrote this.
    pub producer: String,
}

/// One file as it was sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFile {
    /// Its name.
    pub name: String,
    /// Bytes in it.
    pub size: u64,
    /// [`tree::digest`] of its content, in hexadecimal.
    pub digest: String,
}

/// A statement and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The bytes of the statement.
    pub bytes: Vec<u8>,
    /// The armored signature.
    pub signature: Vec<u8>,
}

/// Why nothing was sealed, or why a seal does not hold.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Ctrl-C.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A file cannot be read.
    #[error("read {name} ({path}): {source}")]
    Read {
        /// Its name in the seal.
        name: String,
        /// Where it lies.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file was written to meanwhile.
    #[error("read {name} ({path}): it was written to meanwhile")]
    Disturbed {
        /// Its name in the seal.
        name: String,
        /// Where it lies.
        path: PathBuf,
    },
    /// The seal itself cannot be read or written.
    #[error("use the seal {path}: {source}")]
    Store {
        /// Where it is kept.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is none.
    #[error("find a seal of {name}: there is none ({path})")]
    Missing {
        /// What should be sealed.
        name: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// A statement that no writer of ours produces.
    #[error("understand the seal: {0}")]
    Invalid(String),
    /// The configuration names no key.
    #[error("seal: the configuration names no [signing] key")]
    NoKey,
    /// It could not be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// No trusted key has signed it.
    #[error("trust the seal of {name}: {source}")]
    Untrusted {
        /// What is sealed.
        name: String,
        /// Why not.
        source: Untrusted,
    },
    /// What is there is not what was sealed.
    #[error("trust {name}: {}", .differences.join("; "))]
    Altered {
        /// What is sealed.
        name: String,
        /// What differs, file by file.
        differences: Vec<String>,
    },
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Its images are out of reach.
    #[error("seal {0}: its images lie on another machine; run strongroom there")]
    Remote(String),
    /// The set of files cannot be told, or is none that can be sealed.
    #[error("seal {name}: {reason}")]
    Refused {
        /// What was to be sealed.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Measures the files and signs what was found.
pub fn make(
    signing: &Signing,
    subject: Subject,
    files: &[NamedFile],
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<(Seal, Signed), SealError> {
    let key = signing.key.as_deref().ok_or(SealError::NoKey)?;
    let mut sealed = Vec::new();
    for file in files {
        sealed.push(tree::measure(file, observer, cancel)?);
    }
    sealed.sort_by(|a, b| a.name.cmp(&b.name));
    let seal = Seal {
        format: FORMAT,
        subject,
        sealed: Timestamp::now(),
        files: sealed,
        producer: concat!("strongroom ", env!("CARGO_PKG_VERSION")).into(),
    };
    let bytes = seal.to_bytes()?;
    let signature = signature::sign(signing, key, NAMESPACE, &bytes, seal.sealed, cancel)?;
    Ok((seal, Signed { bytes, signature }))
}

/// Who has sealed what, before any of the files is looked at: the signature is good, and the statement is about this
/// subject.
pub fn open(
    signing: &Signing,
    subject: &Subject,
    signed: &Signed,
    cancel: &Cancel,
) -> Result<(Seal, Signer), SealError> {
    let untrusted = |source| SealError::Untrusted {
        name: subject.name.clone(),
        source,
    };
    let seal = Seal::parse(&signed.bytes)?;
    let signature = Some(signed.signature.as_slice());
    let signer = signature::check(signing, NAMESPACE, signature, &signed.bytes, seal.sealed, cancel)
        .map_err(untrusted)?;
    if seal.subject != *subject {
        let Subject { name, uuid } = &seal.subject;
        let uuid = uuid.map_or_else(|| "no UUID".into(), |uuid| uuid.to_string());
        return Err(SealError::Altered {
            name: subject.name.clone(),
            differences: vec![format!("the seal is of {name} ({uuid})")],
        });
    }
    Ok((seal, signer))
}

/// Whether the files are those that were sealed, and hold what they held. All that differs is named.
pub fn check(
    seal: &Seal,
    files: &[NamedFile],
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<(), SealError> {
    let mut differences = Vec::new();
    let mut missing: BTreeMap<&str, &SealedFile> =
        seal.files.iter().map(|file| (file.name.as_str(), file)).collect();
    for file in files {
        let Some(sealed) = missing.remove(file.name.as_str()) else {
            differences.push(format!("{} ({}) was not sealed", file.name, file.path.display()));
            continue;
        };
        match tree::measure(file, observer, cancel) {
            Ok(found) if found == *sealed => {}
            Ok(found) if found.size == sealed.size => {
                differences.push(format!("{} ({}) was altered", file.name, file.path.display()));
            }
            Ok(found) => differences.push(format!(
                "{} ({}) has {} bytes, it was sealed with {}",
                file.name,
                file.path.display(),
                found.size,
                sealed.size
            )),
            Err(SealError::Cancelled(cancelled)) => return Err(cancelled.into()),
            Err(error) => differences.push(format!("failed to {error}")),
        }
    }
    differences.extend(
        missing
            .keys()
            .map(|name| format!("{name} was sealed and is not there")),
    );
    if differences.is_empty() {
        Ok(())
    } else {
        Err(SealError::Altered {
            name: seal.subject.name.clone(),
            differences,
        })
    }
}

impl Seal {
    /// The bytes that are signed: compact JSON, one line.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SealError> {
        let mut bytes = serde_json::to_vec(self).map_err(|error| SealError::Invalid(error.to_string()))?;
        bytes.push(b'\n');
        // What is written can be read.
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// Reads a statement. It says nothing about who made it.
    pub fn parse(bytes: &[u8]) -> Result<Self, SealError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let invalid = |error: serde_json::Error| SealError::Invalid(error.to_string());
        if bytes.len() as u64 > MAX_BYTES {
            return Err(SealError::Invalid(format!("it has {} bytes", bytes.len())));
        }
        let Version { format } = serde_json::from_slice(bytes).map_err(invalid)?;
        if format != FORMAT {
            return Err(SealError::Invalid(format!(
                "its format is {format}, this version knows {FORMAT}"
            )));
        }
        let seal: Self = serde_json::from_slice(bytes).map_err(invalid)?;
        if seal.files.is_empty() || seal.files.len() > MAX_FILES {
            return Err(SealError::Invalid(format!("it lists {} files", seal.files.len())));
        }
        // Sorted, so each name is there once.
        let in_order = seal
            .files
            .iter()
            .zip(seal.files.iter().skip(1))
            .all(|(a, b)| a.name < b.name);
        let plain = |name: &str| {
            (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !in_order || !seal.files.iter().all(|file| plain(&file.name)) {
            return Err(SealError::Invalid("its list of files is invalid".into()));
        }
        Ok(seal)
    }
}

#[cfg(test)]
mod tests;
