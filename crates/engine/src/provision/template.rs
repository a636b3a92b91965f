//! Templates: a Debian system without keys and without an identity, from which machines are made.
//!
//! A template is a directory: the system (`root.qcow2`: an ext4 as small as it gets), kernel and initramfs of the throwaway
//! VM that copies it (`vmlinuz`, `initrd`), and `template.json` with the digest of each, signed in `template.json.sig`.
//! Before it is used each byte is read and compared; the files that were compared are the ones that are used, because they
//! stay open. docs/guide/encrypted-vms.md describes the format.

pub mod build;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use strongroom_base::cancel::{Cancel, Cancelled};
use strongroom_guest::protocol;
use strongroom_points::digest::hex;
use strongroom_points::trust::signature::{self, Signer, SigningError, Untrusted};

use crate::config::Signing;

/// The version of this format.
pub const FORMAT: u32 = 1;
/// What a template's signature is made for.
pub const NAMESPACE: &str = "strongroom-template@v1";

/// The system: an ext4 file system without partitions.
pub const ROOT: &str = "root.qcow2";
/// The throwaway VM's kernel.
pub const KERNEL: &str = "vmlinuz";
/// The throwaway VM's initramfs.
pub const INITRD: &str = "initrd";
/// All that is signed.
const FILES: [&str; 3] = [ROOT, KERNEL, INITRD];
const DESCRIPTION: &str = "template.json";
const SIGNATURE: &str = "template.json.sig";
/// The largest description that is read, in bytes.
const MAX_DESCRIPTION: u64 = 4 << 20;

/// What a template says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// [`FORMAT`].
    pub format: u32,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Where it comes from: `debian-12`, or the name of what was imported.
    pub source: String,
    /// Version of the protocol that its throwaway VM speaks.
    pub protocol: u32,
    /// Version of its kernel.
    pub kernel: String,
    /// Size of its file system, in bytes.
    pub root_size: u64,
    /// Debian's packages in it: name and version.
    pub packages: Vec<String>,
    /// Its files.
    pub files: BTreeMap<String, FileFacts>,
}

/// What a file has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    /// Bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Something is wrong with a template, or with the place where they are kept.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The name cannot be one.
    #[error(
        "use the template name {0:?}: letters, digits, dots, dashes and underscores, 1 to 64, no dot in front"
    )]
    Name(String),
    /// There is none.
    #[error("find template {name}: it is not in {}", store.display())]
    None {
        /// Its name.
        name: String,
        /// Where it was looked for.
        store: PathBuf,
    },
    /// There is one already.
    #[error("make template {0}: it exists")]
    Exists(String),
    /// A file cannot be used.
    #[error("use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Its description is not understood.
    #[error("understand template {name}: {reason}")]
    Description {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// No trusted key has signed it.
    #[error("trust template {name}: {source}")]
    Untrusted {
        /// Its name.
        name: String,
        /// Why.
        source: Untrusted,
    },
    /// A file is not what was signed.
    #[error("trust template {name}: {file} is not the file that was signed")]
    Changed {
        /// Its name.
        name: String,
        /// The file.
        file: String,
    },
    /// It could not be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The configuration names no key.
    #[error("sign the template: the configuration names no [signing] key and allowed_signers")]
    NoKey,
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A step of the making failed.
    #[error("{what}: {reason}")]
    Build {
        /// What was being done.
        what: &'static str,
        /// What went wrong.
        reason: String,
    },
}

/// The directory in which templates are kept.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// A template each byte of which is what a trusted key has signed.
#[derive(Debug)]
pub struct Template {
    /// What it says about itself.
    pub description: Description,
    /// Who signed it.
    pub signer: Signer,
    /// [`ROOT`], open for reading.
    pub root: File,
    /// [`KERNEL`], open for reading.
    pub kernel: File,
    /// [`INITRD`], open for reading.
    pub initrd: File,
}

/// Whether this can be a template's name, and so a directory's.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl Store {
    /// Templates in this directory; it is made when the first one is.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Names of all templates, sorted.
    pub fn names(&self) -> Result<Vec<String>, TemplateError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at(&self.directory))?,
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_name(name) && self.directory.join(name).join(DESCRIPTION).is_file())
            .collect();
        names.sort();
        Ok(names)
    }

    fn place(&self, name: &str) -> Result<PathBuf, TemplateError> {
        if is_name(name) {
            Ok(self.directory.join(name))
        } else {
            Err(TemplateError::Name(name.to_owned()))
        }
    }

    /// What a template says about itself, and who vouches for that; its files are not looked at.
    pub fn describe(
        &self,
        name: &str,
        signing: &Signing,
        cancel: &Cancel,
    ) -> Result<(Description, Signer), TemplateError> {
        let place = self.place(name)?;
        let read = |file: &str, limit| {
            let path = place.join(file);
            read_bounded(&path, limit).map_err(|source| TemplateError::Io { path, source })
        };
        if !place.join(DESCRIPTION).is_file() {
            return Err(TemplateError::None {
                name: name.to_owned(),
                store: self.directory.clone(),
            });
        }
        let bytes = read(DESCRIPTION, MAX_DESCRIPTION)?;
        let signature = match read(SIGNATURE, signature::MAX_BYTES) {
            Ok(bytes) => Some(bytes),
            Err(TemplateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let description = understand(name, &bytes)?;
        let signer = signature::check(
            signing,
            NAMESPACE,
            signature.as_deref(),
            &bytes,
            description.created,
            cancel,
        )
        .map_err(|source| TemplateError::Untrusted {
            name: name.to_owned(),
            source,
        })?;
        Ok((description, signer))
    }

    /// Opens a template: every byte of it is compared with what was signed.
    pub fn open(&self, name: &str, signing: &Signing, cancel: &Cancel) -> Result<Template, TemplateError> {
        let (description, signer) = self.describe(name, signing, cancel)?;
        let place = self.place(name)?;
        let open = |file: &str| {
            let path = place.join(file);
            let mut opened = File::open(&path).map_err(at(&path))?;
            let facts = measure(&mut opened, cancel).map_err(at(&path))?;
            cancel.check()?;
            if description.files.get(file) == Some(&facts) {
                Ok(opened)
            } else {
                Err(TemplateError::Changed {
                    name: name.to_owned(),
                    file: file.to_owned(),
                })
            }
        };
        let (root, kernel, initrd) = (open(ROOT)?, open(KERNEL)?, open(INITRD)?);
        Ok(Template {
            description,
            signer,
            root,
            kernel,
            initrd,
        })
    }

    /// Removes a template. Machines that were made from it do not need it any more.
    pub fn remove(&self, name: &str) -> Result<(), TemplateError> {
        let place = self.place(name)?;
        if !place.is_dir() {
            return Err(TemplateError::None {
                name: name.to_owned(),
                store: self.directory.clone(),
            });
        }
        // The description first: without it, what is left is no template.
        for file in [DESCRIPTION, SIGNATURE].into_iter().chain(FILES) {
            let path = place.join(file);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
                _ => {}
            }
        }
        fs::remove_dir(&place).map_err(at(&place))
    }

    /// Describes and signs the files in a directory, which lies in this store, and gives it the template's name.
    fn publish(
        &self,
        draft: &Path,
        mut description: Description,
        signing: &Signing,
        cancel: &Cancel,
    ) -> Result<Description, TemplateError> {
        use std::os::unix::fs::PermissionsExt as _;
        let key = signing.key.as_deref().ok_or(TemplateError::NoKey)?;
        for name in FILES {
            let path = draft.join(name);
            let mut file = File::open(&path).map_err(at(&path))?;
            // There is nothing secret in it, and QEMU reads it as another user.
            file.set_permissions(fs::Permissions::from_mode(0o644))
                .and_then(|()| file.sync_all())
                .map_err(at(&path))?;
            let facts = measure(&mut file, cancel).map_err(at(&path))?;
            description.files.insert(name.to_owned(), facts);
        }
        cancel.check()?;
        let bytes = serde_json::to_vec_pretty(&description).unwrap_or_default();
        let signature = signature::sign(signing, key, NAMESPACE, &bytes, description.created, cancel)?;
        for (name, bytes) in [(SIGNATURE, &signature), (DESCRIPTION, &bytes)] {
            let path = draft.join(name);
            fs::write(&path, bytes).map_err(at(&path))?;
        }
        let place = self.place(&description.name)?;
        match fs::rename(draft, &place) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(TemplateError::Exists(description.name))
            }
            moved => moved.map_err(at(&place)).map(|()| description),
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> TemplateError {
    let path = path.to_owned();
    move |source| TemplateError::Io { path, source }
}

fn understand(name: &str, bytes: &[u8]) -> Result<Description, TemplateError> {
    let wrong = |reason: String| TemplateError::Description {
        name: name.to_owned(),
        reason,
    };
    let description: Description = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    if description.format != FORMAT {
        return Err(wrong(format!(
            "it has format {}, this program knows {FORMAT}",
            description.format
        )));
    }
    if description.protocol != protocol::VERSION {
        return Err(wrong(format!(
            "its throwaway VM speaks version {} of the protocol and this program {}: build it anew",
            description.protocol,
            protocol::VERSION
        )));
    }
    // A signed template under another's name: not what was asked for.
    if description.name != name {
        return Err(wrong(format!("it calls itself {:?}", description.name)));
    }
    Ok(description)
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other("it is larger than such a file can be"));
    }
    Ok(bytes)
}

/// Size and digest of a file, which is at its beginning again afterwards. Cancelled, it gives nonsense at once.
fn measure(file: &mut File, cancel: &Cancel) -> io::Result<FileFacts> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    while !cancel.is_cancelled() {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
    file.rewind()?;
    Ok(FileFacts {
        size,
        sha256: hex(&hash.finalize()),
    })
}

#[cfg(test)]
mod tests;
