//! What of a VM lies outside its disks and its definition: UEFI variables, and the state of an emulated TPM.
//!
//! These are small files that the hypervisor keeps. They change rarely, and are copied as they are at the time of the
//! backup.

use std::io;
use std::path::Path;

use strongroom_hypervisor::Domain;
use strongroom_points::firmware::{MAX_NVRAM, MAX_TPM, TPM_PREFIX, tpm_place};
use strongroom_points::manifest::NVRAM_PATH;

use crate::run::context::Context;
use crate::run::event::Code;

/// The most files of a TPM's state.
const MAX_TPM_FILES: usize = 16;

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
        context.warn(Code::FirmwareMissing, warning);
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
