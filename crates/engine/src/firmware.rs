//! What of a VM lies outside its disks and its definition: UEFI variables, and the state of an emulated TPM.
//!
//! These are small files that the hypervisor keeps. They change rarely, and are copied as they are at the time of the
//! backup.

use std::io;
use std::path::{Path, PathBuf};

use strongroom_hypervisor::Domain;

use crate::manifest::NVRAM_PATH;
use crate::run::context::Context;

/// The largest UEFI variable store that is taken along, in bytes. Real ones have half a MiB.
const MAX_NVRAM: u64 = 16 << 20;
/// The largest file of a TPM's state, in bytes. Real ones have some ten KiB.
const MAX_TPM: u64 = 1 << 20;
/// The most files of a TPM's state.
const MAX_TPM_FILES: usize = 16;
/// Directory of the TPM's state inside an archive.
const TPM_PREFIX: &str = "tpm/";

/// One such file.
#[derive(Debug)]
pub struct FirmwareFile {
    /// Path in the archive.
    pub path: String,
    /// Content.
    pub bytes: Vec<u8>,
}

/// Takes along what there is. What cannot be had is said, not passed over: the second list names it for the manifest.
pub fn collect(context: &Context<'_>, domain: &Domain) -> (Vec<FirmwareFile>, Vec<String>) {
    let mut files = Vec::new();
    let mut missing = Vec::new();
    let mut lacks = |path: &str, warning: String| {
        missing.push(path.to_owned());
        context.warn(warning);
    };
    if let Some(path) = &domain.nvram {
        match read_from(context, path, MAX_NVRAM) {
            Ok(bytes) => files.push(FirmwareFile {
                path: NVRAM_PATH.to_owned(),
                bytes,
            }),
            // Made at the first start; a VM that never ran has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = path.display();
                let warning = format!(
                    "{}: its UEFI variables ({path}) are not in the archive: {error}",
                    domain.name
                );
                lacks(NVRAM_PATH, warning);
            }
        }
    }
    if domain.has_tpm {
        let directory = context.hypervisor.tpm_directory(domain.uuid);
        match local(context).and_then(|()| tpm(&directory)) {
            Ok(state) => files.extend(state),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let directory = directory.display();
                let warning = format!(
                    "{}: the state of its TPM ({directory}) is not in the archive: {error}",
                    domain.name
                );
                lacks(TPM_PREFIX, warning);
            }
        }
    }
    (files, missing)
}

/// The size that a file of this path in an archive may have; `None` if it is not one of these.
pub fn limit(path: &str) -> Option<u64> {
    if path == NVRAM_PATH {
        Some(MAX_NVRAM)
    } else {
        tpm_place(path).map(|_| MAX_TPM)
    }
}

/// Where a file of a TPM's state goes below the TPM's directory: `tpm2/tpm2-00.permall` for
/// `tpm/tpm2/tpm2-00.permall`. `None` for a path that no backup of ours writes.
pub fn tpm_place(path: &str) -> Option<PathBuf> {
    let (kind, name) = path.strip_prefix(TPM_PREFIX)?.split_once('/')?;
    (is_plain(kind) && is_plain(name)).then(|| Path::new(kind).join(name))
}

/// A file name without anything that leads elsewhere; hidden files (locks) are left out.
fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn local(context: &Context<'_>) -> io::Result<()> {
    if context.hypervisor.is_local() {
        Ok(())
    } else {
        Err(io::Error::other("it lies on another machine"))
    }
}

/// A file on the hypervisor, whichever machine that is.
fn read_from(context: &Context<'_>, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    if context.hypervisor.is_local() {
        return read(path, limit);
    }
    let fetched = context.hypervisor.fetch(path, limit);
    fetched.map_err(io::Error::other)
}

fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > limit {
        return Err(io::Error::other("it is larger than such a file can be"));
    }
    std::fs::read(path)
}

/// The state below a TPM's directory: one directory for its version, and the files in there.
fn tpm(directory: &Path) -> io::Result<Vec<FirmwareFile>> {
    let mut files = Vec::new();
    for kind in std::fs::read_dir(directory)? {
        let kind = kind?;
        if !kind.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(kind.path())? {
            let file = file?;
            let path = format!(
                "{TPM_PREFIX}{}/{}",
                kind.file_name().display(),
                file.file_name().display()
            );
            if tpm_place(&path).is_none() || !file.file_type()?.is_file() {
                continue;
            }
            if files.len() == MAX_TPM_FILES {
                return Err(io::Error::other("there are more files than a TPM has"));
            }
            files.push(FirmwareFile {
                path,
                bytes: read(&file.path(), MAX_TPM)?,
            });
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_in_one_directory_are_places_of_a_tpm() {
        assert_eq!(
            tpm_place("tpm/tpm2/tpm2-00.permall").unwrap(),
            Path::new("tpm2/tpm2-00.permall")
        );
        for path in [
            "tpm/tpm2",
            "tpm/tpm2/.lock",
            "tpm/../x",
            "tpm/tpm2/../../x",
            "tpm//x",
            "tpm/a/b/c",
            "/tpm/a/b",
            "nvram.fd",
            "tpm/a/",
        ] {
            assert_eq!(tpm_place(path), None, "{path}");
        }
    }

    #[test]
    fn the_state_is_read_without_locks_and_within_bounds() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("tpm2");
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join("tpm2-00.permall"), b"state").unwrap();
        std::fs::write(state.join(".lock"), b"").unwrap();
        let files = tpm(directory.path()).unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!(
            (files[0].path.as_str(), files[0].bytes.as_slice()),
            ("tpm/tpm2/tpm2-00.permall", &b"state"[..])
        );
        std::fs::write(state.join("large"), vec![0; MAX_TPM as usize + 1]).unwrap();
        assert!(tpm(directory.path()).is_err());
    }
}
